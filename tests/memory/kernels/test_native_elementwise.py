"""The compiled norms, gated activations and rotations equal those of torch, derivatives included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from compiler import needs_compiler

from mnemonist.memory.kernels import native, native_elementwise
from mnemonist.memory.kernels.native_elementwise import gated_halves, gated_norm, rms_norm, turn_projections
from mnemonist.models import LanguageModel, ModelConfig
from mnemonist.models.attention import CausalAttention, rotate

pytestmark = needs_compiler

TYPES = [(torch.float64, 1e-12), (torch.float32, 2e-5)]


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    monkeypatch.setattr(native_elementwise, "LEAST", 0)


def normal(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def compare(fast, slow, inputs, tolerance):
    """Values and derivatives of two functions of the same inputs; values are the same where no derivative is wanted."""
    twins = [x.detach().clone().requires_grad_() for x in inputs]
    ones, others, alone = fast(*inputs), slow(*twins), fast(*(x.detach() for x in inputs))
    ones, others, alone = (y if isinstance(y, tuple) else (y,) for y in (ones, others, alone))
    for number, (one, other, unkept) in enumerate(zip(ones, others, alone, strict=True)):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
        assert torch.equal(one, unkept) and unkept.grad_fn is None
        assert one.grad_fn is not None and one.shape == other.shape
        weight = normal(*one.shape, dtype=one.dtype, seed=number + 1).detach()
        one.backward(weight, retain_graph=True)
        other.backward(weight, retain_graph=True)
    for one, other in zip(inputs, twins, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=tolerance, atol=20 * tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (2, 70, 64), (2, 3, 4, 33), (200, 16)])
def test_norm(shape, dtype, tolerance):
    inputs = normal(*shape, dtype=dtype), normal(shape[-1], dtype=dtype, seed=9)
    compare(lambda x, w: rms_norm(x, w, 1e-6), lambda x, w: F.rms_norm(x, shape[-1:], w, 1e-6), inputs, tolerance)


def test_norm_of_nothing_is_nothing_and_has_finite_derivatives():
    x = torch.zeros(2, 8, requires_grad=True)
    y = rms_norm(x, torch.ones(8), 1e-6)
    y.sum().backward()
    assert not y.any() and x.grad.isfinite().all()


@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (2, 70, 64), (2, 3, 4, 33), (130, 33)])
@pytest.mark.parametrize("both", [False, True])
def test_gated_norm(shape, both, dtype, tolerance):
    def by_torch(a, b, weight, gate_weight=None):
        a = a if gate_weight is None else F.rms_norm(a, shape[-1:], gate_weight, 1e-6)
        return F.silu(a) * F.rms_norm(b, shape[-1:], weight, 1e-6)

    inputs = [normal(*shape, dtype=dtype, seed=seed) for seed in (0, 9)]
    inputs += [normal(shape[-1], dtype=dtype, seed=seed) for seed in (19, 29)[: 1 + both]]
    compare(lambda a, b, weight, *gate: gated_norm(a, b, weight, 1e-6, *gate), by_torch, inputs, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
@pytest.mark.parametrize("shape", [(3, 10), (1, 2), (2, 70, 64), (130, 34)])
def test_gated_halves(shape, dtype, tolerance):
    def by_torch(x):
        a, b = x.chunk(2, dim=-1)
        return F.silu(a) * b

    compare(gated_halves, by_torch, (normal(*shape, dtype=dtype),), tolerance)


@pytest.mark.parametrize("size", [0.0, 88.0, 1e4])
def test_gates_at_their_extremes(size):
    for width in (3, 64):
        a = torch.tensor([-size, size, -size / 2]).repeat(width)[:width].requires_grad_()
        y = gated_halves(torch.cat([a, torch.ones(width)])[None])[0]
        y.sum().backward()
        torch.testing.assert_close(y, F.silu(a), atol=1e-6, rtol=1e-6)
        assert a.grad.isfinite().all()


@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
@pytest.mark.parametrize(
    ("B", "T", "H", "G", "D", "rows"),
    [(2, 5, 3, 3, 8, 1), (2, 5, 3, 3, 8, 2), (1, 90, 2, 2, 34, 1), (2, 70, 6, 2, 8, 2), (1, 5, 4, 1, 34, 1)],
)
def test_turned_projections(B, T, H, G, D, rows, dtype, tolerance):
    attention = CausalAttention(8, H, D)
    x = normal(B, T, (H + 2 * G) * D, dtype=dtype)
    turns = attention.rotations(torch.randint(100, (rows, T)), x)

    def by_torch(x):
        q, k, v = x.unflatten(-1, (-1, D)).split([H, G, G], 2)
        return rotate(q, *turns), rotate(k, *turns), v

    compare(lambda x: turn_projections(x, *turns, H), by_torch, (x,), tolerance)


def test_derivatives_may_come_in_any_order_of_dimensions():
    x, twin = normal(2, 6, 3 * 2 * 4), normal(2, 6, 3 * 2 * 4)
    turns = CausalAttention(8, 2, 4).rotations(torch.arange(6)[None], x)
    q, k, v = twin.unflatten(-1, (3, 2, 4)).unbind(2)
    slow = rotate(q, *turns), rotate(k, *turns), v
    for one, other in zip(turn_projections(x, *turns, 2), slow, strict=True):
        weight = normal(2, 2, 6, 4).detach()  # by head, as attention gives them
        for order in ((1, 2), (2, 3)):
            y, z = one.transpose(1, 2), other.transpose(1, 2)
            (found,) = torch.autograd.grad(y.transpose(*order), x, weight.transpose(*order), retain_graph=True)
            (wanted,) = torch.autograd.grad(z.transpose(*order), twin, weight.transpose(*order), retain_graph=True)
            torch.testing.assert_close(found, wanted)


def test_sums_do_not_depend_on_the_number_of_threads():
    x, weight, found = normal(500, 24), normal(24, seed=9), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(torch.autograd.grad(rms_norm(x, weight, 1e-6).sin().sum(), (x, weight)))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


CONFIG = ModelConfig(
    blocks=("mac", "mag", "mal", "attention"), width=16, heads=2, head_dim=8, memory_heads=2, memory_head_dim=8,
    window=4, mlp_width=24, rule="titans:chunk_size=4",
)  # fmt: skip


def test_it_is_what_models_use_and_changes_nothing(monkeypatch):
    torch.manual_seed(0)
    model, ids = LanguageModel(CONFIG).double(), torch.randint(256, (2, 11))

    def result():
        model.zero_grad()
        logits = model(ids).logits
        logits.square().mean().backward()
        return logits.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    called = []
    run = native_elementwise._run
    monkeypatch.setattr(native_elementwise, "_run", lambda name, *a, **g: called.append(name) or run(name, *a, **g))
    logits, grads = result()
    names = {"rms", "gated", "gated_norm", "turn"}
    assert set(called) == names | {f"{name}_back" for name in names}
    called.clear()
    monkeypatch.setattr(native_elementwise, "elementwise_kernel", lambda: None)
    other_logits, other_grads = result()
    assert not called
    torch.testing.assert_close(logits, other_logits)
    for one, other in zip(grads, other_grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-10)


def test_what_is_left_to_torch(monkeypatch):
    x = torch.randn(4, 8)
    assert native_elementwise.applies(x)
    assert not native_elementwise.applies(x.bfloat16())
    assert not native_elementwise.applies(x, x.double())
    assert not native_elementwise.applies(x.to("meta"))
    monkeypatch.setattr(native_elementwise, "LEAST", 33)
    assert native_elementwise.applies(x)
    assert not native_elementwise.applies(x.clone().requires_grad_())
    monkeypatch.setattr(native_elementwise, "LEAST", 0)
    each = torch.func.vmap(lambda row: rms_norm(row, torch.ones(8), 1e-6))(x)
    torch.testing.assert_close(each, rms_norm(x, torch.ones(8), 1e-6))
    monkeypatch.setattr(native, "kernel", lambda *_: None)
    assert not native_elementwise.applies(x)
