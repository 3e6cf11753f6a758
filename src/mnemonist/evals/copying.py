"""Copying: read a string, write it again; or find the place in it where some letters stand, and go on from there.

Jelassi et al. 2024 (arXiv 2402.01032): a transformer copies strings far longer than it was trained on, since it looks
n-grams up; a memory of constant size must hold the whole string. The forms are theirs: ``$string|string.`` to copy;
``$ngram|string|answer.`` and ``$string|ngram answer.`` to look up what follows an n-gram, asked for before the string
or after it. The answer is as long as the n-gram, and the space is none of the tokens.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from mnemonist.data import IGNORED
from mnemonist.errors import UserError, nearest
from mnemonist.evals.problems import Problem, Setting

BEGIN, BAR, END = 0, 1, 2
MARKS = ("$", "|", ".")
TRIES = 100  # strings that are drawn before a lookup is called impossible
VARIANTS = ("copy", "prefix-ngram", "suffix-ngram")


@dataclass(frozen=True)
class Copying:
    """Copying and n-gram lookup.

    Raises:
        ValueError: a field is out of range.
    """

    name: ClassVar[str] = "copy"
    metric: ClassVar[Literal["token", "problem"]] = "problem"

    variant: str = "copy"
    """copy, prefix-ngram or suffix-ngram."""
    letters: int = 26
    """Of the alphabet; behind the three marks ``$``, ``|`` and ``.`` their ids are 3, 4 ..."""
    ngram: int = 3
    """Letters that are looked up."""
    trained: int = 20
    """Letters of the longest lesson; the shortest has a quarter of them."""
    longest: int = 320
    """Letters of the longest test; the shortest has as many as the longest lesson, those between double."""

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(
                f"variant is {self.variant!r}{nearest(self.variant, VARIANTS)}; it must be one of "
                f"{', '.join(VARIANTS)}."
            )
        if self.letters < 2 or self.ngram < 1:
            raise ValueError(f"letters is {self.letters} and ngram {self.ngram}; they must be at least 2 and 1.")
        if not max(4, self._shortest) <= self.trained <= self.longest:
            raise ValueError(
                f"trained is {self.trained} and longest {self.longest}; the first must be at least "
                f"{max(4, self._shortest)} and at most the second."
            )

    @property
    def vocab_size(self) -> int:
        """Letters and marks."""
        return self.letters + len(MARKS)

    @property
    def grid(self) -> list[Setting]:
        """Strings of doubling length."""
        lengths = [self.trained]
        while lengths[-1] < self.longest:
            lengths.append(min(2 * lengths[-1], self.longest))
        return [{"letters": length} for length in lengths]

    @property
    def lessons(self) -> list[Setting]:
        """Four lengths."""
        return [{"letters": max(self._shortest, self.trained * i // 4)} for i in range(1, 5)]

    @property
    def chance(self) -> float:
        """Next to nothing."""
        return 0.0

    def draw(self, random: np.random.Generator, setting: Setting) -> Problem:
        """One string with its question; the answer and the mark behind it are asked for.

        Raises:
            UserError: the string is too short for its n-gram and the answer, or every string of it has repeats.
        """
        length = int(setting["letters"])
        if length < self._shortest:
            raise UserError(f"a string of {length} letters is too short for {self.variant}; give it more")
        if self.variant == "copy":
            letters = random.integers(0, self.letters, length)
            before, answer = [BEGIN, *_ids(letters), BAR], letters
        else:
            letters, at = self._lookup(random, length)
            asked, answer = letters[at : at + self.ngram], letters[at + self.ngram : at + 2 * self.ngram]
            parts = (asked, letters) if self.variant == "prefix-ngram" else (letters, asked)
            before = [BEGIN, *_ids(parts[0]), BAR, *_ids(parts[1])]
            before += [BAR] if self.variant == "prefix-ngram" else []
        after = [*_ids(answer), END]
        whole = np.array([*before, *after])
        targets = np.full(len(whole) - 1, IGNORED, np.int64)
        targets[len(before) - 1 :] = after
        return Problem(whole[:-1], targets)

    @property
    def _shortest(self) -> int:
        """Letters that a string has at least: an n-gram and the answer."""
        return 1 if self.variant == "copy" else 2 * self.ngram

    def _lookup(self, random: np.random.Generator, length: int) -> tuple[np.ndarray, int]:
        """A string, and a place in it whose n-gram stands nowhere else.

        Raises:
            UserError: of many strings none has such a place.
        """
        for _ in range(TRIES):
            letters = random.integers(0, self.letters, length)
            grams = np.lib.stride_tricks.sliding_window_view(letters, self.ngram)
            _, first, counts = np.unique(grams, axis=0, return_index=True, return_counts=True)
            places = np.sort(first[counts == 1])
            places = places[places <= length - 2 * self.ngram]
            if len(places):
                return letters, int(places[random.integers(len(places))])
        raise UserError(
            f"every {self.ngram} letters of a string of {length} stand in it twice; take a larger ngram or more letters"
        )


def written(tokens: np.ndarray) -> str:
    """Tokens as the paper prints them; letters beyond z as numbers in brackets."""
    return "".join(MARKS[t] if t < len(MARKS) else _letter(int(t) - len(MARKS)) for t in tokens)


def _letter(number: int) -> str:
    return string.ascii_lowercase[number] if number < 26 else f"[{number}]"


def _ids(letters: np.ndarray) -> list[int]:
    return [len(MARKS) + letter for letter in letters.tolist()]
