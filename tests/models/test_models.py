"""Layers and models: parts that can be named, files that come back, and bad input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from streams import SMALL, shaken, small_model

from mnemonist.errors import UserError
from mnemonist.memory import RULES, memorize
from mnemonist.models import (
    BLOCKS,
    PRESETS,
    Block,
    LanguageModel,
    ModelConfig,
    NeuralMemory,
    find_preset,
    neural_memory,
)
from mnemonist.models.blocks import MIXERS, BlockState
from mnemonist.tensors import save_tensors


@pytest.mark.parametrize("rule", [*list(RULES), "titans:depth=4,activation=gelu", "deltanet:feature_map=hedgehog"])
@pytest.mark.parametrize("kind", [kind for kind, block in BLOCKS.items() if block.memory])
def test_every_rule_fits_every_memory_block_and_learns(kind, rule):
    """One step of gradient descent reaches every parameter."""
    torch.manual_seed(0)
    model = LanguageModel(SMALL.replace(blocks=(kind,), rule=rule))
    tokens = torch.randint(0, 17, (2, 30))
    loss = torch.nn.functional.cross_entropy(model(tokens).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_blocks_and_mixers_are_one_table():
    assert list(BLOCKS) == list(MIXERS)


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_can_be_built(name):
    with torch.device("meta"):
        model = LanguageModel(find_preset(name))
    assert sum(p.numel() for p in model.parameters()) > 100_000


def test_the_layer_remembers_an_association():
    """Keys and values come from embeddings of any origin: what was written under a key comes back under it."""
    torch.manual_seed(0)
    layer = NeuralMemory(8, 1, 8, "deltanet", conv_size=1)
    with torch.no_grad():
        eye = torch.eye(8)
        layer.in_proj.weight.copy_(torch.cat([eye, eye, eye.roll(1, 0)]))  # value: the key, shifted by one
        layer.step_proj.bias.fill_(12.0)
    x = 3 * torch.eye(8)[None]
    _, state, _ = layer(x)
    read = layer(x, state, learn=False)[1].memory.weights[0][0, 0]
    recalled = torch.nn.functional.normalize(torch.nn.functional.silu(x[0]), dim=-1) @ read
    assert torch.equal(recalled.argmax(-1), (torch.arange(8) + 1) % 8)


@pytest.mark.parametrize("conv_size", [1, 4])
def test_mixed_precision_gives_the_memory_tokens_in_half_precision(conv_size, monkeypatch):
    """A GPU's kernels multiply in the type of their tokens; states and gates stay in float32."""
    given = []

    def spy(rule, *tokens, **others):
        given.append([x.dtype for x in tokens])
        return memorize(rule, *tokens, **others)

    monkeypatch.setattr(neural_memory, "memorize", spy)
    torch.manual_seed(0)
    layer, x = NeuralMemory(12, 2, 4, "titans:chunk_size=5,expansion=2", conv_size=conv_size), torch.randn(2, 23, 12)
    single, _, _ = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        whole, after, _ = layer(x)
        first, state, _ = layer(x[:, :9])
        rest, last, _ = layer(x[:, 9:], state)
        whole.float().square().mean().backward()
    assert given[0] == [torch.float32] * 3 and given[1:] == [[torch.bfloat16] * 3] * 3
    torch.testing.assert_close(torch.cat([first, rest], 1), whole, rtol=0.02, atol=0.02)
    torch.testing.assert_close(whole.float(), single, rtol=0.05, atol=0.05)
    assert all(w.dtype == torch.float32 for w in (*last.memory.weights, *after.memory.momentum))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_surprise_is_large_where_the_text_breaks_its_pattern():
    torch.manual_seed(0)
    layer = NeuralMemory(32, 2, 16, "titans-linear")
    pattern = torch.randn(1, 4, 32).repeat(1, 200, 1)
    broken = pattern.clone()
    broken[0, 700:] = torch.randn(100, 32)
    with torch.no_grad():
        _, _, seen = layer(broken, surprise=True)
    norm = seen.gradient_norm.mean(-1)[0]
    assert norm[704:720].mean() > 1.8 * norm[650:700].mean()


