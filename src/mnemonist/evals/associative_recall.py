"""Multi-query associative recall: pairs of keys and values, then some of the keys again; say their values.

Zoology (Arora et al. 2023, arXiv 2312.04927, section 3 and appendix): a sequence begins with ``pairs`` keys, each
followed by its value, all keys different and all values. Then every key comes once more, at a gap drawn without
replacement from the power law ``p(i) ~ a i^(a - 1)``, so that most queries come soon after the pairs. Where a key comes
again, its value is the token asked for. All other places hold random tokens.

It measures what a state can hold: attention needs nothing but a second look, a memory of constant size runs out of
room. The settings of training and test are those of the paper's repository; `vocabulary` and `longest` make it smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from mnemonist.data import IGNORED
from mnemonist.errors import UserError
from mnemonist.evals.problems import Problem, Setting

LESSONS = ((64, 4, 5), (128, 8, 1), (256, 16, 1), (256, 32, 1), (256, 64, 1))
"""Length, pairs, and how often, in units of 20,000 sequences."""

GRID = ((64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256))
"""Length and pairs."""


@dataclass(frozen=True)
class AssociativeRecall:
    """MQAR.

    Raises:
        ValueError: a field is out of range.
    """

    name: ClassVar[str] = "mqar"
    metric: ClassVar[Literal["token", "problem"]] = "token"

    vocabulary: int = 8192
    """Tokens; the lower half are keys, the upper half values."""
    longest: int = 1024
    """Settings of longer sequences are left out."""
    trained: int = 256
    """Likewise of training."""
    most_pairs: int = 256
    """Settings of more pairs are left out."""
    lessons_from: str = "paper"
    """What training draws from: paper, its own mixture; or grid, the settings of the test, each as often."""
    power: float = 0.01
    """How soon keys come again: ``a`` of the power law; 1 is uniform."""

    def __post_init__(self) -> None:
        if self.vocabulary < 4:
            raise ValueError(f"vocabulary is {self.vocabulary}; keys and values need at least 4 tokens.")
        if not self.power > 0:
            raise ValueError(f"power is {self.power}; it must be a positive number.")
        if self.lessons_from not in ("paper", "grid"):
            raise ValueError(f"lessons_from is {self.lessons_from!r}; it must be paper or grid.")
        if not (self.grid and self.lessons):
            raise ValueError(
                f"longest is {self.longest}, trained {self.trained}, most_pairs {self.most_pairs} and vocabulary "
                f"{self.vocabulary}: no setting is left; the smallest has length 64, 4 pairs and 10 tokens."
            )

    @property
    def vocab_size(self) -> int:
        """Tokens are from 0 to below this."""
        return self.vocabulary

    @property
    def grid(self) -> list[Setting]:
        """Settings of the test."""
        return [self._setting(length, pairs) for length, pairs in GRID if self._fits(length, pairs, self.longest)]

    @property
    def lessons(self) -> list[Setting]:
        """Settings of training."""
        rows = LESSONS if self.lessons_from == "paper" else [(*row, 1) for row in GRID]
        kept = [row for row in rows if self._fits(row[0], row[1], self.trained)]
        return [self._setting(length, pairs) for length, pairs, often in kept for _ in range(often)]

    @property
    def chance(self) -> float:
        """Of one of the values."""
        return 1 / (self.vocabulary - self.vocabulary // 2)

    def draw(self, random: np.random.Generator, setting: Setting) -> Problem:
        """One sequence.

        Raises:
            UserError: it has no room for its pairs, or there are too few keys.
        """
        length, pairs, half = int(setting["length"]), int(setting["pairs"]), self.vocabulary // 2
        places = length // 2 - pairs  # for keys that come again: every other one behind the pairs
        if pairs < 1 or places < pairs or pairs > half - 1:
            raise UserError(
                f"a sequence of {length} tokens with {half - 1} keys has no room for {pairs} pairs: it takes 4 tokens "
                "a pair, and keys that differ"
            )
        tokens = random.integers(0, self.vocabulary, length)
        keys = 1 + random.choice(half - 1, pairs, replace=False)
        values = half + random.choice(self.vocabulary - half, pairs, replace=False)
        tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2] = keys, values
        weights = self.power * np.arange(1, places + 1) ** (self.power - 1.0)
        gaps = random.choice(places, pairs, replace=False, p=weights / weights.sum())
        again = 2 * pairs + 2 * gaps
        tokens[again] = keys
        targets = np.full(length, IGNORED, np.int64)
        targets[again] = values
        return Problem(tokens, targets)

    def _fits(self, length: int, pairs: int, longest: int) -> bool:
        return length <= longest and pairs <= min(self.most_pairs, self.vocabulary // 2 - 1)

    @staticmethod
    def _setting(length: int, pairs: int) -> Setting:
        return {"length": length, "pairs": pairs}
