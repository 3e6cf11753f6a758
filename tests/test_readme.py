"""What the README shows works as pasted."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from mnemonist.cli.options import parse

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def test_the_python_examples_run_and_say_what_they_promise(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for example in blocks("python"):
        exec(compile(example, "README.md", "exec"), {})
    error, shapes, session = capsys.readouterr().out.splitlines()
    assert float(error.removeprefix("tensor(").split(",")[0].rstrip(")")) < 1e-5
    assert shapes.startswith("torch.Size([1, 1000, 4]) ")
    position, distance = session.split()
    assert position == "3500" and 0 < float(distance) < 1


def commands() -> list[str]:
    lines = [line.partition("#")[0].strip() for block in blocks("") for line in block.splitlines()]
    return [line for line in lines if line.startswith("mnemonist ")]


@pytest.mark.parametrize("command", commands())
def test_the_commands_are_understood(command):
    assert parse(shlex.split(command)[1:])


def test_the_make_targets_and_linked_files_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link
    for path in re.findall(r"tests/[\w/]+\.py", README):
        assert (ROOT / path).is_file(), path
