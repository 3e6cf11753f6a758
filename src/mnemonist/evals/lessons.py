"""Training on tasks: which problems a step reads, what their answers cost, how tasks take turns, what is held out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from mnemonist.data import IGNORED
from mnemonist.evals.problems import Task, draw, draw_each
from mnemonist.evals.regression import Regression
from mnemonist.training import HeldOut, HeldOutConfig, LossSum, TrainingConfig
from mnemonist.training.gradients import BatchOf, LossOf
from mnemonist.training.language import STEPS_HELD_OUT

Rows = dict[str, torch.Tensor]
Curriculum = tuple[BatchOf, LossOf]
"""``batch_of`` and ``loss_of`` for `mnemonist.training.train`."""


def take_turns(parts: Sequence[Curriculum]) -> Curriculum:
    """Several as one: step 0 is the first step of the first, step 1 that of the second, and so on, round and round.

    A part that has several turns in a round goes on at each where it was.

    Raises:
        ValueError: there is none.
    """
    if not parts:
        raise ValueError("There is nothing to take turns; give at least one part.")

    def batch_of(step: int, micro: int, rank: int, world: int) -> tuple[int, Any]:
        round_, turn = divmod(step, len(parts))
        own = round_ * parts.count(parts[turn]) + parts[:turn].count(parts[turn])
        return turn, parts[turn][0](own, micro, rank, world)

    def loss_of(model: nn.Module, batch: tuple[int, Any]) -> LossSum | Iterator[LossSum]:
        turn, rows = batch
        return parts[turn][1](model, rows)

    return batch_of, loss_of


def curriculum(task: Task | Regression, config: TrainingConfig) -> Curriculum:
    """The problems of a task's lessons, and the cost of their answers."""
    if isinstance(task, Regression):
        return task.batches(config), task.loss
    return lesson_batches(task, config), answer_loss


def lesson_batches(task: Task, config: TrainingConfig) -> BatchOf:
    """``batch_of`` for `mnemonist.training.train`: problems of the task's lessons, a pure function of the step.

    Each micro-batch has problems of one lesson, so that they are equally long; lessons take turns, in an order that is
    drawn anew for every round of them. `TrainingConfig.row_length` has no say.
    """
    lessons = list(task.lessons)

    def batch_of(step: int, micro: int, rank: int, world: int) -> Rows:
        part = step * config.accumulation + micro
        round_, place = divmod(part, len(lessons))
        order = torch.randperm(len(lessons), generator=torch.Generator().manual_seed(config.seed + 7919 * round_))
        rows = config.batch_size // (config.accumulation * world)
        first = (part * world + rank) * rows
        problems = draw(task, lessons[int(order[place])], rows, config.seed, "train", first)
        return {"tokens": torch.from_numpy(problems.tokens), "targets": torch.from_numpy(problems.targets)}

    return batch_of


def answer_loss(model: nn.Module, rows: Rows) -> LossSum:
    """``loss_of`` for `mnemonist.training.train`: cross entropy in nats, summed over the tokens that are asked for.

    Scores are computed for these alone: of a long problem they are few, and a vocabulary may be large.
    """
    asked = rows["targets"] != IGNORED
    logits = model(rows["tokens"], positions=asked).logits
    loss = F.cross_entropy(logits.float(), rows["targets"][asked], reduction="sum")
    return LossSum(loss, int(asked.sum()), asked.numel())


def held_out_problems(
    task: Task | Regression, config: TrainingConfig, held_out: HeldOutConfig, name: str = ""
) -> HeldOut:
    """``held_out`` for `mnemonist.training.train`: problems of the task's lessons, from a stream of their own.

    All lessons are asked, as often as they are taught, the first ones first. Problems that a task has few of, such as
    short strings, may be drawn for training too.

    Args:
        task: what is learned.
        config: of the run.
        held_out: when, how many and with which seed; see `HeldOutConfig`.
        name: under which they are told; the task's own if it is empty.
    """
    size = config.batch_size // config.accumulation
    batches = -(-(held_out.rows or STEPS_HELD_OUT * config.batch_size) // size)

    def batch_of(number: int, rank: int, world: int) -> Rows:
        rows = size // world
        first = number * size + rank * rows
        if isinstance(task, Regression):
            return task.batch(rows, held_out.seed, "held-out", first)
        lessons = [task.lessons[n * len(task.lessons) // (batches * size)] for n in range(first, first + rows)]
        problems = draw_each(task, lessons, held_out.seed, "held-out", first)
        return {"tokens": torch.from_numpy(problems.tokens), "targets": torch.from_numpy(problems.targets)}

    loss_of: LossOf = task.loss if isinstance(task, Regression) else partial(answer_scores, metric=task.metric)
    return HeldOut(batch_of, batches, held_out.every, loss_of=loss_of, name=name or task.name)


def answer_scores(model: nn.Module, rows: Rows, metric: Literal["token", "problem"]) -> LossSum:
    """As `answer_loss`, with the answers that are right: of each problem the share of its tokens, or all or nothing.

    Their mean is the accuracy that `mnemonist eval` tells: the likeliest token at every place, after the right ones.
    """
    asked = rows["targets"] != IGNORED
    logits, answers = model(rows["tokens"], positions=asked).logits.float(), rows["targets"][asked]
    found = torch.zeros_like(asked).masked_scatter(asked, logits.argmax(-1) == answers)
    shares = found.sum(1) / asked.sum(1)
    right = shares.sum() if metric == "token" else (shares == 1).sum()
    return LossSum(
        F.cross_entropy(logits, answers, reduction="sum"), int(asked.sum()), asked.numel(), len(asked), right
    )
