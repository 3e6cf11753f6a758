"""`mnemonist train` in processes of its own: killed at any moment, and several of them started by Accelerate."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from commands import environment, held_out_bits, losses, same_weights, train

from mnemonist.cli import main
from mnemonist.models import LanguageModel, with_blocks
from mnemonist.training import read_metrics

CONFIGS = Path(__file__).parents[2] / "configs" / "accelerate"
STEPS = {"training__steps": 12, "training__save_every": 2, "training__batch_size": 4}


@pytest.fixture
def held_out(tmp_path: Path) -> dict[str, object]:
    """Options with which another text is read on the way: rows that do not fill its last batch."""
    (tmp_path / "other.txt").write_text("what nobody has trained on, and which is read all the same. " * 8)
    return {"held_out__data": tmp_path / "other.txt", "held_out__every": 2}


def started(command: list[str], launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """A command in a process of its own, perhaps by way of a launcher."""
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, *(("-m",) if launcher else ()), "mnemonist", *command],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finished(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out + err


def killed_after(process: subprocess.Popen[str], folder: Path, lines: int, more: float) -> None:
    """SIGKILL to it and all it has started, once so many steps are in the log, and a little later."""
    log = folder / "metrics.jsonl"
    for _ in range(2400):
        if log.exists() and len(log.read_bytes().splitlines()) >= lines:
            break
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    time.sleep(more)
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        member.kill()
    process.communicate()
    psutil.wait_procs(family, timeout=30)
    assert process.returncode == -signal.SIGKILL, "it must be killed on the way, or this test says nothing"


def each_step_once(folder: Path) -> list[tuple[int, float, float]]:
    """The log of a run, each step once."""
    found = losses(folder)
    assert [step for step, *_ in found] == list(range(1, len(found) + 1))
    return found


def test_a_run_killed_at_random_goes_on_to_the_same_end(texts, held_out, tmp_path) -> None:
    """Losses, the order of the data and the weights: bit for bit those of the run that nobody killed."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    slow = STEPS | held_out | {"training__row_length": 400, "training__batch_size": 2}  # long enough to be hit
    assert main(train(texts, whole, **slow)) == 0
    draw = random.Random(7)
    resume: tuple[str, ...] = ()
    for lines in (draw.randint(2, 4), draw.randint(6, 8)):
        killed_after(started(train(texts, cut, *resume, **slow)), cut, lines, draw.uniform(0, 0.03))
        # Killed just between two renames, it leaves the old checkpoint under its other name; --resume finds it.
        assert (cut / "checkpoint").is_dir() or (cut / ".checkpoint.previous").is_dir()
        assert not (cut / "model.safetensors").exists()
        resume = ("--resume",)
    finished(started(train(texts, cut, "--resume", **slow)))
    assert each_step_once(cut) == each_step_once(whole)
    assert held_out_bits(cut) == held_out_bits(whole) and len(held_out_bits(cut)) == 6
    assert same_weights(cut, whole)


@pytest.mark.parametrize(
    ("name", "kept"), [("ddp-cpu.yaml", "the whole model"), ("fsdp2.yaml", "a part of every weight")]
)
def test_two_processes_take_the_steps_of_one(name, kept, texts, held_out, tmp_path) -> None:
    """From the configurations we provide, rows cut along time, killed and resumed."""
    one, two, config = tmp_path / "one", tmp_path / "two", tmp_path / name
    sizes = STEPS | held_out | {"training__truncation": 24}
    on_cpus = (CONFIGS / name).read_text().replace("use_cpu: false", "use_cpu: true").replace(": bf16", ': "no"')
    config.write_text(on_cpus)
    launcher = ("accelerate.commands.launch", "--config_file", str(config), "--num_processes", "2")
    assert main(train(texts, one, **sizes)) == 0
    killed_after(started(train(texts, two, **sizes), launcher), two, 3, 0.0)
    said = finished(started(train(texts, two, "--resume", **sizes), launcher))
    assert f"processes: 2, each with {kept}\n" in said
    assert said.count("model in ") == 1, "only the first process speaks"
    expected, found = each_step_once(one), each_step_once(two)
    assert len(found) == 12
    for (step, loss, norm), (_, loss_2, norm_2) in zip(expected, found, strict=True):
        assert loss_2 == pytest.approx(loss, rel=2e-6)
        assert norm_2 == pytest.approx(norm, rel=1e-5 if step < 4 else 5e-3)  # Adam makes much of rounding
    assert held_out_bits(two) == pytest.approx(held_out_bits(one), rel=1e-4) and len(held_out_bits(two)) == 6
    weights, weights_2 = (LanguageModel.load(folder).state_dict() for folder in (one, two))
    for key, weight in weights.items():
        torch.testing.assert_close(weights_2[key], weight, rtol=1e-2, atol=1e-4)


