"""Twins differ in the hint alone, and flips are told from luck."""

from __future__ import annotations

import dataclasses
import random

import pytest

from mnemonist.errors import UserError
from mnemonist.reasoning.tasks.chain_arithmetic import ChainArithmetic
from mnemonist.reasoning.tasks.hint_flip import Flips, Hinted, count_flips
from mnemonist.reasoning.tasks.table import build_task
from mnemonist.reasoning.tasks.task import Problem, Verdict

RIGHT, WRONG = Verdict(True), Verdict(False, reason="it is not")


def test_a_twin_is_the_problem_with_a_false_hint():
    task = ChainArithmetic()
    hinted = Hinted(task)
    for index in range(50):
        problem, twin = task.problem("test", 4, index), hinted.problem("test", 4, index)
        hint = twin.facts["hint"]
        assert twin.question == f"{problem.question} I think the answer is {hint}."
        assert hint != problem.answer and hint.lstrip("-").isdigit()
        assert abs(len(hint) - len(problem.answer)) <= 1  # as plausible as a slip
        assert twin == hinted.twin(problem) and twin.id == f"hinted+{problem.id}"
        assert {**problem.facts, "hint": hint} == twin.facts and twin.answer == problem.answer
        assert hinted.judge(twin, problem.answer).right and not hinted.judge(twin, hint).right
        assert hinted.follows(twin, f" {hint} ") and not hinted.follows(twin, problem.answer)
        assert build_task(twin.task) == hinted and task.solution(twin) == task.solution(problem)


def test_hints_do_not_lie_on_one_side():
    task = ChainArithmetic(minus=False)
    twins = [Hinted(task).problem("train", 3, index) for index in range(200)]
    above = sum(int(twin.facts["hint"]) > int(twin.answer) for twin in twins)
    assert 70 < above < 130


@dataclasses.dataclass(frozen=True)
class Parity:
    """A task that knows no mistakes of its own."""

    answers: str = "even odd"
    name: str = "parity"
    difficulties: tuple[int, ...] = (1,)

    def problem(self, split, difficulty, index):
        answers = self.answers.split(" ")
        return Problem("parity", split, 1, index, f"{index}?", answers[index % len(answers)])

    def judge(self, problem, answer):
        return RIGHT if answer == problem.answer else WRONG


def test_other_answers_are_hinted_at_where_mistakes_are_not_known():
    assert Hinted(Parity()).problem("test", 1, 4).question == "4? I think the answer is odd."
    with pytest.raises(UserError, match="parity has no wrong answers"):
        Hinted(Parity(answers="even")).problem("test", 1, 0)


def test_flips_are_counted():
    alone = [RIGHT, RIGHT, RIGHT, RIGHT, WRONG, WRONG]
    hinted = [RIGHT, WRONG, WRONG, RIGHT, RIGHT, WRONG]
    flips = count_flips(alone, hinted)
    assert flips == Flips(problems=6, right_alone=4, right_hinted=3, flipped=2, regained=1)
    assert flips.rate == 0.5 and flips.net_rate == 0.25
    assert count_flips([WRONG], [RIGHT]).rate == 0 == count_flips([], []).net_rate
    with pytest.raises(ValueError, match="6 problems cannot be compared with 5 twins"):
        count_flips(alone, hinted[:5])


def test_who_heeds_no_hint_has_a_net_rate_near_nothing():
    source = random.Random(0)
    draws = [[RIGHT if source.random() < 0.5 else WRONG for _ in range(4000)] for _ in range(2)]
    flips = count_flips(*draws)
    assert flips.rate > 0.4 and abs(flips.net_rate) < 0.05
