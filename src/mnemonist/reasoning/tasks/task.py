"""Tasks: problems whose answers can be checked, and some whose every step can.

Problem number ``index`` of a split and difficulty follows from these alone. The splits share no problem: a draw is
taken only if the hash of its content falls into the split's part of all contents, so that a problem met in training can
never be met in a test, whatever the seeds. Answers are judged by parsers that are bounded in length, depth and digits;
nothing a model writes is ever executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np

from mnemonist.errors import UserError

Split = Literal["train", "validation", "test"]

SHARES: Mapping[Split, range] = {"train": range(0, 80), "validation": range(80, 90), "test": range(90, 100)}
"""Which hundredths of all contents belong to a split."""

MOST_DRAWS = 10_000
"""Draws for one problem before its split is said to be empty."""


@dataclass(frozen=True)
class Problem:
    """One problem. A value that travels with every attempt at it: whoever has it can judge an answer."""

    task: str
    """Name of the task that made it, and judges its answers."""
    split: str
    difficulty: int
    """One of the task's."""
    index: int
    question: str
    """As text, ending without a line break."""
    answer: str
    """A right answer; there may be others."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What it was made of, as JSON values: all that judging needs."""

    @property
    def id(self) -> str:
        """Names it among all problems of all tasks."""
        return f"{self.task}/{self.split}/{self.difficulty}/{self.index}"

    def to_json(self) -> dict[str, Any]:
        """As JSON values; `from_json` reads them back."""
        return {
            "task": self.task,
            "split": self.split,
            "difficulty": self.difficulty,
            "index": self.index,
            "question": self.question,
            "answer": self.answer,
            "facts": dict(self.facts),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Problem:
        """What `to_json` gave.

        Raises:
            UserError: it is no problem of this version.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise UserError(f"this is no problem of this version ({error})") from error


@dataclass(frozen=True)
class Verdict:
    """What a verifier thinks of an answer."""

    right: bool
    parsed: bool = True
    """Whether it could be read as an answer at all."""
    reason: str = ""
    """Why it is wrong, in a few words without a full stop; empty if it is right."""


@dataclass(frozen=True)
class StepLabel:
    """The truth about a step, after all steps before it."""

    valid: bool
    """Whether it can be read, is true, and is allowed here."""
    hopeful: bool
    """Whether a right answer can still be reached after it; a right answer itself is hopeful."""
    finished: bool = False
    """Whether it gives an answer (or leaves nothing to do): no step follows."""
    right: bool = False
    """Whether that answer is right."""
    reason: str = ""
    """Why it is not valid, or not hopeful, in a few words without a full stop; empty otherwise."""


class Task(Protocol):
    """Makes problems and judges answers.

    An implementation is a frozen dataclass; its fields are what a user may change.
    """

    @property
    def name(self) -> str:
        """What the command line calls it."""
        ...

    @property
    def difficulties(self) -> Sequence[int]:
        """From easy to hard."""
        ...

    def problem(self, split: Split, difficulty: int, index: int) -> Problem:
        """Problem number ``index``.

        Raises:
            UserError: there is no such difficulty or split, or it has no (more) problems.
        """
        ...

    def judge(self, problem: Problem, answer: str) -> Verdict:
        """Whether an answer, as the model wrote it between the marks of its format, is right. Never raises."""
        ...


@runtime_checkable
class StepTask(Task, Protocol):
    """A task whose solutions are lines that can be checked one by one.

    A step is one line of text without a line break. The steps of a problem are always given from the first on.
    """

    def moves(self, problem: Problem, steps: Sequence[str]) -> list[str]:
        """Every step that is allowed next, each once, in a fixed order; empty when finished or when nothing is left."""
        ...

    def label(self, problem: Problem, steps: Sequence[str]) -> StepLabel:
        """The truth about the last of ``steps``. Never raises, whatever was written."""
        ...

    def solution(self, problem: Problem) -> list[str]:
        """Steps that lead straight to a right answer; the last one is labelled finished and right."""
        ...

    def answer_of(self, problem: Problem, steps: Sequence[str]) -> str | None:
        """The answer that finished steps give, fit for `judge`; None if they give none."""
        ...


def draw_problem(
    name: str,
    split: Split,
    difficulty: int,
    index: int,
    draw: Callable[[np.random.Generator], Mapping[str, Any]],
    key: Callable[[Mapping[str, Any]], Any] = lambda facts: facts,
) -> Mapping[str, Any]:
    """The facts of a problem: the first draw whose content belongs to the split.

    Args:
        name: of the task, with all of its fields that change what is drawn.
        split: see `SHARES`.
        difficulty: handed to the random generator.
        index: likewise.
        draw: makes facts (JSON values).
        key: what makes two problems the same, as JSON values: sorted numbers, say.

    Raises:
        UserError: the split is unknown, the index negative, or the split's part of this difficulty is empty.
    """
    if split not in get_args(Split):
        raise UserError(f"there is no split {split!r}; take one of {', '.join(get_args(Split))}")
    if index < 0:
        raise UserError(f"problem {index} does not exist; problems are counted from 0")
    root = _digest([name, split, difficulty, index])
    random = np.random.default_rng(root)
    for _ in range(MOST_DRAWS):
        facts = draw(random)
        if split_of([name.partition(":")[0], key(facts)]) == split:
            return facts
    raise UserError(f"{name} has no {split} problem of difficulty {difficulty}: it has too few problems to be split")


def split_of(content: Any) -> Split:
    """The split that a content belongs to.

    Args:
        content: what makes two problems the same, with the name of their task, as JSON values.
    """
    part = _digest(content) % 100
    return next(split for split, share in SHARES.items() if part in share)


def _digest(values: Any) -> int:
    text = json.dumps(values, sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
