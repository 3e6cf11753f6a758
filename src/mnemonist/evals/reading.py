"""Reading a text never seen before: what each byte cost, and how much it surprised the memory.

A token costs ``-log2 p(token | all before it)`` bits. To compare models of different tokenizers, bits are told per byte
of text: a token's bits are spread evenly over its bytes, and what the memory went through at a token it went through at
each of its bytes. Marks are no text, so what they cost is not counted. If a memory learns while it reads, bytes get
cheaper with their position in the text; the same model with its memory held still, or one without a memory, is what to
compare with.
"""

from __future__ import annotations

import codecs
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnemonist.data import ByteTokenizer, Tokenizer
from mnemonist.errors import UserError
from mnemonist.intervals import Interval, interval
from mnemonist.models.modeling import LanguageModel
from mnemonist.models.session import PIECE, Reading, Session, read_pieces

Progress = Callable[[int, int], None]
"""Called with bytes read so far and bytes in all."""

SLICE = 1024  # bytes of a stream that are turned into tokens at a time


@dataclass(frozen=True)
class MemoryTrace:
    """What the memories of one block went through: each ``[N, H, T]`` for N texts, H heads, T bytes."""

    loss: np.ndarray
    gradient_norm: np.ndarray
    step_size: np.ndarray
    momentum: np.ndarray | None
    decay: np.ndarray | None


@dataclass(frozen=True)
class TextReading:
    """What reading N texts of T bytes side by side gave."""

    bits: np.ndarray
    """``[N, T]``: bits paid for each byte, given all before it."""
    memories: dict[int, MemoryTrace]
    """Per block with a memory, if asked for."""
    state_bytes: int
    """Size of what the model keeps of one text."""
    seconds: float


@dataclass(frozen=True)
class StreamReading(TextReading):
    """What reading on in one stream gave; N is 1."""

    text: bytes
    """The T bytes that ``bits`` are of: what the session had left without tokens, and the texts but for such a rest."""
    taken: int
    """Bytes of the texts that were read, the rest without tokens included; less than all if it was stopped."""
    session: Session
    """What the model has become."""


