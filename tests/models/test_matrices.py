"""A model whose matrices are held in bfloat16 is the model of the numbers that they stand for, to the last bit."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from streams import shaken, small_model
from transformers import AutoModelForCausalLM

from mnemonist.data import ByteTokenizer
from mnemonist.errors import UserError
from mnemonist.evals.regression import predict
from mnemonist.memory.kernels import native_linear_layer
from mnemonist.models import BLOCKS, LanguageModel, MnemonistForCausalLM, ModelConfig, Session, register, with_blocks
from mnemonist.reasoning.attempts import Decoding
from mnemonist.reasoning.sampling import LocalSampler

LARGE = ModelConfig(width=192, heads=3, head_dim=64, memory_heads=3, memory_head_dim=64, mlp_width=256)
TOKENS = torch.randint(0, 256, (2, 90), generator=torch.Generator().manual_seed(0))
HALVES = torch.bfloat16
register()


def rounded(model: LanguageModel) -> LanguageModel:
    """With matrices of numbers that halves can stand for."""
    for matrix in model.matrices():
        matrix.data = matrix.data.to(HALVES).to(matrix.dtype)
    return model


def pair(**changes: object) -> tuple[LanguageModel, LanguageModel]:
    """The same model in float32, and with its matrices in halves."""
    torch.manual_seed(0)
    model = rounded(shaken(LanguageModel(LARGE.replace(**changes)), dtype=torch.float32))
    return model, copy.deepcopy(model).matrices_to(HALVES)


def types(model: torch.nn.Module) -> dict[str, torch.dtype]:
    return {name: tensor.dtype for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_it_reads_and_writes_the_same_bits(kind, tied):
    model, halves = pair(blocks=(kind,), tied=tied)
    held = {name for name, dtype in types(halves).items() if dtype == HALVES}
    assert {name for name in held if not name.startswith("blocks.")} == {
        "embedding.weight",
        *([] if tied else ["head.weight"]),
    }
    assert any(name.endswith("gate_up.weight") for name in held) and all("norm" not in name for name in held)
    assert set(types(halves).values()) == {HALVES, torch.float32}
    one, other = model(TOKENS), halves(TOKENS)
    assert torch.equal(one.logits, other.logits)
    for t in range(4):  # a row each, through the compiled layer
        one, other = (m(TOKENS[:, t : t + 1], read.state) for m, read in ((model, one), (halves, other)))
        assert torch.equal(one.logits, other.logits)
    kept = other.state.to_tensors()
    assert all(torch.equal(kept[name], tensor) for name, tensor in one.state.to_tensors().items())
    assert {tensor.dtype for tensor in kept.values() if tensor.is_floating_point()} == {torch.float32}
    begins = {tensor.dtype for tensor in halves.initial_state().to_tensors().values()}
    assert begins <= {torch.float32, torch.int64}


@pytest.mark.parametrize("rule", ["titans", "kda"])
@torch.no_grad()
def test_gates_stay_as_they_are(rule, monkeypatch):
    """Those of every token alone, and those of every channel, which are large matrices."""
    monkeypatch.setattr(native_linear_layer, "LEAST_WEIGHTS", 1)
    model, halves = pair(blocks=("lmm",), rule=rule)
    wide = {name for name, dtype in types(halves).items() if dtype == torch.float32}
    gates = {name for name in types(halves) if name.endswith(("step_proj.weight", "decay_proj.weight"))}
    assert len(gates) == 2 and gates <= wide
    one, other = model(TOKENS), halves(TOKENS)
    assert torch.equal(one.logits, other.logits)
    one, other = model(TOKENS[:, :1], one.state), halves(TOKENS[:, :1], other.state)
    assert torch.equal(one.logits, other.logits)


@torch.no_grad()
def test_without_a_compiler_it_writes_the_same_bits(monkeypatch):
    model, halves = pair(blocks=("mag", "attention"))
    monkeypatch.setattr(native_linear_layer, "linear_layer_kernel", lambda: None)
    state = model(TOKENS).state
    assert torch.equal(model(TOKENS[:, :1], state).logits, halves(TOKENS[:, :1], state).logits)


def test_a_session_of_one_is_gone_on_from_by_the_other(tmp_path):
    model, halves = pair(blocks=("mac", "attention"))
    assert halves.fingerprint() == model.fingerprint()
    _, session = model.read(TOKENS[:, :40])
    session.save(tmp_path / "s.safetensors")
    rest, _ = halves.read(TOKENS[:, 40:], Session.load(tmp_path / "s.safetensors", halves))
    whole, _ = model.read(TOKENS)
    assert torch.equal(rest.bits, whole.bits[:, 40:])


def test_numbers_that_are_rounded_make_another_model():
    model = shaken(LanguageModel(LARGE), dtype=torch.float32)
    halves = copy.deepcopy(model).matrices_to(HALVES)
    assert halves.fingerprint() != model.fingerprint()
    with pytest.raises(UserError, match="the same configuration with other weights"):
        model.read(TOKENS, Session.begin(halves, 2))
    assert copy.deepcopy(halves).float().fingerprint() == halves.fingerprint()
    assert copy.deepcopy(halves).bfloat16().fingerprint() != halves.fingerprint()


@pytest.mark.parametrize("name", ["folder", "one.safetensors"])
def test_types_survive_a_file(tmp_path, name):
    model, halves = pair(blocks=("mag", "attention"), tied=False)
    halves.save(tmp_path / name)
    again = LanguageModel.load(tmp_path / name)
    assert types(again) == types(halves) and again.fingerprint() == model.fingerprint()
    model.save(tmp_path / "wide.safetensors")
    file = tmp_path / name / "model.safetensors" if name == "folder" else tmp_path / name
    assert file.stat().st_size < 0.56 * (tmp_path / "wide.safetensors").stat().st_size


def test_transformers_opens_it_in_the_type_that_it_computes_with(tmp_path):
    model, halves = pair(blocks=("mag", "attention"))
    halves.save(tmp_path / "ours")
    wrapped = MnemonistForCausalLM.from_language_model(halves)
    assert wrapped.dtype == torch.float32
    wrapped.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        assert json.loads((tmp_path / folder / "config.json").read_text())["dtype"] == "float32"
        opened = AutoModelForCausalLM.from_pretrained(tmp_path / folder)
        assert set(types(opened).values()) == {torch.float32} and opened.model.fingerprint() == model.fingerprint()
        assert types(LanguageModel.load(tmp_path / folder)) == types(halves)
    model.bfloat16().save(tmp_path / "low")
    assert set(types(AutoModelForCausalLM.from_pretrained(tmp_path / "low")).values()) >= {HALVES}
    assert json.loads((tmp_path / "low" / "config.json").read_text())["dtype"] == "bfloat16"


def test_it_generates_and_makes_attempts_as_before():
    made = []
    for model in pair(blocks=("mag", "attention")):
        wrapped = MnemonistForCausalLM.from_language_model(model)
        text = wrapped.generate(TOKENS, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
        sampler = LocalSampler(wrapped, ByteTokenizer(), batch_size=3)
        attempts = sampler.sample(["some", "texts", "of several lengths"], Decoding(max_tokens=6, seed=1))
        made.append((text.tolist(), [(a.text, a.log_probs) for a in attempts]))
    assert made[0] == made[1]


# --- training


def test_halves_are_not_trained_unawares():
    _, halves = pair(blocks=("mag", "attention"))
    with pytest.raises(ValueError, match=r"train model\.float\(\)"):
        halves.train()(TOKENS)
    halves.float()(TOKENS).logits.sum().backward()
    assert all(parameter.dtype == torch.float32 for parameter in halves.parameters())
    halves.zero_grad()
    assert halves.matrices_to(HALVES).eval()(TOKENS).logits.requires_grad


def test_what_is_beside_halves_learns_as_beside_float32():
    gradients = []
    for model in pair(blocks=("mag", "attention")):
        for matrix in model.matrices():
            matrix.requires_grad_(False)
        loss = model.train()(TOKENS).logits.logsumexp(-1).sum()
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert gradients[0] and all(torch.equal(gradients[1][name], grad) for name, grad in gradients[0].items())


def test_a_gradient_of_before_does_not_stay():
    model, _ = pair()
    model(TOKENS).logits.sum().backward()
    model.matrices_to(HALVES)
    assert model.embedding.weight.grad is None and model.norm.weight.grad is not None


# --- what else looks at weights


def test_other_blocks_are_of_one_type():
    model, halves = pair(blocks=("attention", "attention"), persistent_tokens=0)
    changed = []
    for before in (model, halves):
        torch.manual_seed(0)
        changed.append(with_blocks(before, ["window", "mag:gate=add"], window=32, sink=1)[0])
    assert set(types(changed[1]).values()) == {torch.float32}
    assert changed[0].fingerprint() == changed[1].fingerprint()


@torch.no_grad()
def test_mixtures_of_embeddings_are_read_alike():
    model, halves = pair(blocks=("attention",), vocab_size=200)
    x, y = torch.randn(2, 5, 197), torch.randn(2, 5)
    assert torch.equal(predict(model, x, y), predict(halves, x, y))
    vectors = halves.embedding(TOKENS % 200)
    assert vectors.dtype == HALVES and torch.equal(halves(vectors).logits, model(TOKENS % 200).logits)


def test_types_that_there_are_not():
    model = small_model(torch.float32)
    for dtype in (torch.float16, torch.float64, torch.int8):
        with pytest.raises(ValueError, match=r"held in torch\.bfloat16, or in torch\.float32"):
            model.matrices_to(dtype)
    assert list(model.matrices()) == [], "small ones stay as they are"
    assert model.matrices_to(HALVES).fingerprint() == small_model(torch.float32).fingerprint()
    wide, halves = pair(blocks=("attention",))
    assert types(halves.matrices_to(torch.float32)) == types(wide) and halves.fingerprint() == wide.fingerprint()
