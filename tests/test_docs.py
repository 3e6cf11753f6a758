"""The code on the pages of the documentation runs as it stands, from top to bottom."""

from __future__ import annotations

import importlib
import re
import shlex
import warnings
from pathlib import Path

import pytest

from mnemonist.cli.options import parse

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(page.name for page in DOCS.glob("*.md"))


def blocks(page: str, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", (DOCS / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    return [code for name, code in found if name == language]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries about each other
        for code in blocks(page, "python"):
            exec(compile(code, page, "exec"), names)


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_are_understood(page):
    lines = [line.partition(" #")[0] for block in blocks(page, "") for line in block.splitlines()]
    for line in lines:
        if line.startswith("mnemonist "):
            assert parse(shlex.split(line)[1:])


def test_the_commands_of_reasoning_leave_each_others_folders_alone():
    lines = [shlex.split(line) for block in blocks("reasoning.md", "") for line in block.splitlines()]
    commands = [line for line in lines if line[:2] == ["mnemonist", "reason"] and line[2] not in ("demo", "tasks")]
    folders = [line[line.index("--out") + 1] if "--out" in line else line for line in commands]
    assert len(folders) > 20 and len({str(folder) for folder in folders}) == len(folders)
    assert [folder for folder in folders if not isinstance(folder, str)] == []


@pytest.mark.parametrize("name", ["control", "scaling", "performance", "compute_optimal"])
def test_what_has_no_short_way_is_named_with_its_module(name):
    found = re.search(rf"`(mnemonist[\w.]*)\.{name}`", (DOCS / "papers.md").read_text())
    assert found and callable(getattr(importlib.import_module(found[1]), name))


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_points_to_is_there(page):
    text = (DOCS / page).read_text()
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (DOCS / link).exists(), link
    for path in re.findall(r"\b(?:tests|benchmarks|docs|configs)/[\w/.-]+\.\w+", text):
        assert (DOCS.parent / path).exists(), path
