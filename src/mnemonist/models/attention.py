"""Causal attention under the streaming contract: over everything read so far, or over a window of it.

A token sees itself and the ``window - 1`` real tokens before it in its own row, plus a few persistent tokens: learned
embeddings without a position that every token sees (Titans eq. 19). Padding is not seen, takes no position and leaves
no trace, so rows of a batch may be cut and padded anywhere.

Within a window the cost is linear in the length of the text: queries are taken in blocks of one window, and each block
meets its own keys and those of the block before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class AttentionState:
    """The keys and values that later tokens may still see: a value, of constant size if there is a window."""

    keys: Tensor
    """``[B, S, H, D]``, rotated; the newest last, and of each row only the last ``length`` are real."""
    values: Tensor
    """``[B, S, H, D]``."""
    length: Tensor
    """``[B]`` int64 on the CPU (it steers the control flow): real tokens read so far."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(t.numel() * t.element_size() for t in (self.keys, self.values, self.length))

    def detach(self) -> AttentionState:
        """The same state, cut from its graph."""
        return AttentionState(self.keys.detach(), self.values.detach(), self.length)

    def select(self, rows: Tensor) -> AttentionState:
        """Rows ``rows`` (int64 ``[B']``, repeats allowed) as a new batch."""
        there = rows.to(self.keys.device)
        return AttentionState(
            self.keys.index_select(0, there), self.values.index_select(0, there), self.length[rows.to("cpu")]
        )


