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
    """What to call after every step; every ``log_every``-th is written, and whatever was read and not trained on.

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
            values = {f"train/{name}": getattr(metrics, name) for name in SCALARS}
            if metrics.step % log_every:
                values.clear()
            if metrics.held_out_bits_per_byte is not None:
                values["held_out/bits_per_byte"] = metrics.held_out_bits_per_byte
            if metrics.held_out_unexplained_share is not None:
                values["held_out/unexplained_share"] = metrics.held_out_unexplained_share
            for name, found in (metrics.held_out_problems or {}).items():
                values |= {f"held_out/{name}/{figure}": value for figure, value in found.items()}
            for name, value in values.items():
                writer.add_scalar(name, value, metrics.step)
            if values:
                writer.flush()

        yield write
