"""What a layer does around its memory equals torch, derivatives included: interpreted, in float32."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from interpreted import close, needs_triton, run_interpreted, starts_interpreter, within
from streams_by_torch import by_torch, send_back, tensors

from mnemonist.memory.kernels import triton_layers
from mnemonist.models import NeuralMemory

pytestmark = needs_triton


@starts_interpreter
def test_all_of_this_interpreted():
    run_interpreted(__file__)


def same(fast, slow, given, twins):
    send_back(fast, slow)
    for one, other in zip(fast, slow, strict=True):
        close(one, other)
    for one, other in zip(given, twins, strict=True):
        close(one.grad, other.grad)


@within
@pytest.mark.parametrize("unit_keys", [True, False])
@pytest.mark.parametrize(
    ("B", "T", "H", "D", "taps"),
    [(2, 9, 2, 5, 4), (1, 70, 3, 16, 4), (2, 2, 1, 33, 5), (1, 1, 2, 8, 2), (3, 6, 1, 4, 1), (2, 33, 2, 7, 6)],
)
def test_streams_equal_torch_both_ways(B, T, H, D, taps, unit_keys):
    given = tensors(B, T, H, D, taps, torch.float32)
    twins = [x.detach().clone().requires_grad_() for x in given]
    same(triton_layers.send(*given, H, unit_keys), by_torch(*twins, H, unit_keys), given, twins)


@within
def test_a_token_of_nothing_stays_nothing_and_has_finite_derivatives():
    x, tail, conv = (torch.zeros(1, 3, 12).requires_grad_(), torch.zeros(1, 1, 12), torch.ones(2, 12))
    q, k, v, _ = triton_layers.send(x, tail, conv, 2)
    assert not q.any() and not k.any() and not v.any()
    q.sum().backward()
    assert x.grad.isfinite().all()


@within
@pytest.mark.parametrize(("rows", "H", "D"), [(35, 2, 16), (3, 1, 5), (1, 3, 40)])
def test_a_gated_norm_equals_torch_both_ways(rows, H, D):
    def normal(*shape):
        return torch.randn(*shape, generator=generator).requires_grad_()

    generator = torch.Generator().manual_seed(0)
    given = normal(2, rows, H * D), normal(2, rows, H, D), normal(D)
    a, y, weight = twins = [x.detach().clone().requires_grad_() for x in given]
    slow = F.silu(a) * F.rms_norm(y, (D,), weight, 1e-6).flatten(2)
    same([triton_layers.gated_norm(*given, 1e-6)], [slow], given, twins)


@within
def test_nothing_to_read():
    x, tail, conv = torch.zeros(2, 0, 24), torch.randn(2, 3, 24), torch.randn(4, 24)
    *sent, after = triton_layers.send(x, tail, conv, 2)
    assert all(y.shape == (2, 0, 2, 4) for y in sent)
    assert torch.equal(after, tail)
    assert triton_layers.gated_norm(torch.zeros(2, 0, 8), torch.zeros(2, 0, 2, 4), torch.ones(4), 1e-6).shape == (
        2,
        0,
        8,
    )


@within
@pytest.mark.parametrize("conv_size", [4, 1])
def test_a_layer_is_the_same_with_them_whole_and_in_pieces(conv_size, monkeypatch):
    torch.manual_seed(0)
    layer = NeuralMemory(24, 2, 16, "gated-deltanet", conv_size=conv_size)
    twin, x = copy.deepcopy(layer), torch.randn(2, 19, 24)
    torch.manual_seed(1)
    begin, state, _ = layer(x[:, :7])
    rest, state, _ = layer(x[:, 7:], state)
    fast = torch.cat([begin, rest], 1)
    fast.square().sum().backward()
    monkeypatch.setattr(triton_layers, "applies", lambda *_: False)
    slow, after, _ = twin(x)
    slow.square().sum().backward()
    close(fast, slow)
    close(state.tail, after.tail)
    for (name, one), other in zip(layer.named_parameters(), twin.parameters(), strict=True):
        scale = max(1.0, float(other.grad.abs().max()))
        close(one.grad / scale, other.grad / scale, name)


@within
def test_they_are_operations_that_torch_can_trace():
    x, tail, conv = tensors(1, 5, 2, 4, 3, torch.float32)
    torch.library.opcheck(torch.ops.mnemonist.send_streams, (x, tail, conv, 2, True))
    a, y, weight = torch.randn(1, 5, 8), torch.randn(1, 5, 2, 4), torch.ones(4)
    torch.library.opcheck(torch.ops.mnemonist.gated_norm, (*(t.requires_grad_() for t in (a, y, weight)), 1e-6))


def test_where_they_do_not_apply(monkeypatch):
    monkeypatch.setattr(triton_layers, "interpreted", lambda: True)
    x = torch.zeros(1)
    assert triton_layers.applies(64, x)
    assert not triton_layers.applies(512, x), "too wide"
    assert not triton_layers.applies(64, x, x.double()), "double precision"
    monkeypatch.setattr(triton_layers, "interpreted", lambda: False)
    assert not triton_layers.applies(64, x), "on a CPU"
