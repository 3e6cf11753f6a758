"""Beams: how many are drawn and kept, and that no path without an answer is ever one."""

from __future__ import annotations

import pytest
from scripted import PLAIN, Climb, Judging, Scripted, check_books, reaches, says, wanderer

from mnemonist.errors import UserError
from mnemonist.reasoning.attempts import Decoding
from mnemonist.reasoning.search.beam import Beam
from mnemonist.reasoning.search.independent import Independent

TASK = Climb()
PROBLEMS = [TASK.problem("train", 1, index) for index in range(12)]
SOLVABLE = [problem for problem in PROBLEMS if reaches(problem.facts["start"], problem.facts["target"])]
JUDGING = Judging()
PROBLEM = JUDGING.problem("train", 1, 7)


class Table:
    """Values by the last step."""

    def __init__(self, **values):
        self.values = values

    def score(self, problem, paths, ledger):
        return [self.values[path[-1].removeprefix("answer: ")] for path in paths]


def solve(method, *lines, **values):
    sampler = Scripted(says(*(f"{line}\n" for line in lines)))
    (tree,) = method.solve([PROBLEM], JUDGING, PLAIN, sampler, Decoding(), Table(**values))
    check_books(tree, JUDGING)
    return tree, [len(prompts) for prompts, _ in sampler.calls if prompts]


def test_a_beam_in_full():
    """Four beams of width two: two stay."""
    lines = ["a", "b", "c", "d", *["e", "f"], *["g", "h"], *["answer: x", "i"], *["answer: y", "j"]]
    values = dict(zip("abcdefghxiyj", [0.1, 0.6, 0.2, 0.5, 0.8, 0.2, 0.1, 0.7, 0.3, 0.2, 0.4, 0.1], strict=True))
    tree, asked = solve(Beam(beams=4, width=2, depth=3), *lines, **values)
    assert asked == [4, 4, 4]
    steps = {node.text: [each.text for each in tree.path(node.number)] for node in tree.nodes}
    assert steps["e"] == ["b", "e"] and steps["f"] == ["b", "f"] and steps["h"] == ["d", "h"]  # b and d stay
    assert steps["i"] == ["b", "e", "i"] and steps["j"] == ["d", "h", "j"]  # e and h stay
    assert tree.answer == "y" and steps["answer: y"] == ["d", "h", "answer: y"]


def test_subtrees_do_not_compete():
    """In the beam both paths behind a win; in two subtrees each keeps one."""
    lines = ["a", "b", "a", "b", *["c", "d"], *["e", "f"], *["answer: x"] * 2, *["answer: y"] * 2]
    values = {"a": 0.9, "b": 0.3, "c": 0.8, "d": 0.7, "e": 0.2, "f": 0.1, "x": 0.5, "y": 0.5}
    for diverse, grown in ((False, ["c", "d"]), (True, ["c", "e"])):
        tree, asked = solve(Beam(beams=4, width=2, depth=3, diverse=diverse), *lines, **values)
        assert asked == [4, 4, 4]
        ends = [node for node in tree.nodes if node.finished]
        assert [tree.nodes[end.parent].text for end in ends] == grown
        assert tree.nodes[1].copies == 2


def test_first_steps_are_dealt_in_turn():
    lines = ["a", "b", "c", "d", *["answer: x"] * 4]
    values = {"a": 0.1, "b": 0.9, "c": 0.3, "d": 0.8, "x": 0.5}
    tree, _ = solve(Beam(beams=4, width=2, depth=2, diverse=True), *lines, **values)
    # Two hands, a c and b d: c and b are the best of their hands, although d is better than c.
    assert [tree.nodes[node.parent].text for node in tree.nodes if node.finished] == ["c", "b"]


@pytest.mark.parametrize("diverse", [False, True])
def test_unfinished_paths_are_no_candidates(diverse):
    """The best-looking paths of the last level have no answer; the one that has wins with the lowest value."""
    lines = ["a", "answer: 7", "b", "a", *["c", "d"], *["e", "f"]]
    values = {"a": 0.9, "b": 0.0, "7": 0.2, **dict.fromkeys("cdef", 0.9)}
    tree, _ = solve(Beam(beams=4, width=2, depth=2, diverse=diverse), *lines, **values)
    assert tree.answer == "7" and tree.right
    assert all(node.discarded for node in tree.nodes[1:] if node.text != "answer: 7")


@pytest.mark.parametrize("diverse", [False, True])
def test_out_of_depth(diverse):
    tree, _ = solve(Beam(beams=2, width=2, depth=1, diverse=diverse), "a", "b", a=0.9, b=0.9)
    assert (tree.answer, tree.right, tree.chosen) == (None, False, None)
    assert tree.ledger.discarded_tokens == tree.ledger.generated_tokens == 4


def test_subtrees_vote():
    lines = ["answer: 5", "a", "b", *["answer: 7"] * 3, *["answer: 7"] * 3, *["answer: 7"] * 3]
    method = Beam(beams=3, width=1, depth=2, diverse=True, choice="weighted")
    values = {"5": 0.6, "a": 0.5, "b": 0.5, "7": 0.4}
    tree, _ = solve(method, *lines, **values)
    assert tree.answer == "7" and tree.chosen is None  # 0.4 + 0.4 against 0.6
    assert [node.discarded for node in tree.nodes[1:]] == [True, False, False, False, False]


def test_gold_values_solve_what_sampling_does_not():
    """A beam may go on with one right step for every wrong one; whole attempts must be right throughout."""
    sampler = Scripted(wanderer(PROBLEMS))
    beam = Beam(beams=8, width=4, value="gold").solve(PROBLEMS, TASK, PLAIN, sampler)
    assert [tree.problem for tree in beam if tree.right] == SOLVABLE
    chains = Independent(attempts=1).solve(PROBLEMS, TASK, PLAIN, sampler)
    assert sum(tree.right for tree in chains) < len(SOLVABLE) / 2
    for tree in beam:
        check_books(tree, TASK)


@pytest.mark.parametrize("fields", [{"beams": 6, "width": 4}, {"beams": 0}, {"width": 0, "proposer": "moves"}])
def test_fields_that_do_not_fit(fields):
    with pytest.raises(UserError, match="beams must be a multiple of the width"):
        Beam(**fields)
    with pytest.raises(UserError, match="choice is 'first'"):
        Beam(choice="first")
