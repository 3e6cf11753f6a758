"""The gradient of one optimiser step, exact however the step is cut.

The loss of a step is the mean over *all* its targets. Micro-batches and processes may hold different numbers
of them (padding, masked rows), so a mean of means would weigh targets unequally. Instead each part gives
the *sum* of its losses and the number of its targets,

    loss = sum_parts(loss_part) / sum_parts(targets_part)

and the gradient of the sums is divided by the total once, at the end. A step cut into 1, 2 or 8 parts, on
one process or four, thus has the same gradient up to rounding.

Rows that are longer than memory allows are cut along time as well (truncated backpropagation): `loss_of` then gives
one part after the other, and each is differentiated before the next is computed.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn

from mnemonist.errors import UserError
from mnemonist.training.configuration import TrainingConfig
from mnemonist.training.interruption import StopRequest
from mnemonist.training.sharding import own_part, whole

BatchOf = Callable[[int, int, int, int], Any]
"""`batch_of(step, micro, rank, world)`: the rows of one micro-batch, a pure function of its arguments."""

Unit = Literal["nats", "unexplained share"]
"""What a loss over its targets is in: nats, or the share of what was to be explained that was not."""


@dataclass(frozen=True, eq=False)
class LossSum:
    """The loss of one part of a step."""

    loss: Tensor
    """Sum over the part's targets, in nats; or what is left unexplained. A scalar with a gradient."""
    targets: int | Tensor
    """How many targets that were; may be 0. Or all that was to be explained."""
    tokens: int | None = None
    """How many tokens were read for it; None says that rows have `TrainingConfig.row_length` of them."""
    answers: int = 0
    """Of held-out rows that ask something: how many answers there are."""
    right: float | Tensor = 0.0
    """How many of them are right."""


LossOf = Callable[[nn.Module, Any], LossSum | Iterator[LossSum]]
"""`loss_of(model, batch)`; must use the model through `model(...)` alone, which may be a wrapper.

Gives the loss, or yields as many parts of it as `TrainingConfig.pieces` says. A part is differentiated before the next
is asked for, and its graph is gone then: what goes on from part to part must be detached."""


def accumulate_gradients(
    accelerator: Accelerator,
    model: nn.Module,
    batch_of: BatchOf,
    loss_of: LossOf,
    config: TrainingConfig,
    step: int,
    stop: StopRequest,
) -> Tensor:
    """Run all micro-batches of one step forward and backward; gradients are added to those there.

    Returns:
        `[4]` float64, summed over processes: loss, targets, how many processes were asked to stop, and tokens.

    Raises:
        UserError: `loss_of` gives another number of parts than `config.pieces`.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    share = config.batch_size * config.row_length / (config.accumulation * config.pieces * world)  # of a part
    totals = torch.zeros(4, dtype=torch.float64, device=accelerator.device)
    for micro in range(config.accumulation):
        batch = send_to_device(batch_of(step, micro, rank, world), accelerator.device)
        parts = loss_parts(loss_of, model, batch)
        for piece in range(config.pieces):
            last = micro == config.accumulation - 1 and piece == config.pieces - 1
            with nullcontext() if last else accelerator.no_sync(model):  # processes exchange gradients once
                part = next(parts, None)
                if part is None:
                    raise _wrong_number(config)
                reaching = last and world > 1 and config.pieces > 1 and not accelerator.is_fsdp2
                accelerator.backward(_through_all(part.loss, model) if reaching else part.loss)
            totals[0] += part.loss.detach()
            totals[1] += part.targets
            totals[3] += share if part.tokens is None else part.tokens
            del part  # before the next one is computed
        if next(parts, None) is not None:
            raise _wrong_number(config)
    # Summed as well, so that all processes stop after the same step.
    totals[2] += stop.requested
    return accelerator.reduce(totals, "sum")


def loss_parts(loss_of: LossOf, model: nn.Module, batch: Any) -> Iterator[LossSum]:
    """The parts of the loss; nothing is computed before it is asked for."""
    loss = loss_of(model, batch)
    if isinstance(loss, LossSum):
        yield loss
    else:
        yield from loss


def _through_all(loss: Tensor, model: nn.Module) -> Tensor:
    """The same loss, in whose graph every parameter has a part.

    Processes exchange the gradients of a parameter when the last backward pass reaches it. The last piece of a text
    need not use every parameter that earlier ones used: the first state of a memory, say.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return loss + torch.stack([parameter.flatten()[:0].sum() for parameter in trained]).sum()


def _wrong_number(config: TrainingConfig) -> UserError:
    return UserError(
        f"truncation is {config.truncation} and row_length {config.row_length}, so loss_of must give {config.pieces} "
        "part(s) of the loss, and gave another number; truncated_next_token_loss(truncation) does"
    )


def normalise_and_clip(
    accelerator: Accelerator, parameters: Sequence[nn.Parameter], targets: Tensor, clip_norm: float | None
) -> Tensor:
    """Turn gradients of sums into the gradient of the mean over `targets`, then shorten it to `clip_norm`.

    Returns:
        Its norm before clipping, a scalar; not finite if the gradient is not or there are no targets.
    """
    # DDP has averaged the processes' gradients where the formula wants their sum: hence the world size.
    scale = accelerator.num_processes / targets
    torch._foreach_mul_([own_part(p.grad) for p in parameters if p.grad is not None], scale)
    return whole(nn.utils.clip_grad_norm_(parameters, math.inf if clip_norm is None else clip_norm))
