"""One token a row, as decoding reads, compiled (`native_one_token.cpp`, see `native`).

A chunk of one token is no work for matrix products, and rows that stand at different places of their chunks would have
to be shifted against each other first. Here they need not be.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from mnemonist.memory.kernels import native
from mnemonist.memory.kernels.native_chunks import ACTIVATIONS, MOST_LAYERS, OBJECTIVES
from mnemonist.memory.network import NORM_EPS
from mnemonist.memory.state import MemoryState
from mnemonist.memory.stream import Gates, Trace

CACHE = 2**24
"""Bytes of a memory's state above which what is written will not be met in a cache by the next token."""


class _Work(native.Structure):
    """As `Work` in the source."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("B", "H", "depth", "threads", "double_precision", "activation")),
        *((name, ctypes.c_int32) for name in ("objective", "norm", "residual", "denominator", "rates", "momentum")),
        *((name, ctypes.c_int32) for name in ("targets", "read_before", "past_caches")),
        ("sizes", ctypes.c_int32 * (MOST_LAYERS + 1)),
        *((name, ctypes.c_double) for name in ("huber_delta", "norm_eps")),
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "step_size", "log_momentum", "log_decay")),
        *((name, ctypes.c_void_p) for name in ("real", "begins", "ends")),
        *((name, ctypes.c_void_p * MOST_LAYERS) for name in ("target", "weights", "moving", "anchor")),
        *((name, ctypes.c_void_p * MOST_LAYERS) for name in ("next_weights", "next_moving", "next_anchor")),
        *((name, ctypes.c_void_p) for name in ("y", "loss", "gradient_norm")),
    ]


def one_token_kernel() -> ctypes.CDLL | None:
    """The compiled kernel, or None if there is no way to have it."""
    return native.kernel("native_one_token.cpp", ("read_one_token",), _Work)


def applies(q: Tensor, k: Tensor, v: Tensor, gates: Gates, initial: Sequence[Tensor], state: MemoryState) -> bool:
    """Whether there is one token a row, no derivative is wanted, and the kernel can read it."""
    rule = state.rule
    if q.shape[1] != 1 or rule.per_token or rule.window > 1 or rule.depth > MOST_LAYERS or not rule.built_in:
        return False
    given = (q, k, v, *gates.given(), *initial, *state.tensors)
    return not native.wants_derivatives(*given) and native.fits(*given) and one_token_kernel() is not None


def read_one_token(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    initial: Sequence[Tensor],
    state: MemoryState,
    mask: Tensor | None,
    trace: bool,
) -> tuple[Tensor, MemoryState, Trace | None]:
    """Read one token of each row.

    Args:
        q: queries ``[B, 1, H, K]``.
        k: keys ``[B, 1, H, K]``.
        v: values ``[B, 1, H, V]``.
        gates: each ``[B, 1, H]``, or of a rule with a decay for every channel ``[B, 1, H, D]``.
        initial: per layer ``[H, D_in, D_out]``.
        state: of B rows, with gradients at the start of a chunk; it is left as it was.
        mask: bool ``[B, 1]``, False on padding.
        trace: whether losses and gradient norms are wanted.

    Returns:
        Answers ``[B, 1, H, V]``, zero at padding; the state, and the trace ``[B, 1, H]``.
    """
    kernel, rule, phase = one_token_kernel(), state.rule, state.phase
    assert kernel is not None and phase is not None
    B, _, H, _ = q.shape
    named = {"q": q, "k": k, "v": v, **vars(gates)}
    tokens = {name: tensor.contiguous() for name, tensor in named.items() if tensor is not None}
    weights, moving, anchor, target = (
        [tensor.contiguous() for tensor in group]
        for group in (state.weights, state.momentum, state.anchor, initial if rule.decay_to == "initial" else ())
    )
    next_phase = (phase + (1 if mask is None else mask[:, 0])) % rule.chunk_size
    flags = {"begins": phase == 0, "ends": next_phase == 0}
    if mask is not None:
        flags["real"] = mask[:, 0].contiguous()
    next_weights, next_moving = ([torch.empty_like(tensor) for tensor in group] for group in (weights, moving))
    next_anchor, to_anchor = _next_anchor(flags["begins"], flags["ends"], weights, next_weights, anchor)
    groups = {"weights": weights, "moving": moving, "anchor": anchor, "target": target}
    groups |= {"next_weights": next_weights, "next_moving": next_moving, "next_anchor": to_anchor}
    y = torch.empty_like(tokens["v"])
    seen = [y.new_empty(B, 1, H) for _ in range(2 * trace)]
    out = dict(zip(("y", "loss", "gradient_norm"), (y, *seen), strict=False))
    work = _Work(
        B=B, H=H, depth=rule.depth, threads=torch.get_num_threads(), double_precision=y.dtype == torch.float64,
        activation=ACTIVATIONS.index(rule.activation), objective=OBJECTIVES.index(rule.objective), norm=rule.norm,
        residual=rule.residual, denominator=rule.denominator, momentum=rule.momentum, targets=bool(target),
        rates=0 if gates.log_decay is None else gates.log_decay[0, 0, 0].numel(), read_before=rule.read_at == "before",
        past_caches=sum(w.nbytes for w in weights) > CACHE, huber_delta=rule.huber_delta, norm_eps=NORM_EPS,
        **{name: tensor.data_ptr() for name, tensor in (tokens | flags | out).items()},
    )  # fmt: skip
    for i, size in enumerate([q.shape[-1], *(w.shape[-1] for w in weights)]):
        work.sizes[i] = size
    for name, group in groups.items():
        native.point(getattr(work, name), group)
    kernel.read_one_token(ctypes.byref(work))
    after = MemoryState(rule, tuple(next_weights), tuple(next_moving), tuple(next_anchor), next_phase)
    return y, after, Trace(*seen) if trace else None


def _next_anchor(
    begins: Tensor, ends: Tensor, weights: list[Tensor], next_weights: list[Tensor], anchor: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Where the tokens that follow take their gradients, and which part of it the kernel has to write."""
    if bool(ends.all()):
        return next_weights, []
    if bool(begins.all()):
        return weights, []
    if not bool((begins | ends).any()):
        return anchor, []
    own = [torch.empty_like(tensor) for tensor in anchor]
    return own, own
