"""The compiled short convolution, non-linearity and norms equal those of torch, derivatives included."""

from __future__ import annotations

import pytest
import torch
from compiler import needs_compiler
from streams_by_torch import by_torch, send_back, tensors

from mnemonist.memory.kernels import native, native_streams
from mnemonist.models import NeuralMemory

pytestmark = needs_compiler


@pytest.mark.parametrize("unit_keys", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
@pytest.mark.parametrize(
    ("B", "T", "H", "D", "taps"),
    [(2, 9, 2, 5, 4), (1, 40, 3, 16, 4), (2, 2, 1, 33, 5), (1, 1, 2, 8, 2), (3, 6, 1, 4, 1), (2, 150, 2, 7, 6)],
)
@pytest.mark.parametrize("writes", [1, 3])
def test_equals_torch_both_ways(B, T, H, D, taps, dtype, tolerance, unit_keys, writes):
    inputs = tensors(B, T, H, D, taps, dtype, writes)
    twins = [x.detach().clone().requires_grad_() for x in inputs]
    fast, slow = native_streams.send(*inputs, H, unit_keys, writes), by_torch(*twins, H, unit_keys, writes)
    send_back(fast, slow)
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    for one, other in zip(inputs, twins, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=tolerance, atol=tolerance * 10)


def test_a_token_of_nothing_stays_nothing_and_has_finite_derivatives():
    x, tail, conv = (torch.zeros(1, 3, 12).requires_grad_(), torch.zeros(1, 1, 12), torch.ones(2, 12))
    q, k, v, _ = native_streams.send(x, tail, conv, 2)
    assert not q.any() and not k.any() and not v.any()
    q.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("rule", ["titans", "mamba2", "gated-deltaproduct"])
def test_it_is_what_the_layer_uses_and_changes_nothing(rule, monkeypatch):
    layer, x = NeuralMemory(12, 2, 4, rule).double(), torch.randn(2, 7, 12, dtype=torch.float64)
    calls = []
    send = native_streams.send
    monkeypatch.setattr(native_streams, "send", lambda *given: calls.append(1) or send(*given))
    y, state, _ = layer(x)
    assert calls
    monkeypatch.setattr(native, "kernel", lambda *_: None)
    other, other_state, _ = layer(x)
    assert len(calls) == 1
    torch.testing.assert_close(y, other)
    torch.testing.assert_close(state.tail, other_state.tail)


def test_half_precision_is_left_to_torch():
    x, tail, conv = tensors(1, 3, 1, 4, 2, torch.bfloat16)
    assert not native_streams.applies((x, tail, conv.float()))
    assert not native_streams.applies((x, tail, conv))
