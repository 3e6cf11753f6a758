"""A second reader finds every diagnosis, from rules in the question or from those seen in solutions."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from mnemonist.errors import UserError
from mnemonist.reasoning.tasks.diagnosis import Diagnosis, rule_book
from mnemonist.reasoning.tasks.task import Problem


def rules_of(text: str) -> dict[str, tuple[str, str]]:
    return {sign: (a, b) for a, b, sign in re.findall(r"(\w+) and (\w+) give (\w+)", text)}


def reached(findings: set[str], rules: dict[str, tuple[str, str]]) -> set[str]:
    known = set(findings)
    while new := {sign for sign, needs in rules.items() if known.issuperset(needs)} - known:
        known |= new
    return known


def findings_of(problem: Problem) -> set[str]:
    (listed,) = re.findall(r"Findings: ([\w, ]+)\.", problem.question)
    return set(listed.split(", "))


def options_of(problem: Problem) -> dict[str, str]:
    (listed,) = re.findall(r"Options: ([\w, ]+)\.", problem.question)
    return dict(option.split(" ") for option in listed.split(", "))


@pytest.mark.parametrize("difficulty", Diagnosis().difficulties)
def test_given_rules_lead_to_one_option(difficulty):
    task = Diagnosis(rules_given=True)
    books = set()
    for index in range(15):
        problem = task.problem("test", difficulty, index)
        rules = rules_of(problem.question)
        assert len(rules) == difficulty * task.signs
        known = reached(findings_of(problem), rules)
        options = options_of(problem)
        assert [letter for letter, sign in options.items() if sign in known] == [problem.answer]
        longest = options[problem.answer]
        for _ in range(difficulty):
            longest = rules[longest][0]
        assert longest in findings_of(problem)  # as many rules as the difficulty says
        assert len(findings_of(problem)) <= difficulty + 1 + task.noise
        books.add(problem.question.partition("Findings")[0])
    assert len(books) == 15


def test_the_book_can_be_learned_from_solutions():
    task = Diagnosis(options=0)
    learned: dict[str, tuple[str, str]] = {}
    for index in range(300):
        learned |= rules_of("\n".join(task.solution(task.problem("train", 2, index))))
    for index in range(100):
        problem = task.problem("test", 2, index)
        assert problem.answer in reached(findings_of(problem), learned)
        assert problem.answer in rules_of("; ".join(map(str, rule_book(0, 16, 12)[1][1])))


def test_books_differ_and_stay():
    assert rule_book(0, 16, 12) == rule_book(0, 16, 12) != rule_book(1, 16, 12)
    seen, layers = rule_book(3, 16, 12)
    signs = [rule.sign for layer in layers for rule in layer]
    needs = [(rule.first, rule.second) for layer in layers for rule in layer]
    assert len(set(seen) | set(signs)) == 16 + 5 * 12 and len(set(needs)) == len(needs)
    assert Diagnosis(book=1).problem("train", 1, 0).question != Diagnosis().problem("train", 1, 0).question


def test_labels():
    task, source, refused = Diagnosis(), random.Random(0), Counter()
    every = [str(rule) for layer in rule_book(0, 16, 12)[1] for rule in layer]
    for index in range(20):
        problem = task.problem("train", 3, index)
        rules = rules_of("\n".join(every[: 3 * task.signs]))
        known, steps = findings_of(problem), []
        while moves := task.moves(problem, steps):
            for line in every:
                ((sign, needs),) = rules_of(line).items()
                valid = sign in rules and known.issuperset(needs) and sign not in known
                label = task.label(problem, [*steps, line])
                assert label.valid == valid == (line in moves)
                refused[label.reason] += 1
                if valid:
                    assert label.hopeful and label.finished == label.right == (sign == problem.facts["diagnosis"])
            steps.append(source.choice(moves))
            known |= set(rules_of(steps[-1]))
        assert task.answer_of(problem, steps) == problem.answer
    assert any("is not known" in reason for reason in refused) and any("known already" in reason for reason in refused)


def test_answers():
    task = Diagnosis()
    problem = task.problem("train", 1, 0)
    sign = problem.facts["diagnosis"]
    for answer in "ABCD":
        verdict = task.judge(problem, answer)
        assert verdict.parsed and verdict.right == (options_of(problem)[answer] == sign)
    for answer in ("E", problem.answer.lower(), sign, f"{problem.answer} {sign}", ""):
        assert task.judge(problem, answer).reason == "it is not one of the letters A to D"
        assert not task.judge(problem, answer).parsed
    free = Diagnosis(options=0)
    problem = free.problem("train", 1, 0)
    assert "Options" not in problem.question and not free.judge(problem, "A").parsed
    wrong = free.judge(problem, next(rule.sign for rule in rule_book(0, 16, 12)[1][0] if rule.sign != problem.answer))
    assert wrong.parsed and not wrong.right


def test_no_letter_and_no_name_is_favoured():
    for task in (Diagnosis(), Diagnosis(options=0)):
        answers = Counter(task.problem("train", 2, index).answer for index in range(400))
        assert max(answers.values()) < 1.6 * 400 / len(answers) and len(answers) in range(4, 13)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"options": 1}, "options is 1"),
        ({"options": 11}, "options is 11"),
        ({"options": 4, "signs": 3}, "options is 4"),
        ({"findings": 7}, "findings is 7"),
        ({"signs": 40}, "signs 40"),
        ({"noise": 11}, "from 0 to 10"),
        ({"book": -1}, "book is -1"),
    ],
)
def test_fields(fields, message):
    with pytest.raises(UserError, match=message):
        Diagnosis(**fields)
