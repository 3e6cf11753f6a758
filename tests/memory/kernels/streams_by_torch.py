"""The short convolution, non-linearity and norms of a memory's layer in torch, and something to send through them."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def tensors(B, T, H, D, taps, dtype):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return normal(B, T, 3 * H * D), normal(B, taps - 1, 3 * H * D), normal(taps, 3 * H * D)


def by_torch(x, tail, conv, heads, unit_keys):
    past = torch.cat([tail, x], dim=1)
    y = F.silu(sum(past[:, i : i + x.shape[1]] * tap for i, tap in enumerate(conv)))
    q, k, v = y.unflatten(-1, (3, heads, -1)).unbind(2)
    if unit_keys:
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    return q, k, v, past[:, x.shape[1] :]


def send_back(fast, slow):
    """The same derivatives, drawn at random, back through two ways to the same outputs."""
    weights = [torch.randn(y.shape, dtype=y.dtype) for y in slow]
    for ys in (fast, slow):
        sum((y * w).sum() for y, w in zip(ys, weights, strict=True)).backward()
