"""Causal attention against its definition, written token by token in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnemonist.models import CausalAttention
from mnemonist.models.attention import AttentionState

WIDTH, HEADS, HEAD_DIM = 6, 2, 4
BASE = 100.0
few = settings(max_examples=12, deadline=None, derandomize=True, database=None)
kinds = pytest.mark.parametrize(
    ("window", "persistent"), [(None, 0), (None, 3), (1, 0), (1, 2), (2, 0), (5, 0), (5, 3), (64, 1)]
)


def layer(window: int | None, persistent: int = 0, dtype: torch.dtype = torch.float64) -> CausalAttention:
    torch.manual_seed(0)
    attention = CausalAttention(WIDTH, HEADS, HEAD_DIM, window=window, persistent_tokens=persistent, rope_base=BASE)
    with torch.no_grad():
        attention.in_proj.weight.mul_(3)  # so that attention is far from even
    return attention.to(dtype).eval()


def tokens(B: int, T: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(B, T, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotated(x: torch.Tensor, position: int) -> torch.Tensor:
    """``[D]``: the pair of channels (i, i + D / 2), as a complex number, turned by ``position * base**(-2i / D)``."""
    half = HEAD_DIM // 2
    pairs = torch.complex(x[:half], x[half:])
    angles = torch.tensor([position * BASE ** (-2 * i / HEAD_DIM) for i in range(half)], dtype=torch.float64)
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag])


def definition(attention: CausalAttention, x_TE: torch.Tensor, mask_T: torch.Tensor | None = None) -> torch.Tensor:
    """One row, one token at a time; padding is skipped and its outputs are zero."""
    real = [t for t in range(len(x_TE)) if mask_T is None or mask_T[t]]
    project = attention.in_proj.weight.view(3, HEADS, HEAD_DIM, WIDTH)
    q, k, v = ([[project[part, h] @ x for h in range(HEADS)] for x in x_TE] for part in range(3))
    always = [] if attention.persistent is None else list(attention.persistent)
    outputs = [torch.zeros(WIDTH, dtype=x_TE.dtype)] * len(x_TE)
    for place, t in enumerate(real):
        heads = []
        for h in range(HEADS):
            first = 0 if attention.window is None else max(0, place - attention.window + 1)
            keys = [project[1, h] @ p for p in always]
            values = [project[2, h] @ p for p in always]
            for j in range(first, place + 1):
                keys.append(rotated(k[real[j]][h], j))
                values.append(v[real[j]][h])
            query = rotated(q[t][h], place)
            # A persistent token has no position: it is met by the query as it stands.
            scores = torch.stack([query @ key for key in keys]) / math.sqrt(HEAD_DIM)
            heads.append(torch.softmax(scores, 0) @ torch.stack(values))
        outputs[t] = attention.out_proj(torch.cat(heads))
    return torch.stack(outputs)


def in_pieces(attention, x, lengths, mask=None):
    state, answers = None, []
    for part in torch.arange(x.shape[1]).split(lengths):
        y, state = attention(x[:, part], state, None if mask is None else mask[:, part])
        answers.append(y)
    return torch.cat(answers, 1), state


@kinds
@pytest.mark.parametrize("T", [1, 4, 5, 6, 17])
def test_it_is_the_definition(window, persistent, T):
    attention, x = layer(window, persistent), tokens(2, T)
    y, state = attention(x)
    expected = torch.stack([definition(attention, row) for row in x])
    assert torch.allclose(y, expected, rtol=0, atol=1e-12)
    assert state.length.tolist() == [T, T]


@kinds
@pytest.mark.parametrize("lengths", [[13], [1] * 13, [5, 5, 3], [2, 11], [4, 1, 8]])
def test_so_are_its_gradients(window, persistent, lengths):
    """To the input and to every weight, through states too: each term has its own sign and size."""
    attention, x = layer(window, persistent), tokens(1, 13).requires_grad_()
    weights = torch.randn(13, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = [x, *attention.parameters()]
    expected = torch.autograd.grad((definition(attention, x[0]) * weights).sum(), wanted)
    found = torch.autograd.grad((in_pieces(attention, x, lengths)[0][0] * weights).sum(), wanted)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-11)


@kinds
@few
@given(
    lengths=st.lists(st.sampled_from([1, 2, 4, 5, 6, 11, 23]), min_size=1, max_size=4),
    shares=st.tuples(st.sampled_from([0.0, 0.2, 0.7, 1.0]), st.sampled_from([0.0, 0.5, 0.9])),
    side=st.sampled_from(["left", "right", "middle", "anywhere"]),
)
def test_pieces_with_padding_anywhere_are_the_definition(window, persistent, lengths, shares, side):
    attention, T = layer(window, persistent), sum(lengths)
    x, place = tokens(2, T), torch.arange(T)
    rows = []
    for b, share in enumerate(shares):
        n = round(share * T)
        rows.append(
            {
                "left": place >= n,
                "right": place < T - n,
                "middle": (place < (T - n) // 2) | (place >= (T - n) // 2 + n),
                "anywhere": torch.rand(T, generator=torch.Generator().manual_seed(b)) >= share,
            }[side]
        )
    mask = torch.stack(rows)
    y, state = in_pieces(attention, x, lengths, mask)
    expected = torch.stack([definition(attention, row, keep) for row, keep in zip(x, mask, strict=True)])
    assert torch.allclose(y, expected, rtol=0, atol=1e-12)
    assert state.length.tolist() == mask.sum(1).tolist()


def test_a_row_of_padding_reads_nothing():
    """It yields zeros, and the stream goes on afterwards as if nothing had been there."""
    x, mask = tokens(2, 9), torch.tensor([[True] * 9, [False] * 9])
    for window in (None, 1, 4, 9):
        attention = layer(window, 2)
        y, state = attention(x, None, mask)
        assert torch.equal(y[1], torch.zeros_like(y[1]))
        both, state = attention(torch.zeros_like(x), state, torch.zeros_like(mask))
        assert torch.equal(both, torch.zeros_like(both))
        assert state.length.tolist() == [9, 0]
        after = attention(tokens(2, 3, seed=1), state)[0]
        fresh = attention(tokens(2, 3, seed=1)[1:])[0]
        assert torch.allclose(after[1:], fresh, rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [1, 2, 7])
def test_with_a_window_the_state_is_constant(window):
    attention = layer(window, 2, torch.float32)
    with torch.no_grad():
        _, state = attention(tokens(2, 1).float())
        shape, size = state.keys.shape, state.nbytes
        assert shape == state.values.shape == (2, window - 1, HEADS, HEAD_DIM)
        assert size == 2 * math.prod(shape) * 4 + 2 * 8
        mask = torch.ones(2, 6, dtype=torch.bool)
        mask[1, 2:] = False
        for T, padding in ((1, None), (6, mask), (40, None), (6, ~mask), (3, None)):
            _, state = attention(tokens(2, T).float(), state, padding)
            assert (state.keys.shape, state.nbytes) == (shape, size)


def test_a_window_retains_nothing_of_the_piece():
    """The state must not be a view that keeps a whole piece of text in memory while it lives."""
    _, state = layer(4, 0)(tokens(1, 4096))
    held = state.keys.untyped_storage().nbytes()
    assert held < 4096 * HEADS * HEAD_DIM * 8 / 10


def test_full_attention_keeps_every_real_token_and_no_other():
    attention = layer(None, 2)
    mask = torch.tensor([[True] * 5, [True, False] * 2 + [False]])
    _, state = attention(tokens(2, 5), None, mask)
    assert state.keys.shape[1] == 5
    assert state.length.tolist() == [5, 2]
    _, alone = attention(tokens(2, 1, seed=1)[1:], state.select(torch.tensor([1])))
    assert alone.length.tolist() == [3]
    assert alone.keys.shape[1] == 3


def test_a_token_far_behind_the_window_is_gone():
    attention, x = layer(5, 2, torch.float32), tokens(1, 30).float()
    for t in (0, 3, 17):
        changed = x.clone()
        changed[0, t] += 1
        differs = (attention(x)[0] != attention(changed)[0]).any(-1)[0]
        assert differs.nonzero().flatten().tolist() == list(range(t, t + 5))


@pytest.mark.parametrize(("window", "T"), [(None, 700), (5, 33), (64, 700), (700, 700), (1000, 700)])
def test_the_past_is_the_same_to_the_bit_whatever_comes(window, T):
    attention, x = layer(window, 3, torch.float32), tokens(2, T).float()
    before = attention(x)[0]
    for t in (0, 1, T // 2, T - 1):
        changed = x.clone()
        changed[:, t:] = 10 * torch.randn(2, T - t, WIDTH, generator=torch.Generator().manual_seed(t))
        after = attention(changed)[0]
        assert torch.equal(before[:, :t], after[:, :t])
        assert not torch.equal(before[:, t], after[:, t])


def moved(attention: CausalAttention, state: AttentionState, by: int) -> AttentionState:
    """The same tokens read ``by`` positions later: their keys turned on by the angle between."""
    angle = by * torch.tensor(attention.frequencies, dtype=torch.float64)
    half = HEAD_DIM // 2
    keys = state.keys.double()
    pairs = torch.complex(keys[..., :half], keys[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    keys = torch.cat([pairs.real, pairs.imag], -1).to(state.keys.dtype)
    return AttentionState(keys, state.values, state.length + by)


@pytest.mark.parametrize("lengths", [[12], [1] * 12, [5, 7]])
def test_the_millionth_token_is_read_as_exactly_as_the_first(lengths):
    """Only distances matter. With angles in float32 it would be off by more than a thousandth."""
    attention, x = layer(6, 0, torch.float32), tokens(2, 20).float()
    _, early = attention(x[:, :8])
    late = moved(attention, early, 1_000_000)
    for part in x[:, 8:].split(lengths, 1):
        y, early = attention(part, early)
        z, late = attention(part, late)
        assert torch.allclose(y, z, rtol=0, atol=1e-5)
    assert late.length.tolist() == [1_000_020] * 2
    assert torch.allclose(moved(attention, early, 1_000_000).keys, late.keys, rtol=0, atol=1e-5)


def test_rows_at_very_different_positions_read_side_by_side():
    """A counter for each row: a state far into one text next to one that begins."""
    attention, x = layer(4, 2, torch.float32), tokens(2, 11).float()
    _, empty = attention(x[:1, :1], None, torch.zeros(1, 1, dtype=torch.bool))
    begun = attention(x[1:, :5])[1]
    far = moved(attention, begun, 123_456)
    joined = AttentionState(*(torch.cat([getattr(s, n) for s in (empty, far)]) for n in ("keys", "values", "length")))
    y, state = attention(x[:, 5:], joined)
    assert torch.allclose(y[:1], attention(x[:1, 5:])[0], rtol=0, atol=1e-5)
    assert torch.allclose(state.values[1:], attention(x[1:, 5:], begun)[1].values, rtol=0, atol=1e-5)
    assert state.length.tolist() == [6, 123_456 + 11]
    alone, _ = attention(x[1:, 5:], far)
    assert torch.allclose(y[1:], alone, rtol=0, atol=1e-5)


def test_persistent_tokens_have_no_position_of_their_own():
    """They alone make the position of a query show: without a word before it, the same token reads them differently."""
    attention, x = layer(1, 2), tokens(1, 1).expand(1, 3, WIDTH)
    y, _ = attention(x)
    assert not torch.allclose(y[:, 0], y[:, 1])
    attention.persistent = None
    y, _ = attention(x)
    assert torch.allclose(y[:, 0], y[:, 2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [None, 4])
def test_rows_can_be_chosen_again_and_again(window):
    attention, x = layer(window, 2), tokens(3, 9)
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[1, 2:] = False
    _, state = attention(x, None, mask)
    before = [t.clone() for t in (state.keys, state.values, state.length)]
    rows = torch.tensor([1, 1, 2, 0])
    more = tokens(4, 6, seed=1)
    y, _ = attention(more, state.select(rows))
    for place, row in enumerate(rows):
        expected, _ = attention(more[place : place + 1], attention(x[row : row + 1, mask[row]])[1])
        assert torch.allclose(y[place : place + 1], expected, rtol=0, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip((state.keys, state.values, state.length), before, strict=True))


@pytest.mark.parametrize("window", [None, 4])
def test_generation_takes_one_token_at_a_time_without_gradients(window):
    attention, x = layer(window, 2, torch.float32), tokens(2, 21).float()
    whole = attention(x)[0]
    with torch.inference_mode():
        state, answers = None, []
        for t in range(21):
            y, state = attention(x[:, t : t + 1], state)
            answers.append(y)
    assert state is not None
    assert torch.allclose(torch.cat(answers, 1), whole, rtol=0, atol=1e-5)
    with torch.no_grad():  # what was read there can be read on elsewhere
        assert attention(x, state)[0].isfinite().all()


@pytest.mark.parametrize("window", [None, 4])
def test_gradients_flow_through_a_state_until_it_is_cut(window):
    attention, x = layer(window), tokens(1, 4).requires_grad_()
    _, state = attention(x)
    more = tokens(1, 2, seed=1)
    (gradient,) = torch.autograd.grad(attention(more, state)[0].sum(), x, allow_unused=True)
    assert gradient is not None
    assert torch.equal(gradient[0, 0] != 0, torch.full((WIDTH,), window is None))
    cut = state.detach()
    assert torch.equal(cut.keys, state.keys)
    assert torch.equal(cut.length, state.length)
    assert attention(more, cut)[0].grad_fn is not None  # its own weights still learn
    assert torch.autograd.grad(attention(more, cut)[0].sum(), x, allow_unused=True) == (None,)


@pytest.mark.parametrize("window", [None, 4])
def test_half_precision_reads_alike(window):
    """Activations in bfloat16, and float32 weights under autocast, in pieces and whole."""
    x = tokens(2, 15).float()
    exact = layer(window, 2, torch.float32)(x)[0]
    low = layer(window, 2, torch.bfloat16)
    y, _ = in_pieces(low, x.bfloat16(), [7, 1, 7])
    assert y.dtype == torch.bfloat16
    assert (y.float() - exact).abs().max() < 0.05 * exact.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = in_pieces(layer(window, 2, torch.float32), x, [7, 1, 7])
    assert (y.float() - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize(
    "sizes",
    [
        {"width": 0},
        {"heads": 0},
        {"head_dim": 0},
        {"head_dim": 3},
        {"window": 0},
        {"window": -1},
        {"persistent_tokens": -1},
    ],
)
def test_impossible_sizes(sizes):
    with pytest.raises(ValueError, match="must be positive"):
        CausalAttention(**{"width": 8, "heads": 2, "head_dim": 4, **sizes})


def test_impossible_input():
    attention, x = layer(4), tokens(2, 3)
    _, state = attention(x)
    for nothing in (x[:, :0], x[:0]):
        with pytest.raises(ValueError, match="nothing to read"):
            attention(nothing, state)
    with pytest.raises(ValueError, match=r"2 rows but the batch has 1; use state.select"):
        attention(x[:1], state)
    for mask in (torch.ones(2, 4, dtype=torch.bool), torch.ones(3, dtype=torch.bool), torch.ones(2, 3)):
        with pytest.raises(ValueError, match=r"mask is .*; it must be bool \[2, 3\]"):
            attention(x, None, mask)
