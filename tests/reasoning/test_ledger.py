"""Sums that only grow."""

from __future__ import annotations

import time
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnemonist.errors import UserError
from mnemonist.reasoning.ledger import Ledger

FULL = Ledger(1, 20, 5, 300, 7, 1e9, 0.25)


def test_what_is_charged_is_there():
    ledger = Ledger()
    ledger.charge(prompt=1, generated=20, reward=300, calls=7, flops=1e9, seconds=0.25)
    ledger.discard(5)
    assert ledger == FULL
    assert ledger.tokens == 321
    ledger.charge(prompt=10)
    ledger.charge()
    assert (ledger.prompt_tokens, ledger.tokens) == (11, 331)


@given(*[st.integers(0, 99)] * 4)
def test_sums_of_ledgers(a, b, c, d):
    one, other = Ledger(a, b, calls=c), Ledger(d, a, reward_tokens=b)
    both = one + other
    for field in fields(Ledger):
        assert getattr(both, field.name) == getattr(one, field.name) + getattr(other, field.name)
    assert (one, other) == (Ledger(a, b, calls=c), Ledger(d, a, reward_tokens=b))


@pytest.mark.parametrize("name", ["prompt", "generated", "reward", "calls", "flops", "seconds"])
def test_nothing_is_given_back(name):
    ledger = Ledger(**FULL.to_json())
    with pytest.raises(ValueError, match="A cost is negative"):
        ledger.charge(**{"prompt": 3, name: -1})
    assert ledger == FULL


def test_only_what_was_written_can_be_discarded():
    ledger = Ledger(generated_tokens=10)
    ledger.discard(4)
    ledger.discard(0)
    for tokens in (7, -1):
        with pytest.raises(ValueError, match="10 were written and 4 of these discarded before"):
            ledger.discard(tokens)
    ledger.discard(6)
    assert ledger.discarded_tokens == 10


def test_time_counts_even_if_it_was_wasted():
    ledger = Ledger()
    with ledger.timing():
        time.sleep(0.01)
    once = ledger.seconds
    with pytest.raises(KeyError), ledger.timing():
        time.sleep(0.01)
        raise KeyError
    assert 0.01 <= once < ledger.seconds - 0.009


def test_as_json():
    assert Ledger.from_json(FULL.to_json()) == FULL
    for values in ({"tokens": 1}, [1], "x", None, {"calls": "many"}, {"calls": None}):
        with pytest.raises(UserError, match="no ledger of this version"):
            Ledger.from_json(values)
    with pytest.raises(UserError, match="a cost is negative"):
        Ledger.from_json({"calls": -1})
