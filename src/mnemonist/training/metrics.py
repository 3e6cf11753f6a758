"""What a run has measured: one JSON object a line, in the order of the steps.

The file outlives the process. When a run is resumed, lines of steps after its checkpoint describe steps
that will be taken again, so they are cut; no step appears twice.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from mnemonist.errors import UserError
from mnemonist.files import FileError, write_atomically
from mnemonist.training.gradients import Unit


@dataclass(frozen=True)
class StepMetrics:
    """One optimiser step, measured."""

    step: int
    """Steps done, this one included."""
    loss: float
    """Nats per target of this step's batch, before the step; or in another `unit`."""
    learning_rate: float
    """Learning rate of this step."""
    grad_norm: float
    """Norm of the gradient of `loss`, before clipping."""
    tokens: int
    """Tokens read since the run began."""
    tokens_per_second: float
    """Tokens read per second since the last logged step, by all processes."""
    seconds: float
    """Time spent training since the run began, without the pauses between interruption and resumption."""
    held_out_bits_per_byte: float | None = None
    """Bits per byte of text that is not trained on, after this step; None where it was not read."""
    held_out_problems: dict[str, dict[str, float]] | None = None
    """Of problems that are not trained on, after this step, by their name: `loss` in nats per target and, where answers
    are right or wrong, `accuracy`. None where none were asked."""
    held_out_unexplained_share: float | None = None
    """Of such text, what is left unexplained; None where it was not read, or losses are in nats."""
    unit: Unit = "nats"
    """What losses are in."""

    @property
    def bits(self) -> float:
        """Bits per target, of losses in nats."""
        return self.loss / math.log(2)

    @property
    def has_held_out(self) -> bool:
        """Whether anything was read after this step that is not trained on."""
        read = (self.held_out_bits_per_byte, self.held_out_problems, self.held_out_unexplained_share)
        return any(found is not None for found in read)

    def to_json(self) -> str:
        """One line of the metrics file, without its end."""
        fields = {"step": self.step, "loss": self.loss, "bits": self.bits, **asdict(self)}
        fields.pop("unit" if self.unit == "nats" else "bits")
        return json.dumps({name: value for name, value in fields.items() if value is not None})


class Record(Protocol):
    """What was measured at a step: this loop's own `StepMetrics`, or what a caller measures beside them."""

    def to_json(self) -> str:
        """A JSON object with a `step` on one line, without its end."""
        ...


class MetricsLog:
    """A metrics file open for writing, cut to the first `step` steps.

    Raises:
        FileError: when the file cannot be written.
    """

    def __init__(self, path: Path, step: int) -> None:
        kept = "".join(f"{line}\n" for line in _lines(path, step)) if path.exists() else ""
        write_atomically(path, kept)
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def write(self, metrics: Record) -> None:
        try:
            self._file.write(metrics.to_json() + "\n")
            self._file.flush()  # whoever watches the run sees the line at once
        except OSError as error:
            raise FileError(f"cannot write {self._path}: {error.strerror}") from error

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_metrics(path: str | Path) -> list[StepMetrics]:
    """The metrics of a run, in order; a last line that is still being written is left out.

    Raises:
        UserError: when the file cannot be read.
    """
    records = []
    for line in _lines(Path(path), None):
        fields = json.loads(line)
        fields.pop("bits", None)
        try:
            records.append(StepMetrics(**fields))
        except TypeError as error:
            raise UserError(f"{path} is not a metrics file of this version: a line has other fields") from error
    return records


def _lines(path: Path, step: int | None) -> list[str]:
    """The lines up to `step` (all if None), ending before the first that is incomplete."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from error
    kept = []
    for line in text.split("\n"):
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            break
        if step is not None and record["step"] > step:
            break
        kept.append(line)
    return kept
