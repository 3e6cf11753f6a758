"""What a training run will cost, told before it starts."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

from accelerate import Accelerator
from accelerate.utils import send_to_device
from rich.filesize import decimal
from torch import nn

from mnemonist.cli.figures import amount, duration
from mnemonist.cli.fit import Fit
from mnemonist.data import PackedRows, Tokenizer
from mnemonist.models.configuration import ModelConfig
from mnemonist.models.cost import Cost, model_cost
from mnemonist.training.accelerator import flushing_denormals, start_accelerator
from mnemonist.training.configuration import TrainingConfig
from mnemonist.training.gradients import BatchOf, LossOf, loss_parts
from mnemonist.training.held_out import HeldOut
from mnemonist.training.language import Rows
from mnemonist.training.randomness import capture_random_state, restore_random_state

LONG_ENOUGH = 1.0  # seconds: a shorter first micro-batch is mostly the start of threads and kernels
ENOUGH = 3e11  # operations on a CPU: some seconds, and the memory for a row or two of a large model
SHORTEST = 64  # tokens that are timed at least, and a multiple of which is
COPIES = 4  # of the weights in float32: themselves, their gradients, and the two moments of AdamW


@dataclass(frozen=True)
class Measurement:
    """One micro-batch, forward and backward."""

    seconds: float
    """Of the whole micro-batch; what was timed may be a piece of it."""
    timed: str
    """What was timed, and how long it took."""
    device: str
    processes: str
    """How many there are, and what each keeps."""


def measure(fit: Fit, batch_of: BatchOf, training: TrainingConfig) -> Measurement:
    """Run the first micro-batch on a copy of what is trained; that and the random generators are as before.

    On a CPU it is a piece of it if the model is large, and the whole is reckoned by its arithmetic.
    """
    accelerator = start_accelerator(training.device)
    before = capture_random_state(accelerator.device)
    try:
        with flushing_denormals(accelerator.device):
            trial = copy.deepcopy(fit.module).to(accelerator.device).train()
            batch = batch_of(0, 0, accelerator.process_index, accelerator.num_processes)
            rows, length = batch["tokens"].shape
            some, short = _piece(fit, rows, length) if accelerator.device.type == "cpu" else (rows, length)
            piece = send_to_device({name: part[:some, :short] for name, part in batch.items()}, accelerator.device)
            seconds = _forward_and_backward(trial, piece, fit.loss_of, accelerator)
            if seconds < LONG_ENOUGH:
                seconds = _forward_and_backward(trial, piece, fit.loss_of, accelerator)
    finally:
        restore_random_state(before, accelerator.device)
    larger = _operations(fit, rows, length) / _operations(fit, some, short)
    timed = f"{some} rows" if some == rows else f"{some} of {rows} rows"
    timed += f", cut to {short} of {length} tokens," if short < length else ""
    kept = "a part of every weight" if accelerator.is_fsdp2 else "the whole model"
    processes = f"{accelerator.num_processes}, each with {kept}" if accelerator.num_processes > 1 else "1"
    return Measurement(larger * seconds, f"{timed} took {seconds:.2g} s", accelerator.device.type, processes)


def _piece(fit: Fit, rows: int, length: int) -> tuple[int, int]:
    """How many rows, and how much of each, take about `ENOUGH` operations."""
    some = int(ENOUGH / _operations(fit, 1, length))
    if some:
        return min(rows, some), length
    short = int(ENOUGH / _operations(fit, 1, 1)) // SHORTEST * SHORTEST
    return 1, min(length, max(SHORTEST, short))


def _operations(fit: Fit, rows: int, length: int) -> float:
    return rows * length * fit.training(length)


def _forward_and_backward(model: nn.Module, batch: Rows, loss_of: LossOf, accelerator: Accelerator) -> float:
    began = time.perf_counter()
    with accelerator.autocast():
        for part in loss_parts(loss_of, model, batch):
            part.loss.backward()
            part.loss.item()  # which waits for a GPU
    model.zero_grad()
    return time.perf_counter() - began


def describe_model(config: ModelConfig, preset: ModelConfig, tokenizer: Tokenizer) -> list[str]:
    """What is known at once, as lines of ``name: value``."""
    cost = model_cost(config)
    lines = {
        "model": f"{' '.join(config.blocks)}; rule {config.rule}; width {config.width}; "
        f"vocabulary {config.vocab_size:,} ({tokenizer.name})",
    }
    if config.vocab_size != preset.vocab_size:
        lines["vocabulary"] = f"{config.vocab_size:,} of the tokenizer instead of the preset's {preset.vocab_size:,}"
    lines |= {
        "parameters": f"{cost.parameters:,}, without embeddings {cost.parameters - cost.embedding_parameters:,}",
        "state of one stream": describe_state(cost),
        "computation per token": f"{amount(cost.flops_forward)}FLOPs forward, "
        f"{amount(cost.flops_training)}FLOPs forward and backward",
        "memory": f"{decimal(4 * COPIES * cost.parameters)} for weights, gradients and optimiser; what is computed in "
        "between comes on top",
    }
    return [f"{name}: {value}" for name, value in lines.items()]


def describe_state(cost: Cost) -> str:
    """What is kept of one stream."""
    growing = f", and {decimal(cost.state_bytes_per_token)} for every token read" if cost.state_bytes_per_token else ""
    return decimal(cost.state_bytes) + growing


def describe_reading(training: TrainingConfig, rows: PackedRows) -> list[str]:
    """What will be read, as lines of ``name: value``."""
    tokens = training.steps * training.batch_size * training.row_length
    return [
        f"text: {rows.tokens_per_epoch:,} tokens an epoch, {rows.bytes_per_token:.2f} bytes each",
        f"to read: {tokens:,} tokens, {rows.epoch(training.steps, training.batch_size):.2f} epochs: "
        f"{training.steps:,} steps of {training.batch_size} rows of {training.row_length}",
    ]


def describe_time(
    training: TrainingConfig, measured: Measurement, fit: Fit, done: int = 0, held_out: HeldOut | None = None
) -> list[str]:
    """How long it will take, as lines of ``name: value``.

    Args:
        training: of the run.
        measured: what `measure` found.
        fit: what was measured.
        done: steps that an earlier part of the run has taken.
        held_out: what is read besides, forward alone.
    """
    left = training.steps - done
    seconds = measured.seconds * training.accumulation * left
    if held_out is not None:
        forward = fit.reading(training.row_length) / fit.training(training.row_length)
        seconds += forward * measured.seconds * held_out.batches * held_out.readings(done, training.steps)
    return [
        f"processes: {measured.processes}",
        f"time: about {duration(seconds)} for {left:,} steps (an estimate: {measured.timed} forward and backward on "
        f"this {measured.device})",
    ]
