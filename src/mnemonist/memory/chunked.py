"""Reading by chunk: matrix products only, for memories of any depth.

Where the gradient of every token of a chunk is taken at one point (the weights at the chunk's start, Titans eq. 16),
all of them are known at once as two thin factors per layer, ``X`` (inputs) and ``D`` (errors). Layer by layer, with
``base(Z)`` the part of the chunk's start that is left and ``G`` from `gates`:

    Z M_t = base(Z) - ((Z X^T) * G) D                        then the non-linearity, then the next layer
    M_C   = beta_C M_0 + f_C S_0 - (X * G[C])^T D            S_C likewise

A cut inside a chunk changes nothing: the rest of the chunk is a shorter chunk that starts from the present weights
and takes its gradients at the anchor the state carries. Rows of a batch whose chunks do not begin at the same token
(padding, ragged streams) are first shifted against each other until they do; one token of each is read by `recurrent`.

A compiled kernel may read in place of the loop below (`kernels.native_chunks`), and another one where there is one
token a row (`kernels.native_one_token`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mnemonist.memory.gates import ChunkGates, chunk_gates, mixed_scores, reading_before
from mnemonist.memory.kernels import native, native_chunks, native_one_token
from mnemonist.memory.kernels.native_chunks import ADJOINT_LIMIT
from mnemonist.memory.network import InnerGradient, answer, inner_gradient, inner_loss
from mnemonist.memory.recurrent import read_recurrent
from mnemonist.memory.rule import MemoryRule
from mnemonist.memory.state import MemoryState
from mnemonist.memory.stream import Gates, Trace, Window, align, cut_chunks


@dataclass(frozen=True)
class Chunk:
    """One chunk, ready to be read: ``[N, C, ...]`` for N = B * H memories."""

    q: Tensor
    k: Tensor
    """``[N, P + C, K]``: of the tokens before, too, whose losses its steps go down (`MemoryRule.window`)."""
    v: Tensor
    gates: Sequence[ChunkGates]
    """Per layer."""
    first_scores: Tensor
    """``G[t,s] (q_t . k_s)`` of the first layer, which depends on no memory: ``[N, C, P + C]``."""


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
    if native_one_token.applies(q_BTHK, k_BTHK, v_BTHV, gates, initial, state):
        return native_one_token.read_one_token(q_BTHK, k_BTHK, v_BTHV, gates, initial, state, mask_BT, trace)
    phases = state.phase.tolist()
    if mask_BT is None and len(set(phases)) == 1:
        return _read_aligned(q_BTHK, k_BTHK, v_BTHV, gates, initial, state, None, phases[0], trace)
    one_token = q_BTHK.shape[1] == 1
    if one_token and not native.wants_derivatives(q_BTHK, k_BTHK, v_BTHV, *gates.given(), *initial, *state.tensors):
        # Shifting rows would make as many columns of one token as a chunk has.
        y, after, always = read_recurrent(q_BTHK, k_BTHK, v_BTHV, gates, initial, state, mask_BT)
        return y, after, always if trace else None

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
    state_phase = state.phase
    assert state_phase is not None
    ends = state_phase + T if ragged is None else ragged[1]
    targets = initial if rule.decay_to == "initial" else []

    def present_where(rows_B: Tensor, weights: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
        """The present weights in some rows of the batch, ``others`` in the rest."""
        chosen = rows_B.to(q_BTHK.device)[:, None, None, None]
        return [torch.where(chosen, w, o) for w, o in zip(weights, others, strict=True)]

    def anchored(new_phase: Tensor, weights: Sequence[Tensor], anchor: Sequence[Tensor]) -> Sequence[Tensor]:
        """The present weights where a chunk has just ended: the next one takes its gradients there."""
        if ragged is not None:
            return present_where(new_phase == 0, weights, anchor)
        return weights if int(new_phase[0]) == 0 else anchor

    def after(
        weights: Sequence[Tensor], momentum: Sequence[Tensor], anchor: Sequence[Tensor], new_phase: Tensor
    ) -> MemoryState:
        recent = tokens_met.end(before, None if ragged is None else ends)
        anchor = anchored(new_phase, weights, anchor)
        return MemoryState(rule, tuple(weights), tuple(momentum), tuple(anchor), new_phase, recent)

    before = rule.window - 1
    tokens_met = Window.begin(k_BTHK, v_BTHV, gates.step_size, state.recent, None if ragged is None else state_phase)
    everything = (q_BTHK, k_BTHK, v_BTHV, *state.tensors, *targets, *gates.given())
    if native_chunks.applies(rule, everything):
        place = native_chunks.Place(phase, state_phase, ends, valid)
        y, weights, momentum, anchor, seen = native_chunks.read_chunks(
            rule,
            q_BTHK,
            k_BTHK,
            v_BTHV,
            gates.given(),
            state.weights,
            state.momentum,
            state.anchor,
            targets,
            place,
            trace,
        )
        return y, after(weights, momentum, anchor, ends % C), None if seen is None else Trace(*seen)

    def sequences(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [w.reshape(B * H, *w.shape[-2:]) for w in tensors]

    def rows(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [w.reshape(B, H, *w.shape[1:]) for w in tensors]

    weights, momentum = sequences(state.weights), sequences(state.momentum)
    anchor = sequences(anchored(state_phase, state.weights, state.anchor))
    targets = sequences([w.expand(B, *w.shape) for w in targets])
    answers: list[Tensor] = []
    losses: list[Tensor] = []
    norms: list[Tensor] = []
    stop = 0
    for length, count in _cuts(T, C, phase):
        span = slice(stop, stop := stop + length * count)
        part = None if valid is None else valid[:, span]
        chunks = _chunks(rule, q_BTHK[:, span], tokens_met.part(span, before), gates.part(span), part, length)
        for column, chunk in zip(range(span.start, span.stop, length), chunks, strict=True):
            weights, momentum = [bounded_adjoint(w) for w in weights], [bounded_adjoint(s) for s in momentum]
            if column and ragged is None:
                anchor = weights
            elif column:
                anchor = sequences(present_where(ends > column, rows(weights), rows(anchor)))
            gradient = inner_gradient(rule, anchor, chunk.k, chunk.v)
            y, weights, momentum = _step(rule, chunk, gradient, weights, momentum, targets)
            answers.append(y)
            if trace:
                with torch.no_grad():  # of the chunk's own tokens
                    losses.append(inner_loss(rule, gradient.output, chunk.v)[:, before:])
                    norms.append(gradient.norm()[:, before:])

    def tokens(chunks: list[Tensor]) -> Tensor:
        whole = torch.cat(chunks, dim=1)  # [N, T, ...]
        return whole.reshape(B, H, *whole.shape[1:]).transpose(1, 2)

    seen_here = Trace(tokens(losses), tokens(norms)) if trace else None
    return tokens(answers), after(rows(weights), rows(momentum), rows(anchor), ends % C), seen_here


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


def _chunks(rule: MemoryRule, q: Tensor, met: Window, gates: Gates, valid_BT: Tensor | None, C: int) -> list[Chunk]:
    """Cut a piece into chunks of ``C`` tokens, and do for all of them at once what depends on no memory."""
    B, T, H, K = q.shape
    cut, cut_met = partial(cut_chunks, length=C), partial(cut_chunks, length=C, before=rule.window - 1)
    moved, step_size = gates.each(cut), cut_met(met.step_size)
    valid = None if valid_BT is None else cut(valid_BT[..., None].expand(B, T, H))

    def unroll(log_decay: Tensor | None) -> ChunkGates:
        to_target = rule.decay_to == "initial"
        gates = chunk_gates(step_size, moved.log_momentum, log_decay, valid, to_target, rule.window)
        return gates if rule.read_at == "after" else reading_before(gates, to_target)

    if moved.log_decay is None or moved.log_decay.dim() == 3:
        gates_by_layer = [unroll(moved.log_decay)] * rule.depth
    else:
        sizes = [d_in for d_in, _ in rule.layer_sizes(K, met.v.shape[-1])]
        gates_by_layer = [unroll(d) for d in moved.log_decay.split(sizes, dim=-1)]
    q, k, v = cut(q), cut_met(met.k), cut_met(met.v)
    unbound = {id(layer): layer.unbind() for layer in gates_by_layer}  # layers may share theirs
    layers = [unbound[id(layer)] for layer in gates_by_layer]
    scores = mixed_scores(q, k, gates_by_layer[0].mix)
    tensors = zip(q.unbind(), k.unbind(), v.unbind(), zip(*layers, strict=True), scores.unbind(), strict=True)
    return [Chunk(*parts) for parts in tensors]


def _step(
    rule: MemoryRule,
    chunk: Chunk,
    gradient: InnerGradient,
    weights: Sequence[Tensor],
    momentum: Sequence[Tensor],
    targets: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Read and write one chunk: answers ``[N, C, V]``, weights and momentum after it."""
    starts = [chunk_start(i, weights, targets, momentum) for i in range(rule.depth)]

    def apply_layer(i: int, z: Tensor) -> Tensor:
        gates = chunk.gates[i]
        scores = chunk.first_scores if i == 0 else mixed_scores(z, gradient.inputs[i], gates.mix)
        return read_start(z, gates, starts[i]).baddbmm_(scores, gradient.errors[i], alpha=-1)

    y = answer(rule, apply_layer, chunk.q)
    after = [write(chunk.gates[i], gradient.inputs[i], gradient.errors[i], starts[i]) for i in range(rule.depth)]
    return y, [m for m, _ in after], [s for _, s in after if s is not None]


