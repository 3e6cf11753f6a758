"""Small models of every kind that a sampler meets, in float64."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from mnemonist.models import BLOCKS, LanguageModel, MnemonistForCausalLM, ModelConfig

VOCAB = 259
POSITIONS = 64
ROUGH = 0.3  # so that what comes next depends on all that was read

MARKS = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
LLAMA = {
    "vocab_size": VOCAB, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": POSITIONS, "initializer_range": ROUGH, **MARKS,
}  # fmt: skip


def llama() -> torch.nn.Module:
    return LlamaForCausalLM(LlamaConfig(**LLAMA))


def mistral() -> torch.nn.Module:
    """It sees a window of 6 tokens."""
    return MistralForCausalLM(MistralConfig(**LLAMA, sliding_window=6))


def gpt2() -> torch.nn.Module:
    """Its positions are embeddings."""
    config = GPT2Config(
        vocab_size=VOCAB, n_embd=24, n_layer=2, n_head=3, n_positions=POSITIONS, initializer_range=ROUGH, **MARKS
    )
    return GPT2LMHeadModel(config)


def mnemonist() -> torch.nn.Module:
    config = ModelConfig(
        blocks=tuple(BLOCKS), rule="titans:chunk_size=5,expansion=2", vocab_size=VOCAB, width=12, heads=2, head_dim=4,
        memory_heads=2, memory_head_dim=4, window=4, mlp_width=16,
    )  # fmt: skip
    model = LanguageModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return MnemonistForCausalLM.from_language_model(model)


MAKERS = {"llama": llama, "mistral": mistral, "gpt2": gpt2, "mnemonist": mnemonist}


@pytest.fixture(scope="session")
def models() -> dict[str, torch.nn.Module]:
    made = {}
    for name, make in MAKERS.items():
        torch.manual_seed(0)
        made[name] = make().double().eval()
    return made


@pytest.fixture(params=MAKERS)
def model(request: pytest.FixtureRequest, models: dict[str, torch.nn.Module]) -> torch.nn.Module:
    """Each of them in turn."""
    return models[request.param]


@pytest.fixture
def any_model(models: dict[str, torch.nn.Module]) -> torch.nn.Module:
    """One, where the kind does not matter."""
    return models["llama"]
