"""Who reads what when: it follows from a seed and the number of the step alone."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np

One = TypeVar("One")


def mix(seed: int, *labels: int | str) -> int:
    """Another seed, for a purpose of its own; those of neighbouring seeds and labels have nothing in common."""
    return int.from_bytes(hashlib.sha256(repr((seed, *labels)).encode()).digest()[:6], "big")


def endless(count: int, seed: int, first: int, wanted: int) -> list[int]:
    """Numbers ``first`` to ``first + wanted`` of an endless row of the numbers below ``count``.

    The row goes through all of them again and again, each time in another order.
    """
    places = (divmod(place, count) for place in range(first, first + wanted))
    return [int(_order(count, mix(seed, time))[place]) for time, place in places]


def share(
    ones: Iterable[One], length: Callable[[One], int], micro: int, accumulation: int, rank: int, world: int
) -> list[One]:
    """What one of ``world`` processes reads of a step's rows in one of ``accumulation`` parts.

    Parts hold rows of like lengths, so that little of a batch is filled up, and processes get like ones.
    """
    ordered = sorted(ones, key=length)
    begin, end = (len(ordered) * part // accumulation for part in (micro, micro + 1))
    return ordered[begin:end][rank::world]


@functools.lru_cache(maxsize=4)
def _order(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)
