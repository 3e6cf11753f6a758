"""Asking models what they can do: so far, what they make of a text while they read it."""

from typing import TYPE_CHECKING

from mnemonist.lazy import attach

if TYPE_CHECKING:
    from mnemonist.evals.reading import MemoryTrace, TextReading, bits_by_position, paired_difference, read_texts

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "MemoryTrace": ".reading",
        "TextReading": ".reading",
        "bits_by_position": ".reading",
        "paired_difference": ".reading",
        "read_texts": ".reading",
    },
)
