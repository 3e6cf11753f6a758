"""Bits per byte against position, drawn as SVG.

A memory that learns from what it reads should pay less the further it has read; that is a line going down
on a logarithmic axis. The drawing is made here, not in the browser, so it is there without JavaScript;
what the pointer needs in order to find a point is returned beside it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

WIDTH, HEIGHT = 1040, 380
LEFT, TOP, BOTTOM = 58, 18, 52
LABEL_GAP = 20
LONGEST_LABEL = 30


@dataclass(frozen=True)
class Curve:
    """Bits per byte against position in the text, a mean over texts.

    Attributes:
        label: what was measured, such as "memory learning".
        positions: [N] centre of each bin, in bytes, rising and greater than zero.
        bits: [N] mean bits per byte; what is not finite is left out.
        low, high: [N] ends of the 95 % interval over texts, or both None.
    """

    label: str
    positions: np.ndarray
    bits: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.positions.ndim != 1 or not self.positions.size:
            raise ValueError(f"curve {self.label!r} needs positions of shape [N] with N >= 1")
        for name, array in (("bits", self.bits), ("low", self.low), ("high", self.high)):
            if array is not None and array.shape != self.positions.shape:
                raise ValueError(
                    f"curve {self.label!r}: {name} has shape {list(array.shape)}, "
                    f"but its positions have {list(self.positions.shape)}"
                )
        if (self.low is None) != (self.high is None):
            raise ValueError(f"curve {self.label!r} has one end of an interval: give both low and high, or neither")
        rising = np.all(np.diff(self.positions) > 0)
        if not (np.all(np.isfinite(self.positions)) and self.positions[0] > 0 and rising):
            raise ValueError(f"curve {self.label!r}: positions must rise and start above zero (the axis is a log)")
        if not np.isfinite(self.bits).any():
            raise ValueError(f"curve {self.label!r} has no finite value of bits to draw")


@dataclass(frozen=True)
class Axes:
    """Where a position and a number of bits lie in the drawing, in its own units."""

    first: float
    last: float
    low: float
    high: float
    right: float

    def x(self, position: float) -> float:
        part = math.log(position / self.first) / math.log(self.last / self.first)
        return LEFT + part * (self.right - LEFT)

    def y(self, bits: float) -> float:
        return TOP + (self.high - bits) / (self.high - self.low) * (HEIGHT - BOTTOM - TOP)


def draw_curves(curves: Sequence[Curve]) -> tuple[str, dict[str, Any]]:
    """Draw `curves` (at least one; the first in the accent colour).

    Returns:
        The SVG element, and for the pointer: the drawing's borders, and of each curve its label and its
        points as [x, y, position, bits, low, high] (low and high None where there is no interval).
    """
    axes = _fit_axes(curves)
    parts = [
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" '
        f'aria-label="{escape(_describe(curves))}">',
        _draw_grid(axes),
        *(_draw_band(curve, axes, _style(n)) for n, curve in enumerate(curves)),
        # The accent is drawn last, over the others.
        *reversed([_draw_line(curve, axes, _style(n)) for n, curve in enumerate(curves)]),
        _draw_labels(curves, axes),
        '<g id="plot-marks"></g></svg>',
    ]
    geometry = {
        "left": LEFT,
        "right": round(axes.right, 1),
        "top": TOP,
        "bottom": HEIGHT - BOTTOM,
        "curves": [
            {"label": curve.label, "style": _style(n), "points": _points(curve, axes)} for n, curve in enumerate(curves)
        ],
    }
    return "\n".join(part for part in parts if part), geometry


def _fit_axes(curves: Sequence[Curve]) -> Axes:
    first = min(float(curve.positions[0]) for curve in curves)
    last = max(float(curve.positions[-1]) for curve in curves)
    if first == last:
        first, last = first / 2, last * 2
    arrays = [a for c in curves for a in (c.bits, c.low, c.high) if a is not None]
    values = np.concatenate(arrays).astype(np.float64)
    values = values[np.isfinite(values)]
    low, high = float(values.min()), float(values.max())
    pad = 0.06 * (high - low) or max(abs(high), 1.0) * 0.1
    longest = max(len(_shortened(curve.label)) for curve in curves)
    floor = 0.0 if low >= 0 else -math.inf
    return Axes(first, last, max(low - pad, floor), high + pad, WIDTH - 34 - 7.2 * longest)


def _draw_grid(axes: Axes) -> str:
    bottom = HEIGHT - BOTTOM
    parts = []
    for bits, text in _linear_ticks(axes.low, axes.high):
        y = axes.y(bits)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{axes.right:.1f}"/>')
        parts.append(_text("tick", LEFT - 10, y + 4, text, "end"))
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{axes.right:.1f}"/>')
    for position, text in _log_ticks(axes.first, axes.last):
        x = axes.x(position)
        parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v{6 if text else 3}"/>')
        if text:
            parts.append(_text("tick", x, bottom + 21, text, "middle"))
    middle = (LEFT + axes.right) / 2
    parts.append(_text("unit", middle, HEIGHT - 8, "position in the text (bytes, log scale)", "middle"))
    height = (TOP + bottom) / 2
    parts.append(
        f'<text class="unit" x="14" y="{height:.1f}" text-anchor="middle" '
        f'transform="rotate(-90 14 {height:.1f})">bits per byte</text>'
    )
    return "\n".join(parts)


def _draw_line(curve: Curve, axes: Axes, style: str) -> str:
    runs = _runs(np.isfinite(curve.bits))
    paths = []
    for start, stop in runs:
        corners = _corners(curve.positions[start:stop], curve.bits[start:stop], axes)
        # A lone point is a line of no length, which round caps make a dot.
        paths.append("M" + "L".join(corners if len(corners) > 1 else corners * 2))
    return f'<path class="line {style}" d="{"".join(paths)}"/>'


def _draw_band(curve: Curve, axes: Axes, style: str) -> str:
    if curve.low is None or curve.high is None:
        return ""
    paths = []
    for start, stop in _runs(np.isfinite(curve.low) & np.isfinite(curve.high)):
        positions = curve.positions[start:stop]
        upper = _corners(positions, curve.high[start:stop], axes)
        lower = _corners(positions, curve.low[start:stop], axes)
        paths.append("M" + "L".join(upper + lower[::-1]) + "Z")
    return f'<path class="band {style}" d="{"".join(paths)}"/>'


def _draw_labels(curves: Sequence[Curve], axes: Axes) -> str:
    """Each curve's name at its end, moved apart where they would touch."""
    ends = []
    for number, curve in enumerate(curves):
        at = int(np.flatnonzero(np.isfinite(curve.bits))[-1])
        ends.append((axes.y(float(curve.bits[at])), axes.x(float(curve.positions[at])), number))
    ends.sort()
    heights = _spread_apart([y for y, _, _ in ends], TOP + 4, HEIGHT - BOTTOM - 4)
    parts = []
    for (y, x, number), height in zip(ends, heights, strict=True):
        label, style = escape(_shortened(curves[number].label)), _style(number)
        path = f"M{x:.1f} {y:.1f}L{axes.right + 4:.1f} {y:.1f}L{axes.right + 18:.1f} {height:.1f}"
        parts.append(f'<path class="leader {style}" d="{path}"/>')
        parts.append(_text(f"label {style}", axes.right + 24, height + 4.5, label, "start"))
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


