"""Labels of Countdown and the game of 24 are those of somebody who simply tries everything."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import Counter
from fractions import Fraction

import pytest

from mnemonist.errors import UserError
from mnemonist.reasoning.tasks.countdown import Countdown
from mnemonist.reasoning.tasks.game24 import Game24
from mnemonist.reasoning.tasks.number_game import makes
from mnemonist.reasoning.tasks.task import Problem

GAMES = [Countdown(), Countdown(all_used=True), Countdown(largest=9, ceiling=100), Game24()]


class Naive:
    """Plays by the rules as they are told, on sorted tuples of fractions, and remembers what it has seen."""

    def __init__(self, task, target):
        self.whole = isinstance(task, Countdown)
        self.ceiling = task.ceiling if self.whole else None
        self.all_used = getattr(task, "all_used", True)
        self.target = Fraction(target)
        self.seen = {}

    def result(self, a, operator, b):
        """None if the step is not allowed."""
        if operator == "/" and b == 0:
            return None
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[operator]
        if value < 0 or (self.whole and value.denominator != 1) or (self.ceiling and value > self.ceiling):
            return None
        return value

    def steps(self, pool):
        """Every allowed step from here: numbers, operator, result, and what is left."""
        for i, j in itertools.permutations(range(len(pool)), 2):
            rest = [n for k, n in enumerate(pool) if k not in (i, j)]
            for operator in "+-*/":
                value = self.result(pool[i], operator, pool[j])
                if value is not None:
                    yield pool[i], operator, pool[j], value, tuple(sorted([*rest, value]))

    def solves(self, pool):
        """Whether the target can be made; tried out."""
        if (pool == (self.target,)) or (not self.all_used and self.target in pool):
            return True
        if pool not in self.seen:
            self.seen[pool] = any(self.solves(after) for *_, after in self.steps(pool))
        return self.seen[pool]


def line(a, operator, b, value, after):
    return f"{a} {operator} {b} = {value}, left {' '.join(map(str, after))}"


def positions(task, count, seed=0, most=5):
    """Problems with a few random allowed steps, unfinished; half of the problems have another target."""
    source = random.Random(seed)
    for index in range(count):
        difficulty = min(most, source.choice(task.difficulties))
        problem = task.problem("train", difficulty, index)
        if index % 2:
            facts = {**problem.facts, "target": source.randrange(10, 100)}
            if facts["target"] not in facts["numbers"]:
                problem = dataclasses.replace(problem, facts=facts)
        steps = []
        for _ in range(source.randrange(difficulty - 1)):
            after = [*steps, source.choice(task.moves(problem, steps))]
            if task.label(problem, after).finished:
                break
            steps = after
        yield problem, steps


def lying(problem, steps):
    """The numbers that lie there, as the last step says."""
    if steps:
        return tuple(sorted(map(Fraction, steps[-1].split("left ")[1].split(" "))))
    return tuple(sorted(map(Fraction, problem.facts["numbers"])))


@pytest.mark.parametrize("task", GAMES, ids=lambda task: task.name)
def test_labels_and_moves_are_those_of_trying_everything(task):
    states = hopeless = 0
    for problem, steps in positions(task, 40, most=4):
        naive, pool = Naive(task, problem.facts["target"]), lying(problem, steps)
        allowed = {line(*step): step[-1] for step in naive.steps(pool)}
        moves = task.moves(problem, steps)
        assert len(set(moves)) == len(moves) and set(moves) <= set(allowed)
        # The others only turn the two numbers of a sum or a product around.
        turned = {
            line(b, operator, a, value, after) for a, operator, b, value, after in naive.steps(pool) if operator in "+*"
        }
        assert set(allowed) - set(moves) <= turned
        assert {(step[3], step[4]) for step in naive.steps(pool)} == {
            (Fraction(move.split(" = ")[1].split(",")[0]), allowed[move]) for move in moves
        }
        for move in allowed:
            label = task.label(problem, [*steps, move])
            solved = naive.solves(allowed[move])
            done = len(allowed[move]) == 1 or (not naive.all_used and naive.target in allowed[move])
            assert label.valid and label.hopeful == solved, (problem, steps, move)
            assert (label.finished, label.right) == (done, done and solved)
            assert (label.reason == "") == solved
            assert (task.moves(problem, [*steps, move]) == []) == done
            states, hopeless = states + 1, hopeless + (not solved)
    assert states > 500 and 50 < hopeless < states - 50


@pytest.mark.parametrize("task", GAMES, ids=lambda task: task.name)
def test_what_is_not_allowed_is_not_valid(task):
    checked = 0
    for problem, steps in positions(task, 15, seed=1, most=4):
        naive, pool = Naive(task, problem.facts["target"]), lying(problem, steps)
        allowed = {line(*step) for step in naive.steps(pool)}
        strangers = [Fraction(0), Fraction(101), pool[0] + 1]
        for a, b in itertools.product([*pool, *strangers], repeat=2):
            rest = list((Counter(pool) - Counter([a, b])).elements())
            for operator in "+-*/":
                true = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else Fraction(1)}[operator]
                for value in (true, true + 1, Fraction(problem.facts["target"])):
                    step = line(a, operator, b, value, sorted([*rest, value]))
                    assert task.label(problem, [*steps, step]).valid == (step in allowed), (problem, steps, step)
                    checked += step not in allowed
    assert checked > 1000


@pytest.mark.parametrize("difficulty", [5, 6])
@pytest.mark.parametrize("all_used", [False, True])
def test_many_numbers_are_solved_exactly_too(difficulty, all_used):
    task = Countdown(all_used=all_used, ceiling=100, largest=9)
    source, found = random.Random(difficulty), []
    for index in range(6 if difficulty == 5 else 2):
        problem = task.problem("train", difficulty, index)
        facts = {**problem.facts, "target": source.randrange(60, 100)}
        problem = dataclasses.replace(problem, facts=facts)
        naive = Naive(task, facts["target"])
        for move in source.sample(task.moves(problem, []), 6):
            label = task.label(problem, [move])
            assert label.hopeful == naive.solves(lying(problem, [move]))
            found.append(label.hopeful)
    assert any(found)


def test_zeros_are_reckoned_with():
    """Nothing, times whatever is left: numbers that cancel must not hide what they still allow."""
    task = Countdown(all_used=True)
    for numbers, target in (([5, 5, 7, 24], 31), ([3, 3, 8, 24], 24), ([2, 2, 2, 10], 10), ([6, 6, 1, 12], 12)):
        problem = Problem("countdown:all_used=true", "train", 4, 0, "", "", {"numbers": numbers, "target": target})
        naive = Naive(task, target)
        for move in task.moves(problem, []):
            assert task.label(problem, [move]).hopeful == naive.solves(lying(problem, [move])), (numbers, move)


@pytest.mark.parametrize("task", GAMES, ids=lambda task: task.name)
def test_solutions_are_as_short_as_can_be(task):
    for index in range(30):
        problem = task.problem("train", 4, index)
        steps = task.solution(problem)
        used = len(steps) + 1
        naive = Naive(task, problem.facts["target"])
        naive.all_used = True
        for fewer in range(1, used if not getattr(task, "all_used", True) else 1):
            for some in itertools.combinations(sorted(problem.facts["numbers"]), fewer):
                assert not naive.solves(tuple(map(Fraction, some)))
        if isinstance(task, Countdown):
            assert used >= 3


def test_the_answer_is_what_the_steps_did():
    task = Countdown()
    problem = Problem("countdown", "train", 4, 0, "", "", {"numbers": [2, 3, 5, 7], "target": 56})
    steps = ["3 + 5 = 8, left 2 7 8", "8 * 7 = 56, left 2 56"]
    assert task.label(problem, steps) == task.label(problem, ["5 + 3 = 8, left 8 7 2", " 7 * 8 = 56, left 56 2 "])
    assert task.label(problem, steps).right and task.answer_of(problem, steps) == "(3+5)*7"
    assert task.answer_of(problem, steps[:1]) is None and task.answer_of(problem, ["nonsense"]) is None
    assert task.label(problem, steps[:1]).hopeful and not task.label(problem, steps[1:]).valid
    assert not task.label(problem, [*steps, "56 - 2 = 54, left 54"]).valid  # it was over
    wrong = ["5 - 3 = 2, left 2 2 7", "2 * 2 = 4, left 4 7", "7 - 4 = 3, left 3"]
    label = task.label(problem, wrong)
    assert (label.valid, label.hopeful, label.finished, label.right) == (True, False, True, False)
    assert label.reason == "3 is not 56" and task.answer_of(problem, wrong) == "7-2*(5-3)"
    assert not task.judge(problem, task.answer_of(problem, wrong)).right
    assert task.label(problem, ["7 - 2 = 5, left 3 5 5"]).hopeful is Naive(task, 56).solves(
        tuple(map(Fraction, (3, 5, 5)))
    )


def test_dead_ends_are_told_in_words():
    problem = Problem("countdown", "train", 3, 0, "", "", {"numbers": [7, 1, 4], "target": 24})
    assert Countdown().label(problem, ["4 - 1 = 3, left 3 7"]).reason == "3 and 7 cannot make 24"
    for step, reason in (
        ("4 - 7 = -3, left -3 1", "4 - 7 is negative"),
        ("7 / 4 = 7/4, left 1 7/4", "7 / 4 is no whole number"),
        ("7 + 4 = 12, left 1 12", "7 + 4 is 11"),
        ("7 + 7 = 14, left 1 4 14", "'7' lies there only once"),
        ("7 + 9 = 16, left 1 16", "'9' does not lie there"),
        ("7 + 4 = 11, left 11", "what is left is 1 11"),
        ("7 + 4 = 11", "no step of the form"),
    ):
        assert reason in Countdown().label(problem, [step]).reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("4*7-4", "it uses 4 more often than given"),
        ("4*7-1", "it is 27, not 28"),
        ("(7+1)*4-4", "it uses 4 more often than given"),
        ("28", "it uses 28 more often than given"),
        ("7*4*1", ""),
        ("7*4", ""),
        ("(1/4)", "it is 1/4, not 28"),
        ("-7*-4", ""),
        ("four times seven", "'f' cannot stand there"),
    ],
)
def test_answers(answer, reason):
    problem = Problem("countdown", "train", 3, 0, "", "", {"numbers": [7, 1, 4], "target": 28})
    verdict = Countdown().judge(problem, answer)
    assert (verdict.right, verdict.reason) == (reason == "", reason)
    assert verdict.parsed == ("cannot stand" not in reason)
    assert Countdown(all_used=True).judge(problem, answer).right == (answer == "7*4*1")


def test_the_game_of_24_takes_fractions():
    problem = Problem("game24", "train", 4, 0, "", "", {"numbers": [3, 3, 8, 8], "target": 24})
    task = Game24()
    steps = ["8 / 3 = 8/3, left 8/3 3 8", "3 - 8/3 = 1/3, left 1/3 8", "8 / 1/3 = 24, left 24"]
    assert task.solution(problem) == steps and task.answer_of(problem, steps) == "8/(3-8/3)"
    assert task.judge(problem, "8/(3-8/3)").right and not task.judge(problem, "3*8").right


def test_all_hands_of_the_game_of_24_that_can_be_solved_are_known():
    rules = Game24().rules
    hands = itertools.combinations_with_replacement(range(1, 14), 4)
    assert sum(makes(hand, 24, rules) for hand in hands) == 1362  # the count that is known of this game


def test_targets_are_spread():
    targets = Counter(Countdown().problem("train", 4, index).facts["target"] for index in range(500))
    assert max(targets.values()) < 40 and len(targets) > 80


@pytest.mark.parametrize("fields", [{"largest": 4}, {"target": 9}, {"ceiling": 50}, {"ceiling": 10**7}])
def test_fields(fields):
    with pytest.raises(UserError, match="targets from 10 to the ceiling"):
        Countdown(**fields)
