"""Text as numbers, one byte at a time.

A byte tokenizer needs no training and loses nothing: any text in any language, and anything else, is a
sequence of 256 symbols. It pays with length (English has about four bytes to a subword), which is what a
memory is for. Three more symbols mark what bytes cannot say: where a document starts, where it ends, and
that nothing is there.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError


class ByteTokenizer:
    """Bytes are their own ids, 0 to 255; `bos_id` starts a document, `eos_id` ends it, `pad_id` fills."""

    bos_id = 256
    eos_id = 257
    pad_id = 258
    vocab_size = 259

    def encode(self, text: str | bytes, *, bos: bool = False, eos: bool = False) -> NDArray[np.int64]:
        """Ids `[T]` of `text` (a string is taken as UTF-8), with the start and end marks asked for.

        Raises:
            UserError: when a string holds what UTF-8 cannot write (half of a surrogate pair).
        """
        if isinstance(text, str):
            try:
                # Bytes of the command line that are not UTF-8 reach us as surrogates: give them back.
                text = text.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError as error:
                raise UserError(f"the text cannot be written as UTF-8 at character {error.start}") from error
        ids = np.empty(len(text) + bos + eos, dtype=np.int64)
        ids[int(bos) : int(bos) + len(text)] = np.frombuffer(text, dtype=np.uint8)
        if bos:
            ids[0] = self.bos_id
        if eos:
            ids[-1] = self.eos_id
        return ids

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Text of `ids [T]`; marks are left out, and bytes that are not UTF-8 are shown as U+FFFD.

        Raises:
            ValueError: as `decode_bytes`.
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Sequence[int] | NDArray[np.integer]) -> bytes:
        """Bytes of `ids [T]`; marks are left out.

        Raises:
            ValueError: when the ids are not one row of whole numbers from 0 to 258.
        """
        array = np.asarray(ids)
        if array.size == 0:
            return b""
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ValueError(
                f"ids must be one row of whole numbers, not {array.dtype} of shape {array.shape}; "
                "decode a batch row by row"
            )
        if array.min() < 0 or array.max() >= self.vocab_size:
            wrong = array[(array < 0) | (array >= self.vocab_size)][0]
            raise ValueError(f"id {wrong} is no byte and no mark; ids go from 0 to {self.vocab_size - 1}")
        return array[array < 256].astype(np.uint8).tobytes()