class CausalAttention(nn.Module):
    """Multi-head attention with rotary positions (RoFormer, arXiv 2104.09864) that count real tokens.

    Args:
        width: ``E`` of the embeddings.
        heads: ``H``.
        head_dim: ``D``, even.
        window: tokens seen, the present one included; None sees everything.
        persistent_tokens: learned tokens that every token sees besides.
        rope_base: wavelength of the slowest rotation, over 2 pi.

    Raises:
        ValueError: a size is not positive, or ``head_dim`` is odd.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_dim: int,
        *,
        window: int | None = None,
        persistent_tokens: int = 0,
        rope_base: float = 10000.0,
    ) -> None:
        super().__init__()
        if (
            min(width, heads, head_dim) < 1
            or head_dim % 2
            or (window is not None and window < 1)
            or persistent_tokens < 0
        ):
            raise ValueError(
                f"width {width}, heads {heads}, head_dim {head_dim} (even) and window {window} must be positive, and "
                f"persistent_tokens {persistent_tokens} not negative."
            )
        self.heads, self.head_dim, self.window = heads, head_dim, window
        self.in_proj = nn.Linear(width, 3 * heads * head_dim, bias=False)
        self.out_proj = nn.Linear(heads * head_dim, width, bias=False)
        self.persistent = nn.Parameter(torch.randn(persistent_tokens, width)) if persistent_tokens else None
        self.frequencies = [rope_base ** (-2 * i / head_dim) for i in range(head_dim // 2)]

    def forward(
        self, x_BTE: Tensor, state: AttentionState | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, AttentionState]:
        """Read a piece of a stream.

        Args:
            x_BTE: embeddings.
            state: what an earlier call returned, or None at the beginning.
            mask_BT: bool, False on padding, whose outputs are zero.

        Raises:
            ValueError: nothing to read, or the state has another batch size, or the mask another shape.
        """
        B, T, _ = x_BTE.shape
        if B == 0 or T == 0:
            raise ValueError(f"There is nothing to read: the input is {list(x_BTE.shape)}; no size may be 0.")
        if state is not None and state.keys.shape[0] != B:
            raise ValueError(
                f"The state has {state.keys.shape[0]} rows but the batch has {B}; use state.select(rows) to change it."
            )
        if mask_BT is not None and (mask_BT.shape != (B, T) or mask_BT.dtype != torch.bool):
            raise ValueError(f"mask is {mask_BT.dtype} {list(mask_BT.shape)}; it must be bool {[B, T]}.")
        if mask_BT is None or bool(mask_BT.all()):
            y, after = self._read(x_BTE, state, torch.full((B,), T))
            return self.out_proj(y), after
        order = torch.argsort(~mask_BT, dim=1, stable=True)[..., None]  # real tokens side by side, padding behind
        x_BTE = x_BTE.masked_fill(~mask_BT[..., None], 0)  # unseen, but 0 * NaN is NaN
        y, after = self._read(x_BTE.gather(1, order.expand_as(x_BTE)), state, mask_BT.sum(1).cpu())
        y = torch.zeros_like(y).scatter(1, order.expand_as(y), y)
        return self.out_proj(y * mask_BT[..., None]), after

    def _read(self, x: Tensor, state: AttentionState | None, counts: Tensor) -> tuple[Tensor, AttentionState]:
        """Read rows whose first ``counts [B]`` tokens are real; the others see what they like."""
        B, T, _ = x.shape
        q, k, v = self.in_proj(x).view(B, T, 3, self.heads, self.head_dim).unbind(2)
        if state is None:
            kept = 0 if self.window is None else self.window - 1
            empty = k.new_zeros(B, kept, self.heads, self.head_dim)
            state = AttentionState(empty, empty, torch.zeros(B, dtype=torch.int64))
        cos, sin = self._rotations(state.length, T, x)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        keys, values = torch.cat([state.keys, k], dim=1), torch.cat([state.values, v], dim=1)
        y = self._attend(q, keys, values, state.length)
        return y.reshape(B, T, -1), self._after(keys, values, state, counts, T)

    def _after(self, keys: Tensor, values: Tensor, state: AttentionState, counts: Tensor, T: int) -> AttentionState:
        length = state.length + counts
        kept = int(length.max()) if self.window is None else self.window - 1
        if bool((counts == T).all()):
            first = keys.shape[1] - kept
            if first:  # a view would keep the whole piece in memory for as long as the state lives
                keys, values = keys[:, first:].clone(), values[:, first:].clone()
            return AttentionState(keys, values, length)
        begin = (state.keys.shape[1] + counts - kept).to(keys.device)[:, None]
        index = (begin + torch.arange(kept, device=keys.device)).clamp_min(0)  # below 0 lies nothing real
        index = index[..., None, None].expand(-1, -1, *keys.shape[2:])
        return AttentionState(keys.gather(1, index), values.gather(1, index), length)

    def _attend(self, q_BTHD: Tensor, keys: Tensor, values: Tensor, length: Tensor) -> Tensor:
        """``keys`` and ``values`` begin with what was kept; of that the last ``length`` of each row are real."""
        B, T = q_BTHD.shape[:2]
        kept, span = keys.shape[1] - T, self.window
        missing = (kept - length).clamp_min(0).to(keys.device)  # [B]: kept places that hold nothing
        if span is None and kept == 0:
            return self._attend_from_the_beginning(q_BTHD, keys, values)
        if span is None or span >= T:
            column = torch.arange(kept + T, device=keys.device)
            row = torch.arange(kept, kept + T, device=keys.device)[:, None]
            seen = (column <= row) if span is None else (column <= row) & (column > row - span)
            seen = seen & (column >= missing[:, None, None])  # [B, T, kept + T]
            return self._softmax(q_BTHD, keys, values, seen)
        blocks = -(-T // span)
        spare = blocks * span - T  # the last block is filled up with tokens that nobody sees
        q = F.pad(q_BTHD, (0, 0, 0, 0, 0, spare)).view(B * blocks, span, *q_BTHD.shape[2:])
        near = [F.pad(x, (0, 0, 0, 0, 0, spare)).unfold(1, 2 * span - 1, span).movedim(-1, 2) for x in (keys, values)]
        column = torch.arange(2 * span - 1, device=keys.device)
        row = torch.arange(span, device=keys.device)[:, None]
        seen = ((column >= row) & (column < row + span))[None, None]
        block = torch.arange(blocks, device=keys.device)[:, None, None] * span
        real = column + block >= missing[:, None, None, None]
        seen = (seen & real).reshape(B * blocks, span, -1)
        y = self._softmax(q, near[0].flatten(0, 1), near[1].flatten(0, 1), seen)
        return y.reshape(B, blocks * span, *q_BTHD.shape[2:])[:, :T]

    def _attend_from_the_beginning(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Full attention over a whole text. Persistent tokens go first, as queries too: so it stays plainly causal."""
        p_keys, p_values = self._persistent(q)
        n = p_keys.shape[1]
        q = torch.cat([torch.zeros_like(p_keys), q], dim=1).transpose(1, 2)
        keys, values = torch.cat([p_keys, keys], dim=1), torch.cat([p_values, values], dim=1)
        y = F.scaled_dot_product_attention(q, keys.transpose(1, 2), values.transpose(1, 2), is_causal=True)
        return y[:, :, n:].transpose(1, 2)

    def _softmax(self, q_NTHD: Tensor, keys_NSHD: Tensor, values_NSHD: Tensor, seen_NTS: Tensor) -> Tensor:
        p_keys, p_values = self._persistent(q_NTHD)
        keys, values = torch.cat([p_keys, keys_NSHD], dim=1), torch.cat([p_values, values_NSHD], dim=1)
        seen = F.pad(seen_NTS, (p_keys.shape[1], 0), value=True)[:, None]
        q, keys, values = (t.transpose(1, 2) for t in (q_NTHD, keys, values))
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=seen).transpose(1, 2)

    def _persistent(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the persistent tokens for each row of ``like [N, T, H, D]``: ``[N, P, H, D]``."""
        N = like.shape[0]
        if self.persistent is None:
            none = like.new_zeros(N, 0, self.heads, self.head_dim)
            return none, none
        _, k, v = self.in_proj(self.persistent).view(-1, 3, self.heads, self.head_dim).unbind(1)
        return k.expand(N, *k.shape), v.expand(N, *v.shape)

    def _rotations(self, length: Tensor, T: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of each position's angles, ``[B or 1, T, 1, D / 2]``.

        Angles are float64, so that the millionth position is as exact as the first.
        """
        if int(length.min()) == int(length.max()):
            length = length[:1]
        position = length[:, None] + torch.arange(T)
        angle = position[..., None].double() * torch.tensor(self.frequencies, dtype=torch.float64)
        return tuple(f(angle)[:, :, None].to(x) for f in (torch.cos, torch.sin))  # type: ignore[return-value]


def _rotate(x_BTHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x_BTHD.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
