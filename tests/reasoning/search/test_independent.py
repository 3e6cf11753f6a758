"""Votes by hand, and pass@k by counting every draw."""

from __future__ import annotations

import itertools

import pytest
from scripted import PLAIN, Judging, Scripted, check_books, says

from mnemonist.errors import UserError
from mnemonist.reasoning.attempts import Decoding
from mnemonist.reasoning.search.independent import Independent, coverage, elect, pass_at_k
from mnemonist.reasoning.tree import Node

TASK = Judging()
PROBLEM = TASK.problem("train", 1, 7)


def nodes(*answers, values=()):
    values = values or [None] * len(answers)
    return [
        Node(number, 0, finished=True, answer=answer, value=value)
        for number, (answer, value) in enumerate(zip(answers, values, strict=True), 1)
    ]


def elected(choice, *answers, values=()):
    answer, winners = elect(nodes(*answers, values=values), choice)
    return answer, [node.number for node in winners]


def test_the_majority():
    assert elected("majority", "5", "7", "7", None) == ("7", [2, 3])
    assert elected("majority", "5", None, "7", "7", "5") == ("5", [1, 5])  # the first seen of two
    assert elected("majority", None, "7", "5") == ("7", [2])
    assert elected("majority", "a + b", "c", "a+b") == ("a + b", [1, 3])  # blanks do not matter
    assert elected("majority", None, None) == (None, []) == elected("majority")


def test_the_best():
    assert elected("best", "5", "7", "5", values=[0.2, 0.9, 0.3]) == ("7", [2])
    assert elected("best", "5", "7", "9", values=[0.9, 0.9, 0.3]) == ("5", [1])
    assert elected("best", None, "7", values=[1.0, 0.0]) == ("7", [2])


def test_the_weighted():
    # 5 has 0.4 + 0.3, 7 has 0.6: together the weaker ones win, and the best alone does not.
    values = [0.4, 0.6, 0.3]
    assert elected("weighted", "5", "7", "5", values=values) == ("5", [1, 3])
    assert elected("best", "5", "7", "5", values=values) == ("7", [2])
    assert elected("weighted", "5", "7", values=[0.5, 0.5]) == ("5", [1])
    # The majority does not count weights, nor weights heads.
    assert elected("weighted", "5", "5", "7", values=[0.1, 0.1, 0.9])[0] == "7"
    assert elected("majority", "5", "5", "7", values=[0.1, 0.1, 0.9])[0] == "5"


def test_attempts_are_whole_texts():
    texts = ["think\nanswer: 5\n", "no idea", "answer: 7\n", "answer: 7\n"]
    sampler = Scripted(says(*texts), log_prob=lambda text: -1.0)
    method = Independent("self-consistency", attempts=4)
    (tree,) = method.solve([PROBLEM], TASK, PLAIN, sampler, Decoding(max_tokens=40))
    check_books(tree, TASK)
    assert [node.text for node in tree.nodes[1:]] == texts
    assert [node.answer for node in tree.nodes[1:]] == ["5", None, "7", "7"]
    assert [node.right for node in tree.nodes[1:]] == [False, False, True, True]
    assert [node.discarded for node in tree.nodes] == [False, True, True, False, False]
    assert (tree.answer, tree.right, tree.chosen) == ("7", True, None)  # two agreed
    assert tree.ledger.discarded_tokens == len(texts[0]) + len(texts[1]) + 2
    assert tree.nodes[1].log_prob == -1 and tree.nodes[1].value is None
    assert len(sampler.calls) == 1 and sampler.calls[0][1].max_tokens == 40


def test_nobody_answers():
    (tree,) = Independent(attempts=2).solve([PROBLEM], TASK, PLAIN, Scripted(says("hm", "so")))
    check_books(tree, TASK)
    assert (tree.answer, tree.right, tree.chosen, tree.ledger.discarded_tokens) == (None, False, None, 6)


def test_the_best_of_gold_is_whatever_is_right():
    method = Independent(attempts=3, choice="best", value="gold")
    (tree,) = method.solve([PROBLEM], TASK, PLAIN, Scripted(says("answer: 1", "answer: 7", "answer: 1")))
    assert tree.right and tree.chosen == 2 and [node.value for node in tree.nodes[1:]] == [0, 1, 0]


def test_pass_at_k_is_what_counting_every_draw_gives():
    for attempts in range(1, 7):
        for right in range(attempts + 1):
            outcomes = [True] * right + [False] * (attempts - right)
            for k in range(1, attempts + 1):
                draws = list(itertools.combinations(outcomes, k))
                assert pass_at_k(attempts, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize(("attempts", "right", "k"), [(3, 1, 4), (3, 4, 1), (3, -1, 1), (3, 1, 0), (0, 0, 1)])
def test_what_pass_at_k_cannot_tell(attempts, right, k):
    with pytest.raises(UserError, match="cannot be told"):
        pass_at_k(attempts, right, k)


def test_coverage_of_a_tree():
    texts = ["answer: 7", "answer: 1", "answer: 7", "hm"]
    (tree,) = Independent(attempts=4).solve([PROBLEM], TASK, PLAIN, Scripted(says(*texts)))
    assert coverage(tree, 1) == 0.5 and coverage(tree, 2) == pytest.approx(1 - 1 / 6) and coverage(tree, 3) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attempts": 0}, "attempts is 0; it must be at least 1"),
        ({"samples": 0}, "samples is 0"),
        ({"choice": "votes"}, "choice is 'votes'"),
        ({"value": "modell"}, "did you mean 'model'"),
        ({"aggregate": "prod"}, "did you mean 'product'"),
    ],
)
def test_fields_out_of_range(fields, message):
    with pytest.raises(UserError, match=message):
        Independent(**fields)
