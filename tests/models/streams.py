"""What the tests of layers, blocks and models share: small models, and reading a stream in pieces."""

from __future__ import annotations

import torch
from torch import Tensor

from mnemonist.models import BLOCKS, Block, LanguageModel, ModelConfig, NeuralMemory

WIDTH = 12

SMALL = ModelConfig(
    blocks=("mag", "lmm", "window", "attention"),
    rule="titans:chunk_size=5,expansion=2",
    vocab_size=17,
    width=WIDTH,
    heads=2,
    head_dim=4,
    memory_heads=2,
    memory_head_dim=4,
    window=4,
    persistent_tokens=2,
    mlp_width=16,
)

SHARED = SMALL.replace(
    tied=False, kv_heads=1, qk_norm=True, qkv_bias=True, rope_base=50.0, rope_stretch=(4.0, 1.0, 3.0, 40.0)
)


def shaken(module: torch.nn.Module, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """The module away from its tidy beginning: gates that depend on their tokens, norms that are not one."""
    torch.manual_seed(seed)
    size = 0.1 if dtype == torch.float64 else 0.03  # rough weights amplify rounding from block to block
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return module.to(dtype).eval()


def readers(dtype: torch.dtype = torch.float64) -> dict[str, torch.nn.Module]:
    """Everything that reads embeddings: the layer under several rules, and every kind of block."""
    rules = ("titans:chunk_size=5,expansion=2", "titans-linear:chunk_size=5", "gla", "linear-attention", "ttt-mlp")
    torch.manual_seed(0)
    found: dict[str, torch.nn.Module] = {f"layer-{rule}": NeuralMemory(WIDTH, 2, 4, rule) for rule in rules}
    found["layer-gates-of-chunks"] = NeuralMemory(WIDTH, 2, 4, rules[0] + ",gates=chunk")
    found["layer-writes"] = NeuralMemory(WIDTH, 2, 4, rules[0] + ",writes=2")
    found["layer-window"] = NeuralMemory(WIDTH, 2, 4, rules[0] + ",window=7")
    found["layer-no-conv"] = NeuralMemory(WIDTH, 2, 4, rules[0], conv_size=1)
    found |= {f"block-{kind}": Block(SMALL, kind) for kind in (*BLOCKS, "mag:gate=add")}
    found |= {f"block-shared-{kind}": Block(SHARED, kind) for kind in ("window", "attention", "mac")}
    return {name: shaken(module, dtype=dtype) for name, module in found.items()}


def small_model(dtype: torch.dtype = torch.float64, seed: int = 0, **changes: object) -> LanguageModel:
    torch.manual_seed(seed)  # what a model generates must not differ from run to run
    model = shaken(LanguageModel(SMALL.replace(**changes)), seed, dtype)
    assert isinstance(model, LanguageModel)
    return model


def read(reader: torch.nn.Module, x: Tensor, state: object = None, mask: Tensor | None = None) -> tuple[Tensor, object]:
    """What a layer, block or model answers, and its state."""
    out = reader(x, state, mask)
    if isinstance(out, tuple):
        return out[0], out[1]
    return (out.logits if hasattr(out, "logits") else out.y), out.state


def read_in_pieces(
    reader: torch.nn.Module, x: Tensor, lengths: list[int], mask: Tensor | None = None
) -> tuple[Tensor, object]:
    state: object = None
    answers, at = [], 0
    for length in lengths:
        part = None if mask is None else mask[:, at : at + length]
        y, state = read(reader, x[:, at : at + length], state, part)
        answers.append(y)
        at += length
    return torch.cat(answers, dim=1), state


def state_tensors(state: object) -> list[Tensor]:
    """All floating-point tensors of a state, in a fixed order."""
    if isinstance(state, Tensor):
        return [state] if state.is_floating_point() else []
    if isinstance(state, tuple):
        return [t for part in state for t in state_tensors(part)]
    if hasattr(state, "__dataclass_fields__"):
        return [t for name in state.__dataclass_fields__ if name != "rule" for t in state_tensors(getattr(state, name))]
    return []
