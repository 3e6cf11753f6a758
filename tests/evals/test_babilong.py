"""The facts stand in the text in their order, and answer the question there as they do alone."""

from __future__ import annotations

import re

import numpy as np
import pytest
from worlds import solve

from mnemonist.data import IGNORED
from mnemonist.errors import UserError
from mnemonist.evals.babilong import Babilong
from mnemonist.evals.problems import draw
from mnemonist.evals.world import PEOPLE

FACT = re.compile(rf"(?:{'|'.join(PEOPLE)}) [a-z ]+ the [a-z]+\.")

PINNED = (
    "Sandra went to the bathroom. One winter, clouds gathered over the hills. Sandra got the milk. The miller and her "
    "brother repaired the compass around noon. Two students bought the wooden barrel reluctantly. A tired traveller "
    "thought of the workshop, for things would soon change. Sandra got the apple.\n"
    "Question: Where is the milk?\nAnswer:",
    " bathroom",
)


def texts(task, setting, count=1):
    problems = draw(task, setting, count)
    for tokens, targets in zip(problems.tokens, problems.targets, strict=True):
        asked = np.flatnonzero(targets != IGNORED)
        yield bytes(tokens[1 : asked[0] + 1].astype(np.uint8)).decode(), bytes(targets[asked].astype(np.uint8)).decode()


@pytest.mark.parametrize("length", [0, 1024, 6000])
@pytest.mark.parametrize("task", [1, 2, 3])
def test_a_reader_who_picks_the_facts_out_answers(task, length):
    for text, answer in texts(Babilong(), {"task": task, "length": length}, 20):
        context, question = re.fullmatch(r"(.*)\nQuestion: (.*)\nAnswer:", text, re.DOTALL).groups()
        facts = FACT.findall(context)
        assert answer == " " + solve(facts, question)
        if length:
            assert length - 120 < 1 + len(text) + len(answer) <= length
        else:
            assert " ".join(facts) == context


def test_many_facts_are_told_where_there_is_room_and_fewer_where_not():
    many = [len(FACT.findall(text)) for text, _ in texts(Babilong(facts=68), {"task": 2, "length": 4096}, 30)]
    assert max(many) > 40
    few = [len(FACT.findall(text)) for text, _ in texts(Babilong(facts=68), {"task": 2, "length": 512}, 30)]
    assert max(few) < 20


def test_facts_stand_everywhere():
    places = []
    for text, _ in texts(Babilong(), {"task": 1, "length": 8000}, 20):
        places += [found.start() / len(text) for found in FACT.finditer(text)]
    assert np.histogram(places, 4, (0, 1))[0].min() > 0.1 * len(places)


def test_one_problem_in_full():
    assert next(texts(Babilong(), {"task": 2, "length": 400})) == PINNED


def test_settings_and_errors():
    task = Babilong(shortest=1000, longest=2000, trained=500)
    assert len(task.grid) == 9 and task.grid[1] == {"task": 1, "length": 1000}
    assert [s["length"] for s in Babilong(task=2, trained=500).lessons] == [0, 250, 500]
    with pytest.raises(UserError, match="100 are too few"):
        draw(task, {"task": 3, "length": 100}, 5)
    with pytest.raises(UserError, match="there is no task 4"):
        draw(task, {"task": 4, "length": 0}, 1)
    for fields, message in (
        ({"task": 4}, "1, 2 or 3, or 0"),
        ({"facts": 3}, "at least 4"),
        ({"shortest": 9, "longest": 8}, "shortest at most"),
    ):
        with pytest.raises(ValueError, match=message):
            Babilong(**fields)
