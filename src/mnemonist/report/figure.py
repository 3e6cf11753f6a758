"""Plots as SVG in one style; the same numbers draw the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from mnemonist.files import atomic_path

PAPER, INK, SOFT, FAINT, LINE, ACCENT = "#fefdfc", "#1d1a18", "#6b645f", "#a39b95", "#e6e1dc", "#b93b1c"
STYLE: Any = {  # by name of what matplotlib can be set to
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "xtick.color": SOFT,
    "ytick.color": INK,
    "text.color": INK,
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "mnemonist",  # the same report draws the same bytes
}


def name_ticks(axis: Axis) -> None:
    """1, 2 and 5 of every decade, as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


@contextmanager
def figure(path: Path, width: float, height: float, columns: int = 1) -> Iterator[tuple[Figure, list[Axes]]]:
    """A plot of some panels side by side in the style of the reports, written when it is drawn.

    Args:
        path: SVG file.
        width: in inches.
        height: in inches.
        columns: panels; their vertical axes are one.

    Raises:
        FileError: the file cannot be written.
    """
    with rc_context(STYLE):
        drawing = Figure(figsize=(width, height))
        yield drawing, list(drawing.subplots(1, columns, sharey=True, squeeze=False)[0])
        with atomic_path(path) as temporary:
            drawing.savefig(temporary, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
