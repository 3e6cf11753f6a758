"""Corpora of records: JSON lines, Parquet and Arrow files, and what `datasets` saves to disk.

A record is a document if its text field holds text. It is called after its file (or data set) and its number from 1,
`corpus.jsonl:12`, so that training and held-out text stay apart whatever else is read. Nothing is downloaded.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mnemonist.data.corpus import Corpus, Document, files_below, normalised, read_path, there_is_no
from mnemonist.errors import UserError, nearest
from mnemonist.files import FileError

JSON_LINES = (".jsonl", ".jsonl.gz")
TABLES = (".parquet", ".arrow")
ARROW_FILE = b"ARROW1"  # how Arrow files begin that are no streams

Records = Iterator[tuple[int, Any]]
"""Numbers from 1, and the value of the text field."""


def read_corpus(path: str | os.PathLike[str], text_field: str = "text") -> Corpus:
    """The documents of whatever is at a path.

    Args:
        path: a text file; a file of records (.jsonl, .jsonl.gz, .parquet, .arrow); a data set saved by `datasets`, of
            whose splits "train" is taken; or a folder, of nothing but files of records or of anything (`read_path`).
        text_field: what the text of a record is called.

    Returns:
        The documents in order; `skipped` names records without text and files that are not text.

    Raises:
        FileError: the path is missing or cannot be read.
        UserError: there is no text, a record is damaged or has no such field (the message names its number), or
            pyarrow is needed and not installed.
    """
    place = Path(path)
    if os.path.isdir(place):
        if (place / "state.json").is_file() and (place / "dataset_info.json").is_file():
            return _corpus(place, [(place.name, _numbered(_saved_tables(place), text_field))], text_field)
        if (place / "dataset_dict.json").is_file():
            return read_corpus(place / _split(place), text_field)
        files = files_below(place)
        if files and all(_has_records(file) for file, _ in files):
            return _corpus(place, ((name, _records(file, text_field)) for file, name in files), text_field)
        return read_path(place)
    if _has_records(place):
        if not os.path.isfile(place):
            raise there_is_no("file", place)
        return _corpus(place, [(place.name, _records(place, text_field))], text_field)
    return read_path(place)


def _has_records(path: Path) -> bool:
    return path.name.endswith((*JSON_LINES, *TABLES))


def _records(path: Path, text_field: str) -> Records:
    if path.name.endswith(JSON_LINES):
        return _json_lines(path, text_field)
    return _numbered([path], text_field)


def _corpus(place: Path, sources: Iterable[tuple[str, Records]], text_field: str) -> Corpus:
    documents: list[Document] = []
    skipped: list[str] = []
    for name, records in sources:
        for number, text in records:
            record = f"{name}:{number}"
            if text is None or (isinstance(text, str) and not text.strip()):
                skipped.append(record)
                continue
            if not isinstance(text, str):
                raise UserError(f"{text_field!r} of record {record} is {type(text).__name__}, not text")
            try:
                documents.append(Document(record, normalised(text.encode())))
            except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can say
                raise UserError(f"{text_field!r} of record {record} is not Unicode text: {error.reason}") from error
    if not documents:
        raise UserError(f"no text in {place}: {len(skipped)} records have nothing in {text_field!r}")
    return Corpus(tuple(documents), tuple(skipped))


def _json_lines(path: Path, text_field: str) -> Records:
    opened: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise UserError(f"line {number} of {path} is not JSON: {error}") from error
                if not isinstance(record, dict):
                    raise UserError(f'line {number} of {path} is not an object with fields, such as {{"text": ...}}')
                if text_field not in record:
                    raise _no_field(f"line {number} of {path}", text_field, record)
                yield number, record[text_field]
    except (OSError, EOFError, zlib.error) as error:
        raise FileError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _numbered(paths: list[Path], text_field: str) -> Records:
    """The rows of tables that belong together."""
    number = 0
    for path in paths:
        with _reading(path):
            for batch in _batches(path, text_field):
                for value in batch.column(text_field).to_pylist():
                    number += 1
                    yield number, value


def _batches(path: Path, text_field: str) -> Iterator[Any]:
    """Record batches of a Parquet or Arrow file, a part of the file in memory at a time."""
    import pyarrow
    import pyarrow.parquet

    if path.suffix == ".parquet":
        with pyarrow.parquet.ParquetFile(path) as file:
            _require_field(path, text_field, file.schema_arrow.names)
            yield from file.iter_batches(columns=[text_field])
        return
    with pyarrow.memory_map(str(path)) as source:
        if source.read(len(ARROW_FILE)) == ARROW_FILE:
            with pyarrow.ipc.open_file(source) as file:
                _require_field(path, text_field, file.schema.names)
                yield from map(file.get_batch, range(file.num_record_batches))
        else:
            source.seek(0)
            with pyarrow.ipc.open_stream(source) as stream:
                _require_field(path, text_field, stream.schema.names)
                yield from stream


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        import pyarrow
    except ImportError as error:
        raise UserError(f'reading {path} needs pyarrow: pip install "mnemonist[datasets]"') from error
    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, FileError):
            raise
        reason = (str(error).splitlines() or [""])[0]
        raise FileError(f"cannot read {path}, it is damaged or no {path.suffix[1:]} file: {reason}") from error


def _require_field(path: Path, text_field: str, names: list[str]) -> None:
    if text_field not in names:
        raise _no_field(str(path), text_field, names)


def _no_field(where: str, text_field: str, names: Iterable[str]) -> UserError:
    names = list(names)
    return UserError(
        f"{where} has no field {text_field!r}{nearest(text_field, names)}; it has {', '.join(names) or 'none'}: "
        "say which one holds the text (--text-field)"
    )


def _saved_tables(folder: Path) -> list[Path]:
    """The files of a data set, in order."""
    files = _read_table_of_contents(folder / "state.json", "_data_files")
    try:
        return [folder / Path(entry["filename"]).name for entry in files]
    except (TypeError, KeyError) as error:
        raise UserError(f"{folder / 'state.json'} is damaged: it lists no data files") from error


def _split(folder: Path) -> str:
    """The split to read of a data set that has several."""
    splits = [str(name) for name in _read_table_of_contents(folder / "dataset_dict.json", "splits")]
    if "train" in splits:
        return "train"
    if len(splits) == 1:
        return splits[0]
    raise UserError(f"{folder} has the splits {', '.join(splits)} and no 'train'; name one: {folder / splits[0]}")


def _read_table_of_contents(path: Path, field: str) -> list[Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))[field]
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged; save the data set again") from error
    if not isinstance(content, list) or not content:
        raise UserError(f"{path} is damaged: {field} is empty; save the data set again")
    return content
