"""Every question can be answered from the pairs before it, and has the protocol's shape."""

from __future__ import annotations

import numpy as np
import pytest

from mnemonist.data import IGNORED
from mnemonist.errors import UserError
from mnemonist.evals.associative_recall import AssociativeRecall
from mnemonist.evals.problems import draw

PINNED = (
    [6, 11, 1, 15, 7, 13, 7, 0, 6, 10, 3, 9, 3, 9, 1, 5],
    [-100, -100, -100, -100, -100, -100, 13, -100, 11, -100, -100, -100, -100, -100, 15, -100],
)
"""Keys 1 to 7, values 8 to 15; -100 where nothing is asked."""


@pytest.mark.parametrize(("length", "pairs"), [(64, 4), (64, 16), (128, 32), (1024, 256), (16, 4)])
def test_a_reader_with_a_dictionary_answers_everything(length, pairs):
    task = AssociativeRecall()
    for seed in range(5):
        problems = draw(task, {"length": length, "pairs": pairs}, 3, seed)
        for tokens, targets in zip(problems.tokens, problems.targets, strict=True):
            assert len(tokens) == length
            keys, values = tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2]
            known = dict(zip(keys, values, strict=True))
            assert len(known) == pairs == len(set(values))
            assert keys.min() >= 1 and keys.max() < 4096 <= values.min() and values.max() < 8192
            asked = np.flatnonzero(targets != IGNORED)
            assert (asked >= 2 * pairs).all() and not (asked % 2).any()
            assert sorted(tokens[asked]) == sorted(keys)  # each key comes again once
            assert [known[token] for token in tokens[asked]] == list(targets[asked])


def test_queries_come_soon_after_the_pairs():
    """With a = 0.01 about half of the queries stand in the first tenth of their places; with a = 1 one in ten."""

    def early(power):
        problems = draw(AssociativeRecall(power=power), {"length": 1024, "pairs": 8}, 200)
        places = (problems.targets != IGNORED).nonzero()[1] // 2 - 8
        return (places < 50).mean()

    assert 0.4 < early(0.01) < 0.8
    assert 0.06 < early(1.0) < 0.14


def test_the_grid_and_the_lessons_are_the_papers():
    task = AssociativeRecall()
    assert [(s["length"], s["pairs"]) for s in task.grid] == [
        (64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256),
    ]  # fmt: skip
    lessons = [(s["length"], s["pairs"]) for s in task.lessons]
    assert [lessons.count(s) for s in [(64, 4), (128, 8), (256, 16), (256, 32), (256, 64)]] == [5, 1, 1, 1, 1]
    small = AssociativeRecall(vocabulary=32, longest=128, lessons_from="grid", trained=64)
    assert [s["pairs"] for s in small.grid] == [4, 8]  # 15 keys
    assert small.lessons == small.grid


def test_one_problem_in_full():
    problem = draw(AssociativeRecall(vocabulary=16), {"length": 16, "pairs": 3}, 1)
    assert problem.tokens[0].tolist() == PINNED[0]
    assert problem.targets[0].tolist() == PINNED[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocabulary": 3}, "at least 4 tokens"),
        ({"power": 0.0}, "positive number"),
        ({"longest": 32}, "no setting is left"),
        ({"lessons_from": "book"}, "paper or grid"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        AssociativeRecall(**fields)


@pytest.mark.parametrize(("length", "pairs"), [(15, 4), (64, 17), (64, 0)])
def test_no_room(length, pairs):
    with pytest.raises(UserError, match="has no room"):
        draw(AssociativeRecall(), {"length": length, "pairs": pairs}, 1)
