"""One token a row through its own kernel equals the definition: interpreted, in float32, without a GPU."""

from __future__ import annotations

import pytest
import torch
from interpreted import TOLERANCE, needs_triton, run_interpreted, same, starts_interpreter, within
from pieces import assert_bit_equal_state, assert_same_state, span, state_tensors, surprise_of
from test_triton_deep_memory import FULL, RULES, deep, gentle

from mnemonist.memory import MemoryState, memorize
from mnemonist.memory.kernels import triton_decoding
from mnemonist.memory.stream import Gates

pytestmark = needs_triton


@starts_interpreter
def test_all_of_this_interpreted():
    run_interpreted(__file__)


@pytest.fixture
def taken(monkeypatch):
    """How often one token was read by its own kernel."""
    calls, read = [], triton_decoding.read_one_token
    monkeypatch.setattr(triton_decoding, "read_one_token", lambda *args: calls.append(1) or read(*args))
    return calls


@pytest.fixture
def small_tiles(monkeypatch):
    """Several blocks of hidden columns."""
    monkeypatch.setattr(triton_decoding, "TILE", 512)
    triton_decoding.launch_for.cache_clear()
    yield
    triton_decoding.launch_for.cache_clear()


def decode(rule, inputs, start, stop, state, taken, slow=None):
    """Read token by token, each time compared with the definition, which goes on from its own state."""
    slow = state if slow is None else slow
    for t in range(start, stop):
        before = len(taken)
        with torch.no_grad():
            fast = memorize(rule, **span(inputs, t, t + 1), state=state, backend="triton")
        true = memorize(rule, **span(inputs, t, t + 1), state=slow, backend="recurrent")
        assert len(taken) == before + 1
        same(fast, true)
        state, slow = fast.state, true.state
    return state, slow


SMALL = [rule.replace(chunk_size=4) for rule in RULES]
SMALL.append(deep("forgets-to-zero", retention="head", momentum=True, residual=True, chunk_size=4))
SMALL.append(deep("linear-huber-before", depth=1, objective="huber", huber_delta=0.2, read_at="before", chunk_size=1))


@within
@pytest.mark.parametrize("rule", SMALL, ids=lambda r: r.name)
def test_token_by_token_equals_the_definition(rule, taken):
    state, _ = decode(rule, gentle(rule, T=10, H=2), 0, 10, None, taken)
    assert state.phase.tolist() == [10 % rule.chunk_size] * 2


@within
@pytest.mark.parametrize(
    ("depth", "K", "V", "expansion"), [(2, 24, 24, 4), (2, 5, 33, 1), (2, 40, 7, 3), (1, 24, 33, 1)], ids=str
)
def test_widths_that_are_no_powers_of_two(depth, K, V, expansion, taken, small_tiles):
    options = {"norm": True, "residual": K == V, "momentum": True, "retention": "head", "decay_to": "initial"}
    rule = deep("odd", depth=depth, expansion=expansion, chunk_size=3, **options)
    decode(rule, gentle(rule, T=5, K=K, V=V, H=2), 0, 5, None, taken)
    sizes = triton_decoding.launch_for(rule, 2, K, V, True)[1]
    assert sizes["BLOCKS"] > 1 or sizes["D"] < 16


@within
@pytest.mark.parametrize("rule", [FULL, RULES[2], RULES[4]], ids=lambda r: r.name)
def test_pieces_before_and_after_are_read_by_the_other_kernels(rule, taken):
    rule = rule.replace(chunk_size=6)
    inputs, state, slow = gentle(rule, T=26, H=2), None, None
    for start, stop in ((0, 4), (6, 13), (14, 20)):  # after each of them, token by token to the next
        with torch.no_grad():
            fast = memorize(rule, **span(inputs, start, stop), state=state, backend="triton")
        true = memorize(rule, **span(inputs, start, stop), state=slow, backend="recurrent")
        same(fast, true)
        state, slow = decode(rule, inputs, stop, {4: 6, 13: 14, 20: 26}[stop], fast.state, taken, true.state)
    assert len(taken) == 2 + 1 + 6


@within
def test_rows_may_be_at_different_places_of_their_chunks(taken):
    rule = FULL.replace(chunk_size=4)
    inputs = gentle(rule, B=4, T=14)
    mask = torch.arange(4) < torch.tensor([0, 1, 3, 4])[:, None]
    with torch.no_grad():
        state = memorize(rule, **span(inputs, 0, 4), mask=mask, backend="triton").state
    assert not taken
    state, slow = decode(rule, inputs, 4, 10, state, taken)
    assert state.phase.tolist() == [2, 3, 1, 2]
    rows = torch.tensor([3, 0, 0, 1])  # as a beam goes on
    decode(rule, inputs, 10, 14, state.select(rows), taken, slow.select(rows))


