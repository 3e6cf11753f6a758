"""In-context regression: pairs of x and y = w.x + noise go by; foretell each y from the pairs before it.

Garg et al. 2022 (arXiv 2208.01066): x and w are normal with variance 1, and the error is divided by the dimension.
Here it is a test of an inner loop: a linear memory that learns by gradient descent while it reads *is* an online
learner, so it can be compared with what online learners can do. The best there is, ridge regression on all pairs seen
(the mean of the posterior; least squares, if there is no noise), needs d^2 numbers of state, as recursive least
squares has it. The delta rule with normalised keys and step 1 is the projection method of Kaczmarz, with d numbers;
averaging is one step of Hebb. What is shown may be wrong now and then (`outliers`); what is asked for is right.

A language model reads vectors as mixtures of its own tokens. It has d + 3 of them: place x is embedded as x in the
first d, plus token d + 1; place y as y times token d, plus token d + 2. The score of token d at place x is the
prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mnemonist.evals.problems import Setting, Split, generator
from mnemonist.evals.results import Row
from mnemonist.evals.scoring import Progress
from mnemonist.models.modeling import LanguageModel
from mnemonist.training import LossSum, TrainingConfig
from mnemonist.training.gradients import BatchOf

Floats = NDArray[np.float64]
ROWS = 64  # problems that a model reads at a time
OUTLIER = 10.0
"""Standard deviation of a y that is shown wrong."""


@dataclass(frozen=True)
class Regression:
    """Linear regression in context; a suite that a model can also be trained on.

    Raises:
        ValueError: a field is out of range.
    """

    dim: int = 8
    """Of x."""
    points: int = 0
    """Pairs of a problem; 0 takes twice the dimension and one."""
    noise: float = 0.0
    """Standard deviation of what is added to y."""
    outliers: float = 0.0
    """Probability that the y of a pair is shown wrong: another number, normal with standard deviation 10."""
    count: int = 500
    """Problems."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dim < 1 or self.points < 0 or not 0 <= self.noise < math.inf:
            raise ValueError(
                f"dim is {self.dim}, points {self.points} and noise {self.noise}; dim must be at least 1, the others 0."
            )
        if not 0 <= self.outliers < 1:
            raise ValueError(f"outliers is {self.outliers}; it is a probability below 1.")
        if self.count < 1 or self.seed < 0:
            raise ValueError(f"count is {self.count} and seed {self.seed}; they must be at least 1 and 0.")

    @property
    def name(self) -> str:
        """Of the suite."""
        return "regression"

    @property
    def measure(self) -> str:
        """Of its rows."""
        return "squared error over dimension"

    @property
    def x(self) -> str:
        """Pairs seen before."""
        return "seen"

    @property
    def vocab_size(self) -> int:
        """One token for each coordinate, one for y, and two that say which of both a place holds."""
        return self.dim + 3

    @property
    def length(self) -> int:
        """Pairs of a problem."""
        return self.points or 2 * self.dim + 1

    @property
    def steps(self) -> list[list[Setting]]:
        """All come of one reading."""
        return [[{"seen": seen} for seen in range(self.length)]]

    def identity(self) -> dict[str, Any]:
        """The fields."""
        given = {
            "suite": self.name, "dim": self.dim, "points": self.length, "noise": self.noise, "count": self.count,
            "seed": self.seed,
        }  # fmt: skip
        return given | ({"outliers": self.outliers} if self.outliers else {})  # results from before it are those of 0

    def draw(self, count: int, seed: int, split: Split = "test", first: int = 0) -> tuple[Floats, Floats, Floats]:
        """Problems ``first`` to ``first + count - 1``: ``x [N, P, d]``; ``y [N, P]``; what is shown of y."""
        setting: Setting = {"dim": self.dim, "points": self.length, "noise": str(float(self.noise))}
        if self.outliers:
            setting = {**setting, "outliers": str(float(self.outliers))}
        xs, ys = np.empty((count, self.length, self.dim)), np.empty((count, self.length))
        shown = ys.copy()
        for n in range(count):
            random = generator(self.name, split, setting, seed, first + n)
            xs[n] = random.standard_normal((self.length, self.dim))
            w = random.standard_normal(self.dim)
            ys[n] = shown[n] = xs[n] @ w + self.noise * random.standard_normal(self.length)
            if self.outliers:
                wrong = random.random(self.length) < self.outliers
                shown[n, wrong] = OUTLIER * random.standard_normal(int(wrong.sum()))
        return xs, ys, shown

    def references(self) -> dict[str, list[Row]]:
        """The online learners, on the same problems."""
        x, y, shown = self.draw(self.count, self.seed)
        best = "ridge" if self.outliers else "ridge (best)"
        learners: dict[str, Callable[[Floats, Floats], Floats]] = {
            best: lambda x, y: ridge(x, y, self.noise),
            "delta rule": kaczmarz,
            "averaging": averaging,
        }
        if self.noise:
            learners["least squares"] = lambda x, y: ridge(x, y, 0.0)
        found = {name: learner(x, shown) for name, learner in learners.items()}
        if self.outliers:  # who knows what is wrong leaves it out: a pair of zeros says nothing
            right = (shown == y).astype(np.float64)
            found["ridge, told what is wrong (best)"] = ridge(x * right[..., None], y * right, self.noise, x)
        return {name: self._rows((each - y) ** 2 / self.dim) for name, each in found.items()}

    def run(self, model: LanguageModel, settings: Sequence[Setting], progress: Progress) -> Iterator[Row]:
        """See `Suite.run`."""
        drawn = self.draw(self.count, self.seed)
        errors = []
        with torch.inference_mode():
            for at in range(0, self.count, ROWS):
                xs, ys, shown = (torch.from_numpy(part[at : at + ROWS]).float() for part in drawn)
                errors.append(((predict(model, xs, shown) - ys) ** 2 / self.dim).double().numpy())
                progress(2 * ys.numel())
        yield from (row for row in self._rows(np.concatenate(errors)) if row.setting in settings)

    def batches(self, config: TrainingConfig) -> BatchOf:
        """``batch_of`` for `mnemonist.training.train`: new problems at every step, a pure function of it."""

        def batch_of(step: int, micro: int, rank: int, world: int) -> dict[str, Tensor]:
            rows = config.batch_size // (config.accumulation * world)
            first = ((step * config.accumulation + micro) * world + rank) * rows
            return self.batch(rows, config.seed, "train", first)

        return batch_of

    def batch(self, count: int, seed: int, split: Split, first: int) -> dict[str, Tensor]:
        """What `draw` gives, for `loss`."""
        drawn = self.draw(count, seed, split, first)
        return {name: torch.from_numpy(x).float() for name, x in zip(("x", "y", "shown"), drawn, strict=True)}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> LossSum:
        """``loss_of`` for `mnemonist.training.train`: the squared error over the dimension, summed over points."""
        errors = (predict(model, batch["x"], batch["shown"]) - batch["y"]) ** 2 / self.dim
        return LossSum(errors.sum(), errors.numel(), 2 * errors.numel())

    def _rows(self, errors: Floats) -> list[Row]:
        return [Row.of({"seen": seen}, errors[:, seen]) for seen in range(self.length)]


