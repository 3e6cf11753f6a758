"""The Triton kernels of linear memories equal the definition, derivatives included: interpreted, in float32."""

from __future__ import annotations

import pytest
import torch
from interpreted import (
    TOLERANCE,
    close,
    close_derivatives,
    needs_triton,
    run_interpreted,
    same,
    same_derivatives,
    scalar_of,
    shows_a_gate_that_is_no_number,
    starts_interpreter,
    within,
)
from oracle import make_inputs
from pieces import assert_same_state, read_in_pieces, span
from test_equivalence import require_grad

from mnemonist.memory import RULES, MemoryRule, memorize
from mnemonist.memory.kernels import triton_reading

pytestmark = needs_triton


@starts_interpreter
def test_all_of_this_interpreted():
    run_interpreted(__file__)


def linear(name: str, **choices) -> MemoryRule:
    return MemoryRule(name=name, **{"chunk_size": 16, "depth": 1, "gradient_at": "previous", **choices})


FULL = linear("full", momentum=True, retention="head", decay_to="initial", gradient_at="decayed")
LIST = [
    RULES["titans-linear"].replace(chunk_size=16),
    RULES["deltanet"].replace(chunk_size=16),
    RULES["gated-deltanet"].replace(chunk_size=16),
    linear("momentum", momentum=True),
    linear("previous-head", retention="head", momentum=True),
    linear("before", read_at="before", momentum=True, retention="head", decay_to="initial"),
    linear("to-initial", retention="head", decay_to="initial", chunk_size=11),
    FULL,
]


def inputs_of(rule, **sizes):
    return make_inputs(rule, **{"B": 2, "T": 21, "H": 1, "K": 16, "V": 16, "dtype": torch.float32, **sizes})


@within
@pytest.mark.parametrize("rule", LIST, ids=lambda r: r.name)
def test_it_equals_the_definition_with_derivatives(rule):
    same_derivatives(rule, inputs_of(rule))


@within
@pytest.mark.parametrize(("K", "V", "H"), [(16, 70, 2), (5, 33, 1)], ids=["blocks", "odd"])
def test_other_widths(K, V, H):
    same_derivatives(FULL, inputs_of(FULL, K=K, V=V, H=H, B=1))


@within
@pytest.mark.parametrize("gate", ["step_size", "log_momentum", "log_decay"])
def test_a_gate_that_is_no_number_shows_in_the_answers(gate, monkeypatch):
    shows_a_gate_that_is_no_number(FULL, inputs_of(FULL), gate, monkeypatch)


@within
@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("chunk_size", [32, 64, 128])
def test_long_chunks_of_tokens_that_are_alike_too(chunk_size, alike):
    """The same key again and again is where powers of a chunk's matrix grow most."""
    rule = FULL.replace(chunk_size=chunk_size)
    inputs = inputs_of(rule, B=1, T=chunk_size + 3)
    if alike:
        inputs["k"] = inputs["k"][:, :1].expand_as(inputs["k"]).clone()
        inputs["step_size"] = torch.ones_like(inputs["step_size"])
        inputs["log_momentum"] = torch.full_like(inputs["log_momentum"], -6.0)
    same_derivatives(rule, inputs)


@within
def test_any_split_equals_the_whole_with_derivatives_through_the_state():
    inputs, results = inputs_of(FULL), []
    for backend, lengths in (("triton", (7, 14)), ("recurrent", (21,))):
        given, reads, state, start = require_grad(inputs), [], None, 0
        for length in lengths:
            reads.append(memorize(FULL, **span(given, start, start + length), state=state, backend=backend))
            state, start = reads[-1].state, start + length
        y = torch.cat([read.y for read in reads], 1)
        last = [*state.weights, *state.momentum]
        sum((p * torch.linspace(-1, 1, p.numel()).view(p.shape)).sum() for p in (y, *last)).backward()
        results.append((given, y, state))
    close(results[0][1], results[1][1], "y")
    assert_same_state(results[0][2], results[1][2], TOLERANCE)
    close_derivatives(results[0][0], results[1][0])


