"""Attention equals a softmax written token by token, and keeps the streaming contract."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mnemonist.models.attention import AttentionState, CausalAttention, frequencies
from mnemonist.models.normalisation import RMSNorm

E, H, D = 6, 2, 4
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}

few = settings(max_examples=12, deadline=None, derandomize=True, database=None)
cuts = st.lists(st.sampled_from([1, 1, 2, 3, 4, 5, 8, 13]), min_size=2, max_size=6)
seeds = st.integers(0, 1000)
windows = pytest.mark.parametrize("window", [None, 1, 4], ids=["full", "window-1", "window-4"])
persistents = pytest.mark.parametrize("persistent", [0, 3], ids=["plain", "persistent"])
kinds = pytest.mark.parametrize(
    "kind", [{}, {"kv_heads": 1}, {"norm_eps": 1e-3, "bias": True}], ids=["own", "shared", "normed"]
)
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def layer(window: int | None, persistent: int = 0, dtype: torch.dtype = torch.float64, **kind: Any) -> CausalAttention:
    torch.manual_seed(0)
    made = CausalAttention(E, H, D, window=window, persistent_tokens=persistent, rope_base=100.0, **kind)
    with torch.no_grad():
        made.in_proj.weight.mul_(3)  # sharp enough that every key matters
        for norm in (made.q_norm, made.k_norm):
            if norm is not None:
                norm.weight.mul_(torch.linspace(1, 3, D))
    return made.to(dtype)


def text(B: int, T: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(B, T, E, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def padding(T: int, seed: int) -> Tensor:
    """Four rows: no padding, padding on the left and right, padding anywhere, nothing else."""
    mask = torch.rand(4, T, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[0], mask[3] = True, False
    mask[1] = True
    mask[1, : seed % T] = False
    mask[1, T - seed % 3 :] = False
    return mask


def reference(made: CausalAttention, x_BTE: Tensor, mask_BT: Tensor) -> Tensor:
    """One token, one head at a time; rotation as multiplication by a complex number."""
    G = made.kv_heads
    heads_of = (H, G, G)
    Wq, Wk, Wv = (w.view(-1, D, E) for w in made.in_proj.weight.split([n * D for n in heads_of]))
    bias = torch.zeros(sum(heads_of) * D) if made.in_proj.bias is None else made.in_proj.bias
    bq, bk, bv = (b.view(-1, D) for b in bias.double().split([n * D for n in heads_of]))
    speed = 100.0 ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)

    def rotate(u_D: Tensor, position: int) -> Tensor:
        turned = torch.complex(u_D[: D // 2], u_D[D // 2 :]) * torch.polar(torch.ones_like(speed), speed * position)
        return torch.cat([turned.real, turned.imag])

    def normed(u_D: Tensor, norm: RMSNorm | None) -> Tensor:
        return u_D if norm is None else u_D / (u_D.square().mean() + norm.eps).sqrt() * norm.weight

    def query(x_E: Tensor, h: int) -> Tensor:
        return normed(Wq[h] @ x_E + bq[h], made.q_norm)

    def key(x_E: Tensor, h: int) -> Tensor:
        g = h * G // H
        return normed(Wk[g] @ x_E + bk[g], made.k_norm)

    def value(x_E: Tensor, h: int) -> Tensor:
        g = h * G // H
        return Wv[g] @ x_E + bv[g]

    learned = [] if made.persistent is None else list(made.persistent)
    rows = []
    for x_TE, real in zip(x_BTE, mask_BT.tolist(), strict=True):
        read, outputs = [], []
        for x, is_real in zip(x_TE, real, strict=True):
            if not is_real:
                outputs.append(torch.zeros_like(x))
                continue
            read.append(x)
            now = len(read) - 1
            first = 0 if made.window is None else max(0, now - made.window + 1)
            heads = []
            for h in range(H):
                keys = [key(p, h) for p in learned] + [rotate(key(read[s], h), s) for s in range(first, now + 1)]
                values = [value(p, h) for p in learned + read[first : now + 1]]
                scores = torch.stack(keys) @ rotate(query(x, h), now) / D**0.5
                heads.append(scores.softmax(0) @ torch.stack(values))
            outputs.append(made.out_proj.weight @ torch.cat(heads))
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


def read_in_pieces(
    made: CausalAttention, x: Tensor, lengths: list[int], mask: Tensor | None = None
) -> tuple[Tensor, AttentionState]:
    state, answers = None, []
    masks = [None] * len(lengths) if mask is None else mask.split(lengths, 1)
    for piece, piece_mask in zip(x.split(lengths, 1), masks, strict=True):
        y, state = made(piece, state, piece_mask)
        answers.append(y)
    assert state is not None
    return torch.cat(answers, 1), state


def assert_same(one: AttentionState, other: AttentionState, tolerance: float) -> None:
    assert torch.equal(one.length, other.length)
    for a, b in ((one.keys, other.keys), (one.values, other.values)):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


# --- The definition ---


@windows
@persistents
@kinds
@few
@given(lengths=cuts, seed=seeds)
def test_equals_a_softmax_per_token_gradients_included(window, persistent, kind, lengths, seed):
    made = layer(window, persistent, **kind)
    x = text(4, sum(lengths), seed).requires_grad_()
    mask = padding(sum(lengths), seed)
    leaves = [x, *made.parameters()]
    weight = text(4, sum(lengths), seed + 1)
    y, _ = read_in_pieces(made, x, lengths, mask)
    expected = reference(made, x, mask)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)
    found = torch.autograd.grad((y * weight).sum(), leaves)
    for gradient, known in zip(found, torch.autograd.grad((expected * weight).sum(), leaves), strict=True):
        torch.testing.assert_close(gradient, known, rtol=0, atol=1e-9)


@windows
@pytest.mark.parametrize("T", [1, 4, 5, 8, 23])
def test_equals_a_softmax_per_token_without_a_mask(window, T):
    made, x = layer(window, 2), text(2, T)
    torch.testing.assert_close(made(x)[0], reference(made, x, torch.ones(2, T, dtype=torch.bool)), rtol=0, atol=1e-10)


def moved(attention: CausalAttention, state: AttentionState, by: int) -> AttentionState:
    """The same tokens read ``by`` positions later: their keys turned on by the angle between."""
    angle = by * torch.tensor(attention.frequencies, dtype=torch.float64)
    half = D // 2
    keys = state.keys.double()
    pairs = torch.complex(keys[..., :half], keys[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    keys = torch.cat([pairs.real, pairs.imag], -1).to(state.keys.dtype)
    return AttentionState(keys, state.values, state.length + by)


@pytest.mark.parametrize("lengths", [[12], [1] * 12, [5, 7]])
def test_the_millionth_token_is_read_as_exactly_as_the_first(lengths):
    """Only distances matter. With angles in float32 it would be off by more than a thousandth."""
    attention, x = layer(6, 0, torch.float32), text(2, 20, dtype=torch.float32)
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
    attention, x = layer(4, 2, torch.float32), text(2, 11, dtype=torch.float32)
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
    attention, x = layer(1, 2), text(1, 1).expand(1, 3, E)
    y, _ = attention(x)
    assert not torch.allclose(y[:, 0], y[:, 1])
    attention.persistent = None
    y, _ = attention(x)
    assert torch.allclose(y[:, 0], y[:, 2], rtol=0, atol=1e-12)


# --- The streaming contract ---


@windows
@dtypes
@few
@given(lengths=cuts, seed=seeds)
def test_any_split_equals_the_whole(window, dtype, lengths, seed):
    made = layer(window, 2, dtype)
    x = text(2, sum(lengths), seed, dtype)
    whole, state = made(x)
    with torch.set_grad_enabled(seed % 2 == 0):  # without gradients tokens are added in place
        pieces, last = read_in_pieces(made, x, lengths)
    torch.testing.assert_close(pieces, whole, rtol=0, atol=TOLERANCE[dtype])
    assert_same(last, state, TOLERANCE[dtype])


@windows
@dtypes
@few
@given(lengths=cuts, seed=seeds)
def test_padding_is_a_no_op(window, dtype, lengths, seed):
    """Even if it is not a number: not for other tokens, not for what is kept, and its own outputs are zero."""
    made = layer(window, 2, dtype)
    mask = padding(sum(lengths), seed)
    x = text(4, sum(lengths), seed, dtype).masked_fill(~mask[..., None], torch.nan)
    with torch.set_grad_enabled(seed % 2 == 0):  # without gradients tokens are added in place
        y, last = read_in_pieces(made, x, lengths, mask)
    assert torch.equal(y[~mask], torch.zeros_like(y[~mask]))
    more = text(1, 6, seed + 1, dtype)
    for b in range(3):
        if not mask[b].any():
            continue
        alone, state = made(x[b : b + 1, mask[b]])
        torch.testing.assert_close(y[b, mask[b]], alone[0], rtol=0, atol=TOLERANCE[dtype])
        row = last.select(torch.tensor([b]))
        torch.testing.assert_close(made(more, row)[0], made(more, state)[0], rtol=0, atol=TOLERANCE[dtype])
        S = state.keys.shape[1]  # full attention keeps as many places as its longest row needs: zeros, then the same
        newest = AttentionState(
            row.keys[:, row.keys.shape[1] - S :], row.values[:, row.keys.shape[1] - S :], row.length
        )
        assert_same(newest, state, TOLERANCE[dtype])
        assert not row.keys[:, : row.keys.shape[1] - S].any()


@windows
def test_padding_has_no_gradient(window):
    made, mask = layer(window, 2), padding(9, 5)
    x = text(4, 9).masked_fill(~mask[..., None], torch.nan).requires_grad_()
    y, state = made(x, None, mask)
    gradients = torch.autograd.grad(y.sum() + state.values.sum(), [x, *made.parameters()])
    assert all(bool(g.isfinite().all()) for g in gradients)
    assert not gradients[0][~mask].any()
    assert gradients[0][mask].any()


@windows
def test_a_piece_of_nothing_but_padding_changes_nothing(window):
    made, x, none = layer(window, 2), text(2, 5), torch.zeros(2, 5, dtype=torch.bool)
    y, fresh = made(x, None, none)
    assert not y.any()
    assert fresh.length.tolist() == [0, 0]
    after, state = made(x, fresh)
    assert torch.equal(after, made(x)[0])
    y, unchanged = made(x, state, none)
    assert not y.any()
    assert_same(unchanged, state, 0.0)


@windows
@persistents
def test_a_changed_token_leaves_the_past_bit_for_bit_and_reaches_one_window(window, persistent):
    made, x = layer(window, persistent, torch.float32), text(2, 30, dtype=torch.float32)
    before, at = made(x)[0], 11
    changed = x.clone()
    changed[:, at] += 1
    same = (made(changed)[0] == before).all(-1)
    beyond = 30 if window is None else at + window
    assert same[:, :at].all()
    assert same[:, beyond:].all()
    assert not same[:, at:beyond].any()


@pytest.mark.parametrize(("window", "T"), [(None, 700), (5, 33), (64, 700), (700, 700), (1000, 700)])
def test_the_past_is_the_same_to_the_bit_whatever_comes(window, T):
    attention, x = layer(window, 3, torch.float32), text(2, T, dtype=torch.float32)
    before = attention(x)[0]
    for t in (0, 1, T // 2, T - 1):
        changed = x.clone()
        changed[:, t:] = 10 * torch.randn(2, T - t, E, generator=torch.Generator().manual_seed(t))
        after = attention(changed)[0]
        assert torch.equal(before[:, :t], after[:, :t])
        assert not torch.equal(before[:, t], after[:, t])


# --- The state is a value of constant size ---


@pytest.mark.parametrize("window", [1, 4])
def test_a_window_keeps_as_much_after_one_token_as_after_many(window):
    made = layer(window, 2, torch.float32)
    states = []
    with torch.no_grad():
        for lengths in ([1], [3], [50], [2, 50, 1], [40, 2]):
            states.append(read_in_pieces(made, text(2, sum(lengths), dtype=torch.float32), lengths)[1])
        states.append(made(text(4, 20, dtype=torch.float32), None, padding(20, 4))[1].select(torch.tensor([1, 2])))
    for state in states:
        assert state.keys.shape == state.values.shape == (2, window - 1, H, D)
        assert state.nbytes == 2 * 2 * (window - 1) * H * D * 4 + 2 * 8
        for kept in (state.keys, state.values):  # no longer text hides behind it than the room for another window
            assert kept.untyped_storage().nbytes() <= 2 * (2 * window * H * D * 4)


def test_full_attention_keeps_every_real_token_and_no_other():
    attention = layer(None, 2)
    mask = torch.tensor([[True] * 5, [True, False] * 2 + [False]])
    _, state = attention(text(2, 5), None, mask)
    assert state.keys.shape[1] == 5
    assert state.length.tolist() == [5, 2]
    _, alone = attention(text(2, 1, seed=1)[1:], state.select(torch.tensor([1])))
    assert alone.length.tolist() == [3]
    assert alone.keys.shape[1] == 3


@pytest.mark.parametrize("window", [None, 4])
def test_gradients_flow_through_a_state_until_it_is_cut(window):
    attention, x = layer(window), text(1, 4).requires_grad_()
    _, state = attention(x)
    more = text(1, 2, seed=1)
    (gradient,) = torch.autograd.grad(attention(more, state)[0].sum(), x, allow_unused=True)
    assert gradient is not None
    assert torch.equal(gradient[0, 0] != 0, torch.full((E,), window is None))
    cut = state.detach()
    assert torch.equal(cut.keys, state.keys)
    assert torch.equal(cut.length, state.length)
    assert attention(more, cut)[0].grad_fn is not None  # its own weights still learn
    assert torch.autograd.grad(attention(more, cut)[0].sum(), x, allow_unused=True) == (None,)


@windows
def test_a_state_is_not_changed_by_going_on(window):
    made = layer(window, 2)
    _, state = made(text(2, 9))
    before = state.to_tensors()
    once, _ = made(text(2, 7, 1), state)
    assert torch.equal(made(text(2, 7, 1), state)[0], once)
    assert all(torch.equal(t, before[name]) for name, t in vars(state).items())


def test_readings_that_go_on_from_one_state_do_not_see_each_other():
    """Without gradients keys and values grow in place; a state that others have gone on from is still a value."""
    made, x = layer(None, 1), text(2, 40)
    with torch.no_grad():
        y, state = made(x[:, :9])
        states, answers = [state], []
        for t in range(9, 40):
            answers.append(made(x[:, t : t + 1], states[-1])[0])
            states.append(made(x[:, t : t + 1], states[-1])[1])  # the second one finds the place taken
        others = [made(text(2, 1, t), state)[0] for t, state in enumerate(states)]
        torch.testing.assert_close(torch.cat([y, *answers], 1), made(x)[0])
        for t, state in enumerate(states[:-1]):
            assert torch.equal(made(x[:, 9 + t : 10 + t], state)[0], answers[t])
            fresh = made(x[:, : 9 + t])[1]
            torch.testing.assert_close(state.keys, fresh.keys)
            torch.testing.assert_close(made(text(2, 1, t), fresh)[0], others[t])


def test_keys_that_grew_in_place_are_selected_forked_and_read_with_gradients():
    made, x = layer(None), text(3, 12)
    with torch.inference_mode():
        _, state = made(x[:, :5])
        _, state = made(x[:, 5:8], state)
    rows = torch.tensor([2, 0])
    with torch.no_grad():
        for derived, of in ((state.select(rows), rows), (state.fork(), slice(None))):
            y, after = made(x[of, 8:], derived)
            torch.testing.assert_close(y, made(x[of])[0][:, 8:])
            assert set(after.to_tensors()) == {"keys", "values", "length"}
        y, _ = made(x[:, 8:], state)  # a room of inference mode is not written to outside of it
        _, grown = made(x[:, 5:8], made(x[:, :5])[1])
        assert torch.equal(made(x[:, 8:], copy.deepcopy(grown))[0], made(x[:, 8:], grown)[0])
    z = x[:, 8:].clone().requires_grad_()
    twin, _ = made(z, state.fork())
    torch.testing.assert_close(twin, y)
    twin.sum().backward()
    assert z.grad is not None and z.grad.any()


def test_a_token_does_not_move_those_before_it():
    made, one = layer(None), text(1, 1)
    with torch.no_grad():
        _, state = made(text(1, 500))
        _, state = made(one, state)
    watch = watched(made, one, state)
    assert max(watch.sizes.get(name, 0) for name in ("cat", "clone", "copy_", "index_select")) <= 3 * E * H * D


def test_a_row_that_is_taken_over_does_not_move_the_others():
    made, one = layer(None), text(3, 1)
    with torch.inference_mode():
        _, state = made(one, made(text(3, 500))[1])
        short, long = made(text(1, 20, 1))[1], made(text(1, 504, 1))[1]
        watch = watched(lambda: state.overwrite([1], short, [0]))
        assert max(watch.sizes.values()) <= 501 * H * D  # a row, not three
        state = made(one, state.overwrite([1], short, [0]))[1]
        assert state.keys.shape[1] == 502
        room = state.keys.untyped_storage().data_ptr()
        state = made(one, state.overwrite([0, 2], short, [0, 0]))[1]  # the longest are gone: 20 + 1 + 1 are left
        assert state.keys.shape[1] == 22 and state.keys.untyped_storage().data_ptr() == room
        assert state.overwrite([1], made(text(1, 480))[1], [0]).keys.untyped_storage().data_ptr() == room  # to the left
        state = state.overwrite([1], long, [0])  # is not enough
        assert state.keys.shape[1] == 504 and state.keys.untyped_storage().data_ptr() != room
        left = made(one[:2], state.shrink([0, 1]))[1]
        assert left.keys.shape[:2] == (2, 505)


@windows
def test_a_state_is_selected_detached_and_saved(window):
    made, x, more = layer(window, 2), text(3, 9), text(4, 3, 1)
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[1, 5:] = False
    _, state = made(x, None, mask)
    rows = torch.tensor([2, 1, 1, 0])
    beam = state.select(rows)
    expected, _ = made(torch.cat([x[rows], more], 1), None, torch.cat([mask[rows], mask.new_ones(4, 3)], 1))
    torch.testing.assert_close(made(more, beam)[0], expected[:, 9:], rtol=0, atol=1e-10)
    short = made(more[:1], state.select(torch.tensor([1])))[1]  # no places are left of the longer rows
    assert short.keys.shape[1] == (5 + 3 if window is None else window - 1)
    assert state.keys.requires_grad
    assert not state.detach().keys.requires_grad
    back = state.rebuilt(load(save(beam.to_tensors())))
    assert torch.equal(made(more, back)[0], made(more, beam)[0])


def test_tensors_that_are_no_state_are_refused():
    state = layer(4)(text(2, 9))[1]
    good = state.to_tensors()
    wrong = [
        {**good, "phase": good["length"]},
        {"keys": good["keys"], "values": good["values"]},
        {**good, "values": good["values"][:1]},
        {**good, "values": good["values"][:, :1]},
        {**good, "values": good["values"].float()},
        {**good, "length": good["length"][:1]},
        {**good, "length": good["length"].int()},
        {**good, "length": good["length"] - 10},
        {**good, "keys": good["keys"].long(), "values": good["values"].long()},
    ]
    for tensors in wrong:
        with pytest.raises(ValueError, match="not a state of"):
            state.rebuilt(tensors)


@windows
def test_modes_change_nothing(window):
    made, x = layer(window, 2), text(2, 13)
    expected = made(x)[0]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y, state = read_in_pieces(made, x, [5, 1, 7])
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)
        after, _ = made(text(2, 2, 1), state.detach())  # and reading goes on outside
        torch.testing.assert_close(after, made(torch.cat([x, text(2, 2, 1)], 1))[0][:, 13:], rtol=0, atol=1e-10)
    assert torch.equal(made.eval()(x)[0], expected)


@windows
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtype_is_kept(window, dtype):
    made, x, mask = layer(window, 2, dtype), text(4, 9, dtype=dtype), padding(9, 4)
    for y, state in (made(x), made(x, None, mask), made(x, made(x)[1]), made(x, None, torch.zeros_like(mask))):
        assert y.dtype == state.keys.dtype == state.values.dtype == dtype
        assert state.length.dtype == torch.int64


@pytest.mark.parametrize("window", [None, 4])
def test_half_precision_reads_alike(window):
    """Activations in bfloat16, and float32 weights under autocast, in pieces and whole."""
    x = text(2, 15, dtype=torch.float32)
    exact = layer(window, 2, torch.float32)(x)[0]
    low = layer(window, 2, torch.bfloat16)
    y, _ = read_in_pieces(low, x.bfloat16(), [7, 1, 7])
    assert y.dtype == torch.bfloat16
    assert (y.float() - exact).abs().max() < 0.05 * exact.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = read_in_pieces(layer(window, 2, torch.float32), x, [7, 1, 7])
    assert (y.float() - exact).abs().max() < 0.05 * exact.abs().max()


# --- What it costs ---


class Watch(TorchDispatchMode):
    """Notes the operations that ran and the size of the largest tensor that one made, each and of all."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []
        self.largest = 0
        self.sizes: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operations.append(func.overloadpacket.__name__)
        made = out if isinstance(out, (tuple, list)) else (out,)
        size = max((t.numel() for t in made if isinstance(t, Tensor)), default=0)
        self.largest = max(self.largest, size)
        self.sizes[self.operations[-1]] = max(self.sizes.get(self.operations[-1], 0), size)
        return out


