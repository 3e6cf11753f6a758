"""The short convolution, non-linearity and norms of a memory's layer in torch, and something to send through them."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def tensors(B, T, H, D, taps, dtype, writes=1):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    channels = (1 + 2 * writes) * H * D
    return normal(B, T, channels), normal(B, taps - 1, channels), normal(taps, channels)


def by_torch(x, tail, conv, heads, unit_keys, writes=1):
    past = torch.cat([tail, x], dim=1)
    y = F.silu(sum(past[:, i : i + x.shape[1]] * tap for i, tap in enumerate(conv)))
    q, k, v = (x.flatten(1, 2) for x in y.unflatten(-1, (1 + 2 * writes, heads, -1)).split([1, writes, writes], dim=2))
    if unit_keys:
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    return q, k, v, past[:, x.shape[1] :]


def send_back(fast, slow):
    """The same derivatives, drawn at random, back through two ways to the same outputs."""
    weights = [torch.randn(y.shape, dtype=y.dtype) for y in slow]
    for ys in (fast, slow):
        sum((y * w).sum() for y, w in zip(ys, weights, strict=True)).backward()
