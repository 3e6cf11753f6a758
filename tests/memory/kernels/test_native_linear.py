"""The compiled way through a linear memory equals the one in torch."""

from __future__ import annotations

import pytest
import torch
from compiler import needs_compiler
from oracle import make_inputs
from pieces import assert_same_state, span, surprise_of
from test_equivalence import FAST, leaves, require_grad, scalar_of

from mnemonist.memory import RULES, MemoryRule, memorize
from mnemonist.memory.kernels import native_linear

LINEAR = [rule for rule in FAST if rule.solvable]


@pytest.fixture
def through_torch(monkeypatch):
    """Call it, and what is read from then on is read through torch."""
    return lambda: monkeypatch.setattr(native_linear, "applies", lambda *_: False)


@needs_compiler
def test_it_is_used_exactly_where_it_applies():
    single = torch.zeros(2)
    assert native_linear.linear_kernel() is not None
    assert native_linear.applies([single]) and native_linear.applies([single.double()])
    assert not native_linear.applies([single, single.double()])
    assert not native_linear.applies([single.bfloat16()])
    assert not native_linear.applies([single.to("meta")])


@needs_compiler
@pytest.mark.parametrize("widths", [(4, 4), (17, 33)], ids=str)
@pytest.mark.parametrize("rule", LINEAR, ids=lambda r: r.name)
def test_it_equals_the_loop_in_torch(rule, widths, through_torch):
    K, V = widths
    T, cut = 2 * native_linear.BLOCK + 6, native_linear.BLOCK + 5  # blocks that are full, and two that are not
    inputs = make_inputs(rule, B=2, T=T, K=K, V=V)
    inputs = require_grad({n: x for n, x in inputs.items() if x is not None})
    mask = torch.rand(2, T, generator=torch.Generator().manual_seed(0)) < 0.7 if K == 4 else None

    def read():
        state, reads = None, []
        for part in (slice(0, cut), slice(cut, T)):
            piece = span(inputs, part.start, part.stop)
            reads.append(memorize(rule, **piece, state=state, mask=None if mask is None else mask[:, part]))
            state = reads[-1].state
        for leaf in leaves(inputs).values():
            leaf.grad = None
        sum(scalar_of(one) for one in reads).backward()
        return reads, {name: leaf.grad for name, leaf in leaves(inputs).items()}

    compiled, derivatives = read()
    through_torch()
    plain, expected = read()
    for name, derivative in derivatives.items():
        torch.testing.assert_close(derivative, expected[name], rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    real = slice(None) if mask is None else mask
    for i, (one, other) in enumerate(zip(compiled, plain, strict=True)):
        part = real if mask is None else mask[:, :cut] if i == 0 else mask[:, cut:]
        torch.testing.assert_close(one.y, other.y, rtol=0, atol=1e-10)
        assert_same_state(one.state, other.state, 1e-10)
        for name, seen in surprise_of(one).items():  # what stands at padding means nothing
            torch.testing.assert_close(seen[part], surprise_of(other)[name][part], rtol=0, atol=1e-10)


@needs_compiler
@pytest.mark.parametrize(
    "rule", [r for r in RULES.values() if r.solvable and r.feature_map is None], ids=lambda r: r.name
)
def test_single_precision_loses_no_more_than_torch_does(rule, through_torch):
    torch.manual_seed(0)
    inputs = make_inputs(rule, B=1, T=300, K=32, V=32, dtype=torch.float32)
    exact = memorize(rule, **{n: _double(x) for n, x in inputs.items()}).y
    compiled = memorize(rule, **inputs).y
    through_torch()
    plain = memorize(rule, **inputs).y
    scale = exact.abs().max()
    assert (compiled - exact).abs().max() / scale < 2 * (plain - exact).abs().max() / scale + 1e-6


def _double(x):
    return [w.double() for w in x] if isinstance(x, list) else None if x is None else x.double()


@needs_compiler
@pytest.mark.parametrize("retention", ["head", "channel"])
def test_what_is_forgotten_whole_leaves_no_trace(retention):
    rule = MemoryRule(name="forgets", momentum=True, retention=retention, gradient_at="decayed")
    inputs = make_inputs(rule, T=40)
    inputs["log_decay"][:, 20] = -torch.inf
    inputs["log_momentum"][:, 20] = -torch.inf
    changed = {n: x.clone() if torch.is_tensor(x) else x for n, x in inputs.items()}
    changed["v"][:, :20] += 1
    one, other = memorize(rule, **inputs), memorize(rule, **changed)
    assert torch.equal(one.y[:, 20:], other.y[:, 20:]) and one.y.isfinite().all()
    assert torch.equal(one.state.weights[0], other.state.weights[0])


@needs_compiler
def test_threads_change_no_bit():
    rule = MemoryRule(name="linear", momentum=True)
    inputs = require_grad({n: x for n, x in make_inputs(rule, T=50, dtype=torch.float32).items() if x is not None})
    threads = torch.get_num_threads()
    answers, derivatives = [], []
    for count in (1, 3):
        torch.set_num_threads(count)
        inputs["k"].grad = None
        read = memorize(rule, **inputs)
        read.y.square().sum().backward()
        answers.append(read.y)
        derivatives.append(inputs["k"].grad)
    torch.set_num_threads(threads)
    assert torch.equal(*answers) and torch.equal(*derivatives)
