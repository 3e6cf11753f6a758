"""The mode of a model: as it is used, for a while, in which its weights stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import nn

T = TypeVar("T")

_made: ContextVar[dict[tuple[nn.Module, str], Any] | None] = ContextVar("made", default=None)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout, and `at_rest`; every module gets its own mode back."""
    training = [module for module in model.modules() if module.training]  # perhaps some parts alone
    model.eval()
    try:
        with at_rest():
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def at_rest() -> Iterator[None]:
    """A while in which no weight changes, so that what layers make of weights alone is made once.

    Where weights do change, leave it and enter it again: each while begins with nothing.
    """
    before = _made.get()
    _made.set({})
    try:
        yield
    finally:
        _made.set(before)


def made_once(layer: nn.Module, name: str, make: Callable[[], T]) -> T:
    """What a layer makes of its weights alone: made, or what was made before where weights are `at_rest`.

    Args:
        layer: whose weights.
        name: of what is made, among all that is made of this layer.
        make: makes it; where derivatives are wanted it is made every time.
    """
    made = _made.get()
    if made is None or torch.is_grad_enabled():
        return make()
    if (layer, name) not in made:
        made[layer, name] = make()
    found: T = made[layer, name]
    return found
