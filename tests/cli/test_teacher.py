"""`mnemonist train --teacher`: a model with other mixers takes over what its teacher's did, then what it expects."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import TINY, almost, held_out_bits, interrupt_at, losses, refuses, same_weights, train, tree
from tiny_tokenizers import save_tokenizer

import mnemonist.cli.fit
import mnemonist.cli.plan
from mnemonist.cli import main
from mnemonist.cli.figures import amount
from mnemonist.models import LanguageModel, with_blocks
from mnemonist.models.alignment import AlignedMixers
from mnemonist.models.cost import model_cost, reading_flops
from mnemonist.training.distillation import distillation_loss
from mnemonist.training.gradients import LossOf, loss_parts

MODEL_FREE = {name: value for name, value in TINY.items() if not name.startswith("model.")}
SHARE = r"\d\.\d{3} of what its teacher's mixers answer unexplained"


@pytest.fixture(scope="module")
def teacher(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a transformer."""
    folder = tmp_path_factory.mktemp("teacher")
    command = train(texts, folder, "--model.blocks", "attention", "attention", model__persistent_tokens=0)
    assert main(command) == 0
    return folder


def converted(teacher: Path, out: Path, *blocks: str, **changes: object) -> Path:
    """The same with other blocks, as `mnemonist adopt --blocks` makes of a model of transformers."""
    torch.manual_seed(4)
    with_blocks(LanguageModel.load(teacher), blocks or ("lmm",), **changes)[0].save(out)
    return out


