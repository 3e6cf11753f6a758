"""Text as numbers: what every tokenizer does, and the simplest one, a byte at a time.

A byte tokenizer needs no training and loses nothing: any text in any language, and anything else, is a
sequence of 256 symbols. It pays with length (English has about four bytes to a subword), which is what a
memory is for. Three more symbols mark what bytes cannot say: where a document starts, where it ends, and
that nothing is there.

A text that arrives in pieces must give the ids it would have given whole, wherever it was cut. A stream of
bytes does so by itself; any other tokenizer holds back the end of a piece until it knows how it goes on.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mnemonist.errors import UserError

Ids = NDArray[np.int64]
AnyIds = Sequence[int] | NDArray[np.integer]


class TokenStream(Protocol):
    """One text on its way into ids: feed it in pieces of any size, then finish it."""

    @property
    def remainder(self) -> bytes:
        """What was fed and has no ids yet, at most some kilobytes; `Tokenizer.stream` goes on from it."""
        ...

    def feed(self, data: bytes) -> Ids:
        """Ids `[T]` that are certain now, however the text goes on.

        Raises:
            UserError: the tokenizer reads text alone, and `data` is not UTF-8 (a character may be cut).
        """
        ...

    def finish(self) -> Ids:
        """Ids `[T]` of what was held back; the stream is then at the beginning of another text.

        Raises:
            UserError: the text ends in the middle of a character.
        """
        ...


class Tokenizer(Protocol):
    """Text to ids and back. Its marks are ids too, but never come from text, whatever a text says."""

    @property
    def name(self) -> str:
        """What kind it is, for people."""
        ...

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits; equal for two tokenizers if they give the same ids."""
        ...

    @property
    def vocab_size(self) -> int:
        """Ids go from 0 to below this."""
        ...

    @property
    def bos_id(self) -> int:
        """What stands before every document; `eos_id`, if the tokenizer has no mark for a start."""
        ...

    @property
    def eos_id(self) -> int | None:
        """What ends a document."""
        ...

    @property
    def pad_id(self) -> int | None:
        """What fills rows."""
        ...

    @property
    def lossless(self) -> bool:
        """Whether the bytes of a text come back from its ids; some tokenizers tidy text up."""
        ...

    def encode(self, text: str | bytes, *, bos: bool = False, eos: bool = False) -> Ids:
        """Ids `[T]` of a whole text, with the start and end marks asked for.

        Raises:
            UserError: the text is not UTF-8 and the tokenizer needs that, or an end mark is asked for and
                there is none.
        """
        ...

    def decode(self, ids: AnyIds) -> str:
        """Text of `ids [T]`; marks are left out, and bytes that are not UTF-8 are shown as U+FFFD.

        Raises:
            ValueError: as `decode_bytes`.
        """
        ...

    def decode_bytes(self, ids: AnyIds) -> bytes:
        """Bytes of `ids [T]`; marks are left out.

        Raises:
            ValueError: the ids are not one row of whole numbers from 0 to below `vocab_size`.
        """
        ...

    def byte_counts(self, ids: AnyIds) -> Ids:
        """How many bytes of text each of `ids [T]` stands for, 0 for marks: int64 `[T]`.

        Raises:
            ValueError: as `decode_bytes`.
        """
        ...

    def stream(self, remainder: bytes = b"") -> TokenStream:
        """A text in pieces: any cut gives the ids of the whole. `remainder` is that of an earlier stream."""
        ...

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the files from which `find_tokenizer` and transformers' AutoTokenizer make it again.

        Raises:
            FileError: they cannot be written.
        """
        ...


class ByteTokenizer:
    """Bytes are their own ids, 0 to 255; `bos_id` starts a document, `eos_id` ends it, `pad_id` fills."""

    name = "bytes"
    fingerprint = hashlib.sha256(b"mnemonist bytes, marks 256 257 258").hexdigest()[:16]
    vocab_size = 259
    bos_id = 256
    eos_id = 257
    pad_id = 258
    lossless = True

    def encode(self, text: str | bytes, *, bos: bool = False, eos: bool = False) -> Ids:
        """Ids `[T]` of `text` (a string is taken as UTF-8), with the start and end marks asked for.

        Raises:
            UserError: when a string holds what UTF-8 cannot write (half of a surrogate pair).
        """
        data = utf8(text)
        ids = np.empty(len(data) + bos + eos, dtype=np.int64)
        ids[int(bos) : int(bos) + len(data)] = np.frombuffer(data, dtype=np.uint8)
        if bos:
            ids[0] = self.bos_id
        if eos:
            ids[-1] = self.eos_id
        return ids

    def decode(self, ids: AnyIds) -> str:
        """See `Tokenizer.decode`."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: AnyIds) -> bytes:
        """See `Tokenizer.decode_bytes`."""
        array = checked_ids(ids, self.vocab_size)
        return array[array < 256].astype(np.uint8).tobytes()

    def byte_counts(self, ids: AnyIds) -> Ids:
        """See `Tokenizer.byte_counts`."""
        return (checked_ids(ids, self.vocab_size) < 256).astype(np.int64)

    def stream(self, remainder: bytes = b"") -> TokenStream:
        """Bytes as they come; nothing is ever held back."""
        if remainder:
            raise UserError("a stream of bytes holds nothing back: this remainder is of another tokenizer")
        return _ByteStream()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """See `Tokenizer.save`."""
        from mnemonist.data.hugging_face_tokenizer import save_byte_tokenizer  # it needs transformers

        save_byte_tokenizer(folder)


class _ByteStream:
    remainder = b""

    def feed(self, data: bytes) -> Ids:
        return np.frombuffer(data, dtype=np.uint8).astype(np.int64)

    def finish(self) -> Ids:
        return np.empty(0, np.int64)


def utf8(text: str | bytes) -> bytes:
    """The bytes of a text.

    Raises:
        UserError: when a string holds what UTF-8 cannot write (half of a surrogate pair).
    """
    if isinstance(text, bytes):
        return text
    try:
        # Bytes of the command line that are not UTF-8 reach us as surrogates: give them back.
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise UserError(f"the text cannot be written as UTF-8 at character {error.start}") from error


def checked_ids(ids: AnyIds, vocab_size: int) -> Ids:
    """`ids` as int64 `[T]`.

    Raises:
        ValueError: they are not one row of whole numbers from 0 to below `vocab_size`.
    """
    array = np.asarray(ids)
    if array.size == 0:
        return np.empty(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"ids must be one row of whole numbers, not {array.dtype} of shape {array.shape}; decode a batch row by row"
        )
    if array.min() < 0 or array.max() >= vocab_size:
        wrong = array[(array < 0) | (array >= vocab_size)][0]
        raise ValueError(f"id {wrong} is not in the vocabulary; ids go from 0 to {vocab_size - 1}")
    return array.astype(np.int64)
