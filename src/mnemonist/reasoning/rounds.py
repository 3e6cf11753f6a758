"""Rounds: propose, weigh, fit, as choices.

An iteration of a round *proposes* attempts at problems, *weighs* them and *fits* the policy to what has weight. It is
expectation-maximisation: the first two are the E-step, the last is the M-step. Methods differ in who proposes, what
gives weight, and how far a fit goes: ReST-EM takes few iterations with long fits, GRPO many with a fit of one step. So
a method is a row of `ROUNDS`, and a recipe of several stages a list of rows in `RECIPES`.

    proposer    given (texts that are there already, such as journeys), teacher (another sampler), self
    weight      one, right, advantage (of rewards in a group), pairs (a right attempt above a wrong one),
                teacher (what a teacher thinks of every token)
    fit         likelihood for the first two, a clipped policy gradient for advantages, preference for pairs,
                the divergence from the teacher

Nothing here needs torch, so the command line can show the choices at once. `learning` runs rounds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from mnemonist.choices import parse_choices
from mnemonist.errors import UserError, nearest
from mnemonist.reasoning.attempts import Decoding
from mnemonist.reasoning.objective import OBJECTIVES, PolicyObjective

IDENTITY = "round.json"
"""Name of the file in which the folder of a round says what it is."""

BASE = "base"
"""Name of the folder in it for what was answered before the first fit."""

Proposer = Literal["given", "teacher", "self"]
Weight = Literal["one", "right", "advantage", "pairs", "teacher"]


@dataclass(frozen=True)
class Round:
    """The choices of a round.

    Raises:
        UserError: a field is out of range or contradicts another one.
    """

    name: str
    source: str = ""
    proposer: Proposer = "self"
    weight: Weight = "right"
    iterations: int = 1
    """How often it proposes, weighs and fits."""
    problems: int = 0
    """Problems of an iteration; 0 takes all of them."""
    attempts: int = 1
    """Attempts at each problem: the size of a group."""
    keep: int = 10
    """Most attempts (or pairs) of a problem that are fitted to, so that easy problems do not crowd out others."""
    decoding: Decoding = field(default_factory=Decoding)
    """How attempts are drawn; the seed follows from that of the fit."""
    epochs: int = 1
    """How often a fit reads what has weight."""
    minibatches: int = 1
    """Optimiser steps in which attempts of the moment are gone through, by those who read no others."""
    from_base: bool = False
    """Whether every fit begins with the weights that the round began with."""
    until_worse: bool = False
    """Whether the round ends when the accuracy in validation stops rising; the best iteration is what is left."""
    objective: PolicyObjective | None = None
    """Of a policy gradient."""
    beta: float = 0.1
    """How strongly a fit to pairs is held near the policy before it."""
    divergence: float = 1.0
    """How a policy is compared with its teacher: 1 by the reverse divergence KL(policy || teacher), which shuns what
    the teacher would not write; 0 by KL(teacher || policy), which wants all that it would; between them by both."""
    draws: int = 4
    """Dynamic sampling: times as many problems as an iteration needs that it draws at most."""

    def __post_init__(self) -> None:
        for name, kind in (("proposer", Proposer), ("weight", Weight)):
            if getattr(self, name) not in get_args(kind):
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(get_args(kind))}")
        for name, least in (("problems", 0), *((name, 1) for name in _COUNTS)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be a whole number from {least}")
        if self.weight == "advantage":
            self._require_groups()
        elif self.objective is not None:
            raise UserError(f"round {self.name} has an objective, which only rounds of weight 'advantage' use")
        if self.on_policy:
            self._require_draws()
        if self.weight == "teacher" and self.proposer != "self":
            raise UserError("a teacher judges the tokens of the policy's own attempts; its proposer is self")
        if not 0 <= self.divergence <= 1:
            raise UserError(f"divergence is {self.divergence}; it must be from 0 to 1")
        if self.weight == "pairs" and (self.attempts < 2 or self.beta <= 0):
            raise UserError("pairs need at least two attempts at a problem, and a beta above 0")
        if self.proposer == "given" and (self.weight != "one" or self.iterations != 1):
            raise UserError("texts that are given have a weight of one, and there is one iteration")

    def _require_groups(self) -> None:
        if self.objective is None:
            raise UserError(f"round {self.name} needs an objective, such as {', '.join(OBJECTIVES)}")
        if self.proposer != "self" or self.attempts < 2:
            raise UserError("advantages need at least two attempts at a problem, by the policy itself")

    def _require_draws(self) -> None:
        if self.decoding.temperature == 0:
            raise UserError("the temperature is 0, so that all attempts at a problem are equal; take 1")
        if self.problems * self.attempts % self.minibatches:
            raise UserError(
                f"{self.problems} x {self.attempts} attempts cannot be cut into {self.minibatches} equal minibatches"
            )

    @property
    def on_policy(self) -> bool:
        """Whether it is one run of steps on attempts of the moment, rather than a run of its own for each fit."""
        return self.weight in ("advantage", "teacher")

    @property
    def asks_teacher(self) -> bool:
        """Whether it needs a teacher, to propose or to judge."""
        return "teacher" in (self.proposer, self.weight)

    @property
    def steps_per_iteration(self) -> int:
        """Optimiser steps on the attempts of one iteration; for rounds on attempts of the moment."""
        return self.epochs * self.minibatches

    def to_json(self) -> dict[str, Any]:
        """As JSON values, for those who compare or show."""
        return dataclasses.asdict(self)


_COUNTS = ("iterations", "attempts", "keep", "epochs", "minibatches", "draws")


def _policy(objective: str, **choices: Any) -> Round:
    """A round of the GRPO family; the rest are values of a small machine, not of the papers."""
    row = OBJECTIVES[objective]
    known = {"weight": "advantage", "iterations": 200, "problems": 8, "attempts": 8, "objective": row}
    return Round(objective, row.source, **{**known, **choices})


ROUNDS: Mapping[str, Round] = {
    row.name: row
    for row in (
        Round(
            "distil",
            "DeepSeek-R1 (arXiv 2501.12948), section 2.4: a teacher's attempts, the right ones",
            proposer="teacher",
            epochs=3,
        ),
        Round(
            "on-policy-distil",
            "GKD (arXiv 2306.13649): own attempts, and what a teacher thinks of each of their tokens",
            weight="teacher",
            iterations=200,
            problems=64,
        ),
        Round(
            "journey",
            "O1 Replication Journey (arXiv 2410.18982), section 6.8: thoughts with their dead ends, 3 epochs",
            proposer="given",
            weight="one",
            epochs=3,
        ),
        Round(
            "rest-em",
            "ReST-EM (arXiv 2312.06585): 32 attempts at T 0.7, top-k 40, at most 10 kept, from the base each time",
            iterations=3,
            attempts=32,
            decoding=Decoding(temperature=0.7, top_k=40),
            epochs=3,
            from_base=True,
            until_worse=True,
        ),
        Round(
            "dpo",
            "Direct preference optimisation (arXiv 2305.18290); pairs as in arXiv 2410.18982: 20 attempts, 5 pairs",
            weight="pairs",
            attempts=20,
            keep=5,
            decoding=Decoding(temperature=0.7, top_p=0.95),
        ),
        _policy("grpo"),
        _policy("dr-grpo"),
        _policy("dapo", attempts=16),
        _policy("gspo", minibatches=4),
        _policy("lite-ppo"),
        Round(
            "rejection-sampling",
            "DeepSeek-R1 (arXiv 2501.12948), section 2.3.3: own right attempts, fitted to from the base, 2 epochs",
            attempts=16,
            epochs=2,
            from_base=True,
        ),
    )
}
"""Named rounds, each with its source."""

_R1_POLICY = _policy("r1", attempts=16)

RECIPES: Mapping[str, tuple[Round, ...]] = {
    **{name: (row,) for name, row in ROUNDS.items()},
    "r1": (
        replace(ROUNDS["distil"], name="cold-start", source="DeepSeek-R1, section 2.3.1: long thoughts of a teacher"),
        replace(_R1_POLICY, name="reasoning", source="DeepSeek-R1, section 2.3.2"),
        ROUNDS["rejection-sampling"],
        replace(_R1_POLICY, name="all-scenarios", source="DeepSeek-R1, section 2.3.4: rewards of other kinds as well"),
    ),
}
"""Named recipes: rounds one after the other. What `from_base` means is the policy before the first of them."""

FORMAT_REWARDS: Mapping[str, float] = {"r1": 1.0}
"""What recipes pay for a well-formed text besides 1 for a right answer, unless told otherwise; DeepSeek-R1 (Nature
2025) adds the two with the same weight."""


def find_round(text: str, objective: PolicyObjective | None = None) -> Round:
    """The row of `ROUNDS` with this name, changed as the text says: ``"rest-em:iterations=2,temperature=1"``.

    What can be changed are those fields of `Round`, of its `Decoding` and of its objective that the round uses.

    Args:
        text: the name, and behind a colon the changes.
        objective: stands in place of the row's own; changes of its fields are made to it.

    Raises:
        UserError: there is no such row, it has no objective to replace, or a choice does not exist or does not fit.
    """
    name, _, changes = text.partition(":")
    if name not in ROUNDS:
        raise UserError(f"there is no round {name!r}{nearest(name, ROUNDS)}; known: {', '.join(ROUNDS)}")
    row = ROUNDS[name]
    if objective is not None:
        if row.objective is None:
            raise UserError(f"round {name} has no objective to replace; leave out --objective")
        row = replace(row, objective=objective)
    return change_round(row, changes) if changes else row


def change_round(row: Round, changes: str) -> Round:
    """A round with some of its choices, its decoding's or its objective's changed: ``"iterations=2,temperature=1"``.

    Raises:
        UserError: a choice does not exist, is not one that the round uses, or does not fit.
    """
    try:
        values = parse_choices(_CHOICES, changes, "a round")
    except ValueError as error:
        raise UserError(str(error).rstrip(".")) from error
    used = _used_by(row, values)
    for name in values:
        if name not in used:
            raise UserError(f"round {row.name} makes no use of {name}; what can be changed is {', '.join(used)}")

    def among(names: Collection[str]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name in names}

    decoding = replace(row.decoding, **among(_DECODING))
    if row.objective is None:
        return replace(row, decoding=decoding, **among(_OWN))
    objective = replace(row.objective, **among(_OBJECTIVE))
    return replace(row, decoding=decoding, objective=objective, **among({*_OWN} - {"beta"}))  # which is the objective's


def _names(cls: type, *but: str) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(cls) if f.name not in but)


_OWN = _names(Round, "name", "source", "decoding", "objective")
_DECODING = _names(Decoding, "stop", "seed")
_OBJECTIVE = _names(PolicyObjective, "name", "source")
_CHOICES = dataclasses.make_dataclass(
    "Choices",
    {
        f.name: f.type
        for cls, names in ((Round, _OWN), (Decoding, _DECODING), (PolicyObjective, _OBJECTIVE))
        for f in dataclasses.fields(cls)
        if f.name in names
    }.items(),
)
"""What can be changed by text, of any round."""


def _used_by(row: Round, values: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of what decides anything in a round once it has these choices."""
    proposer, weight = (values.get(name, getattr(row, name)) for name in ("proposer", "weight"))
    dynamic = values.get("dynamic", row.objective is not None and row.objective.dynamic)
    of_moment, given = weight in ("advantage", "teacher"), proposer == "given"
    unused = {
        "iterations": given,
        "problems": given,
        "attempts": given,
        "keep": given or of_moment,
        "minibatches": not of_moment,
        "from_base": of_moment,
        "until_worse": of_moment,
        "beta": weight != "pairs",
        "divergence": weight != "teacher",
        "draws": not dynamic,
        # Texts that are given are not drawn; but what is learned from them is validated, greedily.
        **dict.fromkeys(set(_DECODING) - {"max_tokens"}, given),
    }
    own = [name for name in (*_OWN, *_DECODING) if not unused.get(name, False)]
    return (*own, *(() if row.objective is None else _OBJECTIVE))


