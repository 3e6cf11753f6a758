"""What a model costs: numbers to learn, bytes that each stream keeps, arithmetic per token.

Parameters and state are counted on a model built without memory (torch's meta device), so they are exact. Arithmetic is
counted in matrix products, two operations a multiply-add; elementwise work is left out, and so is what a chunk's gates
cost beyond their products. A memory with weights of ``P`` numbers pays per token and head, in units of ``P``: 2 for its
answer to the key, 2 for the error sent back through all layers but the first, 2 for each thing written (M, and S if
there is momentum) and 2 for each thing read (M, S, and what it decays to); and within its chunk ``2 C (D_in + D_out)``
a layer for the writes that are not in the weights yet. A token that writes several times pays all of it each time. A
memory at its optimum pays for sums with values that are wider by its keys, and for each step of a search; one that
steps orthogonally for products of its weights' gradient with itself, token by token. What a step, a loss or an
activation of one's own costs is not known, and left out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from mnemonist.memory import least_squares
from mnemonist.memory.steps import ITERATIONS
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
    """Those of the embedding, and of what gives the logits if that is not the same."""
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
    kinds = Counter(config.blocks)  # equal blocks cost the same: one of each is looked at
    model = empty_model(config.replace(blocks=tuple(kinds)))
    unembedding = model.unembedding.numel()
    embedding = unembedding if model.head is None else unembedding + model.embedding.weight.numel()
    parameters, forward = embedding + model.norm.weight.numel(), 2 * unembedding
    state = growing = 0
    for block, before, count in zip(model.blocks, model.initial_state().blocks, kinds.values(), strict=True):
        parameters += count * sum(parameter.numel() for parameter in block.parameters())
        state += count * before.nbytes
        forward += count * reading_flops(block, length)
        growing += count * sum(
            2 * module.kv_heads * module.head_dim * 4 for module in _attentions(block) if module.window is None
        )
    return Cost(
        parameters=parameters,
        embedding_parameters=embedding,
        state_bytes=state,
        state_bytes_per_token=growing,
        flops_forward=forward,
        flops_training=3 * forward,
    )


def reading_flops(block: nn.Module, length: int = 4096) -> int:
    """Operations per token of reading with a block, or a layer, texts of ``length`` tokens."""
    flops = sum(2 * layer.weight.numel() for layer in block.modules() if isinstance(layer, nn.Linear))
    for module in block.modules():
        if isinstance(module, NeuralMemory):
            flops += memory_flops(module)
        elif isinstance(module, MemoryContext):  # twice the keys: of the text, and of what was recalled for it
            flops += 2 * module.attention.in_proj.weight.numel() + 2 * sum(w.numel() for w in module.memory.initial)
            flops += _attention_flops(module.attention, module.segment + 1.0)
    for attention in _attentions(block):
        seen = (length + 1) / 2
        flops += _attention_flops(attention, seen if attention.window is None else min(attention.window, seen))
    return flops


def _attentions(block: nn.Module) -> list[CausalAttention]:
    """Those that keep keys of their own; the one within a memory context keeps a segment's."""
    inner = {module.attention for module in block.modules() if isinstance(module, MemoryContext)}
    return [module for module in block.modules() if isinstance(module, CausalAttention) and module not in inner]


def _attention_flops(attention: CausalAttention, seen: float) -> int:
    """Operations per token that asks ``seen`` keys and the persistent ones."""
    persistent = 0 if attention.persistent is None else len(attention.persistent)
    return round(4 * attention.heads * attention.head_dim * (seen + persistent))


def memory_flops(layer: NeuralMemory) -> int:
    """Operations per token that the memories of a layer learn and answer with, its projections left out."""
    rule = layer.rule
    if rule.step == "optimum":
        return rule.writes * _optimum_flops(*layer.initial[0].shape)
    shapes = [weight.shape for weight in layer.initial]
    products = sum(weight.numel() for weight in layer.initial)
    first = layer.initial[0].numel()
    parts = 1 + rule.momentum + (rule.decay_to == "initial")
    written = 1 + rule.momentum
    keys = parts if rule.solvable else 1  # the exact path reads all parts for the key as well
    if rule.objective == "dot" and rule.linear:
        keys = 0
    # Gradients are taken again for the tokens before, once a chunk or with every token.
    again = 1 + (rule.window - 1) / (1 if rule.per_token else rule.chunk_size)
    flops = round(again * 2 * (products * (keys + written) + products - first)) + 2 * products * parts
    if rule.step == "orthogonal":
        flops += sum(heads * _orthogonal_flops(d_in, d_out) for heads, d_in, d_out in shapes)
    elif rule.solvable or not rule.per_token:
        flops += sum(2 * rule.chunk_size * heads * (d_in + d_out) for heads, d_in, d_out in shapes)
    return rule.writes * flops


def _orthogonal_flops(rows: int, columns: int) -> int:
    """Operations that making a matrix orthogonal takes."""
    short, long = sorted((rows, columns))
    return ITERATIONS * 2 * short * short * (2 * long + short)


def _optimum_flops(heads: int, key_dim: int, value_dim: int) -> int:
    sums = key_dim * (value_dim + key_dim)
    a_step = 2 * key_dim * (key_dim + least_squares.CHUNK)  # what is kept, the preconditioner, and scores twice
    in_chunk = least_squares.CHUNK * (2 * key_dim + value_dim)
    return 2 * heads * (2 * sums + in_chunk + least_squares.STEPS * a_step)


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
    thin = model_cost(config.replace(mlp_width=1)).parameters
    per_unit = 3 * config.width * len(config.blocks)
    width = round((parameters - thin + per_unit) / per_unit / multiple) * multiple
    if width < 1:
        raise ValueError(
            f"{' '.join(config.blocks)} at width {config.width} has {thin:,} parameters even with an MLP of width 1; "
            f"{parameters:,} are out of reach, take a smaller width or fewer blocks."
        )
    return config.replace(mlp_width=width)
