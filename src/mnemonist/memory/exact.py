"""Linear memories, exact at every token: the errors of a chunk solve a triangular system.

With the gradient at ``M_{t-1}`` each error depends on the writes before it, but for a matrix memory it does so
linearly. With ``G`` and ``base`` taken one row earlier (`gates.before`: what token ``t`` meets), the errors
``e_t = M_{t-1} k_t - v_t`` solve

    (I + tril(G[t-1,s] (k_t . k_s), -1)) e = base_{t-1}(K) - V

so the result does not depend on how the stream is cut into chunks. Solving for the right-hand sides ``V`` and
``base(K)`` beforehand leaves three small products a chunk in the loop over time. Without momentum and with the
gradient at the decayed memory this is the WY form of Gated DeltaNet; under the dot objective nothing needs solving.

A compiled kernel may read in place of the loop below (`kernels.native_linear`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from mnemonist.memory.chunked import chunk_start, write
from mnemonist.memory.gates import before, chunk_gates, mixed_scores, reading_before
from mnemonist.memory.kernels import native_linear
from mnemonist.memory.network import inner_loss
from mnemonist.memory.state import MemoryState
from mnemonist.memory.stream import Gates, Trace, cut_chunks

CHANNEL_BLOCK = 16
"""Block length under channel retention, where every channel has a decay matrix of its own."""


def read_exact(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    gates: Gates,
    initial: list[Tensor],
    state: MemoryState,
    mask_BT: Tensor | None,
    trace: bool,
) -> tuple[Tensor, MemoryState, Trace | None]:
    """Read a piece of a stream with a linear memory. Arguments as prepared by `memorize`."""
    rule = state.rule
    T = q_BTHK.shape[1]
    target = initial[0] if rule.decay_to == "initial" else None
    tensors = [q_BTHK, k_BTHK, v_BTHV, *gates.given(), *state.tensors]
    if native_linear.applies(tensors if target is None else [*tensors, target]):
        return _read_compiled(q_BTHK, k_BTHK, v_BTHV, gates, target, state, mask_BT, trace)
    block = min(rule.chunk_size, CHANNEL_BLOCK) if rule.retention == "channel" else rule.chunk_size
    whole = T - T % block

    answers, losses, norms = [], [], []
    for span, C in ((slice(0, whole), block), (slice(whole, T), T - whole)):
        if span.start == span.stop:
            continue
        mask = None if mask_BT is None else mask_BT[:, span]
        y, state, seen = _read_blocks(
            q_BTHK[:, span],
            k_BTHK[:, span],
            v_BTHV[:, span],
            gates.part(span),
            initial,
            state,
            mask,
            C,
            trace,
        )
        answers.append(y)
        if seen is not None:
            losses.append(seen.loss)
            norms.append(seen.gradient_norm)
    y = torch.cat(answers, dim=1)
    if mask_BT is not None:
        y = y * mask_BT[..., None, None]
    return y, state, Trace(torch.cat(losses, 1), torch.cat(norms, 1)) if trace else None


def _read_compiled(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    target: Tensor | None,
    state: MemoryState,
    mask_BT: Tensor | None,
    trace: bool,
) -> tuple[Tensor, MemoryState, Trace | None]:
    named = {name: gate for name, gate in vars(gates).items() if gate is not None}
    weights, momentum = state.weights[0], state.momentum[0] if state.momentum else None
    y, after, moving, seen = native_linear.read_tokens(
        state.rule, q, k, v, named, weights, momentum, target, mask_BT, trace
    )
    if mask_BT is not None:
        y = y * mask_BT[..., None, None]
    left = () if moving is None else (moving,)
    return y, MemoryState(state.rule, (after,), left), None if seen is None else Trace(*seen)


def _read_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    initial: list[Tensor],
    state: MemoryState,
    mask_BT: Tensor | None,
    C: int,
    trace: bool,
) -> tuple[Tensor, MemoryState, Trace | None]:
    rule = state.rule
    B, T, H, _ = q.shape
    G = T // C

    blocks = partial(cut_chunks, length=C)
    to_target = rule.decay_to == "initial"
    valid = None if mask_BT is None else blocks(mask_BT[..., None].expand(B, T, H))
    gates = gates.each(blocks)
    log_decay = gates.log_decay
    after = chunk_gates(gates.step_size, gates.log_momentum, log_decay, valid, to_target)
    decay = None
    if rule.gradient_at == "decayed" and log_decay is not None:
        decay = (log_decay if log_decay.dim() == 4 else log_decay.unsqueeze(-1)).exp()
    met_weights, met_mix = before(after, decay, to_target)

    q, k, v = blocks(q), blocks(k), blocks(v)
    asked = after if rule.read_at == "after" else reading_before(after, to_target)
    read_base, read_scores = spread(q, asked.base).unbind(), mixed_scores(q, k, asked.mix).unbind()
    solves = rule.objective == "l2"
    if solves or trace:
        met_base, met_scores = spread(k, met_weights), mixed_scores(k, k, met_mix).tril(-1)
    if solves:
        eye = torch.eye(C, dtype=k.dtype, device=k.device)
        sides = torch.cat([met_base, v], dim=-1)
        solved = torch.linalg.solve_triangular(eye + met_scores, sides, upper=False, unitriangular=True)
        error_base, error_value = (x.unbind() for x in solved.split([met_base.shape[-1], v.shape[-1]], dim=-1))

    weights = [state.weights[0].reshape(B * H, *state.weights[0].shape[2:])]
    momentum = [s.reshape(B * H, *s.shape[2:]) for s in state.momentum]
    targets = [w.expand(B, *w.shape).reshape(B * H, *w.shape[1:]) for w in initial] if to_target else []
    answers, losses, norms = [], [], []
    chunks = zip(after.unbind(), k.unbind(), v.unbind(), strict=True)
    for g, (gates_g, k_g, v_g) in enumerate(chunks):
        parts = chunk_start(0, weights, targets, momentum)
        stack = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)  # small enough that one product reads all
        error = torch.baddbmm(error_value[g], error_base[g], stack, beta=-1) if solves else -v_g
        y = torch.baddbmm(read_base[g] @ stack, read_scores[g], error, alpha=-1)
        answers.append(y)
        if trace:
            with torch.no_grad():
                met_answer = error + v_g if solves else met_base[g] @ stack - met_scores[g] @ error
                losses.append(inner_loss(rule, met_answer, v_g))
                norms.append(k_g.norm(dim=-1) * error.norm(dim=-1))
        new, fading = write(gates_g, k_g, error, parts)
        weights, momentum = [new], [] if fading is None else [fading]

    def tokens(parts: list[Tensor]) -> Tensor:
        whole = torch.stack(parts)  # [G, N, C, ...]
        return whole.reshape(G, B, H, C, *whole.shape[3:]).permute(1, 0, 3, 2, *range(4, whole.dim() + 1)).flatten(1, 2)

    back = [tuple(w.reshape(B, H, *w.shape[1:]) for w in group) for group in (weights, momentum)]
    seen = Trace(tokens(losses), tokens(norms)) if trace else None
    return tokens(answers), MemoryState(rule, back[0], back[1]), seen


def spread(z_XCK: Tensor, base: Sequence[Tensor]) -> Tensor:
    """Inputs for the stack of parts: ``z`` once per part, weighted by what is left of it, ``[X, C, P * K]``."""
    return torch.cat([z_XCK * weight for weight in base], dim=-1)
