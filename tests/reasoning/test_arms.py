"""Arms match in what they say they match in, and say how."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnemonist.errors import UserError
from mnemonist.reasoning.arms import MATCHES, completion_bytes, match_arms
from mnemonist.reasoning.formats import FORMATS
from mnemonist.reasoning.journey import JOURNEYS
from mnemonist.reasoning.journey_text import Twin, twins
from mnemonist.reasoning.tasks.countdown import Countdown


def twin(number: int, long: int, short: int) -> Twin:
    return Twin("?\n", "j" * (long - 1), "s" * (short - 1), f"p{number}", f"t{number}", "all", 7, number)


FOUR = [twin(0, 30, 10), twin(1, 50, 20), twin(2, 30, 10), twin(3, 40, 40)]


def shortcuts(arms):
    return [(row.problem, row.reading) for row in arms.shortcut.examples]


def test_the_same_examples():
    arms = match_arms(FOUR, "examples")
    assert [row.problem for row in arms.journey.examples] == ["p0", "p1", "p2", "p3"]
    assert shortcuts(arms) == [("p0", 1), ("p1", 1), ("p2", 1), ("p3", 1)]
    assert (arms.journey.tokens, arms.shortcut.tokens) == (150, 80)
    assert arms.journey.pairs[1] == ("?\n", "j" * 49)
    row = arms.journey.examples[1]
    assert (row.prompt, row.completion, row.arm, row.tree, row.rules, row.seed) == (
        "?\n", "j" * 49, "journey", "t1", "all", 7,
    )  # fmt: skip
    assert arms.shortcut.examples[1].completion == "s" * 19 and arms.shortcut.examples[1].arm == "shortcut"
    assert json.loads(json.dumps(row.to_json())) == dataclasses.asdict(row)


def test_the_same_tokens_by_more_problems():
    arms = match_arms(FOUR, "tokens-by-problems", problems=1)
    assert arms.journey.tokens == 30 and shortcuts(arms) == [("p0", 1), ("p1", 1)] and arms.shortcut.tokens == 30
    # 80 tokens of shortcuts are enough for two journeys of 80 tokens, not for three of 110.
    arms = match_arms(FOUR, "tokens-by-problems")
    assert len(arms.journey.examples) == 2 and len(arms.shortcut.examples) == 4 and arms.shortcut.tokens == 80
    with pytest.raises(UserError, match="4 shortcuts have 80 tokens, the journeys of 3 problems 110; make more"):
        match_arms(FOUR, "tokens-by-problems", problems=3)


def test_the_same_tokens_by_more_passes():
    arms = match_arms(FOUR, "tokens-by-passes", problems=3, seed=1)
    assert arms.journey.tokens == 110 and abs(arms.shortcut.tokens - 110) <= 10
    readings = [row.reading for row in arms.shortcut.examples]
    assert readings == sorted(readings) and max(readings) == 3
    for reading in (1, 2):
        assert sorted(p for p, r in shortcuts(arms) if r == reading) == ["p0", "p1", "p2"]
    assert arms == match_arms(FOUR, "tokens-by-passes", problems=3, seed=1)
    others = {str(shortcuts(match_arms(FOUR, "tokens-by-passes", problems=3, seed=seed))) for seed in range(9)}
    assert len(others) > 1


def test_the_summary_counts():
    summary = match_arms(FOUR, "tokens-by-passes", problems=3, seed=1).summary
    assert summary["match"] == "tokens-by-passes"
    assert summary["journey"] == {
        "examples": 3,
        "problems": 3,
        "passes": 1,
        "tokens": 110,
        "mean_tokens": 110 / 3,
        "mean_characters": 107 / 3,
        "mean_dead_ends": 1.0,
    }
    shortcut = summary["shortcut"]
    assert shortcut["problems"] == 3 and shortcut["passes"] == 3 and shortcut["mean_dead_ends"] == 0
    assert shortcut["tokens"] == round(shortcut["mean_tokens"] * shortcut["examples"])


def test_tokens_are_counted_as_one_is_told():
    assert completion_bytes("prompt", "né\n") == 5
    arms = match_arms(FOUR, "tokens-by-passes", tokens=lambda prompt, completion: len(prompt))
    assert arms.journey.tokens == arms.shortcut.tokens == 8 and len(arms.shortcut.examples) == 4


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=30), st.data())
def test_tokens_match_to_within_half_an_example(pairs, data):
    made = [twin(number, short + more, short) for number, (short, more) in enumerate(pairs)]
    match = data.draw(st.sampled_from(sorted(MATCHES)))
    problems = data.draw(st.integers(1, len(made)))
    try:
        arms = match_arms(made, match, problems=problems, seed=data.draw(st.integers(0, 3)))
    except UserError:
        assert match == "tokens-by-problems" and sum(short for short, _ in pairs) < sum(map(sum, pairs[:problems]))
        return
    assert [row.problem for row in arms.journey.examples] == [f"p{n}" for n in range(problems)]
    assert shortcuts(arms)[:problems] == [(f"p{n}", 1) for n in range(problems)]
    for arm in (arms.journey, arms.shortcut):
        assert arm.tokens == sum(completion_bytes(row.prompt, row.completion) for row in arm.examples)
    if match == "examples":
        assert len(arms.shortcut.examples) == problems
    else:
        longest = max(completion_bytes(row.prompt, row.completion) for row in arms.shortcut.examples)
        assert abs(arms.shortcut.tokens - arms.journey.tokens) <= max(longest, max(short for short, _ in pairs)) / 2
    if match == "tokens-by-problems":
        assert len({row.problem for row in arms.shortcut.examples}) == len(arms.shortcut.examples)


def test_too_few_twins():
    for call, message in (
        (lambda: match_arms(FOUR, "tokens"), "there is no match 'tokens'"),
        (lambda: match_arms(FOUR, problems=5), "4 twins are not enough for arms of 5 problems"),
        (lambda: match_arms([]), "0 twins are not enough"),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_journeys_of_countdown_in_arms():
    task = Countdown()
    made = list(
        twins((task.problem("train", 3, n) for n in range(60)), task, JOURNEYS["depth-first"], FORMATS["plain"])
    )
    arms = match_arms(made, "tokens-by-passes", problems=20)
    assert arms.summary["shortcut"]["passes"] > 3 and arms.summary["journey"]["mean_dead_ends"] > 3
    assert abs(arms.journey.tokens - arms.shortcut.tokens) < 60
