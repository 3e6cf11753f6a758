"""The definition: one token after the other, as the equations are printed.

Slow and plain on purpose. Every other path must equal this one, in float64 and with its gradients. It is also the
path of rules that have no faster one (deep memories or other losses with a gradient at every token, steps that
are more than the gradient).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mnemonist.memory.least_squares import minimum
from mnemonist.memory.network import InnerGradient, answer, inner_gradient, inner_loss
from mnemonist.memory.open_choices import Write
from mnemonist.memory.rule import MemoryRule
from mnemonist.memory.state import MemoryState
from mnemonist.memory.steps import find_step
from mnemonist.memory.stream import Gates, Trace, Window


def read_recurrent(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    gates: Gates,
    initial: list[Tensor],
    state: MemoryState,
    mask_BT: Tensor | None,
) -> tuple[Tensor, MemoryState, Trace]:
    """Read a piece of a stream token by token. Arguments as prepared by `memorize`."""
    rule = state.rule
    M, S, anchor = list(state.weights), list(state.momentum), list(state.anchor)
    phase = None if state.phase is None else state.phase.to(q_BTHK.device)
    sizes = [w.shape[-2] for w in M]
    answers, losses, norms = [], [], []
    recent, before = state.recent, rule.window - 1

    for t in range(q_BTHK.shape[1]):
        q = q_BTHK[:, t, :, None]  # [B, H, 1, K]
        real = None if mask_BT is None else mask_BT[:, t, None, None, None]
        token = slice(t, t + 1)
        window = Window.begin(k_BTHK[:, token], v_BTHV[:, token], gates.step_size[:, token], recent, None)
        # [B, H, window, D], or 1 in place of D
        k, v, theta = (x.transpose(1, 2) for x in (window.k, window.v, window.step_size[..., None]))

        kept, retained = M, None
        if gates.log_decay is not None:
            retained = [a[..., None] for a in _per_layer(gates.log_decay[:, t].exp(), sizes)]
            if rule.decay_to == "initial":
                kept = [a * m + (1 - a) * w for a, m, w in zip(retained, M, initial, strict=True)]
            else:
                kept = [a * m for a, m in zip(retained, M, strict=True)]

        if phase is not None:  # a chunk begins: later tokens of it take their gradient here
            begins = (phase == 0)[:, None, None, None]
            anchor = [torch.where(begins, m, a) for m, a in zip(M, anchor, strict=True)]
        point = {"previous": M, "decayed": kept, "chunk": anchor}[rule.gradient_at]
        gradient = inner_gradient(rule, _network(rule, point), k, v)
        eta = None if gates.log_momentum is None else gates.log_momentum[:, t, :, None, None].exp()
        written, moved = _write(rule, M, kept, retained, S, gradient, k, v, theta, eta)
        S = _where(real, moved, S)
        met, M = M, _where(real, written, M)

        asked = _network(rule, M if rule.read_at == "after" else met)
        y = answer(rule, lambda i, z, M=asked: z @ M[i], q)  # type: ignore[misc]
        answers.append(y if real is None else y * real)
        losses.append(inner_loss(rule, gradient.output, v)[:, :, before:])  # of the token itself
        norms.append(gradient.norm()[:, :, before:])
        if before:
            recent = tuple(
                new if mask_BT is None else torch.where(mask_BT[:, t].reshape(-1, *[1] * (new.dim() - 1)), new, old)
                for new, old in zip(window.end(before, None), recent, strict=True)
            )
        if phase is not None:
            step = torch.ones_like(phase) if mask_BT is None else mask_BT[:, t].to(phase.dtype)
            phase = (phase + step) % rule.chunk_size

    if phase is not None:  # between two chunks the anchor is the present memory
        begins = (phase == 0)[:, None, None, None]
        anchor = [torch.where(begins, m, a) for m, a in zip(M, anchor, strict=True)]
        phase = phase.cpu()
    y_BTHV = torch.cat(answers, dim=2).transpose(1, 2)
    trace = Trace(*(torch.cat(x, dim=2).transpose(1, 2) for x in (losses, norms)))
    return y_BTHV, MemoryState(rule, tuple(M), tuple(S), tuple(anchor), phase, recent), trace


def _write(
    rule: MemoryRule,
    M: list[Tensor],
    kept: list[Tensor],
    retained: list[Tensor] | None,
    S: list[Tensor],
    gradient: InnerGradient,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    eta: Tensor | None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and momentum after a write with what retention left, ``kept``; ``theta`` of all tokens of a window."""
    if rule.step == "optimum":  # M are sums, and every token is summed up, whatever the gradient
        return [m + (theta * k).mT @ torch.cat([v, k], dim=-1) for m in kept], S
    factors = list(zip(gradient.inputs, gradient.errors, strict=True))
    if rule.step_is_gradient:
        steps = [-(theta * x).mT @ d for x, d in factors]
        if eta is not None:
            steps = S = [eta * s + step for s, step in zip(S, steps, strict=True)]
        return [m + step for m, step in zip(kept, steps, strict=True)], S
    step = find_step(rule.step)
    gradients = [((theta * x) if rule.window > 1 else x).mT @ d for x, d in factors]
    now = theta[:, :, -1:]
    nothing = [None] * len(M)
    layers = zip(M, kept, retained or nothing, gradients, S or nothing, strict=True)
    written, moved = zip(*(step(Write(m, left, a, g, now, s, eta)) for m, left, a, g, s in layers), strict=True)
    return list(written), [s for s in moved if s is not None]


def _network(rule: MemoryRule, weights: list[Tensor]) -> list[Tensor]:
    """The memory that the weights of a state stand for."""
    return [minimum(sums) for sums in weights] if rule.step == "optimum" else weights


def _per_layer(decay: Tensor, sizes: list[int]) -> list[Tensor]:
    """``[B, H]`` or ``[B, H, D]`` -> one ``[B, H, 1 or D_in]`` a layer."""
    return [decay[..., None]] * len(sizes) if decay.dim() == 2 else list(decay.split(sizes, dim=-1))


def _where(real: Tensor | None, new: list[Tensor], old: list[Tensor]) -> list[Tensor]:
    return new if real is None else [torch.where(real, n, o) for n, o in zip(new, old, strict=True)]
