"""How far two memories of one model have drifted apart.

What a memory has learned is how far its weights have moved from where every stream begins: ``a = M_a - M_0``. Two of
them are compared by

    distance = |a - b| / (|a| + |b|)        cosine = a . b / (|a| |b|)

The distance is 0 for memories that are the same and at most 1 (the triangle inequality): where they learned opposite
things, or one of them nothing. Unrelated memories that moved equally far are 0.71 apart. It is symmetric, and ``M_0``
cancels, so that large initial weights do not make everything look alike. Momentum begins at zero and is compared
likewise. The matrices of a deep memory count as one vector.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from mnemonist.models.state import StreamState

MEMORY = re.compile(r"(blocks\.(\d+)\..*)\bweights\.\d+")


@dataclass(frozen=True)
class BlockDifference:
    """How far the memories of one block are apart, per stream and head: float64 ``[B, H]`` each."""

    block: int
    """Its place in the model, from 0."""
    distance: Tensor
    """0 to 1, of the weights."""
    cosine: Tensor
    """-1 to 1, of the weights; NaN where one of them has learned nothing."""
    momentum_distance: Tensor | None
    """0 to 1; None if the rule has no momentum."""
    momentum_cosine: Tensor | None


@dataclass(frozen=True)
class SessionDifference:
    """How far two sessions are apart; as text, a table."""

    blocks: tuple[BlockDifference, ...]
    """Those that have a memory."""

    @property
    def distance(self) -> float:
        """The mean distance of weights over blocks, streams and heads; 0 for a model without memory."""
        return float(torch.cat([block.distance.flatten() for block in self.blocks]).mean()) if self.blocks else 0.0

    def __str__(self) -> str:
        if not self.blocks:
            return "This model has no memory whose weights could differ."
        lines = ["block  stream  head  distance  cosine  of momentum: distance  cosine"]
        for block in self.blocks:
            for stream, head in torch.cartesian_prod(*(torch.arange(n) for n in block.distance.shape)).tolist():
                parts = (block.distance, block.cosine, block.momentum_distance, block.momentum_cosine)
                d, c, md, mc = ("-" if part is None else f"{part[stream, head]:.4f}" for part in parts)
                lines.append(f"{block.block:>5}  {stream:>6}  {head:>4}  {d:>8}  {c:>6}  {md:>21}  {mc:>6}")
        return "\n".join(lines)


def compare_states(one: StreamState, other: StreamState, origin: StreamState) -> SessionDifference:
    """Compare the memories of two states of one model, given the state before the first token; all of ``B`` rows."""
    a, b, start = (state.to_tensors() for state in (one, other, origin))
    places = dict.fromkeys((match[1], int(match[2])) for match in map(MEMORY.fullmatch, a) if match)
    blocks = []
    for place, block in places:
        distance, cosine = _compare(*(_flat(state, f"{place}weights.") for state in (a, b, start)))
        momenta = [_flat(state, f"{place}momentum.") for state in (a, b, start)]
        md, mc = (None, None) if momenta[0] is None else _compare(*momenta)
        blocks.append(BlockDifference(block, distance, cosine, md, mc))
    return SessionDifference(tuple(blocks))


def _flat(tensors: dict[str, Tensor], prefix: str) -> Tensor | None:
    """The matrices of a group as float64 ``[B, H, N]``; None if there are none."""
    parts = [tensor.double().cpu().flatten(2) for name, tensor in tensors.items() if name.startswith(prefix)]
    return torch.cat(parts, dim=2) if parts else None


def _compare(a: Tensor | None, b: Tensor | None, start: Tensor | None) -> tuple[Tensor, Tensor]:
    """Distance and cosine ``[B, H]`` of what was added to ``start``."""
    assert a is not None and b is not None and start is not None
    a, b = a - start, b - start
    norm_a, norm_b = a.norm(dim=2), b.norm(dim=2)
    total = norm_a + norm_b
    distance = torch.where(total > 0, (a - b).norm(dim=2) / total, torch.zeros_like(total))
    cosine = (a * b).sum(2) / (norm_a * norm_b)
    return distance.clamp(max=1), cosine.clamp(-1, 1)  # rounding may go beyond by a bit
