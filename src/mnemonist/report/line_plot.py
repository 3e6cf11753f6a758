"""Lines against an axis, drawn as SVG.

The drawing is made here, not in the browser, so it is there without JavaScript; what the pointer needs in
order to find a point is returned beside it. Each line is named at its end, not in a legend that the eye has
to travel to.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np

LEFT, TOP, BOTTOM = 58, 18, 52
LABEL_GAP = 20
STYLES = 8
"""Line styles of the page, `k0` the accent; further lines share the last one."""


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        label: its name.
        x: [N] rising.
        y: [N] what is not finite is a gap.
        low, high: [N] ends of an interval, or both None.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("x", "y", "low", "high"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        if self.x.ndim != 1 or not self.x.size:
            raise ValueError(f"line {self.label!r} needs x of shape [N] with N >= 1")
        for name, array in (("y", self.y), ("low", self.low), ("high", self.high)):
            if array is not None and array.shape != self.x.shape:
                raise ValueError(
                    f"line {self.label!r}: {name} has shape {list(array.shape)}, but its x has {list(self.x.shape)}"
                )
        if (self.low is None) != (self.high is None):
            raise ValueError(f"line {self.label!r} has one end of an interval: give both low and high, or neither")
        if not (np.isfinite(self.x).all() and (np.diff(self.x) > 0).all()):
            raise ValueError(f"line {self.label!r}: its x must be finite and rise")
        if not np.isfinite(self.y).any():
            raise ValueError(f"line {self.label!r} has no finite value to draw")


@dataclass(frozen=True)
class Plot:
    """Lines that share their axes; the first is drawn in the accent colour.

    Attributes:
        title: heading, such as "accuracy"; it is not part of the drawing.
        x, y: names of the axes.
        series: at least one.
        log_x: whether the horizontal axis is logarithmic.
        unit: what the pointer calls a place on the horizontal axis; the axis's own name if it is empty.
        caption: a sentence below the drawing.
        bounds: the range that y has; the drawing ends there, wherever an interval would.
    """

    title: str
    x: str
    y: str
    series: tuple[Series, ...] = field(default=())
    log_x: bool = False
    unit: str = ""
    caption: str = ""
    bounds: tuple[float, float] = (-math.inf, math.inf)

    def __post_init__(self) -> None:
        if not self.series:
            raise ValueError(f"plot {self.title!r} has no lines; give at least one")
        low = min(float(series.x[0]) for series in self.series)
        if self.log_x and low <= 0:
            raise ValueError(f"plot {self.title!r}: a logarithmic axis starts above zero, not at {low:g}")


@dataclass(frozen=True)
class Size:
    """Of a drawing, in its own units, and of its lines' names, in characters."""

    width: int
    height: int
    longest_label: int


WIDE = Size(1040, 380, 30)
"""Across the page."""
HALF = Size(530, 300, 18)
"""Two beside each other."""


@dataclass(frozen=True)
class Axes:
    """Where a value lies in the drawing, in its own units."""

    first: float
    last: float
    low: float
    high: float
    right: float
    bottom: float
    log: bool
    bounds: tuple[float, float]

    def x(self, value: float) -> float:
        if self.log:
            part = math.log(value / self.first) / math.log(self.last / self.first)
        else:
            part = (value - self.first) / (self.last - self.first)
        return LEFT + part * (self.right - LEFT)

    def y(self, value: float) -> float:
        value = min(max(value, self.bounds[0]), self.bounds[1])
        return TOP + (self.high - value) / (self.high - self.low) * (self.bottom - TOP)


