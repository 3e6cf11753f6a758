"""Every way of reading equals the definition, and the definition equals the equations: float64, gradients included."""

from __future__ import annotations

import itertools

import pytest
import torch
from oracle import make_inputs, read_one_row

from mnemonist.memory import MemoryRule, memorize
from mnemonist.memory.least_squares import minimum


def combinations() -> list[MemoryRule]:
    rules = []
    for depth, objective, momentum, (retention, decay_to), point in itertools.product(
        (1, 2, 3, 4),
        ("dot", "l2", "huber"),
        (False, True),
        (("none", "zero"), ("head", "zero"), ("head", "initial"), ("channel", "zero"), ("channel", "initial")),
        ("previous", "decayed", "chunk"),
    ):
        name = f"d{depth}-{objective}-{'m' if momentum else '-'}-{retention}-{decay_to}-{point}"
        rules.append(
            MemoryRule(
                name=name, depth=depth, objective=objective, momentum=momentum, retention=retention,
                decay_to=decay_to, gradient_at=point, chunk_size=6, expansion=1.5, huber_delta=0.5,
            )
        )  # fmt: skip
    for depth, momentum, (retention, decay_to), point in itertools.product(
        (1, 2),
        (False, True),
        (("none", "zero"), ("head", "zero"), ("channel", "initial")),
        ("previous", "decayed", "chunk"),
    ):
        name = f"before-d{depth}-{'m' if momentum else '-'}-{retention}-{decay_to}-{point}"
        rules.append(
            MemoryRule(
                name=name, depth=depth, momentum=momentum, retention=retention, decay_to=decay_to,
                gradient_at=point, read_at="before", chunk_size=6, expansion=1.5,
            )
        )  # fmt: skip
    for depth, momentum, (retention, decay_to), point, read_at in itertools.product(
        (1, 2),
        (False, True),
        (("none", "zero"), ("head", "initial"), ("channel", "zero")),
        ("previous", "decayed", "chunk"),
        ("after", "before"),
    ):
        name = f"writes-d{depth}-{'m' if momentum else '-'}-{retention}-{decay_to}-{point}-{read_at}"
        rules.append(
            MemoryRule(
                name=name, depth=depth, momentum=momentum, retention=retention, decay_to=decay_to, gradient_at=point,
                read_at=read_at, writes=2 + momentum, chunk_size=7, expansion=1.5,
            )
        )  # fmt: skip
    for depth, momentum, (retention, decay_to), point, read_at, window in itertools.product(
        (1, 2),
        (False, True),
        (("none", "zero"), ("head", "initial"), ("channel", "zero")),
        ("decayed", "chunk"),
        ("after", "before"),
        (3, 9),
    ):
        name = f"window{window}-d{depth}-{'m' if momentum else '-'}-{retention}-{decay_to}-{point}-{read_at}"
        rules.append(
            MemoryRule(
                name=name, depth=depth, momentum=momentum, retention=retention, decay_to=decay_to, gradient_at=point,
                read_at=read_at, window=window, chunk_size=6, expansion=1.5,
            )
        )  # fmt: skip
    for depth, momentum, (retention, decay_to), point, window in itertools.product(
        (1, 2), (False, True), (("none", "zero"), ("channel", "initial")), ("decayed", "chunk"), (1, 3)
    ):
        name = f"orthogonal-d{depth}-{'m' if momentum else '-'}-{retention}-{decay_to}-{point}-window{window}"
        rules.append(
            MemoryRule(
                name=name, step="orthogonal", depth=depth, momentum=momentum, retention=retention, decay_to=decay_to,
                gradient_at=point, window=window, chunk_size=6, expansion=1.5,
            )
        )  # fmt: skip
    for depth, activation in itertools.product((1, 2, 3), ("silu", "gelu", "relu", "tanh")):
        rules.append(
            MemoryRule(
                name=f"ttt-d{depth}-{activation}", depth=depth, activation=activation, residual=True, norm=True,
                gradient_at="chunk", chunk_size=4, momentum=depth == 2, retention="head",
            )
        )  # fmt: skip
    for retention, read_at, writes in itertools.product(("none", "head"), ("after", "before"), (1, 2)):
        rules.append(
            MemoryRule(
                name=f"optimum-{retention}-{read_at}-{writes}", step="optimum", ridge=0.1, retention=retention,
                decay_to="zero" if retention == "none" else "initial", read_at=read_at, writes=writes,
            )
        )  # fmt: skip
    return rules


