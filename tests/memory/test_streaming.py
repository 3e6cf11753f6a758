"""The streaming contract: cut anywhere, pad anywhere, and nothing changes."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import make_inputs
from pieces import (
    PER_TOKEN,
    ROWS,
    assert_bit_equal_state,
    assert_same_state,
    backends_of,
    by_token,
    read_in_pieces,
    row,
    span,
    surprise_of,
    tokens,
)

from mnemonist.memory import RULES, MemoryRule, MemoryState, memorize


def rules_under_test() -> list[MemoryRule]:
    titans, linear = RULES["titans"], RULES["titans-linear"]
    rows = [rule.replace(chunk_size=5) for rule in ROWS]
    bare = titans.replace(residual=False, norm=False, expansion=1.5)
    channel = {"retention": "channel", "momentum": True}
    others = {
        "titans-chunk-1": titans.replace(chunk_size=1),
        "titans-chunk-16": titans.replace(chunk_size=16),
        "ttt-mlp-chunk-1": RULES["ttt-mlp"].replace(chunk_size=1),
        "gated-deltanet-chunk-1": RULES["gated-deltanet"].replace(chunk_size=1),
        "titans-linear-chunk-16": linear.replace(chunk_size=16),
        "depth-3": bare.replace(depth=3, chunk_size=5),
        "depth-4": bare.replace(depth=4, activation="tanh", chunk_size=16),
        "depth-2-per-token": bare.replace(gradient_at="previous", chunk_size=5),
        "huber-chunk": bare.replace(objective="huber", huber_delta=0.5, chunk_size=5),
        "huber-linear": linear.replace(objective="huber", huber_delta=0.5, chunk_size=5),
        "channel-momentum-linear": linear.replace(**channel, chunk_size=5),
        "channel-momentum-deep": bare.replace(**channel, chunk_size=5),
        "decayed": linear.replace(gradient_at="decayed", chunk_size=5),
        "initial-linear": linear.replace(decay_to="initial", chunk_size=5),
        "initial-decayed-channel": linear.replace(**channel, decay_to="initial", gradient_at="decayed", chunk_size=16),
        "before-linear": linear.replace(read_at="before", chunk_size=5),
        "before-deep": titans.replace(read_at="before", chunk_size=5),
        "zero-deep": bare.replace(decay_to="zero", chunk_size=5),
        "window-momentum": titans.replace(window=3, chunk_size=5),
        "window-per-token": bare.replace(gradient_at="previous", window=4, chunk_size=5),
        "window-channel": bare.replace(**channel, window=7, chunk_size=5),
        "writes-linear": linear.replace(writes=3, chunk_size=5),
        "writes-before": linear.replace(writes=2, read_at="before", chunk_size=5),
        "writes-deep": titans.replace(writes=2, chunk_size=5),
    }
    return rows + [rule.replace(name=name) for name, rule in others.items()]


RULES_UNDER_TEST = rules_under_test()
each_rule = pytest.mark.parametrize("rule", RULES_UNDER_TEST, ids=lambda r: r.name)
few = settings(max_examples=12, deadline=None, derandomize=True, database=None)
fewer = settings(max_examples=4, deadline=None, derandomize=True, database=None)
# Single tokens, pieces around a chunk of 5 and of 16, pieces of several chunks.
lengths = st.lists(st.sampled_from([1, 2, 4, 5, 6, 11, 17]), min_size=2, max_size=5)
seeds = st.integers(0, 1000)


def in_double(inputs):
    """The same inputs; `initial` is a list of tensors."""
    return {n: [w.double() for w in x] if isinstance(x, list) else x.double() for n, x in inputs.items()}


def check_cuts(rule, cut, seed, dtype, tolerance):
    inputs = make_inputs(rule, T=sum(cut), K=4, V=4, seed=seed, dtype=dtype)
    whole = memorize(rule, **inputs)
    y, state, surprise = read_in_pieces(rule, inputs, cut)
    if dtype == torch.float32:
        # Some random memories magnify rounding a hundredfold: a cut may cost what single precision costs the whole.
        tolerance = max(tolerance, 4 * float((whole.y - memorize(rule, **in_double(inputs)).y).abs().max()))
    torch.testing.assert_close(y, whole.y, rtol=tolerance, atol=tolerance)
    assert_same_state(state, whole.state, tolerance)
    expected = surprise_of(whole)
    assert surprise.keys() == expected.keys()
    for name, values in surprise.items():
        torch.testing.assert_close(values, expected[name], rtol=tolerance, atol=tolerance)


@each_rule
@few
@given(cut=lengths, seed=seeds)
def test_any_cut_is_the_whole(rule, cut, seed):
    check_cuts(rule, cut, seed, torch.float64, 1e-10)


@each_rule
@fewer
@given(cut=lengths, seed=seeds)
def test_any_cut_is_the_whole_in_single_precision(rule, cut, seed):
    check_cuts(rule, cut, seed, torch.float32, 1e-5)


@each_rule
def test_token_by_token_is_the_whole(rule):
    check_cuts(rule, [1] * 18, 3, torch.float64, 1e-10)


@st.composite
def masks(draw, rows, length):
    """``[rows, length]``, each row padded in its own way."""
    kinds = ("none", "all", "left", "right", "middle", "anywhere")
    mask = torch.ones(rows, length, dtype=torch.bool)
    for b in range(rows):
        kind = draw(st.sampled_from(kinds))
        start, stop = sorted((draw(st.integers(0, length)), draw(st.integers(0, length))))
        if kind == "all":
            mask[b] = False
        elif kind == "left":
            mask[b, :start] = False
        elif kind == "right":
            mask[b, stop:] = False
        elif kind == "middle":
            mask[b, start:stop] = False
        elif kind == "anywhere":
            mask[b] = torch.tensor(draw(st.lists(st.booleans(), min_size=length, max_size=length)))
    return mask


@st.composite
def padded_streams(draw):
    cut = draw(lengths)
    if draw(st.booleans()):
        cut = [sum(cut)]
    mask = draw(masks(3, sum(cut)))
    if len(cut) > 1 and draw(st.booleans()):  # a piece that is padding for everyone
        mask[:, cut[0] : cut[0] + cut[1]] = False
    return cut, mask, draw(seeds)


def poison(inputs, mask):
    """The inputs with NaN in everything that stands at padding."""
    poisoned = {n: x.clone() for n, x in inputs.items() if n in PER_TOKEN}
    for x in poisoned.values():
        by_token(x, mask.shape[1])[~mask] = float("nan")
    return inputs | poisoned


@each_rule
@few
@given(stream=padded_streams())
def test_padding_is_a_no_op_whatever_stands_there(rule, stream):
    cut, mask, seed = stream
    inputs = make_inputs(rule, B=3, T=sum(cut), K=4, V=4, seed=seed)
    y, state, surprise = read_in_pieces(rule, poison(inputs, mask), cut, mask=mask)
    assert torch.equal(y[~mask], torch.zeros_like(y[~mask]))
    for b in range(3):
        mine = state.select(torch.tensor([b]))
        if not mask[b].any():
            assert_bit_equal_state(mine, MemoryState.fresh(rule, start_of(rule, inputs), 1))
            continue
        alone = memorize(rule, **tokens(row(inputs, b), mask[b]))
        torch.testing.assert_close(y[b, mask[b]], alone.y[0], rtol=1e-10, atol=1e-10)
        assert_same_state(mine, alone.state, 1e-10)
        for name, values in surprise_of(alone).items():
            torch.testing.assert_close(surprise[name][b, mask[b]], values[0], rtol=1e-10, atol=1e-10)


def start_of(rule, inputs):
    """Initial weights as the state holds them: one more output channel under a denominator; sums of an optimum."""
    if rule.denominator:
        return [torch.cat([w, torch.zeros_like(w[..., :1])], dim=-1) for w in inputs["initial"]]
    if rule.step == "optimum":
        (w,) = inputs["initial"]
        eye = torch.eye(w.shape[1], dtype=w.dtype).expand(w.shape[0], -1, -1)
        return [torch.cat([rule.ridge * w, rule.ridge * eye], dim=-1)]
    return inputs["initial"]


@pytest.mark.parametrize("backend", ["auto", "recurrent"])
@each_rule
def test_padding_sends_no_gradient_and_no_nan(rule, backend):
    mask = torch.tensor([[True, False, True, False, True, True, True], [False, False, True, True, True, True, False]])
    inputs = poison(make_inputs(rule, T=7, K=4, V=4), mask)
    leaves = {n: x.clone().requires_grad_() for n, x in inputs.items() if n in PER_TOKEN}
    read = memorize(rule, **(inputs | leaves), mask=mask, backend=backend)
    (read.y.square().sum() + sum(w.square().sum() for w in read.state.weights)).backward()
    for name, leaf in leaves.items():
        grad = by_token(leaf.grad, 7)
        assert torch.equal(grad[~mask], torch.zeros_like(grad[~mask])), name
        assert grad.isfinite().all(), name
        assert grad[mask].abs().sum() > 0, name


def ragged(rule, inputs):
    """The state after reading 3, 7 and 0 tokens of three rows: phases differ."""
    mask = torch.arange(7) < torch.tensor([3, 7, 0])[:, None]
    return memorize(rule, **span(inputs, 0, 7), mask=mask)


@pytest.mark.parametrize("backend", ["auto", "recurrent"])
@each_rule
def test_a_piece_of_padding_leaves_every_bit(rule, backend):
    inputs = make_inputs(rule, B=3, T=16, K=4, V=4, dtype=torch.float32)
    before = ragged(rule, inputs).state
    nothing = torch.zeros(3, 9, dtype=torch.bool)
    after = memorize(rule, **span(inputs, 7, 16), state=before, mask=nothing, backend=backend)
    assert_bit_equal_state(after.state, before)
    assert torch.equal(after.y, torch.zeros_like(after.y))


@each_rule
def test_rows_in_the_middle_of_different_chunks_read_on(rule):
    inputs = make_inputs(rule, B=3, T=18, K=4, V=4)
    first = ragged(rule, inputs)
    if not rule.per_token:
        assert first.state.phase.tolist() == [n * rule.writes % rule.chunk_size for n in (3, 7, 0)]
    second = memorize(rule, **span(inputs, 7, 18), state=first.state)
    for b, length in enumerate((3, 7, 0)):
        real = torch.tensor([*range(length), *range(7, 18)])
        alone = memorize(rule, **tokens(row(inputs, b), real))
        torch.testing.assert_close(second.y[b], alone.y[0, length:], rtol=1e-10, atol=1e-10)
        assert_same_state(second.state.select(torch.tensor([b])), alone.state, 1e-10)


@each_rule
def test_selected_rows_read_on_as_they_would_have(rule):
    inputs = make_inputs(rule, B=3, T=18, K=4, V=4)
    state = ragged(rule, inputs).state
    rows = torch.tensor([2, 0, 0, 1])
    rest = span(inputs, 7, 18)
    together = memorize(rule, **rest, state=state)
    chosen = {n: x[rows] if n in PER_TOKEN else x for n, x in rest.items()}
    read = memorize(rule, **chosen, state=state.select(rows))
    torch.testing.assert_close(read.y, together.y[rows], rtol=1e-10, atol=1e-10)
    assert_same_state(read.state, together.state.select(rows), 1e-10)


@each_rule
def test_packed_sequences_are_read_as_if_each_were_alone(rule):
    inputs = make_inputs(rule, B=1, T=18, K=4, V=4)
    borders = (0, 3, 3, 11, 18)
    packed = memorize(rule, **inputs, cu_seqlens=torch.tensor(borders))
    for n, (start, stop) in enumerate(itertools.pairwise(borders)):
        mine = packed.state.select(torch.tensor([n]))
        if start == stop:
            assert_bit_equal_state(mine, MemoryState.fresh(rule, start_of(rule, inputs), 1))
            continue
        alone = memorize(rule, **span(inputs, start, stop))
        torch.testing.assert_close(packed.y[0, start:stop], alone.y[0], rtol=1e-10, atol=1e-10)
        assert_same_state(mine, alone.state, 1e-10)
        for name, values in surprise_of(alone).items():
            torch.testing.assert_close(surprise_of(packed)[name][0, start:stop], values[0], rtol=1e-10, atol=1e-10)


@each_rule
def test_two_forks_read_on_without_meeting(rule):
    inputs = make_inputs(rule, T=18, K=4, V=4)
    other = make_inputs(rule, T=18, K=4, V=4, seed=9) | {"initial": inputs["initial"]}
    state = memorize(rule, **span(inputs, 0, 7)).state
    expected = memorize(rule, **span(inputs, 7, 18), state=state)
    fork = state.fork()
    memorize(rule, **span(other, 7, 18), state=fork)
    for tensor in (*fork.weights, *fork.momentum, *fork.anchor):
        tensor.zero_()
    again = memorize(rule, **span(inputs, 7, 18), state=state)
    assert torch.equal(again.y, expected.y)
    assert_bit_equal_state(again.state, expected.state)


@each_rule
def test_gradients_cross_a_cut_until_the_state_is_detached(rule):
    inputs = make_inputs(rule, T=16, K=4, V=4)

    def gradient_of_the_rest(cut, detach):
        leaf = inputs["k"].clone().requires_grad_()
        piece = inputs | {"k": leaf}
        if not cut:
            y = memorize(rule, **piece).y[:, 7:]
        else:
            state = memorize(rule, **span(piece, 0, 7)).state
            y = memorize(rule, **span(piece, 7, 16), state=state.detach() if detach else state).y
        return by_token(torch.autograd.grad(y.square().sum(), leaf)[0], 16)

    whole, pieces, detached = (gradient_of_the_rest(*how) for how in ((0, 0), (1, 0), (1, 1)))
    torch.testing.assert_close(pieces, whole, rtol=1e-9, atol=1e-9)
    assert whole[:, :7].abs().sum() > 0
    assert torch.equal(detached[:, :7], torch.zeros_like(detached[:, :7]))
    assert detached[:, 7:].abs().sum() > 0


@each_rule
def test_a_state_goes_from_one_backend_to_another(rule):
    inputs = make_inputs(rule, T=18, K=4, V=4)
    whole = memorize(rule, **inputs)
    for first in backends_of(rule):
        for second in backends_of(rule):
            state = memorize(rule, **span(inputs, 0, 7), backend=first).state
            rest = memorize(rule, **span(inputs, 7, 18), state=state, backend=second)
            torch.testing.assert_close(rest.y, whole.y[:, 7:], rtol=1e-10, atol=1e-10)
            assert_same_state(rest.state, whole.state, 1e-10)


def test_surprise_is_only_reported_when_asked_for():
    for rule in (RULES["titans"], RULES["titans-linear"], RULES["titans-linear"].replace(objective="huber")):
        inputs = make_inputs(rule)
        with_it, without = memorize(rule, **inputs), memorize(rule, **inputs, surprise=False)
        assert without.surprise is None
        assert torch.equal(with_it.y, without.y)
        assert not any(x.requires_grad for x in surprise_of(with_it).values())
