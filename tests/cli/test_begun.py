"""`--resume` with the folder alone: a run goes on with the options that it was begun with."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from commands import interrupt_at, losses, refuses, same_weights, train, tree
from reason_runs import SMALLEST, SUMS, learn, reason

from mnemonist.cli import main
from mnemonist.cli.begun import OPTIONS_FILE, begun_with, keep_options
from mnemonist.cli.options import Train, parse
from mnemonist.cli.reason.options import Learn, Reward
from mnemonist.errors import UserError
from mnemonist.training import TrainingConfig

TASK = "mqar:vocabulary=32,longest=64,trained=64"


def resume(out: Path, *more: str) -> list[str]:
    return ["train", "--resume", "--out", str(out), *more]


@pytest.fixture(scope="module")
def cut(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted after half of its steps; most of its options are not as they come."""
    folder = tmp_path_factory.mktemp("cut")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(3, patch)
        assert main(train(texts, folder, held_out__rows=3)) == 130
    return folder


def test_the_folder_is_enough(texts, cut, tmp_path) -> None:
    whole, out = tmp_path / "whole", shutil.copytree(cut, tmp_path / "run")
    assert main(train(texts, whole, held_out__rows=3)) == 0
    options = (out / OPTIONS_FILE).read_bytes()
    assert main(resume(out)) == 0
    assert losses(out) == losses(whole) and same_weights(out, whole)
    assert (out / OPTIONS_FILE).read_bytes() == options


def test_what_decides_no_step_may_be_another(cut, tmp_path) -> None:
    out = shutil.copytree(cut, tmp_path / "run")
    more = ("--training.log-every", "2", "--tensorboard", "--held-out.every", "5", "--activation-checkpointing")
    assert main(resume(out, *more)) == 0
    assert [step for step, *_ in losses(out)][-2:] == [5, 6] and (out / "tensorboard").is_dir()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--training.seed", "5"], "with other settings: seed (was 0, now 5); take the same ones, or another folder"),
        (["--model.width", "24"], "had another model; resume it with the same"),
        (["--preset", "lmm-1m"], "had another model; resume it with the same"),
        (["--held-out.seed", "1"], "had something else held out"),
        (["--data", "MISSING"], "there is no file MISSING"),
    ],
)
def test_what_would_make_it_another_run_is_refused(cut, tmp_path, capsys, more, sentence) -> None:
    """And the run is as it was: it goes on as it began."""
    before = tree(cut)
    refuses(resume(cut, *more), sentence, capsys)
    assert tree(cut) == before
    out = shutil.copytree(cut, tmp_path / "run")
    assert main(resume(out, "--preset", "mag-tiny")) == 0  # the same, whose sizes are not given again


def test_a_run_of_the_time_before_needs_all_options(texts, cut, tmp_path, capsys) -> None:
    out = shutil.copytree(cut, tmp_path / "run")
    (out / OPTIONS_FILE).unlink()
    refuses(resume(out), "with other settings: batch_size (was 2, now 16)", capsys)
    assert main(train(texts, out, "--resume", held_out__rows=3)) == 0


def test_problems_go_on_too(tmp_path, monkeypatch) -> None:
    command = ["train", "--task", TASK, "--model.blocks", "lmm", "--training.batch-size", "2", "--training.steps", "4"]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    interrupt_at(2, monkeypatch)
    assert main([*command, "--training.log-every", "1", "--out", str(tmp_path / "cut")]) == 130
    monkeypatch.undo()
    assert main(resume(tmp_path / "cut")) == 0
    assert same_weights(tmp_path / "cut", tmp_path / "whole")


def test_a_run_that_began_with_a_model_has_its_sizes(run, texts, tmp_path, capsys) -> None:
    few = ["--training.steps", "2", "--training.batch-size", "2", "--training.row-length", "48"]
    assert main(["train", "--from", str(run), "--data", str(texts), *few, "--out", str(tmp_path)]) == 0
    refuses(resume(tmp_path, "--model.width", "24"), "--model.width does not go with --from", capsys)
    assert main(resume(tmp_path)) == 0


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("{", "(Expecting property name"),
        ("[]", "(it is not of the format mnemonist-options/1); move it away, and give all options again"),
        ("{}", "(it is not of the format"),
        ('{"format": "mnemonist-options/2"}', "(it is not of the format"),
        (("options", {"dota": "x"}), "it has 'dota', which this version does not know"),
        (("options", {"data": 3}), "3 is not of type str"),
        (("options", {"learn": "some"}), "'some' is not of type"),
        (("options", {"training": {"steps": 0}}), "steps is 0; it must be a whole number from 1"),
        (("options", {"training": {"betas": [0.9]}}), "[0.9] is not of type tuple"),
    ],
)
def test_a_file_that_says_nothing_of_use(cut, tmp_path, capsys, content, what) -> None:
    out = shutil.copytree(cut, tmp_path / "run")
    whole = json.loads((out / OPTIONS_FILE).read_text())
    text = content if isinstance(content, str) else json.dumps(whole | {content[0]: content[1]})
    (out / OPTIONS_FILE).write_text(text)
    refuses(resume(out), what, capsys)
    assert parse(["train", "--out", str(out)]).data == "stdlib"  # it is not read where a run begins


