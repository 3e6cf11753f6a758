"""Tree of thoughts: propose some next steps, value each, go on with the best (Yao et al. 2023, arXiv 2305.10601).

Breadth first, the best b paths of a level are kept and all others given up. Depth first, the best step is followed to
its end before the next best is tried; a path that looks too bad is cut off, and the first answer that is not cut off
ends the search. Dead ends stay in the tree: depth first is how journeys are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mnemonist.reasoning.search.independent import CHOICES, elect
from mnemonist.reasoning.search.lockstep import Place, Search, check_choice, check_least
from mnemonist.reasoning.search.stepwise import Pruned, best_first
from mnemonist.reasoning.tree import ROOT, Node, Tree


@dataclass(frozen=True)
class BreadthFirst(Pruned):
    """Level by level.

    Raises:
        UserError: a field is out of range.
    """

    name: str = "tree-of-thought"
    breadth: int = 5
    """Paths that a level keeps."""
    choice: str = "best"
    """How finished paths settle on an answer: majority, best or weighted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(breadth=(self.breadth, 1))
        check_choice("choice", self.choice, CHOICES)

    def run(self, search: Search, trees: Sequence[Tree]) -> None:
        """See `Method.run`."""
        fronts = [Front(tree, self.breadth) for tree in trees]
        advance(self, search, fronts, first=self.width)
        for front in fronts:
            search.conclude(front.tree, *elect(front.finished, self.choice))


@dataclass(frozen=True)
class DepthFirst(Pruned):
    """One path after the other, the best step first.

    Raises:
        UserError: a field is out of range.
    """

    name: str = "depth-first"
    prune: float = 0.02
    """Paths of a lower value are cut off."""
    expansions: int = 100
    """Nodes that are asked for next steps, at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(expansions=(self.expansions, 0))

    def run(self, search: Search, trees: Sequence[Tree]) -> None:
        """See `Method.run`."""
        proposer, judge = self.helpers(search)
        stacks = [[tree.nodes[ROOT]] for tree in trees]
        found: list[Node | None] = [None] * len(trees)
        for expansion in range(self.expansions + 1):
            asked = []
            for at, tree in enumerate(trees):
                end = self._next(tree, stacks[at])
                if end is not None and end.finished:
                    found[at] = end
                    stacks[at].clear()
                elif end is not None and expansion < self.expansions:
                    asked.append((at, Place(tree, end)))
            grown = self.grow(search, proposer, judge, [place for _, place in asked], self.width)
            for (at, _), children in zip(asked, grown, strict=True):
                stacks[at] += children[::-1]
            if not asked:
                break
        for tree, end in zip(trees, found, strict=True):
            search.conclude(tree, end.answer if end else None, [end] if end else [])

    def _next(self, tree: Tree, stack: list[Node]) -> Node | None:
        """The next path that gives an answer, or may still; None if there is none left."""
        while stack:
            node = stack.pop()
            if node.answer is not None or (not node.finished and len(tree.path(node.number)) < self.depth):
                return node
        return None


@dataclass
class Front:
    """How far a breadth-first search has come with one tree."""

    tree: Tree
    keep: int
    """Paths that each group keeps."""
    groups: list[list[Node]] = field(default_factory=list)
    """The paths kept; groups do not compete with each other. Begins with the root, in a group of its own."""
    finished: list[Node] = field(default_factory=list)
    """Paths that were kept at some level and have come to an answer."""

    def __post_init__(self) -> None:
        self.groups = self.groups or [[self.tree.nodes[ROOT]]]

    @property
    def open(self) -> list[Node]:
        """Paths that go on."""
        return [node for group in self.groups for node in group if not node.finished]

    def rivals(self, children: Mapping[int, list[Node]]) -> list[list[Node]]:
        """By group: the children of what it kept, behind what it kept that is finished."""
        return [
            [node for node in group if node.finished]
            + [child for node in group for child in children.get(node.number, [])]
            for group in self.groups
        ]

    def select(self, rivals: Sequence[Sequence[Node]]) -> None:
        """Each group keeps its best."""
        self.groups = [best_first(group)[: self.keep] for group in rivals]
        known = {node.number for node in self.finished}
        kept = [node for group in self.groups for node in group]
        self.finished += [node for node in kept if node.answer is not None and node.number not in known]


def advance(method: Pruned, search: Search, fronts: Sequence[Front], first: int, groups: int = 1) -> None:
    """Grow fronts level by level until nothing is open, or the method's depth is reached.

    A finished path holds its place among the best of its group as long as nothing is better; one that was ever among
    them is a candidate for good.

    Args:
        method: proposes, judges, cuts off.
        search: of the trees.
        fronts: bare roots.
        first: proposals at the root; behind it there are as many as the method's width.
        groups: that the first steps are dealt to, one after the other, and that keep to themselves from then on.
    """
    proposer, judge = method.helpers(search)
    for level in range(method.depth):
        places = [Place(front.tree, node) for front in fronts for node in front.open]
        if not places:
            return
        grown = iter(method.grow(search, proposer, judge, places, first if level == 0 else method.width))
        for front in fronts:
            children = {node.number: next(grown) for node in front.open}
            if level == 0:
                came = sorted(children[ROOT], key=lambda node: node.number)
                front.select([came[at::groups] for at in range(groups)])
            else:
                front.select(front.rivals(children))