def read_texts(
    model: LanguageModel,
    texts: Sequence[bytes],
    *,
    tokenizer: Tokenizer | None = None,
    learn: bool = True,
    surprise: bool = False,
    piece: int = PIECE,
    progress: Progress | None = None,
) -> TextReading:
    """Read texts of equal length side by side, each from its beginning and with memories of its own.

    Args:
        model: a model of this tokenizer.
        texts: N texts of T bytes each; where a text ends within a character, its last token counts for these bytes.
        tokenizer: the model's; None takes bytes.
        learn: False holds every memory still.
        surprise: whether to keep what the memories went through.
        piece: tokens read at a time; it bounds the working memory and changes nothing else.
        progress: called after each piece.

    Raises:
        ValueError: no text, an empty one, texts of different lengths or that the tokenizer cannot take; or ``piece`` is
            not positive.
    """
    lengths = {len(text) for text in texts}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"texts have lengths {sorted(lengths)}; give at least one text, none empty, all equally long.")
    T, N = lengths.pop(), len(texts)
    tokenizer = tokenizer or ByteTokenizer()
    rows = [_encode(tokenizer, text) for text in texts]
    widths = [_widths(tokenizer, row[1:], T) for row in rows]
    longest = max(range(N), key=lambda n: len(rows[n]))
    # Behind a shorter row stands what nobody looks at, and what comes later changes nothing before it.
    tokens = np.full((N, len(rows[longest])), tokenizer.bos_id)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids

    began = time.perf_counter()
    readings = []
    session = begin = Session.begin(model, N, piece=piece)
    for reading, session in read_pieces(model, [torch.from_numpy(tokens)], begin, learn=learn, surprise=surprise):
        readings.append(reading)
        if progress is not None:
            progress(int(widths[longest][: session.position - 1].sum()), T)
    seconds = time.perf_counter() - began
    whole = Reading.join(readings)
    places = [np.arange(1, len(row)) for row in rows]  # the first token marks the beginning
    return TextReading(*_by_byte(whole, places, widths), session.state.nbytes // N, seconds)


def read_on(
    model: LanguageModel,
    texts: Sequence[bytes],
    session: Session,
    *,
    tokenizer: Tokenizer | None = None,
    new_document: bool = False,
    learn: bool = True,
    surprise: bool = False,
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> StreamReading:
    """Read texts one after another, going on from a session: any cut of a text gives the same bits.

    The first text continues what was read before, unless the session is new; each other one is a document of its own
    behind a start mark. The end of the last one may be left without tokens until the text goes on.

    Args:
        model: the one that the session is of.
        texts: as many as you like.
        session: of one stream.
        tokenizer: the model's; None takes bytes.
        new_document: whether the first text, too, begins a document.
        learn: False holds every memory still.
        surprise: whether to keep what the memories went through.
        progress: called after each piece.
        stop: asked now and then; once it says True, reading ends early, with a session like any other.

    Raises:
        UserError: the session is of another model or tokenizer, or a text is none that the tokenizer can take.
        ValueError: there is nothing to read, or the session is of several streams.
    """
    tokenizer = tokenizer or ByteTokenizer()
    if not any(texts):
        raise ValueError("There is nothing to read; give at least one text that is not empty.")
    if session.batch != 1:
        raise ValueError(f"The session has {session.batch} streams; session.select(rows) picks one.")
    require_tokenizer(session, tokenizer)
    source = _Source(tokenizer, session, texts, new_document or session.position == 0, stop)
    began = time.perf_counter()
    readings, after = [], session
    for reading, after in read_pieces(model, source.chunks(), session, learn=learn, surprise=surprise):  # noqa: B007
        readings.append(reading)
        if progress is not None:
            progress(source.taken, source.total)
    seconds = time.perf_counter() - began

    text = source.text
    bits: np.ndarray = np.zeros((1, 0), np.float32)
    memories: dict[int, MemoryTrace] = {}
    if text:
        ids = np.concatenate(source.ids)
        place = np.flatnonzero(ids != tokenizer.bos_id)
        widths = _widths(tokenizer, ids[place], len(text))
        bits, memories = _by_byte(Reading.join(readings), [place], [widths])
    after = replace(after, remainder=source.stream.remainder, tokenizer=tokenizer.fingerprint)
    return StreamReading(bits, memories, after.state.nbytes, seconds, text, source.taken, after)


def require_tokenizer(session: Session, tokenizer: Tokenizer) -> None:
    """Make sure that a session goes on with the tokenizer it began with.

    Raises:
        UserError: it was another.
    """
    if session.tokenizer not in ("", tokenizer.fingerprint):
        raise UserError(f"the session was read with another tokenizer than this one ({tokenizer.name}); use the same")


class _Source:
    """Texts on their way into a stream of tokens; it remembers what has gone."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        session: Session,
        texts: Sequence[bytes],
        new_document: bool,
        stop: Callable[[], bool],
    ) -> None:
        self.stream = tokenizer.stream(session.remainder)
        self.taken, self.total = 0, sum(map(len, texts))
        self.ids: list[NDArray[np.int64]] = []
        self._before = session.remainder
        self._bos = np.array([tokenizer.bos_id])
        self._texts, self._new_document, self._stop = texts, new_document, stop

    def chunks(self) -> Iterator[Tensor]:
        """int64 ``[1, T]`` each."""
        for number, text in enumerate(self._texts):
            for at in range(0, len(text), SLICE):
                if self._stop():
                    return
                begins = at == 0 and (number > 0 or self._new_document)
                marks = [self.stream.finish(), self._bos] if begins else []
                part = text[at : at + SLICE]
                ids = np.concatenate([*marks, self.stream.feed(part)])
                self.ids.append(ids)
                self.taken += len(part)
                yield torch.from_numpy(ids)[None]

    @property
    def text(self) -> bytes:
        """What the ids so far stand for."""
        given = self._before + b"".join(self._texts)[: self.taken]
        return given[: len(given) - len(self.stream.remainder)]


def _encode(tokenizer: Tokenizer, text: bytes) -> NDArray[np.int64]:
    """Ids behind a start mark; a character that is cut at the end is left out if the tokenizer cannot take it."""
    if not isinstance(tokenizer, ByteTokenizer):
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(text)
        text = text[: len(text) - len(decoder.getstate()[0])]
    return tokenizer.encode(text, bos=True)


def _widths(tokenizer: Tokenizer, ids: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """How many of ``total`` bytes each id stands for: its own, or in proportion if the tokenizer has changed the text.

    Raises:
        UserError: there are no ids.
    """
    if not len(ids):
        raise UserError(f"the tokenizer ({tokenizer.name}) finds no text in {total} bytes; give more of it")
    counts = tokenizer.byte_counts(ids)
    ends = (counts if counts.any() else np.ones_like(counts)).cumsum()
    return np.diff(ends * total // ends[-1], prepend=0)


def _by_byte(
    reading: Reading, places: Sequence[NDArray[np.int64]], widths: Sequence[NDArray[np.int64]]
) -> tuple[np.ndarray, dict[int, MemoryTrace]]:
    """Bits ``[N, T]`` and memories of the tokens at ``places`` of each row, which are so many bytes wide."""
    bits = np.stack([_spread(row[at], w) for row, at, w in zip(reading.bits.numpy(), places, widths, strict=True)])

    def trace(part: Tensor | None) -> np.ndarray | None:
        if part is None:
            return None
        rows = [np.repeat(row[at], w, axis=0) for row, at, w in zip(part.cpu().numpy(), places, widths, strict=True)]
        return np.stack(rows).swapaxes(1, 2)

    memories = {}
    for block, seen in reading.surprise.items():
        loss, norm, step = trace(seen.loss), trace(seen.gradient_norm), trace(seen.step_size)
        assert loss is not None and norm is not None and step is not None
        memories[block] = MemoryTrace(loss, norm, step, trace(seen.momentum), trace(seen.decay))
    return bits, memories


def _spread(bits: np.ndarray, widths: NDArray[np.int64]) -> np.ndarray:
    """Bits of tokens as bits of their bytes; what a token without bytes costs goes to the one before it."""
    first = np.flatnonzero(widths)
    sums = np.add.reduceat(bits, np.concatenate([[0], first[1:]]))
    return np.repeat(sums / widths[first], widths[first]).astype(bits.dtype)


def paired_difference(a: np.ndarray, b: np.ndarray, start: int = 0) -> Interval:
    """How many bits per byte ``a`` pays less than ``b`` from byte ``start`` on, paired by text; both ``[N, T]``.

    Raises:
        ValueError: the shapes differ, or no byte is left.
    """
    if a.shape != b.shape or not 0 <= start < a.shape[1]:
        raise ValueError(
            f"bits are {list(a.shape)} and {list(b.shape)}, compared from byte {start}; the shapes must be the same "
            "[N, T], and start one of the T bytes."
        )
    return interval(b[:, start:].mean(1) - a[:, start:].mean(1))


@dataclass(frozen=True)
class BitsByPosition:
    """Bits per byte against position: one entry per bin."""

    positions: np.ndarray
    """Geometric centre of each bin, in bytes from 1."""
    mean: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None


def bits_by_position(bits: np.ndarray, bins: int = 16, first: int = 64) -> BitsByPosition:
    """Average ``bits [N, T]`` in bins that grow geometrically from ``first`` bytes, with 95% intervals over texts."""
    T = bits.shape[1]
    edges = np.unique(np.geomspace(min(first, T), T, bins).round().astype(int))
    edges = np.concatenate([[0], edges])
    cells = [interval(bits[:, a:b].mean(1)) for a, b in itertools.pairwise(edges)]
    mean = np.array([cell.mean for cell in cells])
    centre = np.sqrt((edges[:-1] + 1) * edges[1:].astype(float))
    if bits.shape[0] < 2:
        return BitsByPosition(centre, mean, None, None)
    half = np.array([cell.half_width for cell in cells])
    return BitsByPosition(centre, mean, mean - half, mean + half)
