"""Reading by chunk: matrix products only, for memories of any depth.

Where the gradient of every token of a chunk is taken at one point (the weights at the chunk's start, Titans eq. 16),
all of them are known at once as two thin factors per layer, ``X`` (inputs) and ``D`` (errors). Layer by layer, with
``base(Z)`` the part of the chunk's start that is left and ``G`` from `gates`:

    Z M_t = base(Z) - ((Z X^T) * G) D                        then the non-linearity, then the next layer
    M_C   = beta_C M_0 + f_C S_0 - (X * G[C])^T D            S_C likewise

A cut inside a chunk changes nothing: the rest of the chunk is a shorter chunk that starts from the present weights
and takes its gradients at the anchor the state carries. Rows of a batch whose chunks do not begin at the same token
(padding, ragged streams) are first shifted against each other until they do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mnemonist.memory.gates import ChunkGates, chunk_gates, mixed_scores
from mnemonist.memory.network import InnerGradient, answer, inner_gradient, inner_loss
from mnemonist.memory.rule import MemoryRule
from mnemonist.memory.state import MemoryState
from mnemonist.memory.stream import Gates, Trace

ADJOINT_LIMIT = 1e6


@dataclass(frozen=True)
class Piece:
    """Chunks of one length, ready to be read in turn: ``[G, N, C, ...]`` for G chunks and N = B * H memories."""

    q: Tensor
    k: Tensor
    v: Tensor
    gates: list[ChunkGates]
    """Per layer."""
    first_scores: Tensor
    """``G[t,s] (q_t . k_s)`` of the first layer, which depends on no memory: ``[G, N, C, C]``."""


def read_chunked(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    gates: Gates,
    initial: list[Tensor],
    state: MemoryState,
    mask_BT: Tensor | None,
    trace: bool,
) -> tuple[Tensor, MemoryState, Trace | None]:
    """Read a piece of a stream chunk by chunk. Arguments as prepared by `memorize`."""
    assert state.phase is not None
    phases = state.phase.tolist()
    if mask_BT is None and len(set(phases)) == 1:
        return _read_aligned(q_BTHK, k_BTHK, v_BTHV, gates, initial, state, None, phases[0], trace)

    source, valid_BT, ends = align(mask_BT, state.phase, q_BTHK.shape[:2], q_BTHK.device)
    q, k, v = (_gather(x, source) for x in (q_BTHK, k_BTHK, v_BTHV))
    moved = gates.each(lambda g: _gather(g, source)).without_padding(valid_BT)
    y, after, seen = _read_aligned(q, k, v, moved, initial, state, (valid_BT, ends), 0, trace)
    back = torch.zeros(q_BTHK.shape[:2], dtype=torch.int64, device=q.device)
    rows, columns = valid_BT.nonzero(as_tuple=True)
    back[rows, source[rows, columns]] = columns
    real = torch.ones_like(back, dtype=torch.bool) if mask_BT is None else mask_BT
    y = _gather(y, back) * real[..., None, None]
    return (
        y,
        after,
        None if seen is None else Trace(_gather(seen.loss, back), _gather(seen.gradient_norm, back)),
    )


def align(
    mask_BT: Tensor | None, phase: Tensor, shape: torch.Size, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Shift rows so that padding is gone and all chunks begin at the same columns.

    Returns:
        For each column of the new layout the old column ``[B, T']``, whether it holds a real token ``[B, T']``, and
        the column after the last real token of each row ``[B]`` (on the CPU).
    """
    B, T = shape
    mask = torch.ones(B, T, dtype=torch.bool, device=device) if mask_BT is None else mask_BT
    order = torch.argsort(~mask, dim=1, stable=True)  # real tokens first, in their order
    ends = phase + mask.sum(1).cpu()
    width = max(1, int(ends.max()))
    column = torch.arange(width, device=device)
    start, end = phase.to(device)[:, None], ends.to(device)[:, None]
    valid = (column >= start) & (column < end)
    source = order.gather(1, (column - start).clamp(0, T - 1))
    return source, valid, ends


def _gather(x_BT: Tensor, index_BT: Tensor) -> Tensor:
    index = index_BT.reshape(*index_BT.shape, *[1] * (x_BT.dim() - 2)).expand(-1, -1, *x_BT.shape[2:])
    return x_BT.gather(1, index)


