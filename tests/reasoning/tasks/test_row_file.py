"""A file of questions is a task: parted by its questions, judged by comparing, refused by line."""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from mnemonist.errors import UserError
from mnemonist.reasoning.attempts import Attempt
from mnemonist.reasoning.formats import FORMATS
from mnemonist.reasoning.proposing import Material
from mnemonist.reasoning.tasks.expressions import Rejected
from mnemonist.reasoning.tasks.hint_flip import Hinted
from mnemonist.reasoning.tasks.row_file import RowFile, read_number
from mnemonist.reasoning.tasks.table import build_task
from mnemonist.reasoning.tasks.task import SHARES, Problem, Split
from mnemonist.reasoning.weighing import weigh

PLAIN = FORMATS["plain"]


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sums(count: int) -> list[dict[str, Any]]:
    return [{"question": f"What is {n} plus 4?", "answer": n + 4, "ground_truth": n + 4} for n in range(count)]


def split_by_hand(question: str) -> str:
    digest = hashlib.sha256(json.dumps(["rows", question]).encode()).digest()
    part = int.from_bytes(digest[:8], "big") % 100
    return "train" if part < 80 else "validation" if part < 90 else "test"


def test_rows_are_parted_by_their_questions_in_the_order_of_the_file(tmp_path: Path) -> None:
    rows = sums(60)
    path = write(tmp_path / "mine.jsonl", *rows, *rows[:5])
    task = build_task(f"rows:path={path}")
    assert isinstance(task, RowFile)
    for split in SHARES:
        found = [task.problem(split, 0, index) for index in range(task.size(split))]
        assert found, split
        own = [row for row in [*rows, *rows[:5]] if split_by_hand(row["question"]) == split]
        assert [(p.question, p.answer, p.facts["ground_truth"]) for p in found] == [
            (row["question"], str(row["answer"]), row["answer"]) for row in own
        ]
        assert found[0] == Problem.from_json(found[0].to_json()) and build_task(found[0].task) == task
        with pytest.raises(UserError, match=rf"mine.jsonl has no {split} problem {len(own)}, only \d+ of the"):
            task.problem(split, 0, len(own))
    write(path, {"prompt": "Where?", "answer": "here"}, *rows)  # a file that has changed is read again
    assert sum(task.size(split) for split in SHARES) == 61


def questions(task: RowFile, split: Split) -> list[str]:
    return [task.problem(split, 0, index).question for index in range(task.size(split))]


def test_splits_may_have_files_of_their_own(tmp_path: Path) -> None:
    rows = sums(60)
    learned, asked = (
        write(tmp_path / "a.jsonl", *rows[:40]),
        write(tmp_path / "b.jsonl", *rows[40:], {**rows[40], "x": 1}),
    )
    wholes = build_task(f"rows:train={learned},test={asked}")
    assert isinstance(wholes, RowFile) and build_task(wholes.name) == wholes
    assert questions(wholes, "train") == [row["question"] for row in rows[:40]]
    assert questions(wholes, "test") == [row["question"] for row in [*rows[40:], rows[40]]]
    assert wholes.size("validation") == 0 and "name one with validation=FILE" in wholes.lacking("validation")
    assert set(wholes.problem("train", 0, 0).facts) == {"ground_truth", "x"}
    assert build_task(f"rows:test={asked}").size("train") == 0

    parted = RowFile(str(learned), test=str(asked))  # what is left of a file when the test is elsewhere
    assert questions(parted, "test") == questions(wholes, "test")
    by_hand = {row["question"]: split_by_hand(row["question"]) for row in rows[:40]}
    assert "test" in by_hand.values()
    assert questions(parted, "validation") == [name for name, split in by_hand.items() if split == "validation"]
    assert questions(parted, "train") == [name for name, split in by_hand.items() if split != "validation"]

    write(asked, *rows[39:])  # a file that has changed is read again
    with pytest.raises(
        UserError, match=r"'What is 39 plus 4\?' is in .*a.jsonl for train and in .*b.jsonl for test; what"
    ):
        wholes.size("test")
    with pytest.raises(UserError, match="'What is 39"):
        parted.size("test")
    write(asked)
    with pytest.raises(UserError, match=r"b.jsonl is empty"):
        wholes.size("train")


def test_other_fields_are_facts_that_every_problem_has_and_rewards_are_given(tmp_path: Path) -> None:
    rows = [{**row, "level": 2} if number == 3 else row for number, row in enumerate(sums(20))]
    task = RowFile(str(write(tmp_path / "mine.jsonl", *rows)))
    problems = [task.problem("train", 0, index) for index in range(task.size("train"))]
    assert {tuple(problem.facts) for problem in problems} == {("ground_truth", "level")}

    def near(completions: list[str], ground_truth: list[int], **columns: Any) -> list[float]:
        return [0.5 * (str(truth) in text) for text, truth in zip(completions, ground_truth, strict=True)]

    material = Material(task, PLAIN, problems, rewards=(near,))
    attempts = [Attempt(PLAIN.prompt(p.question), f"answer: {p.answer}\n") for p in problems[:2]]
    attempts[1] = Attempt(attempts[1].prompt, "answer: none\n")
    judged = weigh(problems[:2], attempts, task, PLAIN, material.rewards)
    assert [(one.right, one.reward) for one in judged] == [(True, 0.5), (False, 0.0)]