def _points(curve: Curve, axes: Axes) -> list[list[float | None]]:
    points: list[list[float | None]] = []
    for index in np.flatnonzero(np.isfinite(curve.bits)):
        position, bits = float(curve.positions[index]), float(curve.bits[index])
        ends = [None if array is None else _known(array[index]) for array in (curve.low, curve.high)]
        corner = [round(axes.x(position), 1), round(axes.y(bits), 1)]
        points.append([*corner, float(f"{position:.6g}"), float(f"{bits:.5g}"), *ends])
    return points


def _linear_ticks(low: float, high: float) -> list[tuple[float, str]]:
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return [(number * step, f"{number * step:.{digits}f}") for number in numbers]


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


def _corners(positions: np.ndarray, values: np.ndarray, axes: Axes) -> list[str]:
    return [f"{axes.x(float(p)):.1f} {axes.y(float(v)):.1f}" for p, v in zip(positions, values, strict=True)]


def _describe(curves: Sequence[Curve]) -> str:
    """The drawing in words."""
    parts = []
    for curve in curves:
        known = np.flatnonzero(np.isfinite(curve.bits))
        start, end = (f"{curve.bits[i]:.3g} at byte {curve.positions[i]:,.0f}" for i in (known[0], known[-1]))
        parts.append(f"{curve.label}: from {start} to {end}")
    return "Bits per byte against position. " + "; ".join(parts) + "."


def _style(number: int) -> str:
    return f"k{min(number, 4)}"


def _shortened(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"


def _known(number: float) -> float | None:
    return float(f"{number:.5g}") if math.isfinite(number) else None
