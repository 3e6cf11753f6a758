"""Models side by side: what each reaches as something gets harder, as one plot.

draw_lines(path, [Line("DeltaNet", xs, means, lows, highs), ...], x="pairs", y="accuracy")
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from mnemonist.report.figure import SOFT, figure

COLOURS = ("#b93b1c", "#1f5f8b", "#2f7d4f", "#8a5a9e", "#b7791f", "#3c8d93", "#7a4b2a", "#c2577a", "#5b6b2f", "#444a86")
DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Line:
    """One model at several settings."""

    label: str
    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    reference: bool = False
    """Whether it is what others are compared with: drawn in grey."""


def draw_lines(
    path: Path,
    panels: dict[str, Sequence[Line]],
    *,
    x: str,
    y: str,
    log_x: bool = True,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> None:
    """Draw a panel for each list of lines, with the same axes; what is drawn first is on top.

    Args:
        path: SVG file.
        panels: lines by title.
        x: name of the horizontal axis.
        y: name of the vertical axis.
        log_x: whether the horizontal axis is logarithmic, base 2.
        bounds: the range that y has; lines and bands end there, wherever an interval would.

    Raises:
        ValueError: there is nothing to draw.
        FileError: the file cannot be written.
    """
    if not any(panels.values()):
        raise ValueError("There are no lines to draw; give at least one.")
    labels = list(dict.fromkeys(line.label for lines in panels.values() for line in lines))
    tall = max(3.8, 0.7 + 0.22 * len(labels))
    with figure(path, 3.2 + 4.0 * len(panels), tall, columns=len(panels)) as (drawing, all_axes):
        for number, (axes, (title, lines)) in enumerate(zip(all_axes, panels.items(), strict=True)):
            for line in reversed(lines):
                _draw(axes, line, labels.index(line.label), bounds)
            ticks = sorted({value for line in lines for value in line.x})
            if log_x:
                axes.set_xscale("log", base=2)
            if len(ticks) <= 12:
                axes.set_xticks(ticks, [_short(tick) for tick in ticks], rotation=45 if len(ticks) > 7 else 0)
                axes.minorticks_off()
            axes.set_xlabel(x)
            axes.set_title(title, fontsize=10, color=SOFT)
            axes.grid(axis="y")
            axes.set_axisbelow(True)
            if number == 0:
                axes.set_ylabel(y)
        found = [pair for axes in all_axes for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
        handles = {str(label): handle for handle, label in found}
        drawing.legend(
            [handles[label] for label in labels], labels, frameon=False, fontsize=9, loc="center left",
            bbox_to_anchor=(0.91, 0.5),
        )  # fmt: skip


def _draw(axes: Axes, line: Line, number: int, bounds: tuple[float, float]) -> None:
    colour = SOFT if line.reference else COLOURS[number % len(COLOURS)]
    dash = DASHES[(2 if line.reference else 0) or number // len(COLOURS) % len(DASHES)]
    mean, low, high = (np.clip(part, *bounds) for part in (line.mean, line.low, line.high))
    axes.fill_between(line.x, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.plot(line.x, mean, dash, color=colour, linewidth=1.6, marker="o", markersize=3.5, label=line.label)


def _short(value: float) -> str:
    whole = int(value)
    if value != whole:
        return f"{value:g}"
    for unit, letter in ((1024**2, "M"), (1024, "k")):
        if whole >= unit and whole % unit == 0:
            return f"{whole // unit}{letter}"
    return f"{whole:,}"
