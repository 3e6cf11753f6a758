"""Gradients through the memory, through its own gradients too, against finite differences."""

from __future__ import annotations

import pytest
import torch
from oracle import make_inputs
from pieces import PER_TOKEN

from mnemonist.memory import RULES, MemoryRule, memorize

SMALL = {"chunk_size": 2, "expansion": 1.0}
DEEP = MemoryRule(depth=2, retention="head", gradient_at="chunk", **SMALL)
CASES = {
    "titans": RULES["titans"].replace(**SMALL),
    "titans-bare": RULES["titans"].replace(**SMALL, residual=False, norm=False),
    "titans-depth-3": RULES["titans"].replace(**SMALL, depth=3),
    "titans-linear": RULES["titans-linear"].replace(chunk_size=2),
    "ttt-mlp": RULES["ttt-mlp"].replace(**SMALL),
    "gla": RULES["gla"].replace(chunk_size=2),
    "gated-deltanet": RULES["gated-deltanet"].replace(chunk_size=2),
    "kda": RULES["kda"].replace(chunk_size=2),
    "gated-deltaproduct": RULES["gated-deltaproduct"].replace(chunk_size=3),
    "writes-deep": RULES["titans"].replace(**SMALL | {"chunk_size": 3}, writes=2),
    "linear-attention": RULES["linear-attention"].replace(chunk_size=2),
    "mesa": RULES["mesa"],
    "optimum-before": RULES["mesa"].replace(retention="none", decay_to="zero", read_at="before"),
    "huber-chunk": DEEP.replace(objective="huber", huber_delta=0.5, momentum=True),
    "channel-deep": DEEP.replace(retention="channel", decay_to="initial"),
}


PADDED = ("titans", "titans-linear", "gla", "gated-deltaproduct", "channel-deep", "mesa")


@pytest.mark.parametrize("name, masked", [*((n, False) for n in CASES), *((n, True) for n in PADDED)])
def test_gradients_are_finite_differences(name, masked):
    rule = CASES[name]
    inputs = make_inputs(rule, B=1, T=5, H=1, K=3, V=3, seed=2)
    names = [n for n in PER_TOKEN if n in inputs]
    mask = torch.tensor([[True, True, False, True, True]]) if masked else None
    leaves = [inputs[n] for n in names] + inputs["initial"]
    leaves = [x.clone().requires_grad_() for x in leaves]

    def read(*values):
        given = dict(zip(names, values[: len(names)], strict=True))
        result = memorize(rule, **given, initial=list(values[len(names) :]), mask=mask)
        return (result.y, *result.state.weights, *result.state.momentum)

    assert torch.autograd.gradcheck(read, leaves, eps=1e-6, atol=1e-6, rtol=1e-4)
