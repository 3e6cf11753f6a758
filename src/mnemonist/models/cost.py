"""What a model costs: numbers to learn, bytes that each stream keeps, arithmetic per token.

Parameters and state are counted on a model built without memory (torch's meta device), so they are exact. Arithmetic is
counted in matrix products, two operations a multiply-add; elementwise work is left out, and so is what a chunk's gates
cost beyond their products. A memory with weights of ``P`` numbers pays per token and head, in units of ``P``: 2 for its
answer to the key, 2 for the error sent back through all layers but the first, 2 for each thing written (M, and S if
there is momentum) and 2 for each thing read (M, S, and what it decays to); and within its chunk ``2 C (D_in + D_out)``
a layer for the writes that are not in the weights yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from mnemonist.models.attention import CausalAttention
from mnemonist.models.configuration import ModelConfig
from mnemonist.models.context import MemoryContext
from mnemonist.models.modeling import LanguageModel
from mnemonist.models.neural_memory import NeuralMemory


@dataclass(frozen=True)
class Cost:
    """What a model costs."""

    parameters: int
    """Numbers that training learns."""
    embedding_parameters: int
    """Those of the embedding, which also gives the logits."""
    state_bytes: int
    """What one stream keeps, whatever its length, in float32."""
    state_bytes_per_token: int
    """What it keeps besides for every token read; 0 unless a block attends to everything."""
    flops_forward: int
    """Operations per token of reading."""
    flops_training: int
    """Operations per token of reading and differentiating, second derivatives of the memories included."""


def model_cost(config: ModelConfig, length: int = 4096) -> Cost:
    """What a model of this configuration costs, reading texts of ``length`` tokens (which full attention feels)."""
    model = empty_model(config)
    state = model.initial_state()
    forward = sum(2 * layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))
    forward += 2 * model.embedding.weight.numel()
    growing = 0
    within = {module.attention: module for module in model.modules() if isinstance(module, MemoryContext)}
    for module in model.modules():
        if isinstance(module, NeuralMemory):
            forward += memory_flops(module)
        elif isinstance(module, CausalAttention):
            if module in within:  # twice the keys: of the text, and of what was recalled for it
                seen = within[module].segment + 1.0
                forward += 2 * module.in_proj.weight.numel() + 2 * sum(w.numel() for w in within[module].memory.initial)
            else:
                seen = (length + 1) / 2 if module.window is None else min(module.window, (length + 1) / 2)
                growing += 0 if module.window is not None else 2 * module.heads * module.head_dim * 4
            persistent = 0 if module.persistent is None else len(module.persistent)
            forward += round(4 * module.heads * module.head_dim * (seen + persistent))
    return Cost(
        parameters=model.parameter_count,
        embedding_parameters=model.embedding.weight.numel(),
        state_bytes=state.nbytes,
        state_bytes_per_token=growing,
        flops_forward=forward,
        flops_training=3 * forward,
    )


def memory_flops(layer: NeuralMemory) -> int:
    """Operations per token that the memories of a layer learn and answer with, its projections left out."""
    rule = layer.rule
    shapes = [weight.shape for weight in layer.initial]
    products = sum(weight.numel() for weight in layer.initial)
    first = layer.initial[0].numel()
    parts = 1 + rule.momentum + (rule.decay_to == "initial")
    written = 1 + rule.momentum
    keys = parts if rule.solvable else 1  # the exact path reads all parts for the key as well
    if rule.objective == "dot" and rule.linear:
        keys = 0
    flops = 2 * products * (keys + written + parts) + 2 * (products - first)
    if rule.solvable or not rule.per_token:
        flops += sum(2 * rule.chunk_size * heads * (d_in + d_out) for heads, d_in, d_out in shapes)
    return flops


def empty_model(config: ModelConfig) -> LanguageModel:
    """A model whose weights have shapes and no numbers: built at once, whatever its size."""
    with torch.device("meta"):
        return LanguageModel(config)


def matched(config: ModelConfig, parameters: int, multiple: int = 1) -> ModelConfig:
    """The configuration with the width of its MLPs such that it has as many parameters as asked for, or nearly.

    So that models of other blocks or rules can be compared: ``matched(config.replace(blocks=...), parameters)``.

    Args:
        config: everything but ``mlp_width`` is kept.
        parameters: how many there should be.
        multiple: of which ``mlp_width`` is one.

    Raises:
        ValueError: without any MLP there would already be more.
    """
    thin = empty_model(config.replace(mlp_width=1)).parameter_count
    per_unit = 3 * config.width * len(config.blocks)
    width = round((parameters - thin + per_unit) / per_unit / multiple) * multiple
    if width < 1:
        raise ValueError(
            f"{' '.join(config.blocks)} at width {config.width} has {thin:,} parameters even with an MLP of width 1; "
            f"{parameters:,} are out of reach, take a smaller width or fewer blocks."
        )
    return config.replace(mlp_width=width)
