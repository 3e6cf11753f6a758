"""The compiled linear layer of few rows equals torch's, row by row the same numbers, and does without the rest."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from compiler import needs_compiler
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode

from mnemonist.memory.kernels import native, native_linear_layer
from mnemonist.memory.kernels.native_linear_layer import LEAST_WEIGHTS, MOST_ROWS, linear, linear_layer_kernel
from mnemonist.models import LanguageModel, ModelConfig
from mnemonist.models.linear import Linear

pytestmark = needs_compiler

LARGE = (-(-LEAST_WEIGHTS // 96), 96)


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.fixture
def of_any_size(monkeypatch):
    monkeypatch.setattr(native_linear_layer, "LEAST_WEIGHTS", 1)


@pytest.fixture
def taken(monkeypatch):
    """Says of a call whether the kernel, and not torch, answered."""

    def asked(x, weight, bias=None, layer=linear):
        called = []
        with monkeypatch.context() as patched:
            patched.setattr(F, "linear", lambda *given: called.append(given) or torch.zeros(()))
            layer(x, weight, bias)
        return not called

    return asked


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, MOST_ROWS])
@pytest.mark.parametrize("channels", [1, 3, 8, 16, 29, 64, 1000])
@pytest.mark.parametrize("width", [1, 7, 8, 16, 33, 96, 577])
@pytest.mark.parametrize("biased", [False, True])
@torch.no_grad()
def test_equals_the_product(biased, width, channels, rows, dtype, of_any_size, taken):
    x, weight = normal(rows, width, dtype=dtype), normal(channels, width, dtype=dtype, seed=1)
    bias = normal(channels, dtype=dtype, seed=2) if biased else None
    exact = F.linear(*(t if t is None else t.double() for t in (x, weight, bias)))
    # Rounding of a sum of n products is at most n u times the sum of their sizes, in any order (Higham 2002, eq. 3.5).
    sizes = F.linear(x.double().abs(), weight.double().abs()) + (0 if bias is None else bias.double().abs())
    most = (width + 2) * torch.finfo(dtype).eps / 2 * sizes
    for count in (1, 2):
        torch.set_num_threads(count)
        y = linear(x, weight, bias)
        assert y.dtype == dtype and y.shape == exact.shape
        assert ((y.double() - exact).abs() <= 2 * most).all()  # the exact one of float64 is rounded, too
    assert taken(x, weight, bias)


@pytest.mark.parametrize("width", [40, 576, 1001])
@torch.no_grad()
def test_a_row_is_the_same_beside_any_others_and_on_any_threads(width, of_any_size):
    x, weight, bias = normal(MOST_ROWS, width), normal(1003, width, seed=1), normal(1003, seed=2)
    torch.set_num_threads(1)
    alone = torch.cat([linear(row[None], weight, bias) for row in x])
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        for rows in range(1, MOST_ROWS + 1):
            for first in {0, MOST_ROWS - rows}:
                assert torch.equal(linear(x[first : first + rows], weight, bias), alone[first : first + rows])


@torch.no_grad()
def test_a_channel_is_the_same_beside_any_others(of_any_size):
    """So that a matrix cut into parts says the same."""
    x, weight = normal(2, 70), normal(57, 70, seed=1)
    for some in (x, x[:1]):
        whole = linear(some, weight)
        for cut in (1, 8, 30):
            assert torch.equal(torch.cat([linear(some, part) for part in weight.split(cut)], 1), whole)


@torch.no_grad()
def test_rows_of_any_layout(taken):
    weight = normal(*LARGE, seed=1)
    dense = normal(2, 3, LARGE[1])
    apart = normal(3, 2, 2 * LARGE[1]).transpose(0, 1)[..., ::2]
    for x in (dense, dense[0], dense[0, 0], dense[:, None], apart, dense[:, :1].expand(2, 5, -1)):
        assert taken(x, weight)
        torch.testing.assert_close(linear(x, weight), F.linear(x, weight))


@torch.no_grad()
def test_numbers_that_are_none_reach_the_rows_and_channels_they_belong_to(of_any_size):
    x, weight = normal(3, 21), normal(9, 21, seed=1)
    x[1, 20], weight[4, 20] = torch.inf, torch.nan
    y = linear(x, weight)
    finite = torch.ones(3, 9, dtype=torch.bool)
    finite[1], finite[:, 4] = False, False
    assert torch.equal(y.isfinite(), finite)


def test_gradients_flow_where_they_are_wanted(taken):
    x, weight, bias = normal(2, LARGE[1]), normal(*LARGE, seed=1), normal(LARGE[0], seed=2)
    assert taken(x, weight, bias)
    for one in (x, weight, bias):
        one.requires_grad_()
        assert not taken(x, weight, bias)
        with torch.no_grad():
            assert taken(x, weight, bias)
        (gradient,) = torch.autograd.grad(linear(x, weight, bias).sum(), one)
        assert gradient.shape == one.shape
        one.requires_grad_(False)
    with torch.inference_mode():
        assert taken(x, weight, bias) and linear(x, weight, bias).is_inference()


@torch.no_grad()
def test_what_is_left_to_torch(taken, monkeypatch):
    x, weight, bias = normal(2, LARGE[1]), normal(*LARGE, seed=1), normal(LARGE[0], seed=2)
    assert taken(x, weight, bias)
    assert not taken(normal(MOST_ROWS + 1, LARGE[1]), weight)
    assert not taken(x, weight[: LEAST_WEIGHTS // LARGE[1]])
    assert not taken(x[:0], weight)
    assert not taken(x.bfloat16(), weight.bfloat16())
    assert not taken(x.double(), weight)
    assert not taken(x, weight, bias.double())
    assert not taken(x.to("meta"), weight.to("meta"))
    assert not taken(normal(2, LARGE[0]), normal(*LARGE).mT)
    assert not taken(x, weight.to_sparse())
    assert not taken(x, weight, bias[:1])
    with torch.autocast("cpu"):
        assert not taken(x, weight)
        assert linear(x, weight).dtype == torch.bfloat16
    with FlopCounterMode(display=False) as counter:
        linear(x, weight)
    assert counter.get_total_flops() == 2 * 2 * weight.numel()
    torch.func.vmap(lambda row: linear(row, weight))(x)  # which shows the layer no tensors of its own
    monkeypatch.setattr(native, "kernel", lambda *_: None)
    assert not taken(x, weight, bias)
    assert linear(x[:0], weight).shape == (0, LARGE[0])


@torch.no_grad()
def test_without_kernels_torch_answers(monkeypatch, taken):
    x, weight = normal(1, LARGE[1]), normal(*LARGE)
    monkeypatch.setenv("MNEMONIST_KERNELS", "off")
    native.kernel.cache_clear()
    try:
        assert linear_layer_kernel() is None and not taken(x, weight)
    finally:
        native.kernel.cache_clear()


@torch.no_grad()
@pytest.mark.parametrize("shape", [(2, LARGE[1] + 1), (), (0,)])
def test_shapes_that_do_not_fit_are_refused(shape):
    with pytest.raises(RuntimeError):
        linear(normal(*shape), normal(*LARGE))
    with pytest.raises(RuntimeError):
        linear(normal(2, LARGE[1]), normal(*LARGE), normal(LARGE[0] - 1))


# --- weights in bfloat16


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, MOST_ROWS])
@pytest.mark.parametrize("channels", [1, 3, 8, 16, 29, 64, 1000])
@pytest.mark.parametrize("width", [1, 7, 8, 16, 33, 96, 577])
@pytest.mark.parametrize("biased", [False, True])
@torch.no_grad()
def test_halves_count_as_what_they_stand_for(biased, width, channels, rows, of_any_size, taken):
    x, halves = normal(rows, width), normal(channels, width, seed=1).bfloat16()
    bias = normal(channels, seed=2) if biased else None
    exact = F.linear(x.double(), halves.double(), None if bias is None else bias.double())
    sizes = F.linear(x.double().abs(), halves.double().abs()) + (0 if bias is None else bias.double().abs())
    for count in (1, 2):
        torch.set_num_threads(count)
        y = linear(x, halves, bias)
        assert y.dtype == torch.float32 and torch.equal(y, linear(x, halves.float(), bias))
        assert ((y.double() - exact).abs() <= (width + 2) * torch.finfo(torch.float32).eps / 2 * sizes).all()
    assert taken(x, halves, bias)


@torch.no_grad()
def test_halves_of_every_kind(of_any_size):
    """All 65,536, each in a channel of its own."""
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)[:, None]
    normal_ones = ~((halves != 0) & (halves.abs() < torch.finfo(torch.bfloat16).tiny))  # others may count as zero
    y = linear(torch.ones(1, 1), halves)[0]
    assert torch.equal(y[normal_ones[:, 0]].nan_to_num(7.0), halves[normal_ones].float().nan_to_num(7.0))
    assert y[~normal_ones[:, 0]].abs().max() < torch.finfo(torch.float32).tiny


@pytest.mark.parametrize("rows", [1, MOST_ROWS, MOST_ROWS + 1, 70])
@pytest.mark.parametrize("shape", [LARGE, (1500, 1501)])
@torch.no_grad()
def test_halves_where_torch_answers_are_the_same_bits(shape, rows, monkeypatch):
    """Long texts, and a machine without a compiler."""
    x, halves, bias = normal(rows, shape[1]), normal(*shape, seed=1).bfloat16(), normal(shape[0], seed=2)
    assert torch.equal(linear(x, halves, bias), linear(x, halves.float(), bias))
    monkeypatch.setattr(native_linear_layer, "linear_layer_kernel", lambda: None)
    assert torch.equal(linear(x, halves, bias), F.linear(x, halves.float(), bias))
    assert torch.equal(linear(x.double(), halves), F.linear(x.double(), halves.double()))


@pytest.mark.parametrize("rows", [1, MOST_ROWS + 1])
def test_gradients_through_halves(rows):
    x, halves, bias = normal(rows, LARGE[1]).requires_grad_(), normal(*LARGE, seed=1).bfloat16(), normal(LARGE[0])
    y = linear(x, halves, bias)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    (expected,) = torch.autograd.grad(F.linear(x, halves.float(), bias).square().sum(), x)
    assert torch.equal(gradient, expected)
    halves.requires_grad_()
    (gradient,) = torch.autograd.grad(linear(x, halves, bias).sum(), halves)
    torch.testing.assert_close(gradient, x.detach().sum(0).expand(LARGE).bfloat16())


@torch.no_grad()
def test_halves_that_are_left_to_torch(taken, monkeypatch):
    x, halves, bias = normal(2, LARGE[1]), normal(*LARGE, seed=1).bfloat16(), normal(LARGE[0], seed=2)
    assert taken(x, halves, bias)
    assert not taken(normal(MOST_ROWS + 1, LARGE[1]), halves)
    assert not taken(x, halves[: LEAST_WEIGHTS // LARGE[1]])
    assert not taken(x.double(), halves)
    assert not taken(x.to("meta"), halves.to("meta"))
    across = normal(LARGE[1], LARGE[0], seed=1).bfloat16().mT
    assert not taken(x, across)
    torch.testing.assert_close(linear(x, across), F.linear(x, across.float()))
    with torch.autocast("cpu"):
        assert torch.equal(linear(x, halves), F.linear(x.bfloat16(), halves))
    with FlopCounterMode(display=False) as counter:
        linear(x, halves)
    assert counter.get_total_flops() == 2 * 2 * halves.numel()
    each = torch.func.vmap(lambda row: linear(row, halves))(x)
    torch.testing.assert_close(each, F.linear(x, halves.float()))
    assert linear(x.bfloat16(), halves).dtype == torch.bfloat16
    for odd in ((x.half(), halves), (x, halves.half()), (x, halves, bias.bfloat16()), (x[:, 1:], halves)):
        with pytest.raises(RuntimeError):
            linear(*odd)


# --- the layer


def test_the_layer_is_torchs(taken):
    torch.manual_seed(0)
    ours = Linear(*reversed(LARGE))
    torch.manual_seed(0)
    theirs = nn.Linear(*reversed(LARGE))
    assert isinstance(ours, nn.Linear) and str(ours) == str(theirs)
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    again = copy.deepcopy(ours)
    again.load_state_dict(theirs.state_dict())
    x = normal(2, LARGE[1])
    seen = []
    again.register_forward_hook(lambda layer, given, y: seen.append(y))
    with torch.no_grad():
        assert taken(x, None, layer=lambda x, *_: again(x))
        torch.testing.assert_close(again(x), theirs(x))
    assert len(seen) == 2
    again(x).sum().backward()
    assert again.weight.grad is not None and again.bias.grad is not None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_compiled_it_is_one_graph_for_all_lengths(weights):
    layer = Linear(*reversed(LARGE))
    layer.weight.data = layer.weight.data.to(weights)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for rows in (5, 12, 40):
            torch.testing.assert_close(compiled(normal(rows, LARGE[1])), layer(normal(rows, LARGE[1])))
    assert counter.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", ["attention", "mag", "mac", "mal", "lmm"])
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_a_model_writes_the_same(kind, tied, monkeypatch):
    torch.manual_seed(0)
    config = ModelConfig(blocks=(kind,), width=192, heads=3, head_dim=64, memory_heads=3, memory_head_dim=64, tied=tied)
    model = LanguageModel(config).double().eval()
    tokens = torch.randint(0, config.vocab_size, (3, 12))

    def write():
        read = model(tokens[:, :7])
        logits = [read.logits]
        for t in range(7, 12):
            read = model(tokens[:, t : t + 1], read.state)
            logits.append(read.logits)
        return torch.cat(logits, 1)

    fast = write()
    calls = []
    with monkeypatch.context() as patched:
        patched.setattr(native_linear_layer, "linear_layer_kernel", lambda: calls.append(1))
        torch.testing.assert_close(fast, write())
    assert calls
