"""Gates that follow from tokens, compiled (`native_token_gates.cpp`, see `native`).

Each gate is a thin matrix that meets all tokens, and a few passes over a few numbers of each: in torch some forty calls
both ways, of which a model that reads one token or one segment after the other has little else. Here they are one each
way. Second derivatives need ``MNEMONIST_KERNELS=off``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from struct import Struct
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mnemonist.memory.kernels import native

UNIT = 128
"""Rows of a unit of work, as in the source."""
MOST_CHANNELS = 64
"""Of one gate; with more its product is a matrix product like others, which torch makes as fast."""

_WORK = Struct("4q3q2d19P")
"""As `Work` in the source."""

Projection = tuple[Tensor, Tensor]
"""Weight ``[N, E]`` and bias ``[N]`` of a gate before it becomes one: ``x @ weight.T + bias``."""
_Choices = tuple[Sequence[bool], float, float]
"""Which gates there are, the bound and the longest."""


def gates_kernel() -> ctypes.CDLL | None:
    """The compiled kernel, or None if there is no way to have it."""
    return native.kernel("native_token_gates.cpp", ("gates", "gates_back"), _WORK)


def applies(x: Tensor, projections: Sequence[Projection | None]) -> bool:
    """Whether the kernel can work with these tensors, which are all that it would be given."""
    given = [tensor for projection in projections if projection is not None for tensor in projection]
    return (
        native.fits(x, *given)
        and all(bias.shape[0] <= MOST_CHANNELS for bias in given[1::2])
        and native.may_multiply()
        and gates_kernel() is not None
    )


def token_gates(
    x: Tensor, projections: Sequence[Projection | None], bound: float, longest: float
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What each token says of its own write; with ``l_step`` what the step's projection makes of it, and so on:

        step size = bound sigmoid(l_step) sigmoid(-l_momentum)
        log momentum = log sigmoid(l_momentum), at least -longest;      log decay = log (1 - sigmoid(l_decay))

    Args:
        x: ``[B, T, E]``.
        projections: of step size, momentum (with as many channels) and decay. None for one that the rule does not use;
            without momentum the step size has no such factor.
        bound: largest step size.
        longest: the log of the momentum is no less than minus this.

    Returns:
        Step size, log momentum, log decay, ``[B, T, N]`` each; None for those without projection.
    """
    given = [tensor for one in projections if one is not None for tensor in one]
    which = tuple(one is not None for one in projections)
    choices = (which, bound, longest)
    made: Sequence[Tensor]
    if native.wants_derivatives(x, *given):
        made = _Gates.apply(choices, x, *given)
    else:
        made = _gates(choices, x.contiguous(), [tensor.contiguous() for tensor in given], keep=False)[0]
    parts = iter(made)
    step_size, log_momentum, log_decay = (next(parts) if one else None for one in which)
    assert step_size is not None
    return step_size, log_momentum, log_decay


def _work(
    choices: _Choices,
    x: Tensor,
    given: Sequence[Tensor],
    logits: Sequence[Tensor] = (),
    gates: Sequence[Tensor] = (),
    to_gates: Sequence[Tensor] = (),
    back: Sequence[Tensor] = (),
) -> bytes:
    """What the kernel is given. Logits and what follows are of the gates there are, all or none of them."""
    which, bound, longest = choices

    def of_all(tensors: Sequence[Tensor]) -> list[int]:
        addresses = iter([tensor.data_ptr() for tensor in tensors])
        return [next(addresses, 0) if there else 0 for there in which]

    channels = iter([bias.shape[0] for bias in given[1::2]])
    return _WORK.pack(
        x.numel() // x.shape[-1],
        x.shape[-1],
        torch.get_num_threads(),
        x.dtype == torch.float64,
        *[next(channels) if there else 0 for there in which],
        bound,
        longest,
        x.data_ptr(),
        *of_all(given[::2]),
        *of_all(given[1::2]),
        *of_all(logits),
        *of_all(gates),
        *of_all(to_gates),
        *([tensor.data_ptr() for tensor in back] or [0, 0, 0]),
    )


def _gates(choices: _Choices, x: Tensor, given: Sequence[Tensor], keep: bool) -> tuple[list[Tensor], list[Tensor]]:
    """The gates there are, and what their projections make of the tokens, if that is to be kept."""
    kernel = gates_kernel()
    assert kernel is not None
    *shape, _ = x.shape
    gates = [x.new_empty(*shape, bias.shape[0]) for bias in given[1::2]]
    logits = [torch.empty_like(gate) for gate in gates] if keep else []
    kernel.gates(_work(choices, x, given, logits, gates))
    return gates, logits


class _Gates(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, choices: _Choices, x: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        x, given = x.contiguous(), tuple(tensor.contiguous() for tensor in given)
        gates, logits = _gates(choices, x, given, keep=True)
        ctx.choices = choices
        ctx.save_for_backward(x, *given, *logits)
        return tuple(gates)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kernel = gates_kernel()
        assert kernel is not None
        x, *rest = ctx.saved_tensors
        logits, given = rest[-len(grads) :], rest[: -len(grads)]
        channels = [bias.shape[0] for bias in given[1::2]]
        units = -(-(x.numel() // x.shape[-1]) // UNIT)
        back = [torch.empty_like(x), *(x.new_empty(units, sum(channels), *of) for of in ((x.shape[-1],), ()))]
        to_gates = [grad.contiguous() for grad in grads]
        kernel.gates_back(_work(ctx.choices, x, given, logits, to_gates=to_gates, back=back))
        to_x, *sums = back
        weights, biases = (each.sum(0).split(channels) for each in sums)
        return None, to_x, *(tensor for pair in zip(weights, biases, strict=True) for tensor in pair)
