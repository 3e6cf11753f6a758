"""A finished run, the texts it read, and bad input to stand in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import train
from reason_runs import SMALL, learn

from mnemonist.cli import main


@pytest.fixture(autouse=True)
def denormals_as_before() -> Iterator[None]:
    """Commands flush denormals for the rest of their process, which here has other tests to run."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for n, word in enumerate(("cat", "dög", "żółw 🐢")):
        (folder / f"{n}.txt").write_text(f"the {word} sat on the mat, and then there were {n}. " * (9 + n))
    (folder / "noise.bin").write_bytes(b"\x00\xff\x80" * 40)
    return folder


@pytest.fixture(scope="session")
def run(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("run")
    assert main(train(texts, folder)) == 0
    return folder


@pytest.fixture(scope="session")
def adder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of distillation; the model adds digits, and is right now and then."""
    folder = tmp_path_factory.mktemp("adder")
    command = learn("distil:epochs=60", folder, "--training.batch-size", 64, preset=SMALL, count=64, validation=8)
    assert main(command) == 0
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of bad input to stand in."""
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "blank.txt").write_bytes(b" \n\n")
    (tmp_path / "binary").write_bytes(b"text, and then \xff\xfe\x00")
    for name in ("nothing", "no_text", "no_model"):
        (tmp_path / name).mkdir()
    (tmp_path / "no_text" / "binary").write_bytes(b"\x00\xff")
    monkeypatch.chdir(tmp_path)
    return tmp_path
