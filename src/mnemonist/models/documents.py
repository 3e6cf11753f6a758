"""Packed documents: several texts in one row of tokens, none of which may know of another.

A memory, a convolution and an attention window would each need its own way of stopping at a border. Giving every
document a row of its own (padded, and padding is a no-op) stops them all, exactly. Of a row that goes on from an
earlier piece, the text before the first border belongs to the document that piece ended in: it alone keeps the state.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DocumentRows:
    """How to take ``[B, T]`` tokens apart into ``N`` documents of at most ``L`` tokens."""

    source: Tensor
    """``[N, L]`` int64: place of each token in the flattened ``[B * T]``; any place at padding."""
    mask: Tensor
    """``[N, L]`` bool: False at padding."""
    row: Tensor
    """``[N]`` int64: the row that each document stands in."""
    ends: Tensor
    """``[N]`` bool: whether it is the last document of its row."""
    carried: int
    """How many of them go on from the state that was given: the first ones."""


def gather_documents(starts: Tensor, carried: bool) -> DocumentRows | None:
    """Take rows apart where ``starts [B, T]`` is True, and at every row's first token.

    Documents that begin here stand behind those that go on from a state, if one is ``carried`` into the rows. All are
    read at once, however many there are of which kind: processes that share a model's weights then take equal steps.

    Returns:
        None if the rows can be read as they are.
    """
    B, T = starts.shape
    begins = starts.clone()
    begins[:, 0] = True
    first = begins.flatten().nonzero().squeeze(1)  # documents lie one after the other in the flattened tokens
    goes_on = ~starts.flatten()[first] if carried else torch.zeros_like(first, dtype=torch.bool)
    if len(first) == B and bool(goes_on.all() if carried else True):
        return None
    lengths = torch.diff(first, append=torch.tensor([B * T], device=starts.device))
    row = first // T
    ends = torch.diff(row, append=torch.tensor([B], device=starts.device)) > 0
    order = torch.argsort(~goes_on, stable=True)
    first, lengths, row, ends = first[order], lengths[order], row[order], ends[order]
    column = torch.arange(int(lengths.max()), device=starts.device)
    mask = column < lengths[:, None]
    source = (first[:, None] + column).clamp_max(B * T - 1)
    return DocumentRows(source, mask, row, ends, int(goes_on.sum()))


def put_back(documents: DocumentRows, part: Tensor, shape: torch.Size) -> Tensor:
    """``[N, L, ...] -> [B, T, ...]``."""
    values = part[documents.mask]
    if documents.carried:  # else they are in order already
        values = values[documents.source[documents.mask].argsort()]
    return values.reshape(*shape, *values.shape[1:])
