"""How sure a mean is: 95% intervals of measured numbers, of counted successes, and of shares of each problem."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Two-sided 95% quantiles of Student's t for 1 to 30 degrees of freedom; beyond, see `interval`.
STUDENT_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip

Z_975 = 1.959964
"""That of the normal distribution."""


@dataclass(frozen=True)
class Interval:
    """A mean over texts with its 95% interval (Student's t); the interval is None for a single text."""

    mean: float
    half_width: float | None

    def __str__(self) -> str:
        if self.half_width == 0:  # as of a model compared with itself; it does not tell how other texts would vary
            return f"{self.mean:.3f} in every text"
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
    return _score_interval(right / asked, asked)


def mean_share(shares: np.ndarray) -> tuple[float, float]:
    """The 95% interval of a mean of shares, one of each problem: of its tokens, or of attempts at it, that are right.

    What belongs to one problem is not independent, so that the problem counts, and not its tokens. Student's interval
    of such numbers has no width where all are 1, and may end above 1. This one is Wilson's for as many problems of
    right or wrong as would vary as much (an effective sample size; Korn and Graubard 1998), never fewer than there are.
    How much shares vary is told by all of them and by ``z^2`` more that are right or wrong at even chances, as Wilson's
    has them: where hardly any differ, problems are taken to be right or wrong as a whole. Of right and wrong it is
    Wilson's.

    Args:
        shares: ``[N]``, each from 0 to 1.

    Raises:
        ValueError: there are none, or one is no share.
    """
    values = np.asarray(shares, np.float64)
    if not len(values) or not ((values >= 0) & (values <= 1)).all():
        raise ValueError("Shares are numbers from 0 to 1; give at least one.")
    n, mean = len(values), min(1.0, float(values.mean()))
    if n == 1:
        return _score_interval(mean, 1)
    varies, most = n * float(values.var(ddof=1)), n * mean * (1 - mean)
    return _score_interval(mean, n / min(1.0, (varies + Z_975**2 / 4) / (most + Z_975**2 / 4)))


def _score_interval(share: float, count: float) -> tuple[float, float]:
    z = Z_975
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    # Rounding must not leave the share outside.
    return max(0.0, min(share, (middle - half) / scale)), min(1.0, max(share, (middle + half) / scale))
