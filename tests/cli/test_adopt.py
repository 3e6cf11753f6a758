"""`mnemonist adopt`: a folder of transformers becomes one that every command takes."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from commands import refuses, tree
from tiny_tokenizers import save_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from mnemonist.cli import main
from mnemonist.cli.reason.options import Learner
from mnemonist.cli.reason.policies import learner_of
from mnemonist.data import find_tokenizer
from mnemonist.memory.kernels import native_linear_layer
from mnemonist.models import LanguageModel, register

TEXT = "the cat sat on the mat, and then there were two of them. " * 20
TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A transformer with more embeddings than its tokenizer has tokens, and with a chat template."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "theirs"
    tokenizer = find_tokenizer(save_tokenizer("gpt2", folder))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size + 300, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    Path("text.txt").write_text(TEXT)
    return folder


def bits_per_byte(model: Path, capsys: pytest.CaptureFixture[str]) -> float:
    capsys.readouterr()
    assert main(["read", "text.txt", "--model", str(model), "--json"]) == 0
    (bits, *_) = json.loads(capsys.readouterr().out)["bits_per_byte"].values()
    return float(bits)


def test_as_it_is_it_reads_what_it_read(theirs, capsys):
    before = tree(theirs)
    assert main(["adopt", str(theirs), "--out", "ours"]) == 0
    assert "2 attention" in capsys.readouterr().err
    assert tree(theirs) == before
    tokenizer = find_tokenizer("ours", LanguageModel.load("ours").config.vocab_size)
    ids = torch.from_numpy(tokenizer.encode(TEXT, bos=True))[None]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(theirs)(ids).logits[..., : tokenizer.vocab_size]
    nats = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")
    assert bits_per_byte(Path("ours"), capsys) == pytest.approx(float(nats) / math.log(2) / len(TEXT), rel=1e-5)
    chat = AutoTokenizer.from_pretrained("ours").apply_chat_template(
        [{"content": "Hello", "role": "user"}], tokenize=False
    )
    assert chat == "Hello\n"


def test_with_memories_it_begins_as_a_window_and_goes_through_every_command(theirs, capsys):
    assert main(["adopt", str(theirs), "--out", "window", "--blocks", "window", "--window", "16"]) == 0
    more = ["--blocks", "window", "mag:gate=add", "--window", "16", "--rule", "gated-deltanet"]
    assert main(["adopt", str(theirs), "--out", "memory", *more]) == 0
    told = capsys.readouterr().err
    assert "now 1 window, 1 mag:gate=add" in told and "parameters are new" in told
    config = LanguageModel.load("memory").config
    assert config.rule == "gated-deltanet" and config.window == 16 and config.persistent_tokens == 1
    assert bits_per_byte(Path("memory"), capsys) == bits_per_byte(Path("window"), capsys)
    assert main(["generate", "--model", "memory", "--prompt", "the cat", "--tokens", "5"]) == 0


TRAINING = ["--training.steps", "3", "--training.batch-size", "2", "--training.row-length", "32", "--data", "text.txt"]


def test_memories_learn_while_the_rest_is_held(theirs, capsys):
    options = ["--blocks", "window", "mag:gate=add", "--window", "8"]
    assert main(["adopt", str(theirs), "--out", "begun", *options]) == 0
    command = ["train", "--from", "begun", "--out", "learnt", *TRAINING, "--held-out.share", "0"]
    assert main([*command, "--learn", "memories"]) == 0
    assert re.search(r"learn: memories, [\d,]+ of [\d,]+ parameters", capsys.readouterr().err)
    before, after = (LanguageModel.load(folder).state_dict() for folder in ("begun", "learnt"))
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved and all(re.search(r"\.(memory|gate)\.|\.persistent$", name) for name in moved)
    assert any("out_proj" in name for name in moved)
    assert main([*command, "--learn", "memories", "--resume"]) == 0
    refuses([*command, "--learn", "all", "--resume"], "had other parts that learn (--learn)", capsys)
    assert main(["adopt", str(theirs), "--out", "plain"]) == 0
    refuses(
        ["train", "--from", "plain", "--out", "x", *TRAINING, "--learn", "memories"], "there are no memories", capsys
    )


def test_a_model_in_shards_is_opened_by_every_command(theirs, capsys):
    assert main(["adopt", str(theirs), "--out", "ours"]) == 0
    register()
    AutoModelForCausalLM.from_pretrained("ours").save_pretrained("shards", max_shard_size="20KB")
    AutoTokenizer.from_pretrained("ours").save_pretrained("shards")
    assert len(list(Path("shards").glob("*.safetensors"))) > 1
    assert bits_per_byte(Path("shards"), capsys) == bits_per_byte(Path("ours"), capsys)


def test_without_a_sink(theirs):
    options = ["--blocks", "window", "--window", "16", "--no-sink"]
    assert main(["adopt", str(theirs), "--out", "ours", *options]) == 0
    assert LanguageModel.load("ours").config.persistent_tokens == 0


@pytest.fixture
def published(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, its weights in bfloat16, and all its matrices large enough to be held so."""
    monkeypatch.setattr(native_linear_layer, "LEAST_WEIGHTS", 1)
    AutoModelForCausalLM.from_pretrained(theirs, dtype=torch.bfloat16).save_pretrained(theirs)
    return theirs


