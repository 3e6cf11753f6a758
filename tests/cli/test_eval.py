"""`mnemonist train --task` and `mnemonist eval`: a task is learned, asked, compared, interrupted and refused."""

from __future__ import annotations

import itertools
import json
import os
import signal
from pathlib import Path

import pytest
from commands import TINY, interrupt_at, refuses, same_weights, tree

from mnemonist.cli import main
from mnemonist.data import ByteTokenizer
from mnemonist.evals.results import Result
from mnemonist.models import LanguageModel

TASK = "mqar:vocabulary=32,longest=64,trained=64"
STEM = "mqar-vocabulary=32,longest=64,trained=64,count=4"


def learn(task: str, out: Path, *more: str, **changes: object) -> list[str]:
    options = {name: value for name, value in TINY.items() if name != "training.row-length"}
    options |= {name.replace("__", ".").replace("_", "-"): value for name, value in changes.items()}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return ["train", "--task", task, "--out", str(out), *words, *more]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learned")
    assert main(learn(TASK, folder / "mine")) == 0
    assert main(learn(TASK, folder / "other", training__seed=1)) == 0
    return folder


def test_a_task_leaves_a_model_that_knows_what_it_was_trained_on(learned, capsys):
    folder = learned / "mine"
    assert sorted(p.name for p in folder.iterdir()) == [
        "checkpoint", "config.json", "metrics.jsonl", "model.safetensors", "options.json", "tasks.json",
    ]  # fmt: skip
    assert LanguageModel.load(folder).config.vocab_size == 32
    assert json.loads((folder / "tasks.json").read_text()) == {"tasks": [TASK]}
    assert main(["eval", "mqar", "--model", str(folder), "--count", "3", "--out", str(learned / "as-trained")]) == 0
    assert "| 64           | 4     |" in capsys.readouterr().out
    file = ["--model", str(folder / "model.safetensors"), "--out", str(learned / "file")]
    assert main(["eval", "mqar", *file, "--count", "3"]) == 0
    assert "| 64           | 4     |" in capsys.readouterr().out
    assert sorted(p.name for p in (learned / "file").iterdir()) == sorted(
        p.name for p in (learned / "as-trained").iterdir()
    )


def test_models_are_compared_in_a_table_json_and_a_plot(learned, capsys):
    out = learned / "compared"
    command = [
        "eval",
        TASK,
        "--model",
        str(learned / "mine"),
        str(learned / "other"),
        "--count",
        "4",
        "--out",
        str(out),
    ]
    assert main(command) == 0
    told = capsys.readouterr()
    header = told.out.splitlines()[2]
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["length", "pairs", "mine", "other", "chance"]
    assert sorted(p.name for p in out.iterdir()) == [f"{STEM}-mine.json", f"{STEM}-other.json", f"{STEM}.svg"]
    assert (out / f"{STEM}.svg").read_text().startswith("<?xml")
    assert f"{STEM}-mine.json  {STEM}-other.json  {STEM}.svg" in told.err
    before = tree(out)
    assert main([*command, "--json"]) == 0  # all is there already
    found = json.loads(capsys.readouterr().out)
    assert [result["model"]["name"] for result in found] == ["mine", "other"]
    assert [row["setting"]["pairs"] for row in found[0]["rows"]] == [4, 8]
    assert all(0 <= row["low"] <= row["mean"] <= row["high"] <= 1 for row in found[0]["rows"])
    assert tree(out) == before


@pytest.mark.parametrize(
    ("task", "differing"),
    [
        (f"{TASK},power=1", "power (other 1.0, mine 0.01): say which all of them are to solve, such as {task}"),
        (
            "mqar:vocabulary=32",
            "longest (other 1024, mine 64), trained (other 256, mine 64): say which all of them are to solve, such as "
            "mqar:vocabulary=32",
        ),
    ],
)
def test_models_trained_on_different_problems_are_not_put_side_by_side(learned, tmp_path, capsys, task, differing):
    LanguageModel.load(learned / "mine").save(tmp_path / "other")
    (tmp_path / "other" / "tasks.json").write_text(json.dumps({"tasks": [task]}))
    more = ["--model", str(tmp_path / "other"), str(learned / "mine"), "--count", "2", "--out", str(tmp_path / "out")]
    sentence = f"different problems of mqar, which differ in {differing.format(task=task)}"
    refuses(["eval", "mqar", *more], sentence, capsys)
    assert not list(tmp_path.rglob("mqar*"))
    assert main(["eval", TASK, *more]) == 0


