"""The compiled loop equals the one in torch, and does without a compiler."""

from __future__ import annotations

import pytest
import torch
from compiler import needs_compiler
from oracle import make_inputs
from pieces import assert_same_state, span, surprise_of
from test_equivalence import FAST, leaves, require_grad, scalar_of

from mnemonist.memory import MemoryRule, initial_weights, memorize
from mnemonist.memory.kernels import native_chunks

CHUNKED = [rule for rule in FAST if not rule.solvable and rule.retention != "channel" and rule.window == 1]


@pytest.fixture
def through_torch(monkeypatch):
    """Call it, and what is read from then on is read through torch."""
    return lambda: monkeypatch.setattr(native_chunks, "applies", lambda *_: False)


@needs_compiler
def test_it_is_used_exactly_where_it_applies():
    rule, linear = MemoryRule(name="deep", gradient_at="chunk"), torch.zeros(2)
    assert native_chunks.chunk_kernel() is not None
    assert native_chunks.applies(rule, [linear])
    assert not native_chunks.applies(rule, [linear, linear.double()])
    assert not native_chunks.applies(rule, [linear.bfloat16()])
    assert not native_chunks.applies(rule, [linear.to("meta")])
    assert not native_chunks.applies(rule.replace(retention="channel"), [linear])
    assert not native_chunks.applies(rule.replace(window=2), [linear])


@needs_compiler
@pytest.mark.parametrize("cut", [0, 9, 14])
@pytest.mark.parametrize("rule", CHUNKED, ids=lambda r: r.name)
def test_it_equals_the_loop_in_torch(rule, cut, through_torch):
    inputs = require_grad({n: x for n, x in make_inputs(rule, B=3, T=23).items() if x is not None})
    mask = torch.rand(3, 23, generator=torch.Generator().manual_seed(0)) < 0.8 if cut == 14 else None

    def read():
        state, reads = None, []
        for part in (slice(0, cut), slice(cut, 23)):
            if part.stop > part.start:
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
    for one, other in zip(compiled, plain, strict=True):
        torch.testing.assert_close(one.y, other.y, rtol=0, atol=1e-10)
        assert_same_state(one.state, other.state, 1e-10)
        torch.testing.assert_close(surprise_of(one), surprise_of(other), rtol=0, atol=1e-10)


@needs_compiler
@pytest.mark.parametrize(
    ("K", "V", "chunk", "expansion"), [(64, 64, 64, 4), (20, 20, 64, 1), (5, 33, 17, 2), (1, 1, 1, 1)]
)
@pytest.mark.parametrize("activation", ["silu", "gelu", "relu", "tanh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_widths_that_are_no_multiples_of_anything(K, V, chunk, expansion, activation, dtype, through_torch):
    rule = MemoryRule(
        name="odd", depth=2, activation=activation, gradient_at="chunk", chunk_size=chunk, expansion=expansion,
        momentum=True, retention="head", decay_to="initial", residual=K == V, norm=True,
    )  # fmt: skip
    torch.manual_seed(0)
    B, T, H = 2, 2 * chunk + 3, 3
    q, k = (torch.nn.functional.normalize(torch.randn(B, T, H, K), dim=-1).to(dtype) for _ in range(2))
    inputs = {
        "q": q, "k": k, "v": torch.randn(B, T, H, V).to(dtype),
        "step_size": 0.01 * torch.rand(B, T, H).to(dtype),
        "log_momentum": torch.rand(B, T, H).to(dtype).log(),
        "log_decay": torch.log1p(-0.1 * torch.rand(B, T, H)).to(dtype),
        "initial": [w.to(dtype) for w in initial_weights(rule, H, K, V)],
    }  # fmt: skip
    compiled = memorize(rule, **inputs)
    through_torch()
    plain = memorize(rule, **inputs)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    torch.testing.assert_close(compiled.y, plain.y, rtol=tolerance, atol=tolerance)
    assert_same_state(compiled.state, plain.state, tolerance)


@needs_compiler
def test_threads_change_no_bit():
    rule = MemoryRule(name="deep", gradient_at="chunk", chunk_size=16)
    inputs = make_inputs(rule, B=2, T=50, dtype=torch.float32)
    threads = torch.get_num_threads()
    reads = []
    for count in (1, 3):
        torch.set_num_threads(count)
        reads.append(memorize(rule, **inputs))
    torch.set_num_threads(threads)
    assert torch.equal(reads[0].y, reads[1].y)
