"""Subword tokenizers: any cut of a text gives the ids of the whole, and its bytes come back from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import KINDS, MARKS, sample, trained
from tokenizers import Tokenizer as Library

from mnemonist.data import ByteTokenizer, SubwordTokenizer, Tokenizer
from mnemonist.data.subword import LEAST, MOST
from mnemonist.errors import UserError

TOKENIZERS: dict[str, Tokenizer] = {kind: SubwordTokenizer(json.loads(trained(kind)), MARKS[kind]) for kind in KINDS}
ALL = {"bytes": ByteTokenizer(), **TOKENIZERS}
ALPHABET = st.sampled_from(
    ["a", "B", "7", "_", ".", " ", "  ", "\n", "\t", "é", "字", "🐢", "the ", "return ", "x" * 300]
)
TEXTS = st.lists(ALPHABET, max_size=400).map("".join)


@pytest.fixture(params=ALL)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return ALL[request.param]


@settings(max_examples=40, deadline=None)
@given(TEXTS, st.data())
def test_any_cut_gives_the_ids_of_the_whole(text: str, data: st.DataObject) -> None:
    """Also inside of a character, and with a stream that goes on from the remainder of another."""
    written = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(written)), max_size=6)))
    pieces = [written[a:b] for a, b in zip([0, *cuts], [*cuts, len(written)], strict=True)]
    for tokenizer in ALL.values():
        whole = tokenizer.encode(text)
        stream, parts = tokenizer.stream(), []
        for n, piece in enumerate(pieces):
            parts.append(stream.feed(piece))
            assert len(stream.remainder) <= 4 * MOST + 3
            if n % 2:
                stream = tokenizer.stream(stream.remainder)
        parts.append(stream.finish())
        assert np.concatenate(parts).tolist() == whole.tolist()
        assert stream.remainder == b""
        assert stream.finish().tolist() == []


def test_bytes_one_by_one(tokenizer: Tokenizer) -> None:
    text = sample()[-1] + sample()[0][:600]
    stream = tokenizer.stream()
    parts = [stream.feed(bytes([byte])) for byte in text.encode()]
    assert np.concatenate([*parts, stream.finish()]).tolist() == tokenizer.encode(text).tolist()


@pytest.mark.parametrize("kind", ["gpt2", "cl100k", "llama"])
@settings(max_examples=40, deadline=None)
@given(text=TEXTS)
def test_every_byte_comes_back(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text, bos=True, eos=True)
    assert (tokenizer.decode(ids), tokenizer.decode_bytes(ids)) == (text, text.encode())
    counts = tokenizer.byte_counts(ids)
    assert counts.dtype == np.int64 and counts.shape == ids.shape
    assert counts.sum() == len(text.encode())
    assert counts[0] == counts[-1] == 0 and (counts[1:-1] > 0).all()


def test_a_token_counts_the_bytes_it_stands_for(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(sample()[0], bos=True)
    each = [len(tokenizer.decode_bytes([i])) for i in ids]
    assert tokenizer.byte_counts(ids).tolist() == each
    assert tokenizer.byte_counts([]).tolist() == []


def test_what_a_tokenizer_tidies_up_it_admits() -> None:
    """NFC joins a letter and its accent: one byte less."""
    assert {kind: tokenizer.lossless for kind, tokenizer in ALL.items()} == dict.fromkeys(ALL, True) | {
        "unigram": False
    }
    tidy = TOKENIZERS["unigram"]
    assert tidy.decode(tidy.encode("cafe\N{COMBINING ACUTE ACCENT}")) == "café"


@pytest.mark.parametrize("kind", KINDS)
def test_units_do_not_change_what_the_library_makes_of_a_text(kind: str) -> None:
    """As long as a text has spaces behind letters, which these modules have."""
    definition = json.loads(trained(kind))
    if kind == "unigram":  # without the space that it puts before every text
        definition["pre_tokenizer"]["prepend_scheme"] = "never"
    if kind == "llama":
        definition["normalizer"] = definition["normalizer"]["normalizers"][1]
    library = Library.from_str(json.dumps(definition))
    several = 0
    for text in sample():
        if len(text) > LEAST and "_curses" not in text:
            assert TOKENIZERS[kind].encode(text).tolist() == library.encode(text, add_special_tokens=False).ids
            several += len(text) > 10 * MOST
    assert several


def test_text_without_spaces_is_cut_too(tokenizer: Tokenizer) -> None:
    text = "漢字かな" * 3 * MOST
    stream = tokenizer.stream()
    first = stream.feed(text.encode())
    assert len(first) > len(tokenizer.encode(text)) / 2  # before the end of the text is known
    assert tokenizer.decode(np.concatenate([first, stream.finish()])) == text


@pytest.mark.parametrize("text", ["<s>", "a</s>b", "<|endoftext|>", "<pad><unk>", "<0x41>", " <s> <s>"])
def test_text_that_spells_a_mark_is_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert not {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id} & set(ids.tolist())
    assert tokenizer.decode(ids) == text
    assert tokenizer.byte_counts(ids).sum() == len(text)


def test_marks_stand_where_they_are_asked_for() -> None:
    for kind, (bos, eos, pad) in {"gpt2": (0, 0, None), "cl100k": (0, 0, None), "unigram": (1, 2, 3)}.items():
        tokenizer = TOKENIZERS[kind]
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (bos, eos, pad)
        plain = tokenizer.encode("a text").tolist()
        assert tokenizer.encode("a text", bos=True, eos=True).tolist() == [bos, *plain, eos]
        assert tokenizer.encode("", bos=True).tolist() == [bos]


def test_bytes_that_are_no_text_are_refused() -> None:
    for tokenizer in TOKENIZERS.values():
        with pytest.raises(UserError, match="a byte is 0xff, .* only a model of bytes"):
            tokenizer.encode(b"ab\xff")
        stream = tokenizer.stream()
        stream.feed("né".encode()[:2])
        with pytest.raises(UserError, match="not UTF-8"):
            stream.feed(b"x")
        with pytest.raises(UserError, match="ends in the middle of a UTF-8 character"):
            stream.finish()
        assert tokenizer.decode(np.concatenate([stream.feed("é".encode()[1:]), stream.finish()])) == "né"


def test_ids_of_another_vocabulary_are_refused(tokenizer: Tokenizer) -> None:
    for ids in ([tokenizer.vocab_size], [-1]):
        with pytest.raises(ValueError, match="is not in the vocabulary"):
            tokenizer.decode(ids)
        with pytest.raises(ValueError, match="is not in the vocabulary"):
            tokenizer.byte_counts(ids)


def test_a_remainder_of_another_tokenizer_is_refused() -> None:
    with pytest.raises(UserError, match="holds nothing back"):
        ByteTokenizer().stream(b"held")


def test_dropout_truncation_and_padding_are_left_out() -> None:
    definition = json.loads(trained("gpt2"))
    definition["model"]["dropout"] = 0.5
    definition["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    definition["padding"] = {"strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                             "pad_type_id": 0, "pad_token": "<|endoftext|>"}  # fmt: skip
    text = sample()[1]
    tokenizer = SubwordTokenizer(definition, MARKS["gpt2"])
    assert tokenizer.encode(text).tolist() == TOKENIZERS["gpt2"].encode(text).tolist()
    assert tokenizer.fingerprint == TOKENIZERS["gpt2"].fingerprint


def test_fingerprints_tell_tokenizers_apart() -> None:
    prints = [tokenizer.fingerprint for tokenizer in ALL.values()]
    assert len(set(prints)) == len(prints) and all(len(digits) == 16 for digits in prints)
    definition = json.loads(trained("gpt2"))
    definition["model"]["merges"].pop()
    assert SubwordTokenizer(definition, MARKS["gpt2"]).fingerprint not in prints
    other_marks = {"bos_token": "!", "eos_token": "<|endoftext|>"}
    assert SubwordTokenizer(json.loads(trained("gpt2")), other_marks).fingerprint not in prints


def test_saving_and_loading_elsewhere(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """transformers gives the same ids, behind a start mark, and the same text."""
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    marks = loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id
    assert marks == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    for text in (sample()[1], sample()[-1], "  two\n\n", "x"):
        ids = tokenizer.encode(text, bos=True).tolist()
        assert loaded(text)["input_ids"] == ids
        assert loaded.decode(ids, skip_special_tokens=True) == text
    if tokenizer is not TOKENIZERS["unigram"]:  # which finds marks in text when the library cuts it
        text = "<s> <|endoftext|> <bos>"
        assert loaded(text)["input_ids"] == tokenizer.encode(text, bos=True).tolist()
