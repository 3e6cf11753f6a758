"""An adopted transformer predicts what it predicted, and keeps its weights when it is given memories."""

from __future__ import annotations

import json

import pytest
import torch
from streams import read_in_pieces, shaken
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from mnemonist.errors import UserError
from mnemonist.models import LanguageModel, MnemonistForCausalLM, Session, adopt, with_blocks
from mnemonist.models.adoption import FAMILY, adopted_config, hold_all_but_memories

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
STRETCH = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
THEIRS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES, rms_norm_eps=1e-3),
    "llama-3.2": LlamaConfig(**SIZES, rope_parameters=STRETCH, tie_word_embeddings=True),
    "llama-own-keys": LlamaConfig(**SIZES | {"num_key_value_heads": 4}, head_dim=6),
    "mistral": MistralConfig(**SIZES, sliding_window=7, head_dim=16),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen2-windows": Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "qwen3": Qwen3Config(**SIZES, head_dim=16, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
}
IDS = torch.randint(0, 61, (2, 50), generator=torch.Generator().manual_seed(1))


def transformer(config: PreTrainedConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    return shaken(AutoModelForCausalLM.from_config(config), dtype=torch.float32)


def saved(folder, config: PreTrainedConfig = THEIRS["qwen3"], **options: object) -> torch.nn.Module:
    model = transformer(config)
    model.save_pretrained(folder, **options)
    return model


@pytest.fixture
def adopted(tmp_path) -> LanguageModel:
    saved(tmp_path)
    return adopt(tmp_path).eval()


@pytest.mark.parametrize("name", THEIRS)
@torch.no_grad()
def test_it_predicts_what_it_predicted(tmp_path, name):
    theirs = saved(tmp_path, THEIRS[name])
    ours = adopt(tmp_path).eval()
    expected = theirs(IDS).logits
    torch.testing.assert_close(ours(IDS).logits, expected, rtol=0, atol=2e-6)
    assert ours.parameter_count == sum(parameter.numel() for parameter in theirs.parameters())
    pieces, _ = read_in_pieces(ours, IDS, [1, 30, 1, 18])
    torch.testing.assert_close(pieces, expected, rtol=0, atol=2e-6)


def test_it_learns_what_it_would_have_learned(tmp_path):
    theirs = saved(tmp_path, THEIRS["qwen2"])
    ours = adopt(tmp_path)
    gradients = []
    for logits, embedding in (
        (theirs(IDS).logits, theirs.get_input_embeddings().weight),
        (ours(IDS).logits, ours.embedding.weight),
    ):
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
        gradients.append(torch.autograd.grad(loss, [embedding])[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=2e-6)


@torch.no_grad()
def test_it_writes_what_it_would_have_written(tmp_path):
    theirs = saved(tmp_path, THEIRS["mistral"])
    ours = MnemonistForCausalLM.from_language_model(adopt(tmp_path).eval())
    how = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    mask = torch.ones_like(IDS)
    assert torch.equal(ours.generate(IDS, attention_mask=mask, **how), theirs.generate(IDS, attention_mask=mask, **how))


def test_types_shards_and_places_of_weights(tmp_path):
    """In half precision, in several files, written down twice, with an older file of configuration."""
    theirs = saved(tmp_path / "whole", THEIRS["llama-3.2"])
    theirs.to(torch.bfloat16).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    half = adopt(tmp_path / "shards")
    rounded = theirs.float().get_input_embeddings().weight
    assert half.embedding.weight.dtype == torch.float32 and torch.equal(half.embedding.weight, rounded)

    file = tmp_path / "whole" / "config.json"
    config = json.loads(file.read_text())
    table = config.pop("rope_parameters")
    older = config | {"rope_theta": table.pop("rope_theta"), "rope_scaling": table}
    assert adopted_config(older, file) == adopted_config(config | {"rope_parameters": STRETCH}, file)
    del older["tie_word_embeddings"]  # where it is not said, the weights tell
    file.write_text(json.dumps(older))
    assert adopt(tmp_path / "whole").config == half.config


def test_embeddings_are_cut_to_the_vocabulary(tmp_path):
    saved(tmp_path, THEIRS["llama"])
    whole, cut = adopt(tmp_path), adopt(tmp_path, 40)
    assert cut.config.vocab_size == 40 and adopt(tmp_path, 99).config == whole.config
    with torch.no_grad():
        logits = cut(IDS % 40).logits
        torch.testing.assert_close(logits, whole(IDS % 40).logits[..., :40])


@torch.no_grad()
def test_saved_it_is_a_model_like_any_other(tmp_path, adopted):
    adopted.save(tmp_path / "ours")
    again = LanguageModel.load(tmp_path / "ours").eval()
    assert again.fingerprint() == adopted.fingerprint()
    _, session = again.read(IDS[:, :20])
    session.save(tmp_path / "session.safetensors")
    rest, _ = again.read(IDS[:, 20:], Session.load(tmp_path / "session.safetensors", again))
    whole, _ = adopted.read(IDS)
    torch.testing.assert_close(rest.bits, whole.bits[:, 20:])


def test_embeddings_of_more_tokens_take_a_head_along(tmp_path):
    saved(tmp_path, THEIRS["llama"])
    model = MnemonistForCausalLM.from_language_model(adopt(tmp_path).eval())
    before = model(IDS).logits
    model.resize_token_embeddings(70)
    after = model(IDS).logits
    assert after.shape[-1] == 70 and model.model.config.vocab_size == 70
    torch.testing.assert_close(after[..., :61], before)


# --- Other blocks


@torch.no_grad()
def test_a_memory_that_says_nothing_yet_leaves_a_window(adopted):
    before = {name: tensor.clone() for name, tensor in adopted.state_dict().items()}
    window, new = with_blocks(adopted, ["window"], window=8)
    assert new == [] and set(window.state_dict()) == set(before)
    gated, new = with_blocks(adopted, ["mag:gate=add"], window=8, rule="titans-linear")
    torch.testing.assert_close(gated.eval()(IDS).logits, window.eval()(IDS).logits, rtol=0, atol=0)
    assert (window(IDS).logits[:, :8] - adopted(IDS).logits[:, :8]).abs().max() < 2e-6
    assert (window(IDS).logits - adopted(IDS).logits).abs().max() > 1e-3
    assert new and all(".mixer.memory." in name or ".mixer.gate." in name for name in new)
    for name, tensor in before.items():
        assert torch.equal(gated.state_dict()[name], tensor) and torch.equal(adopted.state_dict()[name], tensor)


def test_what_says_nothing_yet_can_learn_to(adopted):
    model, new = with_blocks(adopted, ["mag:gate=add"], window=4, rule="titans-linear", sink=0)
    count = hold_all_but_memories(model)
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(learning) == set(new) and count == sum(p.numel() for p in learning.values())
    optimiser = torch.optim.AdamW(learning.values())
    losses = []
    for _ in range(12):
        logits = model(IDS).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    assert all(p.grad is not None and bool(p.grad.abs().max() > 0) for p in learning.values())
    for name, tensor in adopted.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_what_can_learn_in_other_blocks(adopted):
    for blocks, count in ((["attention"], 0), (["mac"], 3), (["lmm"], 3), (["window", "mal"], 1)):
        model, _ = with_blocks(adopted, blocks, rule="titans-linear")
        hold_all_but_memories(model)
        learning = [name for name, p in model.named_parameters() if p.requires_grad]
        assert sum(name.endswith("memory.in_proj.weight") for name in learning) == count
        assert not any("mlp" in name or "attention" in name for name in learning)


def test_projections_of_a_memory_begin_as_those_of_attention(adopted):
    model, _ = with_blocks(adopted, ["lmm"], rule="titans-linear")
    memory, attention = model.blocks[1].mixer.memory, adopted.blocks[1].mixer.attention
    q, k, v = memory.in_proj.weight.view(3, 4, 16, 32)
    theirs = attention.in_proj.weight.view(8, 16, 32)
    assert torch.equal(q, theirs[:4])
    assert torch.equal(k, theirs[[4, 4, 5, 5]]) and torch.equal(v, theirs[[6, 6, 7, 7]])
    assert torch.equal(memory.out_proj.weight, attention.out_proj.weight)
    other, _ = with_blocks(adopted, ["lmm"], rule="titans-linear", memory_heads=2)
    assert other.blocks[1].mixer.memory.in_proj.weight.shape == (96, 32)


def test_a_memory_that_is_there_is_kept(adopted):
    first, _ = with_blocks(adopted, ["mag:gate=add"], window=8, rule="titans-linear")
    shaken(first, dtype=torch.float32)
    again, new = with_blocks(first, ["mag:gate=add"], window=12)
    assert new == []
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in first.state_dict().items())


def test_kinds_are_repeated_in_turn_and_weights_find_their_place(adopted):
    model, new = with_blocks(adopted, ["attention", "mac"], window=8)
    assert model.config.blocks == ("attention", "mac", "attention")
    inner = model.blocks[1].mixer.context.attention
    assert torch.equal(inner.in_proj.weight, adopted.blocks[1].mixer.attention.in_proj.weight)
    assert new and all(name.startswith("blocks.1.mixer.") for name in new)
    assert model(IDS).logits.isfinite().all()


@torch.no_grad()
def test_the_sink_is_the_key_and_value_of_the_first_token(adopted):
    model, new = with_blocks(adopted, ["window"], window=8, sink=5)
    assert new == [f"blocks.{i}.mixer.attention.persistent" for i in range(3)]
    hidden = adopted(torch.tensor([[5, 9, 2]]), hidden=True).hidden
    for x, block in zip(hidden, model.blocks, strict=False):
        attention = block.mixer.attention
        _, k, v = attention.project(block.mixer_norm(x), attention.rotations(torch.arange(3)[None], x))
        own_k, own_v = attention.persistent_pair(x)
        torch.testing.assert_close(own_k, k[:, :1], rtol=0, atol=1e-6)
        torch.testing.assert_close(own_v, v[:, :1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("blocks", "changes", "complaint"),
    [
        ([], {}, "from 1 to 3"),
        (["window"] * 4, {}, "from 1 to 3"),
        (["windw"], {}, "no block 'windw'"),
        (["window"], {"heads": 2}, "keep its sizes"),
        (["window"], {"sink": 61}, "ids 0 to 60"),
    ],
)
def test_blocks_that_cannot_be(adopted, blocks, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        with_blocks(adopted, blocks, **changes)


def test_a_second_sink_is_refused(adopted):
    once, _ = with_blocks(adopted, ["window"], sink=1)
    with pytest.raises(ValueError, match="leave the sink out"):
        with_blocks(once, ["window"], sink=1)


# --- What cannot be adopted


def test_another_family(tmp_path):
    AutoModelForCausalLM.from_config(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"'gpt2'; what can be adopted is {', '.join(FAMILY)}"):
        adopt(tmp_path)
    with pytest.raises(UserError, match="adopt it first: mnemonist adopt"):
        LanguageModel.load(tmp_path)
    with pytest.raises(UserError, match=r"no config\.json"):
        adopt(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"hidden_act": "gelu"}, "activation is 'gelu'"),
        ({"attention_bias": True}, "biases"),
        ({"mlp_bias": True}, "biases"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "type 'yarn'"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "a part of each head"),
        ({"num_key_value_heads": 3}, "kv_heads is 3"),
        ({"num_hidden_layers": "many"}, "cannot be used"),
        ({"hidden_size": None}, "cannot be used"),
    ],
)
def test_what_blocks_have_not(changes, complaint):
    with pytest.raises(UserError, match=complaint):
        adopted_config(THEIRS["llama"].to_dict() | changes, "config.json")


def test_weights_that_are_missing_left_over_or_of_other_shapes(tmp_path):
    saved(tmp_path, THEIRS["llama"])
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    for changes, complaint in (
        ({"num_hidden_layers": 4}, r"no weights named layers\.3\."),
        ({"num_hidden_layers": 2}, r"weights that this kind of model has not: layers\.2\."),
        ({"intermediate_size": 47}, "does not hold the weights"),
    ):
        file.write_text(json.dumps(config | changes))
        with pytest.raises(UserError, match=complaint):
            adopt(tmp_path)
