"""Language modelling for the loop: which rows a step reads, and what the next token cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mnemonist.data import IGNORED, Document, PackedRows, Tokenizer
from mnemonist.errors import UserError
from mnemonist.training.configuration import HeldOutConfig, TrainingConfig
from mnemonist.training.gradients import BatchOf, LossOf, LossSum
from mnemonist.training.held_out import HeldOut

Rows = dict[str, torch.Tensor]

STEPS_HELD_OUT = 4
"""A reading of held-out text is of as many rows as so many steps, where nothing else is asked for."""


def packed_batches(
    documents: Iterable[Document], config: TrainingConfig, tokenizer: Tokenizer | None = None
) -> BatchOf:
    """``batch_of`` for `train`: packed rows of the documents, a pure function of the step; bytes without tokenizer.

    Raises:
        UserError: the documents do not fill one row.
    """
    return batches_of_rows(PackedRows(documents, config.row_length, config.seed, tokenizer), config)


def batches_of_rows(rows: PackedRows, config: TrainingConfig) -> BatchOf:
    """``batch_of`` for `train`, from rows that are packed already."""

    def batch_of(step: int, micro: int, rank: int, world: int) -> Rows:
        part = step * config.accumulation + micro
        batch = rows.batch(part, config.batch_size // (config.accumulation * world), rank, world)
        return {name: torch.from_numpy(array) for name, array in vars(batch).items()}

    return batch_of


def rows_held_out(rows: PackedRows, config: TrainingConfig, held_out: HeldOutConfig) -> int:
    """How many rows of held-out text are read each time."""
    return min(held_out.rows or STEPS_HELD_OUT * config.batch_size, rows.rows_per_epoch)


def held_out_batches(rows: PackedRows, config: TrainingConfig, held_out: HeldOutConfig) -> HeldOut:
    """``held_out`` for `train`, from rows that are packed already: the first of them, in micro-batches.

    What is left of the last micro-batch is filled up with rows that count nothing.
    """
    size, count = config.batch_size // config.accumulation, rows_held_out(rows, config, held_out)
    read = batches_of_rows(rows, config)

    def batch_of(number: int, rank: int, world: int) -> Rows:
        batch = read(*divmod(number, config.accumulation), rank, world)
        first = number * size + rank * (size // world)
        batch["targets"][max(0, count - first) :] = IGNORED
        return batch

    return HeldOut(batch_of, -(-count // size), held_out.every, rows.bytes_per_token)


def next_token_loss(model: nn.Module, rows: Rows) -> LossSum:
    """``loss_of`` for `train`: cross entropy of the next token, in nats, summed over the targets."""
    logits = model(rows["tokens"], starts=rows["starts"]).logits
    return _cross_entropy(logits, rows["targets"])


def truncated_next_token_loss(truncation: int | None) -> LossOf:
    """``loss_of`` for `train`: as `next_token_loss`, but the graph is cut after every ``truncation`` tokens.

    The model reads a row piece by piece, going on from the state that the piece before left it, so the loss is that
    of the whole row. Gradients stop at the state: memory holds one piece, however long the row (truncated
    backpropagation through time, Williams and Peng 1990). No state goes from row to row.

    Args:
        truncation: `TrainingConfig.truncation`; None reads and differentiates whole rows.

    Raises:
        UserError: (when called) the model's output has no ``state`` to go on from.
    """
    if truncation is None:
        return next_token_loss

    def loss_of(model: nn.Module, rows: Rows) -> Iterator[LossSum]:
        read = Reader(model)
        for piece in pieces_of(rows, truncation):
            part = _cross_entropy(read(piece), piece["targets"])
            yield part
            del part  # nothing of this piece may be left when the next one is read

    return loss_of


def pieces_of(rows: Rows, truncation: int | None) -> Iterator[Rows]:
    """The rows cut after every ``truncation`` tokens, one piece after the other; None leaves them whole."""
    names = ("tokens", "targets", "starts")
    cut = truncation or rows["tokens"].shape[1]
    for parts in zip(*(rows[name].split(cut, dim=1) for name in names), strict=True):
        yield dict(zip(names, parts, strict=True))


class Reader:
    """Reads rows piece by piece with a model, each from the state that the piece before left, whose graph is cut."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._carried: dict[str, Any] = {}

    def __call__(self, piece: Rows) -> torch.Tensor:
        """Logits ``[B, T, vocab]``.

        Raises:
            UserError: there was a piece before, and the model's output has no ``state`` to go on from.
        """
        if self._carried and self._carried["state"] is None:
            raise UserError(
                "truncation needs a model that goes on from a state, and the output of this one has none: "
                "leave truncation out"
            )
        output = self._model(piece["tokens"], starts=piece["starts"], **self._carried)
        state = getattr(output, "state", None)
        self._carried = {"state": None if state is None else state.detach()}
        logits: torch.Tensor = output.logits
        return logits


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> LossSum:
    loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return LossSum(loss, int((targets != IGNORED).sum()), targets.numel())