@pytest.fixture(scope="module")
def begun(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(teacher, tmp_path_factory.mktemp("begun") / "model")


def learn(begun: Path | str, teacher: Path | str, data: Path | str, out: Path, *more: str, **changes: object):
    options = MODEL_FREE | {"held-out.every": 3}
    options |= {name.replace("__", ".").replace("_", "-"): value for name, value in changes.items()}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    named = ["--from", str(begun), "--teacher", str(teacher), "--data", str(data), "--out", str(out)]
    return ["train", *named, *words, *more]


def lines_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_mixers_then_logits(begun, teacher, texts, tmp_path, capsys) -> None:
    before = tree(begun.parent), tree(teacher)
    assert main(learn(begun, teacher, texts, tmp_path / "a", match="mixers", training__learning_rate=1e-2)) == 0
    told = capsys.readouterr().err
    assert re.search(
        rf"teacher: {teacher}, for its 2 mixers, [\d,]+ parameters; with it a step takes \S+ ?\w?FLOPs", told
    )
    assert re.search(rf"step 6: {SHARE} on what it was trained on\n", told)
    assert re.search(rf"step 6: {SHARE} on text it was not trained on\n", told)
    lines = lines_of(tmp_path / "a")
    assert [line["step"] for line in lines if "held_out_unexplained_share" in line] == [3, 6]
    assert lines[5]["held_out_unexplained_share"] < lines[2]["held_out_unexplained_share"]
    first, after = LanguageModel.load(begun), LanguageModel.load(tmp_path / "a")
    moved = {name for (name, a), b in zip(first.named_parameters(), after.parameters(), strict=True) if (a != b).any()}
    assert moved == {name for name, _ in first.named_parameters() if ".mixer" in name}
    assert after.config == first.config

    assert main(learn(tmp_path / "a", teacher, texts, tmp_path / "b")) == 0  # logits, if nothing is said
    told = capsys.readouterr().err
    assert f"teacher: {teacher}, for its logits; with it" in told
    assert re.search(r"step 6: \d\.\d{3} bits per byte from its teacher on what it was trained on\n", told)
    assert re.search(r"step 6: \d\.\d{3} bits per byte on text it was not trained on\n", told)
    assert list(held_out_bits(tmp_path / "b")) == [3, 6] and all("bits" in line for line in lines_of(tmp_path / "b"))
    assert (tree(begun.parent), tree(teacher)) == before


@pytest.mark.parametrize("match", ["mixers", "logits"])
def test_such_a_run_goes_on_exactly(match, begun, teacher, texts, tmp_path, monkeypatch) -> None:
    assert main(learn(begun, teacher, texts, tmp_path / "whole", match=match)) == 0
    copy = shutil.copytree(teacher, tmp_path / "copy")  # the same teacher in another place
    interrupt_at(3, monkeypatch)
    assert main(learn(begun, teacher, texts, tmp_path / "cut", match=match)) == 130
    monkeypatch.undo()
    assert main(learn(begun, copy, texts, tmp_path / "cut", "--resume", match=match)) == 0
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert same_weights(tmp_path / "cut", tmp_path / "whole")


def test_only_the_same_teacher_goes_on(begun, teacher, texts, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    assert main(learn(begun, teacher, texts, out, match="mixers")) == 0
    before = tree(out)
    almost(teacher, tmp_path / "other")
    sentence = "had another teacher (--teacher); resume it with the same, or take another folder"
    refuses(learn(begun, tmp_path / "other", texts, out, "--resume", match="mixers"), sentence, capsys)
    sentence = "had something else of its teacher to match (--match)"
    refuses(learn(begun, teacher, texts, out, "--resume", match="logits"), sentence, capsys)
    refuses(train(texts, tmp_path / "new", "--resume", match="mixers"), "--match says what is learned from", capsys)
    assert tree(out) == before
    assert main(["train", "--out", str(out), "--resume"]) == 0  # what it was begun with is known


def test_memories_alone_take_over(teacher, texts, tmp_path, capsys) -> None:
    """Windows stay as they are, and so does the norm before them."""
    begun = converted(teacher, tmp_path / "begun", "window", "mag:gate=add", window=4, sink=256)
    command = learn(begun, teacher, texts, tmp_path / "run", "--learn", "memories", match="mixers")
    assert main(command) == 0
    first, after = LanguageModel.load(begun), LanguageModel.load(tmp_path / "run")
    moved = {name for (name, a), b in zip(first.named_parameters(), after.parameters(), strict=True) if (a != b).any()}
    assert any(".memory." in name for name in moved) and "blocks.0.mixer.attention.persistent" in moved
    assert all(re.search(r"\.mixer\.(memory|gate)\.|\.persistent$", name) for name in moved)
    assert main([*command, "--resume"]) == 0
    refuses([*command[:-1], "all", "--resume"], "had other parts that learn (--learn)", capsys)


def test_blocks_computed_again_learn_the_same(begun, teacher, texts, tmp_path) -> None:
    for name, more in (("kept", []), ("again", ["--activation-checkpointing"])):
        assert main(learn(begun, teacher, texts, tmp_path / name, *more, match="mixers")) == 0
    assert losses(tmp_path / "kept") == losses(tmp_path / "again")


def test_logits_teach_a_new_model_and_long_rows(teacher, texts, tmp_path) -> None:
    command = train(texts, tmp_path / "run", "--teacher", str(teacher), training__truncation=20)
    assert main(command) == 0
    assert LanguageModel.load(tmp_path / "run").config.blocks == ("mag", "mag")


@pytest.mark.parametrize("match", ["logits", "mixers"])
def test_the_plan_counts_the_teacher(match, begun, teacher, texts, tmp_path, capsys, monkeypatch) -> None:
    """Its arithmetic is told and its time is in what is measured; of mixers, nothing else of the student is."""
    student, known = LanguageModel.load(begun), LanguageModel.load(teacher)
    timed = []

    def timing(module: torch.nn.Module, batch: dict[str, torch.Tensor], loss_of: LossOf, _: object) -> float:
        (part,) = loss_parts(loss_of, module, batch)
        if match == "logits":
            (expected,) = loss_parts(distillation_loss(known), module, batch)
            assert torch.equal(part.loss, expected.loss)
        timed.append(type(module))
        return 600.0

    monkeypatch.setattr(mnemonist.cli.plan, "_forward_and_backward", timing)
    assert main(learn(begun, teacher, texts, tmp_path / "run", "--plan", match=match, held_out__share=0.1)) == 0
    plan = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert timed == [AlignedMixers if match == "mixers" else LanguageModel]
    theirs = sum(reading_flops(block, 48) for block in known.blocks)
    if match == "mixers":
        ours = sum(reading_flops(block.mixer, 48) for block in student.blocks)
    else:
        theirs, ours = (model_cost(model.config, 48).flops_forward for model in (known, student))
    assert f"for its {match}" in plan["teacher"] or f"2 {match}" in plan["teacher"]
    assert f"takes {amount(theirs + 3 * ours)}FLOPs a token" in plan["teacher"]
    forward = (theirs + ours if match == "mixers" else ours) / (theirs + 3 * ours)
    rows = int(plan["held out"].split(" rows of 48")[0].split()[-1])
    batches = 2 * math.ceil(rows / 2)  # every 3 of 6 steps, two rows a batch
    assert plan["time"].startswith(f"about {600 * (6 + forward * batches) / 60:.0f} min for 6 steps")
    assert not (tmp_path / "run").exists()


def test_tensorboard_shows_the_share(begun, teacher, texts, tmp_path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert main(learn(begun, teacher, texts, tmp_path, "--tensorboard", match="mixers")) == 0
    seen = reading.EventAccumulator(str(tmp_path / "tensorboard"))
    seen.Reload()
    shares = [line["held_out_unexplained_share"] for line in lines_of(tmp_path) if line["step"] in (3, 6)]
    assert [scalar.value for scalar in seen.Scalars("held_out/unexplained_share")] == pytest.approx(shares)


# What does not go together.


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--match", "mixers"], "--match says what is learned from a teacher; name one with --teacher"),
        (["--teacher", "TEACHER", "--task", "mqar"], "a teacher reads text, and --task asks problems"),
        (["--teacher", "TEACHER", "--match", "mixers"], "mixers are matched in a model that has all else of"),
        (["--from", "BEGUN", "--teacher", "missing"], "There is no model at missing"),
        (["--from", "BEGUN", "--teacher", "BEGUN"], "is the very model that is to learn from it"),
        (["--from", "TEACHER", "--teacher", "WINDOW", "--match", "mixers"], "cannot teach mixers: The student has 2"),
        (["--from", "HELD", "--teacher", "TEACHER", "--match", "mixers"], "no mixer that is to learn is built"),
        (
            ["--from", "BEGUN", "--teacher", "TEACHER", "--match", "mixers", "--training.truncation", "20"],
            "truncation is for losses of logits; mixers are matched in whole rows",
        ),
        (["--from", "BEGUN", "--teacher", "WORDS"], "has 400 tokens, but the model that is to learn from it 259"),
        (["--teacher", "elsewhere/model.safetensors"], "There is no model at elsewhere/model.safetensors"),
    ],
)  # fmt: skip
def test_bad_input_ends_in_one_sentence(words, sentence, begun, teacher, texts, place, tmp_path, capsys) -> None:
    paths = {"TEACHER": teacher, "BEGUN": begun, "WINDOW": "shipped/window", "HELD": tmp_path / "held"}
    if "HELD" in words:  # the same blocks, and other weights
        other = LanguageModel.load(teacher)
        with torch.no_grad():
            other.norm.weight.mul_(2)
        other.save(tmp_path / "held")
    if "WORDS" in words:
        subwords = save_tokenizer("cl100k", tmp_path / "subwords")
        paths["WORDS"] = tmp_path / "words"
        command = train(texts, paths["WORDS"], "--tokenizer", str(subwords), training__steps=2)
        assert main(command) == 0
    sizes = [word for name, value in MODEL_FREE.items() for word in (f"--{name}", str(value))]
    command = ["train", "--data", str(texts), "--out", "new", *sizes]
    refuses([*command, *(str(paths.get(word, word)) for word in words)], sentence, capsys)
    assert not Path("new").exists()


def test_another_tokenizer_of_as_many_tokens(texts, tmp_path, capsys) -> None:
    for name in ("cl100k", "gpt2"):
        save_tokenizer(name, tmp_path / name)
        folder = str(tmp_path / f"{name}-model")
        command = train(texts, Path(folder), "--tokenizer", str(tmp_path / name), training__steps=1)
        assert main([*command, "--training.warmup-steps", "0"]) == 0
    vocabularies = [LanguageModel.load(tmp_path / f"{name}-model").config.vocab_size for name in ("cl100k", "gpt2")]
    sentence = "has another tokenizer than the model" if vocabularies[0] == vocabularies[1] else "tokens, but the model"
    refuses(learn(tmp_path / "cl100k-model", tmp_path / "gpt2-model", texts, tmp_path / "new"), sentence, capsys)


def test_a_teacher_is_not_written_over(begun, teacher, texts, tmp_path, capsys) -> None:
    copy = shutil.copytree(teacher, tmp_path / "copy")
    before = tree(copy)
    for named in (copy, copy / "model.safetensors"):
        sentence = "is in the folder of the run that is to learn from it; take another --out"
        shutil.rmtree(copy / "checkpoint", ignore_errors=True)
        refuses(learn(begun, named, texts, copy), sentence, capsys)
    assert tree(copy) == {name: content for name, content in before.items() if not name.startswith("checkpoint/")}


def test_mixers_are_not_matched_in_parts_of_a_model(begun, teacher, texts, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(mnemonist.cli.fit, "start_accelerator", lambda device: SimpleNamespace(is_fsdp2=True))
    sentence = "mixers are matched with a whole model in every process (configs/accelerate/ddp.yaml)"
    refuses(learn(begun, teacher, texts, tmp_path / "run", match="mixers"), sentence, capsys)
    assert not (tmp_path / "run").exists()
