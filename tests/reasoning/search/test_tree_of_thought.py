"""Small trees in full, and every way a search can end."""

from __future__ import annotations

import pytest
from scripted import PLAIN, Climb, Judging, Scripted, check_books, reaches, says, wanderer

from mnemonist.errors import UserError
from mnemonist.reasoning.attempts import Decoding
from mnemonist.reasoning.search.tree_of_thought import BreadthFirst, DepthFirst

TASK = Climb()
PROBLEM = TASK.problem("train", 1, 0)  # from 1 to 11
PROBLEMS = [TASK.problem("train", 1, index) for index in range(12)]
SOLVABLE = [problem for problem in PROBLEMS if reaches(problem.facts["start"], problem.facts["target"])]
MOVES = {"proposer": "moves", "width": 0}


def texts(tree):
    return [node.text for node in tree.nodes[1:]]


class Table:
    """Values by the last step."""

    def __init__(self, **values):
        self.values = values
        self.asked = []

    def score(self, problem, paths, ledger):
        self.asked += [path[-1] for path in paths]
        return [self.values[path[-1].removeprefix("answer: ")] for path in paths]


def solve(method, *lines, task=TASK, problem=PROBLEM, **values):
    (tree,) = method.solve([problem], task, PLAIN, Scripted(says(*lines)), Decoding(), Table(**values))
    check_books(tree, task)
    return tree


def test_breadth_first_in_full():
    """Two of a level, twice two proposals behind them; gold values."""
    tree = solve(BreadthFirst(value="gold", breadth=1, **MOVES))
    assert texts(tree) == [
        *["1 + 3 = 4", "1 * 2 = 2"],  # both can reach 11: the first stays
        *["4 + 3 = 7", "4 * 2 = 8"],
        *["8 + 3 = 11", "8 * 2 = 16"],
    ]
    assert [node.value for node in tree.nodes[1:]] == [1, 1, 0, 1, 1, 0]
    assert [node.discarded for node in tree.nodes[1:]] == [False, True, True, False, False, True]
    assert (tree.answer, tree.right, tree.chosen) == ("+ 3,* 2,+ 3", True, 5)
    assert tree.ledger.tokens == 0  # moves and gold labels are free


def test_the_best_of_a_level_are_kept_whoever_their_parents_are():
    lines = ["a\n", "b\n", "c\n", *["d\n", "e\n", "g\n"], *["f\n"] * 3, *["h\n"] * 6]
    tree = solve(
        BreadthFirst(width=3, breadth=2, depth=3), *lines, a=0.3, b=0.8, c=0.5, d=0.1, e=0.9, g=0.2, f=0.4, h=0
    )
    parents = [(node.text, tree.nodes[node.parent].text) for node in tree.nodes[1:]]
    assert parents == [
        *[("a", ""), ("b", ""), ("c", "")],
        *[("d", "b"), ("e", "b"), ("g", "b"), ("f", "c")],  # b and c were the best
        *[("h", "e"), ("h", "f")],  # e and f: one of each parent, although g is b's second
    ]
    assert tree.nodes[7].copies == 3


def test_a_finished_path_holds_its_place():
    """It was kept once, so it is a candidate, although better-looking paths crowd it out and come to nothing."""
    lines = ["answer: x\n", "b\n", "c\n", "d\n", "answer: z\n", "e\n", "f\n", "g\n"]
    values = {"x": 0.5, "b": 0.6, "c": 0.7, "d": 0.8, "z": 0.1, "e": 0.9, "f": 0.9, "g": 0.9}
    method = BreadthFirst(width=2, breadth=2, depth=3)
    tree = solve(method, *lines, task=Judging(), problem=Judging().problem("train", 1, 0), **values)
    assert texts(tree)[:4] == ["answer: x", "b", "c", "d"]
    assert tree.answer == "x" and tree.chosen == 1
    assert tree.nodes[2].discarded


def test_depth_first_in_full():
    """Down the first hopeful-looking path, back from where the answer is wrong, until one is right."""
    tree = solve(DepthFirst(value="outcome", **MOVES))
    assert texts(tree) == [
        *["1 + 3 = 4", "1 * 2 = 2"],
        *["4 + 3 = 7", "4 * 2 = 8"],
        *["7 + 3 = 10", "7 * 2 = 14"],
        *["10 + 3 = 13", "10 * 2 = 20"],
        *["8 + 3 = 11", "8 * 2 = 16"],
    ]
    assert tree.answer == "+ 3,* 2,+ 3" and tree.nodes[tree.chosen].text == "8 + 3 = 11"
    assert {tree.nodes[number].text for number in (6, 7, 8, 10)} == {
        *["7 * 2 = 14", "10 + 3 = 13", "10 * 2 = 20", "8 * 2 = 16"],
    }
    assert [node.value for node in tree.nodes if node.finished] == [0, 0, 0, 1, 0]


def test_depth_first_with_gold_labels_enters_no_dead_end():
    tree = solve(DepthFirst(value="gold", **MOVES))
    assert texts(tree)[4:] == ["8 + 3 = 11", "8 * 2 = 16"]  # 4 + 3 = 7 was seen and not entered


