"""`mnemonist train --from`: a run begins with the weights of another model, whose sizes and tokenizer it takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import TINY, almost, held_out_bits, interrupt_at, losses, refuses, same_weights, train, tree
from tiny_tokenizers import save_tokenizer

import mnemonist.cli.train
from mnemonist.cli import main
from mnemonist.data import find_tokenizer
from mnemonist.models import LanguageModel

MODEL_FREE = {name: value for name, value in TINY.items() if not name.startswith("model.")}
TASK = "mqar:vocabulary=32,longest=64,trained=64"


def go_on(origin: Path | str, data: Path, out: Path, *more: str, **changes: object) -> list[str]:
    options = MODEL_FREE | {name.replace("__", ".").replace("_", "-"): value for name, value in changes.items()}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return ["train", "--from", str(origin), "--data", str(data), "--out", str(out), *words, *more]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("other") / "other.txt"
    path.write_text("".join(f"line {n} of something else, {n * n} in all. " for n in range(60)))
    return path


@pytest.fixture(scope="module")
def begun(run: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that began with the model of another one."""
    folder = tmp_path_factory.mktemp("begun")
    assert main(go_on(run, other, folder, held_out__every=2)) == 0
    return folder


@pytest.mark.parametrize("what", ["folder", "file"])
def test_the_first_step_is_taken_by_the_model_it_begins_with(what, run, other, tmp_path, monkeypatch, capsys) -> None:
    """Its weights exactly; the schedule and the optimiser begin anew."""
    seen = []
    build = mnemonist.cli.train.build_model

    def building(*arguments: object) -> LanguageModel:
        model = build(*arguments)
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return model

    monkeypatch.setattr(mnemonist.cli.train, "build_model", building)
    before = tree(run)
    assert main(go_on(run if what == "folder" else run / "model.safetensors", other, tmp_path)) == 0
    told = capsys.readouterr().err
    assert f"begins with: {run}" in told and "width 16; vocabulary 259 (bytes)" in told
    weights = LanguageModel.load(run).state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in seen[0].items())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6] and lines[0]["learning_rate"] == 5e-4
    assert LanguageModel.load(tmp_path).config == LanguageModel.load(run).config
    assert not same_weights(tmp_path, run) and tree(run) == before


def test_another_seed_begins_with_the_same_weights(run, other, begun, tmp_path) -> None:
    """The seed draws rows, and no weights."""
    assert main(go_on(run, other, tmp_path, training__seed=1, held_out__every=2)) == 0
    assert losses(tmp_path)[0][1] != losses(begun)[0][1]
    assert held_out_bits(tmp_path)[2] == pytest.approx(held_out_bits(begun)[2], rel=0.01)
    assert not same_weights(tmp_path, begun)


def test_a_model_that_comes_with_the_package(other, tmp_path, capsys) -> None:
    assert main(go_on("shipped/window", other, tmp_path / "run", "--plan")) == 0
    plan = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    config = LanguageModel.load(Path(mnemonist.__file__).parent / "models" / "shipped" / "window").config
    assert plan["begins with"] == "shipped/window" and plan["model"].startswith(" ".join(config.blocks))
    assert "vocabulary" not in plan and not (tmp_path / "run").exists()


def test_its_tokenizer_comes_along(texts, other, tmp_path) -> None:
    subwords = save_tokenizer("cl100k", tmp_path / "subwords")
    assert main(train(texts, tmp_path / "a", "--tokenizer", str(subwords), training__steps=2)) == 0
    assert main(go_on(tmp_path / "a", other, tmp_path / "b")) == 0
    assert LanguageModel.load(tmp_path / "b").config.vocab_size == 400
    assert find_tokenizer(tmp_path / "b", 400).fingerprint == find_tokenizer(subwords).fingerprint


def test_halves_are_trained_in_full(run, other, tmp_path) -> None:
    half = tmp_path / "half"
    LanguageModel.load(run).bfloat16().save(half)
    assert main(go_on(half, other, tmp_path / "run", training__steps=2)) == 0
    assert {tensor.dtype for tensor in LanguageModel.load(tmp_path / "run").state_dict().values()} == {torch.float32}


# Going on.


def test_such_a_run_goes_on_exactly(run, other, begun, tmp_path, monkeypatch) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")  # the same model in another place
    interrupt_at(3, monkeypatch)
    assert main(go_on(run, other, tmp_path / "cut", held_out__every=2)) == 130
    monkeypatch.undo()
    assert main(go_on(copy, other, tmp_path / "cut", "--resume", held_out__every=2)) == 0
    assert losses(tmp_path / "cut") == losses(begun) and held_out_bits(tmp_path / "cut") == held_out_bits(begun)
    assert same_weights(tmp_path / "cut", begun)


