"""What `torch.compile` leaves as it is.

A compiler unrolls loops over chunks and recompiles wherever a counter steers the control flow; matrix products, in
which reading spends its time, gain nothing from that. So it compiles what stands around the reading, and calls this.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def eager(function: Callable[P, R]) -> Callable[P, R]:
    """A decorator: the function runs uncompiled, also within compiled code.

    `torch.compiler.disable` says the same, but importing the compiler takes a second, which every start would pay.
    """
    disabled = torch._disable_dynamo(function)  # imports it when first called

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return (disabled if "torch._dynamo" in sys.modules else function)(*args, **kwargs)

    call.__code__ = call.__code__.replace(co_name=function.__name__)  # the compiler counts its attempts by code object
    return functools.wraps(function)(call)