def watched(made: Callable[..., object], *arguments: object) -> Watch:
    with torch.no_grad(), Watch() as watch:
        made(*arguments)
    return watch


def test_a_window_costs_what_its_length_costs():
    made = layer(8, 2, torch.float32)
    short, long = (watched(made, text(1, T, dtype=torch.float32)) for T in (512, 4096))
    assert long.largest <= 8 * short.largest
    assert len(long.operations) == len(short.operations)


def test_one_token_costs_the_same_at_any_position():
    made = layer(8, 2, torch.float32)
    one = text(1, 1, dtype=torch.float32)
    watches = []
    for T in (20, 5000):
        with torch.no_grad():
            _, state = made(text(1, T, dtype=torch.float32))
            _, state = made(one, state)  # makes room for a window more
        watches.append(watched(made, one, state))
    near, far = watches
    assert far.operations == near.operations
    assert far.largest == near.largest <= max(3 * E * H * D, 10 * H * D)


@windows
def test_only_padding_pays_for_moving_tokens(window):
    made, x = layer(window, 2), text(2, 20)
    moves = {"gather", "scatter", "sort", "argsort"}
    full = torch.ones(2, 20, dtype=torch.bool)
    assert not moves & set(watched(made, x).operations)
    assert not moves & set(watched(made, x, None, full).operations)
    full[0, 3] = False
    assert moves & set(watched(made, x, None, full).operations)