def draw_plot(plot: Plot, size: Size = WIDE, *, dots: bool = False) -> tuple[str, dict[str, Any]]:
    """Draw a plot.

    Args:
        plot: what is drawn.
        size: of the drawing.
        dots: whether points are marked; for lines of few points.

    Returns:
        The SVG element, and for the pointer: the drawing's borders, and of each line its label and its
        points as [x, y, value of x, value of y, low, high] (low and high None where there is no interval).
    """
    axes = _fit_axes(plot, size)
    lines = [_draw_line(series, axes, style(n), dots) for n, series in enumerate(plot.series)]
    parts = [
        f'<svg class="plot" viewBox="0 0 {size.width} {size.height}" role="img" tabindex="0" '
        f'aria-label="{escape(_describe(plot))}">',
        _draw_grid(plot, axes, size),
        *(_draw_band(series, axes, style(n)) for n, series in enumerate(plot.series)),
        # The accent is drawn last, over the others.
        *reversed(lines),
        _draw_labels(plot.series, axes, size),
        '<g class="marks"></g></svg>',
    ]
    geometry = {
        "left": LEFT,
        "right": round(axes.right, 1),
        "top": TOP,
        "bottom": size.height - BOTTOM,
        "unit": plot.unit or plot.x,
        "curves": [
            {"label": series.label, "style": style(n), "points": _points(series, axes)}
            for n, series in enumerate(plot.series)
        ],
    }
    return "\n".join(part for part in parts if part), geometry


def style(number: int) -> str:
    """The class of a line."""
    return f"k{min(number, STYLES - 1)}"


def _fit_axes(plot: Plot, size: Size) -> Axes:
    first = min(float(series.x[0]) for series in plot.series)
    last = max(float(series.x[-1]) for series in plot.series)
    if first == last:
        first, last = (first / 2, last * 2) if plot.log_x else (first - 1, last + 1)
    arrays = [a for s in plot.series for a in (s.y, s.low, s.high) if a is not None]
    values = np.concatenate(arrays)
    values = values[np.isfinite(values)].clip(*plot.bounds)
    low, high = float(values.min()), float(values.max())
    pad = 0.06 * (high - low) or max(abs(high), 1.0) * 0.1
    longest = max(len(_shortened(series.label, size)) for series in plot.series)
    floor = max(plot.bounds[0], 0.0 if low >= 0 else -math.inf)
    ceiling = plot.bounds[1]
    right = size.width - (34 + 7.2 * longest if longest else 14)
    low, high = max(low - pad, floor), min(high + pad, ceiling)
    return Axes(first, last, low, high, right, size.height - BOTTOM, plot.log_x, plot.bounds)


def _draw_grid(plot: Plot, axes: Axes, size: Size) -> str:
    bottom = size.height - BOTTOM
    parts = []
    for value, text in _linear_ticks(axes.low, axes.high):
        y = axes.y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{axes.right:.1f}"/>')
        parts.append(_text("tick", LEFT - 10, y + 4, text, "end"))
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{axes.right:.1f}"/>')
    ticks = _log_ticks if axes.log else _linear_ticks
    for value, text in ticks(axes.first, axes.last):
        x = axes.x(value)
        parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v{6 if text else 3}"/>')
        if text:
            parts.append(_text("tick", x, bottom + 21, text, "middle"))
    middle = (LEFT + axes.right) / 2
    parts.append(_text("unit", middle, size.height - 8, escape(plot.x), "middle"))
    height = (TOP + bottom) / 2
    parts.append(
        f'<text class="unit" x="14" y="{height:.1f}" text-anchor="middle" '
        f'transform="rotate(-90 14 {height:.1f})">{escape(plot.y)}</text>'
    )
    return "\n".join(parts)


def _draw_line(series: Series, axes: Axes, style: str, dots: bool) -> str:
    paths = []
    for start, stop in _runs(np.isfinite(series.y)):
        corners = _corners(series.x[start:stop], series.y[start:stop], axes)
        # A lone point is a line of no length, which round caps make a dot.
        paths.append("M" + "L".join(corners if len(corners) > 1 else corners * 2))
    line = f'<path class="line {style}" d="{"".join(paths)}"/>'
    if not dots:
        return line
    corners = _corners(series.x[np.isfinite(series.y)], series.y[np.isfinite(series.y)], axes)
    ends = "".join(f"M{corner}h0" for corner in corners)
    return f'{line}<path class="points {style}" d="{ends}"/>'


def _draw_band(series: Series, axes: Axes, style: str) -> str:
    if series.low is None or series.high is None:
        return ""
    paths = []
    for start, stop in _runs(np.isfinite(series.low) & np.isfinite(series.high)):
        x = series.x[start:stop]
        upper = _corners(x, series.high[start:stop], axes)
        lower = _corners(x, series.low[start:stop], axes)
        paths.append("M" + "L".join(upper + lower[::-1]) + "Z")
    return f'<path class="band {style}" d="{"".join(paths)}"/>'