RULES_UNDER_TEST = combinations()
FAST = [rule for rule in RULES_UNDER_TEST if rule.solvable or (not rule.per_token and rule.step_is_gradient)]


def leaves(inputs):
    tensors = {n: t for n, t in inputs.items() if isinstance(t, torch.Tensor)}
    return tensors | {f"initial.{i}": w for i, w in enumerate(inputs["initial"])}


def require_grad(inputs):
    out = {n: t.clone().requires_grad_() for n, t in inputs.items() if isinstance(t, torch.Tensor)}
    out["initial"] = [w.clone().requires_grad_() for w in inputs["initial"]]
    return out


def memory_of(state, b):
    """The weights of the memory of row ``b``."""
    rows = [w[b] for w in state.weights]
    return [minimum(sums) for sums in rows] if state.rule.step == "optimum" else rows


def scalar_of(read):
    """A number that depends on every output with different weights."""
    parts = [read.y, *read.state.weights, *read.state.momentum]
    return sum((p * torch.linspace(-1, 1, p.numel(), dtype=p.dtype).view(p.shape)).sum() for p in parts)


@pytest.mark.parametrize("rule", RULES_UNDER_TEST, ids=lambda r: r.name)
def test_the_definition_is_the_equations(rule):
    inputs = make_inputs(rule, B=2, T=9, K=4, V=4)
    read = memorize(rule, **inputs, backend="recurrent")
    for b in range(2):
        row = [inputs[n][b] if n in inputs else None for n in ("q", "k", "v", "step_size", "log_momentum", "log_decay")]
        y, M, S, loss, norm = read_one_row(rule, *row, inputs["initial"])
        torch.testing.assert_close(read.y[b], y, rtol=0, atol=1e-10)
        torch.testing.assert_close(memory_of(read.state, b), M, rtol=0, atol=1e-10)
        if rule.momentum:
            torch.testing.assert_close([s[b] for s in read.state.momentum], S, rtol=0, atol=1e-10)
        torch.testing.assert_close(read.surprise.loss[b], loss.detach(), rtol=0, atol=1e-10)
        torch.testing.assert_close(read.surprise.gradient_norm[b], norm, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rule", FAST, ids=lambda r: r.name)
def test_fast_paths_equal_the_definition_with_gradients(rule):
    inputs = make_inputs(rule)
    slow_in, fast_in = require_grad(inputs), require_grad(inputs)
    slow, fast = memorize(rule, **slow_in, backend="recurrent"), memorize(rule, **fast_in)
    assert fast.backend == ("exact" if rule.solvable else "chunked")
    torch.testing.assert_close(fast.y, slow.y, rtol=0, atol=1e-10)
    torch.testing.assert_close(fast.state.weights, slow.state.weights, rtol=0, atol=1e-10)
    torch.testing.assert_close(fast.state.momentum, slow.state.momentum, rtol=0, atol=1e-10)
    torch.testing.assert_close(fast.state.anchor, slow.state.anchor, rtol=0, atol=1e-10)
    torch.testing.assert_close(fast.surprise.loss, slow.surprise.loss, rtol=0, atol=1e-10)
    torch.testing.assert_close(fast.surprise.gradient_norm, slow.surprise.gradient_norm, rtol=0, atol=1e-10)
    scalar_of(slow).backward()
    scalar_of(fast).backward()
    expected = leaves(slow_in)
    for name, tensor in leaves(fast_in).items():
        torch.testing.assert_close(
            tensor.grad, expected[name].grad, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )
