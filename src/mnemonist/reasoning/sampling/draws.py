"""One token for each row of a batch, from its logits and one uniform number.

A token is drawn by inverting the distribution function: the first token at which the summed probabilities exceed a
number drawn uniformly from [0, 1). So a token costs one number, the numbers of a prompt can be drawn ahead from a
generator of its own, and what a row draws does not depend on the rows beside it.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mnemonist.errors import UserError
from mnemonist.reasoning.attempts import Decoding

FEW = 1024
"""Likeliest tokens that are looked at before the whole vocabulary is sorted, which is dear."""


COLDEST = 1e-30
"""Logits divided by less than this would be infinite; it takes the likeliest token all the same."""
BLOCK = 256
"""Probabilities that are summed before it is known where to look closer."""


def uniform_numbers(seed: int, number: int, count: int) -> NDArray[np.float64]:
    """The numbers of prompt ``number``; the first ones are the same whatever the count."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(number,)))).random(count)


def draw_tokens(logits_BV: Tensor, decoding: Decoding, uniform_B: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    """Tokens ``[B]``, and ln p of each at the temperature of the draw, before top_k and top_p cut.

    Raises:
        UserError: the model gave something that is no number.
    """
    logits_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))
    if decoding.temperature not in (0, 1):
        logits_BV = logits_BV / max(decoding.temperature, COLDEST)
    probs_BV = logits_BV.softmax(-1)
    if decoding.temperature == 0:
        tokens = logits_BV.argmax(-1)
    else:
        tokens = _drawn(probs_BV, decoding, torch.as_tensor(uniform_B, device=logits_BV.device))
    log_probs = probs_BV.gather(1, tokens[:, None])[:, 0].log()
    if not bool(log_probs.isfinite().all()):
        raise UserError("the model's logits are no numbers (NaN or infinite); check its weights, or use float32")
    return tokens, log_probs


def _drawn(probs_BV: Tensor, decoding: Decoding, uniform_B: Tensor) -> Tensor:
    V = probs_BV.shape[1]
    k = min(decoding.top_k, V) or V
    if k == V and decoding.top_p == 1:
        return _inverted(probs_BV, uniform_B)
    few, tokens = probs_BV.topk(min(k, max(FEW, decoding.top_k), V))
    mass = few.sum(-1) if k < V else torch.ones_like(uniform_B)
    drawn = _from_sorted(few, tokens, mass, decoding.top_p, uniform_B)
    if k == V:  # rows whose few likeliest do not have the mass asked for; each row decides for itself
        rows = (few.sum(-1) < decoding.top_p).nonzero()[:, 0]
        if len(rows):
            every, tokens = probs_BV[rows].sort(descending=True, stable=True)
            drawn[rows] = _from_sorted(every, tokens, mass[rows], decoding.top_p, uniform_B[rows])
    return drawn


def _from_sorted(probs_BK: Tensor, tokens_BK: Tensor, mass_B: Tensor, top_p: float, uniform_B: Tensor) -> Tensor:
    """Draw among the first tokens that together have ``top_p`` of the mass; at least the first."""
    if top_p < 1:
        before = probs_BK.cumsum(-1, dtype=torch.float64) - probs_BK
        cut = before >= top_p * mass_B[:, None]
        cut[:, 0] = False
        probs_BK = probs_BK.masked_fill(cut, 0)
    place = _inverted(probs_BK, uniform_B)
    return tokens_BK.gather(1, place[:, None])[:, 0]


def _inverted(probs_BK: Tensor, uniform_B: Tensor) -> Tensor:
    """The first place of each row where the sum exceeds ``uniform`` of its total: never one of probability 0.

    Running sums are looked at of blocks, and then within one of them: those of a whole vocabulary cost more than its
    softmax.
    """
    K = probs_BK.shape[1]
    if K <= BLOCK:
        return _first_above(probs_BK, uniform_B, None)[0]
    blocks = F.pad(probs_BK, (0, -K % BLOCK)).unflatten(1, (-1, BLOCK))
    block, rest = _first_above(blocks.sum(-1), uniform_B, None)
    inside = blocks.gather(1, block[:, None, None].expand(-1, -1, BLOCK))[:, 0]
    return (block * BLOCK + _first_above(inside, uniform_B, rest)[0]).clamp_max(K - 1)  # of NaN, anything comes out


def _first_above(weights_BK: Tensor, uniform_B: Tensor, aim_B: Tensor | None) -> tuple[Tensor, Tensor]:
    """The place where the running sum exceeds ``aim`` (None: ``uniform`` of the total), and how far into it that is."""
    summed = weights_BK.cumsum(-1, dtype=torch.float64)
    total = summed[:, -1]
    aim = uniform_B * total if aim_B is None else aim_B
    # Rounding must not carry it to the total: behind the last weight above 0 there is nothing.
    aim = torch.minimum(aim, torch.nextafter(total, torch.zeros_like(total)))
    place = torch.searchsorted(summed, aim[:, None], right=True).clamp_max(weights_BK.shape[1] - 1)
    before = summed.gather(1, place) - weights_BK.gather(1, place)
    return place[:, 0], (aim - before[:, 0]).clamp_min(0)
