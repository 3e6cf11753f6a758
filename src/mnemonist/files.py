"""Files that are either whole or not there.

A program can die at any instant, and what it leaves behind should be the old file or the new one, never
half of one. So everything is written beside its target, flushed to the disk, and renamed over it: on one
file system a rename happens or does not. Whoever reads the target never sees it unfinished.

Names of unfinished work start with a dot. A killed writer may leave one behind; it does no harm.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import UserError

BLOCK = 1 << 16
"""Bytes that are looked through at a time."""
LONGEST = 120
"""Bytes of a name that is made of a label; with what is put around it, file systems take 255."""


class FileError(UserError, OSError):
    """A path that cannot be read or written; the message is one sentence that names the path."""


def write_atomically(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Write `content` (text as UTF-8, newlines as they are) to `path`, whole or not at all.

    Raises:
        FileError: when the folder cannot be made or written, the target is not a plain file, or the disk
            refuses. The old file, if any, is then still there.
    """
    data = content.encode() if isinstance(content, str) else content
    with atomic_path(path) as temporary:
        try:
            temporary.write_bytes(data)
        except OSError as error:
            raise FileError(f"cannot write {path}: {_reason(error)}") from error


def plain_name(label: str) -> str:
    """The label as the name of a file: what no file system minds, and not too long for one; a folder is no part."""
    name = "".join(letter if letter.isalnum() or letter in "-_.=," else "-" for letter in label)
    return name if len(name.encode()) <= LONGEST else hashlib.sha256(label.encode()).hexdigest()[:16]


def differing_fields(path: str | os.PathLike[str], content: Mapping[str, object]) -> list[str]:
    """Names of the fields that a JSON file and ``content`` (JSON values) do not have in common.

    Folders of long work say in such a file whose they are, so that nobody goes on with another's.

    Raises:
        FileError: the file cannot be read, or holds no JSON object.
    """
    before = _object_in(path)
    return sorted(name for name in before.keys() | content.keys() if before.get(name) != content.get(name))


def differences(path: str | os.PathLike[str], content: Mapping[str, object]) -> str:
    """What `differing_fields` differ in, for the message: "its weights differ; config.steps was 5, now 6".

    Fields of objects are compared one by one, and said with both values where these are short and mean something.

    Raises:
        FileError: as `differing_fields`.
    """
    before = _object_in(path)
    names, told = [], []
    for name in differing_fields(path, content):
        one, other = before.get(name), content.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            told += [f"{name}.{field} was {was}, now {now}" for field, was, now in _apart(one, other)]
        else:
            names.append(name)
    return "; ".join([*([f"its {', '.join(names)} differ"] if names else []), *told])


def _apart(one: Mapping[str, object], other: Mapping[str, object]) -> list[tuple[str, str, str]]:
    """Fields in which two objects differ, those of objects within them too, with both values."""
    found: list[tuple[str, str, str]] = []
    for name in sorted(one.keys() | other.keys()):
        was, now = one.get(name), other.get(name)
        if isinstance(was, dict) and isinstance(now, dict):
            found += [(f"{name}.{field}", a, b) for field, a, b in _apart(was, now)]
        elif was != now:
            found.append((name, json.dumps(was, ensure_ascii=False), json.dumps(now, ensure_ascii=False)))
    return found


def _object_in(path: str | os.PathLike[str]) -> dict[str, object]:
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it is no object")
        return value
    except (OSError, ValueError) as error:
        raise FileError(f"{path} is damaged ({error}); take another folder") from error


def require_writable(path: str | os.PathLike[str]) -> Path:
    """Make sure that a file can be written at `path`, before long work whose result belongs there.

    Returns:
        The path behind any links; its folder exists.

    Raises:
        FileError: when the folder cannot be made or written, or `path` is something else than a plain file.
    """
    target = _file_behind(path)
    _make_writable_folder(target.parent, path)
    return target


