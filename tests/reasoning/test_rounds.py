"""Rounds as choices: every row makes sense, and what makes none is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from mnemonist.errors import UserError
from mnemonist.reasoning.attempts import Decoding
from mnemonist.reasoning.objective import OBJECTIVES
from mnemonist.reasoning.rounds import RECIPES, ROUNDS, Round, find_recipe, find_round


def test_every_row_has_its_name_and_a_source() -> None:
    assert all(row.name == name and ("arXiv" in row.source) for name, row in ROUNDS.items())
    assert ROUNDS.keys() >= {"distil", "journey", "rest-em", "dpo", *OBJECTIVES} - {"r1"}
    assert all(row.objective is OBJECTIVES[name] for name, row in ROUNDS.items() if row.weight == "advantage")
    assert [name for name, row in ROUNDS.items() if row.asks_teacher] == ["distil", "on-policy-distil"]


def test_rest_em_is_that_of_its_paper() -> None:
    row = ROUNDS["rest-em"]
    assert (row.attempts, row.keep, row.from_base, row.until_worse, row.weight) == (32, 10, True, True, "right")
    assert (row.decoding.temperature, row.decoding.top_k) == (0.7, 40)


def test_the_recipe_of_r1_has_four_stages() -> None:
    stages = find_recipe("r1")
    assert [stage.name for stage in stages] == ["cold-start", "reasoning", "rejection-sampling", "all-scenarios"]
    assert [stage.on_policy for stage in stages] == [False, True, False, True]
    assert [stage.from_base for stage in stages] == [False, False, True, False]
    assert all(RECIPES[name] == (row,) for name, row in ROUNDS.items())
    with pytest.raises(UserError, match=r"there is no recipe 'r2' \(did you mean 'r1'\?\)"):
        find_recipe("r2")


def test_what_the_rounds_of_a_recipe_share_can_be_set_for_all() -> None:
    stages = find_recipe("r1:max_tokens=512,iterations=50,attempts=8,problems=4")
    assert [stage.decoding.max_tokens for stage in stages] == [512] * 4
    assert [stage.iterations for stage in stages] == [1, 50, 1, 50]
    assert [stage.attempts for stage in stages] == [1, 8, 8, 8]  # a teacher that thinks by rule has one solution
    assert [stage.problems for stage in stages] == [0, 4, 0, 4]
    with pytest.raises(UserError, match="run them one by one to change epochs"):
        find_recipe("r1:epochs=2")
    with pytest.raises(UserError, match="iterations is 0; it must be a whole number from 1"):
        find_recipe("r1:iterations=0")


def test_the_stages_of_a_recipe_are_rounds_of_their_own() -> None:
    assert find_recipe("r1")[2] is ROUNDS["rejection-sampling"]


def test_a_round_is_found_by_name_and_changed_by_text() -> None:
    found = find_round("rest-em:iterations=2,temperature=1,until_worse=false,max_tokens=9")
    expected = replace(ROUNDS["rest-em"], iterations=2, until_worse=False)
    assert found == replace(expected, decoding=Decoding(max_tokens=9, temperature=1.0, top_k=40))
    assert find_round("grpo") is ROUNDS["grpo"]


def test_what_a_round_changes_in_its_objective_goes_there() -> None:
    found = find_round("grpo:beta=5,overlong_share=0.2,iterations=3")
    assert found.objective == replace(OBJECTIVES["grpo"], beta=5.0, overlong_share=0.2)
    assert found == replace(ROUNDS["grpo"], objective=found.objective, iterations=3)
    still = find_round("dapo:dynamic=false").objective
    assert still is not None and not still.dynamic
    assert find_round("grpo:dynamic=true,draws=9").draws == 9
    assert find_round("dpo:beta=0.2") == replace(ROUNDS["dpo"], beta=0.2)


def test_an_objective_in_place_of_the_own_one_is_changed_too() -> None:
    found = find_round("grpo:beta=5,draws=9", OBJECTIVES["dapo"])
    assert (found.objective, found.draws) == (replace(OBJECTIVES["dapo"], beta=5.0), 9)
    assert find_round("grpo", OBJECTIVES["dapo"]).objective is OBJECTIVES["dapo"]
    with pytest.raises(UserError, match="round distil has no objective to replace"):
        find_round("distil", OBJECTIVES["dapo"])


@pytest.mark.parametrize(
    ("text", "unused"),
    [
        ("rest-em:iterations=2,minibatches=4", "minibatches"),
        ("rest-em:divergence=0.3", "divergence"),
        ("rest-em:draws=9", "draws"),
        ("rest-em:beta=1", "beta"),
        ("rest-em:dynamic=true", "dynamic"),
        ("journey:attempts=3", "attempts"),
        ("journey:temperature=0", "temperature"),
        ("grpo:draws=9", "draws"),
        ("dapo:dynamic=false,draws=9", "draws"),
        ("grpo:keep=3", "keep"),
        ("grpo:until_worse=true", "until_worse"),
        ("on-policy-distil:beta=1", "beta"),
    ],
)
def test_a_choice_that_a_round_makes_no_use_of_is_refused(text: str, unused: str) -> None:
    with pytest.raises(UserError) as refused:
        find_round(text)
    what, _, advice = str(refused.value).partition("; what can be changed is ")
    assert what == f"round {text.partition(':')[0]} makes no use of {unused}"
    assert "epochs" in advice.split(", ") and unused not in advice.split(", ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rest_em", r"there is no round 'rest_em' \(did you mean 'rest-em'\?\); known: distil,"),
        ("grpo:attempt=3", r"'attempt=3' is not a change to a round \(did you mean 'attempts'\?\)"),
        ("grpo:objective=dapo", "'objective=dapo' is not a change"),
        ("grpo:temperature=hot", "temperature is 'hot'; it must be of type float"),
        ("grpo:iterations=0", "iterations is 0; it must be a whole number from 1"),
        ("grpo:weight=best", "weight is 'best'; it must be one of one, right, advantage, pairs, teacher"),
        ("grpo:attempts=1", "advantages need at least two attempts"),
        ("grpo:temperature=0", "all attempts at a problem are equal"),
        ("grpo:minibatches=5", "8 x 8 attempts cannot be cut into 5 equal minibatches"),
        ("distil:weight=advantage", "round distil needs an objective, such as grpo"),
        ("grpo:weight=right", "has an objective, which only rounds of weight 'advantage' use"),
        ("dpo:beta=0", "pairs need at least two attempts at a problem, and a beta above 0"),
        ("on-policy-distil:temperature=0", "all attempts at a problem are equal"),
        ("on-policy-distil:minibatches=5", "64 x 1 attempts cannot be cut into 5 equal minibatches"),
        ("on-policy-distil:divergence=2", "divergence is 2.0; it must be from 0 to 1"),
        ("on-policy-distil:proposer=teacher", "a teacher judges the tokens of the policy's own attempts"),
        ("journey:weight=right", "texts that are given have a weight of one"),
    ],
)
def test_a_round_that_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_round(text)


def test_a_round_is_json() -> None:
    row: dict[str, Any] = json.loads(json.dumps(ROUNDS["dapo"].to_json()))
    assert row["objective"]["clip_high"] == 0.28
    assert row["decoding"]["temperature"] == 1.0
    assert Round("mine").to_json()["objective"] is None
