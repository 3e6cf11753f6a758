"""Tasks that are worked out in one way: every line follows from those before it, and only one can come next.

They have nothing to search. What they measure is whether a long chain of small steps stays right, and what it is worth
to write them down.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mnemonist.reasoning.tasks.drawn import DrawnTask, Facts, judge_integer, near_integer
from mnemonist.reasoning.tasks.expressions import shown
from mnemonist.reasoning.tasks.task import Problem, StepLabel, Verdict

LONGEST_STEP = 200
"""Characters of a line that is looked at."""


class OneWay(DrawnTask):
    """The base of tasks whose solution is a fixed list of lines ``a = b``, the last with the answer, a whole number."""

    def lines(self, facts: Facts) -> list[str]:
        """The solution."""
        raise NotImplementedError

    def answer(self, facts: Facts) -> str:
        """What the last line comes to."""
        return _result(self.lines(facts)[-1])

    def judge(self, problem: Problem, answer: str) -> Verdict:
        """Whether it is the number."""
        return judge_integer(answer, int(problem.answer))

    def moves(self, problem: Problem, steps: Sequence[str]) -> list[str]:
        """The next line, if those before are right."""
        lines = self.lines(problem.facts)
        done = len(steps)
        return lines[done : done + 1] if [_trimmed(step) for step in steps] == lines[:done] else []

    def label(self, problem: Problem, steps: Sequence[str]) -> StepLabel:
        """See `StepTask.label`."""
        expected = self.moves(problem, steps[:-1])
        if not steps or not expected:
            return StepLabel(valid=False, hopeful=False, reason="there is no step to be taken")
        given = _trimmed(steps[-1])
        if given == expected[0]:
            finished = not self.moves(problem, steps)
            return StepLabel(valid=True, hopeful=True, finished=finished, right=finished)
        asked, _, result = expected[0].partition(" = ")
        begins = given.startswith(f"{asked} = ")
        reason = f"{asked} is {shown(int(result))}" if begins else f"the next line is that of {asked}"
        return StepLabel(valid=False, hopeful=False, reason=reason)

    def solution(self, problem: Problem) -> list[str]:
        """All lines."""
        return self.lines(problem.facts)

    def answer_of(self, problem: Problem, steps: Sequence[str]) -> str | None:
        """What the last line comes to; None if a line is missing or wrong."""
        lines = self.lines(problem.facts)
        return _result(lines[-1]) if [_trimmed(step) for step in steps] == lines else None

    def mistake(self, problem: Problem, random: np.random.Generator) -> str:
        """A number that one slip leads to."""
        return str(near_integer(int(problem.answer), random))


def _trimmed(step: str) -> str:
    return step.strip(" ") if len(step) <= LONGEST_STEP else ""


def _result(line: str) -> str:
    return line.partition(" = ")[2]
