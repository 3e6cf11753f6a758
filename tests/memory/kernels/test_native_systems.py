"""The compiled search for the answers of a memory at its optimum equals the one in torch, and both equal a solver."""

from __future__ import annotations

import pytest
import torch
from compiler import needs_compiler
from oracle import make_inputs
from pieces import surprise_of
from test_equivalence import leaves, require_grad, scalar_of

from mnemonist.memory import RULES, memorize
from mnemonist.memory.kernels import native_systems
from mnemonist.memory.least_squares import CHUNK, TOLERANCE, Systems, parts, sums_of, systems
from mnemonist.memory.stream import Gates


@pytest.fixture
def through_torch(monkeypatch):
    """Call it, and what is solved from then on is solved through torch."""
    return lambda: monkeypatch.setattr(native_systems, "solve", lambda *_: None)


def some(*, T=2 * CHUNK + 5, K=6, seed=0, dtype=torch.float64, scale=1.0) -> tuple[Systems, torch.Tensor]:
    """Systems of a piece of two rows and two heads, and queries."""
    rule = RULES["mesa"]
    inputs = make_inputs(rule, T=T, K=K, seed=seed, dtype=dtype, scale=scale)
    gates = Gates(inputs["step_size"], None, inputs["log_decay"])
    start = parts(sums_of(rule, inputs["initial"][0]))[1].expand(2, -1, -1, -1)
    return systems(rule, inputs["k"], gates, start, None, "after"), inputs["q"]


def matrices(given: Systems) -> torch.Tensor:
    """``H_t``, written out: ``[B, T, H, K, K]``."""
    K = given.keys.shape[-1]
    rows = [given.times(one.expand_as(given.keys)) for one in torch.eye(K, dtype=given.keys.dtype)]
    B, T, H = given.shape
    return torch.stack(rows, dim=2).reshape(-1, B, H, CHUNK, K, K).permute(1, 0, 3, 2, 4, 5).flatten(1, 2)[:, :T]


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_compiler), False])
@pytest.mark.parametrize("K", [1, 6, 33])
def test_answers_solve_their_systems(compiled, K, through_torch):
    if not compiled:
        through_torch()
    given, q = some(K=K)
    expected = torch.linalg.solve(matrices(given), q.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(given.solve(q), expected, rtol=1e-11, atol=1e-12)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_compiled_search_stops_where_the_other_does(dtype, through_torch):
    given, q = some(K=32, dtype=dtype)
    one = given.solve(q)
    through_torch()
    other = given.solve(q)
    near = 50 * TOLERANCE * torch.finfo(dtype).eps
    torch.testing.assert_close(one, other, rtol=near, atol=near)
    assert not torch.equal(one, other)  # or the same was compared with itself


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_compiler), False])
def test_a_query_of_zeros_and_one_that_is_no_number_stay_to_themselves(compiled, through_torch):
    if not compiled:
        through_torch()
    given, q = some()
    expected = given.solve(q)
    q[:, 3], q[:, 5] = 0, float("nan")
    found = given.solve(q)
    assert torch.equal(found[:, 3], torch.zeros_like(found[:, 3]))
    assert found[:, 5].isnan().all()
    others = [t for t in range(q.shape[1]) if t not in (3, 5)]
    assert torch.equal(found[:, others], expected[:, others])


@needs_compiler
@pytest.mark.parametrize("read_at", ["after", "before"])
def test_a_reading_equals_the_one_through_torch(read_at, through_torch):
    rule = RULES["mesa"].replace(read_at=read_at)
    inputs = require_grad(make_inputs(rule, T=2 * CHUNK + 9, K=17, V=9))

    def read():
        for leaf in leaves(inputs).values():
            leaf.grad = None
        found = memorize(rule, **inputs)
        scalar_of(found).backward()
        return found, {name: leaf.grad for name, leaf in leaves(inputs).items()}

    one, derivatives = read()
    through_torch()
    other, expected = read()
    torch.testing.assert_close(one.y, other.y, rtol=0, atol=1e-11)
    for name, seen in surprise_of(one).items():
        torch.testing.assert_close(seen, surprise_of(other)[name], rtol=0, atol=1e-11)
    for name, derivative in derivatives.items():
        torch.testing.assert_close(derivative, expected[name], rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_keys_that_repeat_for_thousands_of_tokens_are_solved_for():
    """Without forgetting the matrices grow, and what is far apart in them is what single precision has trouble with."""
    rule = RULES["mesa"].replace(retention="none", decay_to="zero")
    inputs = make_inputs(rule, B=1, T=4000, K=16, V=3, dtype=torch.float32)
    inputs["k"] = torch.nn.functional.normalize(inputs["k"] + 3, dim=-1)
    single = memorize(rule, **inputs)
    double = {n: [w.double() for w in x] if n == "initial" else x.double() for n, x in inputs.items()}
    exact = memorize(rule, **double).y
    assert (single.y - exact).abs().max() < 2e-3 * exact.abs().max()
