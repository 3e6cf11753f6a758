"""What tests of the command line share: how commands are written, and what a run leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
import torch

from mnemonist.cli import main
from mnemonist.models import LanguageModel
from mnemonist.training.metrics import MetricsLog, StepMetrics

TINY = {
    "model.rule": "titans:chunk_size=8,expansion=1",
    "model.width": 16,
    "model.heads": 2,
    "model.head-dim": 8,
    "model.memory-heads": 2,
    "model.memory-head-dim": 8,
    "model.window": 8,
    "model.mlp-width": 24,
    "training.steps": 6,
    "training.batch-size": 2,
    "training.row-length": 48,
    "training.warmup-steps": 2,
    "training.log-every": 1,
    "training.save-every": 4,
}
FRACTION = r"\d+\.\d{3}"


def almost(model: Path, out: Path) -> None:
    """Write a model that differs from another in one weight."""
    changed = LanguageModel.load(model)
    with torch.no_grad():
        changed.embedding.weight[0, 0] += 1
    changed.save(out)


def train(data: Path | str, out: Path, *more: str, **changes: object) -> list[str]:
    options = TINY | {name.replace("__", ".").replace("_", "-"): value for name, value in changes.items()}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return ["train", "--data", str(data), "--out", str(out), *words, *more]


def losses(folder: Path) -> list[tuple[int, float, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines]


def held_out_bits(folder: Path) -> dict[int, float]:
    """Bits per byte of held-out text by the steps after which it was read."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    key = "held_out_bits_per_byte"
    return {line["step"]: line[key] for line in lines if key in line}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def same_weights(one: Path, other: Path) -> bool:
    a, b = (LanguageModel.load(folder / "model.safetensors").state_dict() for folder in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": str(torch.get_num_threads())}


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C when the line of a step has been written."""
    write = MetricsLog.write

    def then_press(self: MetricsLog, metrics: StepMetrics) -> None:
        write(self, metrics)
        if metrics.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(MetricsLog, "write", then_press)


def refuses(command: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    try:
        code = main(command)
    except SystemExit as stop:  # the arguments themselves
        assert isinstance(stop.code, int)
        code = stop.code
    told = capsys.readouterr()
    assert code == 2, told
    assert "Traceback" not in told.err
    said = re.sub(r"[\s│]+", " ", told.err)
    assert sentence in said
    if told.err.startswith("mnemonist: ") or "\nmnemonist: " in told.err:
        assert len(told.err[told.err.rindex("mnemonist: ") :].splitlines()) == 1, told.err
    if "page.html" not in sentence:  # figures are not thrown away because their page has no place
        assert told.out == ""
