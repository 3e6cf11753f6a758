"""The byte tokenizer as transformers reads it: the same ids as our own, and every text comes back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mnemonist.data import ByteTokenizer, find_tokenizer
from mnemonist.data.hugging_face_tokenizer import save_byte_tokenizer

BYTES = ByteTokenizer()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    save_byte_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


@settings(max_examples=80, deadline=None)
@given(text=st.text(max_size=60))
def test_its_ids_are_the_bytes_and_every_text_comes_back(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert ids == BYTES.encode(text, bos=True).tolist()
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("text", ["<eos> is text", "a , b . c", "  \n\t", "", "𝄞 é"])
def test_marks_in_text_are_text_and_nothing_is_tidied(tokenizer, text):
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text


def test_batches_are_padded_on_the_left(tokenizer):
    batch = tokenizer(["a", "abc"], padding=True)
    assert batch["input_ids"] == [[258, 258, 256, 97], [256, 97, 98, 99]]
    assert batch["attention_mask"] == [[0, 0, 1, 1], [1, 1, 1, 1]]
    marks = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert marks == (256, 257, 258) and len(tokenizer) == 259


def test_saved_again_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("<eos> é")["input_ids"] == tokenizer("<eos> é")["input_ids"]
    assert again.padding_side == "left"


def test_we_read_it_as_bytes(tmp_path):
    save_byte_tokenizer(tmp_path)
    assert isinstance(find_tokenizer(tmp_path, vocab_size=259), ByteTokenizer)
