"""Chains and products come out as Python counts them, and a wrong line is told from a line too early."""

from __future__ import annotations

import re

import pytest

from mnemonist.errors import UserError
from mnemonist.reasoning.tasks.chain_arithmetic import ChainArithmetic
from mnemonist.reasoning.tasks.long_multiplication import LongMultiplication
from mnemonist.reasoning.tasks.task import Problem


@pytest.mark.parametrize("task", [ChainArithmetic(), ChainArithmetic(digits=5), ChainArithmetic(minus=False)])
def test_sums_read_from_the_question(task):
    for difficulty in task.difficulties:
        problem = task.problem("test", difficulty, 0)
        assert re.fullmatch(r"\d+( [+-] \d+)+ = \?", problem.question)
        terms = [int(term.replace(" ", "")) for term in re.findall(r"(?:[+-] )?\d+", problem.question)]
        assert len(terms) == difficulty and sum(terms) == int(problem.answer)
        assert max(map(abs, terms)) < 10**task.digits and (task.minus or min(terms) >= 0)
        totals = [sum(terms[:n]) for n in range(1, difficulty + 1)]
        for line, before, after in zip(task.solution(problem), totals[:-1], totals[1:], strict=True):
            left, operator, right, equals, result = line.split(" ")
            assert (int(left), equals, int(result)) == (before, "=", after)
            assert int(left) + (int(right) if operator == "+" else -int(right)) == int(result)


def test_products_read_from_the_question():
    task = LongMultiplication()
    for difficulty in task.difficulties:
        problem = task.problem("test", difficulty, 1)
        left, right = map(int, re.findall(r"\d+", problem.question))
        assert len(str(left)) == len(str(right)) == difficulty and left * right == int(problem.answer)
        lines = task.solution(problem)
        assert len(lines) == 2 * difficulty - 1
        parts = []
        for line in lines:
            a, operator, b, _, result = line.split(" ")
            assert int(result) == (int(a) * int(b) if operator == "*" else int(a) + int(b))
            if operator == "*":
                assert int(a) == left
                parts.append(int(b))
            else:
                assert int(result) == left * sum(parts)
        assert sum(parts) == right and parts == [int(d) * 10**n for n, d in enumerate(reversed(str(right)))]


def test_short_terms_are_met_as_well():
    task = ChainArithmetic(digits=3)
    terms = [abs(term) for index in range(100) for term in task.problem("train", 4, index).facts["terms"]]
    assert all(sum(len(str(term)) == digits for term in terms) > 80 for digits in (1, 2, 3))


def test_labels():
    task = ChainArithmetic()
    problem = Problem("chain-arithmetic", "train", 3, 0, "3 + 5 - 10 = ?", "-2", {"terms": [3, 5, -10]})
    assert task.moves(problem, []) == ["3 + 5 = 8"] and task.moves(problem, ["3 + 5 = 8"]) == ["8 - 10 = -2"]
    for steps, reason in (
        (["3 + 5 = 9"], "3 + 5 is 8"),
        (["8 - 10 = -2"], "the next line is that of 3 + 5"),
        (["3 + 5 = 8", "8 - 10 = 2"], "8 - 10 is -2"),
        (["3 + 5 = 9", "9 - 10 = -1"], "there is no step to be taken"),
        (["3 + 5 = 8", "8 - 10 = -2", "-2"], "there is no step to be taken"),
    ):
        label = task.label(problem, steps)
        assert not label.valid and not label.hopeful and label.reason == reason
        assert task.answer_of(problem, steps) is None
    assert task.answer_of(problem, [" 3 + 5 = 8", "8 - 10 = -2 "]) == "-2"
    for answer, reason in (("-3", "-3 is not -2"), ("two", "no whole number"), ("2", "2 is not -2")):
        assert task.judge(problem, answer).reason == reason


def test_fields():
    with pytest.raises(UserError, match="digits is 0; terms have 1 to 9"):
        ChainArithmetic(digits=0)
