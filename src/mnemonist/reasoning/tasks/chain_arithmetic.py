"""Chain arithmetic: sums and differences of many terms, worked out from left to right.

    3 + 5 - 2 + 9 = ?
    3 + 5 = 8
    8 - 2 = 6
    6 + 9 = 15
    answer: 15

Difficulty is the number of terms. Intermediate results may be negative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mnemonist.errors import UserError
from mnemonist.reasoning.tasks.drawn import Facts
from mnemonist.reasoning.tasks.one_way import OneWay


@dataclass(frozen=True)
class ChainArithmetic(OneWay):
    """Sums and differences.

    Raises:
        UserError: a field is out of range.
    """

    key: ClassVar[str] = "chain-arithmetic"

    digits: int = 2
    """A term has at most."""
    minus: bool = True
    """Whether terms are subtracted too."""

    def __post_init__(self) -> None:
        if not 1 <= self.digits <= 9:
            raise UserError(f"digits is {self.digits}; terms have 1 to 9")

    @property
    def difficulties(self) -> range:
        """Two to sixteen terms."""
        return range(2, 17)

    def draw(self, random: np.random.Generator, difficulty: int) -> Facts:
        """Signed terms: lengths are drawn before digits, so that short ones are met as well."""
        lengths = random.integers(1, self.digits + 1, difficulty)
        terms = [int(random.integers(10 ** (n - 1), 10**n)) for n in lengths.tolist()]
        signs = random.integers(0, 2, difficulty) if self.minus else np.zeros(difficulty, np.int64)
        return {"terms": [terms[0], *(-t if s else t for t, s in zip(terms[1:], signs[1:].tolist(), strict=True))]}

    def ask(self, facts: Facts) -> str:
        """The sum as it is written."""
        first, *others = facts["terms"]
        return f"{first}{''.join(_signed(term) for term in others)} = ?"

    def lines(self, facts: Facts) -> list[str]:
        """Each running result."""
        total, *others = facts["terms"]
        lines = []
        for term in others:
            lines.append(f"{total}{_signed(term)} = {total + term}")
            total += term
        return lines


def _signed(term: int) -> str:
    return f" {'-' if term < 0 else '+'} {abs(term)}"
