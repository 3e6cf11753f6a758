"""Text, and the rows of tokens that models are trained on.

A corpus is a list of named documents; a tokenizer turns their bytes into numbers; packing cuts them into
rows of equal length without padding. Only numpy is needed: nothing here knows what a model is.
"""

from .corpus import (
    Corpus,
    Document,
    Split,
    fingerprint,
    read_document,
    read_path,
    shakespeare,
    split_of,
    standard_library,
)
from .packing import IGNORED, Batch, PackedRows
from .tokenizer import ByteTokenizer

__all__ = [
    "IGNORED",
    "Batch",
    "ByteTokenizer",
    "Corpus",
    "Document",
    "PackedRows",
    "Split",
    "fingerprint",
    "read_document",
    "read_path",
    "shakespeare",
    "split_of",
    "standard_library",
]
