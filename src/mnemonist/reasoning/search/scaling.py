"""Inference-time scaling: what accuracy costs, and which method is worth it where (Snell et al. 2024, 2408.03314).

A *run* is one method with one set of choices, tried on all problems. Runs of a method that differ in nothing but how
much they may spend are the points of a curve: accuracy against what was really spent, from the ledgers. Methods help
in different places, so problems are put in bins by how often the policy solves them unaided, and the compute-optimal
way takes in each bin the run that does best there for what it may cost. A run that is chosen for its luck on some
problems must not be measured on the same ones: one half of the problems chooses for the other, and the other for it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mnemonist.errors import UserError
from mnemonist.intervals import proportion
from mnemonist.reasoning.ledger import Ledger
from mnemonist.reasoning.search.independent import coverage
from mnemonist.reasoning.search.lockstep import check_choice, check_least
from mnemonist.reasoning.tree import Tree

BUDGETS = ("attempts", "beams", "breadth", "expansions", "simulations", "thinking")
"""Choices that say how much a method may spend; runs that differ in others belong to different curves."""
COSTS = ("tokens", *(field.name for field in dataclasses.fields(Ledger)))
"""What can be counted as cost: all tokens read or written, or a line of the ledger."""


@dataclass(frozen=True)
class Run:
    """One method with one set of choices, and what it did."""

    method: str
    settings: Mapping[str, Any]
    trees: Mapping[str, Tree]
    """By the id of their problem."""

    def point(self, cost: str = "tokens", problems: Iterable[str] | None = None) -> Point:
        """Accuracy and mean cost, over some of the problems or all."""
        trees = list(self.trees.values()) if problems is None else [self.trees[name] for name in problems]
        budget = {name: self.settings[name] for name in BUDGETS if name in self.settings}
        spent = sum(spending(tree.ledger, cost) for tree in trees)
        return Point(spent / len(trees), sum(tree.right is True for tree in trees), len(trees), budget)


@dataclass(frozen=True)
class Point:
    """How many problems were solved, and for how much."""

    cost: float
    """Mean of a problem."""
    right: int
    count: int
    """Problems."""
    budget: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What the method was allowed: those of its choices that are among `BUDGETS`."""

    @property
    def accuracy(self) -> float:
        """The share of problems that were solved."""
        return self.right / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the accuracy (Wilson's)."""
        return proportion(self.right, self.count)


@dataclass(frozen=True)
class Optimum:
    """What choosing the run by difficulty comes to."""

    point: Point
    """Measured on problems that had no say in the choice made for them."""
    chosen: Mapping[int, tuple[str, str]]
    """By bin: the labels of the runs that the first half and the second half chose, each for the other."""


def group_runs(trees: Iterable[Tree]) -> list[Run]:
    """Trees by method and settings, in the order they come.

    Raises:
        UserError: a run has two trees for one problem.
    """
    found: dict[str, Run] = {}
    for tree in trees:
        key = json.dumps([tree.method, tree.settings], sort_keys=True)
        own: dict[str, Tree] = dict(found[key].trees) if key in found else {}
        if tree.problem.id in own:
            raise UserError(f"there are two trees of {tree.method} with the same settings for {tree.problem.id}")
        own[tree.problem.id] = tree
        found[key] = Run(tree.method, tree.settings, own)
    return list(found.values())


def labels(runs: Sequence[Run]) -> list[str]:
    """What tells each run from the others: its method, and those of its choices in which runs of the method differ."""
    return [_label(run, runs, lambda name: True) for run in runs]


def curves(runs: Sequence[Run], cost: str = "tokens") -> dict[str, list[Point]]:
    """Points by rising cost, for each method and for each set of choices that are no budgets.

    Raises:
        UserError: no such cost is known.
    """
    lines: dict[str, list[Point]] = {}
    for run in runs:
        lines.setdefault(_label(run, runs, lambda name: name not in BUDGETS), []).append(run.point(cost))
    return {name: sorted(points, key=lambda point: point.cost) for name, points in lines.items()}


def difficulty_bins(trees: Iterable[Tree], bins: int = 5) -> dict[str, int]:
    """Problems in bins of about equal size, from easy (0) to hard, by how many of the policy's own attempts are right.

    Args:
        trees: of `Independent`, with many attempts each; best none of those that are then compared.
        bins: at most. Problems with equal shares are never parted, so that bins may differ in size or be empty.

    Raises:
        UserError: there are fewer than one bin, or a tree has no attempts.
    """
    check_least(bins=(bins, 1))
    shares = {tree.problem.id: coverage(tree, 1) for tree in trees}
    falling = sorted(shares.values(), reverse=True)
    found = {}
    for name, share in shares.items():
        first, equals = falling.index(share), falling.count(share)
        middle = first + (equals - 1) / 2
        found[name] = int(bins * (middle + 0.5) / len(falling)) if falling else 0
    return found


def compute_optimal(runs: Sequence[Run], bins: Mapping[str, int], budget: float, cost: str = "tokens") -> Optimum:
    """In each bin the most accurate of the runs that cost at most ``budget`` there; of equals the cheapest.

    Args:
        runs: all of the same problems.
        bins: of each of these problems; see `difficulty_bins`.
        budget: mean cost of a problem.
        cost: one of `COSTS`.

    Raises:
        UserError: the runs' problems or the bins do not fit, a bin has one problem only, or no run is cheap enough.
    """
    problems = set(runs[0].trees) if runs else set()
    if not problems or any(set(run.trees) != problems for run in runs):
        raise UserError("runs can be compared on the same problems only; give each of them one tree for every problem")
    if missing := sorted(problems - set(bins)):
        raise UserError(f"{missing[0]} is in no bin; find the bins on the problems of the runs")
    names = labels(runs)
    right, spent, chosen = 0, 0.0, {}
    for number in sorted({bins[name] for name in problems}):
        halves = _halves([name for name in problems if bins[name] == number], number)
        picks = []
        for choosing, measured in (halves, halves[::-1]):
            pick = _best(runs, choosing, budget, cost)
            point = runs[pick].point(cost, measured)
            right, spent = right + point.right, spent + point.cost * point.count
            picks.append(names[pick])
        chosen[number] = (picks[0], picks[1])
    return Optimum(Point(spent / len(problems), right, len(problems)), chosen)


def spending(ledger: Ledger, cost: str) -> float:
    """One of `COSTS`.

    Raises:
        UserError: it is none.
    """
    check_choice("cost", cost, COSTS)
    return float(getattr(ledger, cost))


def _halves(names: Sequence[str], number: int) -> tuple[list[str], list[str]]:
    """Two halves that follow from the names alone."""
    if len(names) < 2:
        raise UserError(f"bin {number} has one problem only, and it cannot choose for itself; take fewer bins")
    mixed = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    return mixed[::2], mixed[1::2]


def _best(runs: Sequence[Run], problems: Sequence[str], budget: float, cost: str) -> int:
    points = [run.point(cost, problems) for run in runs]
    affordable = [at for at, point in enumerate(points) if point.cost <= budget]
    if not affordable:
        cheapest = min(point.cost for point in points)
        raise UserError(f"no run costs at most {budget:g} {cost} a problem; the cheapest costs {cheapest:g}")
    return max(affordable, key=lambda at: (points[at].accuracy, -points[at].cost))


def _label(run: Run, runs: Sequence[Run], counts: Callable[[str], bool]) -> str:
    rivals = [_flat(other.settings) for other in runs if other.method == run.method]
    parts = [
        f"{name}={value}"
        for name, value in _flat(run.settings).items()
        if counts(name) and any(other.get(name) != value for other in rivals)
    ]
    return ":".join([run.method, ",".join(parts)]) if parts else run.method


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Choices of the method and of its draws side by side."""
    return {**{name: value for name, value in settings.items() if name != "decoding"}, **settings.get("decoding", {})}