def chunk_start(
    i: int, weights: Sequence[Tensor], targets: Sequence[Tensor], momentum: Sequence[Tensor]
) -> list[Tensor]:
    """What layer ``i`` starts a chunk from, in the order of `ChunkGates.base`: ``[N, D_in, D_out]`` each."""
    return [weights[i], *([targets[i]] if targets else []), *([momentum[i]] if momentum else [])]


def read_start(z_NCK: Tensor, gates: ChunkGates, parts: Sequence[Tensor]) -> Tensor:
    """What each token reads of the chunk's start: the sum over its parts of ``base * (z @ part)``, ``[N, C, D_out]``.

    Weights stand before or after the product, wherever fewer numbers have to be scaled; sums are made in place, since
    passes over memory cost as much as the arithmetic.
    """
    D_in, D_out = parts[0].shape[-2:]
    per_channel = gates.base[0].shape[-1] > 1
    y: Tensor | None = None
    for weight, part in zip(gates.base, parts, strict=True):
        if per_channel or D_in <= D_out:
            scaled = z_NCK * weight
            y = scaled @ part if y is None else y.baddbmm_(scaled, part)
        else:
            answer_p = z_NCK @ part
            y = answer_p * weight if y is None else y.addcmul_(answer_p, weight)
    assert y is not None
    return y


