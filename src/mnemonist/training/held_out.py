"""What a model costs on text or problems that it is not trained on: asked at intervals, on the same rows every time.

The sums of all processes are divided once, as those of a step are, so the figure does not depend on how the rows are
shared among them. Every process reads as many batches, since a model in parts is read by all of them together.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn

from mnemonist.errors import UserError
from mnemonist.evaluating import evaluating
from mnemonist.training.gradients import LossOf, loss_parts
from mnemonist.training.sharding import reshard


@dataclass(frozen=True)
class HeldOut:
    """Rows that are not trained on, and when they are read."""

    batch_of: Callable[[int, int, int], Any]
    """`(number, rank, world) -> batch`, pure: what process `rank` reads of batch `number`, for the run's `loss_of`."""
    batches: int
    """How many there are; each is as large as a micro-batch of training."""
    every: int
    """Steps between readings; the last step of a run is always followed by one."""
    bytes_per_target: float = 1.0
    """Bytes of text that a target stands for."""
    loss_of: LossOf | None = None
    """What the rows cost; None takes the `loss_of` of the run."""
    name: str = ""
    """Of problems, whose loss and accuracy are told under it. Text has none, and is told in bits per byte."""

    def due(self, step: int, steps: int) -> bool:
        """Whether the rows are read when so many of `steps` are done."""
        return step % self.every == 0 or step == steps

    def readings(self, done: int, steps: int) -> int:
        """How often they are read from the step after `done` to the last."""
        return sum(self.due(step, steps) for step in range(done + 1, steps + 1))


@dataclass(frozen=True)
class Reading:
    """What a model made of the rows."""

    loss: float
    """Nats per target, or in the unit of the run."""
    bits_per_byte: float
    accuracy: float | None
    """The share of answers that are right; None where none is asked for."""


def read_held_out(accelerator: Accelerator, model: nn.Module, loss_of: LossOf, held_out: HeldOut) -> Reading:
    """Read the rows; every process must come here, and all get the same.

    The model is as before, its mode included, and no random number is drawn for it.

    Args:
        accelerator: where to compute.
        model: as Accelerate has wrapped it, and so at the precision of training.
        loss_of: that of the run; the rows may have another.

    Raises:
        NotFinite: of what a memory is given.
        UserError: the rows have no targets.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    totals = torch.zeros(4, dtype=torch.float64, device=accelerator.device)
    with evaluating(model), torch.no_grad():
        for number in range(held_out.batches):
            batch = send_to_device(held_out.batch_of(number, rank, world), accelerator.device)
            for part in loss_parts(held_out.loss_of or loss_of, model, batch):
                totals[0] += part.loss
                totals[1] += part.targets
                totals[2] += part.answers
                totals[3] += part.right
    reshard(model)
    nats, targets, answers, right = accelerator.reduce(totals, "sum").tolist()
    if not targets:
        raise UserError("the held-out text has no targets; give more of it")
    loss = nats / targets
    return Reading(loss, loss / math.log(2) / held_out.bytes_per_target, right / answers if answers else None)
