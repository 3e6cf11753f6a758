"""The compiled gates of tokens equal those of torch, derivatives included, token by token the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from compiler import needs_compiler
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mnemonist.memory.kernels import native_token_gates
from mnemonist.memory.kernels.native_token_gates import MOST_CHANNELS, UNIT, token_gates
from mnemonist.models import NeuralMemory

pytestmark = needs_compiler

RULES = ["titans", "gated-deltanet", "deltanet", "deltaproduct:writes=3", "kda", "titans-linear", "mamba2"]
HERE = native_token_gates.applies


def layer_of(rule, dtype, width=37, heads=3, spread=1.5):
    torch.manual_seed(0)
    layer = NeuralMemory(width, heads, 4, rule).to(dtype)
    for proj in (layer.step_proj, layer.momentum_proj, layer.decay_proj):
        if proj is not None:
            nn.init.normal_(proj.weight, std=spread)
    return layer


def by_torch(layer, x, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(native_token_gates, "applies", lambda *_: False)
        return layer._gates(x)


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("shape", [(1, 1, 37), (2, 3, 37), (1, UNIT, 16), (3, UNIT + 5, 40)])
def test_equals_torch_both_ways(shape, dtype, tolerance, rule, monkeypatch):
    layer = layer_of(rule, dtype, shape[-1])
    twin = copy.deepcopy(layer)
    x = (torch.randn(shape, dtype=dtype) * 2).requires_grad_()
    y = x.detach().clone().requires_grad_()
    assert HERE(x, [(layer.step_proj.weight, layer.step_proj.bias)])
    fast, slow = layer._gates(x), by_torch(twin, y, monkeypatch)
    assert fast.keys() == slow.keys()
    for name, gate in fast.items():
        torch.testing.assert_close(gate, slow[name], rtol=tolerance, atol=tolerance / 100)
        weight = torch.randn_like(gate)
        (gate * weight).sum().backward(retain_graph=True)
        (slow[name] * weight).sum().backward(retain_graph=True)
    torch.testing.assert_close(x.grad, y.grad, rtol=tolerance, atol=10 * tolerance)
    for (name, one), other in zip(layer.named_parameters(), twin.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=tolerance, atol=100 * tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_numbers_far_out(dtype, monkeypatch):
    """Closed gates, open ones, the shortest momentum, and derivatives there."""
    layer = layer_of("titans", dtype, width=1, heads=1)
    for proj in (layer.step_proj, layer.momentum_proj, layer.decay_proj):
        nn.init.ones_(proj.weight)
        nn.init.zeros_(proj.bias)
    twin = copy.deepcopy(layer)
    x = torch.tensor([-80, -30, -20.5, -19.5, -1e-3, 0, 1e-3, 12, 30, 80], dtype=dtype)[None, :, None].requires_grad_()
    y = x.detach().clone().requires_grad_()
    fast, slow = layer._gates(x), by_torch(twin, y, monkeypatch)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    for name, gate in fast.items():
        assert gate.isfinite().all()
        torch.testing.assert_close(gate, slow[name], rtol=tolerance, atol=0)
        (gate.sum() * 3).backward(retain_graph=True)
        (slow[name].sum() * 3).backward(retain_graph=True)
    torch.testing.assert_close(x.grad, y.grad, rtol=10 * tolerance, atol=tolerance)


def test_a_number_that_is_none_is_seen():
    layer, x = layer_of("titans", torch.float32), torch.randn(1, 5, 37)
    x[0, 3, 7] = torch.nan
    for gate in layer._gates(x).values():
        assert gate[0, 3].isnan().all() and gate[0, [0, 1, 2, 4]].isfinite().all()


@torch.no_grad()
def test_a_token_is_the_same_beside_any_others_and_on_any_threads():
    layer, x = layer_of("titans", torch.float32), torch.randn(1, 2 * UNIT + 3, 37)
    torch.set_num_threads(1)
    alone = [layer._gates(token) for token in x.split(1, 1)]
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        for length in (1, 2, 7, UNIT + 1, x.shape[1]):
            parts = [layer._gates(part) for part in x.split(length, 1)]
            for name in parts[0]:
                whole = torch.cat([part[name] for part in parts], 1)
                assert torch.equal(whole, torch.cat([part[name] for part in alone], 1))


def test_derivatives_do_not_depend_on_threads():
    layer, x = layer_of("titans", torch.float32), torch.randn(2, 3 * UNIT, 37, requires_grad=True)
    found = []
    for count in (1, 3):
        torch.set_num_threads(count)
        wanted = [x, *layer.step_proj.parameters(), *layer.momentum_proj.parameters(), *layer.decay_proj.parameters()]
        found.append(torch.autograd.grad(sum(gate.sum() for gate in layer._gates(x).values()), wanted))
    assert all(map(torch.equal, *found))


def test_rows_of_any_layout(monkeypatch):
    layer = layer_of("titans", torch.float64)
    apart = torch.randn(4, 3, 74, dtype=torch.float64).transpose(0, 1)[..., ::2]
    for name, gate in layer._gates(apart).items():
        torch.testing.assert_close(gate, by_torch(layer, apart, monkeypatch)[name])


def test_what_is_not_a_bare_product_is_called(monkeypatch):
    """Hooks, adapters and counters see the layers that they were put on."""
    called = []
    monkeypatch.setattr(native_token_gates, "token_gates", lambda *given: called.append(1) or token_gates(*given))
    x = torch.randn(1, 3, 37)

    def taken(layer):
        called.clear()
        layer(x)
        return bool(called)

    assert taken(layer_of("titans", torch.float32))
    hooked = layer_of("titans", torch.float32)
    seen = []
    hooked.decay_proj.register_forward_hook(lambda *_: seen.append(1))
    assert not taken(hooked) and seen

    class Twice(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base

        @property
        def weight(self):
            return self.base.weight

        @property
        def bias(self):
            return self.base.bias

        def forward(self, x):
            return 2 * self.base(x)

    adapted = layer_of("titans", torch.float32)
    adapted.step_proj = Twice(adapted.step_proj)
    assert not taken(adapted)
    with FlopCounterMode(display=False):
        assert not taken(layer_of("titans", torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        assert not taken(layer_of("titans", torch.float32))


def test_many_channels_are_left_to_torch():
    x, many = torch.randn(1, 2, 8), MOST_CHANNELS + 1
    assert not HERE(x, [(torch.randn(many, 8), torch.randn(many))])
    assert HERE(x, [(torch.randn(4, 8), torch.randn(4)), None, None])
    assert not HERE(x.bfloat16(), [(torch.randn(4, 8), torch.randn(4))])
