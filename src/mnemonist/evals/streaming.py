"""A needle in a stream: one secret at the beginning, asked for again and again while reading goes on.

RULER's S-NIAH-1 measures each length with texts of its own, so a test of a million tokens reads a million for each
answer. A model with a state reads each stream once: at each distance a copy of the state is asked, the answer is thrown
away, and the stream goes on as if nobody had asked. Opening, needle, haystack and question are those of `needles`; or,
with the haystack `source`, fact and question are those of `planted`, and the stream is source code that training leaves
out, all of it from some line on and then again from its beginning.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mnemonist.data import ByteTokenizer, Tokenizer
from mnemonist.errors import UserError
from mnemonist.evals.needles import NEEDLE, NOISE, doubling, key_words, parts_of_prompt, secret
from mnemonist.evals.planted import FACT, QUESTION, fact, source_lines
from mnemonist.evals.problems import Problems, Question, Setting, generator
from mnemonist.evals.results import Row
from mnemonist.evals.scoring import Progress, score
from mnemonist.models.cost import model_cost
from mnemonist.models.modeling import LanguageModel, ModelState

PIECE = 1024  # tokens of each stream that are read at a time
MOST_BYTES = 8 << 30  # of state, over all streams


@dataclass(frozen=True)
class Streaming:
    """Recall over distance.

    Raises:
        ValueError: a field is out of range.
    """

    nearest: int = 1024
    """The first distance, in tokens; the length a model was trained at, say."""
    times: int = 64
    """The last distance is so many times the first; those between double."""
    haystack: str = "noise"
    """What is read on: noise, that of S-NIAH-1; or source, unseen source code."""
    count: int = 16
    """Streams."""
    seed: int = 0
    tokenizer: Tokenizer = field(default_factory=ByteTokenizer)
    """The model's."""

    def __post_init__(self) -> None:
        if min(self.nearest, self.times, self.count) < 1 or self.seed < 0:
            raise ValueError(
                f"nearest is {self.nearest}, times {self.times}, count {self.count} and seed {self.seed}; they must be "
                "at least 1, the seed at least 0."
            )

        if self.haystack not in ("noise", "source"):
            raise ValueError(f"haystack is {self.haystack!r}; it must be noise or source.")

    @property
    def name(self) -> str:
        """Of the suite."""
        return "streaming"

    @property
    def measure(self) -> str:
        """Of its rows."""
        return "secrets recalled"

    @property
    def x(self) -> str:
        """Tokens read since the beginning of the stream."""
        return "distance"

    @property
    def vocab_size(self) -> int:
        """Of the tokenizer."""
        return self.tokenizer.vocab_size

    @property
    def steps(self) -> list[list[Setting]]:
        """All distances come of one reading."""
        return [[{"distance": each} for each in doubling(self.nearest, self.nearest * self.times)]]

    def identity(self) -> dict[str, Any]:
        """The fields."""
        return {
            "suite": self.name,
            "nearest": self.nearest,
            "times": self.times,
            "haystack": self.haystack,
            "count": self.count,
            "seed": self.seed,
            "tokenizer": self.tokenizer.fingerprint,
        }

    def references(self) -> dict[str, list[Row]]:
        """None."""
        return {}

    def run(self, model: LanguageModel, settings: Sequence[Setting], progress: Progress) -> Iterator[Row]:
        """See `Suite.run`.

        Raises:
            UserError: the model attends to everything, and the streams would not fit into memory.
        """
        distances = [int(setting["distance"]) for setting in settings]
        keeps = model_cost(model.config).state_bytes_per_token * distances[-1] * self.count
        if keeps > MOST_BYTES:
            raise UserError(
                f"the model keeps {keeps / 2**30:,.0f} GiB of {self.count} streams of {distances[-1]:,} tokens, since "
                "it attends to everything; take a lower times or fewer streams (--count)"
            )
        streams = [_Stream(self, index) for index in range(self.count)]
        state: ModelState | None = None
        for distance in distances:
            state = _read_on(model, streams, distance, state, progress)
            problems = Problems.stack([s.question.problem(self.tokenizer, bos=False) for s in streams])
            scores = score(model, problems, progress, state)
            bits = float(scores.bits.sum() / scores.asked.sum())
            yield Row.of({"distance": distance}, scores.problems, bits_per_token=bits)


class _Stream:
    """The tokens of one stream, piece by piece."""

    def __init__(self, suite: Streaming, index: int) -> None:
        random = generator("streaming", "test", {}, suite.seed, index)
        self._tokenizer = suite.tokenizer
        if suite.haystack == "noise":
            key, value = key_words(random), secret(random, "numbers")
            opening, asks = parts_of_prompt("numbers", [key])
            begins = opening + NEEDLE.format(kind="numbers", key=key, value=value)
            self._pieces: Iterator[str] = itertools.repeat("\n" + NOISE)
        else:
            key, value = fact(random)
            begins, asks = FACT.format(key=key, value=value), QUESTION.format(key=key)
            self._pieces = source_lines(random)
        self.question = Question(asks, " " + value)
        self._begins = suite.tokenizer.encode(begins, bos=True)
        self._piece = self._begins  # the one that comes next
        self._text = ""
        self._read = 0

    def up_to(self, distance: int) -> NDArray[np.int64]:
        """The next tokens, of whole lines, so that no more than ``distance`` have come in all.

        Raises:
            UserError: not even the needle has come by then.
        """
        if self._read == 0 and len(self._begins) > distance:
            raise UserError(f"the needle takes {len(self._begins)} tokens; {distance} are too near")
        parts: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
        while self._read + len(self._piece) <= distance:
            parts.append(self._piece)
            self._read += len(self._piece)
            text = next(self._pieces)
            if text != self._text:  # noise is the same again and again
                self._text, self._next = text, self._tokenizer.encode(text)
            self._piece = self._next
        return np.concatenate(parts)


def _read_on(
    model: LanguageModel, streams: Sequence[_Stream], distance: int, state: ModelState | None, progress: Progress
) -> ModelState | None:
    """The state after all streams have come as near to a distance as their lines allow."""
    rows = [stream.up_to(distance) for stream in streams]
    longest = max(map(len, rows))
    device = model.embedding.weight.device
    for at in range(0, longest, PIECE):
        parts = [row[at : at + PIECE] for row in rows]
        width = max(map(len, parts))
        tokens = torch.zeros(len(rows), width, dtype=torch.int64)
        for n, part in enumerate(parts):
            tokens[n, : len(part)] = torch.from_numpy(part)
        mask = torch.arange(width) < torch.tensor([len(part) for part in parts])[:, None]
        padding = None if bool(mask.all()) else mask.to(device)
        with torch.inference_mode():
            state = model(tokens.to(device), state, padding, positions=slice(0)).state
        progress(int(mask.sum()))
    return state