# --- Bad input ---


def test_bad_input_is_named():
    made = layer(4)
    x = text(2, 5)
    _, state = made(x)
    with pytest.raises(ValueError, match="state has 2 rows but the batch has 3"):
        made(text(3, 5), state)
    with pytest.raises(ValueError, match="nothing to read"):
        made(x[:, :0])
    with pytest.raises(ValueError, match="nothing to read"):
        made(x[:0])
    with pytest.raises(ValueError, match=r"mask is torch.bool \[2, 4\]"):
        made(x, None, torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask is torch.int64"):
        made(x, None, torch.ones(2, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="belongs to another layer"):
        layer(5)(x, state)
    with pytest.raises(ValueError, match="belongs to another layer"):
        CausalAttention(E, 1, D, window=4).double()(x, state)


@pytest.mark.parametrize(
    "wrong", [{"width": 0}, {"heads": 0}, {"head_dim": 3}, {"window": 0}, {"persistent_tokens": -1}, {"rope_base": 0.0}]
)
def test_bad_sizes_are_refused(wrong):
    with pytest.raises(ValueError, match="must be positive"):
        CausalAttention(**{"width": 4, "heads": 2, "head_dim": 2, **wrong})


def test_frequencies_are_those_of_transformers():
    LlamaConfig = pytest.importorskip("transformers").LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    stretch = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    parameters = {"rope_type": "llama3", "rope_theta": 5e5, "original_max_position_embeddings": 8192, **stretch}
    config = LlamaConfig(hidden_size=128, num_attention_heads=2, rope_parameters=parameters)
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    found = torch.tensor(frequencies(64, 5e5, (32.0, 1.0, 4.0, 8192.0)))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert found[0] == 1 and float(expected[-1]) == pytest.approx(5e5 ** (-62 / 64) / 32)
