"""Tokenizers from folders: what stands beside a model, or what a user brings.

Files are read and nothing in them is executed: no code that comes with a tokenizer, no pickles, no downloads.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mnemonist.data.corpus import there_is_no
from mnemonist.data.subword import MARKS, SubwordTokenizer
from mnemonist.data.tokenizer import ByteTokenizer, Tokenizer
from mnemonist.errors import UserError
from mnemonist.files import FileError

ROUND = 128  # models may have rounded their vocabulary up to a multiple of this
OTHER_FILES = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
MARK_FILES = ("special_tokens_map.json", "tokenizer_config.json")  # the second says more


def find_tokenizer(folder: str | os.PathLike[str], vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer whose files are in a folder.

    Args:
        folder: a folder with a tokenizer.json, or with other files that transformers' AutoTokenizer reads.
        vocab_size: that of the model it is for. A model of bytes needs no files.

    Raises:
        UserError: there is no tokenizer, it is damaged or of a kind that does not fit, or its vocabulary is not the
            model's.
    """
    place = Path(folder)
    if not place.is_dir():
        raise there_is_no("folder", place, "give the folder of a tokenizer")
    if (place / "tokenizer.json").is_file():
        tokenizer = _from_file(place)
    elif any((place / name).is_file() for name in OTHER_FILES):
        tokenizer = _from_transformers(place)
    elif vocab_size == ByteTokenizer.vocab_size:
        return ByteTokenizer()
    else:
        need = "" if vocab_size is None else f" for a model of {vocab_size:,} tokens"
        raise UserError(f"there is no tokenizer in {folder}{need}; put its tokenizer.json there")
    if vocab_size is not None:
        require_vocabulary(tokenizer, vocab_size)
    return tokenizer


def require_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Make sure that a tokenizer fits a model; one whose vocabulary is rounded up to a multiple of 128 is fine.

    Raises:
        UserError: it does not.
    """
    rounded = -(-tokenizer.vocab_size // ROUND) * ROUND
    if not tokenizer.vocab_size <= vocab_size <= rounded:
        raise UserError(
            f"the tokenizer ({tokenizer.name}) and the model (vocabulary of {vocab_size:,}) do not belong together; "
            "use the model's own tokenizer"
        )


def _from_file(folder: Path) -> Tokenizer:
    """From tokenizer.json alone if it has every mark, else as transformers completes it."""
    path = folder / "tokenizer.json"
    definition = _read_json(path)
    marks = _marks(folder)
    known = {token["content"] for token in definition.get("added_tokens") or ()}
    model = definition.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict | list):
        raise UserError(f"{path} is not a tokenizer: it has no vocabulary; save the tokenizer again")
    known |= {token if isinstance(token, str) else token[0] for token in vocabulary}
    if not set(marks.values()) <= known:
        return _from_transformers(folder)
    return _made(definition, marks, folder)


def _from_transformers(folder: Path) -> Tokenizer:
    """As AutoTokenizer reads it."""
    from transformers import AutoTokenizer

    try:
        loaded: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever its readers of twenty formats raise
        raise UserError(f"transformers cannot read the tokenizer in {folder}: {_first_line(error)}") from error
    if not loaded.is_fast:
        raise UserError(f"the tokenizer in {folder} cannot be turned into a tokenizer.json; convert it first")
    marks = {mark: str(getattr(loaded, mark)) for mark in MARKS if getattr(loaded, mark, None)}
    return _made(json.loads(loaded.backend_tokenizer.to_str()), marks, folder)


def _made(definition: dict[str, Any], marks: dict[str, str], folder: Path) -> Tokenizer:
    try:
        tokenizer = SubwordTokenizer(definition, marks)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"the tokenizer in {folder} cannot be used: {_first_line(error)}") from error
    return ByteTokenizer() if _is_bytes(tokenizer) else tokenizer


def _is_bytes(tokenizer: SubwordTokenizer) -> bool:
    """Whether its ids are those of `ByteTokenizer`, which needs no library and takes bytes that are no text."""
    marks = tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id
    ours = ByteTokenizer.bos_id, ByteTokenizer.eos_id, ByteTokenizer.pad_id
    return marks == ours and tokenizer.tokens == (*(bytes([byte]) for byte in range(256)), b"", b"", b"")


def _marks(folder: Path) -> dict[str, str]:
    """The marks that the files beside a tokenizer.json name; each is text, or a table with the text as content."""
    found: dict[str, str] = {}
    for name in MARK_FILES:
        if (folder / name).is_file():
            config = _read_json(folder / name)
            for mark in MARKS:
                value = config.get(mark)
                text = value.get("content") if isinstance(value, dict) else value
                if isinstance(text, str):
                    found[mark] = text
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {_first_line(error)}; save the tokenizer again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a table; save the tokenizer again")
    return content


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
