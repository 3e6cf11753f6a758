"""Model folders: what we write transformers reads, and the other way round; and files that are not what they say."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from streams import SMALL, small_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from mnemonist.data import ByteTokenizer
from mnemonist.errors import UserError
from mnemonist.models import LanguageModel, MnemonistForCausalLM, ModelConfig, register
from mnemonist.training.optimiser import decays

TOKENS = torch.randint(0, 17, (2, 20), generator=torch.Generator().manual_seed(0))
register()


@pytest.fixture
def model():
    return small_model(torch.float32)


def same(one: LanguageModel, other: LanguageModel) -> bool:
    return (
        one.config == other.config
        and one.fingerprint() == other.fingerprint()
        and torch.allclose(one(TOKENS).logits, other(TOKENS).logits, atol=1e-5)
    )


@pytest.mark.parametrize("rule", [SMALL.rule, "deltanet:feature_map=hedgehog", "deltanet:feature_map=maclaurin"])
def test_what_we_write_transformers_reads(tmp_path, rule):
    model = small_model(torch.float32, rule=rule)
    model.save(tmp_path)
    assert same(AutoModelForCausalLM.from_pretrained(tmp_path).model, model)
    assert same(LanguageModel.load(tmp_path), model)


@pytest.mark.parametrize("most", ["1GB", "5KB"], ids=["whole", "shards"])
def test_what_transformers_writes_we_read(tmp_path, model, most):
    MnemonistForCausalLM.from_language_model(model).save_pretrained(tmp_path, max_shard_size=most)
    assert len(list(tmp_path.glob("*.safetensors"))) == (1 if most == "1GB" else 5)
    assert same(LanguageModel.load(tmp_path), model)
    assert same(AutoModelForCausalLM.from_pretrained(tmp_path).model, model)
    if most == "1GB":
        assert same(LanguageModel.load(tmp_path / "model.safetensors"), model)


def test_one_file_is_enough_for_us(tmp_path, model):
    model.save(tmp_path / "a.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert same(LanguageModel.load(tmp_path / "a.safetensors"), model)


def test_the_type_of_the_numbers_comes_back(tmp_path):
    model = small_model(torch.float64)
    model.save(tmp_path)
    assert LanguageModel.load(tmp_path).embedding.weight.dtype == torch.float64
    assert LanguageModel.load(tmp_path).fingerprint() == model.fingerprint()


def test_what_weight_decay_leaves_alone_survives(tmp_path, model):
    model.save(tmp_path)
    kept = {name for name, parameter in model.named_parameters() if decays(parameter)}
    for again in (LanguageModel.load(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path).model):
        assert {name for name, parameter in again.named_parameters() if decays(parameter)} == kept


def test_a_model_of_bytes_gets_its_tokenizer_and_marks(tmp_path):
    LanguageModel(SMALL.replace(vocab_size=259)).save(tmp_path)
    config, tokenizer = AutoConfig.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (256, 257, 258)
    assert tokenizer("é")["input_ids"] == [256, 0xC3, 0xA9]
    assert AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.eos_token_id == 257


def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path, model):
    with pytest.raises(UserError, match="do not belong together"):
        model.save(tmp_path, ByteTokenizer())
    assert not list(tmp_path.iterdir())


def test_the_fingerprint_tells_models_apart(model):
    before = model.fingerprint()
    assert len(before) == 16 and before == model.fingerprint()
    with torch.no_grad():
        model.norm.weight[3] += 1e-6
    changed = model.fingerprint()
    model.config = model.config.replace(window=5)
    assert len({before, changed, model.fingerprint()}) == 3


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"model_type": "llama"}, "of a model of type 'llama', not 'mnemonist'"),
        ({"format": "mnemonist-model/2"}, "format 'mnemonist-model/2'.*newer version"),
        ({"blocks": ["mag", "lm"]}, r"There is no block 'lm' \(did you mean 'lmm'\?\)"),
        ({"width": -1}, "width is -1"),
        ({"width": 24}, "does not hold the weights its configuration asks for: .* not "),
        ({"width": "wide"}, "does not hold the weights"),
        ({"vocab_size": 10**13}, r"embedding.weight is \[17, 12\], not \[10000000000000, 12\]"),  # and takes no memory
        ({"blocks": ["lmm"]}, "not None"),
    ],
)
def test_configurations_that_do_not_fit(tmp_path, model, values, sentence):
    model.save(tmp_path)
    change(tmp_path, **values)
    with pytest.raises(UserError, match=sentence):
        LanguageModel.load(tmp_path)


def test_damaged_folders(tmp_path, model):
    whole, bad = tmp_path / "whole", tmp_path / "bad"
    MnemonistForCausalLM.from_language_model(model).save_pretrained(whole, max_shard_size="5KB")
    shutil.copytree(whole, bad)
    (bad / "model-00002-of-00005.safetensors").unlink()
    with pytest.raises(UserError, match="there is no file .*model-00002"):
        LanguageModel.load(bad)

    index = bad / "model.safetensors.index.json"
    for content in ("{", "[]", "{}", '{"weight_map": {"a": "../whole/model-00001-of-00005.safetensors"}}'):
        index.write_text(content)
        with pytest.raises(UserError, match="cannot be read|is not a table|does not name the files of this folder"):
            LanguageModel.load(bad)
    (bad / "config.json").write_bytes(b"\xff")
    with pytest.raises(UserError, match="config.json cannot be read"):
        LanguageModel.load(bad)
    with pytest.raises(UserError, match="there is no file"):
        LanguageModel.load(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_transformers_does_not_make_up_weights(tmp_path, model):
    model.save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name, kept in (("missing", {k: v for k, v in tensors.items() if "initial" not in k}), ("odd", tensors)):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(tmp_path / "config.json", folder)
        save_file(
            kept | ({"blocks.0.mixer.memory.conv": torch.ones(3)} if name == "odd" else {}),
            folder / "model.safetensors",
        )
        with pytest.raises(UserError, match="The weights are not those of the configuration: "):
            AutoModelForCausalLM.from_pretrained(folder)


def test_pickles_are_not_opened(tmp_path, model):
    model.save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="there is no file"):
        LanguageModel.load(tmp_path)


def test_presets_travel(tmp_path):
    """Every field of the configuration, whatever is added to it."""
    config = ModelConfig(blocks=("lmm", "window"), rule="titans:depth=3", width=16, window=9, conv_size=3)
    with torch.device("meta"):
        wrapped = MnemonistForCausalLM.from_language_model(LanguageModel(config))
    wrapped.config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_model_config() == config
