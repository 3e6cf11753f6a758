"""Intervals against printed tables and against counting."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mnemonist.intervals import STUDENT_975, interval, mean_share, proportion

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


def test_equal_numbers_do_not_pretend_to_be_sure():
    assert str(interval(np.zeros(4))) == "0.000 in every text"


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


@pytest.mark.parametrize("right", [0, 1, 20, 39, 40])
def test_shares_that_are_right_or_wrong_have_the_interval_of_a_proportion(right):
    assert mean_share(np.arange(40) < right) == pytest.approx(proportion(right, 40), abs=1e-12)


def test_shares_that_hardly_differ_have_an_interval_with_a_width():
    all_right, one_token_wrong = np.ones(200), np.ones(200)
    one_token_wrong[0] = 63 / 64
    for shares in (all_right, one_token_wrong):
        low, high = mean_share(shares)
        assert high <= 1 and low == pytest.approx(proportion(200, 200)[0], abs=1e-3)
        assert low < shares.mean() <= high  # and Student's is at most 0.0002 wide
    low, high = mean_share(np.full(200, 0.5))  # though these do not differ either: they tell that shares can be a half
    assert 0.01 < high - low < 0.2 * (proportion(100, 200)[1] - proportion(100, 200)[0])


@pytest.mark.parametrize("problems", [20, 100])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("likeness", [0.05, 0.3, 0.9])
def test_intervals_of_shares_cover_what_they_should(problems, share, likeness):
    """Of tokens of a problem that are right together: beta-binomial, 16 each. Student's covers 0.2 to 0.95 of it."""
    random = np.random.default_rng(0)
    odds = (1 - likeness) / likeness
    chances = random.beta(odds * share, odds * (1 - share), (600, problems))
    drawn = random.binomial(16, chances) / 16
    ends = np.array([mean_share(shares) for shares in drawn])
    assert ((ends[:, 0] <= share) & (share <= ends[:, 1])).mean() > 0.9
    assert (ends >= 0).all() and (ends <= 1).all() and (ends[:, 0] <= drawn.mean(1)).all()
    if likeness == 0.3 and share == 0.5 and problems == 100:  # far from the ends it is no wider than Student's
        student = np.mean([2 * (interval(shares).half_width or 0) for shares in drawn])
        assert np.diff(ends).mean() == pytest.approx(student, rel=0.05)


@pytest.mark.parametrize("shares", [[], [0.5, 1.1], [-0.1], [float("nan")]])
def test_what_is_no_share(shares):
    with pytest.raises(ValueError, match="from 0 to 1"):
        mean_share(np.array(shares))
