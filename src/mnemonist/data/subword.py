"""Subwords: tokenizers of the `tokenizers` library, in pieces and down to the byte.

What such a tokenizer makes of a text depends on how the text goes on, so a stream is cut into *units*, and each is
encoded by itself: a unit has 128 characters or more and ends before the first space behind a letter or a digit, where
the tokenizers of byte-level BPE and of SentencePiece begin a new piece anyway; text without such a place is cut after
2,048 characters. Where units end depends on the text alone. So any cut of a stream gives the ids of the whole,
and these are, but for texts without spaces, the ids that the tokenizer gives the whole text at once.

Some tokenizers put a space before a text that has none. Not here: it is no byte of the text, and every unit would get
one. The copy that `save` writes has the same change, so that transformers gives the same ids.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from mnemonist.data.tokenizer import AnyIds, Ids, checked_ids, utf8
from mnemonist.errors import UserError
from mnemonist.files import write_atomically

LEAST, MOST = 128, 2048  # characters of a unit
UNIT_END = re.compile(r"[^\W_](?= )")
SPACE = "▁"  # how SentencePiece writes one
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
MARKS = ("bos_token", "eos_token", "pad_token")
STEPS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
PROBE = "Two  spaces,\ta tab;\n\n  an indented line, café, cafe\N{COMBINING ACUTE ACCENT}, “quotes”, 漢字, 🐢.\n"


def _letters_of_bytes() -> dict[str, int]:
    """Byte-level BPE writes bytes as letters: printable ones as themselves, the others from U+0100 on (GPT-2)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


BYTE_OF = {letter: bytes([byte]) for letter, byte in _letters_of_bytes().items()}


