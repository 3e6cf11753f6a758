"""Kernels in Triton's interpreter, in float32, against the definition: what their tests share."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pieces import assert_same_state, surprise_of
from test_equivalence import leaves, require_grad

from mnemonist.memory import memorize, reading

# Triton decides when it is first imported whether it interprets, and other tests (or torch's compiler) may have
# imported it by then; nor may they find the variable set. So without it one test runs this file in its own process.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
within = pytest.mark.skipif(not INTERPRETED, reason="runs in the process of test_all_of_this_interpreted")
starts_interpreter = pytest.mark.skipif(INTERPRETED, reason="is what runs the others")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the kernels need triton")

TOLERANCE = 2e-4


def run_interpreted(file):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", file]
    here = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    run = subprocess.run(
        command, env=here | {"TRITON_INTERPRET": "1"}, cwd=Path(__file__).parents[3], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert " passed" in run.stdout


def scalar_of(reads):
    """A number that depends on every output with different weights."""
    parts = [read.y for read in reads]
    parts += [*reads[-1].state.weights, *reads[-1].state.momentum, *reads[-1].state.anchor]
    return sum((p * torch.linspace(-1, 1, p.numel(), dtype=p.dtype).view(p.shape)).sum() for p in parts)


def close(one, other, what=""):
    torch.testing.assert_close(one, other, rtol=TOLERANCE, atol=TOLERANCE, msg=lambda m: f"{what}: {m}")


def close_derivatives(ones, others):
    for name, leaf in leaves(ones).items():
        expected = leaves(others)[name].grad
        scale = max(1.0, float(expected.abs().max()))
        close(leaf.grad / scale, expected / scale, name)


def same(one, other):
    close(one.y, other.y, "y")
    assert_same_state(one.state, other.state, TOLERANCE)
    close(surprise_of(one), surprise_of(other))


def same_derivatives(rule, inputs, **more):
    """The kernels and the definition give the same, and what depends on all of it the same derivatives."""
    fast_in, slow_in = (require_grad(inputs) for _ in range(2))
    fast = memorize(rule, **fast_in, **more, backend="triton")
    slow = memorize(rule, **slow_in, **more, backend="recurrent")
    assert fast.backend == "triton"
    same(fast, slow)
    scalar_of([fast]).backward()
    scalar_of([slow]).backward()
    close_derivatives(fast_in, slow_in)


def shows_a_gate_that_is_no_number(rule, inputs, gate, monkeypatch):
    """Nobody looks at gates on a GPU, so answers must tell of them."""
    monkeypatch.setattr(reading, "_check_range", lambda *_: None)
    inputs[gate][1, 5] = torch.nan
    read = memorize(rule, **inputs, backend="triton")
    assert bool(read.y[1, 5:].isnan().all() and read.state.weights[0][1].isnan().all())
    assert bool(read.y[0].isfinite().all() and read.state.weights[0][0].isfinite().all())
