"""Text, and the rows of tokens that models are trained on.

A corpus is a list of named documents; a tokenizer turns them into numbers, by bytes or by subwords; packing cuts
these into rows of equal length without padding. Nothing here knows what a model is, and nothing needs torch.
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
from .held_out import hold_out
from .packing import IGNORED, Batch, PackedRows
from .records import read_corpus
from .subword import SubwordTokenizer
from .tokenizer import ByteTokenizer, Tokenizer, TokenStream
from .tokenizer_files import find_tokenizer, require_vocabulary

__all__ = [
    "IGNORED",
    "Batch",
    "ByteTokenizer",
    "Corpus",
    "Document",
    "PackedRows",
    "Split",
    "SubwordTokenizer",
    "TokenStream",
    "Tokenizer",
    "find_tokenizer",
    "fingerprint",
    "hold_out",
    "read_corpus",
    "read_document",
    "read_path",
    "require_vocabulary",
    "shakespeare",
    "split_of",
    "standard_library",
]