def predict(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """What a model says each y is, from ``x [N, P, d]`` of the same pair and all pairs before it, of which ``y [N, P]``
    is what is shown."""
    dim = x.shape[2]
    mixtures = x.new_zeros(*y.shape, 2, dim + 3)
    mixtures[:, :, 0, :dim] = x
    mixtures[:, :, 0, dim + 1] = 1
    mixtures[:, :, 1, dim] = y
    mixtures[:, :, 1, dim + 2] = 1
    inner: Any = getattr(model, "module", model)  # beneath a wrapper of several processes
    embeddings = inner.embedding.weight.to(x.dtype)
    logits = model(mixtures.flatten(1, 2) @ embeddings, positions=slice(None, None, 2)).logits
    return logits[..., dim]


def ridge(x: Floats, y: Floats, noise: float, asked: Floats | None = None) -> Floats:
    """Predictions ``[N, P]`` of the posterior's mean, from the pairs before each; without noise, of least squares.

    Args:
        x: ``[N, P, d]``.
        y: ``[N, P]``.
        noise: standard deviation; the prior of the weights has 1.
        asked: ``[N, P, d]``, what to foretell the y of, if it is not x.
    """
    found = np.zeros_like(y)
    asked = x if asked is None else asked
    for seen in range(1, y.shape[1]):
        past, known = x[:, :seen], y[:, :seen]
        if noise:
            gram = past @ past.swapaxes(1, 2) + noise**2 * np.eye(seen)
            w = (past.swapaxes(1, 2) @ np.linalg.solve(gram, known[..., None]))[..., 0]
        else:
            w = (np.linalg.pinv(past) @ known[..., None])[..., 0]
        found[:, seen] = (asked[:, seen] * w).sum(-1)
    return found


def recursive_least_squares(x: Floats, y: Floats, noise: float) -> Floats:
    """As `ridge`, but one pair at a time with a state of d^2 numbers (Sherman and Morrison 1950); noise above 0."""
    N, P, d = x.shape
    w, inverse = np.zeros((N, d)), np.tile(np.eye(d), (N, 1, 1))
    found = np.zeros_like(y)
    for t in range(P):
        found[:, t] = (x[:, t] * w).sum(-1)
        moved = (inverse @ x[:, t, :, None])[..., 0]
        gain = moved / (noise**2 + (x[:, t] * moved).sum(-1, keepdims=True))
        w += gain * (y[:, t] - found[:, t])[:, None]
        inverse -= gain[:, :, None] * moved[:, None, :]
    return found


def kaczmarz(x: Floats, y: Floats) -> Floats:
    """As `ridge`, by the delta rule on keys of norm 1 with step 1: each pair is met exactly, and may spoil others."""
    w = np.zeros((x.shape[0], x.shape[2]))
    found = np.zeros_like(y)
    for t in range(y.shape[1]):
        found[:, t] = (x[:, t] * w).sum(-1)
        w += x[:, t] * ((y[:, t] - found[:, t]) / (x[:, t] ** 2).sum(-1))[:, None]
    return found


def averaging(x: Floats, y: Floats) -> Floats:
    """As `ridge`, with the mean of x y as weights, which is right on average: E[x y] = w."""
    sums = np.cumsum(x * y[..., None], axis=1)
    found = np.zeros_like(y)
    seen = np.arange(1, y.shape[1])
    found[:, 1:] = (x[:, 1:] * sums[:, :-1]).sum(-1) / seen
    return found
