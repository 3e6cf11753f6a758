"""The game of 24: four cards from 1 to 13, all of which must be used, and fractions may stand on the way.

The task on which Tree of Thoughts (Yao et al. 2023, arXiv 2305.10601) was shown; steps as in `countdown`:

    Make 24 from all of 3 3 8 8.
    8 / 3 = 8/3, left 8/3 3 8
    3 - 8/3 = 1/3, left 1/3 8
    8 / 1/3 = 24, left 24
    answer: 8/(3-8/3)

There is one difficulty, 4. The 1,362 hands that can be solved are shared out between the splits, 136 or so for each of
validation and test, so that larger indices meet them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mnemonist.reasoning.tasks.drawn import Facts
from mnemonist.reasoning.tasks.number_game import NumberGame, Rules, enough

CARDS = 4
HIGHEST = 13
TARGET = 24


@dataclass(frozen=True)
class Game24(NumberGame):
    """The game of 24."""

    key: ClassVar[str] = "game24"

    @property
    def difficulties(self) -> tuple[int]:
        """As many as there are cards."""
        return (CARDS,)

    @property
    def rules(self) -> Rules:
        """Anything goes; no four cards make more than 13 * 13 * 13 * 13."""
        return Rules(False, HIGHEST**CARDS, True)

    def draw(self, random: np.random.Generator, difficulty: int) -> Facts:
        """Four cards that make 24."""
        while True:
            numbers = random.integers(1, HIGHEST + 1, difficulty).tolist()
            if enough(tuple(sorted(numbers)), TARGET, self.rules):
                return {"numbers": numbers, "target": TARGET}

    def ask(self, facts: Facts) -> str:
        """One sentence."""
        return f"Make {TARGET} from all of {' '.join(map(str, facts['numbers']))}."
