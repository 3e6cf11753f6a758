"""Weighing: what an attempt is worth, and attempts with their worth as files.

An attempt is taken apart by its format and judged by the task of its problem. Its reward is 1 if it is right, or
whatever functions say that have TRL's signature (see `tasks.rewards`). The rewards of several are added; None means
that a function has no opinion.

A file of attempts has one JSON object a line: `prompt` and `completion` as TRL's data sets name them, then the rest.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mnemonist.errors import UserError
from mnemonist.files import write_atomically
from mnemonist.reasoning.attempts import Attempt
from mnemonist.reasoning.formats import Format
from mnemonist.reasoning.tasks.rewards import Reward, ask, fact_columns
from mnemonist.reasoning.tasks.rows import prompt_row
from mnemonist.reasoning.tasks.task import Problem, Task, Verdict


@dataclass(frozen=True)
class Judged:
    """An attempt at a problem, weighed."""

    problem: Problem
    attempt: Attempt
    answer: str | None
    """What it gave for an answer; None if there was none to be found."""
    right: bool
    parsed: bool
    """Whether an answer was found and could be read."""
    well_formed: bool
    """Whether it is a closed thought, then a closed answer, and nothing else."""
    thought: bool
    """Whether there was any step before the answer."""
    reward: float

    def to_json(self) -> dict[str, Any]:
        """As JSON values; `from_json` reads them back."""
        attempt = self.attempt.to_json()
        return {
            "prompt": attempt.pop("prompt"),
            "completion": attempt.pop("text"),
            "reward": self.reward,
            "right": self.right,
            "answer": self.answer,
            "parsed": self.parsed,
            "well_formed": self.well_formed,
            "thought": self.thought,
            "problem": self.problem.to_json(),
            **attempt,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Judged:
        """What `to_json` gave.

        Raises:
            UserError: it is no weighed attempt of this version.
        """
        own = ("answer", "right", "parsed", "well_formed", "thought", "reward")
        try:
            attempt = {name: value for name, value in values.items() if name not in (*own, "completion", "problem")}
            return cls(
                Problem.from_json(values["problem"]),
                Attempt.from_json({**attempt, "text": values["completion"]}),
                **{name: values[name] for name in own},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"this is no attempt of this version ({error!r})") from error


def weigh(
    problems: Sequence[Problem],
    attempts: Sequence[Attempt],
    task: Task,
    format: Format,
    rewards: Sequence[Reward] = (),
) -> list[Judged]:
    """Judge each attempt at its problem; without reward functions, the reward is 1 for a right answer and 0 otherwise.

    Raises:
        UserError: a reward function needs what there is not, gives another number of rewards than there are attempts,
            or one that is not finite.
    """
    judged = [_judge(*pair, task, format) for pair in zip(problems, attempts, strict=True)]
    if not rewards:
        return judged
    rows = [prompt_row(attempt.prompt, problem) for problem, attempt in zip(problems, attempts, strict=True)]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"} if rows else {}
    columns |= fact_columns(problems)
    columns["completion_ids"] = [list(attempt.ids) for attempt in attempts]
    if format.message is None:
        columns |= {"prompts": [one.prompt for one in attempts], "completions": [one.text for one in attempts]}
    else:
        columns["prompts"] = [[{"role": "user", "content": problem.question}] for problem in problems]
        columns["completions"] = [
            [{"role": "assistant", "content": format.opening + attempt.text}] for attempt in attempts
        ]
    sums = [0.0] * len(attempts)
    for given in ask(rewards, columns):
        sums = [total + float(value or 0.0) for total, value in zip(sums, given, strict=True)]
    if not all(map(math.isfinite, sums)):
        raise UserError("a reward is not finite; a reward function that has no opinion gives None")
    return [replace(one, reward=reward) for one, reward in zip(judged, sums, strict=True)]


def _judge(problem: Problem, attempt: Attempt, task: Task, format: Format) -> Judged:
    """Take an attempt apart; without an answer it is wrong."""
    parsed = format.parse(attempt.text)
    given = parsed.answer is not None
    verdict = task.judge(problem, parsed.answer) if parsed.answer is not None else Verdict(False, parsed=False)
    return Judged(
        problem,
        attempt,
        parsed.answer,
        right=verdict.right,
        parsed=given and verdict.parsed,
        well_formed=parsed.well_formed,
        thought=bool(parsed.steps),
        reward=float(verdict.right),
    )


def save_judged(path: str | os.PathLike[str], judged: Sequence[Judged]) -> None:
    """Write a file of attempts, whole or not at all.

    Raises:
        FileError: it cannot be written.
    """
    write_atomically(path, "".join(json.dumps(one.to_json(), ensure_ascii=False) + "\n" for one in judged))


def load_judged(path: str | os.PathLike[str]) -> list[Judged]:
    """Read a file of attempts.

    Raises:
        UserError: it cannot be read, or a line is no attempt; the message names the line.
    """
    judged = []
    try:
        # Not by splitlines, which takes other characters for the end of a line too.
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete it to sample again") from error
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            judged.append(Judged.from_json(json.loads(line)))
        except (UserError, ValueError, TypeError) as error:
            raise UserError(f"{path} is damaged at line {number} ({error}); delete it to sample again") from error
    return judged
