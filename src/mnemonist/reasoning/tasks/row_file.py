"""Problems of one's own: a file of questions with their answers, one JSON object a line.

    {"question": "What is 3 plus 4?", "answer": "7", "solution": "3 + 4 = 7"}

The question may also be called ``prompt``; an answer is a text or a number, and the answer alone, without the way to
it. All other fields become facts of the problem, which rewards are given by their names. Which split a row belongs to
follows from its question, so that it stays there when rows are added, and equal questions never part. A split may have
a file of its own (``rows:train=a.jsonl,test=b.jsonl``); ``path`` is then parted among the others.

Answers are compared: as words, or as numbers. Nothing is executed, and who wants to judge otherwise writes a reward.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, cast, get_args

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
    """The rows of a file, or of several.

    Raises:
        UserError: there is no such match, a path has a comma, or train has a file besides one that is to be parted.
    """

    key: ClassVar[str] = "rows"

    path: str = ""
    """JSON lines with a question and an answer each, parted among the splits that have no file of their own: a tenth
    for validation, a tenth for test, the rest for train."""
    match: str = "exact"
    """How answers are compared: exact (the same words) or number (the same value, however it is written)."""
    train: str = ""
    """Such a file that is the split train as it stands."""
    validation: str = ""
    """Such a file that is the split validation as it stands."""
    test: str = ""
    """Such a file that is the split test as it stands."""

    def __post_init__(self) -> None:
        if self.match not in MATCHES:
            raise UserError(f"match is {self.match!r}; it must be one of {', '.join(MATCHES)}")
        for path in self.files.values():
            if "," in path:
                raise UserError(f"the path {path!r} has a comma, which ends a choice; give the file another name")
        if self.path and self.train:
            raise UserError(
                f"train is {self.train} and path {self.path}, whose rows are mostly for training too; give one of them "
                "(path is parted among the splits that have no file of their own)"
            )

    @property
    def files(self) -> dict[str, str]:
        """Paths that are given, by the choice that names them: ``path``, or a split."""
        return {name: path for name in ("path", *get_args(Split)) if (path := getattr(self, name))}

    @property
    def difficulties(self) -> tuple[int]:
        """One; nobody has said how hard rows are."""
        return (0,)

    def size(self, split: Split) -> int:
        """How many problems a split has.

        Raises:
            UserError: a file cannot be read, a row of it is none, or two files have the same question.
        """
        return len(self._rows()[split])

    def lacking(self, split: Split) -> str:
        """Why a split has no problem, and what to do, for messages."""
        if self.path:
            return f"{self.path} has too few rows to be split: none is of the split {split}; add rows"
        return f"{self.name} has no file for the split {split}; name one with {split}=FILE"

    def problem(self, split: Split, difficulty: int, index: int) -> Problem:
        """See `Task.problem`; those of a split stand in the order of the file.

        Raises:
            UserError: also if a file cannot be read, a row of it is none, or two files have the same question.
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
            raise UserError(f"{self._where} has no {split} problem {index}, only {had}; ask for fewer, or add rows")
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
            raise UserError(f"{self._where} has no wrong answers to hint at: all of its rows are answered alike")
        return wrong[int(random.integers(len(wrong)))]

    @property
    def _where(self) -> str:
        return " with ".join(self.files.values())

    def _rows(self) -> Mapping[Split, Sequence[_Row]]:
        if not self.files:
            raise UserError("the task rows needs a file of questions and answers; name it: rows:path=mine.jsonl")
        return _read(tuple((name, path, _state_of(path)) for name, path in self.files.items()), self.match)


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


def _state_of(path: str) -> tuple[int, int]:
    """Tells whether a file has changed.

    Raises:
        FileError: there is none, or it cannot be looked at.
    """
    try:
        state = Path(path).stat()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    return state.st_mtime_ns, state.st_size


@lru_cache(8)
def _read(files: Sequence[tuple[str, str, tuple[int, int]]], match: str) -> Mapping[Split, Sequence[_Row]]:
    """The rows by split.

    Args:
        files: the choice that names it (``path``, or the split that it is), where it is, and its state.
        match: see `RowFile`.

    Raises:
        FileError: a file cannot be read.
        UserError: it has no rows, a line is none (the message names it), or two splits have the same question.
    """
    rows: dict[Split, list[_Row]] = {split: [] for split in get_args(Split)}
    own = {name for name, _, _ in files}
    whose: dict[str, tuple[Split, str]] = {}
    for name, path, _ in files:
        found = read_lines(path, lambda row, place: _row(row, match), "problem")
        if not found:
            raise UserError(f"{path} is empty; write one JSON object a line, with a question and an answer")
        for row in found:
            split = _split_in(name, row[0], own)
            rows[split].append(row)
            other, there = whose.setdefault(row[0], (split, path))
            if other != split:
                raise UserError(
                    f"the question {row[0][:50]!r} is in {there} for {other} and in {path} for {split}; what is "
                    "learned cannot be a test: leave it out of one of them"
                )
    names = {name: None for part in rows.values() for _, _, facts in part for name in facts}
    # What any row has, all have: rewards are given whole columns.
    return {
        split: [(question, answer, dict.fromkeys(names) | facts) for question, answer, facts in part]
        for split, part in rows.items()
    }


def _split_in(name: str, question: str, own: Collection[str]) -> Split:
    """The split of a row, by the choice that names its file and those splits that have files of their own."""
    if name != "path":
        return cast(Split, name)
    split = split_of(["rows", question])
    return "train" if split in own else split


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
