"""Causal attention under the streaming contract: over everything read so far, or over a window of it.

A token sees itself and the ``window - 1`` real tokens before it in its own row, plus a few persistent tokens: learned
embeddings that every token sees (Titans eq. 19). They go through the same projections as text, and they are not
counted in the window and not rotated, because a token that is always in reach has no distance. That is our choice:
the paper prepends them to the text and does not say what position they take. Padding is not seen, takes no position
and leaves no trace, so rows of a batch may be cut and padded anywhere.

Within a window the cost is linear in the length of the text: queries are taken in blocks of one window, and each block
meets the keys of the block before it and its own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnemonist.evaluating import made_once
from mnemonist.memory.eager import eager
from mnemonist.memory.kernels import native_bands
from mnemonist.memory.kernels.native_attention import attend_newest
from mnemonist.memory.kernels.native_bands import Band
from mnemonist.memory.kernels.native_elementwise import turn_projections
from mnemonist.models.linear import Linear
from mnemonist.models.normalisation import RMSNorm
from mnemonist.models.state import Ownership, StreamState

Stretch = tuple[float, float, float, float]

LEAST_ROOM = 64
"""Places that keys and values have to grow into, at least; else half as many as they have."""


@dataclass(frozen=True)
class AttentionState(StreamState):
    """The keys and values that later tokens may still see: a value, of constant size if there is a window."""

    GROWING = frozenset({"keys", "values"})  # unless there is a window

    keys: Tensor
    """``[B, S, G, D]``, rotated; the newest last, and of each row only the last ``length`` are real."""
    values: Tensor
    """``[B, S, G, D]``."""
    length: Tensor
    """``[B]`` int64 on the CPU (it steers the control flow): real tokens read so far."""

    def check(self) -> None:
        """Raise ValueError unless keys and values are alike, and the counter one that reading could have left."""
        if self.keys.shape != self.values.shape or bool((self.length < 0).any()):
            raise ValueError("These tensors are not a state of attention: their shapes or lengths do not fit.")

    @property
    def place(self) -> _Place | None:
        """Where these keys and values grow, if they do; no field, so what is made of this state has none."""
        return vars(self).get("place")

    def at(self, place: _Place | None) -> AttentionState:
        """This state, just made, of keys and values that are this part of a room."""
        if place is not None:
            vars(self)["place"] = place
        return self

    def _overwrite(
        self, rows: Sequence[int], other: AttentionState, picks: Sequence[int], owned: Ownership
    ) -> AttentionState:
        """Rows that have read more than all before them take places to the left, if the room has any there."""
        length = owned(self.length)
        keys, values = owned(self.keys), owned(self.values)
        place = self.place if keys is self.keys and values is self.values else None
        S, read = keys.shape[1], [int(other.length[pick]) for pick in picks]
        wider = min(max(read), other.keys.shape[1]) - S
        if wider > 0:
            if place is not None and place.begin >= wider:
                place = _Place(place.room, place.begin - wider)
                keys, values = place.filled(self.batch, S + wider)
                keys[:, :wider], values[:, :wider] = 0, 0
            else:
                keys, values = (F.pad(old, (0, 0, 0, 0, wider, 0)) for old in (keys, values))
                place = None
        for row, pick, count in zip(rows, picks, read, strict=True):
            length[row] = count
            for mine, theirs in ((keys, other.keys), (values, other.values)):
                real = min(count, theirs.shape[1])
                mine[row, : mine.shape[1] - real] = 0  # even what is not seen must be a number
                mine[row, mine.shape[1] - real :] = theirs[pick, theirs.shape[1] - real :]
        return AttentionState(keys, values, length).at(place)

    def _shrink(self, sources: Sequence[int], owned: Ownership) -> AttentionState:
        left = super()._shrink(sources, owned)
        same = left.keys.data_ptr() == self.keys.data_ptr() and left.values.data_ptr() == self.values.data_ptr()
        return left.at(self.place if same else None)


class CausalAttention(nn.Module):
    """Multi-head attention with rotary positions (RoFormer, arXiv 2104.09864) that count real tokens.

    Args:
        width: ``E`` of the embeddings.
        heads: ``H``.
        head_dim: ``D``, even.
        window: tokens seen, the present one included; None sees everything.
        persistent_tokens: learned tokens that every token sees besides.
        kv_heads: heads of keys and values, ``G``, each shared by the ``H / G`` heads of queries that follow each other
            (arXiv 2305.13245); None: as many as there are heads.
        rope_base: pair ``i`` of a head turns by ``rope_base ** (-2 i / D)`` radians a token.
        rope_stretch: slows down the pairs that turn slowly (see `frequencies`); None leaves them.
        bias: whether queries, keys and values have a bias.
        norm_eps: if it is given, queries and keys are normalised head by head before they are turned, with this eps and
            learned weights (arXiv 2302.05442).

    Raises:
        ValueError: a size is not positive, ``head_dim`` is odd, or ``kv_heads`` does not divide ``heads``.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_dim: int,
        *,
        window: int | None = None,
        persistent_tokens: int = 0,
        kv_heads: int | None = None,
        rope_base: float = 10000.0,
        rope_stretch: Stretch | None = None,
        bias: bool = False,
        norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        sizes = [width, heads, head_dim, kv_heads, rope_base] + ([] if window is None else [window])
        if min(sizes) <= 0 or head_dim % 2 or heads % kv_heads or persistent_tokens < 0:
            raise ValueError(
                f"width {width}, heads {heads}, head_dim {head_dim} (even), kv_heads {kv_heads} (a divisor of heads), "
                f"window {window} and rope_base {rope_base} must be positive, and persistent_tokens "
                f"{persistent_tokens} not negative."
            )
        self.heads, self.kv_heads, self.head_dim, self.window = heads, kv_heads, head_dim, window
        self.in_proj = Linear(width, (heads + 2 * kv_heads) * head_dim, bias=bias)
        self.q_norm, self.k_norm = (None if norm_eps is None else RMSNorm(head_dim, norm_eps) for _ in range(2))
        self.out_proj = Linear(heads * head_dim, width, bias=False)
        self.persistent = nn.Parameter(torch.randn(persistent_tokens, width)) if persistent_tokens else None
        # No tensor, so that `.to(bfloat16)` and the like cannot touch it.
        self.frequencies = frequencies(head_dim, rope_base, rope_stretch)

    @eager
    def forward(
        self, x_BTE: Tensor, state: AttentionState | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, AttentionState]:
        """Read a piece of a stream.

        Args:
            x_BTE: embeddings.
            state: what an earlier call returned, or None at the beginning.
            mask_BT: bool, False on padding, whose outputs are zero.

        Raises:
            ValueError: nothing to read, a mask of another shape or type, or a state of another batch size or layer.
        """
        self._check(x_BTE, state, mask_BT)
        if state is None:
            state = self.initial_state(x_BTE)
        if mask_BT is None or bool(mask_BT.all()):
            return self._read(x_BTE, state, None)
        # Only a piece with padding pays for moving tokens: the real ones go side by side to the left, the rest is cut.
        counts = mask_BT.sum(1).to("cpu")
        most = int(counts.max())
        y_BTE = torch.zeros_like(x_BTE)
        if most == 0:
            return y_BTE, state
        order = torch.argsort(~mask_BT, dim=1, stable=True)[:, :most, None].expand(-1, -1, x_BTE.shape[2])
        padded = (torch.arange(most, device="cpu") >= counts[:, None]).to(x_BTE.device)[..., None]
        x = x_BTE.gather(1, order).masked_fill(padded, 0)  # zeros, as even a NaN in padding must not spread
        y, after = self._read(x, state, None if bool((counts == most).all()) else counts)
        return y_BTE.to(y).scatter(1, order, y.masked_fill(padded, 0)), after

    def initial_state(self, x_BTE: Tensor) -> AttentionState:
        """The state before the first token, for the rows of ``x``."""
        B = x_BTE.shape[0]
        nothing = x_BTE.new_zeros(B, 0 if self.window is None else self.window - 1, self.kv_heads, self.head_dim)
        return AttentionState(nothing, nothing, torch.zeros(B, dtype=torch.int64, device="cpu"))

    def _check(self, x_BTE: Tensor, state: AttentionState | None, mask_BT: Tensor | None) -> None:
        B, T, _ = x_BTE.shape
        if B == 0 or T == 0:
            raise ValueError(f"There is nothing to read: the input is {list(x_BTE.shape)}; no size may be 0.")
        if mask_BT is not None and (mask_BT.shape != (B, T) or mask_BT.dtype != torch.bool):
            raise ValueError(f"mask is {mask_BT.dtype} {list(mask_BT.shape)}; it must be bool {[B, T]}.")
        if state is None:
            return
        rows, kept, *head = state.keys.shape
        if rows != B:
            raise ValueError(f"The state has {rows} rows but the batch has {B}; use state.select(rows) to change it.")
        if head != [self.kv_heads, self.head_dim] or (self.window is not None and kept != self.window - 1):
            raise ValueError(
                f"The state keeps {kept} keys of {head}, but window {self.window} and heads "
                f"{[self.kv_heads, self.head_dim]} were expected; it belongs to another layer."
            )

    def _read(self, x_BTE: Tensor, state: AttentionState, counts: Tensor | None) -> tuple[Tensor, AttentionState]:
        """Read rows whose first ``counts [B]`` (None: all) tokens are real; what the others give means nothing."""
        B, T, _ = x_BTE.shape
        position = state.length[:, None] + torch.arange(T, device="cpu")
        q, k, v = self.project(x_BTE, self.rotations(position, x_BTE))
        place = None
        if self.window is None:
            # Places of longer rows that are gone hold nothing any more.
            S = state.keys.shape[1]
            surplus = max(0, S - int(state.length.max()))
            keys, values, place = _grown(state, k, v, surplus, max((S + T - surplus) // 2, LEAST_ROOM))
            y = self._attend(q, keys, values, state.length)
            after = keys, values
            if counts is not None:
                after, place = _newest(keys, values, state, counts, None), None
        elif T == 1 and counts is None and not torch.is_grad_enabled():
            keys, values, place = _grown(state, k, v, 0, self.window)
            y = self._attend(q, keys, values, state.length)
            after = keys[:, 1:], values[:, 1:]
            place = None if place is None else _Place(place.room, place.begin + 1)
        else:
            y = self._attend_window(q, k, v, state, self.window)
            if counts is None:
                after = _tail(state.keys, k), _tail(state.values, v)
            else:
                keys, values = torch.cat([state.keys, k], dim=1), torch.cat([state.values, v], dim=1)
                after = _newest(keys, values, state, counts, self.window - 1)
        left = AttentionState(*after, state.length + (T if counts is None else counts)).at(place)
        return self.out_proj(y.reshape(B, T, -1)), left

    def project(self, x_BTE: Tensor, rotations: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[B, T, H, D]``, keys and values ``[B, T, G, D]`` of tokens, whose `rotations` are given."""
        projected = self.in_proj(x_BTE)
        if self.q_norm is None and (turned := turn_projections(projected, *rotations, self.heads)) is not None:
            return turned
        q, k, v = self._split(projected)
        return rotate(q, *rotations), rotate(k, *rotations), v

    def _split(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[..., H, D]``, keys and values ``[..., G, D]`` in a projection, normalised where they are."""
        heads = projected.unflatten(-1, (-1, self.head_dim))
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=-2)
        if self.q_norm is not None:
            q = self.q_norm(q)
        return q, self.normed_keys(k), v

    def normed_keys(self, k: Tensor) -> Tensor:
        """Keys ``[..., G, D]`` as they are before they are turned."""
        return k if self.k_norm is None else self.k_norm(k)

    def _attend_window(
        self, q_BTHD: Tensor, k_BTHD: Tensor, v_BTHD: Tensor, state: AttentionState, window: int
    ) -> Tensor:
        """Each token meets those of its window, of which the first may be among what was kept."""
        persistent = [] if self.persistent is None else [self.persistent]
        if not native_bands.applies(q_BTHD, k_BTHD, v_BTHD, state.keys, state.values, *persistent, keys=window):
            return self._attend_in_blocks(q_BTHD, k_BTHD, v_BTHD, state, window)
        keys, values, first = k_BTHD, v_BTHD, None
        if bool(state.length.any()):
            keys, values = torch.cat([state.keys, keys], dim=1), torch.cat([state.values, values], dim=1)
            first = (state.keys.shape[1] - state.length).clamp_min(0)
        everywhere = [Band(*self.persistent_pair(q_BTHD), None)] if persistent else []
        return native_bands.attend_bands(q_BTHD, [Band(keys, values, window), *everywhere], first)

    def _attend_in_blocks(
        self, q_BTHD: Tensor, k_BTHD: Tensor, v_BTHD: Tensor, state: AttentionState, window: int
    ) -> Tensor:
        """The first block meets what was kept; each other one the block before it, all under one small mask."""
        keys = torch.cat([state.keys, k_BTHD[:, :window]], dim=1)
        values = torch.cat([state.values, v_BTHD[:, :window]], dim=1)
        first = self._attend(q_BTHD[:, :window], keys, values, state.length)
        B, T, H, D = q_BTHD.shape
        if window >= T:
            return first
        blocks = -(-T // window)
        # The last block is filled up with tokens that nobody sees.
        spare = (0, 0, 0, 0, 0, -T % window)
        q, k, v = (F.pad(t, spare).view(B, blocks, window, -1, D) for t in (q_BTHD, k_BTHD, v_BTHD))
        # Pairs of blocks by `cat`: overlapping views (`unfold`) would give the same, but are slow backwards.
        keys, values = (torch.cat([t[:, :-1], t[:, 1:]], dim=2).flatten(0, 1) for t in (k, v))
        column = torch.arange(2 * window, device=q.device)
        row = torch.arange(window, 2 * window, device=q.device)[:, None]
        rest = self.attend(q[:, 1:].flatten(0, 1), keys, values, (column <= row) & (column > row - window))
        return torch.cat([first, rest.reshape(B, -1, H, D)[:, : T - window]], dim=1)

    def _attend(self, q_BTHD: Tensor, keys: Tensor, values: Tensor, length: Tensor) -> Tensor:
        """``keys`` and ``values`` begin with what was kept; of that the last ``length`` of each row are real."""
        T, S = q_BTHD.shape[1], keys.shape[1]
        missing = (S - T - length).clamp_min(0)  # [B]: kept places that hold nothing
        if T == 1 and not torch.is_grad_enabled():
            y = attend_newest(q_BTHD, keys, values, missing, self._persistent_projections())
            if y is not None:
                return y
        whole = not bool(missing.any())
        if whole and T == 1:
            return self.attend(q_BTHD, keys, values, None)
        if T == S and self.window is None:
            return self._attend_from_the_beginning(q_BTHD, keys, values)
        column = torch.arange(S, device=keys.device)
        row = torch.arange(S - T, S, device=keys.device)[:, None]
        seen = column <= row
        if self.window is not None:
            seen = seen & (column > row - self.window)
        if not whole:
            seen = (seen & (column >= missing.to(keys.device)[:, None, None]))[:, None]  # [B, 1, T, S]
        return self.attend(q_BTHD, keys, values, seen)

    def _attend_from_the_beginning(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """A whole text. Persistent tokens go first, as queries too: plainly causal, so no mask and half the work."""
        p_keys, p_values = self.persistent_pair(q)
        n = p_keys.shape[1]
        if n:
            q = F.pad(q, (0, 0, 0, 0, n, 0))
            keys, values = torch.cat([p_keys, keys], dim=1), torch.cat([p_values, values], dim=1)
        q, keys, values = (t.transpose(1, 2) for t in (q, *_for_each_head(keys, values, self.heads)))
        return F.scaled_dot_product_attention(q, keys, values, is_causal=True)[:, :, n:].transpose(1, 2)

    def attend(self, q_NTHD: Tensor, keys_NSHD: Tensor, values_NSHD: Tensor, seen: Tensor | None) -> Tensor:
        """What queries make of the keys they may see and of the persistent tokens: ``[N, T, H, D]``.

        Every query sees itself under any ``seen`` (bool ``[T, S]`` or ``[N, 1, T, S]``), so no row is empty: no NaN.
        """
        p_keys, p_values = self.persistent_pair(q_NTHD)
        if p_keys.shape[1]:
            keys_NSHD, values_NSHD = torch.cat([p_keys, keys_NSHD], dim=1), torch.cat([p_values, values_NSHD], dim=1)
            seen = None if seen is None else F.pad(seen, (p_keys.shape[1], 0), value=True)
        return weigh(q_NTHD, keys_NSHD, values_NSHD, seen)

    def persistent_pair(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the persistent tokens for each row of ``like [N, ...]``: ``[N, P, G, D]``."""
        N, projected = like.shape[0], self._persistent_projections()
        if projected is None:
            none = like.new_zeros(N, 0, self.kv_heads, self.head_dim)
            return none, none
        k, v = projected
        return k.expand(N, *k.shape), v.expand(N, *v.shape)

    def _persistent_projections(self) -> tuple[Tensor, Tensor] | None:
        """Keys and values ``[P, G, D]`` of the persistent tokens, if there are any."""
        persistent = self.persistent
        if persistent is None:
            return None
        return made_once(self, "persistent", lambda: self._split(self.in_proj(persistent))[1:])

    def rotations(self, position: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine, and sine signed for `rotate`, of each position's angles: ``[B or 1, T, 1, D]``, at least float32.

        ``position`` is ``[B or 1, T]`` int64 on the CPU; the result is on the device of ``x``. Angles are float64, so
        that the millionth position is as exact as the first.
        """
        dtype = torch.promote_types(x.dtype, torch.float32)
        if position.shape[1] == 1:
            places = position[:, 0].tolist()
            places = places[:1] if len(set(places)) == 1 else places
            return _rotations_of_one(
                tuple(places), self.frequencies, x.device, dtype, torch.is_inference_mode_enabled()
            )
        if bool((position[:1] == position).all()):
            position = position[:1]
        return _rotations(position, self.frequencies, x.device, dtype)


def _rotations(
    position: Tensor, frequencies: tuple[float, ...], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    angle = position[..., None].double() * torch.tensor(frequencies, dtype=torch.float64, device="cpu")
    cos, sin = angle.cos()[:, :, None], angle.sin()[:, :, None]
    return torch.cat([cos, cos], -1).to(device, dtype), torch.cat([-sin, sin], -1).to(device, dtype)


@functools.lru_cache(maxsize=4)
def _rotations_of_one(
    places: tuple[int, ...],
    frequencies: tuple[float, ...],
    device: torch.device,
    dtype: torch.dtype,
    inference: bool,  # tensors of inference mode are of no use outside
) -> tuple[Tensor, Tensor]:
    """Of one token a row, which is written in every block at the same places."""
    return _rotations(torch.tensor(places, device="cpu")[:, None], frequencies, device, dtype)


def frequencies(head_dim: int, base: float, stretch: Stretch | None = None) -> tuple[float, ...]:
    """Radians a token by which the pairs of a head turn: ``base ** (-2 i / D)``.

    Args:
        head_dim: ``D``.
        base: that of RoFormer (arXiv 2104.09864) is 10,000.
        stretch: ``(factor, low, high, length)``, with which Llama 3.1 sees beyond the ``length`` that it was first
            trained at: a pair that turns fewer than ``low`` times in it turns ``factor`` times slower, one that turns
            more than ``high`` times as it did, and those between a mixture of both, linear in their turns.
    """
    plain = [base ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    if stretch is None:
        return tuple(plain)
    factor, low, high, length = stretch
    kept = (min(max((length * f / (2 * math.pi) - low) / (high - low), 0.0), 1.0) for f in plain)
    return tuple(f * (share + (1 - share) / factor) for f, share in zip(plain, kept, strict=True))


def rotate(x_BTHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``(a, b) -> (a cos - b sin, b cos + a sin)`` for the halves of each head."""
    a, b = x_BTHD.chunk(2, dim=-1)
    return torch.addcmul(x_BTHD * cos, torch.cat([b, a], dim=-1), sin).to(x_BTHD.dtype)


def weigh(q_NTHD: Tensor, keys_NSHD: Tensor, values_NSHD: Tensor, seen: Tensor | None) -> Tensor:
    """Softmax attention over keys under a mask, bool or added to the scores: ``[N, T, H, D]``.

    Keys and values may have fewer heads, which heads of queries then share.
    """
    keys_NSHD, values_NSHD = _for_each_head(keys_NSHD, values_NSHD, q_NTHD.shape[2])
    q, keys, values = (t.transpose(1, 2) for t in (q_NTHD, keys_NSHD, values_NSHD))
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=seen).transpose(1, 2)


def _for_each_head(keys: Tensor, values: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Keys and values that heads of queries share, once for each of them."""
    shared = heads // keys.shape[2]
    if shared == 1:
        return keys, values
    return keys.repeat_interleave(shared, dim=2), values.repeat_interleave(shared, dim=2)


class _Room:
    """Where keys and values grow: more places than are filled, so that a token need not move all those before it.

    States are values, and several may look at one room; of those that end at a place only the first goes on in it.
    """

    def __init__(self, keys: Tensor, values: Tensor, places: int) -> None:
        B, S, H, D = keys.shape
        self.keys, self.values = (old.new_empty(B, places, H, D) for old in (keys, values))
        self.keys[:, :S], self.values[:, :S] = keys, values
        self._begun: dict[int, object] = {}  # by place: who goes on from there

    def claim(self, begin: int, end: int) -> bool:
        """Whether there are places from ``begin`` to ``end`` and nobody has gone on from there; the caller then has."""
        if end > self.keys.shape[1] or (self.keys.is_inference() and not torch.is_inference_mode_enabled()):
            return False
        caller = object()
        return self._begun.setdefault(begin, caller) is caller  # at once, whatever other threads do


@dataclass(frozen=True)
class _Place:
    """Where in a room a state begins."""

    room: _Room
    begin: int

    def filled(self, rows: int, places: int) -> tuple[Tensor, Tensor]:
        """Keys and values of so many rows and places from here on."""
        keys, values = (whole[:rows, self.begin : self.begin + places] for whole in (self.room.keys, self.room.values))
        return keys, values


def _grown(
    state: AttentionState, k: Tensor, v: Tensor, surplus: int, spare: int
) -> tuple[Tensor, Tensor, _Place | None]:
    """Keys and values with the new ones behind those of the state, and the place they are at, without gradients.

    The first ``surplus`` places of the state are left out; a room that must be made has ``spare`` ones.
    """
    keys, values = state.keys[:, surplus:], state.values[:, surplus:]
    (B, S), T = keys.shape[:2], k.shape[1]
    if S == 0 or torch.is_grad_enabled() or keys.dtype != k.dtype:
        return torch.cat([keys, k], dim=1), torch.cat([values, v], dim=1), None
    place = None if state.place is None else _Place(state.place.room, state.place.begin + surplus)
    if place is None or not place.room.claim(place.begin + S, place.begin + S + T):
        place = _Place(_Room(keys, values, S + T + spare), 0)
        place.room.claim(S, S + T)
    keys, values = place.filled(B, S + T)
    keys[:, S:], values[:, S:] = k, v
    return keys, values, place


def _tail(old: Tensor, new: Tensor) -> Tensor:
    """The last entries of ``old`` and ``new`` ``[B, ., H, D]``, as many as ``old`` has.

    A copy, as a view would keep everything that was read alive behind a small state; in the type of ``old``, so that
    autocast does not change its size.
    """
    S, T = old.shape[1], new.shape[1]
    return new[:, T - S :].to(old.dtype, copy=True) if S <= T else torch.cat([old[:, T:], new], dim=1)


def _newest(
    keys: Tensor, values: Tensor, state: AttentionState, counts: Tensor, kept: int | None
) -> tuple[Tensor, Tensor]:
    """Of each row the last ``kept`` (None: all) entries among what the state held and the ``counts [B]`` new ones.

    Places below what a row has read are zeros.
    """
    kept = int((state.length + counts).max()) if kept is None else kept
    begin = (state.keys.shape[1] + counts - kept)[:, None]
    index = (begin + torch.arange(kept, device="cpu")).to(keys.device)[..., None, None]
    at = index.clamp_min(0).expand(-1, -1, *keys.shape[2:])
    return keys.gather(1, at).masked_fill(index < 0, 0), values.gather(1, at).masked_fill(index < 0, 0)
