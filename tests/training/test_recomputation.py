"""What is computed again instead of being kept: the same steps from less memory, in models of every kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toy_training import CONFIG, course, make_model
from transformers import LlamaConfig, LlamaForCausalLM

from mnemonist.errors import UserError
from mnemonist.models import LanguageModel, MnemonistForCausalLM, find_preset
from mnemonist.reasoning.adapters import with_adapters
from mnemonist.reasoning.process_reward import ProcessRewardModel
from mnemonist.training import LossSum, train
from mnemonist.training.recomputation import recompute

SHORT = replace(CONFIG, steps=4, accumulation=1, batch_size=2)


def llama() -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, attention_dropout=0.2, **sizes))


def ours() -> LanguageModel:
    small = find_preset("mag-tiny").replace(width=16, heads=1, head_dim=8, memory_heads=1, memory_head_dim=8)
    return LanguageModel(small.replace(vocab_size=32, mlp_width=64, blocks=("mag", "mag")))


MODELS = {
    "transformers": llama,
    "with adapters": lambda: with_adapters(llama(), 4),
    "judge of steps": lambda: ProcessRewardModel(llama()),
    "ours": ours,
    "ours as theirs": lambda: MnemonistForCausalLM.from_language_model(ours()),
}


def ids_of(step: int, micro: int, rank: int, world: int) -> torch.Tensor:
    return torch.randint(0, 32, (2, 40), generator=torch.Generator().manual_seed(step))


def squares(model: nn.Module, ids: torch.Tensor) -> LossSum:
    """Some loss that every model has."""
    if isinstance(model, ProcessRewardModel):
        out = model(ids, torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool))
    else:
        out = model(ids).logits
    return LossSum(out.square().sum(), torch.tensor(ids.numel()))


class Counting:
    """Bytes that are kept for the way back."""

    def __init__(self) -> None:
        self.kept = 0

    def loss_of(self, model: nn.Module, batch: Any) -> LossSum:
        def count(tensor: torch.Tensor) -> torch.Tensor:
            self.kept += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            return squares(model, batch)


@pytest.mark.parametrize("kind", MODELS)
def test_the_steps_are_the_same_and_less_is_kept(kind: str, tmp_path: Path) -> None:
    ends, kept = [], []
    for again in (False, True):
        torch.manual_seed(2)
        model, counting = MODELS[kind](), Counting()
        if again:
            recompute(model)
        train(model, ids_of, counting.loss_of, SHORT, tmp_path / str(again), progress=False)
        ends.append({name: value.detach() for name, value in model.named_parameters()})
        kept.append(counting.kept)
    if "ours" in kind:
        assert course(tmp_path / "False") == course(tmp_path / "True")
        assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    for name, value in ends[0].items():  # dropout included; theirs take another way through attention
        torch.testing.assert_close(value, ends[1][name])
    assert kept[1] < 0.5 * kept[0]


def test_what_cannot_is_refused() -> None:
    with pytest.raises(UserError, match="Sequential has no blocks that could be computed again"):
        recompute(make_model())
    fixed = llama()
    fixed.supports_gradient_checkpointing = False
    with pytest.raises(UserError, match="LlamaForCausalLM cannot compute its blocks again"):
        recompute(fixed)