def test_an_interrupted_evaluation_goes_on(learned, capsys, monkeypatch):
    out = learned / "interrupted"
    command = ["eval", TASK, "--model", str(learned / "mine"), "--count", "4", "--out", str(out)]
    save = Result.save

    def save_and_interrupt(self, path):
        save(self, path)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Result, "save", save_and_interrupt)
        assert main(command) == 130
    assert "the same command goes on" in capsys.readouterr().err
    part = json.loads((out / f"{STEM}-mine.json").read_text())
    assert len(part["rows"]) == 1 and not part["complete"]
    assert main(command) == 0
    whole = json.loads((out / f"{STEM}-mine.json").read_text())
    assert whole["complete"] and whole["rows"][0] == part["rows"][0] and len(whole["rows"]) == 2


def test_other_settings_are_kept_beside_each_other(learned, tmp_path, capsys):
    """In one folder, and none is measured again, or in the way of another; however the same settings are asked for."""
    command = ["eval", TASK, "--model", str(learned / "mine"), "--out", str(tmp_path)]
    settings = [["--count", "4"], ["--count", "5"], ["--count", "4", "--seed", "1"]]
    for more in settings:
        assert main([*command, *more]) == 0
    files = tree(tmp_path)
    names = [STEM, STEM.replace("count=4", "count=5"), f"{STEM},seed=1"]
    assert sorted(files) == sorted([f"{name}{end}" for name in names for end in ("-mine.json", ".svg")])
    for more in settings:
        assert main([*command, *more]) == 0
    assert main([*command[:1], "mqar", *command[2:], "--count", "4"]) == 0  # as it was trained
    assert tree(tmp_path) == files
    counts = {name: json.loads((tmp_path / f"{name}-mine.json").read_text())["rows"][0]["count"] for name in names}
    assert list(counts.values()) == [4, 5, 4]


def test_another_model_of_the_same_name_is_kept_apart(learned, tmp_path, capsys):
    out = ["--count", "2", "--out", str(tmp_path / "out")]
    LanguageModel.load(learned / "other").save(tmp_path / "mine")
    assert main(["eval", TASK, "--model", str(learned / "mine"), *out]) == 0
    before = tree(tmp_path / "out")
    sentence = "mine.json is of another model; move it away, or keep these results in another folder"
    refuses(["eval", TASK, "--model", str(tmp_path / "mine"), *out], sentence, capsys)
    assert tree(tmp_path / "out") == before


def test_a_task_run_is_resumed_exactly(tmp_path, monkeypatch):
    options = {"training__steps": 6, "training__save_every": 2}
    assert main(learn(TASK, tmp_path / "whole", **options)) == 0
    with monkeypatch.context() as patched:
        interrupt_at(3, patched)
        assert main(learn(TASK, tmp_path / "parts", **options)) == 130
    assert main(learn(TASK, tmp_path / "parts", "--resume", **options)) == 0
    assert same_weights(tmp_path / "whole", tmp_path / "parts")


def test_text_suites_take_models_of_text(run, tmp_path, capsys):
    out = str(tmp_path / "out")
    for suite in ("positions:length=512", "niah:shortest=512,longest=512", "streaming:nearest=400,times=2"):
        assert main(["eval", suite, "--model", str(run), "--count", "2", "--out", out]) == 0
    names = {"niah", "positions", "streaming"}
    assert {p.name.split("-")[0] for p in Path(out).glob("*.json")} == names
    assert "bits per byte (95% interval)" in capsys.readouterr().out


def test_a_task_of_text_is_learned_with_a_tokenizer(tmp_path):
    assert main(learn("phonebook:trained=12", tmp_path / "m", training__steps=2, training__warmup_steps=0)) == 0
    assert LanguageModel.load(tmp_path / "m").config.vocab_size == ByteTokenizer.vocab_size
    assert (tmp_path / "m" / "tokenizer.json").is_file()


