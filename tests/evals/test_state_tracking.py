"""Tables are groups, and every target is the product of what was read."""

from __future__ import annotations

import itertools
from functools import reduce

import numpy as np
import pytest

from mnemonist.data import IGNORED
from mnemonist.errors import UserError
from mnemonist.evals.problems import draw
from mnemonist.evals.state_tracking import GROUPS, StateTracking, multiplication

PINNED = ([0, 5, 5, 6, 5, 2, 6], [-100, 5, 4, 3, 2, 1, 6])


@pytest.mark.parametrize("group", list(GROUPS))
def test_tables_are_those_of_groups(group):
    table = multiplication(group)
    n = GROUPS[group].order
    assert table.shape == (n, n)
    assert np.array_equal(table[0], np.arange(n)) and np.array_equal(table[:, 0], np.arange(n))
    assert all(len(set(row)) == n for row in [*table, *table.T])
    for a, b, c in np.random.default_rng(0).integers(0, n, (200, 3)):
        assert table[table[a, b], c] == table[a, table[b, c]]
    assert np.array_equal(table, table.T) == (group in ("parity", "z60"))


def test_a5_cannot_be_solved_and_s4_can():
    """The commutators of a group make a smaller one, until nothing is left; those of A5 make A5 again."""

    def derived(table, members):
        inverse = {a: b for a in members for b in members if table[a, b] == 0}
        made = {int(table[table[inverse[a], inverse[b]], table[a, b]]) for a in members for b in members}
        while more := {int(table[a, b]) for a in made for b in made} - made:
            made |= more
        return made

    def series(group):
        members, sizes = set(range(GROUPS[group].order)), []
        while not sizes or sizes[-1] != len(members):
            sizes.append(len(members))
            members = derived(multiplication(group), members)
        return sizes

    assert series("s4") == [24, 12, 4, 1]
    assert series("a5") == [60]


@pytest.mark.parametrize("group", ["parity", "z60", "s3", "s4", "a5", "s5"])
def test_targets_by_hand(group):
    task = StateTracking(group)
    problems = draw(task, {"elements": 30}, 3)
    assert problems.tokens.max() < task.vocab_size == GROUPS[group].order + 1
    for tokens, targets in zip(problems.tokens, problems.targets, strict=True):
        assert tokens[0] == 0 and targets[0] == IGNORED
        if group in ("parity", "z60"):
            expected = np.cumsum(tokens[1:] - 1) % GROUPS[group].order + 1
        else:
            points = int(group[1])
            every = list(itertools.permutations(range(points)))
            if group == "a5":  # even: the determinant of the matrix is 1
                every = [p for p in every if np.linalg.det(np.eye(points)[list(p)]) > 0]
            place, expected = list(range(points)), []
            for token in tokens[1:]:
                place = [every[token - 1][i] for i in place]
                expected.append(every.index(tuple(place)) + 1)
        assert targets[1:].tolist() == list(expected)


def test_one_problem_in_full():
    problem = draw(StateTracking("s3"), {"elements": 6}, 1)
    assert (problem.tokens[0].tolist(), problem.targets[0].tolist()) == PINNED


def test_settings():
    assert [s["elements"] for s in StateTracking("parity").grid] == [40, 80, 160, 256]
    assert [s["elements"] for s in StateTracking("parity").lessons] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert [s["elements"] for s in StateTracking("s5", trained=32, longest=64).grid] == [32, 64]
    assert StateTracking("s5").chance == 1 / 120
    with pytest.raises(ValueError, match="did you mean 's5'"):
        StateTracking("s55")
    with pytest.raises(ValueError, match="must be positive"):
        StateTracking("s5", trained=-1)
    with pytest.raises(ValueError, match="lessons have up to 128 elements"):
        StateTracking("s5", longest=64)
    with pytest.raises(UserError, match="at least 1"):
        draw(StateTracking("s5"), {"elements": 0}, 1)


@pytest.mark.parametrize(("group", "moved", "count"), [("s5", 2, 11), ("s5", 3, 31), ("s5", 4, 76), ("a5", 3, 21)])
def test_elements_that_move_few_things(group, moved, count):
    task = StateTracking(group, trained=8, longest=8, moved=moved)
    problems = draw(task, {"elements": 400}, 4)
    every = list(itertools.permutations(range(5)))
    if group == "a5":
        every = [p for p in every if np.linalg.det(np.eye(5)[list(p)]) > 0]
    met = {every[token - 1] for token in problems.tokens[:, 1:].ravel()}
    assert len(met) == count and max(sum(i != to for i, to in enumerate(p)) for p in met) == moved
    table = multiplication(group)
    for tokens, targets in zip(problems.tokens, problems.targets, strict=True):
        assert targets[-1] - 1 == reduce(lambda a, b: table[a, b], tokens[1:] - 1)
    assert len(set(problems.targets[:, 1:].ravel())) > 0.95 * len(every)  # the products are all of the group's


@pytest.mark.parametrize(("group", "moved"), [("parity", 2), ("z60", 2), ("a5", 2), ("s5", 1), ("s5", -1)])
def test_what_no_element_moves_is_refused(group, moved):
    with pytest.raises(ValueError, match="no elements but the identity"):
        StateTracking(group, moved=moved)
