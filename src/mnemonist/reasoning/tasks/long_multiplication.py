"""Long multiplication: one partial product a digit, and their running sum.

    347 * 28 = ?
    347 * 8 = 2776
    347 * 20 = 6940
    2776 + 6940 = 9716
    answer: 9716

Difficulty is how many digits each factor has. It is the task on which thinking pays: without its lines, all of the
product must be had at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mnemonist.reasoning.tasks.drawn import Facts
from mnemonist.reasoning.tasks.one_way import OneWay


@dataclass(frozen=True)
class LongMultiplication(OneWay):
    """Products of two numbers with equally many digits."""

    key: ClassVar[str] = "long-multiplication"

    @property
    def difficulties(self) -> range:
        """Two to eight digits."""
        return range(2, 9)

    def draw(self, random: np.random.Generator, difficulty: int) -> Facts:
        """Two factors."""
        return {"factors": random.integers(10 ** (difficulty - 1), 10**difficulty, 2).tolist()}

    def content(self, facts: Facts) -> list[int]:
        """Factors in either order are the same problem."""
        return sorted(facts["factors"])

    def ask(self, facts: Facts) -> str:
        """The product as it is written."""
        left, right = facts["factors"]
        return f"{left} * {right} = ?"

    def lines(self, facts: Facts) -> list[str]:
        """Partial products from the ones on, each but the first added to those before; zeros are no exception."""
        left, right = facts["factors"]
        lines: list[str] = []
        total = 0
        for place, digit in enumerate(reversed(str(right))):
            part = int(digit) * 10**place
            lines.append(f"{left} * {part} = {left * part}")
            if place:
                lines.append(f"{total} + {left * part} = {total + left * part}")
            total += left * part
        return lines