def test_another_beginning_is_not_resumed(run, texts, other, begun, tmp_path, capsys) -> None:
    before = tree(begun)
    almost(run, tmp_path / "changed")
    sentence = "had another model to begin with (--from); resume it with the same, or take another folder"
    refuses(go_on(tmp_path / "changed", other, begun, "--resume", held_out__every=2), sentence, capsys)
    refuses(train(other, begun, "--resume"), "does not go with --from", capsys)
    new = shutil.copytree(run, tmp_path / "new")
    refuses(go_on(begun, texts, new, "--resume"), sentence, capsys)
    assert tree(begun) == before and tree(new) == tree(run)


def test_a_finished_run_says_how_to_go_further(run, texts, tmp_path, capsys) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    longer = train(texts, copy, "--resume", training__steps=9)
    refuses(longer, f"or another folder, which may begin with the model of this run: --from {copy}", capsys)
    assert main(train(texts, copy, "--resume")) == 0
    further = f"the run is finished; to train its model further, begin another one: --from {copy} --out ELSEWHERE"
    assert further in capsys.readouterr().err
    assert main(train(texts, tmp_path / "short", training__steps=2, training__warmup_steps=0)) == 0
    assert further not in capsys.readouterr().err


# Tasks.


def task(origin: Path, out: Path, *names: str) -> list[str]:
    words = [w for name, v in MODEL_FREE.items() if name != "training.row-length" for w in (f"--{name}", str(v))]
    return ["train", "--from", str(origin), "--task", *names, "--out", str(out), *words]


def test_problems_are_learned_by_a_model_that_has_begun(run, tmp_path, capsys) -> None:
    sizes = [w for name, v in TINY.items() if name.startswith("model.") for w in (f"--{name}", str(v))]
    first = ["train", "--task", TASK, "--out", str(tmp_path / "a"), *sizes, "--training.steps", "4"]
    assert main([*first, "--training.batch-size", "2"]) == 0
    assert main(task(tmp_path / "a", tmp_path / "b", TASK)) == 0
    assert f"begins with: {tmp_path / 'a'}" in capsys.readouterr().err
    assert LanguageModel.load(tmp_path / "b").config == LanguageModel.load(tmp_path / "a").config
    refuses([*task(run, tmp_path / "b", TASK), "--resume"], "has 259 tokens but mqar:", capsys)
    refuses([*task(tmp_path / "b", tmp_path / "c", TASK), "--resume"], "there is no checkpoint in", capsys)
    shutil.copytree(tmp_path / "b", tmp_path / "d")
    sentence = "had another model to begin with (--from)"
    refuses([*task(tmp_path / "b", tmp_path / "d", TASK), "--resume"], sentence, capsys)
    assert main([*task(tmp_path / "a", tmp_path / "d", TASK), "--resume"]) == 0


def test_problems_made_of_text_are_read_with_its_tokenizer(run, tmp_path) -> None:
    assert main(task(run, tmp_path / "b", "phonebook:trained=12")) == 0
    assert LanguageModel.load(tmp_path / "b").config == LanguageModel.load(run).config


# What does not go together.


@pytest.mark.parametrize(
    "words",
    [
        ["--preset", "mag-tiny"],
        ["--model.width=16"],
        ["--model.rule", "titans"],
        ["--parameters", "20000"],
        ["--tokenizer", "."],
    ],
)
def test_a_model_brings_its_own_sizes(words, run, other, tmp_path, capsys) -> None:
    option = words[0].partition("=")[0]
    sentence = (
        f"{option} does not go with --from: the model that the run begins with has sizes and a tokenizer of its own"
    )
    refuses(go_on(run, other, tmp_path / "new", *words), sentence, capsys)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("origin", "sentence"),
    [
        ("missing", "There is no model at missing"),
        ("no_model", "There is no model at no_model/model.safetensors"),
        ("shipped/windoww", "there is no model shipped/windoww (did you mean 'shipped/window'?)"),
        ("foreign", "is of a model of type 'gpt2', not 'mnemonist'"),
        ("damaged.safetensors", "damaged.safetensors"),
    ],
)
def test_models_that_are_none(origin, sentence, place, other, capsys) -> None:
    (place / "foreign").mkdir()
    (place / "foreign" / "config.json").write_text('{"model_type": "gpt2"}')
    (place / "foreign" / "model.safetensors").write_bytes(b"")
    (place / "damaged.safetensors").write_bytes(b"\x00\xff")
    before = tree(place)
    refuses(go_on(origin, other, Path("new")), sentence, capsys)
    assert tree(place) == before and not Path("new").exists()


@pytest.mark.parametrize("what", ["model", "model/model.safetensors"])
def test_a_model_is_not_written_over(what, run, other, tmp_path, capsys) -> None:
    LanguageModel.load(run).save(tmp_path / "model")
    before = tree(tmp_path)
    sentence = "is in the folder of the run that is to begin with it; take another --out"
    refuses(go_on(tmp_path / what, other, tmp_path / "model"), sentence, capsys)
    assert tree(tmp_path) == before
