"""A memory that learns while it reads must not blow up while it reads: long texts, gates at their extremes."""

from __future__ import annotations

import pytest
import torch

from mnemonist.memory import RULES, initial_weights, memorize
from mnemonist.models import NeuralMemory

HIGH = 12.0  # a logit at which a gate stands at its bound


def few_symbols(T: int, width: int, seed: int = 0) -> torch.Tensor:
    """Like text: twenty symbols, some of them much more common than others, so that keys repeat within every chunk."""
    gen = torch.Generator().manual_seed(seed)
    symbols = torch.randn(20, width, generator=gen)
    return symbols[(torch.rand(T, generator=gen) ** 2 * 20).long()][None]


def at_extremes(layer: NeuralMemory, step: float, momentum: float, decay: float) -> NeuralMemory:
    """Gates that ignore their tokens and stand where the logits say."""
    with torch.no_grad():
        for proj, logit in ((layer.step_proj, step), (layer.momentum_proj, momentum), (layer.decay_proj, decay)):
            if proj is not None:
                proj.weight.zero_()
                proj.bias.fill_(logit)
    return layer


@pytest.mark.parametrize(
    "rule", ["titans:depth=4,expansion=2", "titans-linear", "gated-deltanet", "ttt-mlp:expansion=2"]
)
@pytest.mark.parametrize(("momentum", "decay"), [(-HIGH, -HIGH), (-HIGH, HIGH), (4.6, -HIGH), (4.6, HIGH), (4.6, -4.6)])
def test_gates_at_their_extremes(rule, momentum, decay):
    """Step size at its bound; momentum none or 0.99; forgetting nothing, everything, or 1%: outputs and gradients."""
    torch.manual_seed(0)
    layer = at_extremes(NeuralMemory(16, 2, 8, rule), HIGH, momentum, decay)
    x = few_symbols(4096, 16).requires_grad_()
    y, state, _ = layer(x)
    y.square().mean().backward()
    assert y.isfinite().all()
    assert all(w.isfinite().all() and w.abs().max() < 1e3 for w in state.memory.weights)
    for name, parameter in [("x", x), *layer.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("decay", [-HIGH, -4.6, HIGH])
def test_sixteen_thousand_tokens_at_depth_four(decay):
    torch.manual_seed(0)
    layer = at_extremes(NeuralMemory(16, 1, 8, "titans:depth=4,expansion=2"), HIGH, 2.2, decay)
    x = few_symbols(16384, 16).requires_grad_()
    y, _, _ = layer(x)
    y.square().mean().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in [x, *layer.parameters()])


def test_what_the_norm_is_for():
    """Without residual and norm (the paper's bare MLP) the same step size on the same text diverges."""
    gen = torch.Generator().manual_seed(0)
    T, D = 2048, 16
    k = torch.nn.functional.normalize(few_symbols(T, D), dim=-1)[:, :, None]
    v = few_symbols(T, D, seed=1)[:, :, None].roll(-1, 1)
    ones = torch.ones(1, T, 1)
    gates = {"step_size": 0.1 * 0.1 * ones, "log_momentum": 0.9 * ones.log() - 0.105, "log_decay": -1e-6 * ones}
    norms = {}
    for bare in (False, True):
        rule = RULES["titans"].replace(residual=not bare, norm=not bare)
        initial = initial_weights(rule, 1, D, D, generator=gen)
        read = memorize(rule, k, k, v, initial=initial, **gates)
        norms[bare] = float(read.state.weights[0].norm())
    assert norms[False] < 100
    assert not norms[True] < 1e6  # NaN counts


def test_half_precision_activations_keep_a_full_precision_state():
    torch.manual_seed(0)
    layer = NeuralMemory(16, 2, 8).to(torch.bfloat16)
    y, state, _ = layer(few_symbols(100, 16).to(torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert {w.dtype for w in state.memory.weights + state.memory.momentum} == {torch.float32}
