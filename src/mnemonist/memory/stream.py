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


def cut_chunks(x_BT: Tensor, length: int) -> Tensor:
    """``[B, T, H, ...] -> [G, N, C, ...]``: G chunks of C = ``length`` tokens of N = B * H memories."""
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
