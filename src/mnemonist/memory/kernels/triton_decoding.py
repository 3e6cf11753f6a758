"""Reading one token a row on an NVIDIA GPU, as decoding does: what stands around the kernel of `triton_one_token`.

The arithmetic of a token takes microseconds; what decoding waits for is the host. So there is one kernel, and weights
go in and come out as a state holds them. Unlike `triton_reading`, which reads where derivatives are wanted, this is a
plain function and no operation of torch, whose call alone takes half as long as all of this.

Importing this module does not import triton.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mnemonist.memory.kernels.triton_reading import padded, wants_derivatives
from mnemonist.memory.network import NORM_EPS
from mnemonist.memory.rule import MemoryRule
from mnemonist.memory.state import MemoryState
from mnemonist.memory.stream import Gates, Trace

TILE = 64 * 64
"""Numbers of a matrix at a time."""
WARPS = 8

Layers = Sequence[Tensor | None]
"""The first of two layers and the last one, as the kernel takes them: None where a memory has none."""


def applies(q: Tensor, k: Tensor, v: Tensor, gates: Gates, initial: Sequence[Tensor], state: MemoryState) -> bool:
    """Whether what `triton_reading` could read here (see its `refusal`) is one token a row, and no derivative is
    wanted."""
    return q.shape[1] == 1 and not state.rule.per_token and not wants_derivatives(q, k, v, gates, initial, state)


def read_one_token(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, initial: Sequence[Tensor], state: MemoryState, trace: bool
) -> tuple[Tensor, MemoryState, Trace | None]:
    """Read one token of each row. Products are in float32, whatever the tokens are.

    Args:
        q: queries ``[B, 1, H, K]``, float32, bfloat16 or float16.
        k: keys ``[B, 1, H, K]``.
        v: values ``[B, 1, H, V]``.
        gates: each ``[B, 1, H]``, float32.
        initial: per layer ``[H, D_in, D_out]``, float32.
        state: of B rows, float32; it is left as it was.
        trace: whether losses and gradient norms are wanted.

    Returns:
        Answers ``[B, 1, H, V]`` in the type of v, or in float32 if the last channel is a denominator; the state, and
        the trace ``[B, 1, H]``.
    """
    assert state.phase is not None
    rule, (B, _, H, K), V = state.rule, q.shape, v.shape[3]
    # Tokens and gates are rarely strided, a state at most once a stream: what it becomes is not.
    tokens = [_contiguous(x) for x in (q, k, v, gates.step_size, gates.log_momentum, gates.log_decay)]
    target = _layers(initial if rule.decay_to == "initial" else ())
    weights, momentum = _layers(state.weights), _layers(state.momentum)
    phases = state.phase.tolist()
    anchor = _layers(state.anchor) if any(phases) else weights  # a chunk begins: its gradients are taken here
    next_weights, next_momentum = ([None if w is None else torch.empty_like(w) for w in x] for x in (weights, momentum))
    wide = gates.step_size
    y = wide.new_empty(v.shape) if rule.denominator else torch.empty_like(v, memory_format=torch.contiguous_format)
    loss, norm = (wide.new_empty(B, 1, H), wide.new_empty(B, 1, H)) if trace else (None, None)
    kernel, choices = launch_for(rule, H, K, V, trace)
    with torch.cuda.device_of(q):
        kernel[(B * H,)](
            *tokens, *target, *anchor, *weights, *momentum, *next_weights, *next_momentum, y, loss, norm, **choices
        )
    ends = [phase + 1 == rule.chunk_size for phase in phases]
    if all(ends):
        anchor = next_weights
    elif any(ends):
        ended = torch.tensor(ends)[:, None, None, None].to(q.device, non_blocking=True)
        pairs = zip(_given(next_weights), _given(anchor), strict=True)
        anchor = [torch.where(ended, new, old) for new, old in pairs]
    phase = (state.phase + 1) % rule.chunk_size
    after = MemoryState(rule, _given(next_weights), _given(next_momentum), _given(anchor), phase)
    return y, after, None if loss is None or norm is None else Trace(loss, norm)


def _contiguous(x: Tensor | None) -> Tensor | None:
    return x if x is None or x.is_contiguous() else x.contiguous()


def _layers(matrices: Sequence[Tensor]) -> Layers:
    return [None] * (2 - len(matrices)) + [_contiguous(w) for w in matrices]


def _given(layers: Layers) -> tuple[Tensor, ...]:
    return tuple(w for w in layers if w is not None)


@functools.lru_cache(maxsize=256)
def launch_for(rule: MemoryRule, heads: int, key_dim: int, value_dim: int, trace: bool) -> tuple[Any, dict[str, Any]]:
    """The kernel, and what it is specialised to: kept, since making it again takes longer than a token."""
    from mnemonist.memory.kernels.triton_one_token import one_token_kernel

    hidden = rule.layer_sizes(key_dim, value_dim)[-1][0]
    block_k, block_v = padded(key_dim), padded(value_dim)
    tallest = block_v if rule.depth == 1 else max(block_k, block_v)
    block_d = min(padded(hidden), max(16, TILE // tallest))
    blocks = -(-hidden // block_d)
    return one_token_kernel, {
        "H": heads, "K": key_dim, "D": hidden, "V": value_dim,
        "BLOCK_K": block_k, "BLOCK_D": block_d, "BLOCK_V": block_v, "BLOCKS": blocks,
        "HELD": 1 << (blocks - 1).bit_length(),
        "DEPTH": rule.depth, "ACTIVATION": rule.activation, "OBJECTIVE": rule.objective, "DELTA": rule.huber_delta,
        "NORM": rule.norm, "RESIDUAL": rule.residual, "DENOMINATOR": rule.denominator, "EPS": NORM_EPS,
        "MOMENTUM": rule.momentum, "DECAY": rule.retention != "none", "TARGETS": rule.decay_to == "initial",
        "BEFORE": rule.read_at == "before", "TRACE": trace, "num_warps": WARPS,
    }  # fmt: skip
