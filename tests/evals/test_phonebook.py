"""The number is in the book, once, and was not shown."""

from __future__ import annotations

import re

import numpy as np
import pytest

from mnemonist.data import IGNORED
from mnemonist.errors import UserError
from mnemonist.evals.phonebook import FIRST, LAST, Phonebook
from mnemonist.evals.problems import draw

PINNED = (
    "Nina Peters: 7476049332\nHector Larsen: 7018852503\nRita Palmer: 6836367716\n\n"
    "Rita Palmer: 6836367716\nNina Peters: 7476049332\n\nHector Larsen:",
    " 7018852503",
)


def texts(entries, count=1, seed=0):
    problems = draw(Phonebook(), {"entries": entries}, count, seed)
    for tokens, targets in zip(problems.tokens, problems.targets, strict=True):
        asked = np.flatnonzero(targets != IGNORED)
        yield bytes(tokens[1 : asked[0] + 1].astype(np.uint8)).decode(), bytes(targets[asked].astype(np.uint8)).decode()


@pytest.mark.parametrize("entries", [3, 20, 640])
def test_a_reader_with_a_dictionary_finds_the_number(entries):
    for text, answer in texts(entries, 10):
        book, shown, query = text.split("\n\n")
        lines = [re.fullmatch(r"(\w+ \w+): ([6-9]\d{9})", line).groups() for line in book.splitlines()]
        assert len(lines) == len(dict(lines)) == entries
        assert len(shown.splitlines()) == 2 and set(shown.splitlines()) < set(book.splitlines())
        name = query.removesuffix(":")
        assert answer == " " + dict(lines)[name] and name not in shown


def test_a_small_book_in_full():
    assert next(texts(3)) == PINNED


def test_names_differ():
    assert len(set(FIRST)) == len(FIRST) > 100 and len(set(LAST)) == len(LAST) > 100


def test_settings_and_errors():
    task = Phonebook(trained=40, fewest=10, most=50)
    assert [s["entries"] for s in task.grid] == [10, 20, 40, 50]
    assert [s["entries"] for s in task.lessons] == [10, 20, 30, 40]
    for fields in ({"trained": 4}, {"trained": 10**6}, {"fewest": 2}, {"fewest": 30, "most": 20}, {"most": 10**6}):
        with pytest.raises(ValueError, match="must be at least 12, 3 and fewest"):
            Phonebook(**fields)
    for entries in (2, 10**6):
        with pytest.raises(UserError, match=f"{entries} are asked for"):
            draw(task, {"entries": entries}, 1)
