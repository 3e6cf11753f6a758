"""Orders that follow from a seed alone: what is read at a step depends on nothing but the step's number."""

from __future__ import annotations

import functools
import hashlib

import numpy as np


def mix(seed: int, *labels: int | str) -> int:
    """Another seed, for a purpose of its own; those of neighbouring seeds and labels have nothing in common."""
    return int.from_bytes(hashlib.sha256(repr((seed, *labels)).encode()).digest()[:6], "big")


def endless(count: int, seed: int, first: int, wanted: int) -> list[int]:
    """Numbers ``first`` to ``first + wanted`` of an endless row of the numbers below ``count``.

    The row goes through all of them again and again, each time in another order.
    """
    places = (divmod(place, count) for place in range(first, first + wanted))
    return [int(_order(count, mix(seed, time))[place]) for time, place in places]


@functools.lru_cache(maxsize=4)
def _order(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)
