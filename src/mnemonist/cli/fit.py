"""What a run fits its model to: the text, or a teacher that reads the text."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate.utils import send_to_device
from rich.filesize import decimal
from torch import nn

from mnemonist.cli.figures import amount
from mnemonist.cli.options import Match, Train
from mnemonist.cli.text import TrainingText
from mnemonist.errors import UserError
from mnemonist.models.alignment import AlignedMixers, MixerTeacher, differing_mixers
from mnemonist.models.cost import model_cost, reading_flops
from mnemonist.models.modeling import LanguageModel
from mnemonist.training import HeldOut, StepMetrics, TrainingConfig
from mnemonist.training.accelerator import start_accelerator
from mnemonist.training.distillation import distillation_loss, mixer_loss, mixer_weights
from mnemonist.training.gradients import LossOf, Unit
from mnemonist.training.language import batches_of_rows, truncated_next_token_loss

UNEXPLAINED = "of what its teacher's mixers answer unexplained"


@dataclass(frozen=True)
class Teacher:
    """The model that a run learns from."""

    path: Path
    """As the user named it."""
    model: LanguageModel
    fingerprint: str
    match: Match


@dataclass(frozen=True)
class Fit:
    """What is trained, and how."""

    module: nn.Module
    """The model, or the part of it that is trained."""
    loss_of: LossOf
    training: Callable[[int], float]
    """Operations per token of a step, by the length of its rows."""
    reading: Callable[[int], float]
    """The same of reading text that is held out."""
    match: Match | None = None
    """What of a teacher is matched; None where there is none."""

    @property
    def unit(self) -> Unit:
        """What losses are in."""
        return "unexplained share" if self.match == "mixers" else "nats"

    def asked(self, text: TrainingText, training: TrainingConfig) -> HeldOut | None:
        """What is read now and then and not trained on: of whatever predicts tokens, what these cost."""
        held_out = text.asked(training)
        if held_out is None or self.match == "mixers":
            return held_out
        return replace(held_out, loss_of=truncated_next_token_loss(training.truncation))

    def told(self, loss: float, bytes_per_token: float) -> str:
        """A loss of training, for people."""
        if self.match == "mixers":
            return f"{loss:.3f} {UNEXPLAINED}"
        bits = loss / math.log(2) / bytes_per_token
        return f"{bits:.3f} bits per byte{' from its teacher' if self.match else ''}"

    def told_held_out(self, metrics: StepMetrics) -> str:
        """What was read of text that is held out, for people."""
        if self.match == "mixers":
            return f"{metrics.held_out_unexplained_share:.3f} {UNEXPLAINED}"
        return f"{metrics.held_out_bits_per_byte:.3f} bits per byte"


def require_teachable(options: Train) -> None:
    """Make sure that what is asked of a teacher goes together, before any model is read.

    Raises:
        UserError: it does not.
    """
    if options.teacher is None:
        if options.match is not None:
            raise UserError("--match says what is learned from a teacher; name one with --teacher, or leave it out")
        return
    if options.task:
        raise UserError("a teacher reads text, and --task asks problems; leave one of them out")
    if options.match != "mixers":
        return
    if options.origin is None:
        raise UserError(
            "mixers are matched in a model that has all else of its teacher: make one of the teacher, with "
            "mnemonist.models.with_blocks or mnemonist adopt --blocks, and begin with it: --from"
        )
    if options.training.truncation is not None:
        raise UserError("truncation is for losses of logits; mixers are matched in whole rows: leave it out")
    if start_accelerator(options.training.device).is_fsdp2:
        raise UserError(
            "mixers are matched with a whole model in every process (configs/accelerate/ddp.yaml); FSDP is for --match "
            "logits"
        )


def mixers_to_match(model: LanguageModel, teacher: Teacher) -> tuple[int, ...]:
    """The blocks whose mixers are to learn from a teacher.

    Raises:
        UserError: there are none, or none with counterparts.
    """
    try:
        blocks = differing_mixers(model, teacher.model)
    except ValueError as error:
        raise UserError(f"{teacher.path} cannot teach mixers: {error}") from error
    if not blocks:
        raise UserError(
            f"no mixer that is to learn is built otherwise than that of {teacher.path}: there is nothing to take over; "
            "--match logits compares what models expect"
        )
    return blocks


def fit_to_text(model: LanguageModel, training: TrainingConfig) -> Fit:
    """Cross entropy of the next token."""
    return Fit(
        model,
        truncated_next_token_loss(training.truncation),
        lambda length: model_cost(model.config, length).flops_training,
        lambda length: model_cost(model.config, length).flops_forward,
    )


def fit_to_teacher(model: LanguageModel, teacher: Teacher, text: TrainingText, training: TrainingConfig) -> Fit:
    """What the teacher expects of the next token, or what its mixers do.

    Raises:
        UserError: see `mixers_to_match`.
        ValueError: one of its mixers answers nothing.
    """
    accelerator = start_accelerator(training.device)
    if teacher.match == "logits":
        plain = fit_to_text(model, training)
        return replace(
            plain,
            loss_of=distillation_loss(teacher.model, training.truncation, accelerator.autocast),
            training=lambda length: plain.training(length) + model_cost(teacher.model.config, length).flops_forward,
            match="logits",
        )
    blocks = mixers_to_match(model, teacher)
    shows, module = MixerTeacher(teacher.model, blocks, accelerator.autocast), AlignedMixers(model, blocks)
    first = batches_of_rows(text.rows, replace(training, batch_size=1, accumulation=1))(0, 0, 0, 1)
    weights = mixer_weights(shows, send_to_device(first, accelerator.device))

    def showing(length: int) -> float:
        return sum(reading_flops(block, length) for block in teacher.model.blocks[: max(blocks) + 1])

    return Fit(
        module,
        mixer_loss(shows, weights),
        lambda length: showing(length) + 3 * reading_flops(module, length),
        lambda length: showing(length) + reading_flops(module, length),
        "mixers",
    )


def describe_fit(fit: Fit, teacher: Teacher, length: int) -> str:
    """What is learned from the teacher and what that costs, as a line of ``name: value``."""
    cost = model_cost(teacher.model.config, length)
    what = "logits"
    if isinstance(fit.module, AlignedMixers):
        count = sum(parameter.numel() for parameter in fit.module.parameters() if parameter.requires_grad)
        what = f"{len(fit.module.mixers)} mixers, {count:,} parameters"
    return (
        f"teacher: {teacher.path}, for its {what}; with it a step takes {amount(fit.training(length))}FLOPs a token, "
        f"and its weights {decimal(4 * cost.parameters)} of memory"
    )
