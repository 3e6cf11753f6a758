"""Single precision stays close to double over long streams, and extreme gates break nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pieces import PER_TOKEN, ROWS, backends_of, span, state_tensors

from mnemonist.memory import RULES, MemoryRule, initial_weights, memorize

H, K = 2, 16
GATES = ("step_size", "log_momentum", "log_decay")


def sane_inputs(rule: MemoryRule, T: int, *, heads: int = H, width: int = K, seed: int = 0) -> dict:
    """Gates of a stable memory: alpha about 0.01, eta about 0.9, theta scaled by 1 - eta, in single precision."""
    gen = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=gen)

    written = rule.writes * T
    theta = torch.sigmoid(normal(1, written, heads) - 1) * (1 if rule.per_token else 0.1)
    inputs = {
        "q": F.normalize(normal(1, T, heads, width), dim=-1),
        "k": F.normalize(normal(1, written, heads, width), dim=-1),
        "v": normal(1, written, heads, width),
    }
    if rule.momentum:
        eta = torch.sigmoid(0.5 * normal(1, written, heads) + 2.2)
        theta, inputs["log_momentum"] = theta * (1 - eta), eta.log()
    if rule.retention != "none":
        channels = (rule.decay_channels(width, width),) if rule.retention == "channel" else ()
        inputs["log_decay"] = F.logsigmoid(normal(1, T, heads, *channels) + 4.6)
    inputs["initial"] = initial_weights(rule, heads, width, width, generator=gen)
    return inputs | {"step_size": theta}


def as_type(inputs, dtype, names=(*PER_TOKEN, "initial")):
    def change(x):
        return x.to(dtype) if isinstance(x, torch.Tensor) else [w.to(dtype) for w in x]

    return {n: change(x) if n in names else x for n, x in inputs.items()}


def relative_error(single, double):
    single, double = single.detach().double(), double.detach().double()
    return float((single - double).abs().max() / double.abs().max().clamp(min=1e-30))


LONG = [
    *ROWS,
    RULES["titans"].replace(name="titans-depth-4", depth=4),
    RULES["titans-linear"].replace(name="titans-linear-channel", retention="channel"),
]


@pytest.mark.parametrize("rule", LONG, ids=lambda r: r.name)
def test_single_precision_over_4096_tokens(rule):
    inputs = sane_inputs(rule, 4096)
    single, double = memorize(rule, **inputs), memorize(rule, **as_type(inputs, torch.float64))
    assert single.y.dtype == torch.float32
    assert double.y.dtype == torch.float64
    assert double.y[:, -256:].abs().max() > 0.01  # the memory lives
    assert relative_error(single.y, double.y) <= 1e-4
    assert relative_error(single.surprise.gradient_norm, double.surprise.gradient_norm) <= 1e-4
    for mine, reference in zip(state_tensors(single.state), state_tensors(double.state), strict=True):
        assert relative_error(mine, reference) <= 1e-4


# --- forgetting everything ---------------------------------------------------------------------------------

FORGETFUL = [
    RULES["retnet"],
    RULES["mamba2"],
    RULES["gla"],
    RULES["gated-deltanet"],
    RULES["kda"],
    RULES["titans-linear"].replace(name="titans-linear-decayed", gradient_at="decayed"),
    RULES["titans-linear"].replace(name="channel-decayed", gradient_at="decayed", retention="channel"),
    RULES["titans-linear"].replace(name="decayed-to-initial", gradient_at="decayed", decay_to="initial"),
    MemoryRule(name="huber-decayed", objective="huber", gradient_at="decayed", retention="head"),
    RULES["titans"].replace(name="deep-decayed", gradient_at="decayed"),
]
FORGETFUL_CASES = [(rule.replace(chunk_size=8), b) for rule in FORGETFUL for b in backends_of(rule)]


@pytest.mark.parametrize("rule, backend", FORGETFUL_CASES, ids=[f"{r.name}-{b}" for r, b in FORGETFUL_CASES])
@pytest.mark.parametrize("moment", [11, 16, 23])  # inside a block, its first token, its last
def test_decay_to_zero_forgets_every_bit(rule, backend, moment):
    inputs = sane_inputs(rule, 32)
    for gate in ("log_momentum", "log_decay"):  # past surprise is a memory too
        if gate in inputs:
            inputs[gate][:, moment] = -torch.inf
    leaves = {n: x.clone().requires_grad_() for n, x in inputs.items() if n in PER_TOKEN}
    y = memorize(rule, **(inputs | leaves), backend=backend).y
    other = sane_inputs(rule, 32, seed=1)
    changed = {n: torch.cat([other[n][:, :moment], inputs[n][:, moment:]], dim=1) for n in leaves}
    assert torch.equal(memorize(rule, **(inputs | changed), backend=backend).y[:, moment:], y[:, moment:])
    afresh = memorize(rule, **span(inputs, moment, 32), backend=backend).y
    torch.testing.assert_close(y[:, moment:], afresh, rtol=1e-5, atol=1e-5)

    y[:, moment:].square().sum().backward()
    for name, leaf in leaves.items():
        assert leaf.grad.isfinite().all(), name
        before = leaf.grad[:, :moment]
        assert torch.equal(before, torch.zeros_like(before)), name


@pytest.mark.parametrize("rule", [r for r in LONG if r.retention != "none"], ids=lambda r: r.name)
def test_forgetting_everything_at_every_token_is_finite(rule):
    inputs = sane_inputs(rule, 64)
    inputs["log_decay"] = torch.full_like(inputs["log_decay"], -torch.inf)
    if rule.momentum:
        inputs["log_momentum"] = torch.full_like(inputs["log_momentum"], -torch.inf)
    leaves = {n: x.clone().requires_grad_() for n, x in inputs.items() if n in PER_TOKEN}
    read = memorize(rule, **(inputs | leaves))
    slow = memorize(rule, **inputs, backend="recurrent")
    torch.testing.assert_close(read.y, slow.y, rtol=1e-5, atol=1e-5)
    read.y.square().sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves.values())


# --- the borders of the stable region ----------------------------------------------------------------------


def extreme(rule, T, alpha, eta, theta):
    """The same gates at every token; theta below 2 (1 + eta) / |k|^2 is stable where the keys have norm 1."""
    inputs = sane_inputs(rule, T, heads=1, width=8)
    inputs["step_size"] = torch.full_like(inputs["step_size"], theta)
    if "log_momentum" in inputs:
        inputs["log_momentum"] = torch.full_like(inputs["log_momentum"], eta).log()
    if "log_decay" in inputs:
        inputs["log_decay"] = torch.log1p(-torch.full_like(inputs["log_decay"], alpha))
    return inputs


@pytest.mark.parametrize(
    "name, alpha, eta, theta",
    [
        ("titans-linear", 1e-7, 0.0, 1.0),
        ("titans-linear", 1e-7, 0.9, 0.1),
        ("titans-linear", 1e-7, 1 - 1e-6, 1e-6),
        ("titans-linear", 0.5, 1 - 1e-6, 1e-6),
        ("titans-linear", 1 - 1e-7, 0.9, 0.1),
        ("deltanet", 0.0, 0.0, 1.0),
        ("gated-deltanet", 1e-7, 0.0, 1.0),
        ("gated-deltanet", 1 - 1e-7, 0.0, 1.0),
        ("retnet", 1e-7, 0.0, 1.0),
        ("gla", 1e-7, 0.0, 1.0),
        ("gla", 1 - 1e-7, 0.0, 1.0),
        ("kda", 1e-7, 0.0, 1.0),
        ("kda", 1 - 1e-7, 0.0, 1.0),
        ("gated-deltaproduct", 1e-7, 0.0, 1.0),
        ("mesa", 1e-7, 0.0, 1.0),
        ("mesa", 1 - 1e-7, 0.0, 1.0),
        ("linear-attention", 0.0, 0.0, 1.0),
    ],
)
def test_extreme_gates_over_16384_tokens(name, alpha, eta, theta):
    rule = RULES[name]
    inputs = extreme(rule, 16384, alpha, eta, theta)
    leaves = {n: x.clone().requires_grad_() for n, x in inputs.items() if n in PER_TOKEN}
    read = memorize(rule, **(inputs | leaves))
    assert read.y.isfinite().all()
    assert read.y.abs().max() < 1e3
    read.y[:, -64:].square().sum().backward()
    for gate, leaf in leaves.items():
        assert leaf.grad.isfinite().all(), gate
    double = memorize(rule, **as_type(inputs, torch.float64)).y
    assert relative_error(read.y, double) <= 1e-4


# --- half precision outside, single precision inside -------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("rule", ROWS, ids=lambda r: r.name)
def test_half_precision_inputs_are_read_in_single_precision(rule, dtype):
    half = as_type(sane_inputs(rule, 100), dtype)
    read, single = memorize(rule, **half), memorize(rule, **as_type(half, torch.float32))
    assert read.y.dtype == dtype
    assert all(t.dtype in (torch.float32, torch.int64) for t in state_tensors(read.state))
    assert read.surprise.loss.dtype == torch.float32
    assert torch.equal(read.y, single.y.to(dtype))
    for mine, reference in zip(state_tensors(read.state), state_tensors(single.state), strict=True):
        assert torch.equal(mine, reference)


@pytest.mark.parametrize("backend", ["auto", "recurrent"])
@pytest.mark.parametrize("rule", ROWS, ids=lambda r: r.name)
def test_mixed_precision_training_does_not_reach_the_memory(rule, backend):
    inputs = sane_inputs(rule, 40)
    expected = memorize(rule, **inputs, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        read = memorize(rule, **inputs, backend=backend)
    assert torch.equal(read.y, expected.y)
    for mine, reference in zip(state_tensors(read.state), state_tensors(expected.state), strict=True):
        assert mine.dtype == reference.dtype
        assert torch.equal(mine, reference)
