"""The Triton kernels equal the definition, derivatives included: interpreted, in float32, without a GPU."""

from __future__ import annotations

import logging

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
from pieces import assert_same_state, read_in_pieces, row, span
from test_equivalence import require_grad

from mnemonist.memory import MemoryRule, memorize, reading
from mnemonist.memory.kernels import triton_reading

pytestmark = needs_triton


@starts_interpreter
def test_all_of_this_interpreted():
    run_interpreted(__file__)


def deep(name: str, **choices) -> MemoryRule:
    return MemoryRule(name=name, **{"gradient_at": "chunk", "chunk_size": 16, "expansion": 2, "depth": 2, **choices})


FULL = deep("full", momentum=True, retention="head", decay_to="initial", norm=True, residual=True)
RULES = [
    deep("linear", depth=1),
    deep("linear-head", depth=1, retention="head"),
    deep("linear-momentum", depth=1, momentum=True, retention="head", decay_to="initial", objective="huber"),
    deep("ttt-linear", depth=1, residual=True, norm=True),
    deep("denominator", depth=1, objective="dot", denominator=True, feature_map="elu", retention="head"),
    deep("linear-before", depth=1, read_at="before", momentum=True, retention="head", decay_to="initial"),
    deep("gelu", activation="gelu", norm=True, residual=True),
    deep("relu-dot", activation="relu", objective="dot", norm=True, retention="head"),
    deep("tanh-momentum", activation="tanh", momentum=True, norm=True),
    deep("before-huber", read_at="before", objective="huber", huber_delta=0.3, momentum=True, norm=True),
    deep("before-initial", read_at="before", momentum=True, retention="head", decay_to="initial", chunk_size=11),
    FULL,
]


def gentle(rule, **sizes):
    """Inputs at which a deep memory of float32 can be compared: at large steps it is chaotic."""
    inputs = make_inputs(rule, **{"B": 2, "T": 21, "H": 1, "K": 16, "V": 16, "dtype": torch.float32, **sizes})
    return inputs | {"step_size": 0.2 * inputs["step_size"]}


@within
@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_it_equals_the_definition_with_derivatives(rule):
    same_derivatives(rule, gentle(rule))


@within
@pytest.mark.parametrize(
    ("K", "V", "expansion", "H"), [(24, 24, 4, 1), (16, 20, 3, 2), (5, 33, 1, 1)], ids=["blocks", "odd", "small"]
)
def test_widths_that_are_no_powers_of_two(K, V, expansion, H, monkeypatch):
    rule = deep("odd", expansion=expansion, norm=True, residual=K == V, momentum=True, retention="head")
    if K == 24:  # several blocks of hidden columns
        monkeypatch.setattr(triton_reading, "HIDDEN_BLOCK", 16)
    same_derivatives(rule, gentle(rule, K=K, V=V, H=H, T=19, B=1))


@within
@pytest.mark.parametrize("cuts", [(7, 14), (16, 5), (3, 4, 14)], ids=str)
def test_any_split_equals_the_whole_with_derivatives_through_the_state(cuts):
    inputs = gentle(FULL)
    results = []
    for backend, lengths in (("triton", cuts), ("recurrent", (21,))):
        given = require_grad(inputs)
        reads, state, start = [], None, 0
        for length in lengths:
            reads.append(memorize(FULL, **span(given, start, start + length), state=state, backend=backend))
            state, start = reads[-1].state, start + length
        y = torch.cat([read.y for read in reads], 1)
        last = [*state.weights, *state.momentum, *state.anchor]
        sum((p * torch.linspace(-1, 1, p.numel()).view(p.shape)).sum() for p in (y, *last)).backward()
        results.append((given, y, state))
    close(results[0][1], results[1][1], "y")
    assert_same_state(results[0][2], results[1][2], TOLERANCE)
    close_derivatives(results[0][0], results[1][0])


