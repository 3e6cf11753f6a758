"""One token a row through its own kernel equals the definition, wherever in their chunks the rows are."""

from __future__ import annotations

import pytest
import torch
from compiler import needs_compiler
from oracle import make_inputs
from pieces import assert_bit_equal_state, assert_same_state, row, span, surprise_of
from test_equivalence import FAST

from mnemonist.memory import MemoryRule, chunked, memorize
from mnemonist.memory.kernels import native_one_token

pytestmark = needs_compiler

DEEP = MemoryRule(
    name="deep", gradient_at="chunk", chunk_size=5, depth=2, momentum=True, retention="head", decay_to="initial"
)
RULES = [rule for rule in FAST if not rule.per_token and rule.window == 1]


@pytest.fixture
def taken(monkeypatch):
    """How often one token was read by its own kernel."""
    calls, read = [], native_one_token.read_one_token
    monkeypatch.setattr(native_one_token, "read_one_token", lambda *args: calls.append(1) or read(*args))
    return calls


def decode(rule, inputs, mask=None, state=None):
    """Token by token, without derivatives: all reads."""
    reads = []
    with torch.no_grad():
        for t in range(inputs["q"].shape[1]):
            part = None if mask is None else mask[:, t : t + 1]
            reads.append(memorize(rule, **span(inputs, t, t + 1), state=state, mask=part))
            state = reads[-1].state
    return reads


def some(T, B=4):
    """A mask under which rows come to stand at different places of their chunks."""
    return torch.rand(B, T, generator=torch.Generator().manual_seed(1)) < torch.tensor([[0.4], [0.7], [0.9], [1.0]])[:B]


def inputs_of(rule, T=23, B=4, dtype=torch.float64):
    return {name: x for name, x in make_inputs(rule, B=B, T=T, dtype=dtype).items() if x is not None}


def test_rules_of_all_kinds_are_read():
    for choice in ("depth", "activation", "objective", "retention", "decay_to", "read_at", "momentum", "norm"):
        assert len({getattr(rule, choice) for rule in RULES}) > 1, choice


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_token_by_token_equals_the_definition(rule, ragged, taken):
    inputs, mask = inputs_of(rule), some(23) if ragged else None
    reads, state = decode(rule, inputs, mask), None
    assert len(taken) == (23 if rule.writes == 1 else 0)
    for t, fast in enumerate(reads):
        part = torch.ones(4, 1, dtype=torch.bool) if mask is None else mask[:, t : t + 1]
        true = memorize(rule, **span(inputs, t, t + 1), state=state, mask=part, backend="recurrent")
        state = true.state
        torch.testing.assert_close(fast.y, true.y, rtol=0, atol=1e-10)
        assert_same_state(fast.state, state, 1e-10)
        for name, seen in surprise_of(true).items():
            torch.testing.assert_close(surprise_of(fast)[name][part], seen[part], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("activation", ["silu", "gelu", "relu", "tanh"])
@pytest.mark.parametrize(("K", "V", "expansion"), [(64, 64, 4), (5, 33, 2), (1, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_widths_that_are_no_multiples_of_anything(activation, K, V, expansion, dtype, taken):
    rule = DEEP.replace(activation=activation, expansion=expansion, residual=K == V, norm=True)
    T = 7
    inputs = {name: x for name, x in make_inputs(rule, T=T, H=3, K=K, V=V, dtype=dtype).items() if x is not None}
    reads, true = decode(rule, inputs), memorize(rule, **inputs, backend="recurrent")
    assert len(taken) == T
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(torch.cat([read.y for read in reads], 1), true.y, rtol=tolerance, atol=tolerance)
    assert_same_state(reads[-1].state, true.state, tolerance)


def test_pieces_before_and_after_are_read_by_the_other_kernel(taken):
    inputs, mask = inputs_of(DEEP), some(23)
    first = memorize(DEEP, **span(inputs, 0, 8), mask=mask[:, :8])
    between = decode(DEEP, span(inputs, 8, 15), mask[:, 8:15], first.state)
    last = memorize(DEEP, **span(inputs, 15, 23), mask=mask[:, 15:], state=between[-1].state)
    true = memorize(DEEP, **inputs, mask=mask, backend="recurrent")
    assert len(taken) == 7
    torch.testing.assert_close(
        torch.cat([first.y, *(read.y for read in between), last.y], 1), true.y, rtol=0, atol=1e-10
    )
    assert_same_state(last.state, true.state, 1e-10)


@pytest.mark.parametrize("ragged", [False, True])
def test_neither_threads_nor_caches_nor_the_rows_beside_change_a_bit(ragged, monkeypatch):
    inputs, mask = inputs_of(DEEP, dtype=torch.float32), some(23) if ragged else None
    plain = decode(DEEP, inputs, mask)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        several = decode(DEEP, inputs, mask)
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(native_one_token, "CACHE", -1)
    past_caches = decode(DEEP, inputs, mask)
    for one, *others in zip(plain, several, past_caches, strict=True):
        for other in others:
            assert torch.equal(one.y, other.y)
            assert_bit_equal_state(one.state, other.state)
    alone = decode(DEEP, row(inputs, 1), None if mask is None else mask[1:2])
    for one, other in zip(plain, alone, strict=True):
        assert torch.equal(one.y[1:2], other.y)
        assert_bit_equal_state(one.state.select(torch.tensor([1])), other.state)


def test_a_state_that_was_given_is_left_as_it_was():
    inputs, mask = inputs_of(DEEP), some(23)
    for read in decode(DEEP, inputs, mask)[3:9]:
        before = read.state.fork()
        decode(DEEP, inputs, mask, read.state)
        assert_bit_equal_state(read.state, before)


def test_it_is_used_exactly_where_it_applies(taken):
    inputs = inputs_of(DEEP)
    one, two = span(inputs, 0, 1), span(inputs, 0, 2)
    with torch.no_grad():
        memorize(DEEP, **two)
        memorize(DEEP.replace(gradient_at="previous"), **one)
        memorize(DEEP.replace(window=2), **one)
    memorize(DEEP, **one | {"v": one["v"].clone().requires_grad_()})
    assert not taken
    memorize(DEEP, **one)
    assert len(taken) == 1


def test_a_derivative_of_one_token_is_the_one_there_was():
    inputs = inputs_of(DEEP)
    state = memorize(DEEP, **span(inputs, 0, 3)).state
    k = inputs["k"][:, 3:4].clone().requires_grad_()
    given = {**span(inputs, 3, 4), "k": k, "state": state}
    (fast,), (true,) = (
        torch.autograd.grad(memorize(DEEP, **given, backend=backend).y.sum(), k) for backend in ("auto", "recurrent")
    )
    torch.testing.assert_close(fast, true, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("rule", [DEEP, DEEP.replace(window=3)], ids=["one loss", "a window"])
def test_without_the_kernel_torch_reads_and_shifts_no_rows(rule, taken, monkeypatch):
    monkeypatch.setattr(native_one_token, "one_token_kernel", lambda: None)
    monkeypatch.setattr(chunked, "align", None)
    inputs, mask = inputs_of(rule), some(23)
    reads = decode(rule, inputs, mask)
    assert not taken
    true = memorize(rule, **inputs, mask=mask, backend="recurrent")
    torch.testing.assert_close(torch.cat([read.y for read in reads], 1), true.y, rtol=0, atol=1e-10)