@within
def test_padding_packing_turns_and_single_tokens(monkeypatch):
    mask = torch.rand(3, 40, generator=torch.Generator().manual_seed(0)) < 0.6
    mask[2] = False  # a row of nothing but padding
    inputs = inputs_of(FULL, B=3, T=40)
    fast_in, slow_in = (require_grad(inputs) for _ in range(2))
    fast = memorize(FULL, **fast_in, mask=mask, backend="triton")
    slow = memorize(FULL, **slow_in, mask=mask, backend="recurrent")
    close(fast.y, slow.y)
    assert_same_state(fast.state, slow.state, TOLERANCE)
    scalar_of([fast]).backward()
    scalar_of([slow]).backward()
    close_derivatives(fast_in, slow_in)
    with torch.no_grad():
        y, state, _ = read_in_pieces(FULL, inputs, [37, 1, 1, 1], backend="triton")
        whole = memorize(FULL, **inputs, backend="recurrent")
        close(y, whole.y)
        assert_same_state(state, whole.state, TOLERANCE)
        monkeypatch.setattr(triton_reading, "SLOT_BYTES", 1)
        turns = memorize(FULL, **inputs, mask=mask, backend="triton")
    close(turns.y, slow.y)
    assert_same_state(turns.state, slow.state, TOLERANCE)


@within
@pytest.mark.parametrize("gradient_at", ["previous", "decayed"])
def test_gates_of_zero_give_finite_derivatives(gradient_at):
    rule = FULL.replace(gradient_at=gradient_at)
    inputs = inputs_of(rule)
    for name, places in (("log_decay", (0, 5, 17)), ("log_momentum", (3, 5, 20))):
        inputs[name][:, list(places)] = -torch.inf
    same_derivatives(rule, inputs)


@within
def test_equal_keys_and_large_steps_are_solved_for_as_they_should():
    """Where powers of the triangular matrix would grow beyond all digits."""
    rule = RULES["deltanet"].replace(chunk_size=64)
    inputs = inputs_of(rule, B=1, T=64)
    inputs["k"] = inputs["k"][:, :1].expand_as(inputs["k"]).clone()
    inputs["step_size"] = torch.ones_like(inputs["step_size"])
    same(memorize(rule, **inputs, backend="triton"), memorize(rule, **inputs, backend="recurrent"))


@within
def test_it_is_a_sound_operation_of_torch():
    inputs = inputs_of(FULL, B=1)
    tokens = [inputs[n][0].clone() for n in ("q", "k", "v", "step_size", "log_momentum", "log_decay")]
    flat = inputs["initial"][0].mT.flatten(1).contiguous()
    state = [flat.expand(2, -1, -1).clone() for _ in range(2)]
    tensors = [x.requires_grad_() for x in (*tokens, flat, *state)]
    plan = triton_reading.plan_of(torch.tensor([0, 0]), torch.tensor([3, 18]), FULL.chunk_size)
    torch.library.opcheck(torch.ops.mnemonist.read_linear_memory.default, (*tensors, *plan, FULL.to_json(), 16, True))


@within
def test_flops_are_counted():
    from torch.utils.flop_counter import FlopCounterMode

    inputs = require_grad(inputs_of(FULL, B=1, T=32, K=16, V=20))
    with FlopCounterMode(display=False) as counter:
        y = memorize(FULL, **inputs, backend="triton").y
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    # Errors and answers of M, target and S, writes to M and S; scores, their use, the system, and G.
    assert forward == 2 * 32 * (8 * 16 * 20 + 16 * (2 * 16 + 2 * 20 + 3 * 16) + 16 * 16 // 3 + 16 * 16)
    assert counter.get_total_flops() == 2 * forward


@within
def test_what_it_cannot_read_is_refused():
    for rule, reason in (
        (RULES["mamba2"], "linear memories with the l2 objective"),
        (RULES["gla"], "linear memories with the l2 objective"),
        (FULL.replace(retention="channel", decay_to="zero"), "forgets per channel"),
        (FULL.replace(chunk_size=256), "chunk_size is 256"),
    ):
        with pytest.raises(ValueError, match=f"backend 'triton' cannot read rule .* here: .*{reason}.*; use auto"):
            memorize(rule, **inputs_of(rule, T=2), backend="triton")


@within
def test_half_precision_is_taken_as_it_comes():
    """In float16, which the interpreter multiplies exactly (not so bfloat16)."""
    inputs = inputs_of(FULL)
    half = {n: x.half() if n in ("q", "k", "v") else x for n, x in inputs.items()}
    half["q"].requires_grad_()
    read = memorize(FULL, **half, backend="triton")
    assert read.y.dtype == torch.float16 and read.state.weights[0].dtype == torch.float32
    torch.testing.assert_close(read.y.float(), memorize(FULL, **inputs, backend="recurrent").y, rtol=0.02, atol=0.02)
    read.y.sum().backward()
    assert half["q"].grad.dtype == torch.float16