@within
def test_decoding_token_by_token_equals_the_whole():
    inputs = gentle(FULL, T=20)
    whole = memorize(FULL, **inputs, backend="recurrent")
    with torch.no_grad():
        y, state, _ = read_in_pieces(FULL, inputs, [14, *[1] * 6], backend="triton")
    close(y, whole.y)
    assert_same_state(state, whole.state, TOLERANCE)


@within
@pytest.mark.parametrize("rows", ["masked", "packed"])
def test_what_has_no_room_at_once_is_read_in_turns(rows, monkeypatch):
    inputs = gentle(FULL, B=3 if rows == "masked" else 1, T=70)
    more = {"cu_seqlens": torch.tensor([0, 3, 3, 60, 70])}
    if rows == "masked":
        more = {"mask": torch.rand(3, 70, generator=torch.Generator().manual_seed(0)) < 0.8}
        more["mask"][1] = False
    with torch.no_grad():
        whole = memorize(FULL, **inputs, **more, backend="recurrent")
        monkeypatch.setattr(triton_reading, "SLOT_BYTES", 1)
        turns = memorize(FULL, **inputs, **more, backend="triton")
        again = memorize(FULL, **inputs, **more, state=turns.state, backend="triton")
    close(turns.y, whole.y)
    assert_same_state(turns.state, whole.state, TOLERANCE)
    close(again.y, memorize(FULL, **inputs, **more, state=whole.state, backend="recurrent").y)


@within
def test_the_given_state_is_left_as_it_was_and_has_derivatives():
    inputs = gentle(FULL, T=5)
    before = memorize(FULL, **gentle(FULL, T=6, seed=1), backend="recurrent").state.detach()
    results = []
    for backend in ("triton", "recurrent"):
        state = before.map(lambda w: w.clone().requires_grad_())
        read = memorize(FULL, **inputs, state=state, backend=backend)
        scalar_of([read]).backward()
        given = [*state.weights, *state.momentum, *state.anchor]
        results.append([w.grad for w in given])
        assert all(torch.equal(w, b) for w, b in zip(given, [*before.weights, *before.momentum, *before.anchor]))  # noqa: B905
    close(*results)


@within
def test_padding_is_a_no_op():
    mask = torch.rand(3, 21, generator=torch.Generator().manual_seed(0)) < 0.6
    mask[2] = False  # a row of nothing but padding
    fast_in, slow_in = (require_grad(gentle(FULL, B=3)) for _ in range(2))
    fast = memorize(FULL, **fast_in, mask=mask, backend="triton")
    slow = memorize(FULL, **slow_in, mask=mask, backend="recurrent")
    close(fast.y, slow.y)
    assert_same_state(fast.state, slow.state, TOLERANCE)
    close(fast.surprise.loss[mask], slow.surprise.loss[mask])
    scalar_of([fast]).backward()
    scalar_of([slow]).backward()
    close_derivatives(fast_in, slow_in)


