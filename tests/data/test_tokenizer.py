import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnemonist.data import ByteTokenizer
from mnemonist.errors import UserError

tokenizer = ByteTokenizer()


@given(st.binary(max_size=200), st.booleans(), st.booleans())
def test_bytes_come_back_with_and_without_marks(data: bytes, bos: bool, eos: bool) -> None:
    ids = tokenizer.encode(data, bos=bos, eos=eos)
    assert ids.dtype == np.int64 and ids.shape == (len(data) + bos + eos,)
    assert ids.tolist() == [256] * bos + list(data) + [257] * eos
    assert tokenizer.decode_bytes(ids) == data


@given(st.text())
def test_text_comes_back(text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, bos=True)) == text


def test_every_id_is_a_byte_or_a_mark() -> None:
    assert tokenizer.vocab_size == 259
    marks = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    assert set(range(256)) | marks == set(range(tokenizer.vocab_size))


def test_a_cut_character_is_shown_as_a_replacement() -> None:
    ids = tokenizer.encode("né")
    assert tokenizer.decode(ids[:-1]) == "n\ufffd"
    assert tokenizer.decode([258, ord("n"), 257]) == "n"
    assert tokenizer.decode([]) == ""


def test_bytes_of_the_command_line_come_through() -> None:
    argument = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert tokenizer.decode_bytes(tokenizer.encode(argument)) == b"caf\xe9"


@pytest.mark.parametrize("ids", [[259], [-1], [0.5], [[1, 2]], [True]])
def test_what_is_no_id_is_refused(ids: list) -> None:
    with pytest.raises(ValueError, match=r"^ids? "):
        tokenizer.decode(ids)


def test_text_that_utf8_cannot_write_is_refused() -> None:
    with pytest.raises(UserError, match="character 2"):
        tokenizer.encode("ab\ud800")
