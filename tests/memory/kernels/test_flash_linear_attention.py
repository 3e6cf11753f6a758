"""What is handed to flash-linear-attention computes the rule; and it is handed over exactly where it does.

Its kernels need a GPU. Everywhere else their place is taken by a stand-in with the same arguments, and, where the
package is installed, by its own references: what is proved there is the mapping from rules to operations.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from types import SimpleNamespace

import pytest
import torch
from oracle import make_inputs
from pieces import assert_same_state, span
from test_equivalence import leaves, require_grad, scalar_of

from mnemonist.memory import RULES, MemoryRule, memorize, reading
from mnemonist.memory.kernels import flash_linear_attention as fla

DOT = MemoryRule(name="dot", objective="dot")
DELTA = RULES["gated-deltanet"]
SERVED = {
    rule.name: rule
    for rule in (
        *(RULES[name] for name in ("linear-attention", "retnet", "mamba2", "gla", "deltanet", "gated-deltanet", "kda")),
        *(RULES[name] for name in ("deltaproduct", "gated-deltaproduct")),
        DOT,
        DOT.replace(name="dot-decayed", retention="head", gradient_at="decayed"),
        DOT.replace(name="dot-to-initial", retention="head", decay_to="initial"),
        DOT.replace(name="dot-channels-to-initial", retention="channel", decay_to="initial"),
        DOT.replace(name="counted", retention="head", decay_to="initial", denominator=True, feature_map="elu"),
        DOT.replace(name="counted-channels", retention="channel", denominator=True, feature_map="elu"),
        RULES["deltanet"].replace(name="delta-decayed", gradient_at="decayed"),
        DELTA.replace(name="gated-to-initial", decay_to="initial"),
        RULES["kda"].replace(name="kda-to-initial", decay_to="initial"),
    )
}
each_rule = pytest.mark.parametrize("rule", SERVED.values(), ids=SERVED)


def scan(q, k, v, decay, beta, scale, initial_state):
    """The two forms, token by token: ``decay`` [B, T, H, 1 or K], ``beta`` [B, T, H] or None for no delta."""
    h, answers = initial_state, []
    for t in range(q.shape[1]):
        h = h * decay[:, t].exp()[..., None]
        value = v[:, t]
        if beta is not None:
            value = beta[:, t, :, None] * (value - torch.einsum("bhk,bhkv->bhv", k[:, t], h))
        h = h + k[:, t, :, :, None] * value[:, :, None, :]
        answers.append(torch.einsum("bhk,bhkv->bhv", scale * q[:, t], h))
    return torch.stack(answers, 1), h


def stand_in(operation, short):
    """The arguments are theirs, by name; a wrong one is a TypeError."""
    zero = torch.zeros(1, dtype=torch.float64)

    def per_head(g, q):
        return (zero.to(q.dtype) if g is None else g).expand(q.shape[:3])[..., None]

    def delta_rule(q, k, v, beta, scale=None, initial_state=None, output_final_state=False):
        return scan(q, k, v, per_head(None, q), beta, scale, initial_state)

    def gated_delta_rule(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False):
        return scan(q, k, v, per_head(g, q), beta, scale, initial_state)

    def kda(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False):
        return scan(q, k, v, g, beta, scale, initial_state)

    def simple_gla(q, k, v, g=None, scale=None, initial_state=None, output_final_state=False):
        return scan(q, k, v, per_head(g, q), None, scale, initial_state)

    def chunk_gla(q, k, v, g, scale=None, initial_state=None, output_final_state=False):
        return scan(q, k, v, g, None, scale, initial_state)

    def fused_recurrent_gla(q, k, v, gk=None, scale=None, initial_state=None, output_final_state=False):
        return scan(q, k, v, gk, None, scale, initial_state)

    gla = fused_recurrent_gla if short else chunk_gla
    known = {
        "delta_rule": delta_rule, "gated_delta_rule": gated_delta_rule, "kda": kda, "simple_gla": simple_gla, "gla": gla
    }  # fmt: skip
    return known[operation]


def installed():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("fla.ops", exc_type=ImportError, reason="flash-linear-attention is not installed")


def naive(operation):
    installed()
    return importlib.import_module(f"fla.ops.{operation}.naive")


def reference(operation, short):
    """Their own definition. Some of them divide by the root of K whatever scale they are given."""

    def delta_rule(q, k, v, beta, scale, initial_state, output_final_state):
        q, k, v, beta = (x.transpose(1, 2) for x in (q * scale * q.shape[-1] ** 0.5, k, v, beta))
        y, last = naive(operation).delta_rule_recurrence(q, k, v, beta, initial_state, output_final_state)
        return y.transpose(1, 2), last

    def gated_delta_rule(q, k, v, g, beta, scale, initial_state, output_final_state):
        return naive(operation).naive_recurrent_gated_delta_rule(
            q, k, v, beta, g, scale, initial_state, output_final_state
        )

    def simple_gla(q, k, v, g, scale, initial_state, output_final_state):
        g = q.new_zeros(q.shape[:3]) if g is None else g
        return naive(operation).naive_recurrent_simple_gla(q, k, v, g, scale, initial_state, output_final_state)

    def gla(q, k, v, scale, initial_state, output_final_state, **gate):
        q = q * scale * q.shape[-1] ** 0.5
        return naive(operation).naive_recurrent_gla(
            q, k, v, gate["gk" if short else "g"], initial_state, output_final_state
        )

    def kda(q, k, v, g, beta, scale, initial_state, output_final_state):
        return naive(operation).naive_recurrent_kda(q, k, v, g, beta, scale, initial_state, output_final_state)

    known = {
        "delta_rule": delta_rule, "gated_delta_rule": gated_delta_rule, "kda": kda, "simple_gla": simple_gla, "gla": gla
    }  # fmt: skip
    return known[operation]


@pytest.fixture(params=["stand-in", "references"])
def tolerance(request, monkeypatch):
    """Reads through stand-ins, in float64; and how far they may be off (their references compute in float32)."""
    if request.param == "references":
        installed()
    monkeypatch.setattr(fla, "obstacle", lambda rule, *_: fla.supports(rule))
    monkeypatch.setattr(fla, "kernel", stand_in if request.param == "stand-in" else reference)
    return 1e-10 if request.param == "stand-in" else 2e-5


@each_rule
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_it_computes_the_rule_and_its_gradients(rule, padded, tolerance):
    inputs = make_inputs(rule, T=17, K=5, V=4)
    inputs["step_size"] = 3 * inputs["step_size"]  # beyond 1 now and then
    mask = torch.rand(2, 17, generator=torch.Generator().manual_seed(1)) < 0.7 if padded else None
    results = []
    for backend in ("recurrent", "fla"):
        given, state, reads = require_grad(inputs), None, []
        for part in ((0, 11), (11, 17)):
            piece = span(given, *part)
            part_mask = None if mask is None else mask[:, slice(*part)]
            read = memorize(rule, **piece, state=state, mask=part_mask, backend=backend, surprise=False)
            reads.append(read)
            state = read.state
        sum(scalar_of(read) for read in reads).backward()
        results.append((reads, {name: leaf.grad for name, leaf in leaves(given).items()}))
    (slow, expected), (fast, derivatives) = results
    for a, b in zip(fast, slow, strict=True):
        assert a.backend == "fla" and a.surprise is None
        torch.testing.assert_close(a.y, b.y, rtol=tolerance, atol=tolerance)
        assert_same_state(a.state, b.state, tolerance)
    for name, derivative in derivatives.items():
        torch.testing.assert_close(
            derivative, expected[name], rtol=50 * tolerance, atol=50 * tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@each_rule
def test_without_a_graph_short_pieces_are_read_token_by_token(rule, tolerance):
    inputs = make_inputs(rule, T=9)
    with torch.no_grad():
        read = memorize(rule, **inputs, backend="fla", surprise=False)
    slow = memorize(rule, **inputs, backend="recurrent")
    torch.testing.assert_close(read.y, slow.y, rtol=tolerance, atol=tolerance)
    assert_same_state(read.state, slow.state, tolerance)


def test_chunks_are_for_long_pieces_and_for_graphs(monkeypatch):
    asked = []
    monkeypatch.setattr(fla, "obstacle", lambda *_: None)
    monkeypatch.setattr(fla, "kernel", lambda operation, short: asked.append(short) or stand_in(operation, short))
    for T, graph in ((fla.SHORT, False), (fla.SHORT + 1, False), (1, True)):
        with torch.set_grad_enabled(graph):
            memorize(DELTA, **make_inputs(DELTA, B=1, T=T, H=1, K=2, V=2), backend="fla", surprise=False)
    assert asked == [True, False, False]


@pytest.mark.parametrize("rule", [r for r in SERVED.values() if r.retention != "none"], ids=lambda r: r.name)
def test_a_gate_of_zero_forgets(rule, tolerance):
    """Their logs must stay finite; what the clipped gate leaves is far below the last bit."""
    inputs = make_inputs(rule, T=9)
    inputs["log_decay"][:, 4] = -torch.inf
    read = memorize(rule, **inputs, backend="fla", surprise=False)
    slow = memorize(rule, **inputs, backend="recurrent")
    torch.testing.assert_close(read.y, slow.y, rtol=tolerance, atol=tolerance)
    assert_same_state(read.state, slow.state, tolerance)


def test_half_precision_is_multiplied_in_the_type_of_the_tokens(monkeypatch):
    seen = {}

    def kernel(operation, short):
        def note(**arguments):
            seen.update({n: x.dtype for n, x in arguments.items() if isinstance(x, torch.Tensor)})
            wide = {n: x.float() if isinstance(x, torch.Tensor) else x for n, x in arguments.items()}
            y, last = stand_in(operation, short)(**wide)
            return y.to(arguments["v"].dtype), last

        return note

    monkeypatch.setattr(fla, "obstacle", lambda *_: None)
    monkeypatch.setattr(fla, "kernel", kernel)
    inputs = make_inputs(DELTA, dtype=torch.float32)
    half = inputs | {name: inputs[name].bfloat16() for name in "qkv"}
    read = memorize(DELTA, **half, backend="fla", surprise=False)
    low, full = torch.bfloat16, torch.float32
    assert seen == {"q": low, "k": low, "v": low, "g": full, "beta": full, "initial_state": full}
    assert read.y.dtype == low and read.state.weights[0].dtype == full
    slow = memorize(DELTA, **half, backend="recurrent")
    torch.testing.assert_close(read.y, slow.y, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (RULES["titans"], "one bare matrix"),
        (DOT.replace(residual=True), "one bare matrix"),
        (DOT.replace(norm=True), "one bare matrix"),
        (DOT.replace(gradient_at="chunk"), "chunk's start"),
        (DELTA.replace(objective="huber"), "dot and l2"),
        (RULES["titans-linear"], "momentum"),
        (RULES["mesa"], "at its optimum"),
        (DELTA.replace(read_at="before"), "after the write"),
        (DELTA.replace(gradient_at="previous"), "after it has forgotten"),
        (RULES["kda"].replace(gradient_at="previous"), "after it has forgotten"),
    ],
    ids=lambda x: x.name if isinstance(x, MemoryRule) else None,
)
def test_what_they_cannot_compute_is_refused_with_a_reason(rule, reason):
    assert reason in fla.supports(rule)
    inputs = make_inputs(rule)
    with pytest.raises(ValueError, match=rf"backend 'fla' cannot read rule .* here: .*{reason}.*; use auto\."):
        memorize(rule, **inputs, backend="fla", surprise=False)


@each_rule
def test_the_served_rules_have_no_reason(rule):
    assert fla.supports(rule) is None


def test_by_name_it_needs_a_gpu():
    with pytest.raises(ValueError, match=r"backend 'fla'.* run on a GPU, and the tokens are on cpu; use auto\.$"):
        memorize(DELTA, **make_inputs(DELTA, dtype=torch.float32), backend="fla", surprise=False)


def absent(operation, short):
    raise ImportError("No module named 'fla'")


@pytest.fixture
def on_a_gpu(monkeypatch):
    """As if the tokens were on a GPU and the package were installed."""
    monkeypatch.setattr(fla, "kernel", stand_in)
    fla.missing.cache_clear()
    reading._say_once.cache_clear()
    yield lambda T=128, K=8: SimpleNamespace(is_cuda=True, device=torch.device("cuda"), shape=(2, T, 2, K))
    fla.missing.cache_clear()
    reading._say_once.cache_clear()


def test_by_name_it_must_be_installed(on_a_gpu, monkeypatch):
    monkeypatch.setattr(fla, "kernel", absent)
    monkeypatch.setattr(fla, "DEVICES", ("cpu",))
    inputs = {n: x for n, x in make_inputs(DELTA, dtype=torch.float32).items()}
    half = inputs | {name: inputs[name].bfloat16() for name in "qkv"}
    with pytest.raises(ValueError, match=r"cannot be imported \(No module named 'fla'\); use auto\.$"):
        memorize(DELTA, **half, backend="fla", surprise=False)


def test_auto_takes_it_on_a_gpu_and_says_once_where_it_does_not(on_a_gpu, monkeypatch, caplog):
    half = torch.bfloat16
    q, cpu = on_a_gpu(), SimpleNamespace(is_cuda=False)
    with caplog.at_level(logging.INFO, logger=reading.__name__):
        for rule in SERVED.values():
            assert reading._choose(rule, "auto", q, q, half, False) == "fla"
            assert reading._choose(rule, "auto", cpu, cpu, half, False) == "exact"
            assert reading._choose(rule, "exact", q, q, half, False) == "exact"
        assert reading._choose(RULES["titans"], "chunked", q, q, half, False) == "chunked"
        assert not caplog.records
        for _ in range(2):
            assert reading._choose(RULES["titans-linear"], "auto", q, q, half, False) == "exact"
            assert reading._choose(DELTA, "auto", q, q, half, True) == "exact"
        assert [r.message.partition("not fla: ")[2] for r in caplog.records] == [
            "none of them carries momentum.",
            "its kernels report no surprise (surprise=False does without).",
        ]
        fla.missing.cache_clear()
        monkeypatch.setattr(fla, "kernel", absent)
        assert reading._choose(DELTA, "auto", q, q, half, False) == "exact"
        assert "cannot be imported" in caplog.records[-1].message


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_float32_is_rounded_to_tf32_only_where_torch_may_do_so_too(on_a_gpu, monkeypatch, precision):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: precision)
    wide = torch.float32
    assert (fla.obstacle(DELTA, on_a_gpu(), wide, False) is None) == (precision == "high")
    assert "does not compute in float32" in fla.obstacle(RULES["deltanet"], on_a_gpu(), wide, False)
    with torch.no_grad():  # token by token there are no products to round
        assert fla.obstacle(RULES["deltanet"], on_a_gpu(T=1), wide, False) is None
        assert fla.obstacle(RULES["kda"], on_a_gpu(T=1), wide, False) is None
    assert "kda does not compute in float32" in fla.obstacle(RULES["kda"], on_a_gpu(), wide, False)
    assert "float64" in fla.obstacle(DELTA, on_a_gpu(), torch.float64, False)
    assert "256 channels" in fla.obstacle(DELTA, on_a_gpu(K=257), torch.bfloat16, False)


def test_their_momentum_is_the_same_recurrence():
    """So nothing is lost but speed when they make a kernel of it; see the notes in the module."""
    theirs = naive("momentum_delta_rule").recurrent_momentum_delta_rule_ref
    rule = RULES["titans-linear"]
    inputs = make_inputs(rule, K=5, V=4)
    slow = memorize(rule, **inputs, backend="recurrent")
    q, k, v = (inputs[name] for name in "qkv")
    y, last = theirs(
        q, k, v, inputs["log_decay"], inputs["log_momentum"], p=k, beta=torch.ones_like(inputs["step_size"]),
        eta=inputs["step_size"], scale=1.0, initial_S=inputs["initial"][0].expand(2, -1, -1, -1),
        output_final_state=True,
    )  # fmt: skip
    torch.testing.assert_close(y.double(), slow.y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last[0].double(), slow.state.weights[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(-last[1].double(), slow.state.momentum[0], rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("T", [1, 40, 150])
@each_rule
def test_the_kernels_themselves(rule, T):
    installed()
    inputs = make_inputs(rule, T=T, K=32, V=32, dtype=torch.float32)
    inputs = {n: [w.cuda() for w in x] if n == "initial" else x.cuda() for n, x in inputs.items()}
    inputs |= {name: inputs[name].bfloat16() for name in "qkv"}
    slow_in, fast_in = require_grad(inputs), require_grad(inputs)
    slow = memorize(rule, **slow_in, backend="recurrent")
    fast = memorize(rule, **fast_in, surprise=False)
    assert fast.backend == "fla"
    assert_close_in_norm(fast.y, slow.y)
    assert_close_in_norm(fast.state.weights[0], slow.state.weights[0])
    weigh = [torch.randn_like(x, dtype=torch.float32) for x in (slow.y, *slow.state.weights)]
    for read in (slow, fast):
        parts = zip((read.y, *read.state.weights), weigh, strict=True)
        sum((x.float() * w).sum() for x, w in parts).backward()
    expected = leaves(slow_in)
    for name, tensor in leaves(fast_in).items():
        assert_close_in_norm(tensor.grad, expected[name].grad)


def assert_close_in_norm(one, other, tolerance=0.05):
    assert one.isfinite().all()
    assert (one.float() - other.float()).norm() <= tolerance * other.float().norm() + 1e-5