class SubwordTokenizer:
    """A tokenizer of the `tokenizers` library.

    Args:
        definition: the content of its tokenizer.json.
        marks: the text of `bos_token`, `eos_token` and `pad_token`, as far as it has them.

    Raises:
        ValueError: this is no tokenizer, its marks are not in its vocabulary, or it is of a kind that cannot give text
            back (WordPiece, say).
    """

    def __init__(self, definition: dict[str, Any], marks: dict[str, str]) -> None:
        from tokenizers import Tokenizer as Library

        self._marks = {mark: marks[mark] for mark in MARKS if marks.get(mark)}
        start = self._marks.setdefault("bos_token", self._marks.get("eos_token", ""))
        if not start:
            raise ValueError(
                "it names neither a start nor an end of documents; give its tokenizer_config.json a bos_token"
            )
        self._definition = _as_given(definition)
        try:
            self._library = Library.from_str(json.dumps(self._definition))
        except Exception as error:  # the library has no class for its errors
            raise ValueError(str(error)) from error
        vocabulary = self._library.get_vocab(with_added_tokens=True)
        absent = [token for token in self._marks.values() if token not in vocabulary]
        if absent:
            raise ValueError(f"its mark {absent[0]!r} is not in its vocabulary")
        self._definition["post_processor"] = _begins_with(start, vocabulary[start])
        self._library.encode_special_tokens = True  # a text that says "</s>" does not end there
        self._spelt = _inside_of_marks(self._definition, set(self._marks.values()))
        self.bos_id: int = vocabulary[start]
        self.eos_id: int | None = vocabulary.get(self._marks.get("eos_token", ""))
        self.pad_id: int | None = vocabulary.get(self._marks.get("pad_token", ""))
        self.vocab_size: int = 1 + max(vocabulary.values())
        self._bytes = _bytes_of_tokens(self._definition, vocabulary, set(self._marks.values()))
        self._counts = np.array([len(piece) for piece in self._bytes], dtype=np.int64)
        content = json.dumps([self._definition, self._marks], sort_keys=True)
        self.fingerprint: str = hashlib.sha256(content.encode()).hexdigest()[:16]
        self.name: str = f"{self._definition['model'].get('type', 'subwords')} of {self.vocab_size:,} tokens"

    @property
    def lossless(self) -> bool:
        """See `Tokenizer.lossless`; tried on one line."""
        return self.decode(self.encode(PROBE)) == PROBE

    @property
    def tokens(self) -> tuple[bytes, ...]:
        """The bytes that each id stands for, none for a mark."""
        return self._bytes

    def encode(self, text: str | bytes, *, bos: bool = False, eos: bool = False) -> Ids:
        """See `Tokenizer.encode`."""
        if eos and self.eos_id is None:
            raise UserError("this tokenizer has no mark for the end of a document")
        stream = _SubwordStream(self, b"")
        parts = [stream.feed(utf8(text)), stream.finish()]
        marks = [np.array([mark] * wanted, np.int64) for mark, wanted in ((self.bos_id, bos), (self.eos_id, eos))]
        return np.concatenate([marks[0], *parts, marks[1]])

    def decode(self, ids: AnyIds) -> str:
        """See `Tokenizer.decode`."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: AnyIds) -> bytes:
        """See `Tokenizer.decode_bytes`."""
        return b"".join(self._bytes[i] for i in checked_ids(ids, self.vocab_size))

    def byte_counts(self, ids: AnyIds) -> Ids:
        """See `Tokenizer.byte_counts`; their sum is the length of the text if the tokenizer is lossless."""
        return self._counts[checked_ids(ids, self.vocab_size)]

    def stream(self, remainder: bytes = b"") -> _SubwordStream:
        """See `Tokenizer.stream`."""
        return _SubwordStream(self, remainder)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """See `Tokenizer.save`."""
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it is
            **self._marks,
            "add_bos_token": True,
            "padding_side": "left",
            "split_special_tokens": True,  # marks are not read out of text
            "clean_up_tokenization_spaces": False,
        }
        write_atomically(Path(folder, "tokenizer.json"), json.dumps(self._definition, ensure_ascii=False))
        write_atomically(Path(folder, "tokenizer_config.json"), json.dumps(config, indent=2, ensure_ascii=False))

    def encode_units(self, units: list[str]) -> Ids:
        """Ids of units of text, each by itself, one after the other."""
        if self._spelt is not None:
            units = [part for unit in units for part in self._spelt.split(unit)]
        encoded = self._library.encode_batch_fast(units, add_special_tokens=False)
        return np.array([i for unit in encoded for i in unit.ids], dtype=np.int64)


class _SubwordStream:
    """Holds back the characters of the unit that is not complete, and the bytes of a cut character."""

    def __init__(self, tokenizer: SubwordTokenizer, remainder: bytes) -> None:
        self._tokenizer = tokenizer
        self._remainder = remainder

    @property
    def remainder(self) -> bytes:
        return self._remainder

    def feed(self, data: bytes) -> Ids:
        text, cut = _text_of(self._remainder + data)
        units, rest = _units(text)
        self._remainder = rest.encode() + cut
        return self._tokenizer.encode_units(units)

    def finish(self) -> Ids:
        text, cut = _text_of(self._remainder)
        if cut:
            raise UserError("the text ends in the middle of a UTF-8 character; only a model of bytes reads such text")
        self._remainder = b""
        return self._tokenizer.encode_units([text] if text else [])


def _text_of(data: bytes) -> tuple[str, bytes]:
    """The characters of `data`, and the first bytes of one that is cut."""
    try:
        return data.decode("utf-8"), b""
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            return data[: error.start].decode("utf-8"), data[error.start :]
        raise UserError(
            f"the text is not UTF-8: a byte is 0x{data[error.start]:02x}, which fits nothing there; only a model of "
            "bytes reads such text"
        ) from error


def _units(text: str) -> tuple[list[str], str]:
    """The complete units of a text, and the rest."""
    units: list[str] = []
    start = 0
    while True:
        # One more character than a unit may have, since the space behind it must be seen.
        end = UNIT_END.search(text, start + LEAST - 1, start + MOST + 1)
        if end is None and len(text) - start <= MOST:
            return units, text[start:]
        stop = start + MOST if end is None else end.end()
        units.append(text[start:stop])
        start = stop


def _flat(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The members of a sequence of normalizers, pre-tokenizers or decoders, or the only one."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [inner for member in part[next(key for key in part if key != "type")] for inner in _flat(member)]


def _as_given(definition: dict[str, Any]) -> dict[str, Any]:
    """A copy that encodes what it is given: it adds no space before it, strips none, cuts, pads and drops nothing."""
    changed: dict[str, Any] = json.loads(json.dumps(definition))
    changed |= {"truncation": None, "padding": None, "added_tokens": changed.get("added_tokens", [])}
    if "dropout" in changed["model"]:
        changed["model"]["dropout"] = None
    for name, members in STEPS.items():
        kept = [part for part in _flat(changed.get(name)) if part["type"] not in ("Prepend", "Strip")]
        for part in kept:
            if part["type"] == "Metaspace":
                part["prepend_scheme"] = "never"
                part.pop("add_prefix_space", None)  # what older files say instead
            elif "add_prefix_space" in part:
                part["add_prefix_space"] = False
        changed[name] = kept[0] if len(kept) == 1 else {"type": "Sequence", members: kept} if kept else None
    return changed


def _begins_with(mark: str, index: int) -> dict[str, Any]:
    """The post-processor that puts a mark before every text, for those who use the saved tokenizer elsewhere."""
    special = {"SpecialToken": {"id": mark, "type_id": 0}}
    first, second = ({"Sequence": {"id": which, "type_id": 0}} for which in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, special, second],
        "special_tokens": {mark: {"id": mark, "ids": [index], "tokens": [mark]}},
    }


def _inside_of_marks(definition: dict[str, Any], marks: set[str]) -> re.Pattern[str] | None:
    """Where to cut a text that spells a mark or the token of a byte, so that it is read as text.

    Only Unigram models need that: they find any token of their vocabulary in a text, marks included.
    """
    if not isinstance(definition["model"]["vocab"], list):  # the others map tokens to ids
        return None
    marks = marks | {token["content"] for token in definition["added_tokens"] if token["special"]}
    cuts = [f"(?<={re.escape(mark[0])})(?={re.escape(mark[1:])})" for mark in sorted(marks) if len(mark) > 1]
    return re.compile("|".join([*cuts, "(?<=<)(?=0x[0-9A-F]{2}>)"]))


def _bytes_of_tokens(definition: dict[str, Any], vocabulary: dict[str, int], marks: set[str]) -> tuple[bytes, ...]:
    """The bytes that each id stands for: none for marks, and for ids that no token has.

    Raises:
        ValueError: tokens of this kind do not say which text they came from.
    """
    kinds = {part["type"] for name in ("pre_tokenizer", "decoder") for part in _flat(definition[name])}
    spaces = any(SPACE in json.dumps(part, ensure_ascii=False) for part in _flat(definition["decoder"]))
    if not (spaces or kinds & {"ByteLevel", "Metaspace"}):
        raise ValueError(
            "its tokens do not say where spaces were; take byte-level BPE (as GPT-2) or SentencePiece (as Llama)"
        )
    added = {token["content"]: token["special"] for token in definition["added_tokens"]}
    unknown = definition["model"].get("unk_token"), definition["model"].get("unk_id")
    pieces = [b""] * (1 + max(vocabulary.values()))
    for token, index in vocabulary.items():
        if token in marks or added.get(token) or token == unknown[0] or index == unknown[1]:
            continue
        byte = BYTE_TOKEN.fullmatch(token) if "ByteFallback" in kinds else None
        if token in added:
            pieces[index] = token.encode()
        elif "ByteLevel" in kinds:
            pieces[index] = b"".join(BYTE_OF.get(letter) or letter.encode() for letter in token)
        elif byte is not None:
            pieces[index] = bytes([int(byte[1], 16)])
        else:
            pieces[index] = token.replace(SPACE, " ").encode()
    return tuple(pieces)
