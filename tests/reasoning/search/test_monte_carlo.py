"""Bonuses by hand, books of visits and values, and where the visits go."""

from __future__ import annotations

import math

import pytest
from scripted import PLAIN, Climb, Scripted, check_books, reaches, says, wanderer

from mnemonist.errors import UserError
from mnemonist.reasoning.attempts import Decoding
from mnemonist.reasoning.search.monte_carlo import MonteCarlo, priors, puct, uct
from mnemonist.reasoning.tree import ROOT, Node, Tree

TASK = Climb()
PROBLEM = TASK.problem("train", 1, 0)  # from 1 to 11
PROBLEMS = [TASK.problem("train", 1, index) for index in range(12)]
SOLVABLE = [problem for problem in PROBLEMS if reaches(problem.facts["start"], problem.facts["target"])]
MOVES = {"proposer": "moves", "width": 0}


class Table:
    """Values by the last step."""

    def __init__(self, **values):
        self.values = values

    def score(self, problem, paths, ledger):
        return [self.values[path[-1].removeprefix("answer: ")] for path in paths]


def solve(method, *lines, policy=None, problem=PROBLEM, log_prob=None, **values):
    sampler = Scripted(policy or says(*(f"{line}\n" for line in lines)), log_prob)
    (tree,) = method.solve([problem], TASK, PLAIN, sampler, Decoding(), Table(**values))
    check_books(tree, TASK)
    return tree


def visits(tree: Tree) -> dict[str, int]:
    return {node.text: node.visits for node in tree.nodes}


def test_bonuses_by_hand():
    assert uct(0.5, 4, 16, 1.5) == pytest.approx(0.5 + 1.5 * math.sqrt(2.772588722 / 4))  # ln 16
    assert uct(0.5, 4, 16, 1.5) == pytest.approx(1.748831)
    assert uct(0.9, 0, 16, 1.5) == math.inf
    assert puct(0.5, 0.25, 3, 16, 2.0) == pytest.approx(0.5 + 2 * 0.25 * 4 / 4)
    assert puct(0.5, 0.25, 0, 16, 2.0) == pytest.approx(0.5 + 2)


def test_uct_visits_by_hand():
    """Two children worth 0.6 and 0.5 that lead nowhere else, c = 1: who is next follows from the formula."""
    method = MonteCarlo(simulations=4, bonus="uct", exploration=1.0, width=2, depth=3)
    tree = solve(method, "a", "b", "c", "d", "e", "f", a=0.6, b=0.5, c=0.9, d=0.1, e=0.2, f=0.3)
    # 1: root grows a and b, a is valued. 2: b, never visited. Now 0.6 + sqrt(ln 2) beats 0.5 + sqrt(ln 2).
    # 3: a grows c and d, c is valued 0.9: a has mean 0.75. 4: a has 0.75 + sqrt(ln 3 / 2) = 1.491, b has
    # 0.5 + sqrt(ln 3) = 1.548 and grows e and f; e is valued 0.2.
    assert visits(tree) == {"": 4, "a": 2, "b": 2, "c": 1, "d": 0, "e": 1, "f": 0}
    values = {node.text: node.value for node in tree.nodes}
    assert values == {
        **{"": pytest.approx((0.6 + 0.5 + 0.9 + 0.2) / 4), "a": pytest.approx(0.75), "b": pytest.approx(0.35)},
        **{"c": 0.9, "d": None, "e": 0.2, "f": None},
    }


def test_puct_visits_by_hand():
    """Log-probabilities make b four times as likely as a; c = 2."""
    method = MonteCarlo(simulations=3, bonus="puct", exploration=2.0, width=2, depth=3)
    log_prob = {"a\n": math.log(0.1), "b\n": math.log(0.4), "c\n": -1.0, "d\n": -1.0}
    tree = solve(method, "a", "b", "c", "d", log_prob=log_prob.__getitem__, a=0.5, b=0.1, c=0.3, d=0.7)
    # 1: b, 0.8 against 0.2. Root has 0.1. 2: b has 0.1 + 2 * 0.8 / 2 = 0.9, a has root's 0.1 and 2 * 0.2: b grows, and
    # c is valued 0.3. 3: N is 2, b has 0.2 + 2 * 0.8 * 1.414 / 3 = 0.954, a has 0.2 + 2 * 0.2 * 1.414 = 0.766: b again,
    # and below it d: (0.2 + 2 * 0.5 * 1.414) against c's 0.3 + 2 * 0.5 * 1.414 / 2.
    assert visits(tree) == {"": 3, "a": 0, "b": 3, "c": 1, "d": 1}
    assert tree.nodes[2].value == pytest.approx((0.1 + 0.3 + 0.7) / 3)


def test_what_is_thought_of_siblings():
    nodes = [Node(1, 0, "a", log_prob=-1.0, copies=3), Node(2, 0, "b", log_prob=-2.0, copies=1)]
    assert priors(nodes, "policy") == pytest.approx([math.e / (1 + math.e), 1 / (1 + math.e)])
    assert priors(nodes, "copies") == [0.75, 0.25]
    assert priors(nodes, "uniform") == [0.5, 0.5]
    nodes[1].log_prob = None
    assert priors(nodes, "policy") == [0.75, 0.25]
    far = [Node(1, 0, log_prob=-5000.0), Node(2, 0, log_prob=-5001.0)]
    assert sum(priors(far, "policy")) == pytest.approx(1)


