"""How good a judge of steps is, measured by the truth: whether it finds them, ranks them, and knows how sure to be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mnemonist.errors import UserError
from mnemonist.reasoning.step_labels import Labelled


@dataclass(frozen=True)
class Bin:
    """Steps whose scores are near one another: of a judge that is calibrated, mean score and share are equal."""

    count: int
    score: float
    """Mean."""
    share: float
    """Of them that are right."""


@dataclass(frozen=True)
class JudgedPaths:
    """Paths with the truth about their steps, and what a judge made of them."""

    paths: Sequence[Labelled]
    scores: Sequence[Sequence[float]]
    """Of each step of each path."""

    @property
    def quality(self) -> StepQuality:
        """How good the judge is about them."""
        labels = (label for path in self.paths for label in path.labels)
        return step_quality((score for scores in self.scores for score in scores), labels)


@dataclass(frozen=True)
class StepQuality:
    """How good a judge of steps is, measured by the truth."""

    steps: int
    right: float
    """Share of steps that are right; the accuracy of calling all of them so."""
    accuracy: float
    f1_right: float
    """Of finding right steps: harmonic mean of precision and recall, at a threshold of a half."""
    f1_wrong: float
    """Of finding wrong ones."""
    auc: float | None
    """Chance that a right step has a higher score than a wrong one; None if there is only one kind."""
    calibration_error: float
    """Mean distance of score and share over bins, by their counts (ECE)."""
    bins: tuple[Bin, ...]
    """Ten of equal width; those without steps have been left out."""


def step_quality(scores: Iterable[float], labels: Iterable[float], threshold: float = 0.5) -> StepQuality:
    """Measure scores against the truth; labels above a half are right.

    Raises:
        UserError: there are no steps, or not as many scores as labels.
    """
    given, right = np.asarray(list(scores), float), np.asarray(list(labels), float) > 0.5
    if not len(given) or len(given) != len(right):
        raise UserError(f"there are {len(given)} scores for {len(right)} labels; give as many of both, at least one")
    called = given >= threshold
    bins = []
    places = np.minimum((given * 10).astype(int), 9)
    for place in np.unique(places):
        inside = places == place
        bins.append(Bin(int(inside.sum()), float(given[inside].mean()), float(right[inside].mean())))
    return StepQuality(
        steps=len(given),
        right=float(right.mean()),
        accuracy=float((called == right).mean()),
        f1_right=_f1(called, right),
        f1_wrong=_f1(~called, ~right),
        auc=_auc(given, right),
        calibration_error=sum(one.count * abs(one.score - one.share) for one in bins) / len(given),
        bins=tuple(bins),
    )


def _f1(called: np.ndarray, true: np.ndarray) -> float:
    both = 2 * int((called & true).sum())
    return both / (int(called.sum()) + int(true.sum())) if both else 0.0


def _auc(scores: np.ndarray, right: np.ndarray) -> float | None:
    """From the ranks of the right ones (Mann and Whitney); equal scores share their ranks."""
    positives, negatives = int(right.sum()), int((~right).sum())
    if not positives or not negatives:
        return None
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return float((ranks[right].sum() - positives * (positives + 1) / 2) / (positives * negatives))
