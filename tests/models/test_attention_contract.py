"""Attention equals a softmax written token by token, and keeps the streaming contract."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mnemonist.models.attention import AttentionState, CausalAttention

E, H, D = 6, 2, 4
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}

few = settings(max_examples=12, deadline=None, derandomize=True, database=None)
cuts = st.lists(st.sampled_from([1, 1, 2, 3, 4, 5, 8, 13]), min_size=2, max_size=6)
seeds = st.integers(0, 1000)
windows = pytest.mark.parametrize("window", [None, 1, 4], ids=["full", "window-1", "window-4"])
persistents = pytest.mark.parametrize("persistent", [0, 3], ids=["plain", "persistent"])
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def layer(window: int | None, persistent: int = 0, dtype: torch.dtype = torch.float64) -> CausalAttention:
    torch.manual_seed(0)
    made = CausalAttention(E, H, D, window=window, persistent_tokens=persistent, rope_base=100.0)
    with torch.no_grad():
        made.in_proj.weight.mul_(3)  # sharp enough that every key matters
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
    Wq, Wk, Wv = made.in_proj.weight.view(3, H, D, E)
    speed = 100.0 ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)

    def rotate(u_D: Tensor, position: int) -> Tensor:
        turned = torch.complex(u_D[: D // 2], u_D[D // 2 :]) * torch.polar(torch.ones_like(speed), speed * position)
        return torch.cat([turned.real, turned.imag])

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
                keys = [Wk[h] @ p for p in learned] + [rotate(Wk[h] @ read[s], s) for s in range(first, now + 1)]
                values = [Wv[h] @ p for p in learned + read[first : now + 1]]
                scores = torch.stack(keys) @ rotate(Wq[h] @ x, now) / D**0.5
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
@few
@given(lengths=cuts, seed=seeds)
def test_equals_a_softmax_per_token_gradients_included(window, persistent, lengths, seed):
    made = layer(window, persistent)
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


def test_positions_are_exact_after_a_million_tokens():
    """Only distances count, so the same text read from position 0 and from a million gives the same."""
    made, x = layer(None, dtype=torch.float32), text(1, 50, dtype=torch.float32)
    nothing = torch.zeros(1, 0, H, D)
    late, _ = made(x, AttentionState(nothing, nothing, torch.tensor([1_000_000])))
    torch.testing.assert_close(late, made(x)[0], rtol=0, atol=1e-5)


# --- The streaming contract ---


@windows
@dtypes
@few
@given(lengths=cuts, seed=seeds)
def test_any_split_equals_the_whole(window, dtype, lengths, seed):
    made = layer(window, 2, dtype)
    x = text(2, sum(lengths), seed, dtype)
    whole, state = made(x)
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
        for kept in (state.keys, state.values):  # and no longer text hides behind it
            assert kept.untyped_storage().nbytes() == kept.numel() * 4


@windows
def test_a_state_is_not_changed_by_going_on(window):
    made = layer(window, 2)
    _, state = made(text(2, 9))
    before = state.to_tensors()
    once, _ = made(text(2, 7, 1), state)
    assert torch.equal(made(text(2, 7, 1), state)[0], once)
    assert all(torch.equal(t, before[name]) for name, t in vars(state).items())


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


# --- What it costs ---


class Watch(TorchDispatchMode):
    """Notes the operations that ran and the size of the largest tensor that one made."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operations.append(func.overloadpacket.__name__)
        made = out if isinstance(out, (tuple, list)) else (out,)
        self.largest = max([self.largest, *(t.numel() for t in made if isinstance(t, Tensor))])
        return out


def watched(made: CausalAttention, *arguments: object) -> Watch:
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
    near, far = (watched(made, one, made(text(1, T, dtype=torch.float32))[1]) for T in (20, 5000))
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
