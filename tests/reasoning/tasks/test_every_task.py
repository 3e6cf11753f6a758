"""What every task promises: gold answers are right, steps are labelled by the truth, splits share nothing."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from mnemonist.errors import UserError
from mnemonist.reasoning.tasks.hint_flip import Hinted
from mnemonist.reasoning.tasks.table import TASKS, build_task
from mnemonist.reasoning.tasks.task import SHARES, Problem, StepTask

SPECS = [
    *(name for name, info in TASKS.items() if info.steps),
    "countdown:largest=50,all_used=true",
    "chain-arithmetic:digits=4,minus=false",
    "diagnosis:options=0,book=7",
    "diagnosis:rules_given=true,signs=6",
]

PINNED = {
    "countdown": Problem(
        "countdown", "test", 4, 3, "Make 32 from 3 9 14 19.", "9*3+19-14", {"numbers": [3, 9, 14, 19], "target": 32}
    ),
    "game24": Problem(
        "game24", "test", 4, 3, "Make 24 from all of 7 12 5 6.", "(7+5)*12/6", {"numbers": [7, 12, 5, 6], "target": 24}
    ),
    "chain-arithmetic": Problem("chain-arithmetic", "test", 3, 3, "7 + 27 + 79 = ?", "113", {"terms": [7, 27, 79]}),
    "long-multiplication": Problem(
        "long-multiplication", "test", 3, 3, "626 * 574 = ?", "359324", {"factors": [626, 574]}
    ),
    "knights": Problem(
        "knights",
        "test",
        3,
        3,
        "A says A and C are different. B says B is a knight and C is a knight. C says A and B are different. "
        "Who is what?",
        "A knave, B knave, C knave",
        {"says": [["same", 0, 2, 0], ["and", 1, 1, 2, 1], ["same", 0, 1, 0]]},
    ),
    "diagnosis": Problem(
        "diagnosis",
        "test",
        2,
        3,
        "Findings: lusi, dene, vupa, sosi, sada, bala. Options: A vasuk, B tukuz, C sorip, D fopum. Diagnosis?",
        "A",
        {
            "book": 0,
            "rules": 2,
            "findings": ["lusi", "dene", "vupa", "sosi", "sada", "bala"],
            "diagnosis": "vasuk",
            "options": ["vasuk", "tukuz", "sorip", "fopum"],
        },
    ),
}


@pytest.mark.parametrize("name", PINNED)
def test_one_of_each_in_full(name):
    pinned = PINNED[name]
    assert build_task(name).problem("test", pinned.difficulty, 3) == pinned


@pytest.mark.parametrize("spec", SPECS)
def test_gold_answers_and_solutions_are_right(spec):
    task = build_task(spec)
    assert isinstance(task, StepTask)
    for split in SHARES:
        for difficulty in task.difficulties:
            for index in range(3):
                problem = task.problem(split, difficulty, index)
                assert task.judge(problem, problem.answer).right and task.judge(problem, f" {problem.answer} ").right
                assert task.judge(problem, problem.answer).reason == ""
                steps = task.solution(problem)
                for taken in range(1, len(steps) + 1):
                    label = task.label(problem, steps[:taken])
                    last = taken == len(steps)
                    assert (label.valid, label.hopeful, label.finished, label.right) == (True, True, last, last)
                    assert label.reason == ""
                    assert (task.answer_of(problem, steps[:taken]) is None) != last
                assert task.judge(problem, task.answer_of(problem, steps) or "").right
                assert task.moves(problem, steps) == []


@pytest.mark.parametrize("spec", SPECS)
def test_a_walk_of_moves_is_valid_and_ends_and_any_other_line_is_not(spec):
    task, source = build_task(spec), random.Random(0)
    lines = set()
    for difficulty in list(task.difficulties)[:3]:
        for index in range(12):
            problem = task.problem("train", difficulty, index)
            steps: list[str] = []
            while moves := task.moves(problem, steps):
                assert len(set(moves)) == len(moves) and task.moves(problem, steps) == moves
                for move in moves:
                    label = task.label(problem, [*steps, move])
                    assert label.valid and "\n" not in move and (label.reason == "") == label.hopeful
                for stranger in source.sample(sorted(lines), min(5, len(lines))):
                    label = task.label(problem, [*steps, stranger])
                    assert label.valid == (stranger in moves), (problem, steps, stranger)
                    assert label.valid or (
                        label.reason and not label.hopeful and not label.finished and not label.right
                    )
                steps.append(source.choice(moves))
                assert len(steps) < 40
            label, answer = task.label(problem, steps), task.answer_of(problem, steps)
            assert label.finished
            assert label.right == (answer is not None and task.judge(problem, answer).right)
            assert not task.label(problem, [*steps, steps[-1]]).valid  # nothing follows
            assert not task.label(problem, ["nonsense", *steps]).valid and task.moves(problem, ["nonsense"]) == []
            assert not task.label(problem, []).valid
            lines.update(steps)


@pytest.mark.parametrize("spec", SPECS)
def test_splits_share_no_problem(spec):
    task = build_task(spec)
    difficulties = list(task.difficulties)[:2]
    seen = {split: set() for split in SHARES}
    for split in SHARES:
        for difficulty in difficulties:
            for index in range(100 if "rules_given" not in spec else 40):
                facts = task.problem(split, difficulty, index).facts
                seen[split].add(repr(task.content(facts)))
    assert not seen["train"] & seen["validation"]
    assert not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]
    assert all(len(contents) > 30 for contents in seen.values())


@pytest.mark.parametrize("changed", ["countdown:largest=50", "countdown:all_used=true", "countdown:target=99"])
def test_changed_fields_draw_other_problems_but_no_split_leaks(changed):
    one, other = build_task("countdown"), build_task(changed)
    train = {repr(one.content(one.problem("train", 3, index).facts)) for index in range(400)}
    test = [other.problem("test", 3, index) for index in range(400)]
    assert not train & {repr(other.content(problem.facts)) for problem in test}
    assert test[0].question != one.problem("test", 3, 0).question


@pytest.mark.parametrize("spec", SPECS)
def test_a_problem_is_the_same_alone_and_in_any_order(spec):
    task, again = build_task(spec), build_task(spec)
    difficulty = task.difficulties[0]
    problems = [task.problem("validation", difficulty, index) for index in range(6)]
    assert [again.problem("validation", difficulty, index) for index in reversed(range(6))] == problems[::-1]
    assert len({problem.question for problem in problems}) > 1
    for problem in problems:
        assert Problem.from_json(problem.to_json()) == problem
        assert build_task(problem.task) == task and problem.task == task.name == spec
        assert problem.question == problem.question.strip() and "\n" not in problem.question


@pytest.mark.parametrize("spec", SPECS)
def test_no_answer_is_right_for_most_problems(spec):
    task = build_task(spec)
    for difficulty in (task.difficulties[0], task.difficulties[-1]):
        problems = [task.problem("train", difficulty, index) for index in range(40)]
        guesses = {problem.answer for problem in problems}
        best = max(sum(task.judge(problem, guess).right for problem in problems) for guess in guesses)
        assert best <= 20


@pytest.mark.parametrize("spec", SPECS)
def test_mistakes_are_wrong_readable_and_varied(spec):
    task = build_task(spec)
    hinted, hints = Hinted(task), Counter()
    for index in range(20):
        twin = hinted.problem("train", task.difficulties[0], index)
        verdict = task.judge(twin, twin.facts["hint"])
        assert not verdict.right and verdict.parsed and verdict.reason
        hints[twin.facts["hint"]] += 1
        assert task.mistake(twin, np.random.default_rng(0)) == task.mistake(twin, np.random.default_rng(0))
    assert len(hints) >= 3


@pytest.mark.parametrize("spec", SPECS)
def test_what_does_not_exist(spec):
    task = build_task(spec)
    with pytest.raises(UserError, match=f"{task.name} has no difficulty 99; it has {task.difficulties[0]}"):
        task.problem("train", 99, 0)
    with pytest.raises(UserError, match="no split 'dev'"):
        task.problem("dev", task.difficulties[0], 0)
    with pytest.raises(UserError, match="counted from 0"):
        task.problem("train", task.difficulties[0], -1)
