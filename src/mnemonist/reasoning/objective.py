"""Policy objectives: the choices of a clipped policy gradient.

A policy proposes a group of attempts at each problem; those that were better than their group become likelier, and no
ratio of new to old probability is paid for going further than a clip. What the better-ness is measured by, what a
ratio is of, where it is clipped, and how attempts of different length weigh are fields of `PolicyObjective`; GRPO,
Dr. GRPO, DAPO, GSPO and Lite-PPO are rows of `OBJECTIVES`. The formulas are in `losses` and `advantages`. Nothing here
needs torch, so the command line can show the choices at once.

Does not include: truncated importance weights for servers that compute otherwise than the trainer, entropy bonuses.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from mnemonist.choices import parse_choices
from mnemonist.errors import UserError, nearest

Advantage = Literal["group", "centred", "batch"]
"""What a reward is measured by: see `mnemonist.reasoning.advantages`."""
Ratio = Literal["token", "sequence"]
Length = Literal["sequence", "token", "constant"]


@dataclass(frozen=True)
class PolicyObjective:
    """The choices of a clipped policy gradient.

    Raises:
        UserError: a field is out of range.
    """

    name: str = "grpo"
    source: str = ""
    advantage: Advantage = "group"
    """group: (reward - mean of its group) / std of its group; centred: not divided; batch: by the std of all."""
    ratio: Ratio = "token"
    """token: each token has its own ratio; sequence: all of an attempt share the geometric mean of theirs."""
    clip_low: float = 0.2
    """A ratio below 1 minus this earns nothing more by falling."""
    clip_high: float = 0.2
    """A ratio above 1 plus this earns nothing more by rising."""
    length: Length = "sequence"
    """sequence: each attempt weighs the same; token: each token does; constant: sums are divided by the limit of
    tokens, so that neither long nor short attempts are favoured."""
    beta: float = 0.0
    """Weight of the divergence from the reference; 0 needs no reference."""
    corrected_kl: bool = False
    """Whether the divergence is weighed with the ratio, which makes its gradient that of the reverse divergence
    (DeepSeek-V3.2, arXiv 2512.02556); TRL's default, unlike that of the papers below."""
    skip_overlong: bool = False
    """Whether attempts that were cut off at the limit are left out of the loss."""
    overlong_share: float = 0.0
    """Last part of the limit of tokens over which the reward falls in a straight line, by 1 in all."""
    dynamic: bool = False
    """Whether groups that teach nothing, all right or all wrong, are replaced by groups of further problems."""

    def __post_init__(self) -> None:
        for name, kind in (("advantage", Advantage), ("ratio", Ratio), ("length", Length)):
            value = getattr(self, name)
            if value not in get_args(kind):
                raise UserError(f"{name} is {value!r}; it must be one of {', '.join(get_args(kind))}")
        for name in ("clip_low", "clip_high", "beta"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise UserError(f"{name} is {value}; it must be a number from 0")
        if not 0 <= self.overlong_share < 1:
            raise UserError(f"overlong_share is {self.overlong_share}; it must be from 0 to below 1")


OBJECTIVES: Mapping[str, PolicyObjective] = {
    row.name: row
    for row in (
        PolicyObjective("grpo", "DeepSeekMath (arXiv 2402.03300), equation 3", beta=0.04),
        PolicyObjective(
            # The lower border is below any ratio: only what rises far is clipped.
            "r1",
            "DeepSeek-R1 (arXiv 2501.12948; Nature 2025, methods): first reinforcement stage",
            beta=0.001,
            clip_low=10.0,
            clip_high=10.0,
        ),
        PolicyObjective(
            "dr-grpo",
            "Understanding R1-Zero-like training (arXiv 2503.20783)",
            advantage="centred",
            length="constant",
        ),
        PolicyObjective(
            "dapo",
            "DAPO (arXiv 2503.14476): 20,480 tokens, the last 4,096 of them punished",
            clip_high=0.28,
            length="token",
            skip_overlong=True,
            overlong_share=0.2,
            dynamic=True,
        ),
        PolicyObjective(
            "gspo",
            "Group Sequence Policy Optimization (arXiv 2507.18071)",
            ratio="sequence",
            clip_low=3e-4,
            clip_high=4e-4,
        ),
        PolicyObjective("lite-ppo", "Tricks or traps? (arXiv 2508.08221): Lite PPO", advantage="batch", length="token"),
    )
}
"""Named points, each with its source and the values of its paper."""


def find_objective(text: str) -> PolicyObjective:
    """The row of `OBJECTIVES` with this name, changed as the text says: ``"dapo:beta=0.01,dynamic=false"``.

    Raises:
        UserError: there is no such row, or a choice does not exist or does not fit.
    """
    name, _, changes = text.partition(":")
    if name not in OBJECTIVES:
        raise UserError(f"there is no objective {name!r}{nearest(name, OBJECTIVES)}; known: {', '.join(OBJECTIVES)}")
    if not changes:
        return OBJECTIVES[name]
    fields = tuple(field.name for field in dataclasses.fields(PolicyObjective) if field.name not in ("name", "source"))
    try:
        values = parse_choices(PolicyObjective, changes, "an objective", fields)
    except ValueError as error:
        raise UserError(str(error).rstrip(".")) from error
    return dataclasses.replace(OBJECTIVES[name], **values)
