"""The optimum: a linear memory that is, at every token, the minimum of all that it has read.

Of the losses ``w_s / 2 |k_s M - v_s|^2`` of the tokens so far, ``w_s`` being a token's step size times what has been
kept since, and of ``ridge / 2 |M - M_0|^2``, which never fades, the minimum is

    M_t = H_t^-1 G_t        H_t = ridge I + sum_s w_s k_s^T k_s        G_t = ridge M_0 + sum_s w_s k_s^T v_s

A state keeps the two sums side by side, ``[G | H]``. They are written like any linear memory under the dot objective
whose values are ``[v | k]``, and that decays to what it began with. Only the read is new: ``q M = (q H^-1) G``.

Token by token `minimum` does it. By chunk, the systems ``x_t H_t = q_t`` of all tokens are solved at once by conjugate
gradients, in which no ``H_t`` is ever written out: ``x_t H_t`` is linear attention with ``x`` for queries. Each chunk
knows the inverse of the ``H`` that it starts from, and a token's ``H`` differs from that one by the few keys before it
in the chunk: with it as a preconditioner it takes fewer steps. Every token stops by itself, once its residual is
rounding, so that no token changes a bit of what comes before it. A compiled kernel may search in place of the loop
below (`kernels.native_systems`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mnemonist.memory.gates import chunk_gates, reading_before
from mnemonist.memory.kernels import native_systems
from mnemonist.memory.rule import MemoryRule
from mnemonist.memory.stream import Gates, cut_chunks

CHUNK = 32
"""Tokens that share a preconditioner. Shorter ones are closer to it, and there are more to invert."""
TOLERANCE = 16
"""Residual at which a token stops, relative to its query, in units of the last place."""

STEPS = 10
"""Steps until the last token of a chunk stops, on average, for what it costs: random keys of 64 channels, float32."""


def sums_of(rule: MemoryRule, initial_HKV: Tensor) -> Tensor:
    """``[G | H]`` before the first token, ``[H, K, V + K]``, for the initial weights ``M_0``."""
    K = initial_HKV.shape[-2]
    eye = torch.eye(K, dtype=initial_HKV.dtype, device=initial_HKV.device)
    return rule.ridge * torch.cat([initial_HKV, eye.expand(*initial_HKV.shape[:-1], K)], dim=-1)


def parts(sums: Tensor) -> tuple[Tensor, Tensor]:
    """``G [..., K, V]`` and ``H [..., K, K]`` of ``[G | H]``."""
    K = sums.shape[-2]
    return sums[..., :-K], sums[..., -K:]


def minimum(sums: Tensor) -> Tensor:
    """``M = H^-1 G``: ``[..., K, V + K] -> [..., K, V]``."""
    G, H = parts(sums)
    return torch.linalg.solve(H, G)


@dataclass(frozen=True)
class Systems:
    """``H_t`` of every token of a piece: ``base H_start + fixed I + sum_s mix[t, s] k_s^T k_s``, never written out."""

    keys: Tensor
    """``[X, C, K]``: C tokens of X chunks, ``X = G * N`` for N memories."""
    start: Tensor
    """``[X, K, K]``."""
    base: Tensor
    """``[X, C, 1]``."""
    fixed: Tensor
    """``[X, C, 1]``."""
    mix: Tensor
    """``[X, C, C]``."""
    shape: tuple[int, int, int]
    """B, T and H of the piece."""

    def times(self, x: Tensor) -> Tensor:
        """``x_t H_t`` for every token, ``[X, C, K]``."""
        y = torch.baddbmm(x * self.fixed, x * self.base, self.start)
        return y.baddbmm_((x @ self.keys.mT) * self.mix, self.keys)

    def solve(self, q_BTHK: Tensor) -> Tensor:
        """``x`` with ``x_t H_t = q_t`` for every token, ``[B, T, H, K]``."""
        B, T, H = self.shape
        C, K = self.keys.shape[1:]
        q = cut_chunks(_whole_chunks(q_BTHK, C), C).flatten(0, 1)
        x = self._search(q)
        x = x.reshape(-1, B, H, C, K).permute(1, 0, 3, 2, 4)
        return x.flatten(1, 2)[:, :T]

    def _search(self, q: Tensor) -> Tensor:
        most = 2 * q.shape[-1]  # in exact arithmetic half of it ends every search
        near = TOLERANCE * torch.finfo(q.dtype).eps
        found = native_systems.solve(q, self.keys, self.start, self.base, self.fixed, self.mix, most, near)
        return self._by_torch(q, most, near) if found is None else found

    def _by_torch(self, q: Tensor, most: int, near: float) -> Tensor:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(self.start).L)
        enough = near**2 * q.square().sum(-1, keepdim=True)
        x = q @ inverse
        residual = q - self.times(x)
        direction = ahead = residual @ inverse
        slope = (residual * ahead).sum(-1, keepdim=True)
        for _ in range(most):
            open_ = residual.square().sum(-1, keepdim=True) > enough
            if not bool(open_.any()):
                break
            across = self.times(direction)
            step = torch.where(open_, slope / (direction * across).sum(-1, keepdim=True), 0)
            x = x.addcmul(step, direction)
            residual = residual.addcmul(step, across, value=-1)
            ahead = residual @ inverse
            slope, before = (residual * ahead).sum(-1, keepdim=True), slope
            direction = ahead.addcmul(torch.where(open_, slope / before, 0), direction)
        return x


def systems(
    rule: MemoryRule, k_BTHK: Tensor, gates: Gates, start_BHKK: Tensor, mask_BT: Tensor | None, read_at: str
) -> Systems:
    """The systems of a piece; ``read_at`` says whether a token's own key is part of its ``H``. Cut from the graph."""
    B, T, H, K = k_BTHK.shape
    C = min(T, CHUNK)
    mask = None if mask_BT is None and T % C == 0 else _mask(mask_BT, B, T, k_BTHK.device)
    keys = cut_chunks(_whole_chunks(k_BTHK.detach(), C), C)
    moved = gates.each(lambda gate: cut_chunks(_whole_chunks(gate.detach(), C), C))
    valid = None if mask is None else cut_chunks(_whole_chunks(mask[..., None].expand(B, T, H), C), C)
    after = chunk_gates(moved.step_size, None, moved.log_decay, valid, to_target=True)
    read = after if read_at == "after" else reading_before(after, to_target=True)
    start, starts = start_BHKK.detach().flatten(0, 1), []
    held = rule.ridge * torch.eye(K, dtype=start.dtype, device=start.device)
    for chunk, written in zip(after.unbind(), keys.unbind(), strict=True):
        starts.append(start)
        left, returned = (part.unsqueeze(-1) for part in chunk.base_last)
        weighed = written * chunk.mix_last.unsqueeze(-1)
        start = (start * left).addcmul_(returned, held).baddbmm_(weighed.mT, written)
    base, fixed, mix = (part.flatten(0, 1) for part in (*read.base, read.mix))
    return Systems(keys.flatten(0, 1), torch.cat(starts), base, rule.ridge * fixed, mix, (B, T, H))


def _mask(mask_BT: Tensor | None, B: int, T: int, device: torch.device) -> Tensor:
    return torch.ones(B, T, dtype=torch.bool, device=device) if mask_BT is None else mask_BT


def _whole_chunks(x_BT: Tensor, C: int) -> Tensor:
    """With zeros (False) behind, up to a whole number of chunks."""
    return F.pad(x_BT, (0, 0) * (x_BT.dim() - 2) + (0, -x_BT.shape[1] % C))


class _Correction(torch.autograd.Function):
    """Zeros that stand for ``r_t H_t^-1`` of residuals that are zero but for rounding: only its derivative is not."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, solved: Systems) -> Tensor:
        ctx.solved = solved
        return torch.zeros_like(residual)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.solved.solve(grad), None


def correction(residual_BTHK: Tensor, solved: Systems) -> Tensor:
    """Zeros that give solutions the derivatives of ``q_t H_t^-1``, for a ``residual`` of ``q_t - x_t H_t``."""
    return _Correction.apply(residual_BTHK, solved)
