"""The mode of a model: as it is used, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout; every module gets its own mode back."""
    training = [module for module in model.modules() if module.training]  # perhaps some parts alone
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
