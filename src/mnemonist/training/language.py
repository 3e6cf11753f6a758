"""Language modelling for the loop: which rows a step reads, and what the next token cost."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from mnemonist.data import IGNORED, Document, PackedRows
from mnemonist.training.configuration import TrainingConfig
from mnemonist.training.gradients import BatchOf, LossSum

Rows = dict[str, torch.Tensor]


def packed_batches(documents: Iterable[Document], config: TrainingConfig) -> BatchOf:
    """``batch_of`` for `train`: packed rows of the documents, a pure function of the step.

    Raises:
        UserError: the documents do not fill one row.
    """
    rows = PackedRows(documents, config.row_length, config.seed)

    def batch_of(step: int, micro: int, rank: int, world: int) -> Rows:
        part = step * config.accumulation + micro
        batch = rows.batch(part, config.batch_size // (config.accumulation * world), rank, world)
        return {name: torch.from_numpy(array) for name, array in vars(batch).items()}

    return batch_of


def next_token_loss(model: nn.Module, rows: Rows) -> LossSum:
    """``loss_of`` for `train`: cross entropy of the next token, in nats, summed over the targets."""
    logits = model(rows["tokens"], starts=rows["starts"]).logits
    targets = rows["targets"]
    loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return LossSum(loss, int((targets != IGNORED).sum()))