def _read_aligned(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    gates: Gates,
    initial: list[Tensor],
    state: MemoryState,
    ragged: tuple[Tensor, Tensor] | None,
    phase: int,
    trace: bool,
) -> tuple[Tensor, MemoryState, Trace | None]:
    rule, C = state.rule, state.rule.chunk_size
    B, T, H, _ = q_BTHK.shape
    valid = None if ragged is None else ragged[0]
    cuts = _cuts(T, C, phase)

    def sequences(w: Tensor) -> Tensor:
        return w.reshape(B * H, *w.shape[-2:])

    weights, momentum, anchor = (
        [sequences(w) for w in group] for group in (state.weights, state.momentum, state.anchor)
    )
    targets = [sequences(w.expand(B, *w.shape)) for w in initial] if rule.decay_to == "initial" else None
    state_phase = state.phase
    assert state_phase is not None
    if ragged is None:
        inside: Tensor | None = None  # every row is as far into its chunk as every other
        anchor = anchor if phase else weights
    else:
        inside = (state_phase > 0).to(q_BTHK.device).repeat_interleave(H)[:, None, None]
        anchor = [torch.where(inside, a, w) for a, w in zip(anchor, weights, strict=True)]

    answers, losses, norms = [], [], []
    column = 0
    for length, count in cuts:
        span = slice(column, column + length * count)
        piece = _piece(rule, q_BTHK[:, span], k_BTHK[:, span], v_BTHV[:, span], gates, valid, span, length)
        for g in range(count):
            weights, momentum = [bounded_adjoint(w) for w in weights], [bounded_adjoint(s) for s in momentum]
            if column and ragged is None:
                anchor = weights
            elif column:
                enters = (ragged[1] > column).to(q_BTHK.device).repeat_interleave(H)[:, None, None]  # type: ignore[index]
                anchor = [torch.where(enters, w, a) for w, a in zip(weights, anchor, strict=True)]
            gradient = inner_gradient(rule, anchor, piece.k[g], piece.v[g])
            y, weights, momentum = _step(rule, piece, g, gradient, weights, momentum, targets)
            answers.append(y)
            if trace:
                with torch.no_grad():
                    losses.append(inner_loss(rule, gradient.output, piece.v[g]))
                    norms.append(gradient.norm())
            column += length

    ends = state_phase + T if ragged is None else ragged[1]
    new_phase = ends % C
    finished = (new_phase == 0).to(q_BTHK.device).repeat_interleave(H)[:, None, None]
    if ragged is None:
        anchor = weights if int(new_phase[0]) == 0 else anchor
    else:
        anchor = [torch.where(finished, w, a) for w, a in zip(weights, anchor, strict=True)]
    back = [tuple(w.reshape(B, H, *w.shape[1:]) for w in group) for group in (weights, momentum, anchor)]

    def tokens(chunks: list[Tensor]) -> Tensor:
        whole = torch.cat(chunks, dim=1)  # [N, T, ...]
        return whole.reshape(B, H, *whole.shape[1:]).transpose(1, 2)

    seen = Trace(tokens(losses), tokens(norms)) if trace else None
    return tokens(answers), MemoryState(rule, back[0], back[1], back[2], new_phase), seen


class _BoundedAdjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, adjoint: Tensor) -> Tensor:
        norm = adjoint.flatten(1).norm(dim=1)[:, None, None]
        return adjoint * (ADJOINT_LIMIT / norm).clamp_max(1) if bool((norm > ADJOINT_LIMIT).any()) else adjoint


def bounded_adjoint(weight_NKV: Tensor) -> Tensor:
    """The weights themselves; the gradient that flows back through them is shortened where it has exploded.

    Gradient descent with one gradient point for many tokens can be chaotic at large steps: the memory stays bounded,
    but derivatives through hundreds of chunks overflow, and a NaN ends the training of everything. A derivative of
    this size means nothing but its finiteness does: the optimiser's clipping can act on it. Below the limit, which no
    healthy gradient comes near, nothing changes.
    """
    return _BoundedAdjoint.apply(weight_NKV) if weight_NKV.requires_grad else weight_NKV


def _cuts(T: int, C: int, phase: int) -> list[tuple[int, int]]:
    """Lengths and counts of the chunks of ``T`` tokens that begin ``phase`` tokens into a chunk."""
    first = min(T, C - phase) if phase else 0
    full, rest = divmod(T - first, C)
    return [(length, count) for length, count in ((first, 1), (C, full), (rest, 1)) if length and count]


