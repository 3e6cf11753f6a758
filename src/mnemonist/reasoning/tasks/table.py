"""The table of tasks: what there is to reason about, by name, with changes if wanted: ``countdown:largest=50``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from mnemonist.choices import parse_choices
from mnemonist.errors import UserError, nearest
from mnemonist.reasoning.tasks.task import Task

HINTED = "hinted+"
"""Before the name of a task: its problems with false hints; see `hint_flip`."""


@dataclass(frozen=True)
class TaskInfo:
    """One row of `TASKS`."""

    summary: str
    source: str
    module: str
    """In `mnemonist.reasoning.tasks`."""
    class_name: str
    steps: bool = True
    """Whether it is a `StepTask`: its solutions are lines that can be checked one by one."""


TASKS: Mapping[str, TaskInfo] = {
    "countdown": TaskInfo(
        "make a number of others, each used at most once",
        "as in Stream of Search (Gandhi et al. 2024, arXiv 2404.03683) and TinyZero",
        "countdown",
        "Countdown",
    ),
    "game24": TaskInfo(
        "make 24 of four cards",
        "as in Tree of Thoughts (Yao et al. 2023, arXiv 2305.10601)",
        "game24",
        "Game24",
    ),
    "chain-arithmetic": TaskInfo(
        "sums and differences of many terms, from left to right",
        "ours, after chain_sum of reasoning-gym (arXiv 2505.24760)",
        "chain_arithmetic",
        "ChainArithmetic",
    ),
    "long-multiplication": TaskInfo(
        "products by one partial product a digit",
        "ours",
        "long_multiplication",
        "LongMultiplication",
    ),
    "knights": TaskInfo(
        "who says what is true, and who what is false",
        "puzzles after Smullyan 1978",
        "knights",
        "Knights",
    ),
    "diagnosis": TaskInfo(
        "findings and a rule book of made-up words: what does the patient have?",
        "ours; stands in for medical reasoning (Huang et al. 2025, arXiv 2501.06458)",
        "diagnosis",
        "Diagnosis",
    ),
    "reasoning-gym": TaskInfo(
        "a family of the package reasoning-gym, judged here",
        "Stojanovski et al. 2025 (arXiv 2505.24760)",
        "reasoning_gym",
        "ReasoningGym",
        steps=False,
    ),
    "rows": TaskInfo(
        "questions and answers of one's own, in a file: rows:path=mine.jsonl",
        "yours; answers are compared, as words or as numbers (match=number)",
        "row_file",
        "RowFile",
        steps=False,
    ),
}
"""Everything that can be reasoned about; ``hinted+`` before a name gives its problems false hints."""


def find_task(spec: str) -> TaskInfo:
    """The row of `TASKS` that a name begins with, whatever changes stand behind it or prefix before it.

    Raises:
        UserError: there is none; the message suggests the nearest one.
    """
    name = spec.removeprefix(HINTED).partition(":")[0]
    if name not in TASKS:
        raise UserError(f"there is no task {name!r}{nearest(name, TASKS)}; known tasks: {', '.join(TASKS)}")
    return TASKS[name]


def build_task(spec: str) -> Task:
    """A task by name, with changes if wanted; `Problem.task` is such a name, and `Task.name` gives it back.

    Raises:
        ValueError: no task or field has this name (the message suggests the nearest one), or a value does not fit.
    """
    info = find_task(spec)
    if spec.startswith(HINTED):
        from mnemonist.reasoning.tasks.hint_flip import Hinted

        return Hinted(build_task(spec.removeprefix(HINTED)))
    cls: Any = getattr(import_module(f"mnemonist.reasoning.tasks.{info.module}"), info.class_name)
    name, _, changes = spec.partition(":")
    task: Task = cls(**(parse_choices(cls, changes, f"the task {name}") if changes else {}))
    return task
