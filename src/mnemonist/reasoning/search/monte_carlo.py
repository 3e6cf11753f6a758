"""Monte Carlo tree search: go down where it was good or seldom tried, look at one new path, tell all above it.

A simulation follows, from the root, the child that is best by its mean value Q and a bonus for few visits n among its
parent's N. When it comes to a path that it saw before but has not grown, next steps are proposed there and the first of
them is valued; every node on the way counts a visit more and the value. Two bonuses:

    UCT   Q + c sqrt(ln N / n)                 Kocsis & Szepesvari 2006; unvisited children first
    PUCT  Q + c P sqrt(N) / (1 + n)            Silver et al. 2017; P is what the policy thinks of the step

A child that was never visited has its parent's Q in PUCT. Where nothing can follow and no answer is given, visits count
0 from the second on. In the end the search walks down once more, only where answers are, by visits or by value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from mnemonist.reasoning.search.lockstep import Place, Search, check_choice, check_least
from mnemonist.reasoning.search.stepwise import Stepwise
from mnemonist.reasoning.search.values import judge_ends
from mnemonist.reasoning.tree import ROOT, Node, Tree

BONUSES = ("uct", "puct")
PRIORS = ("policy", "copies", "uniform")


@dataclass(frozen=True)
class MonteCarlo(Stepwise):
    """Simulations, one at a time in each tree.

    Raises:
        UserError: a field is out of range.
    """

    name: str = "mcts"
    simulations: int = 32
    bonus: str = "puct"
    """uct or puct."""
    exploration: float = 1.0
    """c: how much a bonus weighs; values are from 0 to 1."""
    prior: str = "policy"
    """What P is, up to its sum over siblings: policy, the probability of the text; copies, how often the step was
    proposed; uniform. Where the policy's probabilities are not known, copies."""
    choice: str = "visits"
    """What the walk to the answer follows: visits, then value; or value, then visits."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(simulations=(self.simulations, 1), exploration=(self.exploration, 0))
        check_choice("bonus", self.bonus, BONUSES)
        check_choice("prior", self.prior, PRIORS)
        check_choice("choice", self.choice, ("visits", "value"))

    def run(self, search: Search, trees: Sequence[Tree]) -> None:
        """See `Method.run`."""
        proposer, judge = self.helpers(search)
        walks = [_Walk(self, tree) for tree in trees]
        for _ in range(self.simulations):
            ends = [walk.descend() for walk in walks]
            growing = [at for at, walk in enumerate(walks) if walk.grows(ends[at])]
            places = [Place(trees[at], ends[at]) for at in growing]
            for at, children in zip(growing, proposer.propose(search, places, self.width), strict=True):
                ends[at] = walks[at].expand(ends[at], [child.node for child in children])
            unknown = [at for at, walk in enumerate(walks) if ends[at].number not in walk.worth]
            scores = judge_ends(search, judge, [Place(trees[at], ends[at]) for at in unknown])
            for at, score in zip(unknown, scores, strict=True):
                walks[at].worth[ends[at].number] = score
            for walk, end in zip(walks, ends, strict=True):
                walk.back_up(end)
        for walk in walks:
            best = walk.best_answer()
            search.conclude(walk.tree, best.answer if best else None, [best] if best else [])


def uct(value: float, visits: int, parent_visits: int, exploration: float) -> float:
    """What a child is worth a visit: its mean value and a bonus; infinite if it was never visited."""
    if not visits:
        return math.inf
    return value + exploration * math.sqrt(math.log(parent_visits) / visits)


def puct(value: float, prior: float, visits: int, parent_visits: int, exploration: float) -> float:
    """What a child is worth a visit: its mean value, and a bonus by what the policy thinks of it."""
    return value + exploration * prior * math.sqrt(parent_visits) / (1 + visits)


def priors(nodes: Sequence[Node], kind: str) -> list[float]:
    """What siblings are thought of before any is visited, adding up to 1.

    Raises:
        UserError: there is no such kind.
    """
    check_choice("prior", kind, PRIORS)
    log_probs = [node.log_prob for node in nodes if node.log_prob is not None]
    if kind == "policy" and len(log_probs) == len(nodes):
        top = max(log_probs, default=0.0)
        weights = [math.exp(value - top) for value in log_probs]
    else:
        weights = [1.0 if kind == "uniform" else float(node.copies) for node in nodes]
    return [weight / sum(weights) for weight in weights]


@dataclass
class _Walk:
    """The search in one tree."""

    method: MonteCarlo
    tree: Tree
    children: dict[int, list[Node]] = field(default_factory=dict)
    """Of the nodes that have been grown."""
    prior: dict[int, float] = field(default_factory=dict)
    worth: dict[int, float] = field(default_factory=dict)
    """What a visit that ends at a node backs up."""
    total: dict[int, float] = field(default_factory=dict)
    """What was backed up through a node."""

    def descend(self) -> Node:
        """The end of the way down: a node that has not been grown, or cannot be."""
        node = self.tree.nodes[ROOT]
        while children := self.children.get(node.number):
            node = self._best(node, children)
        if node.visits and not node.finished and len(self.tree.path(node.number)) >= self.method.depth:
            self.expand(node, [])
        return node

    def grows(self, node: Node) -> bool:
        """Whether next steps are to be proposed there: it was seen before, as the root always was."""
        return (node.number == ROOT or node.visits > 0) and not node.finished and node.number not in self.children

    def expand(self, node: Node, children: list[Node]) -> Node:
        """Take children in; the one to visit first, or the node itself if there are none."""
        self.children[node.number] = children
        if not children:
            self.worth[node.number] = 0.0
            return node
        for child, prior in zip(children, priors(children, self.method.prior), strict=True):
            self.prior[child.number] = prior
        return self._best(node, children)

    def back_up(self, end: Node) -> None:
        """Tell the way up from a node what it is worth."""
        for node in [self.tree.nodes[ROOT], *self.tree.path(end.number)]:
            node.visits += 1
            self.total[node.number] = self.total.get(node.number, 0.0) + self.worth[end.number]
            node.value = self.total[node.number] / node.visits

    def best_answer(self) -> Node | None:
        """The end of the most visited, or best, way down among those that lead to answers."""
        answers = [node for node in self.tree.nodes if node.answer is not None]
        judged = [node for node in answers if node.visits] or answers
        leads = {on_way.number for node in judged for on_way in self.tree.path(node.number)}
        node = self.tree.nodes[ROOT]
        while rivals := [child for child in self.children.get(node.number, []) if child.number in leads]:
            node = max(rivals, key=self._merit)
        return node if node.answer is not None else None

    def _merit(self, node: Node) -> tuple[float, float]:
        merit = (float(node.visits), node.value or 0.0)
        return merit if self.method.choice == "visits" else merit[::-1]

    def _best(self, parent: Node, children: Sequence[Node]) -> Node:
        """The child to visit next; the first of equals."""
        visits, c = max(1, parent.visits), self.method.exploration
        if self.method.bonus == "uct":
            return max(children, key=lambda node: uct(node.value or 0.0, node.visits, visits, c))
        usual = parent.value or 0.0
        return max(
            children,
            key=lambda node: puct(
                usual if node.value is None else node.value, self.prior[node.number], node.visits, visits, c
            ),
        )