def test_a_file_that_cannot_be_read(cut, monkeypatch, capsys) -> None:
    def refused(self: Path, *_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", refused)
    refuses(resume(cut), f"mnemonist: cannot read {cut / OPTIONS_FILE}: Permission denied", capsys)


# Of rounds and judges.


def test_a_round_goes_on_by_its_folder(tmp_path, capsys, monkeypatch) -> None:
    begin = learn("distil:epochs=3", tmp_path / "whole", preset=SMALLEST, count=32, validation=2)
    assert main(begin) == 0
    for name, words in (
        ("alone", ["learn"]),
        ("round", ["distil"]),
        ("both", ["distil", "chain-arithmetic"]),
        ("full", ["distil:epochs=3", SUMS]),
    ):
        out = tmp_path / name
        with monkeypatch.context() as patch:
            interrupt_at(2, patch)
            assert main([str(out) if word == str(tmp_path / "whole") else word for word in begin]) == 130
        assert main(reason(*words, "--resume", out=out)) == 0
        assert same_weights(tmp_path / "whole", out)
    refuses(reason("distil:epochs=2", "--resume", out=out), "round.epochs was 3, now 2; take the same", capsys)
    refuses(reason("distil", "--resume", "--format", "think", out=out), "is another one: ", capsys)


def test_a_round_that_was_refused_can_be_begun(tmp_path, capsys, monkeypatch) -> None:
    """Options that were kept for it are no work that was done."""
    out = tmp_path / "out"

    def refusing(*_: object, **__: object) -> None:
        raise UserError("no attempts today")

    with monkeypatch.context() as patch:
        patch.setattr("mnemonist.reasoning.learning.propose_all", refusing)
        refuses(learn("rest-em:iterations=1,max_tokens=8", out, preset=SMALLEST, count=4, validation=0), "no", capsys)
    assert tree(out) == {}
    assert main(learn("distil:epochs=1", out, preset=SMALLEST, count=4, validation=0)) == 0
    assert begun_with(Learn, ["--resume", "--out", str(out)]).round == "distil:epochs=1"


def test_a_judge_goes_on_by_its_folder(tmp_path, monkeypatch) -> None:
    quick = {"training.batch-size": 4, "training.log-every": 1, "training.save-every": 1, "training.device": "cpu"}
    command = reason("reward", "countdown", preset=SMALLEST, count=16, validation=4, epochs=1, **quick)
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    interrupt_at(2, monkeypatch)
    assert main([*command, "--out", str(tmp_path / "cut")]) == 130
    monkeypatch.undo()
    assert main(reason("reward", "--resume", out=tmp_path / "cut")) == 0
    assert same_weights(tmp_path / "whole", tmp_path / "cut")


# What can be kept.


@dataclass(frozen=True)
class Inner:
    path: Path | None = None
    numbers: tuple[int, ...] = ()
    pair: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class New:
    """Options that nobody has thought of yet."""

    teacher: Path | None = None
    match: Literal["logits", "states"] = "logits"
    share: float | None = None
    flags: tuple[bool, ...] = ()
    inner: Inner = field(default_factory=Inner)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    out: Path = Path("runs/new")
    resume: bool = False


def test_fields_of_any_options_are_kept(tmp_path) -> None:
    whole = New(Path("a/b"), "states", 2, (True, False), Inner(Path("c"), (3, 4), (5, 0.5)), TrainingConfig(steps=7))
    for options in (New(), whole):
        keep_options(dataclasses.replace(options, out=tmp_path, resume=True))
        assert begun_with(New, ["--out", str(tmp_path), "--resume"]) == options
        assert begun_with(New, [f"--out={tmp_path}", "--resume"]) == options
    assert begun_with(New, ["--out", str(tmp_path)]) is None
    assert begun_with(New, ["--resume"]) is None  # in the folder that is taken where none is named
    assert begun_with(Inner, ["--out", str(tmp_path), "--resume"]) is None  # of another command


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        (Train, ["train", "--from", "m", "--data", "d", "--task", "mqar", "text", "--training.betas", "0.8", "0.9"]),
        (Learn, ["reason", "learn", "grpo:beta=0", "countdown", "--difficulty", "3", "4", "--lora", "8", "--chat"]),
        (Reward, ["reason", "reward", "countdown", "--stop", "a", "b", "--epochs", "2", "--model", "m"]),
    ],
)
def test_a_command_is_the_same_when_it_goes_on(kind, command, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = parse([*command, "--out", "run"])
    options = getattr(options, "command", options)
    assert isinstance(options, kind)
    keep_options(options)
    words = command[: 1 + (command[0] == "reason")]
    again = parse([*words, "--resume", "--out", "run"])
    assert getattr(again, "command", again) == dataclasses.replace(options, resume=True)


def test_a_folder_without_a_run_is_left_alone(tmp_path, capsys) -> None:
    refuses(reason("distil", "countdown", "--resume", out=tmp_path / "out"), "there is no round in", capsys)
    assert not (tmp_path / "out").exists()


def test_a_judge_that_was_refused_can_be_begun(tmp_path, capsys) -> None:
    options = {"preset": SMALLEST, "count": 4, "validation": 2, "epochs": 1, "training.device": "cpu"}
    refuses(reason("reward", SUMS, out=tmp_path, **options), "so there is nothing to tell apart", capsys)
    assert tree(tmp_path) == {}
    assert main(reason("reward", "countdown", out=tmp_path, **options)) == 0
