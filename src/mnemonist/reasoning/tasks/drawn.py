"""What tasks that draw their problems have in common: a name that says every changed field, and the drawing itself.

A task of this kind says what facts are drawn, what makes two of them the same, and how they are put and answered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mnemonist.errors import UserError
from mnemonist.reasoning.tasks.expressions import Rejected, read_integer, shown
from mnemonist.reasoning.tasks.task import Problem, Split, Verdict, draw_problem

Facts = Mapping[str, Any]
"""What a problem was made of, as JSON values."""


class DrawnTask:
    """The base of frozen dataclasses that are tasks; see `Task`."""

    key: ClassVar[str]
    """What the table of tasks calls it."""

    @property
    def name(self) -> str:
        """Key and changed fields, as `build_task` reads them: ``countdown:largest=50``."""
        changed = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value != field.default:
                changed.append(f"{field.name}={str(value).lower() if isinstance(value, bool) else value}")
        return f"{self.key}:{','.join(changed)}" if changed else self.key

    @property
    def difficulties(self) -> Sequence[int]:
        """From easy to hard."""
        raise NotImplementedError

    def problem(self, split: Split, difficulty: int, index: int) -> Problem:
        """See `Task.problem`."""
        if difficulty not in self.difficulties:
            known = ", ".join(map(str, self.difficulties))
            raise UserError(f"{self.name} has no difficulty {difficulty}; it has {known}")
        name = self.name
        facts = draw_problem(name, split, difficulty, index, lambda random: self.draw(random, difficulty), self.content)
        return Problem(name, split, difficulty, index, self.ask(facts), self.answer(facts), facts)

    def draw(self, random: np.random.Generator, difficulty: int) -> Facts:
        """The facts of one problem."""
        raise NotImplementedError

    def content(self, facts: Facts) -> Any:
        """What makes two problems the same, as JSON values."""
        return facts

    def ask(self, facts: Facts) -> str:
        """The question."""
        raise NotImplementedError

    def answer(self, facts: Facts) -> str:
        """A right answer."""
        raise NotImplementedError


def judge_integer(answer: str, right: int) -> Verdict:
    """Whether an answer is this whole number."""
    try:
        given = read_integer(answer.strip(" ") if len(answer) < 100 else answer)
    except Rejected as error:
        return Verdict(False, parsed=False, reason=str(error))
    return Verdict(True) if given == right else Verdict(False, reason=f"{shown(given)} is not {shown(right)}")


def near_integer(right: int, random: np.random.Generator) -> int:
    """A wrong answer as one slip makes it: a digit off by a little, or a sign."""
    places = len(str(abs(right)))
    slip = int(random.integers(1, 4)) * 10 ** int(random.integers(places)) * (1 if random.integers(2) else -1)
    # A sum of positive numbers that became negative would give itself away.
    return right - slip if (right >= 0) != (right + slip >= 0) else right + slip
