"""Memories to compare, made equal: one transformer sets the size, and each other model gets as many parameters.

What is equal is the number of parameters (the width of the MLPs makes up for what a mixer has less), the width, the
number of blocks, of heads and their width, the data and the training. What is not equal is the size of the state, which
is the point: `mnemonist.models.cost.model_cost` counts it, and every table says it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mnemonist.errors import UserError, nearest
from mnemonist.models.configuration import ModelConfig
from mnemonist.models.cost import matched, model_cost


@dataclass(frozen=True)
class Candidate:
    """One row of `CANDIDATES`."""

    label: str
    block: str
    rule: str = "titans"
    changes: Mapping[str, Any] = field(default_factory=dict)
    """To other fields of the configuration."""


CANDIDATES: Mapping[str, Candidate] = {
    "attention": Candidate("full attention", "attention"),
    "window": Candidate("sliding window", "window"),
    "linear-attention": Candidate("linear attention, ELU + 1", "lmm", "linear-attention"),
    "taylor": Candidate("linear attention, Taylor", "lmm", "linear-attention:feature_map=taylor"),
    "hedgehog": Candidate("linear attention, Hedgehog", "lmm", "linear-attention:feature_map=hedgehog"),
    "retnet": Candidate("RetNet", "lmm", "retnet"),
    "mamba2": Candidate("Mamba-2", "lmm", "mamba2"),
    "gla": Candidate("GLA", "lmm", "gla"),
    "deltanet": Candidate("DeltaNet", "lmm", "deltanet"),
    "gated-deltanet": Candidate("Gated DeltaNet", "lmm", "gated-deltanet"),
    "kda": Candidate("KDA", "lmm", "kda"),
    "deltaproduct": Candidate("DeltaProduct, 2 writes", "lmm", "deltaproduct"),
    "gated-deltaproduct": Candidate("Gated DeltaProduct, 2 writes", "lmm", "gated-deltaproduct"),
    "mesa": Candidate("Mesa", "lmm", "mesa"),
    "ttt-linear": Candidate("TTT-linear", "lmm", "ttt-linear"),
    "ttt-mlp": Candidate("TTT-MLP", "lmm", "ttt-mlp"),
    "titans-linear": Candidate("Titans, linear memory", "lmm", "titans-linear"),
    "lmm-1": Candidate("Titans LMM, depth 1", "lmm", "titans:depth=1"),
    "lmm-2": Candidate("Titans LMM, depth 2", "lmm", "titans"),
    "lmm-3": Candidate("Titans LMM, depth 3", "lmm", "titans:depth=3"),
    "mac": Candidate("Titans MAC", "mac"),
    "mag": Candidate("Titans MAG", "mag"),
    "mal": Candidate("Titans MAL", "mal"),
}
"""Models that the experiments compare."""


def find_candidate(name: str) -> Candidate:
    """The row of `CANDIDATES` with this name.

    Raises:
        UserError: there is none; the message suggests the nearest one.
    """
    if name not in CANDIDATES:
        raise UserError(f"there is no candidate {name!r}{nearest(name, CANDIDATES)}; known: {', '.join(CANDIDATES)}")
    return CANDIDATES[name]


def configure(
    name: str | Candidate, size: ModelConfig, rule_changes: str = "", parameters: int | None = None
) -> ModelConfig:
    """A candidate of the size of a transformer.

    Args:
        name: a row of `CANDIDATES`, or one of your own.
        size: blocks, widths and window; of its kinds of block only the number counts.
        rule_changes: to the rule of a memory, such as ``chunk_size=16``.
        parameters: how many the candidate gets; None takes those of a transformer of the same sizes.

    Raises:
        UserError: there is no such candidate.
        ValueError: a change does not fit, or the size leaves a candidate no room for an MLP.
    """
    candidate = name if isinstance(name, Candidate) else find_candidate(name)
    blocks = len(size.blocks)
    if parameters is None:
        parameters = model_cost(size.replace(blocks=("attention",) * blocks)).parameters
    rule = candidate.rule
    if rule_changes:
        rule += ("," if ":" in rule else ":") + rule_changes
    return matched(size.replace(blocks=(candidate.block,) * blocks, rule=rule, **candidate.changes), parameters)
