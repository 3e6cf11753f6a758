"""Root-mean-square normalisation, in the precision that keeps it exact."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mnemonist.memory.kernels.native_elementwise import rms_norm


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
