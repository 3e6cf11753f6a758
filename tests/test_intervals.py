"""Intervals against printed tables and against counting."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mnemonist.intervals import STUDENT_975, interval, proportion

# Reference quantiles are from printed tables of Student's t.


def test_an_interval_by_hand():
    found = interval(np.array([2.0, 4.0, 9.0]))
    # Mean 5, squared deviations 9 + 1 + 16, standard error sqrt(26 / 2 / 3), two degrees of freedom.
    assert found.mean == pytest.approx(5.0)
    assert found.half_width == pytest.approx(4.303 * math.sqrt(13 / 3))
    assert str(found) == "5.000 ± 8.957"


@pytest.mark.parametrize(
    ("n", "quantile"),
    [
        *[(2, 12.706), (3, 4.303), (5, 2.776), (8, 2.365), (11, 2.228), (30, 2.045), (31, 2.042)],
        *[(32, 2.040), (41, 2.021), (61, 2.000), (121, 1.980), (100_001, 1.960)],
    ],
)
def test_intervals_use_the_t_of_their_own_degrees_of_freedom(n, quantile):
    values = np.tile([1.0, -1.0], n // 2 + 1)[:n]
    error = values.std(ddof=1) / math.sqrt(n)
    assert interval(values).half_width == pytest.approx(quantile * error, rel=4e-4)


def test_the_table_falls_smoothly():
    """A wrong digit in a row would stand out from its neighbours."""
    table = np.array(STUDENT_975)
    assert len(table) == 30
    gaps = -np.diff(table)
    assert (gaps > 0).all()
    assert (np.diff(gaps) < 0.0011).all()  # ever smaller, up to rounding


def test_of_one_text_there_is_no_interval():
    found = interval(np.array([1.25]))
    assert (found.mean, found.half_width, str(found)) == (1.25, None, "1.250")


def test_a_proportion_covers_what_it_should():
    """Over all outcomes of 40 questions, the interval holds the true share about 19 times in 20."""
    for share in (0.1, 0.5, 0.9):
        covered = 0.0
        for right in range(41):
            low, high = proportion(right, 40)
            assert low <= right / 40 <= high
            if low <= share <= high:
                covered += math.comb(40, right) * share**right * (1 - share) ** (40 - right)
        assert 0.92 < covered < 0.98
    assert proportion(0, 40)[0] == 0 and proportion(40, 40)[1] == 1
    assert proportion(0, 40)[1] == pytest.approx(0.0876, abs=1e-4)  # z^2 / (n + z^2)


@pytest.mark.parametrize(("right", "asked"), [(1, 0), (3, 2), (-1, 2)])
def test_impossible_counts(right, asked):
    with pytest.raises(ValueError, match="cannot be right"):
        proportion(right, asked)
