"""Suites: what a model can be evaluated on, by name.

A suite is a list of *steps*, each a few settings that are measured in one go. Every row is saved as soon as it is
known, so that an interrupted evaluation loses none. Everything is made offline and follows from the suite's fields,
which a user changes in its name: ``mqar:vocabulary=256,longest=256``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from mnemonist.choices import parse_choices
from mnemonist.data import ByteTokenizer, Tokenizer
from mnemonist.errors import UserError, nearest
from mnemonist.evals.problems import Setting, Task, draw
from mnemonist.evals.results import Row
from mnemonist.evals.scoring import Progress, score
from mnemonist.models.modeling import LanguageModel
from mnemonist.reasoning.tasks.table import HINTED
from mnemonist.reasoning.tasks.table import TASKS as REASONING

if TYPE_CHECKING:
    from mnemonist.evals.regression import Regression


class Suite(Protocol):
    """One evaluation."""

    @property
    def name(self) -> str:
        """What the command line calls it."""
        ...

    @property
    def measure(self) -> str:
        """What its rows are means of."""
        ...

    @property
    def x(self) -> str:
        """The name in its settings that a plot has on its horizontal axis."""
        ...

    @property
    def vocab_size(self) -> int:
        """Tokens are from 0 to below this."""
        ...

    @property
    def steps(self) -> Sequence[Sequence[Setting]]:
        """Settings, by what is measured in one go."""
        ...

    def identity(self) -> dict[str, Any]:
        """What its rows follow from, besides the model, as JSON values."""
        ...

    def references(self) -> Mapping[str, Sequence[Row]]:
        """What others reach who are no models: chance, or the best there is."""
        ...

    def run(self, model: LanguageModel, settings: Sequence[Setting], progress: Progress) -> Iterator[Row]:
        """Rows of some settings of one step, in their order, each as soon as it is known."""
        ...


@dataclass(frozen=True)
class TaskSuite:
    """The problems of a task, over its grid."""

    task: Task
    count: int = 200
    """Problems of each setting."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or self.seed < 0:
            raise UserError(
                f"count is {self.count} and seed {self.seed}; ask for at least 1 problem, with a seed from 0"
            )

    @property
    def name(self) -> str:
        """Of the task."""
        return self.task.name

    @property
    def measure(self) -> str:
        """What is counted."""
        return "accuracy" if self.task.metric == "token" else "problems solved"

    @property
    def x(self) -> str:
        """The setting that changes most."""
        grid = self.task.grid
        return max(grid[0], key=lambda name: len({setting[name] for setting in grid}))

    @property
    def vocab_size(self) -> int:
        """Of the task."""
        return self.task.vocab_size

    @property
    def steps(self) -> list[list[Setting]]:
        """Each setting by itself."""
        return [[setting] for setting in self.task.grid]

    def identity(self) -> dict[str, Any]:
        """The task's fields, how many problems, and their seed."""
        return {"suite": self.name, "task": fields_of(self.task), "count": self.count, "seed": self.seed}

    def references(self) -> dict[str, list[Row]]:
        """Chance, if it is worth speaking of."""
        chance = self.task.chance
        return {"chance": [Row(setting, chance, chance, chance, 0) for setting in self.task.grid]} if chance else {}

    def run(self, model: LanguageModel, settings: Sequence[Setting], progress: Progress) -> Iterator[Row]:
        """See `Suite.run`."""
        for setting in settings:
            scores = score(model, draw(self.task, setting, self.count, self.seed), progress)
            values = scores.problems if self.task.metric == "problem" else scores.tokens
            bits = float(scores.bits.sum() / scores.asked.sum())
            yield Row.of_shares(setting, values, bits_per_token=bits, token_accuracy=float(np.mean(scores.tokens)))


@dataclass(frozen=True)
class SuiteInfo:
    """One row of `SUITES`."""

    summary: str
    source: str
    module: str
    """Where in `mnemonist.evals`."""
    class_name: str
    kind: Literal["task", "suite", "both"] = "task"
    """Whether the class is a `Task`, or a `Suite` by itself; or a suite that a model can be trained on."""

    @property
    def trains(self) -> bool:
        """Whether a model can be trained on it."""
        return self.kind != "suite"


