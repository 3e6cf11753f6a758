"""The quality of a judge: figures known by hand or by scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from mnemonist.errors import UserError
from mnemonist.reasoning.step_quality import Bin, step_quality

SCORES = [0.9, 0.8, 0.3, 0.6, 0.1, 0.2]
LABELS = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]


def test_by_hand() -> None:
    found = step_quality(SCORES, LABELS)
    assert (found.steps, found.right) == (6, 0.5)
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.f1_right == pytest.approx(2 * 2 / (3 + 3))
    assert found.f1_wrong == pytest.approx(2 * 2 / (3 + 3))
    assert found.auc == pytest.approx(8 / 9)  # of nine pairs, 0.3 below 0.6 alone is wrong
    assert found.calibration_error == pytest.approx((0.1 + 0.2 + 0.7 + 0.6 + 0.1 + 0.2) / 6)
    assert found.bins[0] == Bin(1, 0.1, 0.0)
    assert len(found.bins) == 6


def test_by_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    labels = random.random(200) < 0.3
    scores = np.round(np.clip(0.3 * labels + random.random(200), 0, 1), 1)  # with many ties
    found = step_quality(scores, labels)
    assert found.auc == pytest.approx(metrics.roc_auc_score(labels, scores))
    assert found.f1_right == pytest.approx(metrics.f1_score(labels, scores >= 0.5))
    assert found.f1_wrong == pytest.approx(metrics.f1_score(~labels, scores < 0.5))


def test_a_judge_that_knows_its_doubt_has_no_calibration_error() -> None:
    assert step_quality([0.25] * 4 + [0.75] * 4, [1, 0, 0, 0, 1, 1, 1, 0]).calibration_error == 0
    # One that is always sure is as far off as it is wrong.
    assert step_quality([1.0] * 4, [1, 1, 1, 0]).calibration_error == 0.25


def test_one_kind_of_steps_cannot_be_ranked() -> None:
    found = step_quality([0.9, 0.2], [1, 1])
    assert (found.auc, found.f1_wrong) == (None, 0.0)
    assert step_quality([0.5, 0.5], [1, 0]).auc == 0.5


@pytest.mark.parametrize(("scores", "labels"), [([], []), ([0.5], [1, 0])])
def test_nothing_to_compare_is_refused(scores: list[float], labels: list[float]) -> None:
    with pytest.raises(UserError, match="give as many of both, at least one"):
        step_quality(scores, labels)
