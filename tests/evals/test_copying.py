"""Answers are what stands in the string, and questions have one answer."""

from __future__ import annotations

import numpy as np
import pytest

from mnemonist.data import IGNORED
from mnemonist.errors import UserError
from mnemonist.evals.copying import VARIANTS, Copying, written
from mnemonist.evals.problems import draw

PINNED = [
    ("$biogktkr|", "biogktkr."),
    ("$iog|biogktkr|", "ktk."),
    ("$biogktkr|iog", "ktk."),
]


def texts(task, letters, count=20):
    problems = draw(task, {"letters": letters}, count)
    for tokens, targets in zip(problems.tokens, problems.targets, strict=True):
        asked = np.flatnonzero(targets != IGNORED)
        assert (np.diff(asked) == 1).all()
        assert (tokens[asked[1:]] == targets[asked[:-1]]).all()  # the right letters are read on the way
        yield written(tokens[: asked[0] + 1]), written(targets[asked])


def test_copies():
    for prompt, answer in texts(Copying(), 17):
        assert prompt[0] == "$" and prompt[-1] == "|" and answer == prompt[1:-1] + "." and len(answer) == 18


@pytest.mark.parametrize("ngram", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS[1:])
def test_lookups_have_one_answer(variant, ngram):
    for prompt, answer in texts(Copying(variant, ngram=ngram), 20):
        if variant == "prefix-ngram":
            gram, text, rest = prompt[1:].split("|")
            assert rest == ""
        else:
            text, gram = prompt[1:].split("|")
        assert len(text) == 20 and len(gram) == ngram
        places = [i for i in range(20) if text.startswith(gram, i)]
        assert len(places) == 1
        assert answer == text[places[0] + ngram : places[0] + 2 * ngram] + "." and len(answer) == ngram + 1


def test_one_of_each_in_full():
    assert [next(texts(Copying(variant), 8, 1)) for variant in VARIANTS] == PINNED


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("trained", [10, 20])
def test_every_lesson_and_every_test_can_be_drawn(variant, trained):
    task = Copying(variant, trained=trained, longest=80, letters=4)
    for setting in [*task.lessons, *task.grid]:
        assert len(draw(task, setting, 30)) == 30


def test_settings_and_errors():
    task = Copying(trained=20, longest=100, letters=4)
    assert [s["letters"] for s in task.grid] == [20, 40, 80, 100]
    assert [s["letters"] for s in task.lessons] == [5, 10, 15, 20]
    assert task.vocab_size == 7
    with pytest.raises(UserError, match="too short for prefix-ngram"):
        draw(Copying("prefix-ngram"), {"letters": 5}, 1)
    with pytest.raises(UserError, match="take a larger ngram"):
        draw(Copying("prefix-ngram", ngram=1, letters=2), {"letters": 200}, 1)
    for fields, message in (
        ({"variant": "copi"}, "did you mean 'copy'"),
        ({"letters": 1}, "at least 2"),
        ({"trained": 3}, "at least 4"),
        ({"trained": 30, "longest": 20}, "at most the second"),
    ):
        with pytest.raises(ValueError, match=message):
            Copying(**fields)
