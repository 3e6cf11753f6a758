"""The doctor finds each trouble where it is, and nothing where there is none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnemonist.errors import UserError
from mnemonist.reasoning.doctor import (
    FEW,
    Finding,
    examine,
    examine_folder,
    examine_targets,
    examine_validation,
    kept_iterations,
    rounds_in,
)

Row = dict[str, Any]


def attempt(index: int, number: int, **changes: Any) -> Row:
    """One of a healthy round: every second attempt at a problem is right."""
    right = changes.pop("right", number % 2 == 0)
    answer = str(100 + index) if right else str(200 + index)
    return {
        "prompt": f"question {index}\n",
        "completion": f"step {number}\n={answer}.",
        "answer": answer,
        "right": right,
        "parsed": True,
        "well_formed": True,
        "thought": True,
        "reward": float(right),
        "problem": {"task": "t", "index": index, "answer": str(100 + index)},
        "tokens": 12,
        "finish": "end",
        **changes,
    }


def attempts(change: Callable[[int, int], Row] = lambda problem, number: {}) -> list[Row]:
    return [attempt(problem, number, **change(problem, number)) for problem in range(8) for number in range(4)]


def metrics(steps: int = 20, **changes: Callable[[float], float]) -> list[Row]:
    """Of a healthy run: rewards rise, entropy falls a little; changes are functions of the progress from 0 to 1."""
    lines = []
    for step in range(steps):
        done = step / (steps - 1)
        line = {"step": step + 1, "reward": 0.2 + 0.5 * done, "accuracy": 0.2 + 0.5 * done, "zero_variance": 0.2}
        line |= {"entropy": 1.0 - 0.4 * done, "clipped": 0.02, "kl": None}
        lines.append({**line, **{name: change(done) for name, change in changes.items()}})
    return lines


def names(found: list[Finding]) -> list[str]:
    return [one.name for one in found]


def test_a_healthy_round_has_no_findings() -> None:
    assert examine(attempts(), metrics()) == []
    assert examine([], []) == []


@pytest.mark.parametrize(
    ("change", "expected", "words"),
    [
        (lambda p, n: {"right": False}, "no-comparison", "in 8 of 8 groups .* easier problems"),
        (lambda p, n: {"right": p < 5 or n == 0}, "no-comparison", "in 5 of 8 groups .*0 of them all wrong.* harder"),
        (lambda p, n: {"parsed": p > 2}, "unreadable", "38% of attempts have no answer .* distil texts of the format"),
        (lambda p, n: {"finish": "length" if n == 0 else "end"}, "cut-off", "25% .* at 12 tokens; raise max_tokens"),
        (lambda p, n: {"finish": "length"}, "never-ends", "not one of 32 attempts ended by itself; .* the end mark"),
        (lambda p, n: {"completion": "wait\n" * 5 if n == 0 else "=1."}, "loops", "25% .* one line 4 times or more"),
        (lambda p, n: {"thought": False}, "no-thought", "100% of right attempts have no thought"),
        (lambda p, n: {"prompt": f"is it {200 + p} or 3?"}, "copied", "50% of answers stand .* 0% of right answers do"),
        (lambda p, n: {"answer": "7"}, "constant", "100% of answers to 8 problems are '7'"),
    ],
)
def test_trouble_in_attempts_is_found_alone(change: Callable[[int, int], Row], expected: str, words: str) -> None:
    found = examine(attempts(change))
    assert names(found) == [expected]
    assert re.search(words, str(found[0])), str(found[0])


def test_right_answers_in_the_prompt_and_part_of_a_number_are_no_copies() -> None:
    assert examine(attempts(lambda p, n: {"prompt": f"one of {100 + p} and {200 + p}"})) == []
    assert examine(attempts(lambda p, n: {"prompt": f"{9200 + p} and {2000 + 10 * p}"})) == []


def test_a_common_right_answer_is_no_trouble() -> None:
    same = {"task": "t", "answer": "yes"}
    rows = [
        attempt(p, n, answer="yes" if n % 2 == 0 else "no", problem={**same, "index": p})
        for p in range(8)
        for n in range(4)
    ]
    assert examine(rows) == []


@pytest.mark.parametrize(
    ("changes", "expected", "words"),
    [
        ({"entropy": lambda t: 0.9 * (1 - t) + 0.02}, "collapse", "raise clip_high"),
        ({"reward": lambda t: 0.2, "accuracy": lambda t: 0.2}, "no-rise", "raise the learning rate"),
        (
            {"reward": lambda t: 0.0, "accuracy": lambda t: 0.0, "zero_variance": lambda t: 1.0},
            "no-rise",
            "most groups teach nothing",
        ),
        ({"accuracy": lambda t: 0.3 - 0.1 * t}, "hacked", "something else than right answers is paid for"),
        ({"clipped": lambda t: 0.5}, "clipped", "the gradient of 50% of tokens was cut off"),
    ],
)
def test_trouble_in_metrics_is_found_alone(
    changes: dict[str, Callable[[float], float]], expected: str, words: str
) -> None:
    found = examine(metrics=metrics(**changes))
    assert names(found) == [expected]
    assert words in str(found[0])


def test_a_round_that_is_done_need_not_rise() -> None:
    assert examine(metrics=metrics(reward=lambda t: 0.99, accuracy=lambda t: 0.99)) == []


def test_of_little_nothing_is_said() -> None:
    assert (
        examine([attempt(0, n, right=False) for n in range(FEW - 1)], metrics(FEW - 1, entropy=lambda t: 1 - t)) == []
    )


def test_targets_must_have_the_end_mark() -> None:
    assert examine_targets([[5, 6, 2], [5, 6]], end=2) == []
    assert examine_targets([], end=2) == []
    [found] = examine_targets([[5, 6], [7]], end=2)
    assert found.name == "no-end-mark"
    assert "none of 2 completions has the end mark 2" in found.what


# Of a folder.


def write(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_latest_attempts_of_a_folder_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "round.json").write_text("{}")
    write(tmp_path / "attempts" / "000001.jsonl", attempts(lambda p, n: {"thought": False}))
    write(tmp_path / "attempts" / ".000003.0.jsonl", attempts(lambda p, n: {"parsed": False}))  # not done yet
    write(tmp_path / "attempts" / "000002.jsonl", attempts(lambda p, n: {"answer": "7"}))
    write(tmp_path / "metrics.jsonl", metrics(clipped=lambda t: 0.9))
    assert names(examine_folder(tmp_path)) == ["constant", "clipped"]


def test_rounds_with_long_fits_have_a_folder_for_each_iteration(tmp_path: Path) -> None:
    (tmp_path / "round.json").write_text("{}")
    write(tmp_path / "2" / "attempts" / "00000.jsonl", attempts(lambda p, n: {"thought": False}))
    write(tmp_path / "10" / "attempts" / "00000.jsonl", attempts()[:16])
    write(tmp_path / "10" / "attempts" / "00001.jsonl", attempts(lambda p, n: {"parsed": False})[16:])
    (tmp_path / "11").mkdir()
    assert names(examine_folder(tmp_path)) == ["unreadable"]


@pytest.mark.parametrize("weight", ["right", "one", "teacher"])
@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"answer": "7"}, "the policy does not read the question: take more problems (--count) or epochs"),
        ({"parsed": False}, "take more problems (--count) or epochs; check that the format is the one"),
        ({"thought": False}, "learn from texts that have them if thoughts are wanted"),
        ({"prompt": "is it 100 or 200?", "answer": "200"}, "the policy copies: take more epochs, or problems whose"),
    ],
)
def test_where_rewards_teach_nothing_none_is_advised(weight: str, change: Row, advice: str, tmp_path: Path) -> None:
    (tmp_path / "round.json").write_text(json.dumps({"round": {"name": "x", "weight": weight}}))
    for file in ("attempts/00000.jsonl", "validation.jsonl"):
        write(tmp_path / "0" / file, attempts(lambda p, n: change))
    for found in (examine_folder(tmp_path), examine_validation(tmp_path)):
        assert any(advice in finding.advice for finding in found)
        assert not any(re.search("reward|beta", finding.advice) for finding in found)


def test_dynamic_sampling_is_advised_where_it_can_be_turned_on(tmp_path: Path) -> None:
    write(tmp_path / "attempts" / "000001.jsonl", attempts(lambda p, n: {"right": False}))
    write(
        tmp_path / "metrics.jsonl", metrics(reward=lambda t: 0.0, accuracy=lambda t: 0.0, zero_variance=lambda t: 1.0)
    )
    for objective, advised in (({"dynamic": False}, True), ({"dynamic": True}, False), (None, False)):
        (tmp_path / "round.json").write_text(json.dumps({"round": {"name": "x", "objective": objective}}))
        found = examine_folder(tmp_path)
        assert names(found) == ["no-comparison", "no-rise"]
        assert all(("turn dynamic sampling on" in finding.advice) == advised for finding in found)
        assert "take easier problems, distil first, raise the temperature, or give more attempts" in found[0].advice


def test_the_latest_validation_of_a_round_is_looked_at(tmp_path: Path) -> None:
    assert examine_validation(tmp_path) == []
    write(tmp_path / "base" / "validation.jsonl", attempts(lambda p, n: {"thought": False}))
    write(tmp_path / "9" / "validation.jsonl", attempts(lambda p, n: {"answer": "7"}))
    write(tmp_path / "10" / "validation.jsonl", attempts(lambda p, n: {"parsed": False}))
    assert names(examine_validation(tmp_path)) == ["unreadable"]
    write(tmp_path / "validation.jsonl", attempts(lambda p, n: {"finish": "length"}))  # of a policy gradient
    assert names(examine_validation(tmp_path)) == ["never-ends"]


def test_an_iteration_that_validation_turned_down_is_not_looked_at(tmp_path: Path) -> None:
    troubles: dict[str, Row] = {"base": {"thought": False}, "0": {"answer": "7"}, "1": {"parsed": False}}
    for place, trouble in troubles.items():
        write(tmp_path / place / "validation.jsonl", attempts(lambda p, n, trouble=trouble: trouble))  # type: ignore[misc]
    for kept, expected in (([True, True], "unreadable"), ([True, False], "constant"), ([False, False], "no-thought")):
        write(tmp_path / "metrics.jsonl", [{"iteration": i, "kept": k} for i, k in enumerate(kept)])
        assert names(examine_validation(tmp_path)) == [expected]
        assert kept_iterations(tmp_path) == [tmp_path / str(i) for i in (1, 0) if kept[i]]


def test_a_run_is_a_round_or_several(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no round in"):
        rounds_in(tmp_path)
    for name in ("2-grpo", "1-distil"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "round.json").write_text(json.dumps({"round": {"name": name[2:]}}))
    assert rounds_in(tmp_path) == {"distil": tmp_path / "1-distil", "grpo": tmp_path / "2-grpo"}
    assert rounds_in(tmp_path / "1-distil") == {"distil": tmp_path / "1-distil"}


def test_what_is_no_round_or_damaged_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no round in"):
        examine_folder(tmp_path)
    (tmp_path / "round.json").write_text("{}")
    assert examine_folder(tmp_path) == []
    (tmp_path / "round.json").write_text("[")
    with pytest.raises(UserError, match=r"round.json cannot be read"):
        examine_folder(tmp_path)
    (tmp_path / "round.json").write_text("{}")
    for damage in ("{", "7\n"):
        (tmp_path / "metrics.jsonl").write_text(damage)
        with pytest.raises(UserError, match=r"metrics.jsonl cannot be read"):
            examine_folder(tmp_path)


def test_what_a_teacher_judges_is_looked_at_otherwise() -> None:
    """Its attempts need no comparison, and entropies fall to the teacher's; but the two must come nearer."""
    equal = attempts(lambda p, n: {"right": False})
    near = metrics(entropy=lambda done: 1 - 0.95 * done, reward=lambda done: 0.2, kl=lambda done: 1 - 0.8 * done)
    assert examine(equal, near, taught=True) == []
    assert set(names(examine(equal, near))) == {"no-comparison", "collapse", "no-rise"}
    (far,) = examine([], metrics(kl=lambda done: 1 - 0.05 * done), taught=True)
    assert far.name == "no-approach" and re.search(r"was 0.995 .* is 0.955 after 20 steps", far.what)
    assert examine([], metrics(steps=10, kl=lambda done: 1.0), taught=True) == []  # too few to say


def test_the_folder_of_a_round_says_who_judges(tmp_path: Path) -> None:
    (tmp_path / "round.json").write_text(json.dumps({"round": {"name": "on-policy-distil", "weight": "teacher"}}))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in metrics(kl=lambda done: 1.0)))
    assert names(examine_folder(tmp_path)) == ["no-approach"]
