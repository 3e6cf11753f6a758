"""Choices that anybody may add to: what a memory is asked to get right, how it bends, how it steps.

These are functions on tensors. Once it has a name, one of your own is a choice like any other: a `MemoryRule` takes the
name, and states, layers, models and runs follow it, with derivatives, padding, and streams cut anywhere. What is saved
holds the name alone; whoever loads it adds the function first. The kernels know the choices that come with the package
and no others: rules with one of your own are read through torch, by the chunk where gradients are taken at the chunk's
start and the step is not one's own, else token by token (`recurrent`).

This module needs no torch, so the command line can list the rules at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[["Tensor", "Tensor"], "Tensor"]
Function = Callable[["Tensor"], "Tensor"]


@dataclass(frozen=True)
class OwnObjective:
    """What a memory is asked to get right; see `add_objective`."""

    loss: Loss
    error: Loss | None = None


@dataclass(frozen=True)
class OwnActivation:
    """The non-linearity of a deep memory; see `add_activation`."""

    function: Function
    gain: float


@dataclass(frozen=True)
class Write:
    """What a step of one's own is given of one layer of the memories, for one write.

    Matrices are ``[B, H, D_in, D_out]``, applied as ``x @ W``; numbers ``[B, H, 1, 1]``.
    """

    weights: Tensor
    """M before the write."""
    kept: Tensor
    """What retention leaves of it: ``(1 - alpha) M``, or nearer to the initial weights; M if nothing is forgotten."""
    retention: Tensor | None
    """1 - alpha, ``[B, H, D_in, 1]`` where each input channel has its own; None if the rule does not forget."""
    gradient: Tensor
    """Of the inner loss with respect to M; with a `MemoryRule.window` the sum over its tokens, each times the step size
    that it came with."""
    step_size: Tensor
    """theta."""
    momentum: Tensor | None
    """S, as the last write left it; None if the rule has none."""
    persistence: Tensor | None
    """eta: how much of S is to be carried on; None likewise."""


Step = Callable[[Write], "tuple[Tensor, Tensor | None]"]

OBJECTIVES: dict[str, OwnObjective] = {}
ACTIVATIONS: dict[str, OwnActivation] = {}
STEPS: dict[str, Step] = {}


def add_objective(name: str, loss: Loss, error: Loss | None = None) -> None:
    """Let rules have an inner loss of your own: ``MemoryRule(objective=name)``, ``"titans:objective=NAME"``.

    A layer bounds steps as if the loss curved like ``1/2 |M(k) - v|^2``; where yours curves more, give the layer a
    smaller ``step_bound``.

    Args:
        name: a name that comes with the package is taken; one of your own is replaced.
        loss: of answers and values ``[..., C, V]``, summed over value channels: ``[..., C]``. Each token's loss may
            depend on that token alone.
        error: its derivative with respect to the answers, ``[..., C, V]``; None has torch work it out at every call.

    Raises:
        ValueError: the name is taken, or no name.
    """
    _require_name(name, "objective")
    OBJECTIVES[name] = OwnObjective(loss, error)


def add_activation(name: str, function: Function) -> None:
    """Let deep memories have a non-linearity of your own: ``MemoryRule(depth=2, activation=name)``.

    Args:
        name: as for `add_objective`.
        function: of each number alone, with derivatives by torch. Fresh weights are drawn such that what it gives has
            variance 1 (`initial_weights`).

    Raises:
        ValueError: the name is taken, or no name; or the function gives nothing but zeros, or no finite numbers.
    """
    import torch

    _require_name(name, "activation")
    z = torch.linspace(-12, 12, 24001, dtype=torch.float64)
    normal = torch.exp(-(z**2) / 2)
    gain = float((normal.sum() / (normal * function(z).detach() ** 2).sum()) ** 0.5)
    if not 0 < gain < float("inf"):
        raise ValueError(f"The activation {name!r} gives zeros alone, or numbers that are not finite, from -12 to 12.")
    ACTIVATIONS[name] = OwnActivation(function, gain)


def add_step(name: str, step: Step) -> None:
    """Let memories step your way: ``MemoryRule(step=name)``; read token by token.

    Args:
        name: as for `add_objective`.
        step: from a `Write` to the weights after it and, if the rule has momentum, S after it; else None. It is called
            layer by layer, changes nothing that it is given, and is differentiated through.

    Raises:
        ValueError: the name is taken, or no name.
    """
    _require_name(name, "step")
    STEPS[name] = step


def _require_name(name: str, kind: str) -> None:
    from mnemonist.memory.rule import BUILT_IN

    if not name.replace("-", "_").isidentifier():
        raise ValueError(f"{name!r} cannot be the name of an {kind}: take letters, digits, - and _.")
    if name in BUILT_IN[kind]:
        raise ValueError(f"{kind} {name!r} comes with the package; take another name.")
