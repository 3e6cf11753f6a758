"""Trees of thought: every step a search has tried, what it cost, and what was thought of it.

One structure for all methods. The root is the bare problem; a node is a step (a line, or for those who draw whole
attempts everything that was written); a path from the root is a thought. Nothing is ever removed: what a search gives
up stays, marked as discarded, because journeys are made of dead ends and ledgers count them.

A file of trees has one JSON object a line, each a whole tree with the version of its form.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mnemonist.errors import UserError
from mnemonist.files import write_atomically
from mnemonist.reasoning.ledger import Ledger
from mnemonist.reasoning.tasks.task import Problem

FORMAT = "mnemonist-tree/1"
ROOT = 0


@dataclass
class Node:
    """One step in a tree."""

    number: int
    """Its place in `Tree.nodes`."""
    parent: int | None
    """None for the root."""
    text: str = ""
    """As the policy wrote it; the root has none."""
    tokens: int = 0
    """Written for it, once."""
    copies: int = 1
    """How often it was proposed there: equal steps behind one parent are one node."""
    extra_tokens: int = 0
    """Written besides, and always discarded: further copies of it, and what was tried out behind it to value it."""
    thinking_tokens: int | None = None
    """Those of `tokens` that a whole attempt under a budget has for its thought."""
    log_prob: float | None = None
    """Of its text after its path, by the policy; None if that is not known."""
    value: float | None = None
    """What the search thought of the path up to here, from 0 (hopeless) to 1; None if nobody asked."""
    visits: int = 0
    """How often a tree search passed through."""
    hopeful: bool | None = None
    """The truth: whether a right answer can still be reached from here; None if nobody knows."""
    reason: str = ""
    """Why it is not hopeful."""
    finished: bool = False
    """Whether it ends its path."""
    answer: str | None = None
    """Given by a path that is finished."""
    right: bool | None = None
    """Whether that answer is right."""
    discarded: bool = False
    """Given up by the search: cut off, outvoted, or not chosen in the end."""


@dataclass
class Tree:
    """What a method did with one problem."""

    problem: Problem
    method: str
    """Name of the method."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the method, as JSON values."""
    nodes: list[Node] = field(default_factory=lambda: [Node(ROOT, None)])
    ledger: Ledger = field(default_factory=Ledger)
    answer: str | None = None
    """The method's answer in the end."""
    right: bool | None = None
    """Whether it is right; None until someone has judged it."""
    chosen: int | None = None
    """The node whose path gave the answer; None where several agreed on it, or there is none."""

    def add(self, parent: int, text: str, **known: Any) -> Node:
        """A new node below ``parent``; ``known`` are fields of `Node`.

        Raises:
            ValueError: there is no such parent, or it is finished.
        """
        if not 0 <= parent < len(self.nodes):
            raise ValueError(f"There is no node {parent}; this tree has {len(self.nodes)}.")
        if self.nodes[parent].finished:
            raise ValueError(f"Node {parent} is finished; nothing comes behind it.")
        node = Node(len(self.nodes), parent, text, **known)
        self.nodes.append(node)
        return node

    def path(self, number: int) -> list[Node]:
        """The nodes from the first step to this one, the root left out."""
        path: list[Node] = []
        node = self.nodes[number]
        while node.parent is not None:
            path.append(node)
            node = self.nodes[node.parent]
        return path[::-1]

    def steps(self, number: int) -> list[str]:
        """The texts of the path."""
        return [node.text for node in self.path(number)]

    def children(self, number: int) -> list[Node]:
        """Nodes right below, in the order they came."""
        return [node for node in self.nodes if node.parent == number]

    def leaves(self) -> list[Node]:
        """Nodes without children; the root alone in an empty tree."""
        parents = {node.parent for node in self.nodes}
        return [node for node in self.nodes if node.number not in parents]

    def to_json(self) -> dict[str, Any]:
        """As JSON values; `from_json` reads them back."""
        return {
            "format": FORMAT,
            "problem": self.problem.to_json(),
            "method": self.method,
            "settings": self.settings,
            "answer": self.answer,
            "right": self.right,
            "chosen": self.chosen,
            "ledger": self.ledger.to_json(),
            "nodes": [asdict(node) for node in self.nodes],
        }

    @classmethod
    def from_json(cls, values: Any) -> Tree:
        """What `to_json` gave.

        Raises:
            UserError: it is no tree of this version, or not a tree.
        """
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            found = values.get("format") if isinstance(values, dict) else type(values).__name__
            raise UserError(f"this is no tree of this version ({found!r}, not {FORMAT!r}); make it again")
        try:
            nodes = [Node(**node) for node in values["nodes"]]
            tree = cls(
                Problem.from_json(values["problem"]),
                values["method"],
                values["settings"],
                nodes,
                Ledger.from_json(values["ledger"]),
                values["answer"],
                values["right"],
                values["chosen"],
            )
        except (KeyError, TypeError) as error:
            raise UserError(f"this tree is damaged ({error})") from error
        sound = bool(nodes) and nodes[0].parent is None
        for number, node in enumerate(nodes):
            sound = sound and node.number == number
            sound = sound and (number == ROOT or (isinstance(node.parent, int) and 0 <= node.parent < number))
        if tree.chosen is not None:
            sound = sound and isinstance(tree.chosen, int) and 0 < tree.chosen < len(nodes)
        if not sound:
            raise UserError("this tree is damaged (its nodes do not follow one another)")
        return tree


def save_trees(path: str | os.PathLike[str], trees: Iterable[Tree]) -> None:
    """Write a file of trees, whole or not at all.

    Raises:
        FileError: it cannot be written.
    """
    write_atomically(path, "".join(json.dumps(tree.to_json()) + "\n" for tree in trees))


def load_trees(path: str | os.PathLike[str]) -> Iterator[Tree]:
    """Read a file of trees, one after the other.

    Raises:
        UserError: there is no such file, or a line is no tree of this version; the message names the line.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    yield Tree.from_json(json.loads(line))
                except (ValueError, RecursionError) as error:
                    raise UserError(f"{path}, line {number}: {error}") from error
    except FileNotFoundError:
        raise UserError(f"there is no file of trees {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error
