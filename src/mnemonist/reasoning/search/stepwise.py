"""Stepwise methods: what all searches share that grow thoughts step by step.

Each needs a proposer of steps and a judge of paths, and must end: no path has more than ``depth`` steps. A path that
comes to that end without an answer stays in the tree and gives none; if all do, the tree has no answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mnemonist.reasoning.search.lockstep import Method, Place, Search, check_choice, check_least
from mnemonist.reasoning.search.proposers import PROPOSERS, Proposer, find_proposer, require_steps
from mnemonist.reasoning.search.values import AGGREGATES, VALUES, Judge, appraise, find_judge
from mnemonist.reasoning.tree import Node


@dataclass(frozen=True)
class Stepwise(Method):
    """Fields that all stepwise methods have.

    Raises:
        UserError: a field is out of range.
    """

    width: int = 4
    """Proposals at a node; with proposer=moves 0 takes all there are."""
    depth: int = 20
    """Steps of a path at most, the one with the answer included."""
    proposer: str = "policy"
    """policy, or moves: the task's own."""
    line_tokens: int = 64
    """Tokens of a step at most."""
    value: str = "model"
    """Who values paths: see `VALUES`."""
    samples: int = 4
    """Opinions or rollouts for each value."""

    def __post_init__(self) -> None:
        least = 0 if self.proposer == "moves" else 1
        check_least(width=(self.width, least), depth=(self.depth, 1), line_tokens=(self.line_tokens, 1))
        check_least(samples=(self.samples, 1))
        check_choice("proposer", self.proposer, PROPOSERS)
        check_choice("value", self.value, VALUES)

    def helpers(self, search: Search) -> tuple[Proposer, Judge]:
        """Who proposes and who judges.

        Raises:
            UserError: they need what is not there.
        """
        if self.value == "gold":
            require_steps(search.task, "value=gold")  # before anything is spent
        proposer = find_proposer(self.proposer, self.line_tokens, search.task)
        return proposer, find_judge(self.value, self.samples, search)


@dataclass(frozen=True)
class Pruned(Stepwise):
    """Fields of those that compare the values of paths with each other."""

    aggregate: str = "last"
    """How values of steps become that of a path: last, min or product."""
    prune: float = 0.0
    """Paths of a lower value are cut off; 0 cuts none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("aggregate", self.aggregate, AGGREGATES)
        check_least(prune=(self.prune, 0))

    def grow(
        self, search: Search, proposer: Proposer, judge: Judge, places: Sequence[Place], width: int
    ) -> list[list[Node]]:
        """New children of each place that are not cut off, best first; equals in the order they came."""
        proposed = proposer.propose(search, places, width)
        appraise(search, judge, [child for children in proposed for child in children], self.aggregate)
        return [
            best_first([child.node for child in children if (child.node.value or 0.0) >= self.prune])
            for children in proposed
        ]


def best_first(nodes: Sequence[Node]) -> list[Node]:
    """Nodes by falling value; equals in the order they came."""
    return sorted(nodes, key=lambda node: -(node.value or 0.0))
