"""Reading by chunk with a memory that is at its optimum (`least_squares`): solve, then read the sums.

Derivatives go by the implicit function theorem: the solutions ``x_t H_t = q_t`` are taken as they are, and what remains
of the equation, ``q_t - x_t H_t``, is computed once more where derivatives can pass; going back solves once for it.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from mnemonist.memory.exact import read_exact
from mnemonist.memory.least_squares import correction, parts, systems
from mnemonist.memory.network import inner_loss
from mnemonist.memory.rule import MemoryRule
from mnemonist.memory.state import MemoryState
from mnemonist.memory.stream import Gates, Trace


def read_optimum(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    gates: Gates,
    initial: list[Tensor],
    state: MemoryState,
    mask_BT: Tensor | None,
    trace: bool,
) -> tuple[Tensor, MemoryState, Trace | None]:
    """Read a piece of a stream with a memory at its optimum. Arguments as prepared by `memorize`."""
    rule, V = state.rule, v_BTHV.shape[-1]
    H_start, H_initial = (parts(sums)[1] for sums in (state.weights[0], initial[0]))
    values = torch.cat([v_BTHV, k_BTHK], dim=-1)

    def read(x: Tensor, written: Tensor, M: Tensor, M_0: Tensor, read_at: str) -> tuple[Tensor, MemoryState]:
        rule_of_sums = _rule_of_sums(rule, read_at)
        y, after, _ = read_exact(x, k_BTHK, written, gates, [M_0], MemoryState(rule_of_sums, (M,)), mask_BT, False)
        return y, after

    def trace_of(answers: Tensor) -> Trace:
        norm = k_BTHK.norm(dim=-1) * (answers - v_BTHV).norm(dim=-1)
        return Trace(inner_loss(rule, answers, v_BTHV), norm)

    if q_BTHK.shape[1] == 1:  # there is one matrix, and it is written out
        _, after = read(q_BTHK, values, state.weights[0], initial[0], "before")
        after = MemoryState(rule, after.weights)
        y = _ask(after if rule.read_at == "after" else state, q_BTHK)
        if mask_BT is not None:
            y = y * mask_BT[..., None, None]
        with torch.no_grad():
            return y, after, trace_of(_ask(state, k_BTHK)) if trace else None

    with torch.no_grad():
        solved = systems(rule, k_BTHK, gates, H_start, mask_BT, rule.read_at)
        x = solved.solve(q_BTHK)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q_BTHK, k_BTHK, *gates.given(), H_start, H_initial)):
        x = x + correction(q_BTHK - read(x, k_BTHK, H_start, H_initial, rule.read_at)[0], solved)
    y, after = read(x, values, state.weights[0], initial[0], rule.read_at)
    seen = None
    if trace:
        with torch.no_grad():
            met = systems(rule, k_BTHK, gates, H_start, mask_BT, "before").solve(k_BTHK)
            seen = trace_of(read(met, values, state.weights[0], initial[0], "before")[0][..., :V])
    return y[..., :V], MemoryState(rule, after.weights), seen


def _ask(state: MemoryState, q_B1HK: Tensor) -> Tensor:
    """What the memory answers to one query a row, ``[B, 1, H, V]``."""
    G, H = parts(state.weights[0])
    x = torch.linalg.solve(H, q_B1HK.squeeze(1).unsqueeze(-1))
    return (x.mT @ G).transpose(1, 2)


@lru_cache
def _rule_of_sums(rule: MemoryRule, read_at: str) -> MemoryRule:
    return rule.replace(step="gradient", objective="dot", read_at=read_at)