def test_depth_first_goes_to_the_best_child_first():
    lines = ["a\n", "b\n", "c\n", "answer: x\n", "answer: y\n", "d\n"]
    values = {"a": 0.4, "b": 0.9, "c": 0.01, "x": 0.3, "y": 0.8, "d": 0.9}
    method = DepthFirst(width=3, depth=5)
    tree = solve(method, *lines, *["answer: w\n"] * 3, w=0.5, **values)
    # Behind b the best is d, and behind d there is an answer.
    assert texts(tree) == ["a", "b", "c", "answer: x", "answer: y", "d", "answer: w"]
    assert tree.answer == "w" and [node.text for node in tree.path(tree.chosen)] == ["b", "d", "answer: w"]
    assert tree.nodes[7].copies == 3 and tree.nodes[7].extra_tokens == 2 * tree.nodes[7].tokens


@pytest.mark.parametrize("order", [BreadthFirst, DepthFirst])
def test_the_depth_is_never_passed(order):
    tree = solve(order(value="outcome", depth=2, **MOVES))
    assert max(len(tree.path(node.number)) for node in tree.nodes) == 2
    assert (tree.answer, tree.right, tree.chosen) == (None, False, None)
    assert all(node.discarded for node in tree.nodes[1:])
    assert solve(order(value="outcome", depth=3, **MOVES)).right


@pytest.mark.parametrize("order", [BreadthFirst, DepthFirst])
def test_where_nothing_can_be_proposed(order):
    done = TASK.problem("train", 1, 0)
    done = type(done)(**{**done.to_json(), "facts": {"start": 11, "target": 11}})
    tree = solve(order(value="gold", **MOVES), problem=done)
    assert len(tree.nodes) == 1 and tree.answer is None and tree.right is False


@pytest.mark.parametrize("order", [BreadthFirst, DepthFirst])
def test_all_cut_off(order):
    tree = solve(order(value="gold", width=2, prune=0.5), "1 + 1 = 2\n", "answer: + 3\n")
    assert len(tree.nodes) == 3 and tree.answer is None and tree.right is False
    assert tree.ledger.discarded_tokens == tree.ledger.generated_tokens == 22


def test_what_is_worth_as_much_as_it_must_be_stays():
    tree = solve(BreadthFirst(width=2, prune=0.5), "answer: x\n", "answer: y\n", x=0.5, y=0.49)
    assert tree.answer == "x"
    assert solve(BreadthFirst(width=2, prune=0.51), "answer: x\n", "answer: y\n", x=0.5, y=0.49).answer is None


def test_nothing_is_written_behind_a_finished_path_that_nothing_beats():
    lines = ["answer: x\n", "b\n", *["d\n", "e\n"], *["answer: y\n"] * 2]
    tree = solve(BreadthFirst(width=2, breadth=2), *lines, x=0.9, b=0.8, d=0.1, e=0.2, y=0.3)
    # x and b stay; behind b there are d and e, of which only e is as good as its place; so d is asked for nothing.
    assert texts(tree) == ["answer: x", "b", "d", "e", "answer: y"] and tree.answer == "x"
    assert tree.nodes[5].parent == 4


@pytest.mark.parametrize("order", [BreadthFirst, DepthFirst])
def test_a_policy_that_ends_without_answers(order):
    tree = solve(order(value="outcome", width=2), "", "I give up")
    assert len(tree.nodes) == 3 and tree.answer is None


def test_expansions_are_counted():
    grown = [len(solve(DepthFirst(value="outcome", expansions=n, **MOVES)).nodes) for n in range(7)]
    assert grown == [1, 3, 5, 7, 9, 11, 11]
    assert solve(DepthFirst(value="outcome", expansions=5, **MOVES)).right  # what the last one found counts


def test_gold_values_solve_whatever_can_be_solved():
    assert 3 < len(SOLVABLE) < len(PROBLEMS)
    for method in (BreadthFirst(value="gold", breadth=1, **MOVES), DepthFirst(value="gold", **MOVES)):
        trees = method.solve(PROBLEMS, TASK, PLAIN, Scripted(says()))
        assert [tree.problem for tree in trees if tree.right] == SOLVABLE
        for tree in trees:
            check_books(tree, TASK)


def test_the_policy_as_its_own_judge():
    method = BreadthFirst(value="self", samples=2, breadth=2, prune=0.5)
    trees = method.solve(SOLVABLE, TASK, PLAIN, Scripted(wanderer(PROBLEMS)))
    assert all(tree.right for tree in trees)  # it tells the truth about steps, if not in them
    assert all(tree.ledger.reward_tokens > 0 for tree in trees)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BreadthFirst(breadth=0), "breadth is 0"),
        (lambda: BreadthFirst(width=0), "width is 0; it must be at least 1"),
        (lambda: BreadthFirst(depth=0), "depth is 0"),
        (lambda: BreadthFirst(choice="bst"), "did you mean 'best'"),
        (lambda: BreadthFirst(prune=float("nan")), "prune is nan"),
        (lambda: DepthFirst(expansions=-1), "expansions is -1"),
        (lambda: DepthFirst(line_tokens=0), "line_tokens is 0"),
        (lambda: DepthFirst(proposer="moves", width=-1), "width is -1; it must be at least 0"),
        (lambda: DepthFirst(proposer="model"), "proposer is 'model'"),
        (lambda: DepthFirst(aggregate="mean"), "aggregate is 'mean'"),
    ],
)
def test_fields_out_of_range(make, message):
    with pytest.raises(UserError, match=message):
        make()
