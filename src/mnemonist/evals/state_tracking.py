"""State tracking: the running product of a sequence of group elements.

After every element, say the product of all elements so far. For a group that cannot be solved, S5 or A5, this is
complete for NC1: unless TC0 is all of NC1, no model of fixed depth and precision whose state moves by diagonal or
positive matrices can do it at every length (Barrington 1989; Merrill, Petty and Sabharwal 2024, arXiv 2404.08819).
Parity is the smallest of the groups here, and already separates memories: with eigenvalues in [0, 1] a linear
recurrence cannot count to two, with [-1, 1] it can (Grazzi et al. 2024, arXiv 2411.12537; here `step_bound` 2).

Tokens: 0 begins a sequence, 1 to n are the elements, of which 1 is the identity. Elements of Z60 are numbers in their
order; permutations are in lexicographic order, and the product of a and b is first a, then b.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mnemonist.data import IGNORED
from mnemonist.errors import UserError, nearest
from mnemonist.evals.problems import Problem, Setting

BEGIN = 0


@dataclass(frozen=True)
class Group:
    """One row of `GROUPS`."""

    order: int
    trained: int
    """Elements of the longest lesson in the literature."""
    longest: int
    """Elements of the longest test."""


GROUPS = {
    "parity": Group(2, 40, 256),
    "z60": Group(60, 128, 512),
    "s3": Group(6, 128, 512),
    "s4": Group(24, 128, 512),
    "a5": Group(60, 128, 512),
    "s5": Group(120, 128, 512),
}


@dataclass(frozen=True)
class StateTracking:
    """The word problem of a group.

    Raises:
        ValueError: a field is out of range.
    """

    name: ClassVar[str] = "state-tracking"
    metric: ClassVar[Literal["token", "problem"]] = "token"

    group: str = "s5"
    """parity, z60, s3, s4, a5 or s5."""
    trained: int = 0
    """Elements of the longest lesson; 0 takes what the literature has: 40 for parity, 128 for the others."""
    longest: int = 0
    """Elements of the longest test; 0 takes 256 for parity, 512 for the others."""
    moved: int = 0
    """Of a group of permutations: draw those alone that move at most so many things, so 2 draws swaps and the identity
    (as Grazzi et al. do); 0 draws all elements. The products are all of the group's either way."""

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise ValueError(
                f"group is {self.group!r}{nearest(self.group, GROUPS)}; it must be one of {', '.join(GROUPS)}."
            )
        if self.moved and (self.group in ("parity", "z60") or not len(drawn(self.group, self.moved)) > 1):
            raise ValueError(
                f"moved is {self.moved}, and {self.group} has no elements but the identity that move so few things."
            )
        if min(self.trained, self.longest) < 0:
            raise ValueError(
                f"trained is {self.trained} and longest {self.longest}; they must be positive, or 0 for "
                "the group's own."
            )

        if self.longest and self._trained > self.longest:
            raise ValueError(
                f"longest is {self.longest}, but lessons have up to {self._trained} elements; "
                "test what is as long at least."
            )

    @property
    def vocab_size(self) -> int:
        """The elements and the begin mark."""
        return GROUPS[self.group].order + 1

    @property
    def chance(self) -> float:
        """Of one of the elements."""
        return 1 / GROUPS[self.group].order

    @property
    def grid(self) -> list[Setting]:
        """Lengths from the longest lesson on, doubling."""
        first, last = self._trained, self.longest or GROUPS[self.group].longest
        lengths = [first]
        while lengths[-1] < last:
            lengths.append(min(2 * lengths[-1], last))
        return [{"elements": length} for length in lengths]

    @property
    def lessons(self) -> list[Setting]:
        """From an eighth of the longest lesson on, in eighths."""
        return [{"elements": max(1, self._trained * i // 8)} for i in range(1, 9)]

    def draw(self, random: np.random.Generator, setting: Setting) -> Problem:
        """Elements drawn with equal chances, with their running product.

        Raises:
            UserError: the sequence has no elements.
        """
        length = int(setting["elements"])
        if length < 1:
            raise UserError(f"a sequence of {length} elements has no product; ask for at least 1")
        product = multiplication(self.group)
        choice = drawn(self.group, self.moved)
        elements = choice[random.integers(0, len(choice), length)]
        targets = np.full(length + 1, IGNORED, np.int64)
        state = 0
        table = product.tolist()
        for t, element in enumerate(elements.tolist(), 1):
            state = table[state][element]
            targets[t] = state + 1
        return Problem(np.concatenate([[BEGIN], elements + 1]), targets)

    @property
    def _trained(self) -> int:
        return self.trained or GROUPS[self.group].trained


@cache
def multiplication(group: str) -> NDArray[np.int64]:
    """``[n, n]``: the number of first a, then b, at ``[a, b]``; element 0 is the identity."""
    order = GROUPS[group].order
    if group in ("parity", "z60"):
        numbers = np.arange(order)
        return (numbers[:, None] + numbers) % order
    elements = _permutations(group)
    points = len(elements[0])
    number = {element: i for i, element in enumerate(elements)}
    return np.array([[number[tuple(b[a[i]] for i in range(points))] for b in elements] for a in elements])


@cache
def drawn(group: str, moved: int) -> NDArray[np.int64]:
    """The elements that sequences are made of; see `StateTracking.moved`."""
    if not moved:
        return np.arange(GROUPS[group].order)
    moves = [sum(i != to for i, to in enumerate(element)) for element in _permutations(group)]
    return np.flatnonzero(np.array(moves) <= moved)


def _permutations(group: str) -> list[tuple[int, ...]]:
    """The elements of S3, S4, S5 or A5 in lexicographic order."""
    return [p for p in itertools.permutations(range(int(group[1]))) if group[0] == "s" or _even(p)]


def _even(permutation: tuple[int, ...]) -> bool:
    return sum(a > b for a, b in itertools.combinations(permutation, 2)) % 2 == 0