def test_text_and_tasks_take_turns(texts, tmp_path, capsys):
    command = learn("text", tmp_path / "m", "--task", "text", "phonebook:trained=12", training__steps=4)
    assert main([*command, "--data", str(texts), "--training.row-length", "64"]) == 0
    assert "(phonebook:trained=12)" in capsys.readouterr().err
    assert json.loads((tmp_path / "m" / "tasks.json").read_text()) == {"tasks": ["text", "phonebook:trained=12"]}
    lines = [json.loads(line) for line in (tmp_path / "m" / "metrics.jsonl").read_text().splitlines()]
    tokens = [0, *(line["tokens"] for line in lines)]
    text, book, *again = [after - before for before, after in itertools.pairwise(tokens)]
    assert text == again[0] == 2 * 64  # each as long as it is, though the phone book is longer
    assert book > 2 * 64
    assert (
        main(["eval", "phonebook", "--model", str(tmp_path / "m"), "--count", "1", "--out", str(tmp_path / "e")]) == 0
    )


def test_vectors_are_learned_too(tmp_path, capsys):
    command = learn("regression:dim=2", tmp_path / "m", training__steps=2, training__warmup_steps=0)
    assert main(command) == 0
    assert "squared error over dimension" in capsys.readouterr().err
    assert (
        main(["eval", "regression", "--model", str(tmp_path / "m"), "--count", "5", "--out", str(tmp_path / "e")]) == 0
    )
    assert "delta rule" in capsys.readouterr().out


def test_a_plan_does_nothing(tmp_path, capsys):
    assert main(learn(TASK, tmp_path / "m", "--plan")) == 0
    assert "parameters; state" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mqra"], "there is no suite 'mqra' (did you mean 'mqar'?)"),
        (["countdown:largest=9"], "no suite; ask it with `mnemonist reason solve countdown:largest=9`"),
        (["hinted+knights"], "hinted+knights is a task to reason about and no suite; ask it with"),
        (["mqar"], "there is no model to evaluate"),
        (["mqar", "--model", "nowhere"], "There is no model at nowhere"),
        (["mqar", "--model", "MINE", "MINE"], "a model is named twice"),
        (["mqar:vocabulary=64", "--model", "MINE"], "the model has 32 tokens but mqar is made of 64"),
        (["niah", "--model", "MINE"], "there is no tokenizer in"),
        (["mqar", "--model", "MINE", "--count", "0"], "ask for at least 1 problem"),
        (["mqar:longest=9", "--model", "MINE"], "no setting is left"),
        (["positions:length=10000000", "--model", "RUN"], "8 texts of 10,000,000 bytes are asked for"),
        (["niah:shortest=64,longest=64", "--model", "RUN"], "without any haystack; 64 are too few"),
    ],
)
def test_bad_input_ends_in_one_sentence(learned, run, tmp_path, capsys, words, message):
    named = [{"MINE": str(learned / "mine"), "RUN": str(run)}.get(word, word) for word in words]
    refuses(["eval", *named, "--out", str(tmp_path / "out")], message, capsys)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("task", "more", "message"),
    [
        ("positions", [], "positions has no problems to learn from"),
        ("mqar", ["--tokenizer", "."], "mqar is not made of text; leave out --tokenizer"),
        ("text", ["--task", "niah", "mqar"], "mqar is not made of text, so it cannot take turns"),
        ("mqar", ["--tensorboard"], "tensorboard is for texts"),
        ("mqar", ["--training.truncation", "8"], "truncation is for texts"),
    ],
)
def test_bad_tasks_end_in_one_sentence(tmp_path, capsys, task, more, message):
    refuses(learn(task, tmp_path / "m", *more), message, capsys)
    assert not (tmp_path / "m").exists()


def test_a_damaged_note_of_the_task(learned, tmp_path, capsys):
    folder = tmp_path / "copy"
    LanguageModel.load(learned / "mine").save(folder)
    (folder / "tasks.json").write_text("{")
    refuses(["eval", "mqar", "--model", str(folder)], "does not say what the model was trained on", capsys)
