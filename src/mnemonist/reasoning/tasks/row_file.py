"""Problems of one's own: a file of questions with their answers, one JSON object a line.

    {"question": "What is 3 plus 4?", "answer": "7", "solution": "3 + 4 = 7"}

The question may also be called ``prompt``; an answer is a text or a number, and the answer alone, without the way to
it. All other fields become facts of the problem, which rewards are given by their names. Which split a row belongs to
follows from its question, so that it stays there when rows are added, and equal questions never part.

Answers are compared: as words, or as numbers. Nothing is executed, and who wants to judge otherwise writes a reward.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np

from mnemonist.errors import UserError
from mnemonist.files import FileError
from mnemonist.reasoning.tasks.drawn import DrawnTask
from mnemonist.reasoning.tasks.expressions import Rejected, shown
from mnemonist.reasoning.tasks.rows import read_lines
from mnemonist.reasoning.tasks.task import Problem, Split, Verdict, split_of

QUESTIONS = ("question", "prompt")
"""What the question may be called; the first that is there is taken."""
MATCHES = ("exact", "number")
LONGEST_ANSWER = 10_000
"""Characters of an answer that is looked at."""
LONGEST_NUMBER = 100
"""Characters of a number."""
NUMBER = re.compile(r"([+-]?)\$?((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?)(?:/([0-9]+))?")
"""1234, -1,234.50, $12 or 3/4."""


@dataclass(frozen=True)
class RowFile(DrawnTask):
    """The rows of a file.

    Raises:
        UserError: there is no such match, or the path has a comma.
    """

    key: ClassVar[str] = "rows"

    path: str = ""
    """JSON lines with a question and an answer each."""
    match: str = "exact"
    """How answers are compared: exact (the same words) or number (the same value, however it is written)."""

    def __post_init__(self) -> None:
        if self.match not in MATCHES:
            raise UserError(f"match is {self.match!r}; it must be one of {', '.join(MATCHES)}")
        if "," in self.path:
            raise UserError(f"the path {self.path!r} has a comma, which ends a choice; give the file another name")

    @property
    def difficulties(self) -> tuple[int]:
        """One; nobody has said how hard rows are."""
        return (0,)

    def size(self, split: Split) -> int:
        """How many problems a split has.

        Raises:
            UserError: the file cannot be read, or a row of it is none.
        """
        return len(self._rows()[split])

    def problem(self, split: Split, difficulty: int, index: int) -> Problem:
        """See `Task.problem`; those of a split stand in the order of the file.

        Raises:
            UserError: also if the file cannot be read, or a row of it is none.
        """
        if split not in get_args(Split):
            raise UserError(f"there is no split {split!r}; take one of {', '.join(get_args(Split))}")
        if difficulty not in self.difficulties:
            raise UserError(f"{self.name} has no difficulty {difficulty}; it has 0")
        if index < 0:
            raise UserError(f"problem {index} does not exist; problems are counted from 0")
        rows = self._rows()
        if index >= len(rows[split]):
            had = ", ".join(f"{len(part)} of the split {name}" for name, part in rows.items())
            raise UserError(f"{self.path} has no {split} problem {index}, only {had}; ask for fewer, or add rows")
        question, answer, facts = rows[split][index]
        return Problem(self.name, split, difficulty, index, question, answer, facts)

    def judge(self, problem: Problem, answer: str) -> Verdict:
        """See `Task.judge`."""
        if len(answer) > LONGEST_ANSWER:
            return Verdict(False, parsed=False, reason=f"more than {LONGEST_ANSWER} characters")
        if self.match == "exact":
            right = answer.split() == problem.answer.split()
            return Verdict(right, reason="" if right else "it is another text")
        try:
            given, wanted = read_number(answer), read_number(problem.answer)
        except Rejected as error:
            return Verdict(False, parsed=False, reason=str(error))
        return Verdict(True) if given == wanted else Verdict(False, reason=f"{shown(given)} is not {shown(wanted)}")

    def mistake(self, problem: Problem, random: np.random.Generator) -> str:
        """The answer to another row.

        Raises:
            UserError: all rows are answered alike.
        """
        answers = {answer: None for part in self._rows().values() for _, answer, _ in part}
        wrong = [answer for answer in answers if not self.judge(problem, answer).right]
        if not wrong:
            raise UserError(f"{self.path} has no wrong answers to hint at: all of its rows are answered alike")
        return wrong[int(random.integers(len(wrong)))]

    def _rows(self) -> Mapping[Split, Sequence[_Row]]:
        if not self.path:
            raise UserError("the task rows needs a file of questions and answers; name it: rows:path=mine.jsonl")
        try:
            state = Path(self.path).stat()
        except OSError as error:
            raise FileError(f"cannot read {self.path}: {error.strerror or error}") from error
        return _read(self.path, self.match, (state.st_mtime_ns, state.st_size))


_Row = tuple[str, str, dict[str, Any]]
"""Question, answer and facts."""


def read_number(text: str) -> Fraction:
    """The value of a number: whole, decimal or a fraction, with commas between thousands or a dollar sign if wanted.

    Raises:
        Rejected: it is none, or too long.
    """
    text = text.strip() if len(text) <= 2 * LONGEST_NUMBER else text
    if len(text) > LONGEST_NUMBER:
        raise Rejected(f"more than {LONGEST_NUMBER} characters")
    found = NUMBER.fullmatch(text)
    if found is None or (found[3] and not int(found[3])):
        raise Rejected("no number")
    value = Fraction(found[2].replace(",", "")) / int(found[3] or 1)
    return -value if found[1] == "-" else value


@lru_cache(8)
def _read(path: str, match: str, state: tuple[int, int]) -> Mapping[Split, Sequence[_Row]]:
    """The rows of a file by split; ``state`` tells whether the file has changed.

    Raises:
        FileError: it cannot be read.
        UserError: it has no rows, or a line is none; the message names the line.
    """
    found = read_lines(path, lambda row, place: _row(row, match), "problem")
    if not found:
        raise UserError(f"{path} is empty; write one JSON object a line, with a question and an answer")
    names = {name: None for _, _, facts in found for name in facts}
    rows: dict[Split, list[_Row]] = {split: [] for split in get_args(Split)}
    for question, answer, facts in found:
        # What any row has, all have: rewards are given whole columns.
        rows[split_of(["rows", question])].append((question, answer, dict.fromkeys(names) | facts))
    return rows


def _row(row: Mapping[str, Any], match: str) -> _Row:
    called = next((name for name in QUESTIONS if name in row), None)
    if called is None or "answer" not in row:
        lacking = "answer" if called else " or ".join(QUESTIONS)
        raise UserError(f"it has no field {lacking}, only {', '.join(row) or 'none'}; give it question and answer")
    question, answer = row[called], row["answer"]
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = json.dumps(answer)
    for name, value in ((called, question), ("answer", answer)):
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"its {name} is {json.dumps(value)[:50]}; write a text that is not empty")
    if match == "number":
        try:
            read_number(answer)
        except Rejected as error:
            raise UserError(
                f"its answer {answer[:50]!r} is not read as a number ({error}); take match=exact"
            ) from error
    return question.strip(), answer.strip(), {name: row[name] for name in row if name not in (called, "answer")}
