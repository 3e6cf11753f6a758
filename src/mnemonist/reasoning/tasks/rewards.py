"""Rewards in TRL's form: ``reward(prompts, completions, **columns)`` gives a number for each completion, or None.

`accuracy_reward` pays for a right answer, `format_reward` for a text of the right form; there is no partial credit to
be farmed. Rows come from `prompt_row`, whose column ``problem`` says what was asked:

    GRPOTrainer(..., reward_funcs=[accuracy_reward(None, format), format_reward(format)], train_dataset=...)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mnemonist.errors import UserError
from mnemonist.reasoning.formats import Format
from mnemonist.reasoning.tasks.rows import opening, problem_of
from mnemonist.reasoning.tasks.table import build_task
from mnemonist.reasoning.tasks.task import Task

Reward = Callable[..., list[float | None]]
"""What TRL calls, with keyword arguments: see the top of this file."""


def accuracy_reward(task: Task | None, format: Format) -> Reward:
    """1 for a right answer, 0 for a wrong or missing one, None for rows that have no problem.

    Args:
        task: judges; None takes for each problem the task that it names, so that one reward serves a mixture.
        format: how completions are written.
    """
    return _Accuracy(task, format)


def format_reward(format: Format, worth: float = 1.0) -> Reward:
    """``worth`` for a completion that is a closed thought, then a closed answer, and nothing else; 0 for any other."""
    return _WellFormed(format, worth)


# Values rather than closures, so that a run that is resumed can tell whether it has the same rewards.


@dataclass(frozen=True)
class _Accuracy:
    task: Task | None
    format: Format
    __name__ = "accuracy"  # by which TRL logs it

    def __call__(
        self, prompts: Sequence[Any] = (), completions: Sequence[Any] = (), problem: Any = None, **columns: Any
    ) -> list[float | None]:
        if problem is None:
            raise UserError("there is no column 'problem' to judge by; make the rows with prompt_row")
        rewards: list[float | None] = []
        for completion, told in zip(completions, problem, strict=True):
            if told is None:
                rewards.append(None)
                continue
            asked = problem_of({"problem": told})
            answer = self.format.parse(said(completion, self.format)).answer
            judge = self.task or _task(asked.task)
            rewards.append(float(answer is not None and judge.judge(asked, answer).right))
        return rewards


@dataclass(frozen=True)
class _WellFormed:
    format: Format
    worth: float
    __name__ = "well_formed"

    def __call__(
        self, prompts: Sequence[Any] = (), completions: Sequence[Any] = (), **columns: Any
    ) -> list[float | None]:
        return [self.worth * self.format.parse(said(completion, self.format)).well_formed for completion in completions]


def said(completion: Any, format: Format) -> str:
    """The text of a completion, which is a text or a list of messages; of these the assistant's last counts."""
    if isinstance(completion, str):
        return completion
    contents = [message["content"] for message in completion if message.get("role") == "assistant"]
    return str(contents[-1]).removeprefix(opening(format)) if contents else ""


@lru_cache(64)
def _task(name: str) -> Task:
    return build_task(name)
