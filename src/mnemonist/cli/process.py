"""The process of a command: how it computes, and which of several speaks."""

from __future__ import annotations

import os
import sys

import torch


def prepare_torch() -> None:
    """Before the first tensor: round denormals to zero in every thread that torch will start.

    Products of many decays sink into denormals, which CPUs compute several times slower.
    """
    torch.set_flush_denormal(True)


def say(sentence: str) -> None:
    """Tell the person at the terminal; stdout stays free for results."""
    if first_process():
        print(sentence, file=sys.stderr, flush=True)


def first_process() -> bool:
    """Whether this is the only process, or the first of those that a launcher has started."""
    return os.environ.get("RANK", "0") == "0"
