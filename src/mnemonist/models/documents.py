"""Packed documents: several texts in one row of tokens, none of which may know of another.

A memory, a convolution and an attention window would each need its own way of stopping at a border. Giving every
document a row of its own (padded, and padding is a no-op) stops them all, exactly. Of a row that goes on from an
earlier piece, the text before the first border belongs to the document that piece ended in: it alone keeps the state.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    carried: bool
    """Whether these documents go on from the state that was given."""


def gather_documents(starts: Tensor, carried: bool) -> list[DocumentRows]:
    """Take rows apart where ``starts [B, T]`` is True, and at every row's first token.

    Returns:
        First the documents that begin here, then, if a state is ``carried`` into the rows, those that go on from it;
        a group without documents is left out. Empty if the rows can be read as they are.
    """
    B, T = starts.shape
    begins = starts.clone()
    begins[:, 0] = True
    first = begins.flatten().nonzero().squeeze(1)  # documents lie one after the other in the flattened tokens
    goes_on = ~starts.flatten()[first] if carried else torch.zeros_like(first, dtype=torch.bool)
    if len(first) == B and bool(goes_on.all() if carried else True):
        return []
    lengths = torch.diff(first, append=torch.tensor([B * T], device=starts.device))
    row = first // T
    ends = torch.diff(row, append=torch.tensor([B], device=starts.device)) > 0
    groups = []
    for carried_on, chosen in ((False, ~goes_on), (True, goes_on)):
        if bool(chosen.any()):
            column = torch.arange(int(lengths[chosen].max()), device=starts.device)
            mask = column < lengths[chosen, None]
            source = (first[chosen, None] + column).clamp_max(B * T - 1)
            groups.append(DocumentRows(source, mask, row[chosen], ends[chosen], carried_on))
    return groups


def put_back(groups: Sequence[DocumentRows], parts: Sequence[Tensor], shape: torch.Size) -> Tensor:
    """``[N, L, ...]`` of each group ``-> [B, T, ...]``."""
    values = torch.cat([part[group.mask] for group, part in zip(groups, parts, strict=True)])
    place = torch.cat([group.source[group.mask] for group in groups])
    if len(groups) > 1:
        values = values[place.argsort()]  # within a group they are in order already
    return values.reshape(*shape, *values.shape[1:])