def dtypes(model: str) -> set[torch.dtype]:
    return {tensor.dtype for tensor in LanguageModel.load(model).state_dict().values()}


def test_weights_that_were_published_in_bfloat16_may_stay_so(published, capsys):
    assert main(["adopt", "theirs", "--out", "wide"]) == 0
    assert "--weights bfloat16 keeps them so" in capsys.readouterr().err
    assert main(["adopt", "theirs", "--out", "half", "--weights", "bfloat16"]) == 0
    assert "large matrices are in bfloat16, as they were" in capsys.readouterr().err
    assert dtypes("wide") == {torch.float32} and dtypes("half") == {torch.float32, torch.bfloat16}
    wide, half = (Path(name, "model.safetensors").stat().st_size for name in ("wide", "half"))
    assert half < 0.6 * wide
    assert bits_per_byte(Path("half"), capsys) == bits_per_byte(Path("wide"), capsys)
    written = []
    for name in ("wide", "half"):
        command = ["generate", "--model", name, "--prompt", "the cat", "--tokens", "12", "--save-session", f"{name}.s"]
        assert main(command) == 0
        written.append(capsys.readouterr().out)
    assert written[0] == written[1]
    assert main(["generate", "--model", "half", "--session", "wide.s", "--tokens", "3"]) == 0


def test_bfloat16_is_trained_in_full(published, capsys):
    more = ["--blocks", "window", "mag:gate=add", "--window", "16", "--weights", "bfloat16"]
    assert main(["adopt", "theirs", "--out", "half", *more]) == 0
    assert main(["train", "--from", "half", "--out", "learnt", *TRAINING]) == 0
    assert dtypes("learnt") == {torch.float32}
    assert {p.dtype for p in learner_of(Learner(model=Path("half")), 0).module.parameters()} == {torch.float32}


def test_rounded_weights_are_said_to_be(theirs, capsys, monkeypatch):
    monkeypatch.setattr(native_linear_layer, "LEAST_WEIGHTS", 1)
    assert main(["adopt", "theirs", "--out", "wide"]) == 0
    assert "bfloat16" not in capsys.readouterr().err
    assert main(["adopt", "theirs", "--out", "half", "--weights", "bfloat16"]) == 0
    assert "rounded: they were not before" in capsys.readouterr().err
    assert bits_per_byte(Path("half"), capsys) == pytest.approx(bits_per_byte(Path("wide"), capsys), rel=0.01)


def test_a_window_that_is_there_is_kept(theirs):
    config = json.loads((theirs / "config.json").read_text())
    (theirs / "config.json").write_text(json.dumps(config | {"model_type": "mistral", "sliding_window": 24}))
    assert main(["adopt", str(theirs), "--out", "ours", "--blocks", "mag:gate=add"]) == 0
    assert LanguageModel.load("ours").config.window == 24


def test_what_it_cannot_do_it_says(theirs, capsys):
    here = sorted(Path().iterdir())
    for command, sentence in (
        (["nowhere"], "there is no config.json in nowhere"),
        (["theirs", "--blocks", "mag:gate=add"], "say how many tokens it sees"),
        (["theirs", "--window", "16"], "--window is for blocks that have one"),
        (["theirs", "--blocks", "mgu", "--window", "16"], "There is no block 'mgu'"),
        (["theirs", "--blocks", "mag", "--window", "16", "--rule", "titan"], "There is no rule named 'titan'"),
        (["theirs", "--blocks", "mag", "mag", "mag", "--window", "16"], "blocks names 3 kinds, but the model has 2"),
    ):
        refuses(["adopt", *command, "--out", "ours"], sentence, capsys)
        assert sorted(Path().iterdir()) == here
    assert main(["adopt", "theirs", "--out", "ours"]) == 0
    refuses(["adopt", "theirs", "--out", "ours"], "there is a model in ours already", capsys)
    refuses(["adopt", "ours", "--out", "again"], "of a model of type 'mnemonist'", capsys)
