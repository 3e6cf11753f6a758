"""What an evaluation found: rows of means with intervals, the model they are of, and how to find them again."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mnemonist.errors import UserError
from mnemonist.evals.problems import Setting
from mnemonist.files import write_atomically
from mnemonist.intervals import interval, mean_share

FORMAT = "mnemonist-evaluation/1"
BOUNDS = {
    "accuracy": (0.0, 1.0),
    "problems solved": (0.0, 1.0),
    "secrets recalled": (0.0, 1.0),
    "bits per byte": (0.0, math.inf),
    "squared error over dimension": (0.0, math.inf),
}
"""The ranges of what is measured, by how its name begins."""


@dataclass(frozen=True)
class Row:
    """One mean."""

    setting: Setting
    """What it was measured at."""
    mean: float
    low: float
    """Lower end of its 95% interval, which need not be as far from the mean as the upper one; as high as the mean if it
    is of a single number."""
    high: float
    count: int
    """Items (problems, texts, streams) it is a mean of."""
    more: Mapping[str, float] = field(default_factory=dict)
    """Other figures of the same items: bits per token asked for, say."""

    @classmethod
    def of(cls, setting: Setting, values: Sequence[float] | np.ndarray, **more: float) -> Row:
        """The mean of numbers, with Student's interval; of True and False as `of_shares`."""
        array = np.asarray(values)
        if array.dtype == bool:
            return cls.of_shares(setting, array, **more)
        found = interval(array)
        half = found.half_width or 0.0
        return cls(dict(setting), found.mean, found.mean - half, found.mean + half, len(array), more)

    @classmethod
    def of_shares(cls, setting: Setting, shares: Sequence[float] | np.ndarray, **more: float) -> Row:
        """The mean of shares, one of each problem, with an interval that stays within 0 and 1; see `mean_share`."""
        array = np.asarray(shares)
        low, high = mean_share(array)
        return cls(dict(setting), float(array.mean()), low, high, len(array), more)


@dataclass(frozen=True)
class Result:
    """All rows of one suite for one model; complete or as far as it came."""

    identity: Mapping[str, Any]
    """What the rows follow from: the suite with its fields, and the model's fingerprint."""
    measure: str
    """What is measured: accuracy, bits per byte, ..."""
    x: str
    """The name in the settings that a plot has on its horizontal axis."""
    rows: tuple[Row, ...] = ()
    model: Mapping[str, Any] = field(default_factory=dict)
    """Facts for people: name, blocks, rule, parameters, bytes of state."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """When and how: command, versions, seconds."""
    complete: bool = False

    @property
    def name(self) -> str:
        """Of the model."""
        return str(self.model.get("name", "model"))

    @property
    def bounds(self) -> tuple[float, float]:
        """The range of what is measured, which intervals may leave and plots do not."""
        fitting = (bounds for name, bounds in BOUNDS.items() if self.measure.startswith(name))
        return next(fitting, (-math.inf, math.inf))

    def row(self, setting: Setting) -> Row | None:
        """The row of a setting, if it was measured."""
        return next((row for row in self.rows if row.setting == dict(setting)), None)

    def lines(self) -> dict[str, list[Row]]:
        """Lines of a plot, by what settings say besides `x`; a single one if `x` tells all rows apart."""
        lines: dict[str, list[Row]] = {}
        if len({row.setting[self.x] for row in self.rows}) == len(self.rows) > 0:
            return {"": list(self.rows)}
        for row in self.rows:
            rest = ", ".join(f"{name} {value}" for name, value in row.setting.items() if name != self.x)
            lines.setdefault(rest, []).append(row)
        return lines

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON, whole or not at all.

        Raises:
            FileError: the file cannot be written.
        """
        write_atomically(path, self.to_json() + "\n")

    def to_json(self) -> str:
        """The JSON text that `save` writes."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Result:
        """Read what `save` wrote.

        Raises:
            UserError: there is no such file, it is damaged, or of another version.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
                raise UserError(f"{path} is no evaluation of this version; move it away, or name another file")
            rows = tuple(Row(**row) for row in content.pop("rows"))
            return cls(rows=rows, **content)
        except FileNotFoundError:
            raise UserError(f"there is no evaluation {path}") from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} is damaged ({error}); move it away to measure again") from error


def table(results: Sequence[Result]) -> str:
    """A table in Markdown: a line per setting, a column per model, means with intervals.

    Raises:
        ValueError: there is no result, or they are of different suites.
    """
    if len({(result.identity.get("suite"), result.x) for result in results}) != 1:
        raise ValueError("A table needs at least one result, and all of them of one suite.")
    settings: list[Setting] = []
    for result in results:
        settings += [row.setting for row in result.rows if row.setting not in settings]
    names = list(settings[0]) if settings else [results[0].x]
    lines = [[*names, *(result.name for result in results)]]
    for setting in settings:
        cells = [str(setting.get(name, "")) for name in names]
        lines.append(cells + [_cell(result.row(setting)) for result in results])
    parameters = [f"{result.model['parameters']:,}" if "parameters" in result.model else "" for result in results]
    state = [_state(result.model) for result in results]
    blank = [""] * (len(names) - 1)
    lines += [["parameters", *blank, *parameters], ["state, bytes", *blank, *state]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
    text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return f"{results[0].measure} (95% interval)\n\n" + "\n".join(text)


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    known = row.count > 1 or row.low < row.high
    return f"{row.mean:.3f} ({row.low:.3f} to {row.high:.3f})" if known else f"{row.mean:.3f}"


def _state(model: Mapping[str, Any]) -> str:
    if "state_bytes" not in model:
        return ""
    growing = model.get("state_bytes_per_token", 0)
    return f"{model['state_bytes']:,}" + (f" + {growing:,} a token" if growing else "")
