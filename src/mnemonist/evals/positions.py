"""Perplexity by position: what a byte costs, the further into a long text it stands.

A model that makes use of what it has read pays less and less; one that cannot look back further than a window stays
where it is; one that was trained on short texts and does not carry over to long ones pays more and more. The texts are
unseen by those trained on ``stdlib``: modules of Python's standard library that training leaves out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mnemonist.data import ByteTokenizer, Document, Tokenizer, fingerprint, read_path, standard_library
from mnemonist.errors import UserError
from mnemonist.evals.problems import Setting
from mnemonist.evals.reading import read_texts
from mnemonist.evals.results import Row
from mnemonist.evals.scoring import Progress
from mnemonist.models.modeling import LanguageModel

FIRST = 256  # bytes of the first bin; each other is as long as all before it


@dataclass(frozen=True)
class Positions:
    """Bits per byte by position."""

    data: str = "stdlib"
    """What to read: stdlib (its held-out modules), or a file or folder."""
    length: int = 16384
    """Bytes of each text; at least 512."""
    memory: str = "learning"
    """Whether memories learn while reading: learning or frozen."""
    reset_every: int = 0
    """Bytes after which the model forgets everything and reads on as if a text began; 0 never."""
    count: int = 8
    """Texts."""
    seed: int = 0
    """Which texts: so many of ``count`` are left out before the first."""
    tokenizer: Tokenizer = field(default_factory=ByteTokenizer)
    """The model's."""

    def __post_init__(self) -> None:
        if self.length < 2 * FIRST:
            raise ValueError(f"length is {self.length}; it must be at least {2 * FIRST} bytes.")
        if self.memory not in ("learning", "frozen"):
            raise ValueError(f"memory is {self.memory!r}; it must be learning or frozen.")
        if self.reset_every < 0 or (self.reset_every and self.length % self.reset_every):
            raise ValueError(f"reset_every is {self.reset_every}; it must divide length, {self.length}, or be 0.")
        if self.count < 1 or self.seed < 0:
            raise ValueError(f"count is {self.count} and seed {self.seed}; read at least 1 text, with a seed from 0.")

    @property
    def name(self) -> str:
        """Of the suite."""
        return "positions"

    @property
    def measure(self) -> str:
        """Of its rows."""
        return "bits per byte"

    @property
    def x(self) -> str:
        """Bytes from the beginning of the text to the end of the bin."""
        return "position"

    @property
    def vocab_size(self) -> int:
        """Of the tokenizer."""
        return self.tokenizer.vocab_size

    @property
    def edges(self) -> list[int]:
        """Where bins end, in bytes: doubling, the last one at the end of the text."""
        doublings = math.ceil(math.log2(self.length / FIRST))
        return [FIRST << i for i in range(doublings)] + [self.length]

    @property
    def steps(self) -> list[list[Setting]]:
        """All bins come of one reading."""
        return [[{"position": edge} for edge in self.edges]]

    def identity(self) -> dict[str, Any]:
        """The fields, and which texts these are."""
        return {
            "suite": self.name,
            "texts": fingerprint(self.texts()),
            "length": self.length,
            "memory": self.memory,
            "reset_every": self.reset_every,
            "tokenizer": self.tokenizer.fingerprint,
        }

    def texts(self) -> tuple[Document, ...]:
        """What is read.

        Raises:
            UserError: there is not so much text.
        """
        documents = standard_library("heldout") if self.data == "stdlib" else read_path(Path(self.data)).documents
        return long_texts(documents, self.count * (self.seed + 1), self.length)[self.count * self.seed :]

    def references(self) -> dict[str, list[Row]]:
        """None."""
        return {}

    def run(self, model: LanguageModel, settings: Sequence[Setting], progress: Progress) -> Iterator[Row]:
        """See `Suite.run`."""
        texts, read = [text.text for text in self.texts()], 0

        def advance(done: int, total: int) -> None:
            nonlocal read
            progress((done - read) * len(parts))
            read = done

        learn = self.memory == "learning"
        every = self.reset_every or self.length
        parts = [text[at : at + every] for text in texts for at in range(0, self.length, every)]
        bits = read_texts(model, parts, tokenizer=self.tokenizer, learn=learn, progress=advance).bits
        bits = bits.reshape(len(texts), self.length)
        for begin, end in itertools.pairwise([0, *self.edges]):
            setting = {"position": end}
            if setting in settings:
                yield Row.of(setting, np.asarray(bits[:, begin:end].mean(1), np.float64))


def long_texts(documents: Sequence[Document], count: int, length: int) -> tuple[Document, ...]:
    """So many texts of so many bytes: documents that are as long, shortest first; or else stretches of all of them.

    A stretch runs from one document into the next, in the order given, with an empty line between them.

    Raises:
        UserError: there is not so much text.
    """
    long = sorted((d for d in documents if len(d.text) >= length), key=lambda d: (len(d.text), d.name))
    if len(long) >= count:
        return tuple(Document(d.name, d.text[:length]) for d in long[:count])
    whole = b"\n\n".join(document.text for document in documents)
    if len(whole) < count * length:
        raise UserError(
            f"{count} texts of {length:,} bytes are asked for, but there are {len(whole):,} bytes in all; read fewer "
            "or shorter ones"
        )
    stretches = [whole[i * length : (i + 1) * length] for i in range(count)]
    return tuple(Document(f"stretch {i + 1}", text) for i, text in enumerate(stretches))
