"""Root-mean-square normalisation, in the precision that keeps it exact."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mnemonist.memory.kernels.native_elementwise import gated_norm, rms_norm


def wide(x: Tensor) -> Tensor:
    """The tensor in float32 at least, where half precision would round away what matters."""
    return x if x.dtype == torch.float64 else x.float()


class RMSNorm(nn.Module):
    """``x / rms(x) * weight`` over the last dimension, computed in float32 at least (Zhang & Sennrich 2019, eq. 4)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width] -> [..., width]``."""
        y = wide(x)
        return rms_norm(y, self.weight.to(y.dtype), self.eps).to(x.dtype)


def gated_norms(a: Tensor, b: Tensor, norm: RMSNorm, gate_norm: RMSNorm | None = None) -> Tensor:
    """``silu(gate_norm(a)) * norm(b)`` for tensors of one shape; without a norm for it, the gate is as it is."""
    y, z = wide(a), wide(b)
    gate_weight = None if gate_norm is None else gate_norm.weight.to(y.dtype)
    return gated_norm(y, z, norm.weight.to(z.dtype), norm.eps, gate_weight).to(torch.promote_types(a.dtype, b.dtype))
