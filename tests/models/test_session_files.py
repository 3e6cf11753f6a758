"""A file is a whole session of this model, or one sentence says what it is; and no death of a writer harms it."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from streams import small_model
from torch import Tensor

from mnemonist.errors import UserError
from mnemonist.files import FileError
from mnemonist.memory import RULES, MemoryState, initial_weights
from mnemonist.models import LanguageModel
from mnemonist.models.session import FORMAT, Session, _content, read_pieces
from mnemonist.tensors import read_tensors, save_tensors

Forgery = Callable[[dict[str, Tensor], dict[str, str]], object]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    return small_model(torch.float32, blocks=("mac", "attention"))


@pytest.fixture(scope="module")
def session(model: LanguageModel) -> Session:
    """Of two pieces and a half."""
    return read(model, Session.begin(model, piece=8), 20)


@pytest.fixture(scope="module")
def file(session: Session, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("session") / "s"
    session.save(path)
    return path.read_bytes()


def read(model: LanguageModel, session: Session, length: int, seed: int = 0) -> Session:
    tokens = torch.randint(0, 17, (session.batch, length), generator=torch.Generator().manual_seed(seed))
    for _, after in read_pieces(model, [tokens], session):
        session = after
    return session


def refused(path: Path | str, model: LanguageModel) -> str:
    """What is said; anything but one sentence of ours fails the test."""
    with pytest.raises(UserError) as caught:
        Session.load(path, model)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 1000, said
    assert str(path) in said
    return said


# Files that are no session.


def test_no_file_and_no_session(model, tmp_path):
    path = tmp_path / "s"
    assert "there is no file" in refused(path, model)
    assert "there is no file" in refused(tmp_path, model)
    for content in (
        b"",
        b"\0" * 7,
        b"\xff" * 64,
        b"a text, not a session " * 50,
        (8).to_bytes(8, "little") + b"not json",
    ):
        path.write_bytes(content)
        assert "not a whole safetensors file" in refused(path, model)


def test_files_of_something_else(model, tmp_path):
    path = tmp_path / "s"
    for tensors, header in (({"x": torch.ones(2)}, None), ({"x": torch.ones(2)}, {"format": "pt"}), ({}, None)):
        save_file(tensors, path, header)
        assert f"not {FORMAT!r}" in refused(path, model)
    model.save(tmp_path / "model.safetensors")
    assert "holds 'mnemonist-model/1'" in refused(tmp_path / "model.safetensors", model)
    rule = RULES["titans"]
    MemoryState.fresh(rule, initial_weights(rule, 1, 4, 4), 1).save(path)
    assert "holds 'mnemonist-memory-state/1'" in refused(path, model)


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(model, tmp_path):
    path, sprung = tmp_path / "s", tmp_path / "sprung"
    torch.save({"state": Trap(sprung)}, path)
    refused(path, model)
    path.write_bytes(pickle.dumps(Trap(sprung)))
    refused(path, model)
    assert not sprung.exists()
    pickle.loads(path.read_bytes())
    assert sprung.exists()  # it was a trap


# Files that are damaged.


def test_a_file_cut_anywhere(model, file, tmp_path):
    path = tmp_path / "s"
    header = 8 + int.from_bytes(file[:8], "little")
    for length in {*range(0, len(file), 97), *range(12), *range(header - 3, header + 4), len(file) - 1}:
        path.write_bytes(file[:length])
        assert "not a whole safetensors file" in refused(path, model)
    path.write_bytes(file + b"\0")
    refused(path, model)


def test_a_file_with_any_bit_flipped(model, file, tmp_path):
    path, draw = tmp_path / "s", random.Random(0)
    header = 8 + int.from_bytes(file[:8], "little")
    for at in {*range(header), *range(header, len(file), 53), len(file) - 1}:
        path.write_bytes(file[:at] + bytes([file[at] ^ 1 << draw.randrange(8)]) + file[at + 1 :])
        refused(path, model)


def test_the_file_as_it_was_is_fine(model, session, file, tmp_path):
    """Or else the tests above would show nothing."""
    (tmp_path / "s").write_bytes(file)
    again = Session.load(tmp_path / "s", model)
    assert torch.equal(again.pending, session.pending)


# Files of another version or model.


def forged(path: Path, file: bytes, change: Forgery) -> Path:
    """A session that somebody has changed, checksum included."""
    path.write_bytes(file)
    tensors, header = read_tensors(path)
    form = header.pop("format")
    del header["content"]
    change(tensors, header)
    form = header.pop("format", form)
    save_tensors(path, tensors, format=form, content=_content(header, tensors), **header)
    return path


def test_a_newer_version(model, file, tmp_path):
    path = forged(tmp_path / "s", file, lambda tensors, header: header.update(format="mnemonist-session/2"))
    said = refused(path, model)
    assert "holds 'mnemonist-session/2', not 'mnemonist-session/1'; it may be from another version" in said


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"window": 6}, "of another model (window 4 there, 6 here); use the model that had read"),
        ({"blocks": ("mac",)}, "(blocks ['mac', 'attention'] there, ['mac'] here)"),
        ({"seed": 1}, "(the same configuration with other weights)"),
    ],
)
def test_another_model(model, file, tmp_path, changes, sentence):
    (tmp_path / "s").write_bytes(file)
    other = small_model(torch.float32, **{"blocks": ("mac", "attention")} | changes)
    assert sentence in refused(tmp_path / "s", other)
    assert (tmp_path / "s").read_bytes() == file


def test_a_model_of_other_precision(model, file, tmp_path):
    (tmp_path / "s").write_bytes(file)
    torch.manual_seed(0)
    assert "other weights" in refused(tmp_path / "s", small_model(blocks=("mac", "attention")))


@pytest.mark.parametrize(
    "config", ["", "[]", "5", "[[1]]", "nonsense", '{"blocks": 5, "window": "x\\ny"}', "[" * 100_000]
)
def test_another_model_that_nobody_knows(model, file, tmp_path, config):
    path = forged(tmp_path / "s", file, lambda tensors, header: header.update(model="0" * 16, config=config))
    assert "of another model" in refused(path, model)


# Files that lie.

LIES: dict[str, tuple[Forgery, str]] = {
    "more tokens than a piece": (lambda t, h: h.update(count="9"), "counters contradict"),
    "more tokens than read": (lambda t, h: h.update(position="3"), "counters contradict"),
    "nothing of the last piece": (lambda t, h: h.update(count="0"), "counters contradict"),
    "fewer tokens than there are": (lambda t, h: h.update(count="3"), "counters contradict"),
    "tokens without reading": (lambda t, h: h.update(count="0", position="0"), "counters contradict"),
    "below zero": (lambda t, h: h.update(count="-4"), "count is '-4', not a number"),
    "not a number": (lambda t, h: h.update(position="many"), "position is 'many', not a number"),
    "a very long number": (lambda t, h: h.update(position="1" * 5000), "not a number"),
    "neither true nor false": (lambda t, h: h.update(learn="perhaps"), "neither true nor false"),
    "no count": (lambda t, h: h.pop("count"), "'count' is missing"),
    "no tokenizer": (lambda t, h: h.pop("tokenizer"), "'tokenizer' is missing"),
    "no model": (lambda t, h: h.pop("model"), "'model' is missing"),
    "no tokens": (lambda t, h: t.pop("pending"), "'pending' is missing"),
    "no remainder": (lambda t, h: t.pop("remainder"), "'remainder' is missing"),
    "tokens of another type": (lambda t, h: t.update(pending=t["pending"].int()), "not int64"),
    "tokens in one row": (lambda t, h: t.update(pending=t["pending"][0]), "not int64"),
    "no room for tokens": (lambda t, h: t.update(pending=t["pending"][:, :0]), "not int64"),
    "other tokens": (lambda t, h: t.update(pending=t["pending"].clamp_min(17)), "counters contradict"),
    "tokens out of range": (lambda t, h: t["pending"][0, 0].fill_(17), "vocabulary has ids 0 to 16"),
    "tokens below zero": (lambda t, h: t["pending"][0, 0].fill_(-1), "vocabulary has ids 0 to 16"),
    "other streams": (lambda t, h: t.update(pending=t["pending"].repeat(2, 1)), "1 streams, but its tokens 2"),
    "a remainder of numbers": (lambda t, h: t.update(remainder=torch.ones(3)), "not a row of bytes"),
    "a remainder of rows": (lambda t, h: t.update(remainder=torch.ones(2, 2, dtype=torch.uint8)), "not a row of bytes"),
    "a memory that diverged": (lambda t, h: t[weights(t)].fill_(torch.inf), "not finite"),
    "a memory too few": (lambda t, h: t.pop(weights(t)), "missing or left over"),
    "a memory too many": (lambda t, h: t.update({"anchor.more": torch.ones(1)}), "missing or left over"),
    "a memory of another shape": (lambda t, h: t.update({weights(t): torch.ones(1, 2, 3, 4)}), "where one stream of"),
    "a memory of another type": (lambda t, h: t.update({weights(t): t[weights(t)].double()}), "where one stream of"),
    "a memory of other streams": (
        lambda t, h: t.update({weights(t): t[weights(t)].repeat(2, 1, 1, 1)}),
        "one stream of",
    ),
    "a phase beyond its chunk": (
        lambda t, h: t["anchor.blocks.0.context.memory.memory.phase"].fill_(5),
        "not a state of",
    ),
    "a phase beyond its segment": (lambda t, h: t["anchor.blocks.0.context.phase"].fill_(4), "out of range"),
    "attention without values": (lambda t, h: short(t, "anchor.blocks.1.attention.values"), "do not fit"),
    "attention before the text": (lambda t, h: t["anchor.blocks.1.attention.length"].fill_(-1), "do not fit"),
    "attention beyond any text": (lambda t, h: t["anchor.blocks.1.attention.length"].fill_(2**63 - 1), "do not fit"),
}


def weights(tensors: dict[str, Tensor]) -> str:
    return next(name for name in tensors if ".weights." in name)


def short(tensors: dict[str, Tensor], name: str) -> None:
    tensors[name] = tensors[name][:, 1:]


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies(model, file, tmp_path, lie):
    change, sentence = LIES[lie]
    assert sentence in refused(forged(tmp_path / "s", file, change), model)


# What is not written.


def test_a_memory_that_diverged_is_not_saved(model, session, file, tmp_path):
    path = tmp_path / "s"
    path.write_bytes(file)

    def broken(state):
        tensors = state.to_tensors()
        tensors[weights(tensors)].fill_(torch.nan)
        return state.rebuilt(tensors)

    for bad in (replace(session, state=broken(session.state)), replace(session, anchor=broken(session.anchor))):
        with pytest.raises(UserError, match="a memory has diverged; it was not saved"):
            bad.save(path)
        assert path.read_bytes() == file


def test_places_that_cannot_be_written(session, tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "s"):
        with pytest.raises(FileError, match="cannot write"):
            session.save(path)


# A writer that dies.


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), MemoryError()])
def test_a_write_that_ends_at_any_byte_leaves_the_old_file(model, session, file, tmp_path, monkeypatch, error):
    path = tmp_path / "s.safetensors"
    path.write_bytes(file)
    other = read(model, session, 5, seed=1)
    write = Path.write_bytes
    for length in (0, 1, 7, 8, 9, *range(100, len(file), 700), len(file) - 1, len(file)):

        def dies(self: Path, data: bytes, length: int = length) -> int:
            write(self, data[:length])
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", dies)
            with pytest.raises(FileError if isinstance(error, OSError) else type(error)):
                other.save(path)
        assert path.read_bytes() == file
        assert list(tmp_path.iterdir()) == [path]
    other.save(path)
    assert Session.load(path, model).position == other.position


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
from mnemonist.models import LanguageModel, Session

folder, path = Path(sys.argv[1]), Path(sys.argv[1], "s.safetensors")
model = LanguageModel.load(folder / "model.safetensors")
sessions = [Session.load(folder / name, model) for name in ("one", "other")]
draw = random.Random(0)
for n in range(8):
    child = os.fork()
    if child == 0:
        while True:
            for session in sessions:
                session.save(path)
    time.sleep(draw.uniform(0.02, 0.12))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    (folder / f"seen.{n}").write_bytes(path.read_bytes())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX processes")
def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    """Eight times, at moments of chance, over a file that is there."""
    torch.manual_seed(0)
    model = small_model(torch.float32, blocks=("lmm",), memory_head_dim=64)
    model.save(tmp_path / "model.safetensors")
    one = read(model, Session.begin(model), 30)
    other = read(model, one, 30, seed=1)
    for name, session in (("one", one), ("other", other), ("s.safetensors", one)):
        session.save(tmp_path / name)
    whole = {(tmp_path / name).read_bytes() for name in ("one", "other")}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLER, str(tmp_path)]
    subprocess.run(command, env=environment, check=True, timeout=120)
    seen = [(tmp_path / f"seen.{n}").read_bytes() for n in range(8)]
    assert set(seen) <= whole
    # Whatever the dead left behind is in nobody's way.
    again = Session.load(tmp_path / "s.safetensors", model)
    assert again.position in (30, 60)
    other.save(tmp_path / "s.safetensors")
    assert Session.load(tmp_path / "s.safetensors", model).position == 60
