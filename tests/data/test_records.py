"""JSON lines, Parquet, Arrow and saved data sets as documents."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import datasets
import pytest

from mnemonist.data import Corpus, Document, fingerprint, read_corpus, read_path
from mnemonist.errors import UserError

TEXTS = ["one\r\ntwo", "  ", "żółw 🐢", None, "four"]
KEPT = {1: b"one\ntwo", 3: "żółw 🐢".encode(), 5: b"four"}
datasets.disable_progress_bars()


def expected(name: str) -> Corpus:
    documents = tuple(Document(f"{name}:{number}", text) for number, text in KEPT.items())
    return Corpus(documents, (f"{name}:2", f"{name}:4"))


@pytest.fixture
def saved() -> datasets.Dataset:
    return datasets.Dataset.from_dict({"n": list(range(5)), "text": TEXTS})


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def test_json_lines(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", *({"text": text, "n": 1} for text in TEXTS))
    assert read_corpus(path) == expected("a.jsonl")
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:
        file.write(path.read_bytes())
    assert read_corpus(tmp_path / "a.jsonl.gz") == expected("a.jsonl.gz")
    assert fingerprint(read_corpus(path)) != fingerprint(read_corpus(tmp_path / "a.jsonl.gz"))


def test_another_field_and_empty_lines(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"body": "x"}, "\n", {"body": "y", "text": 7})
    assert [(d.name, d.text) for d in read_corpus(path, "body")] == [("a.jsonl:1", b"x"), ("a.jsonl:3", b"y")]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{text: 1}\n", "line 2 of .*a.jsonl is not JSON"),
        ("[1]\n", "line 2 of .*a.jsonl is not an object with fields"),
        ({"txt": "x", "n": 1}, r"line 2 of .* no field 'text' \(did you mean 'txt'\?\); it has txt, n: .*--text-field"),
        ({"text": 7}, "'text' of record a.jsonl:2 is int, not text"),
        ('{"text": "\\ud800"}\n', "'text' of record a.jsonl:2 is not Unicode text"),
    ],
)  # fmt: skip
def test_bad_lines_are_named(line: object, sentence: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": "fine"}, line)
    with pytest.raises(UserError, match=sentence):
        read_corpus(path)


def test_lines_that_are_not_utf8_or_not_gzip(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(UserError, match="line 2 of .* is not JSON"):
        read_corpus(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match="cannot read .*b.jsonl.gz"):
        read_corpus(tmp_path / "b.jsonl.gz")
    whole = gzip.compress(b'{"text": "a"}\n' * 1000)
    (tmp_path / "b.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(UserError, match="cannot read .*b.jsonl.gz"):
        read_corpus(tmp_path / "b.jsonl.gz")


def test_what_datasets_saves(saved: datasets.Dataset, tmp_path: Path) -> None:
    saved.save_to_disk(tmp_path / "whole")
    assert read_corpus(tmp_path / "whole") == expected("whole")
    saved.save_to_disk(tmp_path / "shards", num_shards=3)
    assert read_corpus(tmp_path / "shards") == expected("shards")
    saved.select([4, 2]).save_to_disk(tmp_path / "picked")
    assert [d.text for d in read_corpus(tmp_path / "picked")] == [KEPT[5], KEPT[3]]


def test_of_several_splits_that_for_training_is_taken(saved: datasets.Dataset, tmp_path: Path) -> None:
    other = datasets.Dataset.from_dict({"text": ["other"]})
    datasets.DatasetDict(train=saved, test=other).save_to_disk(tmp_path / "both")
    assert read_corpus(tmp_path / "both") == expected("train")
    assert [d.text for d in read_corpus(tmp_path / "both" / "test")] == [b"other"]
    datasets.DatasetDict(one=other, two=other).save_to_disk(tmp_path / "unclear")
    with pytest.raises(UserError, match="has the splits one, two and no 'train'; name one: .*unclear/one"):
        read_corpus(tmp_path / "unclear")
    datasets.DatasetDict(validation=other).save_to_disk(tmp_path / "single")
    assert [d.name for d in read_corpus(tmp_path / "single")] == ["validation:1"]


def test_parquet_and_arrow_files(saved: datasets.Dataset, tmp_path: Path) -> None:
    import pyarrow

    saved.to_parquet(tmp_path / "a.parquet")
    assert read_corpus(tmp_path / "a.parquet") == expected("a.parquet")
    table = pyarrow.table({"text": TEXTS, "n": range(5)})
    for name, writer in {"stream": pyarrow.ipc.new_stream, "file": pyarrow.ipc.new_file}.items():
        with writer(tmp_path / f"{name}.arrow", table.schema) as out:
            out.write_table(table, max_chunksize=2)
        assert read_corpus(tmp_path / f"{name}.arrow") == expected(f"{name}.arrow")
        with pytest.raises(UserError, match=r"no field 'txt' \(did you mean 'text'\?\); it has text, n"):
            read_corpus(tmp_path / f"{name}.arrow", "txt")
        with pytest.raises(UserError, match="'n' of record .*:1 is int, not text"):
            read_corpus(tmp_path / f"{name}.arrow", "n")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize("content", [b"", b"noise" * 100, b"ARROW1\0\0noise", b"PAR1" * 30])
def test_damaged_tables(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"cannot read .*{name}, it is damaged or no"):
        read_corpus(tmp_path / name)


def test_a_table_that_is_cut(saved: datasets.Dataset, tmp_path: Path) -> None:
    saved.save_to_disk(tmp_path / "whole")
    (path,) = (tmp_path / "whole").glob("*.arrow")
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match="cannot read"):
        read_corpus(tmp_path / "whole")
    path.unlink()
    with pytest.raises(UserError, match="cannot read"):
        read_corpus(tmp_path / "whole")
    (tmp_path / "whole" / "state.json").write_text("{}")
    with pytest.raises(UserError, match="state.json is damaged"):
        read_corpus(tmp_path / "whole")


def test_a_folder_of_shards_and_a_folder_of_anything(saved: datasets.Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    write_lines(folder / "b.jsonl", {"text": "second"})
    saved.to_parquet(folder / "a.parquet")
    corpus = read_corpus(folder)
    assert [d.name for d in corpus] == ["a.parquet:1", "a.parquet:3", "a.parquet:5", "b.jsonl:1"]
    (folder / "README").write_text("These are shards.")
    assert read_corpus(folder) == read_path(folder)  # plain text, as for any other folder
    (tmp_path / "a.txt").write_text("plain")
    assert read_corpus(tmp_path / "a.txt") == read_path(tmp_path / "a.txt")


def test_nothing_to_read(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": ""}, {"text": None})
    with pytest.raises(UserError, match="no text in .*: 2 records have nothing in 'text'"):
        read_corpus(path)
    for name in ("b.jsonl", "a.parquet"):
        with pytest.raises(UserError, match=f"there is no file .*{name}"):
            read_corpus(tmp_path / name)
    with pytest.raises(UserError, match="did you mean 'a.jsonl'"):
        read_corpus(tmp_path / "b.jsonl")


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"needs pyarrow: pip install \"mnemonist\[datasets\]\""):
        read_corpus(tmp_path / "a.parquet")