@pytest.mark.parametrize(
    ("match", "wanted", "right", "wrong"),
    [
        ("exact", "a red  fox", ["a red fox", " a red fox\n"], ["A red fox", "red fox", ""]),
        ("number", "1,234.50", ["1234.5", "$1,234.50", "+1234.500", "2469/2"], ["1234", "-1234.5", "12,34.5", "1e3"]),
        ("number", "-0.75", ["-3/4", "-0.750"], ["3/4", "3/0", "__import__('os')", "9" * 101, "²", ""]),
    ],
)
def test_answers_are_compared(match: str, wanted: str, right: list[str], wrong: list[str]) -> None:
    task = RowFile(match=match)
    problem = Problem(task.name, "train", 0, 0, "?", wanted)
    for answer in [wanted, *right]:
        assert task.judge(problem, answer).right, answer
    for answer in [*wrong, wanted + "x" * 20_000, " " * 10**6]:
        verdict = task.judge(problem, answer)
        assert not verdict.right and verdict.reason, answer
    assert not task.judge(problem, wanted + " " * 20_000).parsed


def test_numbers_are_exact_and_bounded() -> None:
    assert read_number("0.1") + read_number("0.2") == Fraction(3, 10)
    assert read_number("12,345,678") == 12_345_678
    for text in ("1,23", "1/0", "1/2/3", "--1", "1.2.3", "nan", "٣", "1" + "0" * 200):
        with pytest.raises(Rejected):
            read_number(text)


def test_hints_are_the_answers_to_other_rows(tmp_path: Path) -> None:
    task = RowFile(str(write(tmp_path / "mine.jsonl", *sums(30))))
    hinted = Hinted(task)
    for index in range(task.size("train")):
        twin = hinted.problem("train", 0, index)
        assert twin.facts["hint"] != twin.answer and twin.question.endswith(
            f"I think the answer is {twin.facts['hint']}."
        )
    same = RowFile(str(write(tmp_path / "same.jsonl", *({**row, "answer": "yes"} for row in sums(30)))))
    with pytest.raises(UserError, match="no wrong answers to hint at"):
        Hinted(same).problem("train", 0, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "?", "answer": 1}\n{\n', "mine.jsonl, line 2 is no problem: "),
        ("\n[1]\n", "line 2 is no problem: it is not an object with fields"),
        ('{"text": "x"}', "line 1 is no problem: it has no field question or prompt, only text; give it question"),
        ('{"prompt": "x", "solution": 3}', "it has no field answer, only prompt, solution"),
        ('{"question": "x", "answer": " "}', 'line 1 is no problem: its answer is " "; write a text that is not empty'),
        ('{"question": ["x"], "answer": "y"}', 'its question is \\["x"\\]; write a text'),
        ('{"question": "x", "answer": true}', "its answer is true; write a text"),
        ("\n \n", "mine.jsonl is empty; write one JSON object a line"),
        (b"\xff\xfe", "cannot read .*mine.jsonl"),
        ("[" * 200_000, "line 1 is no problem: "),
    ],
)
def test_files_that_are_none(content: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        RowFile(str(path)).problem("train", 0, 0)


def test_what_does_not_exist(tmp_path: Path) -> None:
    path = str(write(tmp_path / "mine.jsonl", *sums(30)))
    for work, message in (
        (lambda: RowFile("a,b"), "the path 'a,b' has a comma"),
        (lambda: RowFile(path, test="a,b"), "the path 'a,b' has a comma"),
        (lambda: RowFile(path, train=path), "train is .*mine.jsonl and path .* give one of them"),
        (lambda: RowFile(test=path + "x").size("test"), "cannot read .*mine.jsonlx: No such file"),
        (lambda: RowFile(test=path).problem("train", 0, 0), "has no train problem 0, only 0 of the split train"),
        (lambda: RowFile(path, match="fuzzy"), "match is 'fuzzy'; it must be one of exact, number"),
        (lambda: RowFile().problem("train", 0, 0), "needs a file .* name it: rows:path=mine.jsonl"),
        (lambda: RowFile(path + "x").problem("train", 0, 0), "cannot read .*mine.jsonlx: No such file"),
        (lambda: RowFile(path).problem("train", 1, 0), "has no difficulty 1; it has 0"),
        (lambda: RowFile(path).problem("dev", 0, 0), "no split 'dev'"),  # type: ignore[arg-type]
        (lambda: RowFile(path).problem("train", 0, -1), "counted from 0"),
    ):
        with pytest.raises(UserError, match=message):
            work()
    path = str(write(tmp_path / "words.jsonl", {"question": "?", "answer": "#### 7"}))
    with pytest.raises(UserError, match=r"line 1 .* its answer '#### 7' is not read as a number \(no number\); take"):
        RowFile(path, match="number").size("train")
