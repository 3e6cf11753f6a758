"""Problems: sequences of tokens of which some are to be foretold, drawn by seed.

A *task* draws problems. How hard one is, is its *setting*: how many pairs, how long a text. A task is tested on a
*grid* of settings, and trained on its *lessons*, settings that may be easier. Problem number ``index`` of a seed is a
function of task, split, setting, seed and index alone, so that any part of a test can be drawn again, alone and in any
order, and those of training are others.

A model answers a problem if at each place that is asked the likeliest token is the right one. It reads the right tokens
before that place, so the answer to a question of several tokens is right exactly if writing greedily would write it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mnemonist.data import IGNORED, Tokenizer
from mnemonist.errors import UserError

Setting = Mapping[str, int | str]
"""How hard a problem is, by name: ``{"length": 256, "pairs": 64}``."""

Split = Literal["train", "held-out", "test"]
"""Held-out problems are asked while a model is trained, those of the test by `mnemonist eval`; streams of their own."""


@dataclass(frozen=True, eq=False)
class Problem:
    """One sequence.

    Raises:
        ValueError: the two are not rows of one length, or nothing is asked.
    """

    tokens: NDArray[np.int64]
    """``[T]``: what is read."""
    targets: NDArray[np.int64]
    """``[T]``: the token that should follow each one; -100 (`IGNORED`) where nothing is asked."""

    def __post_init__(self) -> None:
        if self.tokens.ndim != 1 or self.tokens.shape != self.targets.shape:
            raise ValueError(
                f"tokens are {list(self.tokens.shape)} and targets {list(self.targets.shape)}; both must be [T]."
            )
        if not (self.targets != IGNORED).any():
            raise ValueError("A problem must ask for at least one token.")


@dataclass(frozen=True, eq=False)
class Problems:
    """Several side by side; behind a shorter one stands what nobody is asked about."""

    tokens: NDArray[np.int64]
    """``[N, T]``."""
    targets: NDArray[np.int64]
    """``[N, T]``; -100 where nothing is asked."""

    @staticmethod
    def stack(problems: Sequence[Problem]) -> Problems:
        """One row each, as long as the longest.

        Raises:
            ValueError: there are none.
        """
        if not problems:
            raise ValueError("There are no problems to stack; give at least one.")
        shape = len(problems), max(len(problem.tokens) for problem in problems)
        tokens, targets = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
        for n, problem in enumerate(problems):
            tokens[n, : len(problem.tokens)] = problem.tokens
            targets[n, : len(problem.tokens)] = problem.targets
        return Problems(tokens, targets)

    def __len__(self) -> int:
        return len(self.tokens)


class Task(Protocol):
    """Draws problems. An implementation is a frozen dataclass; its fields are what a user may change."""

    name: str
    """What the command line calls it."""
    metric: Literal["token", "problem"]
    """What is counted: tokens foretold, or problems of which every token is."""

    @property
    def vocab_size(self) -> int:
        """Tokens are from 0 to below this."""
        ...

    @property
    def grid(self) -> Sequence[Setting]:
        """The settings of the test; all have the same names."""
        ...

    @property
    def lessons(self) -> Sequence[Setting]:
        """The settings of training, one after the other; repeat one to see it more often."""
        ...

    @property
    def chance(self) -> float:
        """What a guess reaches that knows what answers look like; 0 if that is next to nothing."""
        ...

    def draw(self, random: np.random.Generator, setting: Setting) -> Problem:
        """One problem of a setting.

        Raises:
            UserError: no problem can have this setting.
        """
        ...


def draw(task: Task, setting: Setting, count: int, seed: int = 0, split: Split = "test", first: int = 0) -> Problems:
    """Problems number ``first`` to ``first + count - 1``.

    Raises:
        UserError: no problem can have this setting.
        ValueError: ``count`` is not positive.
    """
    return draw_each(task, [setting] * count, seed, split, first)


def draw_each(task: Task, settings: Sequence[Setting], seed: int, split: Split, first: int) -> Problems:
    """A problem of each setting, numbered from ``first`` on.

    Raises:
        UserError: no problem can have such a setting.
        ValueError: there are no settings.
    """
    return Problems.stack(
        [task.draw(generator(task.name, split, one, seed, index), one) for index, one in enumerate(settings, first)]
    )


def generator(name: str, split: Split, setting: Setting, seed: int, index: int) -> np.random.Generator:
    """What problem number ``index`` is drawn from."""
    what = json.dumps([name, split, dict(sorted(setting.items()))])
    root = int.from_bytes(hashlib.sha256(what.encode()).digest()[:8], "big")
    return np.random.default_rng([root, seed, index])


@dataclass(frozen=True)
class Question:
    """A text, and how it should go on."""

    text: str
    answer: str

    def problem(self, tokenizer: Tokenizer, *, bos: bool = True) -> Problem:
        """As tokens, behind a start mark unless ``bos`` is false; all tokens of the answer are asked for.

        Raises:
            UserError: the answer has no tokens.
        """
        before, after = tokenizer.encode(self.text, bos=bos), tokenizer.encode(self.answer)
        if not len(after):
            raise UserError(f"the tokenizer ({tokenizer.name}) has no tokens for the answer {self.answer!r}")
        whole = np.concatenate([before, after])
        targets = np.full(len(whole) - 1, IGNORED, np.int64)
        targets[len(before) - 1 :] = after
        return Problem(whole[:-1], targets)
