"""Countdown: make a number of others, each used at most once, by whole steps of arithmetic.

The task of Stream of Search (Gandhi et al. 2024, arXiv 2404.03683) and of TinyZero. It has what few reasoning tasks
have: whether a line of a solution leads anywhere is known exactly, so that every step can be labelled without a judge.

    Make 56 from 2 3 5 7.
    3 + 5 = 8, left 2 7 8
    8 * 7 = 56, left 2 56
    answer: (3+5)*7

Difficulty is how many numbers are given. They are drawn evenly; the target is what is left when they are combined at
random, so every problem can be solved. It takes three of them at least: a target that two make would be no search.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mnemonist.errors import UserError
from mnemonist.reasoning.tasks.drawn import Facts
from mnemonist.reasoning.tasks.number_game import NumberGame, Rules, makes

SMALLEST_TARGET = 10
FEWEST_USED = 3
TRIES = 1000  # of drawing a target before it is called impossible


@dataclass(frozen=True)
class Countdown(NumberGame):
    """Countdown.

    Raises:
        UserError: a field is out of range.
    """

    key: ClassVar[str] = "countdown"

    largest: int = 20
    """Of the given numbers; the smallest is 1."""
    target: int = 100
    """The largest target; the smallest is 10."""
    ceiling: int = 1000
    """No step may have a larger result."""
    all_used: bool = False
    """Whether a solution must use all numbers."""

    def __post_init__(self) -> None:
        if self.largest < 5 or not SMALLEST_TARGET <= self.target <= self.ceiling <= 1_000_000:
            raise UserError(
                f"largest is {self.largest}, target {self.target} and ceiling {self.ceiling}; largest is at least 5, "
                f"and targets from {SMALLEST_TARGET} to the ceiling, which is at most 1000000"
            )

    @property
    def difficulties(self) -> range:
        """Three to six numbers."""
        return range(3, 7)

    @property
    def rules(self) -> Rules:
        """Whole numbers, below the ceiling."""
        return Rules(True, self.ceiling, self.all_used)

    def draw(self, random: np.random.Generator, difficulty: int) -> Facts:
        """Numbers, and a target that they make."""
        for _ in range(TRIES):
            numbers = random.integers(1, self.largest + 1, difficulty).tolist()
            target = self.play(random, numbers)
            if not SMALLEST_TARGET <= target <= self.target:
                continue
            few = (some for size in range(1, FEWEST_USED) for some in itertools.combinations(sorted(numbers), size))
            if not any(makes(some, target, self.rules) for some in few):
                return {"numbers": numbers, "target": target}
        raise UserError(f"{self.name} has no problem with {difficulty} numbers; allow larger targets")

    def ask(self, facts: Facts) -> str:
        """One sentence."""
        return (
            f"Make {facts['target']} from {'all of ' if self.all_used else ''}{' '.join(map(str, facts['numbers']))}."
        )
