"""Weighing: rewards have TRL's signature, and attempts come back from their files as they were."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import chat_tokenizer
from toy_policies import FORMAT, SumTask

from mnemonist.errors import UserError
from mnemonist.reasoning.attempts import Attempt
from mnemonist.reasoning.formats import FORMATS
from mnemonist.reasoning.prompting import in_context
from mnemonist.reasoning.proposing import Material
from mnemonist.reasoning.tasks.rewards import GIVEN, accuracy_reward, format_reward
from mnemonist.reasoning.tasks.task import Problem
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
    assert {"completions", *seen} == {*GIVEN, "numbers"}
    assert (seen["answer"][0], seen["completion_ids"][0], seen["prompts"][0]) == ("3", [1, 2], "2+1\n")


def test_rewards_that_are_coroutines_run_side_by_side_and_log_as_in_trl() -> None:
    met = threading.Barrier(2, timeout=5)
    loops = set()

    async def judge(completions: list[str], log_metric: Any, **columns: Any) -> list[float | None]:
        loops.add(asyncio.get_running_loop())
        await asyncio.get_running_loop().run_in_executor(None, met.wait)
        log_metric("judged", 1.0)
        columns["log_extra"]("text", completions)
        return [1.0 if text == "=3." else None for text in completions]

    def steady(completions: list[str], **columns: Any) -> list[float]:
        return [0.5] * len(completions)

    async def both() -> list[Judged]:
        return weigh([PROBLEM] * 6, ATTEMPTS, TASK, FORMAT, [judge, steady, judge])

    found = weigh([PROBLEM] * 6, ATTEMPTS, TASK, FORMAT, [judge, steady, judge])
    assert [one.reward for one in found] == [0.5, 2.5, 0.5, 0.5, 0.5, 0.5]
    assert asyncio.run(both()) == found  # as in a notebook, whose loop is running
    assert len(loops) == 1


def hinted(number: int, **facts: Any) -> Problem:
    """One of the problems, with more facts."""
    problem = TASK.problem("train", 2, number)
    return replace(problem, facts={**problem.facts, **facts})


def test_facts_are_columns_that_shadow_nothing() -> None:
    problems = [
        hinted(11, ground_truth=3, answer="no", completions="no", self=1),
        hinted(12, ground_truth=4, seen=True),
    ]
    told: dict[str, Any] = {}

    def by_truth(completions: list[str], ground_truth: list[int], **columns: Any) -> list[float]:
        told.update(columns)
        return [float(text == f"={truth}.") for text, truth in zip(completions, ground_truth, strict=True)]

    attempts = [Attempt("2+1\n", "=3."), Attempt("2+2\n", "=5.")]
    rewards = Material(TASK, FORMAT, problems, rewards=[by_truth, accuracy_reward(TASK, FORMAT)]).rewards
    assert [one.reward for one in weigh(problems, attempts, TASK, FORMAT, rewards)] == [2.0, 0.0]
    assert (told["numbers"], told["seen"], told["answer"]) == ([[2, 1], [2, 2]], [None, True], ["3", "4"])
    assert "self" not in told
    with pytest.raises(UserError, match="needs ground_truth, .* and of the problems' facts numbers, so let it"):
        Material(TASK, FORMAT, problems, validation=[PROBLEM], rewards=[by_truth])


def test_a_chat_has_messages() -> None:
    chat = in_context(FORMATS["think"], TASK, 0, 2, chat=chat_tokenizer())
    told: dict[str, Any] = {}

    def conversational(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        told.update(prompts=prompts, completions=completions)
        return [float(completion[0]["content"].startswith("<think>\n")) for completion in completions]

    texts = ["2 + 1\n</think>\n<answer>3</answer>", "</think>\n<answer>4</answer> or so"]
    attempts = [Attempt(chat.prompt(PROBLEM.question), text) for text in texts]
    rewards = [conversational, accuracy_reward(TASK, chat), format_reward(chat, 0.1)]
    found = weigh([PROBLEM] * 2, attempts, TASK, chat, rewards)
    assert [one.reward for one in found] == pytest.approx([2.1, 1.0])
    assert told["prompts"] == [[{"role": "user", "content": "2+1"}]] * 2
    assert told["completions"] == [[{"role": "assistant", "content": f"<think>\n{text}"}] for text in texts]


def needs_the_state(completions: list[str], trainer_state: Any, **columns: Any) -> list[float]:
    return [trainer_state.global_step] * len(completions)


def needs_a_column(completions: list[str], ground_truth: list[str]) -> list[float]:
    return []


def takes_the_state(completions: list[str], **columns: Any) -> list[float]:
    return [columns["trainer_state"].global_step] * len(completions)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (needs_the_state, "reward function needs_the_state needs trainer_state, which there is not here; it is given"),
        (needs_a_column, "reward function needs_a_column needs ground_truth, which there is not here"),
        ("some/reward-model", "'some/reward-model' is no reward function"),
    ],
)
def test_rewards_that_need_what_there_is_not_are_refused_at_once(reward: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Material(TASK, FORMAT, [PROBLEM], rewards=[reward])
    with pytest.raises(UserError, match=message):
        weigh([PROBLEM] * 6, ATTEMPTS, TASK, FORMAT, [reward])


async def awaits_the_state(**columns: Any) -> list[float]:
    return takes_the_state(**columns)


@pytest.mark.parametrize("reward", [takes_the_state, awaits_the_state])
def test_rewards_that_look_for_what_there_is_not_are_refused(reward: Any) -> None:
    with pytest.raises(UserError, match="_the_state needs trainer_state, which there is not here"):
        weigh([PROBLEM] * 6, ATTEMPTS, TASK, FORMAT, [reward])


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
