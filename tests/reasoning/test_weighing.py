"""Weighing: rewards have TRL's signature, and attempts come back from their files as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from toy_policies import FORMAT, SumTask

from mnemonist.errors import UserError
from mnemonist.reasoning.attempts import Attempt
from mnemonist.reasoning.tasks.rewards import accuracy_reward, format_reward
from mnemonist.reasoning.weighing import Judged, load_judged, save_judged, weigh

TASK = SumTask()
PROBLEM = TASK.problem("train", 2, 11)  # 2+1
TEXTS = ["3\n=3.", "=3.", "=4.", "=x.", "3 3 3", "=3. and so on"]
ATTEMPTS = [Attempt("2+1\n", text, (256, 50), (1, 2), (-0.123456789, -2.0), 2, "end") for text in TEXTS]


def judged() -> list[Judged]:
    return weigh([PROBLEM] * len(TEXTS), ATTEMPTS, TASK, FORMAT)


def test_attempts_are_taken_apart_and_judged() -> None:
    found = judged()
    assert [one.right for one in found] == [True, True, False, False, False, True]
    assert [one.answer for one in found] == ["3", "3", "4", "x", None, "3"]
    assert [one.parsed for one in found] == [True, True, True, False, False, True]
    assert [one.well_formed for one in found] == [True, True, True, True, False, False]
    assert [one.thought for one in found] == [True, False, False, False, True, False]
    assert [one.reward for one in found] == [1, 1, 0, 0, 0, 1]


def test_rewards_are_added_and_none_is_no_opinion() -> None:
    seen: dict[str, Any] = {}

    def short(completions: list[str], **columns: Any) -> list[float | None]:
        seen.update(columns)
        return [0.5 if len(text) == 3 else None for text in completions]

    rewards = [accuracy_reward(TASK, FORMAT), format_reward(FORMAT, 0.1), short]
    found = weigh([PROBLEM] * 6, ATTEMPTS, TASK, FORMAT, rewards)
    assert [one.reward for one in found] == pytest.approx([1.1, 1.6, 0.6, 0.6, 0.0, 1.0])
    assert seen.keys() == {"prompts", "completion_ids", "problem", "answer", "difficulty"}
    assert (seen["answer"][0], seen["completion_ids"][0], seen["prompts"][0]) == ("3", [1, 2], "2+1\n")


@pytest.mark.parametrize(
    ("given", "message"),
    [([1.0], "reward function wrong gave 1 rewards for 6 attempts"), ([float("nan")] * 6, "a reward is not finite")],
)
def test_rewards_that_cannot_be_used_are_refused(given: list[float], message: str) -> None:
    def wrong(**columns: Any) -> list[float]:
        return given

    with pytest.raises(UserError, match=message):
        weigh([PROBLEM] * 6, ATTEMPTS, TASK, FORMAT, [wrong])


def test_a_file_of_attempts_comes_back_and_is_a_data_set_of_trl(tmp_path: Path) -> None:
    path = tmp_path / "attempts.jsonl"
    save_judged(path, judged())
    read = load_judged(path)
    assert [one.to_json() for one in read] == [one.to_json() for one in judged()]
    save_judged(tmp_path / "again.jsonl", read)
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()
    row = json.loads(path.read_text().split("\n")[0])
    assert (row["prompt"], row["completion"], row["reward"]) == ("2+1\n", "3\n=3.", 1.0)


def test_a_text_with_odd_line_ends_keeps_them(tmp_path: Path) -> None:
    attempt = Attempt("2+1\n", "a\u2028b\x85c\r=3.", tokens=7, finish="end")
    save_judged(tmp_path / "a.jsonl", weigh([PROBLEM], [attempt], TASK, FORMAT))
    assert load_judged(tmp_path / "a.jsonl")[0].attempt == attempt


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-20], r"damaged at line 6 \(.*\); delete it to sample again"),
        (lambda text: text.replace('"reward"', '"revard"', 1), r"damaged at line 1 .*no attempt of this version"),
        (lambda text: "7\n" + text, r"damaged at line 1"),
        (lambda text: text.replace('"tokens": 2', '"tokens": 2, "words": 1', 1), r"damaged at line 1"),
    ],
)
def test_a_damaged_file_is_refused_by_line(tmp_path: Path, damage: Any, message: str) -> None:
    path = tmp_path / "attempts.jsonl"
    save_judged(path, judged())
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=message):
        load_judged(path)
    with pytest.raises(UserError, match="cannot be read"):
        load_judged(tmp_path / "missing.jsonl")
