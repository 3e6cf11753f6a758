"""Packed documents: several texts in one row of tokens, none of which may know of another.

A memory, a convolution and an attention window would each need its own way of stopping at a border. Giving every
document a row of its own (padded, and padding is a no-op) stops them all, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DocumentRows:
    """How to take ``[B, T]`` tokens apart into documents ``[N, L]`` and put them together again."""

    source: Tensor
    """``[N, L]`` int64: place of each token in the flattened ``[B * T]``; any place at padding."""
    mask: Tensor
    """``[N, L]`` bool: False at padding."""
    last: Tensor
    """``[B]`` int64: the document that ends each row."""
    shape: torch.Size

    def put_back(self, x_NL: Tensor) -> Tensor:
        """``[N, L, ...] -> [B, T, ...]``."""
        return x_NL[self.mask].reshape(*self.shape, *x_NL.shape[2:])


def gather_documents(starts: Tensor) -> DocumentRows | None:
    """Rows for the documents that begin where ``starts [B, T]`` is True (and at every row's first token).

    Returns None if no document begins inside a row, so that there is nothing to take apart.
    """
    B, T = starts.shape
    begins = starts.clone()
    begins[:, 0] = True
    if int(begins.sum()) == B:
        return None
    first = begins.flatten().nonzero().squeeze(1)  # documents lie one after the other in the flattened tokens
    lengths = torch.diff(first, append=torch.tensor([B * T], device=starts.device))
    column = torch.arange(int(lengths.max()), device=starts.device)
    mask = column < lengths[:, None]
    source = (first[:, None] + column).clamp_max(B * T - 1)
    return DocumentRows(source, mask, begins.sum(1).cumsum(0) - 1, starts.shape)