@within
@pytest.mark.parametrize("backend", ["triton", "chunked", "recurrent"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_packed_sequences_equal_separate_calls(backend, dtype):
    inputs, borders = gentle(FULL, B=1, T=29), [0, 9, 9, 29]
    packed = memorize(FULL, **inputs, cu_seqlens=torch.tensor(borders, dtype=dtype), backend=backend)
    again = memorize(FULL, **inputs, cu_seqlens=torch.tensor(borders, dtype=dtype), state=packed.state, backend=backend)
    assert packed.y.shape == (1, 29, 1, 16)
    assert packed.state.batch == 3
    for n, start, stop in ((0, 0, 9), (2, 9, 29)):
        alone = memorize(FULL, **span(inputs, start, stop), backend="recurrent")
        close(packed.y[:, start:stop], alone.y)
        close(packed.surprise.gradient_norm[:, start:stop], alone.surprise.gradient_norm)
        assert_same_state(packed.state.select(torch.tensor([n])), alone.state, TOLERANCE)
        on = memorize(FULL, **span(inputs, start, stop), state=alone.state, backend="recurrent")
        close(again.y[:, start:stop], on.y)
    close(packed.state.weights[0][1], inputs["initial"][0])  # the empty sequence wrote nothing


@within
def test_packed_sequences_are_refused_in_one_sentence():
    inputs = gentle(FULL, B=1, T=8)
    borders = torch.tensor([0, 3, 8])
    for wrong in (torch.tensor([0, 3, 9]), torch.tensor([1, 8]), torch.tensor([0, 5, 3, 8])):
        with pytest.raises(ValueError, match="must rise from 0 to the 8 tokens"):
            memorize(FULL, **inputs, cu_seqlens=wrong)
    with pytest.raises(ValueError, match="must be int32 or int64"):
        memorize(FULL, **inputs, cu_seqlens=borders.float())
    with pytest.raises(ValueError, match="exclude each other"):
        memorize(FULL, **inputs, cu_seqlens=borders, mask=torch.ones(1, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="into one row"):
        memorize(FULL, **gentle(FULL, B=2, T=8), cu_seqlens=borders)


@within
def test_later_tokens_change_no_bit_of_earlier_answers():
    inputs = gentle(FULL)
    changed = {n: x if n == "initial" else x.clone() for n, x in inputs.items()}
    for name in ("q", "k", "v", "step_size"):
        changed[name][:, 12:] *= 0.5
    one, other = (memorize(FULL, **x, backend="triton") for x in (inputs, changed))
    assert torch.equal(one.y[:, :12], other.y[:, :12])
    assert not torch.equal(one.y[:, 12:], other.y[:, 12:])


@within
@pytest.mark.parametrize("read_at", ["after", "before"])
def test_gates_of_zero_forget_everything_and_give_finite_derivatives(read_at):
    rule = FULL.replace(read_at=read_at)
    inputs = gentle(rule)
    for name, places in (("log_decay", (0, 5, 17)), ("log_momentum", (3, 5, 20))):
        inputs[name][:, list(places)] = -torch.inf
    same_derivatives(rule, inputs)


@within
@pytest.mark.parametrize("gate", ["step_size", "log_momentum", "log_decay"])
def test_a_gate_that_is_no_number_shows_in_the_answers(gate, monkeypatch):
    shows_a_gate_that_is_no_number(FULL, gentle(FULL), gate, monkeypatch)


@within
def test_a_derivative_that_explodes_is_shortened():
    inputs = require_grad(gentle(FULL, B=1, T=3))
    memorize(FULL, **inputs, backend="triton").state.weights[0].backward(torch.full((1, 1, 16, 32), 1e12))
    memorize(FULL, **(twin := require_grad(gentle(FULL, B=1, T=3))), backend="chunked").state.weights[0].backward(
        torch.full((1, 1, 16, 32), 1e12)
    )
    for w, other in zip(inputs["initial"], twin["initial"], strict=True):
        torch.testing.assert_close(w.grad, other.grad, rtol=1e-3, atol=0.01 * float(other.grad.abs().max()))


def operands(rule):
    """Positional arguments of the operation for two sequences, of 3 and 18 tokens, the first 2 tokens into a chunk."""
    inputs = gentle(rule, B=1)
    flat = torch.cat([w.flatten(1) for w in inputs["initial"]], -1)
    state = [flat.expand(2, -1, -1).clone() for _ in range(2)]
    tokens = [inputs[n][0].clone() for n in ("q", "k", "v", "step_size", "log_momentum", "log_decay")]
    tensors = [*tokens, flat, state[0], torch.zeros_like(state[0]), state[1]]
    plan = triton_reading.plan_of(torch.tensor([2, 0]), torch.tensor([3, 18]), rule.chunk_size)
    return [x.requires_grad_() for x in tensors], (*plan, rule.to_json(), 32, 16, True, True)


@within
def test_it_is_a_sound_operation_of_torch():
    tensors, rest = operands(FULL)
    torch.library.opcheck(torch.ops.mnemonist.read_deep_memory.default, (*tensors, *rest))
    y, *_, errors, outputs, weights_at, momentum_at = torch.ops.mnemonist.read_deep_memory(*tensors, *rest)
    q, k, v, theta, eta, decay, initial, weights, momentum, anchor = (x.detach() for x in tensors)
    torch.library.opcheck(
        torch.ops.mnemonist.read_deep_memory_backward.default,
        (torch.ones_like(y), weights, momentum, anchor, q, k, v, theta, eta, decay, initial, anchor,
         errors.detach(), outputs.detach(), weights_at.detach(), momentum_at.detach(), *rest[:2], *rest[3:6]),
    )  # fmt: skip


@within
def test_flops_are_counted():
    from torch.utils.flop_counter import FlopCounterMode

    tensors, rest = operands(FULL)
    with FlopCounterMode(display=False) as counter:
        y, *_ = torch.ops.mnemonist.read_deep_memory(*tensors, *rest)
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    P, C, widths = 16 * 32 + 32 * 16, 16, 16 + 32 + 32 + 16
    # At the anchor, error sent back, reads of M, target and S, writes to M and S; within a chunk: scores, their use, G.
    assert forward == 2 * 21 * (P + P // 2 + 3 * P + 2 * P + C * widths + C * C)
    assert counter.get_total_flops() == 2 * forward


@within
def test_what_it_cannot_read_is_refused_or_read_through_torch(monkeypatch, caplog):
    for rule, dtype, reason in (
        (deep("three", depth=3), torch.float32, "3 layers"),
        (deep("channels", retention="channel"), torch.float32, "forgets per channel"),
        (MemoryRule(name="each", depth=2), torch.float32, "gradient at every token"),
        (FULL, torch.float64, "float64"),
        (FULL.replace(chunk_size=256), torch.float32, "chunk_size is 256"),
    ):
        with pytest.raises(ValueError, match=f"backend 'triton' cannot read rule .* here: .*{reason}.*; use auto"):
            memorize(rule, **gentle(rule, dtype=dtype, T=2), backend="triton")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="not on an NVIDIA GPU"):
        memorize(FULL, **gentle(FULL, T=2), backend="triton")

    class OnGpu:  # all that the choice looks at
        is_cuda, device, dtype, shape = True, torch.device("cuda"), torch.float32, (1, 1, 1, 16)

    assert reading._choose(FULL, "auto", OnGpu, OnGpu, torch.float32, True) == "triton"
    reading._say_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="mnemonist"):
        for _ in range(2):
            assert reading._choose(deep("three", depth=3), "auto", OnGpu, OnGpu, torch.float32, True) == "chunked"
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert memorize(FULL, **gentle(FULL, T=2)).backend == "chunked"


@within
def test_half_precision_is_taken_as_it_comes():
    """In float16, which the interpreter multiplies exactly (not so bfloat16)."""
    inputs = gentle(FULL)
    half = {n: x.half() if n in ("q", "k", "v") else x for n, x in inputs.items()}
    half["q"].requires_grad_()
    read = memorize(FULL, **half, backend="triton")
    assert read.y.dtype == torch.float16
    assert read.state.weights[0].dtype == torch.float32
    torch.testing.assert_close(read.y.float(), memorize(FULL, **inputs, backend="recurrent").y, rtol=0.02, atol=0.02)
    read.y.sum().backward()
    assert half["q"].grad.dtype == torch.float16


@within
def test_rows_of_different_phases():
    inputs = gentle(FULL, T=6)
    states = [memorize(FULL, **row(gentle(FULL, T=t, seed=3), 0), backend="recurrent").state for t in (5, 16)]
    joined = states[0].map(lambda w: w.repeat(2, *[1] * (w.dim() - 1)))
    groups = {
        g: tuple(torch.cat(pair) for pair in zip(*(getattr(s, g) for s in states), strict=True))
        for g in ("weights", "momentum", "anchor")
    }
    joined = type(joined)(FULL, **groups, phase=torch.cat([s.phase for s in states]))
    same(
        memorize(FULL, **inputs, state=joined, backend="triton"),
        memorize(FULL, **inputs, state=joined, backend="recurrent"),
    )
