"""Bits per byte against position.

A memory that learns from what it reads should pay less the further it has read; that is a line going down
on a logarithmic axis.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .line_plot import LABEL_GAP, LEFT, WIDE, Plot, Series, draw_plot

__all__ = ["HEIGHT", "LABEL_GAP", "LEFT", "Curve", "draw_curves"]

HEIGHT = WIDE.height


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


def draw_curves(curves: Sequence[Curve]) -> tuple[str, dict[str, Any]]:
    """Draw `curves` (at least one; the first in the accent colour).

    Returns:
        What `draw_plot` returns.
    """
    plot = Plot(
        title="Bits per byte against position",
        x="position in the text (bytes, log scale)",
        y="bits per byte",
        series=tuple(Series(each.label, each.positions, each.bits, each.low, each.high) for each in curves),
        log_x=True,
        unit="byte",
        bounds=(0.0, math.inf),
    )
    return draw_plot(plot)
