"""Names, and what may be changed in them."""

from __future__ import annotations

import pytest

from mnemonist.errors import UserError
from mnemonist.reasoning.search.beam import Beam
from mnemonist.reasoning.search.methods import METHODS, find_method
from mnemonist.reasoning.search.monte_carlo import MonteCarlo


def test_every_row_knows_its_name_and_source():
    for name, info in METHODS.items():
        assert info.method.name == name and info.summary and info.source
        assert find_method(name) is info.method
    assert len({repr(info.method) for info in METHODS.values()}) == len(METHODS)


def test_changes():
    found = find_method("beam:beams=8,width=2,value=self,prune=0.5,diverse=true")
    assert found == Beam("beam", beams=8, width=2, value="self", prune=0.5, diverse=True)
    assert find_method("uct:simulations=5").value == "rollouts"  # the rest stays as in the row
    mine = MonteCarlo("mine")
    assert find_method(mine) is mine


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("beem", "there is no method 'beem' .did you mean 'beam'..; known methods: chain-of-thought"),
        ("beam:beems=4", "did you mean 'beams'"),
        ("beam:beams", "write choice=value"),
        ("beam:beams=x", "beams is 'x'; it must be of type int"),
        ("beam:beams=7", "beams must be a multiple"),
        ("beam:name=x", "is not a change to the method beam"),
        ("mcts:attempts=4", "is not a change to the method mcts"),
        ("best-of-n:value=modell", "did you mean 'model'"),
        ("", "there is no method ''"),
    ],
)
def test_mistakes(spec, message):
    with pytest.raises(ValueError, match=message) as told:
        find_method(spec)
    assert "\n" not in str(told.value)


def test_a_mistyped_method_is_the_users():
    with pytest.raises(UserError):
        find_method("beem")
