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
from mnemonist.data import PackedRows, Tokenizer
from mnemonist.models.configuration import ModelConfig
from mnemonist.models.cost import model_cost
from mnemonist.training.accelerator import flushing_denormals, start_accelerator
from mnemonist.training.configuration import TrainingConfig
from mnemonist.training.gradients import BatchOf, LossOf, loss_parts
from mnemonist.training.language import Rows, truncated_next_token_loss
from mnemonist.training.randomness import capture_random_state, restore_random_state

LONG_ENOUGH = 1.0  # seconds: a shorter first micro-batch is mostly the start of threads and kernels
COPIES = 4  # of the weights in float32: themselves, their gradients, and the two moments of AdamW


@dataclass(frozen=True)
class Measurement:
    """One micro-batch, forward and backward."""

    seconds: float
    rows: int
    device: str
    processes: str
    """How many there are, and what each keeps."""


def measure(model: nn.Module, batch_of: BatchOf, training: TrainingConfig) -> Measurement:
    """Run the first micro-batch on a copy of the model; the model and the random generators are as before."""
    accelerator = start_accelerator(training.device)
    before = capture_random_state(accelerator.device)
    try:
        with flushing_denormals(accelerator.device):
            trial = copy.deepcopy(model).to(accelerator.device).train()
            batch = batch_of(0, 0, accelerator.process_index, accelerator.num_processes)
            batch = send_to_device(batch, accelerator.device)
            loss_of = truncated_next_token_loss(training.truncation)
            seconds = _forward_and_backward(trial, batch, loss_of, accelerator)
            if seconds < LONG_ENOUGH:
                seconds = _forward_and_backward(trial, batch, loss_of, accelerator)
    finally:
        restore_random_state(before, accelerator.device)
    kept = "a part of every weight" if accelerator.is_fsdp2 else "the whole model"
    processes = f"{accelerator.num_processes}, each with {kept}" if accelerator.num_processes > 1 else "1"
    return Measurement(seconds, len(batch["tokens"]), accelerator.device.type, processes)


def _forward_and_backward(model: nn.Module, batch: Rows, loss_of: LossOf, accelerator: Accelerator) -> float:
    began = time.perf_counter()
    with accelerator.autocast():
        for part in loss_parts(loss_of, model, batch):
            part.loss.backward()
            part.loss.item()  # which waits for a GPU
    model.zero_grad()
    return time.perf_counter() - began


def describe(
    config: ModelConfig,
    training: TrainingConfig,
    rows: PackedRows,
    tokenizer: Tokenizer,
    measured: Measurement,
    done: int = 0,
) -> list[str]:
    """The plan as lines of ``name: value``.

    Args:
        config, training, rows, tokenizer: of the run.
        measured: what `measure` found.
        done: steps that an earlier part of the run has taken.
    """
    cost = model_cost(config)
    tokens = training.steps * training.batch_size * training.row_length
    left = training.steps - done
    seconds = measured.seconds * training.accumulation * left
    lines = {
        "model": f"{' '.join(config.blocks)}; rule {config.rule}; width {config.width}; "
        f"vocabulary {config.vocab_size:,} ({tokenizer.name})",
        "parameters": f"{cost.parameters:,}, without embeddings {cost.parameters - cost.embedding_parameters:,}",
        "state of one stream": decimal(cost.state_bytes),
        "computation per token": f"{amount(cost.flops_forward)}FLOPs forward, "
        f"{amount(cost.flops_training)}FLOPs forward and backward",
        "text": f"{rows.tokens_per_epoch:,} tokens an epoch, {rows.bytes_per_token:.2f} bytes each",
        "to read": f"{tokens:,} tokens, {rows.epoch(training.steps, training.batch_size):.2f} epochs: "
        f"{training.steps:,} steps of {training.batch_size} rows of {training.row_length}",
        "processes": measured.processes,
        "memory": f"{decimal(4 * COPIES * cost.parameters)} for weights, gradients and optimiser; what is computed in "
        "between comes on top",
        "time": f"about {duration(seconds)} for {left:,} steps (an estimate: {measured.rows} rows took "
        f"{measured.seconds:.2g} s forward and backward on this {measured.device})",
    }
    return [f"{name}: {value}" for name, value in lines.items()]