def test_two_processes_begin_with_the_same_model(texts, run, held_out, tmp_path) -> None:
    command = ["train", "--from", str(run), "--data", str(texts), "--training.steps", "2", "--training.log-every", "1"]
    command += ["--training.row-length", "48", "--training.batch-size", "4", "--held-out.every", "1"]
    command += ["--held-out.data", str(held_out["held_out__data"])]
    launcher = ("accelerate.commands.launch", "--config_file", str(CONFIGS / "ddp-cpu.yaml"), "--num_processes", "2")
    assert main([*command, "--out", str(tmp_path / "one")]) == 0
    said = finished(started([*command, "--out", str(tmp_path / "two")], launcher))
    assert said.count(f"begins with: {run}\n") == 1
    one, two = ([loss for _, loss, _ in losses(tmp_path / name)] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=2e-6) and len(two) == 2
    assert held_out_bits(tmp_path / "two") == pytest.approx(held_out_bits(tmp_path / "one"), rel=1e-5)


@pytest.mark.parametrize(("name", "match"), [("ddp-cpu.yaml", "mixers"), ("fsdp2.yaml", "logits")])
def test_two_processes_learn_from_a_teacher_what_one_does(name, match, texts, held_out, tmp_path) -> None:
    known, config = tmp_path / "known", tmp_path / name
    assert main(train(texts, known, "--model.blocks", "attention", training__steps=2)) == 0
    with_blocks(LanguageModel.load(known), ["lmm"])[0].save(tmp_path / "begun")
    command = ["train", "--from", str(tmp_path / "begun"), "--teacher", str(known), "--match", match]
    command += ["--data", str(texts), "--training.steps", "3", "--training.log-every", "1", "--held-out.every", "1"]
    command += ["--training.row-length", "48", "--training.batch-size", "4"]
    command += ["--held-out.data", str(held_out["held_out__data"])]
    config.write_text(
        (CONFIGS / name).read_text().replace("use_cpu: false", "use_cpu: true").replace(": bf16", ': "no"')
    )
    launcher = ("accelerate.commands.launch", "--config_file", str(config), "--num_processes", "2")
    assert main([*command, "--out", str(tmp_path / "one")]) == 0
    finished(started([*command, "--out", str(tmp_path / "two")], launcher))
    one, two = (read_metrics(tmp_path / run / "metrics.jsonl") for run in ("one", "two"))
    assert [line.loss for line in two] == pytest.approx([line.loss for line in one], rel=2e-6)
    figure = "held_out_bits_per_byte" if match == "logits" else "held_out_unexplained_share"
    read, read_2 = ([getattr(line, figure) for line in lines] for lines in (one, two))
    assert read_2 == pytest.approx(read, rel=1e-5) and None not in read
    assert len(two) == 3 and two[0].unit == ("nats" if match == "logits" else "unexplained share")


def test_a_batch_that_cannot_be_shared_is_refused(texts, tmp_path) -> None:
    command = train(texts, tmp_path / "run", **(STEPS | {"training__batch_size": 3}))
    launcher = ("accelerate.commands.launch", "--config_file", str(CONFIGS / "ddp-cpu.yaml"))
    process = started(command, launcher)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "mnemonist: batch_size is 3; it must be a multiple of accumulation times processes, 1 x 2" in err
    assert not (tmp_path / "run" / "checkpoint").exists()
