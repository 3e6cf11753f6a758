"""A task of a second for the tests of training; also a program, so that tests can interrupt and kill it."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mnemonist.training.configuration import TrainingConfig
from mnemonist.training.gradients import BatchOf, LossSum
from mnemonist.training.loop import TrainingResult, train
from mnemonist.training.metrics import StepMetrics

CLASSES, WIDTH = 5, 8
CONFIG = TrainingConfig(
    steps=12,
    batch_size=8,
    row_length=6,
    accumulation=2,
    warmup_steps=3,
    save_every=5,
    log_every=1,
    device="cpu",
)


def make_model(dropout: float = 0.3) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(WIDTH, 16), nn.LayerNorm(16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, CLASSES))


def batches(config: TrainingConfig) -> BatchOf:
    """Rows that depend on nothing but their number, each with its own number of targets."""

    def batch_of(step: int, micro: int, rank: int, world: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = config.batch_size // (config.accumulation * world)
        first = (rank * config.accumulation + micro) * rows
        inputs, targets = zip(*(_row(step, first + i, config.row_length) for i in range(rows)), strict=True)
        return torch.stack(inputs), torch.stack(targets)

    return batch_of


def _row(step: int, number: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = np.random.Generator(np.random.PCG64([step, number]))
    x_TD = torch.from_numpy(draw.standard_normal((length, WIDTH)).astype(np.float32))
    y_T = x_TD[:, :CLASSES].argmax(-1)
    y_T[: draw.integers(0, length)] = -100
    return x_TD, y_T


def loss_of(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> LossSum:
    x_BTD, y_BT = batch
    logits_BTC = model(x_BTD)
    loss = nn.functional.cross_entropy(logits_BTC.flatten(0, 1), y_BT.flatten(), reduction="sum")
    return LossSum(loss, (y_BT != -100).sum())


def noisy_loss_of(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> LossSum:
    """As `loss_of`, but random in all the ways that Python, numpy and torch are."""
    part = loss_of(model, batch)
    return LossSum(part.loss * (1 + 0.1 * random.gauss(0, 1) + 0.1 * np.random.standard_normal()), part.targets)


def course(folder: Path) -> list[dict[str, float]]:
    """What a run logged, without the clock."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("seconds", "tokens_per_second")} for r in records]


def run_program(*arguments: object, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """This file as a program in a process of its own, with as many threads as here: sums depend on that."""
    own = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    variables = {**os.environ, **own, **(environment or {})}
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def main(folder: str, signal_name: str, at: int, dropout: float, resume: bool) -> TrainingResult:
    """Train; after step `at` the last process sends itself a signal."""
    last = os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored in the background

    def on_step(metrics: StepMetrics) -> None:
        if last and metrics.step == at:
            os.kill(os.getpid(), signal.Signals[signal_name])

    model = make_model(dropout)
    loss = noisy_loss_of if dropout else loss_of
    return train(model, batches(CONFIG), loss, CONFIG, folder, resume=resume, progress=False, on_step=on_step)


if __name__ == "__main__":
    result = main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), "resume" in sys.argv)
    print(json.dumps([result.step, result.interrupted]))
