"""Step labels: how good a path is after each of its steps, from 0 (hopeless) to 1, for a judge to learn from.

    gold       the truth, where a task knows it (`StepTask.label`)
    rollouts   the policy finishes the path several times; *soft* is how often it comes out right, *hard* whether it
               ever does (Math-Shepherd, arXiv 2312.08935, section 3.3)

Rollouts cost a policy's tokens and are blind to what the policy cannot do; gold labels say how blind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnemonist.reasoning.attempts import Decoding, Sampler
from mnemonist.reasoning.formats import Format
from mnemonist.reasoning.ledger import Ledger
from mnemonist.reasoning.shuffling import mix
from mnemonist.reasoning.tasks.rows import stepwise_row
from mnemonist.reasoning.tasks.task import Problem, StepTask, Task


@dataclass(frozen=True)
class Labelled:
    """A path, and of each step how good the path is up to there, from 0 (hopeless) to 1."""

    problem: Problem
    steps: tuple[str, ...]
    labels: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.steps or len(self.steps) != len(self.labels) or not all(0 <= label <= 1 for label in self.labels):
            raise ValueError(f"Steps {self.steps} have labels {self.labels}; each needs one from 0 to 1.")

    def to_row(self, format: Format) -> dict[str, Any]:
        """As TRL trains process reward models on it; labels above a half are right."""
        return stepwise_row(format.prompt(self.problem.question), self.steps, [label > 0.5 for label in self.labels])


def gold_labels(task: StepTask, problem: Problem, steps: Sequence[str]) -> Labelled:
    """The truth about each step: 1 while it is allowed, true, and a right answer can still be reached."""
    labels = [task.label(problem, steps[: n + 1]) for n in range(len(steps))]
    return Labelled(problem, tuple(steps), tuple(float(label.valid and label.hopeful) for label in labels))


def text_labels(task: StepTask, format: Format, problem: Problem, text: str) -> Labelled | None:
    """The truth about a text, piece by piece as a search has it judged: lines are steps, and the end is right or not.

    A judge must learn from all that it will be asked about: false steps, and answers. None for a text without a piece.
    """
    steps, end = format.pieces(text)
    labels = gold_labels(task, problem, steps).labels if steps else ()
    if end is not None:
        answer = format.parse(text).answer
        right = answer is not None and task.judge(problem, answer).right
        steps, labels = [*steps, end], (*labels, float(right))
    return Labelled(problem, tuple(steps), labels) if steps else None


def attempt_labels(
    sampler: Sampler,
    task: StepTask,
    format: Format,
    problems: Sequence[Problem],
    decoding: Decoding,
    *,
    count: int = 4,
    ledger: Ledger | None = None,
) -> list[Labelled]:
    """The truth about a policy's own attempts, which go wrong where a policy does.

    Args:
        sampler: the policy; what it reads and writes is charged to the ledger.
        task: knows the truth.
        format: how problems are put.
        problems: each attempted.
        decoding: how it draws; a temperature above 0, or all attempts at a problem would be the same.
        count: attempts at each problem.
        ledger: whose expense it is.
    """
    asked = [problem for problem in problems for _ in range(count)]
    attempts = sampler.sample([format.prompt(problem.question) for problem in asked], decoding, ledger)
    told = (text_labels(task, format, p, attempt.text) for p, attempt in zip(asked, attempts, strict=True))
    return [one for one in told if one is not None]


def rollout_labels(
    sampler: Sampler,
    task: Task,
    format: Format,
    paths: Sequence[tuple[Problem, Sequence[str]]],
    decoding: Decoding,
    *,
    count: int = 8,
    hard: bool = False,
    ledger: Ledger | None = None,
) -> list[Labelled]:
    """What becomes of each step when the policy goes on from there ``count`` times.

    Args:
        sampler: the policy that finishes paths; what it reads and writes is charged to the ledger.
        task: judges the answers.
        format: how problems are put.
        paths: problems with steps, each without line breaks.
        decoding: how it draws; a temperature above 0, or all would be the same.
        count: completions of each step.
        hard: whether a single right one is enough for a label of 1, instead of their share.
        ledger: whose expense it is.
    """
    places = [(problem, steps[: n + 1]) for problem, steps in paths for n in range(len(steps))]
    begun = ["".join(f"{step}\n" for step in steps) for _, steps in places]
    prompts = [format.prompt(problem.question) + text for (problem, _), text in zip(places, begun, strict=True)]
    attempts = sampler.sample([prompt for prompt in prompts for _ in range(count)], decoding, ledger)
    shares = []
    for n, (problem, _) in enumerate(places):
        answers = [format.parse(begun[n] + one.text).answer for one in attempts[n * count : (n + 1) * count]]
        right = sum(answer is not None and task.judge(problem, answer).right for answer in answers)
        shares.append(float(right > 0) if hard else right / count)
    ends = np.cumsum([0, *(len(steps) for _, steps in paths)])
    return [
        Labelled(problem, tuple(steps), tuple(shares[ends[n] : ends[n + 1]]))
        for n, (problem, steps) in enumerate(paths)
    ]


def path_labels(task: StepTask, format: Format, problems: Sequence[Problem], seed: int) -> list[Labelled]:
    """The truth about a `random_path` of each problem, and about the answer that it comes to, if it comes to one."""
    paths = ((problem, random_path(task, problem, seed)) for problem in problems)
    texts = ((problem, format.write(steps, task.answer_of(problem, steps))) for problem, steps in paths)
    told = (text_labels(task, format, problem, text) for problem, text in texts)
    return [one for one in told if one is not None]


def random_path(task: StepTask, problem: Problem, seed: int, most_steps: int = 32) -> list[str]:
    """A path to learn labels from: some steps of the solution, perhaps none, perhaps all; then any that are allowed."""
    random = np.random.default_rng(mix(seed, problem.id))
    solution = task.solution(problem)
    steps = solution[: random.integers(0, len(solution) + 1)]
    while len(steps) < most_steps and (moves := task.moves(problem, steps)):
        steps = [*steps, moves[random.integers(len(moves))]]
    return steps
