"""Nothing looks ahead: the past does not change by one bit, whatever comes later."""

from __future__ import annotations

import pytest
import torch
from oracle import make_inputs
from pieces import PER_TOKEN, ROWS, backends_of, by_token

from mnemonist.memory import RULES, memorize

RULES_UNDER_TEST = [
    *(rule.replace(chunk_size=6) for rule in ROWS),
    RULES["titans"].replace(name="titans-one-chunk"),
    RULES["titans-linear"].replace(name="titans-linear-one-block"),
    RULES["titans"].replace(
        name="channel-deep", depth=3, residual=False, norm=False, retention="channel", chunk_size=6
    ),
    RULES["titans-linear"].replace(name="channel-decayed", retention="channel", gradient_at="decayed"),
    RULES["titans-linear"].replace(name="writes-momentum", writes=3, chunk_size=4),
    RULES["titans"].replace(name="writes-deep", writes=2, chunk_size=6),
]
CASES = [(rule, backend) for rule in RULES_UNDER_TEST for backend in backends_of(rule)]
each_case = pytest.mark.parametrize("rule, backend", CASES, ids=[f"{r.name}-{b}" for r, b in CASES])
T = 20
MOMENTS = (1, 5, 6, 13, T - 1)  # inside a chunk, its last and first token, the last token of all


def changed(inputs, names, t, b=None):
    """The inputs with other values at token ``t`` (of row ``b``), still fit for the rule."""
    rows = slice(None) if b is None else b
    out = dict(inputs)
    for name in names:
        out[name] = inputs[name].clone()
        x = by_token(out[name], T)
        x[rows, t] = x[rows, t] * 0.5 - (0.75 if name in ("q", "k", "v") else 0)
    return out


@each_case
def test_the_past_is_bit_equal_whatever_comes_later(rule, backend):
    inputs = make_inputs(rule, T=T, K=8, V=8, dtype=torch.float32)
    y = memorize(rule, **inputs, backend=backend).y
    given = [n for n in PER_TOKEN if n in inputs]
    for t in MOMENTS:
        for names in ([n] for n in given):
            other = memorize(rule, **changed(inputs, names, t), backend=backend).y
            assert torch.equal(other[:, :t], y[:, :t]), (names, t)
            assert not torch.equal(other[:, t], y[:, t]), (names, t)
        other = memorize(rule, **changed(inputs, given, slice(t, None)), backend=backend).y
        assert torch.equal(other[:, :t], y[:, :t]), t


@each_case
def test_no_gradient_comes_from_the_future(rule, backend):
    inputs = make_inputs(rule, T=T, K=4, V=4)
    leaves = {n: x.clone().requires_grad_() for n, x in inputs.items() if n in PER_TOKEN}
    y = memorize(rule, **(inputs | leaves), backend=backend).y
    for t in (5, 6, 13):
        gradients = torch.autograd.grad(y[:, t].square().sum(), list(leaves.values()), retain_graph=True)
        for name, gradient in zip(leaves, (by_token(g, T) for g in gradients), strict=True):
            later = gradient[:, t + 1 :]
            assert torch.equal(later, torch.zeros_like(later)), (name, t)
            assert (gradient[:, t].flatten(1).abs().sum(1) > 0).all(), (name, t)
            if name != "q":
                assert gradient[:, :t].abs().sum() > 0, (name, t)


@each_case
def test_rows_and_heads_do_not_see_each_other(rule, backend):
    inputs = make_inputs(rule, T=T, K=8, V=8, dtype=torch.float32)
    given = [n for n in PER_TOKEN if n in inputs]
    y = memorize(rule, **inputs, backend=backend).y
    other = memorize(rule, **changed(inputs, given, slice(0, None), b=0), backend=backend).y
    assert torch.equal(other[1], y[1])
    assert not torch.equal(other[0], y[0])
    one_head = {n: x[:, :, 1:] for n, x in inputs.items() if n in PER_TOKEN}
    alone = memorize(rule, **one_head, initial=[w[1:] for w in inputs["initial"]], backend=backend).y
    torch.testing.assert_close(alone, y[:, :, 1:], rtol=1e-5, atol=1e-5)


@each_case
def test_surprise_is_measured_before_the_write(rule, backend):
    inputs = make_inputs(rule, T=T, K=8, V=8)
    first = memorize(rule, **inputs, backend=backend).surprise
    writes = [n for n in ("step_size", "log_momentum") if n in inputs]
    second = memorize(rule, **changed(inputs, writes, 13), backend=backend).surprise
    told = 14 if rule.writes == 1 else 13  # a second write of the same token meets what the first one changed
    for one, two in ((first.loss, second.loss), (first.gradient_norm, second.gradient_norm)):
        assert torch.equal(one[:, :told], two[:, :told])
