"""Training on tasks: which problems a step reads, what their answers cost, and how tasks take turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mnemonist.data import IGNORED
from mnemonist.evals.problems import Task, draw
from mnemonist.evals.regression import Regression
from mnemonist.training import LossSum, TrainingConfig
from mnemonist.training.gradients import BatchOf, LossOf

Rows = dict[str, torch.Tensor]
Curriculum = tuple[BatchOf, LossOf]
"""``batch_of`` and ``loss_of`` for `mnemonist.training.train`."""


def take_turns(parts: Sequence[Curriculum]) -> Curriculum:
    """Several as one: step 0 is the first step of the first, step 1 that of the second, and so on, round and round.

    Raises:
        ValueError: there is none.
    """
    if not parts:
        raise ValueError("There is nothing to take turns; give at least one part.")

    def batch_of(step: int, micro: int, rank: int, world: int) -> tuple[int, Any]:
        round_, turn = divmod(step, len(parts))
        return turn, parts[turn][0](round_, micro, rank, world)

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
