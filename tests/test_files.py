"""Files are whole or not there, also when the writer is killed, fails or is interrupted."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mnemonist.errors import UserError
from mnemonist.files import (
    FileError,
    append_lines,
    atomic_folder,
    atomic_path,
    cut_unfinished_line,
    differences,
    differing_fields,
    plain_name,
    recover_folder,
    require_possible,
    write_atomically,
)

SOURCE = Path(__file__).parent.parent / "src"
unless_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def kill_in(code: str, folder: Path) -> None:
    """Run `code` in `folder` in a process that says where it is, and kill it there."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import os, time\nfrom mnemonist import files\n" + code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "now\n"
    process.kill()
    assert process.wait(60) == -signal.SIGKILL


HERE = "print('now', flush=True); time.sleep(60)\n"


# --- one file


def test_writes_bytes_and_text_as_they_are(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"\x00\xff\r\n")
    write_atomically(str(tmp_path / "b"), "é\r\nz\n")
    assert (tmp_path / "a").read_bytes() == b"\x00\xff\r\n"
    assert (tmp_path / "b").read_bytes() == "é\r\nz\n".encode()
    assert names(tmp_path) == ["a", "b"]


def test_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "run.json"
    write_atomically(path, "old")
    write_atomically(path, "new")
    assert path.read_text() == "new" and names(path.parent) == ["run.json"]


