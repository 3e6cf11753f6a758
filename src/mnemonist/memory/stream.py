"""What the ways of reading share: the gates of a piece of a stream, and the trace a reading leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Gates:
    """Per-token gates of a piece, in the precision of the state."""

    step_size: Tensor
    """theta ``[B, T, H]``."""
    log_momentum: Tensor | None
    """log eta ``[B, T, H]``, or None for a rule without momentum."""
    log_decay: Tensor | None
    """log (1 - alpha): ``[B, T, H]``, ``[B, T, H, D]`` under channel retention, or None."""

    def each(self, change: Callable[[Tensor], Tensor]) -> Gates:
        """The gates with ``change`` applied to each of them."""
        step_size, *others = (
            None if g is None else change(g) for g in (self.step_size, self.log_momentum, self.log_decay)
        )
        assert step_size is not None
        return Gates(step_size, *others)

    def given(self) -> list[Tensor]:
        """Those that the rule has."""
        return [g for g in (self.step_size, self.log_momentum, self.log_decay) if g is not None]

    def part(self, span: slice) -> Gates:
        """The gates of some of the tokens."""
        return self.each(lambda g: g[:, span])

    def without_padding(self, mask_BT: Tensor | None) -> Gates:
        """Gates under which a padded token neither writes nor forgets nor lets momentum fade."""
        if mask_BT is None:
            return self
        real = mask_BT[..., None]

        def clear(gate: Tensor) -> Tensor:
            return torch.where(real if gate.dim() == 3 else real[..., None], gate, torch.zeros_like(gate))

        return self.each(clear)


@dataclass(frozen=True)
class Trace:
    """By-products of a reading, per token and head: both ``[B, T, H]``."""

    loss: Tensor
    gradient_norm: Tensor


def among_writes(x_BT: Tensor, writes: int, place: int) -> Tensor:
    """``[B, T, ...] -> [B, T * writes, ...]``: what a token has once, at one of its writes; at the others zeros."""
    if writes == 1:
        return x_BT
    around = (0, 0) * (x_BT.dim() - 2) + (place, writes - 1 - place)
    return F.pad(x_BT.unsqueeze(2), around).flatten(1, 2)


@dataclass(frozen=True)
class Window:
    """The tokens of a piece with those before them that its steps go down too (`MemoryRule.window`), if any."""

    k: Tensor
    """``[B, P + T, H, K]``: P = ``window - 1`` tokens stand before the first one."""
    v: Tensor
    """``[B, P + T, H, V]``."""
    step_size: Tensor
    """``[B, P + T, H]``, zero where there is no token."""

    @staticmethod
    def begin(k: Tensor, v: Tensor, step_size: Tensor, recent: tuple[Tensor, ...], phase: Tensor | None) -> Window:
        """The window of a piece ``[B, T, ...]``, in which row b begins at column ``phase[b]`` (None: all at 0)."""
        tokens = (k, v, step_size)
        if not recent:
            return Window(*tokens)
        whole = [torch.cat([old, new.to(old.dtype)], 1) for old, new in zip(recent, tokens, strict=True)]
        if phase is not None:  # they stand right before the first token
            whole = [_put(x, old, phase) for x, old in zip(whole, recent, strict=True)]
        return Window(*whole)

    def part(self, span: slice, before: int) -> Window:
        """That of some of the tokens; ``before`` is P."""
        wide = slice(span.start, span.stop + before)
        return Window(self.k[:, wide], self.v[:, wide], self.step_size[:, wide])

    def end(self, before: int, ends: Tensor | None) -> tuple[Tensor, ...]:
        """`MemoryState.recent` after the piece, whose rows end at columns ``ends [B]`` (None: at the last)."""
        if not before:
            return ()
        tokens = (self.k, self.v, self.step_size)
        # Copies: views would keep the whole piece in memory.
        if ends is None:
            return tuple(x[:, x.shape[1] - before :].clone() for x in tokens)
        return tuple(x.gather(1, _columns(x, ends, before)) for x in tokens)


def _columns(x_BT: Tensor, first: Tensor, count: int) -> Tensor:
    """The index of ``count`` columns of each row, from ``first [B]`` on."""
    columns = first.to(x_BT.device)[:, None] + torch.arange(count, device=x_BT.device)
    return columns.reshape(*columns.shape, *[1] * (x_BT.dim() - 2)).expand(-1, -1, *x_BT.shape[2:])


def _put(x_BT: Tensor, parts: Tensor, first: Tensor) -> Tensor:
    return x_BT.scatter(1, _columns(x_BT, first, parts.shape[1]), parts)


def cut_chunks(x_BT: Tensor, length: int, before: int = 0) -> Tensor:
    """``[B, T, H, ...] -> [G, N, C, ...]``: G chunks of C = ``length`` tokens of N = B * H memories.

    Where ``before`` tokens stand before the first, each chunk has so many more: those before it.
    """
    if before:
        chunks = (x_BT.shape[1] - before) // length
        starts = torch.arange(0, chunks * length, length, device=x_BT.device)
        x_BT = x_BT.index_select(1, (starts[:, None] + torch.arange(length + before, device=x_BT.device)).flatten())
        length += before
    B, T, H = x_BT.shape[:3]
    x = x_BT.reshape(B, T // length, length, *x_BT.shape[2:])
    return x.movedim(1, 0).transpose(2, 3).reshape(T // length, B * H, length, *x_BT.shape[3:])


def align(
    mask_BT: Tensor | None, phase: Tensor, shape: torch.Size, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Shift rows so that padding is gone and all chunks begin at the same columns.

    Returns:
        For each column of the new layout the old column ``[B, T']``, whether it holds a real token ``[B, T']``, and
        the column after the last real token of each row ``[B]`` (on the CPU).
    """
    B, T = shape
    mask = torch.ones(B, T, dtype=torch.bool, device=device) if mask_BT is None else mask_BT
    order = torch.argsort(~mask, dim=1, stable=True)  # real tokens first, in their order
    ends = phase + mask.sum(1).cpu()
    width = max(1, int(ends.max()))
    column = torch.arange(width, device=device)
    start, end = phase.to(device)[:, None], ends.to(device)[:, None]
    valid = (column >= start) & (column < end)
    source = order.gather(1, (column - start).clamp(0, T - 1))
    return source, valid, ends
