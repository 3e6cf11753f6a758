"""Asking a model problems: which of the tokens asked for it would have written, and what they cost it.

Long problems are read in pieces, so that working memory does not grow with them; a split changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from mnemonist.data import IGNORED
from mnemonist.evals.problems import Problems
from mnemonist.models.modeling import LanguageModel, ModelState

PIECE = 4096
"""Tokens of a row read at a time."""
TOKENS = 32768
"""Tokens read at a time over all rows."""

Progress = Callable[[int], None]
"""Called with the number of tokens read since the last call."""


@dataclass(frozen=True, eq=False)
class Scores:
    """What came of N problems."""

    asked: NDArray[np.int64]
    """``[N]``: tokens that were asked for."""
    right: NDArray[np.int64]
    """``[N]``: those that the model found likeliest."""
    bits: NDArray[np.float64]
    """``[N]``: what they cost, ``-log2 p``, summed."""

    @property
    def tokens(self) -> NDArray[np.float64]:
        """``[N]``: the share of tokens that was right."""
        return self.right / self.asked

    @property
    def problems(self) -> NDArray[np.bool_]:
        """``[N]``: whether all were."""
        return self.right == self.asked


def score(
    model: LanguageModel, problems: Problems, progress: Progress | None = None, state: ModelState | None = None
) -> Scores:
    """Ask a model in its present mode; each problem is a stream of its own.

    Args:
        model: whom to ask.
        problems: N of them.
        progress: called after each piece.
        state: what the model has become in N streams before, each of which a problem goes on from; None begins anew.

    Raises:
        ValueError: a token is outside the model's vocabulary.
    """
    right, bits = np.zeros(len(problems), np.int64), np.zeros(len(problems))
    rows = max(1, TOKENS // min(PIECE, problems.tokens.shape[1]))
    for first in range(0, len(problems), rows):
        part = slice(first, first + rows)
        before = None if state is None else state.select(torch.arange(len(problems))[part])
        right[part], bits[part] = _score_rows(model, problems.tokens[part], problems.targets[part], progress, before)
    return Scores((problems.targets != IGNORED).sum(1), right, bits)


def _score_rows(
    model: LanguageModel,
    tokens: NDArray[np.int64],
    targets: NDArray[np.int64],
    progress: Progress | None,
    state: ModelState | None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    right, nats = torch.zeros(len(tokens), dtype=torch.int64), torch.zeros(len(tokens), dtype=torch.float64)
    device = model.embedding.weight.device
    end = int(np.flatnonzero((targets != IGNORED).any(0))[-1]) + 1  # what stands behind the last question is not read
    for at in range(0, end, PIECE):
        piece = torch.from_numpy(tokens[:, at : min(at + PIECE, end)]).to(device)
        wanted = torch.from_numpy(targets[:, at : at + piece.shape[1]])
        asked = wanted != IGNORED
        with torch.inference_mode():
            output = model(piece, state, positions=asked.to(device))
        state = output.state
        row, answers = asked.nonzero()[:, 0], wanted[asked]
        if len(row):
            logits = output.logits.float().cpu()
            right.index_add_(0, row, (logits.argmax(-1) == answers).long())
            nats.index_add_(0, row, F.cross_entropy(logits, answers, reduction="none").double())
        if progress is not None:
            progress(piece.numel())
    return right.numpy(), nats.numpy() / math.log(2)
