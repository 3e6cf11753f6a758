"""Proposers: who says what the next step may be.

The *policy* writes lines behind the question and the steps so far; it may also end its text with an answer, in the
marks of its format. The task's own *moves* are all steps that are allowed; they cost no tokens. Either way equal
proposals behind one path become one node, which counts its copies: a search gains nothing from walking twins.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mnemonist.errors import UserError
from mnemonist.reasoning.formats import Format
from mnemonist.reasoning.search.lockstep import Place, Search, check_choice
from mnemonist.reasoning.tasks.task import StepTask, Task
from mnemonist.reasoning.tree import Tree

LINE_END = "\n"
PROPOSERS = ("policy", "moves")


class Proposer(Protocol):
    """Grows trees by one step."""

    def propose(self, search: Search, places: Sequence[Place], width: int) -> list[list[Place]]:
        """New children of each place, none of which is finished, in the order they came; ``width`` proposals or fewer.

        A place that is named twice is asked twice, and its second children are those that its first are not.
        """
        ...


@dataclass(frozen=True)
class FromPolicy:
    """The policy's lines. Each is drawn by itself, so that good steps may come several times."""

    line_tokens: int = 64
    """Tokens of a line, or of an end with an answer, at most. A longer one ends its path."""

    def propose(self, search: Search, places: Sequence[Place], width: int) -> list[list[Place]]:
        """See `Proposer.propose`."""
        wanted = [(tree, prompt_at(search.format, tree, node.number)) for tree, node in places for _ in range(width)]
        lines = self._draw(search, wanted)
        return [_grow(search, place, lines[at * width : (at + 1) * width]) for at, place in enumerate(places)]

    def _draw(self, search: Search, wanted: Sequence[tuple[Tree, str]]) -> list[_Line]:
        """A line for each prompt; if it opens the end of the text, the rest of that too."""
        lines = [
            _Line(each.text, each.tokens, each.log_prob if each.log_probs else None, each.finish != "stop")
            for each in search.write(wanted, (LINE_END,), self.line_tokens)
        ]
        ending = [at for at, line in enumerate(lines) if not line.last and _mark(search.format) in line.text]
        opened = [at for at in ending if not _closed(search.format, lines[at].text)]
        more = [(wanted[at][0], wanted[at][1] + lines[at].text) for at in opened]
        rests = search.write(more, (search.format.close_answer,), self.line_tokens)
        for at, rest in zip(opened, rests, strict=True):
            before = lines[at].log_prob
            known = before is not None and bool(rest.log_probs)
            log_prob = before + rest.log_prob if before is not None and known else None
            lines[at] = _Line(lines[at].text + rest.text, lines[at].tokens + rest.tokens, log_prob, True)
        for at in ending:
            lines[at].last = True
        return lines


@dataclass(frozen=True)
class FromMoves:
    """The task's moves, in its order; if there are more than wanted, some that are drawn at random."""

    def propose(self, search: Search, places: Sequence[Place], width: int) -> list[list[Place]]:
        """See `Proposer.propose`; a ``width`` of 0 wants all moves."""
        return [self._moves(search, place, width) for place in places]

    def _moves(self, search: Search, place: Place, width: int) -> list[Place]:
        task, problem = search.task, place.tree.problem
        assert isinstance(task, StepTask)
        steps = place.tree.steps(place.node.number)
        moves = task.moves(problem, steps)
        if 0 < width < len(moves):
            key = repr([search.decoding.seed, problem.id, steps]).encode()
            chance = random.Random(hashlib.sha256(key).digest())
            moves = [moves[at] for at in sorted(chance.sample(range(len(moves)), width))]
        children = []
        for move in moves:
            label = task.label(problem, [*steps, move])
            answer = task.answer_of(problem, [*steps, move]) if label.finished else None
            right = search.right(problem, answer) if label.finished else None
            node = place.tree.add(place.node.number, move, finished=label.finished, answer=answer, right=right)
            children.append(Place(place.tree, node))
        return children


def find_proposer(name: str, line_tokens: int, task: Task) -> Proposer:
    """A proposer by name, one of `PROPOSERS`.

    Raises:
        UserError: there is none, or the task has no moves.
    """
    check_choice("proposer", name, PROPOSERS)
    if name == "policy":
        return FromPolicy(line_tokens)
    require_steps(task, "proposer=moves")
    return FromMoves()


def require_steps(task: Task, what: str) -> None:
    """Make sure that a task knows its steps.

    Raises:
        UserError: it only judges answers.
    """
    if not isinstance(task, StepTask):
        raise UserError(f"{what} needs a task whose steps can be checked, and {task.name} only judges answers")


def prompt_at(format: Format, tree: Tree, number: int) -> str:
    """What the policy reads to go on behind a node that is not finished."""
    return format.prompt(tree.problem.question) + "".join(text + LINE_END for text in tree.steps(number))


@dataclass
class _Line:
    """What the policy wrote for one step."""

    text: str
    tokens: int
    log_prob: float | None
    last: bool
    """Whether its path ends here."""


def _grow(search: Search, place: Place, lines: Sequence[_Line]) -> list[Place]:
    """Lines as children of a place, equal ones merged."""
    tree, parent = place
    before = "".join(text + LINE_END for text in tree.steps(parent.number))
    known = {(node.text, node.finished): node for node in tree.children(parent.number)}
    children = []
    for line in lines:
        text = line.text.removesuffix(LINE_END)
        if twin := known.get((text, line.last)):
            twin.copies += 1
            twin.extra_tokens += line.tokens
            continue
        answer = search.format.parse(before + line.text).answer if line.last else None
        node = tree.add(
            parent.number,
            text,
            tokens=line.tokens,
            log_prob=line.log_prob,
            finished=line.last,
            answer=answer,
            right=search.right(tree.problem, answer) if line.last else None,
        )
        known[text, line.last] = node
        children.append(Place(tree, node))
    return children


def _mark(format: Format) -> str:
    """What the end of a text begins with."""
    return format.close_thought or format.open_answer


def _closed(format: Format, text: str) -> bool:
    """Whether the answer was opened and closed."""
    _, opened, rest = text.partition(format.open_answer)
    return bool(opened) and format.close_answer in rest
