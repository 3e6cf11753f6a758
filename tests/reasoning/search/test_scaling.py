"""Curves, bins and the compute-optimal choice, on trees whose outcome is written down."""

from __future__ import annotations

import pytest
from scripted import PLAIN, Judging, Scripted

from mnemonist.errors import UserError
from mnemonist.reasoning.attempts import Decoding
from mnemonist.reasoning.ledger import Ledger
from mnemonist.reasoning.search.methods import find_method
from mnemonist.reasoning.search.scaling import compute_optimal, curves, difficulty_bins, group_runs, labels, spending
from mnemonist.reasoning.tree import ROOT, Tree

TASK = Judging()
PROBLEMS = [TASK.problem("test", 1, index) for index in range(12)]


def made(method, right, tokens, problems=PROBLEMS, **settings):
    """Trees of a run that solves some problems, at a price each."""
    return [
        Tree(problem, method, settings, ledger=Ledger(generated_tokens=tokens), right=problem.index in right)
        for problem in problems
    ]


def test_a_curve_for_each_method_and_a_point_for_each_budget():
    trees = [
        *made("beam", range(9), 400, beams=8, value="gold"),
        *made("beam", range(3), 100, beams=2, value="gold"),
        *made("beam", range(1), 100, beams=2, value="self"),
        *made("chain", range(6), 50, attempts=1),
    ]
    found = group_runs(trees)
    assert labels(found) == ["beam:beams=8,value=gold", "beam:beams=2,value=gold", "beam:beams=2,value=self", "chain"]
    lines = curves(found)
    assert list(lines) == ["beam:value=gold", "beam:value=self", "chain"]
    gold = lines["beam:value=gold"]
    assert [(point.cost, point.right, point.count, point.accuracy) for point in gold] == [
        (100, 3, 12, 0.25),
        (400, 9, 12, 0.75),
    ]
    assert [dict(point.budget) for point in gold] == [{"beams": 2}, {"beams": 8}]
    assert [point.cost for point in curves(found, "prompt_tokens")["chain"]] == [0]


def test_draws_tell_runs_apart():
    trees = [
        tree for seed in range(2) for tree in made("chain", [], 1, attempts=1, decoding={"seed": seed, "top_k": 0})
    ]
    assert labels(group_runs(trees)) == ["chain:seed=0", "chain:seed=1"]


def test_costs():
    ledger = Ledger(prompt_tokens=1, generated_tokens=20, reward_tokens=300, calls=5, flops=7.0, seconds=0.5)
    assert [spending(ledger, name) for name in ("tokens", "generated_tokens", "flops")] == [321, 20, 7]
    with pytest.raises(UserError, match="did you mean 'seconds'"):
        spending(ledger, "second")


def test_one_tree_a_problem():
    with pytest.raises(UserError, match="two trees of chain with the same settings for judging/test/1/0"):
        group_runs(made("chain", [], 1) + made("chain", [], 1, PROBLEMS[:1]))


def attempts(shares):
    """Trees of ten attempts each, of which so many are right."""
    trees = made("chain", [], 1, PROBLEMS[: len(shares)])
    for tree, right in zip(trees, shares, strict=True):
        for number in range(10):
            tree.add(ROOT, "", finished=True, right=number < right)
    return trees


def bins_of(shares, bins=5):
    found = difficulty_bins(attempts(shares), bins)
    return [found[problem.id] for problem in PROBLEMS[: len(shares)]]


def test_bins_are_of_equal_size_from_easy_to_hard():
    assert bins_of([9, 1, 8, 2, 7, 3, 6, 4, 10, 0]) == [0, 4, 1, 3, 1, 3, 2, 2, 0, 4]


def test_equals_are_not_parted():
    assert bins_of([5, 5, 5, 5]) == [2, 2, 2, 2]
    assert bins_of([0] * 6 + [9, 8, 7, 6]) == [3, 3, 3, 3, 3, 3, 0, 0, 1, 1]
    assert bins_of([3], 5) == [2]
    assert bins_of([10, 0], 1) == [0, 0]


def test_bins_follow_the_policys_own_answers():
    def policy(prompt, chance):
        index = int(prompt.split()[1])
        return f"answer: {index}" if chance.random() * 12 > index else "answer: no"

    sampled = find_method("self-consistency:attempts=200").solve(PROBLEMS, TASK, PLAIN, Scripted(policy), Decoding())
    found = difficulty_bins(sampled, 4)
    assert [found[problem.id] for problem in PROBLEMS] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_bins_that_cannot_be():
    with pytest.raises(UserError, match="bins is 0"):
        bins_of([1], 0)
    with pytest.raises(UserError, match="of 0 attempts"):
        difficulty_bins(made("chain", [], 1))
    assert difficulty_bins([]) == {}


EASY, HARD = PROBLEMS[:6], PROBLEMS[6:]
BINS = {problem.id: int(problem.index >= 6) for problem in PROBLEMS}
RUNS = [
    *made("votes", range(6), 100, attempts=4),  # all of the easy ones
    *made("beam", range(6, 12), 100, beams=4),  # all of the hard ones
    *made("mcts", range(12), 500, simulations=9),  # all, but dear
]


def test_each_bin_takes_what_is_best_for_it():
    found = compute_optimal(group_runs(RUNS), BINS, 100)
    assert found.chosen == {0: ("votes", "votes"), 1: ("beam", "beam")}
    assert (found.point.accuracy, found.point.cost, found.point.count) == (1.0, 100, 12)
    assert compute_optimal(group_runs(RUNS), dict.fromkeys(BINS, 0), 500).chosen == {0: ("mcts", "mcts")}


def test_of_equals_the_cheapest():
    dear = made("again", range(6), 90, attempts=3)
    assert compute_optimal(group_runs([*dear, *RUNS]), BINS, 600).chosen[0] == ("again", "again")


def test_luck_is_not_measured_on_itself():
    """Each run solves a single problem. Who chose by all of them would claim one more than any run deserves."""
    lucky = [tree for index in range(12) for tree in made(f"run {index}", [index], 10)]
    found = compute_optimal(group_runs(lucky), dict.fromkeys(BINS, 0), 10)
    assert found.point.right == 0
    assert found.chosen[0][0] != found.chosen[0][1]


def test_choices_that_cannot_be_made():
    two = group_runs(RUNS)[:2]
    with pytest.raises(UserError, match="no run costs at most 99 tokens a problem; the cheapest costs 100"):
        compute_optimal(two, BINS, 99)
    with pytest.raises(UserError, match="judging/test/1/0 is in no bin"):
        compute_optimal(two, {problem.id: 0 for problem in PROBLEMS[1:]}, 100)
    with pytest.raises(UserError, match="bin 7 has one problem only"):
        compute_optimal(two, {**BINS, PROBLEMS[0].id: 7}, 100)
    with pytest.raises(UserError, match="same problems only"):
        compute_optimal(group_runs([*RUNS, *made("few", [], 1, PROBLEMS[:3])]), BINS, 100)
    with pytest.raises(UserError, match="same problems only"):
        compute_optimal([], BINS, 100)