def test_the_old_file_is_there_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "plot.png"
    path.write_text("old")
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".png" and not temporary.exists()
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and names(tmp_path) == ["plot.png"]


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_a_failed_block_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "state"
    path.write_text("old")
    with pytest.raises(type(error)) as caught, atomic_path(path) as temporary:
        temporary.write_text("ne")
        raise error
    assert caught.value is error
    assert path.read_text() == "old" and names(tmp_path) == ["state"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_what_is_possible_is_told_without_making_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("nowhere")
    require_possible(tmp_path / "file")
    require_possible(tmp_path / "new" / "folders" / "file")
    for wrong in (tmp_path, tmp_path / "file" / "a" / "b", tmp_path / "file" / "a"):
        with pytest.raises(FileError, match=re.escape(f"cannot write {wrong}: it")):
            require_possible(wrong)
    require_possible(tmp_path / "link" / "a")  # the folder that it will lead to
    assert names(tmp_path) == ["file", "link"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("old")
    kill_in("with files.atomic_path('state') as path:\n path.write_text('ne'); " + HERE, tmp_path)
    assert (tmp_path / "state").read_text() == "old"
    write_atomically(tmp_path / "state", "new")  # what the killed writer left is in nobody's way
    assert (tmp_path / "state").read_text() == "new"


def test_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"


def test_a_new_file_has_ordinary_permissions(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "")
    (tmp_path / "b").write_text("")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_refuses_what_is_not_a_plain_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    os.mkfifo(tmp_path / "pipe")
    for path, message in [
        (tmp_path, "is a folder"),
        (tmp_path / "file" / "below", "folder cannot be made"),
        (tmp_path / "pipe", "is a device or a pipe"),
        (tmp_path / "nu\0ll", "null"),
        (tmp_path / ("long" * 100), "too long"),
    ]:
        with pytest.raises(FileError, match=message) as caught:
            write_atomically(path, "x")
        assert isinstance(caught.value, UserError) and isinstance(caught.value, OSError)
        assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["file", "pipe"] and (tmp_path / "file").read_text() == "kept"


def test_a_writer_that_writes_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("old")
    with pytest.raises(FileError, match="left no file"), atomic_path(tmp_path / "state"):
        pass
    assert (tmp_path / "state").read_text() == "old"


@unless_root
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(FileError, match=r"locked is not writable"):
        write_atomically(tmp_path / "locked" / "a", "x")


# --- one folder


def fill(folder: Path, text: str) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "weights").write_text(text)


def text_of(folder: Path) -> str:
    return (folder / "inner" / "weights").read_text()


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "run" / "checkpoint"
    for text in ("old", "new"):
        with atomic_folder(path) as temporary:
            assert temporary.parent == path.parent and names(temporary) == []
            fill(temporary, text)
            assert not path.exists() or text_of(path) == "old"
        assert text_of(path) == text and names(path.parent) == ["checkpoint"]


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_a_failed_block_leaves_the_old_folder(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "checkpoint"
    with atomic_folder(path) as temporary:
        fill(temporary, "old")
    with pytest.raises(type(error)), atomic_folder(path) as temporary:
        fill(temporary, "new")
        raise error
    assert text_of(path) == "old" and names(tmp_path) == ["checkpoint"]


def test_a_failed_rename_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint"
    with atomic_folder(path) as temporary:
        fill(temporary, "old")
    rename = os.rename

    def full_disk(source: Path, target: Path) -> None:
        if Path(source).name.endswith(".partial"):
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", full_disk)
    with pytest.raises(FileError, match="No space left"), atomic_folder(path) as temporary:
        fill(temporary, "new")
    assert text_of(path) == "old" and names(tmp_path) == ["checkpoint"]


WRITE = """
with files.atomic_folder('c') as new:
    (new / 'inner').mkdir()
    (new / 'inner' / 'weights').write_text('new')
"""
# Where the writer is killed, and which text is found after recovery.
KILLS = {
    "while it writes": (WRITE + f"    {HERE}", "old"),
    "between the renames": (
        f"""
rename = os.rename
def stop(source, target):
    if str(source).endswith('.partial'):
        {HERE}
    rename(source, target)
os.rename = stop
{WRITE}""",
        "old",
    ),
    "before it deletes": (
        f"""
def stop(*arguments, **options):
    {HERE}
files.shutil.rmtree = stop
{WRITE}""",
        "new",
    ),
}


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("moment", KILLS)
def test_a_killed_writer_loses_no_folder(tmp_path: Path, moment: str) -> None:
    code, expected = KILLS[moment]
    path = tmp_path / "c"
    with atomic_folder(path) as temporary:
        fill(temporary, "old")
    kill_in(code, tmp_path)
    assert len(names(tmp_path)) == 2  # something is left over
    assert recover_folder(path) == (moment == "between the renames")
    assert text_of(path) == expected and names(tmp_path) == ["c"]
    assert not recover_folder(path)  # once is enough
    with atomic_folder(path) as temporary:
        fill(temporary, "newest")
    assert text_of(path) == "newest" and names(tmp_path) == ["c"]


def test_recovery_leaves_other_folders_alone(tmp_path: Path) -> None:
    for name in ["c.1", ".c.previously", ".c.0123.partial", ".cc.0123456789abcdef.partial", ".cc.previous"]:
        (tmp_path / name).mkdir()
    before = names(tmp_path)
    assert not recover_folder(tmp_path / "c")
    assert names(tmp_path) == before
    assert not recover_folder(tmp_path / "missing" / "c")


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("kept")
    with pytest.raises(FileError, match="a file has that name"), atomic_folder(tmp_path / "c"):
        pass
    assert (tmp_path / "c").read_text() == "kept"


def test_what_differs_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text('{"a": 1, "b": [2], "c": null}')
    assert differing_fields(path, {"a": 1, "b": [2]}) == []
    assert differing_fields(path, {"a": 2, "b": [2], "d": 0}) == ["a", "d"]
    for damage in ("[1]", "{", b"\xff".decode("latin-1")):
        path.write_text(damage)
        with pytest.raises(FileError, match=r"own\.json is damaged .*; take another folder"):
            differing_fields(path, {})
    with pytest.raises(FileError, match="is damaged"):
        differing_fields(tmp_path / "missing", {})


def test_what_differs_is_told_by_field(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text('{"a": 1, "b": {"rate": 0.1, "c": {"d": "x"}, "e": 2}, "f": "12ab"}')
    own = {"a": 1, "b": {"rate": 0.2, "c": {"d": "y"}, "e": 2}, "f": "12ab"}
    assert differences(path, own) == 'b.c.d was "x", now "y"; b.rate was 0.1, now 0.2'
    assert differences(path, {**own, "f": "0"}).startswith('its f differ; b.c.d was "x"')
    assert differences(path, {**own, "b": {"rate": 0.1, "c": {"d": "x"}, "e": 2}}) == ""


# --- a file that grows line by line


def test_lines_are_added_and_an_unfinished_one_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_lines(path, ["1", "zwei é"])
    append_lines(path, [])
    with path.open("ab") as file:
        file.write(b"half " * 20_000)
    cut_unfinished_line(path)
    append_lines(path, ["3"])
    assert path.read_text(encoding="utf-8") == "1\nzwei é\n3\n"
    path.write_bytes(b"half")
    cut_unfinished_line(path)
    assert path.read_bytes() == b""
    with pytest.raises(FileError, match="cannot write"):
        append_lines(tmp_path, ["1"])


def test_a_label_becomes_a_name_that_any_folder_takes(tmp_path: Path) -> None:
    assert plain_name("beam:beams=8,value=gold") == "beam-beams=8,value=gold"
    assert plain_name("data=/a/b c.txt") == "data=-a-b-c.txt"
    long = [plain_name(f"data={'ż' * 200}{n}") for n in range(2)]
    assert len(set(long)) == 2
    for name in long:
        (tmp_path / name).touch()