def test_a_model_file_comes_back(tmp_path):
    model = small_model(torch.float32)
    model.save(tmp_path / "m.safetensors")
    again = LanguageModel.load(tmp_path / "m.safetensors").eval()
    tokens = torch.randint(0, 17, (2, 20))
    assert again.config == model.config
    assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_files_that_are_no_models(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(UserError, match="there is no file"):
        LanguageModel.load(path)
    path.write_bytes(b"PK\x03\x04 not ours")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        LanguageModel.load(path)
    small_model(torch.float32).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        LanguageModel.load(path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"blocks": ()}, "at least one block"),
        ({"blocks": ("magg",)}, "did you mean 'mag'"),
        ({"blocks": ("mag:gte=silu",)}, "did you mean 'gate'"),
        ({"blocks": ("mag:gate=relu",)}, "silu, sigmoid or add"),
        ({"blocks": ("mag:skip=false",)}, "not a change to the block 'mag'.*one of gate"),
        ({"blocks": ("lmm:gate=silu",)}, "it has no choices"),
        ({"rule": "titan"}, "did you mean 'titans'"),
        ({"rule": "titans:depht=3"}, "did you mean 'depth'"),
        ({"rule": "titans:depth=9"}, "1 to 4 layers"),
        ({"rule": "titans:depth=two"}, "of type int"),
        ({"rule": "titans:momentum=maybe"}, "true or false"),
        ({"width": 0}, "width is 0"),
        ({"window": 0}, "window is 0"),
        ({"persistent_tokens": -1}, "at least 0"),
        ({"head_dim": 5}, "even number"),
    ],
)
def test_impossible_configurations(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        SMALL.replace(**changes)


def test_configurations_travel_as_json():
    config = SMALL.replace(rule="titans:depth=3,feature_map=none")
    assert ModelConfig.from_json(config.to_json()) == config
    with pytest.raises(ValueError, match="not a model configuration"):
        ModelConfig.from_json('{"layers": 3}')


def test_bad_input_to_a_model():
    model = small_model()
    tokens = torch.zeros(2, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"must be \[B, T\]"):
        model(tokens[:, :0])
    with pytest.raises(ValueError, match="0 to 16"):
        model(tokens + 17)
    with pytest.raises(ValueError, match="2 rows but the batch has 1"):
        model(tokens[:1], state=model(tokens).state)
    with pytest.raises(ValueError, match="4 blocks but the model 1"):
        small_model(blocks=("lmm",))(tokens, state=model(tokens).state)
    with pytest.raises(ValueError, match="cannot be combined"):
        model(tokens, starts=tokens.bool(), mask=~tokens.bool())
    with pytest.raises(ValueError, match="must all be at least 1"):
        NeuralMemory(8, 0, 8)
    with pytest.raises(ValueError, match="no block 'nothing'"):
        Block(SMALL, "nothing")


def test_what_the_paper_leaves_open_is_a_choice():
    x = torch.randn(1, 9, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for kind, choice in (
        ("mag", "gate=sigmoid"),
        ("mac", "gate=sigmoid"),
        ("mac", "skip=false"),
        ("mal", "skip=false"),
    ):
        blocks = [shaken(Block(SMALL, name)) for name in (kind, f"{kind}:{choice}")]
        blocks[1].load_state_dict(blocks[0].state_dict())  # no choice changes the weights
        default, other = (block(x).y for block in blocks)
        assert not torch.allclose(default, other)
    # With a closed sigmoid, or the memory's answers at zero, what is left is the part that the choice names.
    mal, plain = (shaken(Block(SMALL, name)) for name in ("mal", "mal:skip=false"))
    for block in (mal, plain):
        torch.nn.init.zeros_(block.mixer.memory.out_proj.weight)
    far = x.clone()
    far[0, 3] += 1
    assert not torch.allclose(mal.mixer(x, BlockState(), None, learn=True, surprise=False).y[:, 4:],
                              mal.mixer(far, BlockState(), None, learn=True, surprise=False).y[:, 4:])  # fmt: skip
    assert torch.equal(plain.mixer(x, BlockState(), None, learn=True, surprise=False).y[:, 4:],
                       plain.mixer(far, BlockState(), None, learn=True, surprise=False).y[:, 4:])  # fmt: skip


def test_gates_of_chunks_are_those_of_their_first_tokens():
    torch.manual_seed(0)
    held = NeuralMemory(8, 2, 4, "titans:chunk_size=3,gates=chunk")
    each = NeuralMemory(8, 2, 4, "titans:chunk_size=3")
    each.load_state_dict(held.state_dict())
    with torch.no_grad():
        for layer in (held, each):
            layer.step_proj.weight.fill_(0.3)
            layer.decay_proj.weight.fill_(-0.2)
    x = torch.randn(2, 7, 8)
    _, state, seen = held(x, surprise=True)
    _, _, by_token = each(x, surprise=True)
    firsts = torch.tensor([0, 0, 0, 3, 3, 3, 6])
    assert torch.equal(seen.step_size, by_token.step_size[:, firsts])
    assert torch.equal(seen.decay, by_token.decay[:, firsts])
    assert not torch.equal(seen.step_size, by_token.step_size)
    assert state.held.shape == (2, 6)  # step, momentum and decay of two heads


def test_constant_gates_are_those_of_retnet_and_keys_may_be_free():
    layer, x = NeuralMemory(12, 3, 4, "retnet"), torch.randn(2, 5, 12)
    gates = layer._gates(x)
    assert torch.allclose(gates["log_decay"].exp(), (1 - 2.0 ** -(5 + torch.arange(3.0))).expand(2, 5, 3))
    assert torch.equal(gates["step_size"], torch.ones(2, 5, 3))
    assert layer.step_proj is None and layer.decay_proj is None
    free = layer._streams(layer.in_proj(x), None, None)[1]
    layer.rule = layer.rule.replace(keys="unit")
    unit = layer._streams(layer.in_proj(x), None, None)[1]
    torch.testing.assert_close(F.normalize(free, dim=-1), unit)
    assert not torch.allclose(free.norm(dim=-1), torch.ones(()))


def test_a_step_of_two_turns_a_memory_around():
    """With step 2 on a unit key, M k becomes 2 v - M k: the eigenvalue -1 with which parity can be counted."""
    config = SMALL.replace(rule="deltanet", blocks=("lmm",), step_bound=2.0)
    layer = LanguageModel(config).blocks[0].mixer.memory
    with torch.no_grad():
        layer.step_proj.bias.fill_(50.0)
    assert torch.allclose(layer._gates(torch.zeros(1, 3, config.width))["step_size"], torch.full((1, 3, 2), 2.0))
    with pytest.raises(ValueError, match=r"step_bound is 0.*must be a positive number"):
        SMALL.replace(step_bound=0.0)


def test_a_rule_can_choose_how_many_features_its_map_has():
    layer = NeuralMemory(12, 2, 4, "linear-attention:feature_map=favor,features=32")
    assert layer.initial[0].shape == (2, 32, 4)


DEEP_BY_TOKEN = [
    "deltanet:depth=2", "gated-deltanet:depth=4", "titans:gradient_at=previous,norm=false,residual=false",
    "deltanet:depth=2,momentum=true", "deltanet:feature_map=elu", "gated-deltanet:feature_map=taylor",
    "mesa:feature_map=elu",
]  # fmt: skip


@pytest.mark.parametrize("repeated", [False, True], ids=["many keys", "one key"])
@pytest.mark.parametrize("rule", DEEP_BY_TOKEN)
def test_no_memory_overshoots_as_it_is_born(rule, repeated):
    torch.manual_seed(0)
    layer = NeuralMemory(32, 2, 16, rule)
    x = torch.randn(2, 200, 32)
    if repeated:
        x = x[:, :1].repeat(1, 200, 1)
    with torch.no_grad():
        layer.step_proj.bias.fill_(20.0)  # at its bound
        assert layer(x)[0].abs().max() < 20


def test_where_the_gradient_is_taken_does_not_change_the_step():
    """A chunk of one token is a gradient at every token."""
    torch.manual_seed(0)
    one, other = (NeuralMemory(16, 2, 8, f"titans:{point}") for point in ("chunk_size=1", "gradient_at=previous"))
    other.load_state_dict(one.state_dict())
    x = torch.randn(2, 30, 16)
    torch.testing.assert_close(one(x)[0], other(x)[0])
    assert one.step_bound == other.step_bound < 1
    assert NeuralMemory(16, 2, 8, "deltanet").step_bound == NeuralMemory(16, 2, 8, "mamba2").step_bound == 1


def test_a_layer_says_what_is_wrong_with_its_input():
    layer, x = NeuralMemory(16, 2, 8, "deltanet"), torch.randn(2, 9, 16)
    with pytest.raises(ValueError, match=r"x is \[9, 16\]; this layer reads embeddings \[B, T, 16\]"):
        layer(x[0])
    with pytest.raises(ValueError, match=r"x is \[2, 9, 15\]"):
        layer(x[..., :15])
    with pytest.raises(ValueError, match=r"mask_BT is \[2, 8\]; it must be \[2, 9\]"):
        layer(x, mask_BT=torch.ones(2, 8, dtype=torch.bool))
    for bound in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="step_bound is .*; it must be a positive number"):
            NeuralMemory(16, 2, 8, step_bound=bound)
    other = NeuralMemory(16, 2, 8, "deltanet", conv_size=2)
    with pytest.raises(ValueError, match=r"belongs to another layer: its convolution keeps \[3, 48\]"):
        other(x, layer(x)[1])
    assert "heads=2, head_dim=8, rule=deltanet" in str(layer)


def test_a_mask_of_whole_numbers_is_a_mask():
    layer, x = NeuralMemory(16, 2, 8, "titans:chunk_size=4"), torch.randn(2, 9, 16)
    mask = torch.arange(9) < torch.tensor([[9], [5]])
    assert torch.equal(layer(x, mask_BT=mask.long())[0], layer(x, mask_BT=mask)[0])


@pytest.mark.parametrize("rule", ["titans:chunk_size=4", "titans:chunk_size=4,gates=chunk", "mesa", "linear-attention"])
def test_the_state_of_a_layer_goes_through_a_file(rule, tmp_path):
    torch.manual_seed(0)
    layer, x = NeuralMemory(16, 2, 8, rule), torch.randn(2, 15, 16)
    with torch.no_grad():
        _, state, _ = layer(x[:, :7])
        state.save(tmp_path / "state.safetensors")
        again = layer.load_state(tmp_path / "state.safetensors")
        y, after, _ = layer(x[:, 7:], state)
        y_again, after_again, _ = layer(x[:, 7:], again)
    assert torch.equal(y, y_again)
    one, other = after.to_tensors(), after_again.to_tensors()
    assert all(torch.equal(one[name], other[name]) for name in one) and one.keys() == other.keys()


def test_the_state_of_another_layer_is_refused(tmp_path):
    path, x = tmp_path / "state.safetensors", torch.randn(1, 3, 16)
    NeuralMemory(16, 2, 8, "deltanet")(x)[1].save(path)
    with pytest.raises(UserError, match="cannot be used: its memories have another rule than mamba2"):
        NeuralMemory(16, 2, 8, "mamba2").load_state(path)
    with pytest.raises(UserError, match="cannot be used: These tensors are not a state of this model"):
        NeuralMemory(16, 4, 4, "deltanet").load_state(path)
    save_tensors(path, {"other": x}, format="mnemonist-layer-state/1", rule=RULES["deltanet"].to_json())
    with pytest.raises(UserError, match="cannot be used: 'tail' is missing"):
        NeuralMemory(16, 2, 8, "deltanet").load_state(path)