def find_recipe(text: str) -> tuple[Round, ...]:
    """The row of `RECIPES` with this name, changed as the text says: ``"r1:iterations=50,max_tokens=512"``.

    What can be changed are choices that its rounds share: ``max_tokens`` of all, ``attempts`` of those in which the
    policy itself proposes, ``iterations`` and ``problems`` of policy gradients.

    Raises:
        UserError: there is none, and the message suggests the nearest one; or a choice is not shared or does not fit.
    """
    name, _, changes = text.partition(":")
    if name not in RECIPES:
        raise UserError(f"there is no recipe {name!r}{nearest(name, RECIPES)}; known: {', '.join(RECIPES)}")
    rows = RECIPES[name]
    for change in filter(None, changes.split(",")):
        choice = change.partition("=")[0].strip()
        if choice not in _SHARED:
            raise UserError(
                f"the rounds of recipe {name} have choices of their own, of which {', '.join(_SHARED)} can be set for "
                f"all; run them one by one to change {choice}"
            )
        rows = tuple(change_round(row, change) if _SHARED[choice](row) else row for row in rows)
    return rows


_SHARED: Mapping[str, Callable[[Round], bool]] = {
    "max_tokens": lambda row: True,
    "attempts": lambda row: row.proposer == "self",
    "iterations": lambda row: row.on_policy,
    "problems": lambda row: row.on_policy,
}
"""Choices that can be set for all rounds of a recipe, and which of them they reach."""