def write(gates: ChunkGates, x_NCK: Tensor, d_NCV: Tensor, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Weights and momentum ``[N, D_in, D_out]`` after a chunk with gradient factors ``x`` and ``d``."""
    weights = parts[0] * gates.base_last[0].unsqueeze(-1)
    for part, left in zip(parts[1:], gates.base_last[1:], strict=True):
        weights = weights.addcmul_(part, left.unsqueeze(-1))
    weights = _subtract_writes(weights, x_NCK, d_NCV, gates.mix_last)
    if gates.momentum_last is None or gates.carry is None:
        return weights, None
    return weights, _subtract_writes(parts[-1] * gates.carry[:, None, None], x_NCK, d_NCV, gates.momentum_last)


def _subtract_writes(base: Tensor, x_NCK: Tensor, d_NCV: Tensor, share: Tensor) -> Tensor:
    """``base - sum_s share_s x_s d_s^T``, in place, for ``share [N, C]`` or, per input channel, ``[N, C, K]``."""
    if share.dim() == 3 or x_NCK.shape[-1] <= d_NCV.shape[-1]:
        x_NCK = x_NCK * (share if share.dim() == 3 else share.unsqueeze(-1))
    else:
        d_NCV = d_NCV * share.unsqueeze(-1)
    return base.baddbmm_(x_NCK.mT, d_NCV, alpha=-1)
