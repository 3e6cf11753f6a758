"""The metrics of a run as TensorBoard shows them, beside metrics.jsonl, which has the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mnemonist.errors import UserError
from mnemonist.training.metrics import StepMetrics

SCALARS = ("loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second")


@contextmanager
def tensorboard_log(folder: Path, done: int, log_every: int) -> Iterator[Callable[[StepMetrics], None]]:
    """What to call after every step; every ``log_every``-th is written.

    Args:
        folder: of the event files.
        done: steps that an earlier part of the run has taken: what it wrote of later ones is forgotten.
        log_every: `TrainingConfig.log_every`.

    Raises:
        UserError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError('TensorBoard is not installed: pip install "mnemonist[tensorboard]"') from error

    with SummaryWriter(str(folder), purge_step=done + 1) as writer:

        def write(metrics: StepMetrics) -> None:
            if metrics.step % log_every == 0:
                for name in SCALARS:
                    writer.add_scalar(f"train/{name}", getattr(metrics, name), metrics.step)
                writer.flush()

        yield write
