"""Held-out text is read at intervals, costs what it costs, and changes nothing in what is learned."""

from __future__ import annotations

import dataclasses
import math
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from toy_training import CLASSES, CONFIG, _row, batches, course, loss_of, make_model, noisy_loss_of

from mnemonist.data import IGNORED, Document, PackedRows
from mnemonist.errors import CannotGoOn, NotFinite, UserError
from mnemonist.models import LanguageModel, ModelConfig
from mnemonist.training import (
    HeldOut,
    HeldOutConfig,
    LossSum,
    StepMetrics,
    TrainingConfig,
    load_checkpoint,
    read_metrics,
    train,
)
from mnemonist.training.accelerator import start_accelerator
from mnemonist.training.held_out import read_held_out
from mnemonist.training.language import held_out_batches, next_token_loss, rows_held_out, truncated_next_token_loss

Batch = tuple[torch.Tensor, torch.Tensor]


def held_out_batch(number: int, rank: int, world: int) -> Batch:
    inputs, targets = zip(*(_row(1000 + number, rank * 4 // world + i, 6) for i in range(4 // world)), strict=True)
    return torch.stack(inputs), torch.stack(targets)


HELD_OUT = HeldOut(held_out_batch, batches=3, every=5)


def run(folder: Path, held_out: HeldOut | None = HELD_OUT, loss: Any = noisy_loss_of, **more: Any) -> Any:
    model = more.pop("model", None) or make_model()
    config = more.pop("config", CONFIG)
    return train(model, batches(config), loss, config, folder, progress=False, held_out=held_out, **more)


def bits_of(folder: Path) -> dict[float, float]:
    lines = [line for line in course(folder) if "held_out_bits_per_byte" in line]
    return {line["step"]: line["held_out_bits_per_byte"] for line in lines}


# When and what.


def test_it_is_read_at_intervals_and_at_the_end_and_changes_no_step(tmp_path: Path) -> None:
    """Dropout and noise included: the random numbers of training are those of a run that reads nothing."""
    run(tmp_path / "without", held_out=None)
    result = run(tmp_path / "with", loss=spared(noisy_loss_of))
    assert list(bits_of(tmp_path / "with")) == [5, 10, 12]
    lines = [{k: v for k, v in line.items() if k != "held_out_bits_per_byte"} for line in course(tmp_path / "with")]
    assert lines == course(tmp_path / "without")
    assert (result.held_out.step, result.held_out.held_out_bits_per_byte) == (12, bits_of(tmp_path / "with")[12])


def spared(noisy: Any) -> Any:
    """No noise on held-out text."""
    return lambda model, batch: (noisy if model.training else loss_of)(model, batch)


def test_it_is_the_mean_over_all_targets_by_the_model_of_the_step_without_dropout(tmp_path: Path) -> None:
    model = make_model(0.9)
    held_out = dataclasses.replace(HELD_OUT, bytes_per_target=2.5)
    run(tmp_path, held_out, loss=loss_of, model=model)
    x_BTD, y_BT = (torch.cat(parts) for parts in zip(*(held_out_batch(n, 0, 1) for n in range(3)), strict=True))
    model.eval()
    with torch.no_grad():
        nats = nn.functional.cross_entropy(model(x_BTD).flatten(0, 1), y_BT.flatten()).item()
    assert bits_of(tmp_path)[12] == pytest.approx(nats / math.log(2) / 2.5, rel=1e-6)


def test_a_line_is_written_whenever_it_was_read(tmp_path: Path) -> None:
    run(tmp_path, config=dataclasses.replace(CONFIG, log_every=4), loss=loss_of)
    assert [line["step"] for line in course(tmp_path)] == [4, 5, 8, 10, 12]
    assert list(bits_of(tmp_path)) == [5, 10, 12]


def test_how_often_it_is_read() -> None:
    assert [HELD_OUT.readings(done, 12) for done in (0, 4, 5, 10, 11, 12)] == [3, 3, 2, 1, 1, 0]
    assert HELD_OUT.readings(0, 10) == 2


@pytest.mark.parametrize("how", ["crash", "ctrl-c"])
def test_a_run_that_stops_and_goes_on_reads_the_same(tmp_path: Path, how: str) -> None:
    def stop(metrics: StepMetrics) -> None:
        if metrics.step == 6 and how == "crash":
            raise RuntimeError("crash")
        if metrics.step == 6:
            os.kill(os.getpid(), signal.SIGINT)

    run(tmp_path / "straight", loss=spared(noisy_loss_of))
    if how == "crash":
        with pytest.raises(RuntimeError, match="crash"):
            run(tmp_path / "cut", loss=spared(noisy_loss_of), on_step=stop)
    else:
        result = run(tmp_path / "cut", loss=spared(noisy_loss_of), on_step=stop)
        assert result.interrupted and result.held_out.step == 5
    run(tmp_path / "cut", loss=spared(noisy_loss_of), resume=True)
    assert course(tmp_path / "cut") == course(tmp_path / "straight")
    again = run(tmp_path / "cut", loss=spared(noisy_loss_of), resume=True)  # finished: nothing is read
    assert again.held_out.step == 12


def test_its_time_is_not_in_the_speed_of_training(tmp_path: Path) -> None:
    def slowly(number: int, rank: int, world: int) -> Batch:
        time.sleep(0.1)
        return held_out_batch(number, rank, world)

    result = run(tmp_path, dataclasses.replace(HELD_OUT, batch_of=slowly), loss=loss_of)
    lines = [line.tokens_per_second for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert min(lines) > 8 * 6 / 0.3  # a step and the reading would take longer
    assert result.seconds > 0.9


# Bad ends.


@pytest.mark.parametrize("what", ["memory", "loss"])
def test_what_is_not_finite_ends_the_run_and_keeps_it(tmp_path: Path, what: str) -> None:
    def loss(model: nn.Module, batch: Batch) -> LossSum:
        part = loss_of(model, batch)
        if not model.training and what == "memory":
            raise NotFinite("k holds NaN or infinite values; check the inputs.")
        return part if model.training else LossSum(part.loss * math.inf, part.targets)

    with pytest.raises(CannotGoOn, match="diverged at step 5: on held-out text .*lower learning_rate"):
        run(tmp_path, loss=loss)
    assert load_checkpoint(tmp_path / "checkpoint").step == 5
    assert [line["step"] for line in course(tmp_path)] == [1, 2, 3, 4]


def test_rows_without_targets_are_refused(tmp_path: Path) -> None:
    def nothing(number: int, rank: int, world: int) -> Batch:
        x_BTD, y_BT = held_out_batch(number, rank, world)
        return x_BTD, torch.full_like(y_BT, -100)

    with pytest.raises(UserError, match="the held-out text has no targets"):
        run(tmp_path, dataclasses.replace(HELD_OUT, batch_of=nothing), loss=loss_of)


def test_reading_leaves_the_model_and_the_generators_alone() -> None:
    model = make_model(0.5)
    model.train()
    model[3].eval()  # one part alone
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    accelerator = start_accelerator("cpu")
    once, again = (read_held_out(accelerator, model, loss_of, HELD_OUT) for _ in range(2))
    assert once == again and once.bits_per_byte == pytest.approx(math.log2(CLASSES), rel=0.3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
    assert model.training and not model[3].training
    assert all(parameter.grad is None for parameter in model.parameters())


# Rows of text.

DOCUMENTS = [Document(str(n), random.Random(n).randbytes(50 + 30 * n)) for n in range(6)]
LANGUAGE = TrainingConfig(batch_size=8, row_length=12, seed=3)


def read(held_out: HeldOut, world: int) -> list[list[int]]:
    """Rows that count, of all processes, as they come."""
    rows = []
    for number in range(held_out.batches):
        for rank in range(world):
            batch = held_out.batch_of(number, rank, world)
            assert batch["tokens"].shape[1] == 12
            rows += [row.tolist() for row, y_T in zip(batch["tokens"], batch["targets"], strict=True) if y_T.max() >= 0]
    return rows


@pytest.mark.parametrize("asked", [None, 1, 5, 8, 13, 10_000])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_rows_are_the_same_for_any_number_of_processes(asked: int | None, accumulation: int) -> None:
    rows = PackedRows(DOCUMENTS, 12, seed=7)
    config = dataclasses.replace(LANGUAGE, accumulation=accumulation)
    held_out = held_out_batches(rows, config, HeldOutConfig(rows=asked))
    count = rows_held_out(rows, config, HeldOutConfig(rows=asked))
    assert count == min(32 if asked is None else asked, rows.rows_per_epoch)
    expected = [row.tolist() for row in rows.batch(0, count).tokens]
    assert len({tuple(row) for row in expected}) == count, "no row is read twice"
    for world in (1, 2, 4):
        assert read(held_out, world) == expected
    assert held_out.batches == math.ceil(count * accumulation / 8)


def test_bits_per_byte_are_those_of_reading_the_rows(tmp_path: Path) -> None:
    """Rows that fill up the last batch do not count; cut along time it is the same."""
    torch.manual_seed(0)
    sizes = {"width": 8, "heads": 2, "head_dim": 4, "memory_heads": 2, "memory_head_dim": 4, "mlp_width": 8}
    model = LanguageModel(ModelConfig(blocks=("mag",), window=4, **sizes))
    rows = PackedRows(DOCUMENTS, 12, seed=7)
    batch = {name: torch.from_numpy(array) for name, array in vars(rows.batch(0, 11)).items()}
    with torch.no_grad():
        part = next_token_loss(model, batch)
    expected = part.loss.item() / int((batch["targets"] != IGNORED).sum()) / math.log(2)
    held_out = held_out_batches(rows, LANGUAGE, HeldOutConfig(rows=11))
    for truncation in (None, 5):
        loss = truncated_next_token_loss(truncation)
        found = read_held_out(start_accelerator("cpu"), model, loss, held_out).bits_per_byte
        assert found == pytest.approx(expected, rel=1e-6)


# Problems.


def answered(model: nn.Module, batch: Batch) -> LossSum:
    """The loss, and the rows whose first place is right."""
    loss = loss_of(model, batch)
    right = (model(batch[0])[:, 0].argmax(-1) == batch[1][:, 0]).sum()
    return dataclasses.replace(loss, answers=len(batch[1]), right=right)


def test_several_are_read_each_when_it_is_due_under_its_name(tmp_path: Path) -> None:
    others = [
        dataclasses.replace(HELD_OUT, name="sums", every=4, loss_of=answered),
        dataclasses.replace(HELD_OUT, name="vectors", batches=1),
    ]
    result = run(tmp_path / "all", [HELD_OUT, *others], loss=spared(noisy_loss_of))
    run(tmp_path / "text", loss=spared(noisy_loss_of))
    assert bits_of(tmp_path / "all") == bits_of(tmp_path / "text")
    found = {
        line["step"]: line["held_out_problems"] for line in course(tmp_path / "all") if "held_out_problems" in line
    }
    both = ["sums", "vectors"]
    assert {step: list(one) for step, one in found.items()} == {
        4: ["sums"], 5: ["vectors"], 8: ["sums"], 10: ["vectors"], 12: both,
    }  # fmt: skip
    last = found[12]
    assert last["sums"].keys() == {"loss", "accuracy"} and last["vectors"].keys() == {"loss"}
    assert last["sums"]["loss"] / math.log(2) == pytest.approx(bits_of(tmp_path / "all")[12])
    assert last["sums"]["accuracy"] in [n / 12 for n in range(13)]  # of 3 batches of 4 rows
    assert result.held_out.held_out_problems == last


def test_what_diverges_is_named(tmp_path: Path) -> None:
    def diverging(model: nn.Module, batch: Batch) -> LossSum:
        return dataclasses.replace(loss_of(model, batch), loss=torch.tensor(math.nan))

    with pytest.raises(CannotGoOn, match="at step 5: on held-out sums the loss is nan"):
        run(tmp_path, dataclasses.replace(HELD_OUT, name="sums", loss_of=diverging), loss=loss_of)