@pytest.mark.parametrize("bonus", ["uct", "puct"])
@pytest.mark.parametrize("value", ["gold", "outcome", "rollouts", "self"])
def test_visits_and_values_add_up(bonus, value):
    method = MonteCarlo(simulations=25, bonus=bonus, value=value, samples=2, width=3)
    trees = method.solve(PROBLEMS[:4], TASK, PLAIN, Scripted(wanderer(PROBLEMS, wise=0.3)))
    for tree in trees:
        assert tree.nodes[ROOT].visits == 25
        for node in tree.nodes:
            below = sum(child.visits for child in tree.children(node.number))
            own = node.visits - below
            ends = node.finished or not below
            assert own >= 0 and (ends or own == (node.number != ROOT))  # valued once, then only passed through
            assert (node.value is None) == (node.visits == 0)
            if node.value is not None and not ends:
                total = sum((child.value or 0) * child.visits for child in tree.children(node.number))
                assert -1e-9 <= node.value * node.visits - total <= own + 1e-9
        check_books(tree, TASK)


def test_visits_gather_on_the_only_right_branch():
    problem = type(PROBLEM)(**{**PROBLEM.to_json(), "facts": {"start": 5, "target": 13}})
    tree = solve(MonteCarlo(simulations=60, value="gold", exploration=0.5, **MOVES), problem=problem)
    bad, good = tree.children(ROOT)  # 8, and 10, from which 13 is one step
    assert not TASK.label(problem, [bad.text]).hopeful and good.visits > 4 * bad.visits > 0
    assert tree.right


def test_more_simulations_find_what_few_do_not():
    def right(simulations):
        method = MonteCarlo(simulations=simulations, value="outcome", bonus="uct", **MOVES)
        return sum(tree.right for tree in method.solve(PROBLEMS, TASK, PLAIN, Scripted(says())))

    assert right(2) < right(300) == len(SOLVABLE)


@pytest.mark.parametrize(("choice", "answer"), [("visits", "x"), ("value", "y")])
def test_the_last_walk(choice, answer):
    """x was likelier and visited more, y is worth more; b looks best of all and gives no answer."""
    log_probs = {"answer: x\n": -1.0, "answer: y\n": -3.0, "b\n": -3.0}
    values = {"x": 0.5, "y": 0.6, "b": 0.7}
    method = MonteCarlo(simulations=20, width=3, depth=1, choice=choice, exploration=1.0)
    tree = solve(method, "answer: x", "answer: y", "b", log_prob=log_probs.__getitem__, **values)
    counts = visits(tree)
    assert counts["answer: x"] > counts["answer: y"] > 0
    assert tree.answer == answer


def test_dead_ends_lose_their_charm():
    """Valued 0.9 at first, but its depth is used up: a second visit finds nothing."""
    tree = solve(MonteCarlo(simulations=50, width=2, depth=1, prior="uniform"), "b", "answer: x", b=0.9, x=0.5)
    assert tree.answer == "x"
    counts = visits(tree)
    assert counts["b"] < counts["answer: x"]
    assert tree.nodes[1].value == pytest.approx(0.9 / counts["b"])


def test_an_answer_nobody_looked_at_is_better_than_none():
    method = MonteCarlo(simulations=1, width=3, prior="uniform")
    assert solve(method, "b", "answer: x", "answer: y", b=0.9).answer == "x"
    # But not better than one that was looked at, on however lonely a way.
    lines = ["b", "answer: y", "c", *["d", "e", "answer: x"]]
    values = {"b": 0.9, "y": 0.1, "c": 0.0, "d": 0.9, "e": 0.9}
    tree = solve(MonteCarlo(simulations=5, width=3, bonus="uct", exploration=0.5), *lines, **values)
    counts = visits(tree)
    assert counts["b"] > counts["answer: y"] > counts["answer: x"] == 0 and tree.answer == "y"


def test_no_answer_anywhere():
    tree = solve(MonteCarlo(simulations=5, width=2, value="outcome"), policy=lambda prompt, chance: "I give up")
    assert (tree.answer, tree.right, tree.chosen) == (None, False, None)
    assert tree.nodes[ROOT].visits == 5 and len(tree.nodes) == 2
    assert tree.ledger.discarded_tokens == tree.ledger.generated_tokens == 20
    done = type(PROBLEM)(**{**PROBLEM.to_json(), "facts": {"start": 11, "target": 11}})
    tree = solve(MonteCarlo(simulations=5, value="gold", **MOVES), problem=done)
    assert len(tree.nodes) == 1 and tree.answer is None and tree.nodes[ROOT].visits == 5


def test_finished_paths_are_judged_once():
    method = MonteCarlo(simulations=40, width=1, value="self", samples=2)
    tree = solve(method, policy=lambda prompt, chance: "sure" if "sure" in prompt else "answer: + 3\n")
    assert tree.ledger.calls == 1 + 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"simulations": 0}, "simulations is 0"),
        ({"exploration": -1.0}, "exploration is -1"),
        ({"bonus": "uctt"}, "did you mean 'uct'"),
        ({"prior": "flat"}, "prior is 'flat'"),
        ({"choice": "best"}, "choice is 'best'"),
        ({"width": 0}, "width is 0"),
    ],
)
def test_fields_out_of_range(fields, message):
    with pytest.raises(UserError, match=message):
        MonteCarlo(**fields)