def _piece(
    rule: MemoryRule,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    valid_BT: Tensor | None,
    span: slice,
    C: int,
) -> Piece:
    B, T, H, K = q.shape
    G = T // C

    def chunks(x: Tensor) -> Tensor:  # [B, T, H, ...] -> [G, N, C, ...]
        x = x.reshape(B, G, C, *x.shape[2:])
        return x.movedim(1, 0).transpose(2, 3).reshape(G, B * H, C, *x.shape[4:])

    step_size = chunks(gates.step_size[:, span])
    log_momentum = None if gates.log_momentum is None else chunks(gates.log_momentum[:, span])
    log_decay = None if gates.log_decay is None else chunks(gates.log_decay[:, span])
    valid = None if valid_BT is None else chunks(valid_BT[:, span, None].expand(B, T, H))
    to_target = rule.decay_to == "initial"

    if log_decay is None or log_decay.dim() == 3:
        layers = [chunk_gates(step_size, log_momentum, log_decay, valid, to_target)] * rule.depth
    else:
        sizes = [d_in for d_in, _ in rule.layer_sizes(K, v.shape[-1])]
        layers = [chunk_gates(step_size, log_momentum, d, valid, to_target) for d in log_decay.split(sizes, dim=-1)]
    q, k = chunks(q), chunks(k)
    return Piece(q, k, chunks(v), layers, mixed_scores(q, k, layers[0].mix))


def _step(
    rule: MemoryRule,
    piece: Piece,
    g: int,
    gradient: InnerGradient,
    weights: Sequence[Tensor],
    momentum: Sequence[Tensor],
    targets: Sequence[Tensor] | None,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Read and write one chunk: answers ``[N, C, V]``, weights and momentum after it."""
    stacks = [stack_parts(i, weights, targets, momentum) for i in range(rule.depth)]

    def apply_layer(i: int, z: Tensor) -> Tensor:
        gates = piece.gates[i].at(g)
        scores = piece.first_scores[g] if i == 0 else mixed_scores(z, gradient.inputs[i], gates.mix)
        base = spread(z, gates.base_XCPK) @ stacks[i]
        return torch.baddbmm(base, scores, gradient.errors[i], alpha=-1)

    y = answer(rule, apply_layer, piece.q[g])
    after = [write(piece.gates[i].at(g), gradient.inputs[i], gradient.errors[i], stacks[i]) for i in range(rule.depth)]
    return y, [m for m, _ in after], [s for _, s in after if s is not None]


def stack_parts(
    i: int, weights: Sequence[Tensor], targets: Sequence[Tensor] | None, momentum: Sequence[Tensor]
) -> Tensor:
    """The parts of layer ``i`` one above the other, ``[N, P * D_in, D_out]``: one product reads them all."""
    parts = [weights[i], *([] if targets is None else [targets[i]]), *([momentum[i]] if momentum else [])]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def spread(z_XCK: Tensor, base_XCPK: Tensor) -> Tensor:
    """Inputs for the stack of parts: ``z`` once per part, weighted by what is left of it, ``[X, C, P * K]``."""
    return (z_XCK.unsqueeze(-2) * base_XCPK).flatten(-2)


def write(gates: ChunkGates, x_NCK: Tensor, d_NCV: Tensor, stack: Tensor) -> tuple[Tensor, Tensor | None]:
    """Weights and momentum ``[N, D_in, D_out]`` after a chunk with gradient factors ``x`` and ``d``."""
    D_in = x_NCK.shape[-1]
    parts = stack.unflatten(1, (-1, D_in))  # [N, P, D_in, D_out]
    left = gates.base_XCPK[:, -1].unsqueeze(-1)  # [N, P, K, 1]
    last = gates.mix[:, -1]  # [N, C] or [N, C, K]
    to_weights = x_NCK * (last if last.dim() == 3 else last.unsqueeze(-1))
    base = (parts * left).sum(1)
    if gates.momentum_XC is None or gates.carry_X is None:
        return torch.baddbmm(base, to_weights.mT, d_NCV, alpha=-1), None
    to_momentum = x_NCK * gates.momentum_XC.unsqueeze(-1)
    written = torch.cat([to_weights, to_momentum], dim=-1).mT @ d_NCV
    momentum = parts[:, -1] * gates.carry_X[:, None, None] - written[:, D_in:]
    return base - written[:, :D_in], momentum