def _draw_labels(lines: Sequence[Series], axes: Axes, size: Size) -> str:
    """Each line's name at its end, moved apart where they would touch."""
    ends = []
    for number, series in enumerate(lines):
        at = int(np.flatnonzero(np.isfinite(series.y))[-1])
        if series.label:
            ends.append((axes.y(float(series.y[at])), axes.x(float(series.x[at])), number))
    ends.sort()
    heights = _spread_apart([y for y, _, _ in ends], TOP + 4, size.height - BOTTOM - 4)
    parts = []
    for (y, x, number), height in zip(ends, heights, strict=True):
        label, name = escape(_shortened(lines[number].label, size)), style(number)
        path = f"M{x:.1f} {y:.1f}L{axes.right + 4:.1f} {y:.1f}L{axes.right + 18:.1f} {height:.1f}"
        parts.append(f'<path class="leader {name}" d="{path}"/>')
        parts.append(_text(f"label {name}", axes.right + 24, height + 4.5, label, "start"))
    return "\n".join(parts)


def _text(style: str, x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _spread_apart(heights: Sequence[float], top: float, bottom: float) -> list[float]:
    """Sorted `heights` at least `LABEL_GAP` apart, pushed down and then, at the bottom, back up."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + LABEL_GAP if placed else top))
    limit = bottom
    for index in range(len(placed) - 1, -1, -1):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - LABEL_GAP
    return placed


def _points(series: Series, axes: Axes) -> list[list[float | None]]:
    points: list[list[float | None]] = []
    for index in np.flatnonzero(np.isfinite(series.y)):
        x, y = float(series.x[index]), float(series.y[index])
        ends = [None if array is None else _known(array[index]) for array in (series.low, series.high)]
        corner = [round(axes.x(x), 1), round(axes.y(y), 1)]
        points.append([*corner, float(f"{x:.6g}"), float(f"{y:.5g}"), *ends])
    return points


def _linear_ticks(low: float, high: float) -> list[tuple[float, str]]:
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return [(number * step, f"{number * step:,.{digits}f}") for number in numbers]


def _log_ticks(first: float, last: float) -> list[tuple[float, str]]:
    """1-2-...-9 in each decade; the powers of ten are named, and 2 and 5 too where those are few."""
    decades = range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 1)
    ticks = [(digit, digit * 10.0**power) for power in decades for digit in range(1, 10)]
    seen = [(digit, value) for digit, value in ticks if first * 0.999 <= value <= last * 1.001]
    named = {1} if sum(digit == 1 for digit, _ in seen) >= 4 else {1, 2, 5}
    if sum(digit in named for digit, _ in seen) < 2:
        named = set(range(1, 10))
    if len(seen) < 2:
        seen, named = [(1, first), (1, last)], {1}
    return [(value, f"{value:,.6g}" if digit in named else "") for digit, value in seen]


def _runs(known: np.ndarray) -> list[tuple[int, int]]:
    """Start and stop of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], known.astype(int), [0]])))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _corners(x: np.ndarray, y: np.ndarray, axes: Axes) -> list[str]:
    return [f"{axes.x(float(a)):.1f} {axes.y(float(b)):.1f}" for a, b in zip(x, y, strict=True)]


def _describe(plot: Plot) -> str:
    """The drawing in words."""
    unit = plot.unit or plot.x
    parts = []
    for series in plot.series:
        known = np.flatnonzero(np.isfinite(series.y))
        start, end = (f"{series.y[i]:.3g} at {unit} {series.x[i]:,.6g}" for i in (known[0], known[-1]))
        parts.append(f"{series.label or plot.title}: from {start} to {end}")
    return f"{plot.title}. " + "; ".join(parts) + "."


def _shortened(label: str, size: Size) -> str:
    longest = size.longest_label
    return label if len(label) <= longest else label[: longest - 1] + "…"


def _known(number: float) -> float | None:
    return float(f"{number:.5g}") if math.isfinite(number) else None
