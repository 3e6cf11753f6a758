"""Metrics are whole lines, one a step, and steps that will be taken again are cut."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from mnemonist.errors import UserError
from mnemonist.training.metrics import MetricsLog, StepMetrics, read_metrics


def metrics(step: int) -> StepMetrics:
    return StepMetrics(step, math.log(4) / step, 1e-3, 0.5, 100 * step, 50.0, 2.0 * step)


def test_a_line_has_every_measure(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, 0) as log:
        log.write(metrics(1))
        record = json.loads(path.read_text())  # flushed, though the file is still open
    assert record == {
        "step": 1,
        "loss": math.log(4),
        "bits": 2.0,
        "learning_rate": 1e-3,
        "grad_norm": 0.5,
        "tokens": 100,
        "tokens_per_second": 50.0,
        "seconds": 2.0,
    }
    assert read_metrics(path) == [metrics(1)]


def test_what_held_out_text_costs_stands_where_it_was_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    problems = {"mqar": {"loss": 0.5, "accuracy": 0.25}}
    read = dataclasses.replace(metrics(2), held_out_bits_per_byte=1.5, held_out_problems=problems)
    with MetricsLog(path, 0) as log:
        for one in (metrics(1), read):
            log.write(one)
    first, second = map(json.loads, path.read_text().splitlines())
    assert "held_out_bits_per_byte" not in first and "held_out_problems" not in first
    assert (second["held_out_bits_per_byte"], second["held_out_problems"]) == (1.5, problems)
    assert read_metrics(path) == [metrics(1), read]


@pytest.mark.parametrize("tail", ["", '{"step": 5, "lo', '{"step": 5, "loss": 1.0}\n', "\x00\x00", "7\n"])
def test_resuming_cuts_later_and_unfinished_lines(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, 0) as log:
        for step in (1, 2, 3, 4):
            log.write(metrics(step))
    with path.open("a") as file:
        file.write(tail)
    with MetricsLog(path, 3) as log:
        log.write(metrics(4))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]
    assert read_metrics(path) == [metrics(step) for step in (1, 2, 3, 4)]


def test_what_a_caller_measures_beside_them_is_logged_alike(tmp_path: Path) -> None:
    class Reward:
        def __init__(self, step: int) -> None:
            self.step = step

        def to_json(self) -> str:
            return json.dumps({"step": self.step, "reward": 0.5})

    path = tmp_path / "rewards.jsonl"
    for done, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        with MetricsLog(path, done) as log:
            for step in steps:
                log.write(Reward(step))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": step, "reward": 0.5} for step in (1, 2, 3, 4)
    ]


def test_a_line_being_written_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(metrics(1).to_json() + "\n" + metrics(2).to_json()[:30])
    assert read_metrics(path) == [metrics(1)]


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_metrics(tmp_path / "missing.jsonl")
    (tmp_path / "other.jsonl").write_text('{"step": 1, "accuracy": 1.0}\n')
    with pytest.raises(UserError, match="not a metrics file of this version"):
        read_metrics(tmp_path / "other.jsonl")
