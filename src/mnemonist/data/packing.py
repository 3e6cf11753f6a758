"""Packing: a corpus as rows of equal length, without padding and without a position to remember.

Every epoch lays the documents end to end in a new order, each behind a start mark, cuts this stream into
rows and shuffles the rows. A row's last target is the next row's first token, so rows overlap by one token
and every token but the first of the stream is a target once. What is left at the end of the stream (less
than a row, other text in every epoch) is dropped.

Which rows make up a batch follows from the step alone: there is no iterator whose position could be lost,
so a run that is resumed at step n reads exactly what it would have read, on any number of machines.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .corpus import Document
from .tokenizer import ByteTokenizer, Tokenizer

IGNORED = -100  # the target that cross entropy leaves out
PIECE = 1 << 20  # bytes of a document that are turned into tokens at a time

Progress = Callable[[int], object]
"""Called with the number of bytes of the corpus that have become tokens so far."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of tokens and what follows each of them.

    Args:
        tokens: `[B, T]` int64.
        targets: `[B, T]` int64, the token after each; -100 where that is the start of the next document:
            where a document ends is not what we want to learn.
        starts: `[B, T]` bool, True on the start mark of a document; a row may begin in the middle of one.
    """

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    starts: NDArray[np.bool_]


class PackedRows:
    """The rows of a corpus, epoch after epoch, each a pure function of its number and the seed.

    Args:
        documents: the corpus; one copy of its tokens is kept, of two bytes each if the vocabulary allows it.
        row_length: tokens of a row, `T`.
        seed: a whole number from 0, from which every order follows.
        tokenizer: what turns text into tokens; None takes bytes.
        progress: called now and then while it does.
        name: what errors call the corpus.

    Attributes:
        bytes_per_token: of the text, start marks left out; 1 for bytes.

    Raises:
        ValueError: when `row_length` or `seed` is out of range.
        UserError: when the corpus does not fill one row.
    """

    def __init__(
        self,
        documents: Iterable[Document],
        row_length: int,
        seed: int,
        tokenizer: Tokenizer | None = None,
        progress: Progress | None = None,
        name: str = "the corpus",
    ) -> None:
        if row_length < 1:
            raise ValueError(f"row_length must be at least 1, not {row_length}")
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, not {seed}")
        tokenizer = tokenizer or ByteTokenizer()
        self.row_length = row_length
        self.seed = seed
        self._tokens, self._lengths, text_bytes = _tokenize(documents, tokenizer, progress)
        self._bos = tokenizer.bos_id
        self.bytes_per_token = text_bytes / max(1, len(self._tokens) - len(self._lengths))
        if len(self._tokens) < row_length + 1:
            raise UserError(
                f"{name} has {len(self._tokens)} tokens, and one row takes {row_length + 1}: "
                "give more text or shorter rows"
            )
        self._orders: dict[int, _EpochOrder] = {}

    @property
    def rows_per_epoch(self) -> int:
        return (len(self._tokens) - 1) // self.row_length

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens read in one epoch, which is all of them but the tail and the last."""
        return self.rows_per_epoch * self.row_length

    @property
    def tail(self) -> int:
        """Targets dropped in one epoch, because they do not fill a row."""
        return len(self._tokens) - 1 - self.tokens_per_epoch

    def epoch(self, step: int, batch_size: int, world: int = 1) -> float:
        """How many epochs have been read when `step` begins."""
        return step * batch_size * world / self.rows_per_epoch

    def batch(self, step: int, batch_size: int, rank: int = 0, world: int = 1) -> Batch:
        """The `batch_size` rows that process `rank` of `world` reads at `step`.

        Together the processes read what one process would with `batch_size * world`, in the same order.
        Epochs follow one another without a gap; a batch may hold the end of one and the start of the next.

        Returns:
            A `Batch` of shape `[batch_size, row_length]`, of fresh arrays.

        Raises:
            ValueError: when an argument is out of range.
        """
        if step < 0 or batch_size < 1:
            raise ValueError(f"step must be 0 or more and batch_size 1 or more, not {step} and {batch_size}")
        if not 0 <= rank < world:
            raise ValueError(f"rank must be from 0 to world - 1 = {world - 1}, not {rank}")
        numbers = (step * world + rank) * batch_size + np.arange(batch_size)
        epochs, rows = np.divmod(numbers, self.rows_per_epoch)
        windows = np.concatenate([self._windows(int(e), rows[epochs == e]) for e in np.unique(epochs)])
        tokens, following = windows[:, :-1], windows[:, 1:]
        return Batch(
            tokens=tokens.copy(),
            targets=np.where(following == self._bos, IGNORED, following),
            starts=tokens == self._bos,
        )

    def _windows(self, epoch: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens `[N, T + 1]` of some rows of an epoch, looked up without laying out its stream."""
        order = self._epoch_order(epoch)
        first = order.rows[rows] * self.row_length
        positions = first[:, None] + np.arange(self.row_length + 1)
        documents = np.searchsorted(order.ends, positions, side="right")
        return self._tokens[positions + order.shifts[documents]].astype(np.int64)

    def _epoch_order(self, epoch: int) -> "_EpochOrder":
        if epoch not in self._orders:
            if len(self._orders) == 2:  # a batch may end one epoch and begin the next
                self._orders.pop(min(self._orders))
            self._orders[epoch] = self._make_epoch_order(epoch)
        return self._orders[epoch]

    def _make_epoch_order(self, epoch: int) -> "_EpochOrder":
        bits = np.random.PCG64(np.random.SeedSequence([self.seed, epoch]))
        order = _permutation(bits, len(self._lengths))
        ends = np.cumsum(self._lengths[order])
        origins = np.cumsum(self._lengths) - self._lengths
        shifts = origins[order] - (ends - self._lengths[order])
        return _EpochOrder(_permutation(bits, self.rows_per_epoch), ends, shifts)


@dataclass(frozen=True, eq=False)
class _EpochOrder:
    rows: NDArray[np.int64]  # which row of the stream is read first, second, ...
    ends: NDArray[np.int64]  # where each document ends in the stream
    shifts: NDArray[np.int64]  # of each document, from a place in the stream to the same token in `_tokens`


def _tokenize(
    documents: Iterable[Document], tokenizer: Tokenizer, progress: Progress | None
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.int64], int]:
    """The tokens of all documents, each behind its start mark; how many each has; and the bytes of all texts."""
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    parts: list[NDArray[np.unsignedinteger]] = [np.empty(0, dtype)]
    lengths = []
    done = 0
    for document in documents:
        first = len(parts)
        stream = tokenizer.stream()
        parts.append(np.array([tokenizer.bos_id], dtype))
        for at in range(0, len(document.text), PIECE):
            piece = document.text[at : at + PIECE]
            parts.append(stream.feed(piece).astype(dtype))
            done += len(piece)
            if progress is not None:
                progress(done)
        parts.append(stream.finish().astype(dtype))
        lengths.append(sum(map(len, parts[first:])))
    return np.concatenate(parts), np.array(lengths, dtype=np.int64), done


def _permutation(bits: np.random.PCG64, count: int) -> NDArray[np.int64]:
    """A shuffle made by sorting raw random bits, whose stream numpy promises to keep; that of
    `Generator.permutation` may change with its version, and a resumed run would read other rows."""
    return np.argsort(bits.random_raw(count), kind="stable").astype(np.int64)
