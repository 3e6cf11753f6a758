"""Cutting a stream into pieces, reading them one after the other, and comparing what came of it."""

from __future__ import annotations

import torch
from torch import Tensor

from mnemonist.memory import RULES, MemoryRead, MemoryRule, MemoryState, memorize
from mnemonist.memory.feature_map_table import FEATURE_MAPS

PER_TOKEN = ("q", "k", "v", "step_size", "log_momentum", "log_decay")


def needs_no_built_map(rule: MemoryRule) -> bool:
    """Whether `memorize` can make the rule's feature map by itself."""
    return rule.feature_map is None or FEATURE_MAPS[rule.feature_map].kind == "deterministic"


def backends_of(rule: MemoryRule) -> list[str]:
    return ["recurrent"] + ["exact"] * rule.solvable + ["chunked"] * (not rule.per_token and rule.step_is_gradient)


ROWS = [rule for rule in RULES.values() if needs_no_built_map(rule)]


def by_token(x: Tensor, T: int) -> Tensor:
    """``[B, T * writes, ...] -> [B, T, writes, ...]``; what a token has once has one."""
    return x.unflatten(1, (T, -1))


def span(inputs: dict, start: int, stop: int) -> dict:
    """The inputs of tokens ``start`` to ``stop``."""
    return tokens(inputs, slice(start, stop))


def row(inputs: dict, b: int) -> dict:
    """The inputs of one row, as a batch of one."""
    return {n: x[b : b + 1] if n in PER_TOKEN else x for n, x in inputs.items()}


def tokens(inputs: dict, keep_T: Tensor | slice) -> dict:
    """The inputs of some tokens."""
    T = inputs["q"].shape[1]
    return {n: by_token(x, T)[:, keep_T].flatten(1, 2) if n in PER_TOKEN else x for n, x in inputs.items()}


def read_in_pieces(
    rule: MemoryRule,
    inputs: dict,
    lengths: list[int],
    *,
    state: MemoryState | None = None,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, MemoryState, dict[str, Tensor]]:
    """Read a stream piece by piece: all answers, the last state, and the surprise of all tokens."""
    answers, surprises, start = [], [], 0
    for length in lengths:
        piece = span(inputs, start, start + length)
        piece_mask = None if mask is None else mask[:, start : start + length]
        read = memorize(rule, **piece, state=state, mask=piece_mask, backend=backend)
        answers.append(read.y)
        surprises.append(surprise_of(read))
        state, start = read.state, start + length
    joined = {name: torch.cat([s[name] for s in surprises], dim=1) for name in surprises[0]}
    return torch.cat(answers, dim=1), state, joined


def surprise_of(read: MemoryRead) -> dict[str, Tensor]:
    return {name: x for name, x in vars(read.surprise).items() if x is not None}


def state_tensors(state: MemoryState) -> list[Tensor]:
    return [*state.tensors, *([] if state.phase is None else [state.phase])]


def assert_same_state(one: MemoryState, other: MemoryState, tolerance: float) -> None:
    assert one.rule == other.rule
    ones, others = state_tensors(one), state_tensors(other)
    assert len(ones) == len(others)
    for a, b in zip(ones, others, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def assert_bit_equal_state(one: MemoryState, other: MemoryState) -> None:
    assert one.rule == other.rule
    ones, others = state_tensors(one), state_tensors(other)
    assert len(ones) == len(others)
    for a, b in zip(ones, others, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