SUITES: Mapping[str, SuiteInfo] = {
    "mqar": SuiteInfo(
        "pairs of keys and values; then keys again, and their values are asked for",
        "Arora et al. 2023 (arXiv 2312.04927)",
        "associative_recall",
        "AssociativeRecall",
    ),
    "positions": SuiteInfo(
        "bits per byte by position in long texts: who makes use of what it has read",
        "after Titans (arXiv 2501.00663), figure 7",
        "positions",
        "Positions",
        kind="suite",
    ),
    "niah": SuiteInfo(
        "a secret in much text, asked for at the end",
        "RULER (Hsieh et al. 2024, arXiv 2404.06654)",
        "needles",
        "NeedleInHaystack",
    ),
    "state-tracking": SuiteInfo(
        "the running product in a group: parity, Z60, S3, S4, A5, S5",
        "Merrill et al. 2024 (arXiv 2404.08819)",
        "state_tracking",
        "StateTracking",
    ),
    "copy": SuiteInfo(
        "strings to copy, or to look n-grams up in",
        "Jelassi et al. 2024 (arXiv 2402.01032)",
        "copying",
        "Copying",
    ),
    "phonebook": SuiteInfo(
        "a phone book, then a name",
        "Jelassi et al. 2024 (arXiv 2402.01032), section 4",
        "phonebook",
        "Phonebook",
    ),
    "planted": SuiteInfo(
        "facts planted in source code, asked for long afterwards",
        "ours, after RULER (arXiv 2404.06654)",
        "planted",
        "Planted",
    ),
    "babilong-like": SuiteInfo(
        "facts about people and things scattered over a text, and a question about them",
        "after BABILong (Kuratov et al. 2024, arXiv 2406.10149)",
        "babilong",
        "Babilong",
    ),
    "regression": SuiteInfo(
        "vectors and their products with a hidden one: against the best online learners",
        "Garg et al. 2022 (arXiv 2208.01066)",
        "regression",
        "Regression",
        kind="both",
    ),
    "streaming": SuiteInfo(
        "one secret, asked for again and again while reading on, to any distance",
        "ours, of RULER's S-NIAH-1",
        "streaming",
        "Streaming",
        kind="suite",
    ),
}
"""Everything that `mnemonist eval` knows."""


def build_task(spec: str, tokenizer: Tokenizer | None = None) -> Task | Regression:
    """What a model can be trained on, by name, with changes if wanted: ``"mqar:vocabulary=256"``.

    Args:
        spec: name and changes.
        tokenizer: of tasks made of text; None takes bytes.

    Raises:
        ValueError: no task or field has this name (the message suggests the nearest one), or a value does not fit.
    """
    info = find_suite(spec)
    if not info.trains:
        tasks = [name for name, row in SUITES.items() if row.trains]
        raise UserError(f"{spec.partition(':')[0]} has no problems to learn from; tasks: {', '.join(tasks)}")
    return _build(info, spec, tokenizer)


def build_suite(spec: str, tokenizer: Tokenizer | None = None, count: int | None = None, seed: int = 0) -> Suite:
    """A suite by name, with changes if wanted.

    Args:
        spec: name and changes.
        tokenizer: of suites made of text; None takes bytes.
        count: problems of each setting, or texts; None takes as many as the suite thinks right.
        seed: of what is drawn.

    Raises:
        ValueError: as `build_task`; or count or seed is out of range.
    """
    info = find_suite(spec)
    made = _build(info, spec, tokenizer)
    given = {"seed": seed} | ({} if count is None else {"count": count})
    return TaskSuite(made, **given) if info.kind == "task" else dataclasses.replace(made, **given)


def find_suite(spec: str) -> SuiteInfo:
    """The row of `SUITES` that a name with changes begins with.

    Raises:
        UserError: there is none; the message suggests the nearest one, or the command for tasks of reasoning.
    """
    name = spec.partition(":")[0]
    if name not in SUITES:
        if name.removeprefix(HINTED) in REASONING:
            raise UserError(
                f"{name} is a task to reason about and no suite; ask it with `mnemonist reason solve {spec}`"
            )
        raise UserError(f"there is no suite {name!r}{nearest(name, SUITES)}; known suites: {', '.join(SUITES)}")
    return SUITES[name]


def reads_text(spec: str) -> bool:
    """Whether a suite is made of text, so that a model's own tokenizer says what its tokens are.

    Raises:
        UserError: there is no such suite.
    """
    return "tokenizer" in _field_names(_class(find_suite(spec)))


def fields_of(made: Any) -> dict[str, Any]:
    """The fields of a task or suite as JSON values; a tokenizer by its fingerprint."""
    values = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    return {name: getattr(value, "fingerprint", value) for name, value in values.items()}


def changes_of(suite: Suite) -> dict[str, Any]:
    """What was asked for besides a suite's name: fields of it and of its task that are not as they come.

    A tokenizer is no such thing: it is that of the model.
    """
    made: list[Any] = [suite.task, suite] if isinstance(suite, TaskSuite) else [suite]
    fields = [(each, field) for each in made for field in dataclasses.fields(each)]
    values = {field.name: (getattr(each, field.name), field.default) for each, field in fields}
    return {
        name: value
        for name, (value, default) in values.items()
        if name not in ("task", "tokenizer") and value != default
    }


def _class(info: SuiteInfo) -> Any:
    return getattr(import_module(f"mnemonist.evals.{info.module}"), info.class_name)


def _field_names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _build(info: SuiteInfo, spec: str, tokenizer: Tokenizer | None) -> Any:
    cls = _class(info)
    name, _, changes = spec.partition(":")
    names = _field_names(cls)
    free = tuple(each for each in names if each not in ("tokenizer", "count", "seed"))
    values = parse_choices(cls, changes, f"the suite {name}", free) if changes else {}
    if "tokenizer" in names:
        values["tokenizer"] = tokenizer or ByteTokenizer()
    return cls(**values)
