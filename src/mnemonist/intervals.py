"""How sure a mean is: 95% intervals of measured numbers and of counted successes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Two-sided 95% quantiles of Student's t for 1 to 30 degrees of freedom; beyond, see `interval`.
STUDENT_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """A mean over texts with its 95% interval (Student's t); the interval is None for a single text."""

    mean: float
    half_width: float | None

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.half_width is None else f"{self.mean:.3f} ± {self.half_width:.3f}"


def interval(values: np.ndarray) -> Interval:
    """Mean and 95% interval of one number per text ``[N]``."""
    n = len(values)
    if n < 2:
        return Interval(float(values.mean()), None)
    freedom = n - 1
    if freedom <= len(STUDENT_975):
        quantile = STUDENT_975[freedom - 1]
    else:  # the normal quantile z with two terms in 1 / freedom (Abramowitz & Stegun 26.7.5)
        quantile = 1.960 + 2.372 / freedom + 2.823 / freedom**2
    return Interval(float(values.mean()), quantile * float(values.std(ddof=1)) / math.sqrt(n))


def proportion(right: int, asked: int) -> tuple[float, float]:
    """The 95% interval of a share of successes (Wilson 1927): it has a width at 0 and 1 too.

    Raises:
        ValueError: nothing was asked, or more was right than that.
    """
    if not 0 <= right <= asked or asked < 1:
        raise ValueError(f"{right} of {asked} cannot be right; ask at least once.")
    share, z = right / asked, 1.959964
    middle = share + z * z / (2 * asked)
    half = z * math.sqrt(share * (1 - share) / asked + z * z / (4 * asked * asked))
    scale = 1 + z * z / asked
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