def require_possible(path: str | os.PathLike[str]) -> None:
    """As `require_writable`, as far as can be told without making the folder.

    Raises:
        FileError: when the folder could not be made or written, or `path` is something else than a plain file.
    """
    target = _file_behind(path)
    folder = next(parent for parent in target.parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise FileError(f"cannot write {path}: its folder cannot be made: {folder} is no folder")
    _require_access(folder, path)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what the block writes there replaces `path` when it succeeds.

    The temporary path keeps the suffix of `path`, so that libraries which read the format from the name
    are content. A link is followed, and what it points to is replaced. If the block raises, the temporary
    file vanishes, `path` is as it was, and the exception goes on unchanged.

    Raises:
        FileError: when the folder cannot be made or written, `path` is something else than a plain file,
            or the block wrote nothing.
    """
    target = require_writable(path)
    temporary = target.with_name(f".{secrets.token_hex(8)}.partial{target.suffix}")
    try:
        yield temporary
        if not temporary.is_file():
            raise FileError(f"cannot write {path}: the writer left no file behind")
        try:
            _flush(temporary)
            os.replace(temporary, target)
            _flush(target.parent)
        except OSError as error:
            raise FileError(f"cannot write {path}: {_reason(error)}") from error
    except BaseException:  # an interrupt too must leave nothing half-written
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def append_lines(path: str | os.PathLike[str], lines: Iterable[str]) -> None:
    """Add lines to the end of a text file, and have the disk keep them.

    Raises:
        FileError: it cannot be written.
    """
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror}") from error


def cut_unfinished_line(path: str | os.PathLike[str]) -> None:
    """Cut off what stands behind the last line end: a killed `append_lines` may have left it.

    Raises:
        OSError: the file cannot be read or written.
    """
    with open(path, "rb+") as file:
        end = at = file.seek(0, os.SEEK_END)
        while at:
            first = max(0, at - BLOCK)
            file.seek(first)
            found = file.read(at - first).rfind(b"\n")
            if found >= 0:
                at = first + found + 1
                break
            at = first
        if at < end:
            file.truncate(at)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; it becomes `path` when the block succeeds.

    A folder cannot be renamed over another that holds files, so an existing `path` is first renamed to
    `.NAME.previous`, then the new folder takes its name, then the previous one is deleted. Between the two
    renames only `.NAME.previous` exists: a writer killed just there is undone by `recover_folder`, which
    this function calls itself before it starts. One writer at a time.

    If the block raises, the temporary folder vanishes, `path` is as it was, and the exception goes on.

    Raises:
        FileError: when the parent cannot be made or written, or `path` is not a folder.
    """
    target = _resolved(path)
    if os.path.exists(target) and not os.path.isdir(target):
        raise FileError(f"cannot write the folder {path}: a file has that name")
    _make_writable_folder(target.parent, path)
    recover_folder(target)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.partial")
    try:
        try:
            temporary.mkdir()
        except OSError as error:
            raise FileError(f"cannot write the folder {path}: {_reason(error)}") from error
        yield temporary
        try:
            _flush_tree(temporary)
            _swap(temporary, target)
        except OSError as error:
            raise FileError(f"cannot write the folder {path}: {_reason(error)}") from error
    except BaseException:  # an interrupt too must leave nothing half-written
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def recover_folder(path: str | os.PathLike[str]) -> bool:
    """Undo what a killed `atomic_folder` may have left: call it before reading, when no one is writing.

    If `path` is missing and its previous self is still there under its other name, that is given its name
    back. If both are there, the new one was complete and the previous one is deleted. Unfinished folders
    of `path` are deleted.

    Returns:
        True when `path` was brought back.

    Raises:
        FileError: when the folder beside `path` refuses.
    """
    target = _resolved(path)
    previous = _previous(target)
    restored = False
    try:
        if previous.is_dir():
            if target.exists():
                shutil.rmtree(previous)
            else:
                os.rename(previous, target)
                _flush(target.parent)
                restored = True
        if target.parent.is_dir():
            for entry in target.parent.iterdir():
                if _is_unfinished(entry.name, target.name):
                    shutil.rmtree(entry)
    except OSError as error:
        raise FileError(f"cannot recover the folder {path}: {_reason(error)}") from error
    return restored


def _swap(temporary: Path, target: Path) -> None:
    """Give `target`'s name to `temporary`; put the old folder back if the second rename fails."""
    previous = _previous(target)
    replaces = target.exists()
    if replaces:
        os.rename(target, previous)
    try:
        os.rename(temporary, target)
    except BaseException:
        if replaces and not target.exists():
            os.rename(previous, target)
        raise
    _flush(target.parent)  # the new name must be on the disk before the old folder is deleted
    if replaces:
        shutil.rmtree(previous, ignore_errors=True)


def _previous(target: Path) -> Path:
    return target.with_name(f".{target.name}.previous")


def _is_unfinished(name: str, target_name: str) -> bool:
    """Whether `name` is a temporary folder of `target_name`: `.NAME.<16 hex digits>.partial`."""
    start, end = f".{target_name}.", ".partial"
    token = name.removeprefix(start).removesuffix(end)
    return name == f"{start}{token}{end}" and len(token) == 16 and set(token) <= set("0123456789abcdef")


def _resolved(path: str | os.PathLike[str]) -> Path:
    try:
        target = Path(path).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a null byte
        raise FileError(f"cannot use the path {os.fspath(path)!r}: {_reason(error)}") from error
    if not target.name:
        raise FileError(f"cannot write {path}: it names the root of the file system")
    return target


def _file_behind(path: str | os.PathLike[str]) -> Path:
    target = _resolved(path)
    if os.path.isdir(target):
        raise FileError(f"cannot write {path}: it is a folder; give the name of a file")
    if os.path.exists(target) and not os.path.isfile(target):
        raise FileError(f"cannot write {path}: it is a device or a pipe; give the name of a plain file")
    return target


def _make_writable_folder(folder: Path, path: str | os.PathLike[str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot write {path}: its folder cannot be made: {_reason(error)}") from error
    _require_access(folder, path)


def _require_access(folder: Path, path: str | os.PathLike[str]) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise FileError(f"cannot write {path}: its folder {folder} is not writable")


def _flush_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            _flush(Path(root, name))
        _flush(Path(root))


def _flush(path: Path) -> None:
    """Wait until the disk has what was written to a file, or the names in a folder."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders, and keeps their names safe by itself
    # Some systems flush only what is open for writing.
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: BaseException) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
