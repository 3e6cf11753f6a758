"""How tokens are drawn, within bounds; and attempts that travel."""

from __future__ import annotations

import json
import math

import pytest

from mnemonist.errors import UserError
from mnemonist.reasoning.attempts import Attempt, Decoding

FULL = Attempt("1 + 1", "2\n", (5, 6, 7), (8, 9), (-0.5, -1.25), 2, "stop")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"top_k": -1}, "top_k -1"),
        ({"seed": -1}, "seed -1"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p 0"),
        ({"top_p": 1.01}, "top_p 1.01"),
        ({"top_p": math.nan}, "top_p nan"),
        ({"stop": ("\n", "")}, "stop has an empty text"),
    ],
)
def test_draws_out_of_range(fields, message):
    with pytest.raises(UserError, match=message):
        Decoding(**fields)


def test_draws_at_the_edge():
    Decoding(max_tokens=1, temperature=0.0, top_p=1.0, top_k=0, seed=0)
    Decoding(top_p=1e-9, top_k=1, stop=("\n", "</answer>"))


def test_what_follows_from_an_attempt():
    assert FULL.log_prob == -1.75 and not FULL.whole
    assert Attempt("a", "b", finish="end").whole and Attempt("a", "b").log_prob == 0


def test_as_json():
    values = FULL.to_json()
    assert Attempt.from_json(json.loads(json.dumps(values))) == FULL
    assert Attempt("a", "b", log_probs=(-1 / 3,)).to_json()["log_probs"] == [-0.333333]


@pytest.mark.parametrize(
    "values",
    [
        *[{key: value for key, value in FULL.to_json().items() if key != gone} for gone in ("ids", "prompt", "text")],
        {**FULL.to_json(), "colour": "red"},
        {**FULL.to_json(), "ids": None},
        *[[], "attempt", None, 5],
    ],
)
def test_what_is_no_attempt(values):
    with pytest.raises(UserError, match="no attempt of this version"):
        Attempt.from_json(values)