@within
def test_a_state_is_a_value(taken, tmp_path):
    rule = FULL.replace(chunk_size=3)
    inputs, states, copies = gentle(rule, T=8), [], []
    with torch.no_grad():
        state = None
        for t in range(8):
            read = memorize(rule, **span(inputs, t, t + 1), state=state, backend="triton")
            state = read.state
            states.append(state)
            copies.append(state.fork())
            if t == 4:
                state.save(tmp_path / "state.safetensors")
    for state, copy in zip(states, copies, strict=True):
        assert_bit_equal_state(state, copy)
    assert all(w.is_contiguous() for w in state_tensors(states[0]))
    # Within a chunk the anchor is handed on, and between two it is the weights: no copies.
    assert [a is b for a, b in zip(states[1].anchor, states[0].anchor, strict=True)] == [True, True]
    assert [a is b for a, b in zip(states[2].anchor, states[2].weights, strict=True)] == [True, True]

    loaded = MemoryState.load(tmp_path / "state.safetensors")
    with torch.no_grad():
        for t in range(5, 8):
            loaded = memorize(rule, **span(inputs, t, t + 1), state=loaded, backend="triton").state
    assert_bit_equal_state(loaded, states[7])
    assert len(taken) == 11


@within
def test_derivatives_masks_and_longer_pieces_are_read_by_the_other_kernels(taken):
    inputs = gentle(FULL, T=2)
    one = span(inputs, 0, 1)
    memorize(FULL, **one, backend="triton")  # nothing here wants a derivative
    assert len(taken) == 1
    with torch.no_grad():
        memorize(FULL, **inputs, backend="triton")
        memorize(FULL, **one, backend="triton", mask=torch.tensor([[True], [False]]))
        packed = {n: x if n == "initial" else x[:1] for n, x in inputs.items()}
        memorize(FULL, **packed, backend="triton", cu_seqlens=torch.tensor([0, 1, 2]))
    assert len(taken) == 1
    wanted = one | {"initial": [w.clone().requires_grad_() for w in one["initial"]]}
    memorize(FULL, **wanted, backend="triton").y.sum().backward()
    assert all(float(w.grad.abs().max()) > 0 for w in wanted["initial"])
    state = memorize(FULL, **one, backend="recurrent").state.map(lambda w: w.clone().requires_grad_())
    memorize(FULL, **one, state=state, backend="triton").y.sum().backward()
    assert float(state.weights[0].grad.abs().max()) > 0
    assert len(taken) == 1
    with torch.no_grad():
        memorize(FULL, **wanted, backend="triton")
        memorize(FULL, **one, backend="triton", mask=torch.ones(2, 1, dtype=torch.bool))
    assert len(taken) == 3


@within
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_of_half_precision_tokens_are_in_float32(dtype, taken):
    inputs = gentle(FULL, T=4)
    inputs |= {n: inputs[n].to(dtype) for n in ("q", "k", "v")}
    state = slow = None
    for t in range(4):
        with torch.no_grad():
            fast = memorize(FULL, **span(inputs, t, t + 1), state=state, backend="triton")
        true = memorize(FULL, **span(inputs, t, t + 1), state=slow, backend="recurrent")
        state, slow = fast.state, true.state
        assert fast.y.dtype == dtype
        torch.testing.assert_close(fast.y, true.y, rtol=2 * torch.finfo(dtype).eps, atol=TOLERANCE)
        assert_same_state(state, slow, TOLERANCE)
    assert len(taken) == 4


@within
def test_tokens_and_gates_may_be_views(taken):
    inputs = gentle(FULL, T=3, H=2)
    qkv = torch.stack([inputs["q"], inputs["k"], inputs["v"]], 2)
    views = inputs | dict(zip("qkv", qkv.unbind(2), strict=True)) | {"log_decay": torch.full((1, 1, 1), -0.1)}
    views["log_decay"] = views["log_decay"].expand(2, 3, 2)
    assert not views["q"][:, :1].is_contiguous()
    decode(FULL, views, 0, 3, None, taken)


@within
def test_without_surprise_the_rest_is_the_same(taken):
    inputs = gentle(FULL, T=1)
    with torch.no_grad():
        told = memorize(FULL, **inputs, backend="triton")
        untold = memorize(FULL, **inputs, surprise=False, backend="triton")
    assert untold.surprise is None
    assert surprise_of(told)["loss"].shape == (2, 1, 1)
    assert torch.equal(told.y, untold.y)
    assert_bit_equal_state(told.state, untold.state)


@within
@pytest.mark.parametrize("read_at", ["after", "before"])
def test_gates_of_zero_forget_everything(read_at, taken):
    rule = FULL.replace(read_at=read_at, chunk_size=3)
    inputs = gentle(rule, T=5)
    inputs["log_decay"][:, [0, 4]] = -torch.inf
    inputs["log_momentum"][:, [2, 4]] = -torch.inf
    decode(rule, inputs, 0, 5, None, taken)


@within
@pytest.mark.parametrize("gate", ["step_size", "log_momentum", "log_decay"])
def test_a_gate_that_is_not_a_number_shows_in_the_answers(gate):
    """On a GPU nobody looks at gates."""
    inputs = gentle(FULL, T=1)
    state = memorize(FULL, **inputs, backend="recurrent").state
    inputs[gate][1] = torch.nan
    gates = Gates(*(inputs[name] for name in ("step_size", "log_momentum", "log_decay")))
    y, after, _ = triton_decoding.read_one_token(*(inputs[n] for n in "qkv"), gates, inputs["initial"], state, False)
    assert bool(y[1].isnan().all() and after.weights[0][1].isnan().all())
    assert bool(y[0].isfinite().all() and after.weights[0][0].isfinite().all())
