"""Journeys: a tree walked depth first, dead ends and returns kept, and the straight way to the same answer.

A *shortcut* is the path from the problem to a right answer and nothing else; whoever learns from shortcuts alone never
sees a mistake, let alone a way out of one. A *journey* passes through the same steps in the same order, but goes astray
on the way: it enters a step that leads nowhere, says why, and goes back (Qin et al. 2024, arXiv 2410.18982, sections
6.4 to 6.8; Gandhi et al. 2024, arXiv 2404.03683). Here is what is visited and in which order; `journey_text` puts it
into words, `growing` makes trees to walk in.

Only steps that are truly hopeless are called dead ends: where a task labels steps, by its labels; where nobody knows,
by what verifiers and values said. A step that was merely not chosen is never entered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random
from typing import Literal, NamedTuple

from mnemonist.choices import parse_choices
from mnemonist.errors import UserError, nearest
from mnemonist.reasoning.tree import ROOT, Node, Tree

MoveKind = Literal["step", "dead end", "back"]
"""A node is entered, given up, or returned to."""

CHOICES = {"entering": ("dead ends first", "as grown"), "returning": ("straight", "level by level")}
"""What the fields of `JourneyRules` that are words may be."""


@dataclass(frozen=True)
class JourneyRules:
    """How far a journey goes astray.

    Raises:
        UserError: a field is out of range.
    """

    name: str
    source: str = ""
    trials: int = 3
    """K: what is tried at a node of the right path, the right step included, so one less dead ends; 0 for no limit."""
    chance: float = 1.0
    """Of one more dead end, asked before each: 1 enters as many as ``trials`` allows, 0 none. Below 1 the right step
    is often the first to be tried, so that a model does not learn that what comes first is wrong."""
    below: int = 1
    """Children that are tried of a node off the right path, drawn at random; 0 for all of them."""
    entering: str = "dead ends first"
    """``dead ends first``: any of the dead ends at a node, then the right step; ``as grown``: only those that were
    tried before it, as in a search that stops when it succeeds."""
    returning: str = "straight"
    """``straight``: to the nearest node where something is tried next; ``level by level``: each node on the way up
    is given up with its own reason."""
    patience: int = 0
    """Steps of a dead end, its first one included, before it is given up; 0 goes on to its leaf."""
    doubt: float = 0.5
    """Where nobody knows whether a step is hopeful, one that a search valued less than this is not."""
    most_steps: int = 60
    """Of a journey. An excursion is given up where they are used up; the right path always fits."""
    most_characters: int = 4000
    """Of a journey as text, answer left out. The last excursions are left out until it fits."""

    def __post_init__(self) -> None:
        for name, words in CHOICES.items():
            word = getattr(self, name)
            if word not in words:
                raise UserError(f"{name} is {word!r}{nearest(word, words)}; it is one of {', '.join(words)}")
        if min(self.trials, self.below, self.patience) < 0:
            raise UserError(
                f"trials is {self.trials}, below {self.below} and patience {self.patience}; they are numbers from 0"
            )
        if not all(0 <= share <= 1 for share in (self.chance, self.doubt)):
            raise UserError(f"chance is {self.chance} and doubt {self.doubt}; these are from 0 to 1")
        if self.most_steps < 1 or self.most_characters < 1:
            raise UserError(
                f"most_steps is {self.most_steps} and most_characters {self.most_characters}; allow at least 1"
            )

    @property
    def spec(self) -> str:
        """The name with what differs from the row of `JOURNEYS`, as `find_journey` reads it: "o1-journey:trials=2"."""
        row = JOURNEYS.get(self.name, JourneyRules(self.name))
        fields = [f.name for f in dataclasses.fields(self) if f.name not in ("name", "source")]
        changes = [f"{name}={getattr(self, name)}" for name in fields if getattr(self, name) != getattr(row, name)]
        return self.name + (":" + ",".join(changes) if changes else "")


JOURNEYS: Mapping[str, JourneyRules] = {
    "o1-journey": JourneyRules(
        "o1-journey",
        "O1 Replication Journey part 1 (arXiv 2410.18982), section 6.8; chance is ours, the paper says that it may",
        chance=0.5,
    ),
    "depth-first": JourneyRules(
        "depth-first",
        "Stream of Search (arXiv 2404.03683), section 3: a depth-first search until it succeeds; limits are ours",
        trials=0,
        below=0,
        entering="as grown",
        returning="level by level",
    ),
}
"""Named rules, each with its source."""


def find_journey(text: str) -> JourneyRules:
    """The row of `JOURNEYS` with this name, with the changes behind a colon: "o1-journey:trials=2,chance=1".

    Raises:
        UserError: there is no such row, no such field, or a value does not fit.
    """
    name, colon, changes = text.partition(":")
    if name not in JOURNEYS:
        raise UserError(f"there is no journey {name!r}{nearest(name, JOURNEYS)}; known: {', '.join(JOURNEYS)}")
    if not colon:
        return JOURNEYS[name]
    allowed = tuple(f.name for f in dataclasses.fields(JourneyRules) if f.name not in ("name", "source"))
    try:
        return replace(JOURNEYS[name], **parse_choices(JourneyRules, changes, "a journey", allowed))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error


class Move(NamedTuple):
    """One move of a walk."""

    kind: MoveKind
    node: int
    """Number of the node that is entered, given up, or returned to."""
    astray: bool = True
    """Whether it belongs to an excursion: all but the steps of the right path do."""


@dataclass(frozen=True)
class Journey:
    """A walk through a tree that ends at a right answer."""

    tree: Tree
    rules: JourneyRules
    seed: int
    moves: tuple[Move, ...]

    @cached_property
    def path(self) -> tuple[int, ...]:
        """The right path: numbers of its nodes, the root left out."""
        return tuple(move.node for move in self.moves if not move.astray)

    @property
    def answer(self) -> str:
        """The right answer it ends with."""
        return self.tree.nodes[self.path[-1]].answer or ""

    @property
    def dead_ends(self) -> int:
        """Nodes that were given up."""
        return sum(move.kind == "dead end" for move in self.moves)

    def shortcut(self) -> Journey:
        """The twin without excursions."""
        return replace(self, moves=tuple(move for move in self.moves if not move.astray))


def walk(tree: Tree, rules: JourneyRules, seed: int = 0) -> Journey:
    """Walk through a tree; the same seed takes the same way.

    Raises:
        UserError: the tree has no right answer to arrive at.
    """
    goal = right_leaf(tree)
    path = [node.number for node in tree.path(goal)]
    lost, children = _dead_ends(tree, rules.doubt)
    draw = Draws(tree.problem.id, rules, seed)
    excursions = Excursions(rules, rules.most_steps - len(path), lambda number: draw.below(children[number]))
    moves: list[Move] = []
    for here, right in zip([ROOT, *path], path, strict=False):
        ways = [n for n in children[here] if n in lost and (rules.entering == "dead ends first" or n < right)]
        for way in draw.some(ways, draw.trials()):
            moves.extend(excursions.walk(way, here))
        moves.append(Move("step", right, astray=False))
    return Journey(tree, rules, seed, tuple(moves))


def right_leaf(tree: Tree) -> int:
    """The node that a journey arrives at: the one that was chosen if it is right, else the first that is.

    Raises:
        UserError: no node is right.
    """
    right = [node.number for node in tree.nodes if node.finished and node.right and node.answer is not None]
    if not right:
        raise UserError(
            f"the tree of {tree.problem.id} has no right answer to arrive at; search longer, or leave it out"
        )
    return tree.chosen if tree.chosen in right else right[0]


class Excursions:
    """Excursions into dead ends, all of one journey: what one of them uses up, the next ones lack."""

    def __init__(self, rules: JourneyRules, room: int, ways: Callable[[int], Iterable[int]]) -> None:
        """
        Args:
            rules: say when a node is given up, and how one gets back.
            room: steps that all excursions have together.
            ways: the children of a node that are tried one after the other. They may be made only when asked for.
        """
        self.rules = rules
        self.room = room
        self.ways = ways

    def walk(self, start: int, back: int) -> Iterator[Move]:
        """Enter ``start``, a child of ``back``, and return there; nothing if there is no room left."""
        here = back
        for kind, node, parent in self._stray(start, back, 1):
            if kind == "step" and here != parent:
                yield Move("back", parent)
            yield Move(kind, node)
            here = node
            if kind == "dead end" and self.rules.returning == "level by level":
                yield Move("back", parent)
                here = parent
        if here != back:
            yield Move("back", back)

    def _stray(self, node: int, parent: int, depth: int) -> Iterator[tuple[MoveKind, int, int]]:
        if self.room <= 0:
            return
        self.room -= 1
        yield "step", node, parent
        ended = True
        if depth < self.rules.patience or not self.rules.patience:
            ways = iter(self.ways(node))
            while self.room > 0 and (way := next(ways, None)) is not None:
                ended = False
                yield from self._stray(way, node, depth + 1)
        # Level by level each node is given up with its own reason; on a straight way back only where it ended.
        if ended or self.rules.returning == "level by level":
            yield "dead end", node, parent


class Draws:
    """The draws of one journey. How many dead ends a node of the right path has is drawn apart from all else: so a
    tree grown under some rules is walked in full under the same rules and seed."""

    def __init__(self, problem: str, rules: JourneyRules, seed: int) -> None:
        self.rules = rules
        self.random = Random(f"{seed} {problem}")
        self._trials = Random(f"{seed} {problem} trials")

    def trials(self) -> int:
        """Dead ends of the next node of the right path at most."""
        most = self.rules.trials - 1 if self.rules.trials else self.rules.most_steps
        if self.rules.chance == 1:
            return most
        count = 0
        while count < most and self._trials.random() < self.rules.chance:
            count += 1
        return count

    def some(self, ways: list[int], most: int) -> list[int]:
        """At most so many, drawn at random, in the order they had."""
        return ways if len(ways) <= most else sorted(self.random.sample(ways, most))

    def below(self, ways: list[int]) -> list[int]:
        """What is tried below a node off the right path."""
        return self.some(ways, self.rules.below or len(ways))

    def shuffled(self, moves: Iterable[str]) -> Iterator[str]:
        """In random order; drawn one by one, since often the first is enough."""
        rest = list(moves)
        while rest:
            at = int(self.random.random() * len(rest))
            rest[at], rest[-1] = rest[-1], rest[at]
            yield rest.pop()


def _dead_ends(tree: Tree, doubt: float) -> tuple[set[int], list[list[int]]]:
    """The nodes that lead nowhere, and the children of each node as far as an excursion may enter them.

    What nobody knows about a node follows from its neighbours: below a hopeless one all are hopeless, and so is one
    all of whose children are. A node with a right answer below it is none of them, whatever it was valued.
    """
    children: list[list[int]] = [[] for _ in tree.nodes]
    for node in tree.nodes[1:]:
        children[node.parent or ROOT].append(node.number)
    won: set[int] = set()
    lost: set[int] = set()
    for node in reversed(tree.nodes):  # children come behind their parents
        below = children[node.number]
        if node.right or any(n in won for n in below):
            won.add(node.number)
        elif _hopeless(node, doubt) or (node.hopeful is None and below and all(n in lost for n in below)):
            lost.add(node.number)
    doomed = {node.number for node in tree.nodes if node.hopeful is False}
    for node in tree.nodes[1:]:
        if node.hopeful is None and node.parent in doomed and node.number not in won:
            doomed.add(node.number)
    lost |= doomed - won
    return lost, [[n for n in below if n in lost] for below in children]


def _hopeless(node: Node, doubt: float) -> bool:
    if node.finished and node.right is not None:
        return not node.right
    if node.hopeful is not None:
        return not node.hopeful
    return node.value is not None and node.value < doubt
