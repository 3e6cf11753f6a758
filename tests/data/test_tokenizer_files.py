"""Tokenizers from folders: what is found, completed and refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_tokenizers import KINDS, MARKS, save_tokenizer, trained
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers

from mnemonist.data import ByteTokenizer, SubwordTokenizer, Tokenizer, find_tokenizer, require_vocabulary
from mnemonist.errors import UserError

TEXT = "def surprise(x):\n    return x  # é 🐢\n"


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_transformers_and_our_own_copy(kind: str, tmp_path: Path) -> None:
    tokenizer = find_tokenizer(save_tokenizer(kind, tmp_path / "theirs"))
    expected = SubwordTokenizer(json.loads(trained(kind)), MARKS[kind])
    assert tokenizer.fingerprint == expected.fingerprint
    assert tokenizer.encode(TEXT, bos=True).tolist() == expected.encode(TEXT, bos=True).tolist()
    tokenizer.save(tmp_path / "ours")
    again = find_tokenizer(tmp_path / "ours")
    assert (again.fingerprint, again.name) == (tokenizer.fingerprint, tokenizer.name)


def test_bytes_are_found_with_and_without_files(tmp_path: Path) -> None:
    assert isinstance(find_tokenizer(tmp_path, 259), ByteTokenizer)
    ByteTokenizer().save(tmp_path)
    for vocab_size in (None, 259, 320):
        assert isinstance(find_tokenizer(tmp_path, vocab_size), ByteTokenizer)


def test_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    (tmp_path / "file").write_text("text")
    with pytest.raises(UserError, match=r"there is no folder .*/lama \(did you mean 'llama'\?\); give the folder of a"):
        find_tokenizer(tmp_path / "lama")
    with pytest.raises(UserError, match="there is no folder .*/file"):
        find_tokenizer(tmp_path / "file")
    with pytest.raises(UserError, match="there is no tokenizer in .*/llama; put its tokenizer.json there"):
        find_tokenizer(tmp_path / "llama")
    with pytest.raises(UserError, match="no tokenizer in .*/llama for a model of 32,000 tokens"):
        find_tokenizer(tmp_path / "llama", 32_000)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is damaged"),
        ('{"version": "1.0", "model": {', "is damaged"),
        ("[1, 2]", "is not a table"),
        ("{}", "has no vocabulary"),
        ('{"model": "BPE"}', "has no vocabulary"),
        ('{"model": {"type": "BPE", "vocab": {"<|endoftext|>": 0}, "merges": [["a", "b"]]}}', "cannot be used"),
        ('{"model": {"type": "Novelty", "vocab": {"<|endoftext|>": 0}}}', "cannot be used"),
    ],
)
def test_damaged_tokenizers(content: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    with pytest.raises(UserError, match=sentence) as caught:
        find_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_configuration(tmp_path: Path) -> None:
    save_tokenizer("gpt2", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": ')
    with pytest.raises(UserError, match="tokenizer_config.json is damaged"):
        find_tokenizer(tmp_path)


def test_marks_may_be_tables_and_stand_in_an_older_file(tmp_path: Path) -> None:
    save_tokenizer("gpt2", tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|endoftext|>", "lstrip": false}}')
    assert find_tokenizer(tmp_path).bos_id == 0


def test_without_any_mark_documents_cannot_be_told_apart(tmp_path: Path) -> None:
    save_tokenizer("gpt2", tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="names neither a start nor an end of documents; give its tokenizer_config"):
        find_tokenizer(tmp_path)


def test_tokens_that_forget_spaces_are_refused(tmp_path: Path) -> None:
    library = Library(models.WordPiece({"[UNK]": 0, "[SEP]": 1, "a": 2}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "[SEP]"}')
    with pytest.raises(UserError, match="its tokens do not say where spaces were; take byte-level BPE"):
        find_tokenizer(tmp_path)


def test_what_tokenizer_json_lacks_transformers_adds(tmp_path: Path) -> None:
    """A mark that only the configuration knows gets an id behind the vocabulary."""
    save_tokenizer("gpt2", tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "<start>"}))
    tokenizer = find_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (400, 0, 401)
    assert tokenizer.decode(tokenizer.encode("<start>", bos=True)) == "<start>"


def test_code_that_comes_with_a_tokenizer_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    config = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="transformers cannot read the tokenizer in"):
        find_tokenizer(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("tokens", "model", "fits"),
    [(259, 259, True), (259, 320, True), (259, 384, True), (259, 385, False), (400, 259, False), (400, 399, False),
     (128, 128, True), (128, 129, False)],
)  # fmt: skip
def test_a_model_and_its_tokenizer_have_one_vocabulary(tokens: int, model: int, fits: bool) -> None:
    tokenizer: Tokenizer = SimpleNamespace(vocab_size=tokens, name="tokens")  # type: ignore[assignment]
    if fits:
        require_vocabulary(tokenizer, model)
    else:
        with pytest.raises(UserError, match=f"vocabulary of {model}.*do not belong together; use the model's own"):
            require_vocabulary(tokenizer, model)


def test_the_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    save_tokenizer("gpt2", tmp_path)
    assert find_tokenizer(tmp_path, 400).vocab_size == 400
    with pytest.raises(UserError, match=r"BPE of 400 tokens.*vocabulary of 259.*do not belong together"):
        find_tokenizer(tmp_path, 259)
