"""What a model is said to cost is what it costs."""

from __future__ import annotations

import math

import pytest
import torch
from streams import SHARED, SMALL, small_model
from torch.utils.flop_counter import FlopCounterMode

from mnemonist.memory import RULES
from mnemonist.memory.kernels import native
from mnemonist.models import BLOCKS, PRESETS, LanguageModel, ModelConfig, matched, model_cost
from mnemonist.models.cost import empty_model

# Torch's counter does not know the products that are added in place.
IN_PLACE = {torch.ops.aten.baddbmm_: lambda _, a, b, out_shape=None, **more: 2 * math.prod(a) * b[-1]}

SIZES = {"1m": 1, "4m": 4, "15m": 15, "50m": 50, "170m": 170, "340m": 340, "400m": 400, "760m": 760}


@pytest.mark.parametrize("size", list(SIZES))
def test_presets_of_a_size_have_its_parameters(size):
    for block in BLOCKS:
        count = empty_model(PRESETS[f"{block}-{size}"]).parameter_count
        assert abs(count / (SIZES[size] * 1e6) - 1) < 0.01


@pytest.mark.parametrize("rule", [*RULES])
def test_other_rules_give_models_of_equal_size(rule):
    """The same configuration with another rule's name, and its MLP fitted."""
    config = PRESETS["lmm-170m"].replace(rule=rule)
    assert abs(empty_model(matched(config, 170_000_000, 8)).parameter_count / 170e6 - 1) < 0.01
    assert abs(empty_model(config).parameter_count / 170e6 - 1) < 0.08  # even as it is


def test_parameters_and_state_are_those_of_the_model():
    configs = [config.replace(blocks=(kind, "lmm")) for kind in BLOCKS for config in (SMALL, SHARED)]
    for config in configs:
        cost, model = model_cost(config), LanguageModel(config)
        assert cost.parameters == sum(p.numel() for p in model.parameters())
        assert cost.embedding_parameters == 17 * 12 * (1 if config.tied else 2)
        sizes = [model(torch.zeros(1, n, dtype=torch.int64)).state.nbytes for n in (3, 20)]
        assert sizes == [cost.state_bytes + n * cost.state_bytes_per_token for n in (3, 20)]
        assert (cost.state_bytes_per_token > 0) == (config.blocks[0] == "attention")


@pytest.mark.parametrize("rule", ["titans", "titans:depth=3,momentum=false", "titans-linear", "mamba2"])
@pytest.mark.parametrize("kind", ["lmm", "mag", "mac"])
def test_arithmetic_is_what_torch_counts(kind, rule, monkeypatch):
    """Within a sixth: torch also counts masked halves and the products of gates, but no triangular solutions."""
    monkeypatch.setattr(native, "kernel", lambda *_: None)  # torch cannot see what a kernel multiplies
    config = ModelConfig(blocks=(kind, kind), rule=rule)
    model = LanguageModel(config).eval()
    tokens = torch.zeros(1, 1024, dtype=torch.int64)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        model(tokens)
    counted = counter.get_total_flops() / 1024
    assert model_cost(config, 1024).flops_forward == pytest.approx(counted, rel=1 / 6)


def test_full_attention_costs_more_in_longer_texts():
    short, long = (model_cost(PRESETS["attention-15m"], length).flops_forward for length in (1024, 65536))
    width = 6 * 6 * 64
    assert long - short == pytest.approx(4 * width * (65536 - 1024) / 2, rel=1e-6)
    short, long = (model_cost(PRESETS["mag-15m"], length).flops_forward for length in (1024, 65536))
    assert short == long


def test_equals_are_made():
    model = small_model(torch.float32)
    other = matched(SMALL.replace(blocks=("attention",) * 4), model.parameter_count)
    assert abs(empty_model(other).parameter_count - model.parameter_count) <= 3 * 12 * 4 / 2
    with pytest.raises(ValueError, match="out of reach"):
        matched(SMALL, 1000)
