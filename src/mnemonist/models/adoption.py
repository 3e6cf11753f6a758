"""Pretrained transformers as models of ours, and memories for them.

A model of the Llama family (Llama, Mistral, Qwen 2 and 3, SmolLM2) is a list of our blocks: `attention` where a layer
sees everything, `window` where it has a sliding window. `adopt` reads its folder, so that it can be read with as a
stream, with sessions, evaluated and trained like any other; its logits are those it had.

`with_blocks` then exchanges blocks. Weights of attention, of MLPs and of norms are kept where both kinds have them. So
`mag:gate=add` begins as a window of the attention that the model was trained with, and a memory that says nothing yet.
Where a memory has heads like those of attention, its projections begin as those of attention, as in conversions of
transformers to recurrent networks (Wang et al. 2024, arXiv 2408.15237; Goldstein et al. 2025, arXiv 2505.03005).

A window that no longer sees the first token takes away what attention rests on when it has nothing to look at: Xiao et
al. (2023, arXiv 2309.17453) keep that token in sight. Here it is a persistent token: keys are turned by their
position, which is 0 for the first token, so one that is not turned at all is the same key.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mnemonist.errors import UserError
from mnemonist.models.attention import CausalAttention
from mnemonist.models.blocks import Block
from mnemonist.models.configuration import CONFIG_FILE, ModelConfig, find_block
from mnemonist.models.folder import misfit, read_json, weight_files
from mnemonist.models.modeling import LanguageModel
from mnemonist.models.neural_memory import NeuralMemory
from mnemonist.tensors import read_tensors

HEAD = "lm_head.weight"
FAMILY = ("llama", "mistral", "qwen2", "qwen3")
"""Kinds of model, as ``model_type`` in their config.json, that `adopt` reads."""


def adopt(folder: str | os.PathLike[str], vocab_size: int | None = None) -> LanguageModel:
    """A pretrained transformer as a list of `attention` and `window` blocks, in float32, with the logits it had.

    Args:
        folder: config.json and safetensors, in one file or in shards. Nothing in them is executed.
        vocab_size: tokens to keep, the first so many; None keeps all. Embeddings are often longer than a vocabulary.

    Raises:
        UserError: there is no such model, it is of another family, or it has something that our blocks have not.
    """
    place = Path(folder)
    content = _read_content(place)
    config = adopted_config(content, place / CONFIG_FILE)  # complains before anything large is read
    theirs: dict[str, Tensor] = {}
    for file in weight_files(place):
        theirs |= read_tensors(file)[0]
    names = {name.removeprefix("model."): name for name in theirs}
    if "tie_word_embeddings" not in content:
        config = config.replace(tied=HEAD not in names)

    def take(name: str) -> Tensor:
        if name not in names:
            raise UserError(f"{folder} has no weights named {name}; it may be damaged, or of another kind")
        return theirs.pop(names.pop(name)).float()

    tensors = _translated(config, take)
    if config.tied:  # some write them down twice
        names.pop(HEAD, None)
    left = sorted(name for name in names if not name.endswith("rotary_emb.inv_freq"))
    if left:
        raise UserError(f"{folder} has weights that this kind of model has not: {', '.join(left[:4])}")
    if vocab_size is not None:
        config = config.replace(vocab_size=min(vocab_size, config.vocab_size))
        for name in ("embedding.weight", "head.weight"):
            if name in tensors:
                tensors[name] = tensors[name][: config.vocab_size].clone()
    with torch.device("meta"):
        model = LanguageModel(config)
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise misfit(folder, error) from error
    model.mark_parameters()
    return model


def read_adopted_config(folder: str | os.PathLike[str]) -> ModelConfig:
    """The configuration that the model in a folder will have.

    Raises:
        UserError: there is none, or as `adopted_config`.
    """
    place = Path(folder)
    return adopted_config(_read_content(place), place / CONFIG_FILE)


def _read_content(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise UserError(f"there is no {CONFIG_FILE} in {folder}; give the folder of a model of transformers")
    return read_json(file)


def adopted_config(content: Mapping[str, Any], where: str | os.PathLike[str]) -> ModelConfig:
    """The configuration of the same model of ours.

    Args:
        content: of a config.json of one of `FAMILY`.
        where: how errors call it.

    Raises:
        UserError: it is of another family, or it has something that our blocks have not.
    """
    kind = content.get("model_type")
    if kind not in FAMILY:
        raise UserError(f"{where} is of a model of type {kind!r}; what can be adopted is {', '.join(FAMILY)}")

    def refuse(what: str) -> UserError:
        return UserError(f"{where} cannot be adopted: {what}, which our blocks have not")

    if content.get("hidden_act", "silu") != "silu":
        raise refuse(f"its activation is {content['hidden_act']!r}")
    if content.get("mlp_bias") or (kind != "qwen2" and content.get("attention_bias")):
        raise refuse("its projections have biases beyond those of queries, keys and values")
    try:
        heads, width = int(content["num_attention_heads"]), int(content["hidden_size"])
        head_dim = int(content.get("head_dim") or width // heads)
        base, stretch = _rope(content, refuse)
        window = content.get("sliding_window")
        blocks = _kinds(content, int(content["num_hidden_layers"]), window)
        return ModelConfig(
            blocks=blocks,
            vocab_size=int(content["vocab_size"]),
            width=width,
            heads=heads,
            head_dim=head_dim,
            memory_heads=heads,
            memory_head_dim=head_dim,
            window=window if window and "window" in blocks else ModelConfig.window,
            persistent_tokens=0,
            mlp_width=int(content["intermediate_size"]),
            kv_heads=int(content.get("num_key_value_heads") or heads),
            rope_base=base,
            rope_stretch=stretch,
            qkv_bias=kind == "qwen2",
            qk_norm=kind == "qwen3",
            norm_eps=content.get("rms_norm_eps", 1e-6),
            tied=bool(content.get("tie_word_embeddings")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where} cannot be used: {error}") from error


def with_blocks(
    model: LanguageModel, blocks: Sequence[str], *, sink: int | None = None, **changes: Any
) -> tuple[LanguageModel, list[str]]:
    """The model with other blocks, every weight kept that both have; the model that is given stays as it was.

    All is of one type then, that of `LanguageModel.dtype`. What is new is drawn with torch's generator.

    Args:
        model: as `adopt` gives it, or any other.
        blocks: kinds of block from the input up, repeated in turn; those that are named as they are stay whole.
        sink: a token that all attention keeps in sight, the first of most texts: the mark of their beginning. Full
            attention, which needs none, sees it beside the text's own.
        changes: other fields of the configuration: ``window``, ``rule``, ``memory_heads``, ...

    Returns:
        The model, and the names of parameters that are new: all others are as they were.

    Raises:
        ValueError: as `ModelConfig`; more kinds than blocks; a size that kept weights depend on; or a ``sink`` outside
            the vocabulary, or for a model that has persistent tokens.
    """
    count = len(model.blocks)
    if not 0 < len(blocks) <= count:
        raise ValueError(f"blocks names {len(blocks)} kinds, but the model has {count}; name from 1 to {count}.")
    kinds = tuple(blocks[i % len(blocks)] for i in range(count))
    if sink is not None:
        if model.config.persistent_tokens:
            raise ValueError("The model has persistent tokens already; leave the sink out.")
        if not 0 <= sink < model.config.vocab_size:
            raise ValueError(f"sink is {sink}; the vocabulary has ids 0 to {model.config.vocab_size - 1}.")
        changes["persistent_tokens"] = 1
    config = model.config.replace(blocks=kinds, **changes)
    changed = LanguageModel(config).to(model.unembedding.device, model.dtype)
    new = changed.state_dict()
    old = {_place(name, kinds): tensor for name, tensor in model.state_dict().items()}
    kept = {name: tensor.clone() for name, tensor in old.items() if name in new}
    for name, tensor in kept.items():
        if tensor.shape != new[name].shape:
            raise ValueError(f"{name} is {list(tensor.shape)} and would be {list(new[name].shape)}; keep its sizes.")
    changed.load_state_dict(kept, strict=False)
    with torch.no_grad():
        for i, before in enumerate(model.blocks):
            name, memory = _memory(changed.blocks[i])
            if memory is not None and f"blocks.{i}.{name}.in_proj.weight" not in kept:
                _begin_memory(_attention(before), memory)
        if sink is not None:
            _keep_in_sight(model, changed, sink)
    return changed.train(model.training), [name for name, _ in changed.named_parameters() if name not in kept]


def hold_all_but_memories(model: LanguageModel) -> int:
    """Let only memories, what joins them to attention, and persistent tokens learn; the rest wants no gradient.

    Returns:
        How many numbers may still learn.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for block in model.blocks:
        mixer = cast(Block, block).mixer
        held = {id(parameter) for parameter in _projections(mixer)}
        for parameter in mixer.parameters():
            parameter.requires_grad_(id(parameter) not in held)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _projections(mixer: nn.Module) -> list[nn.Parameter]:
    """All of its attention but persistent tokens."""
    attention = _attention(mixer)
    if attention is None:
        return []
    return [parameter for name, parameter in attention.named_parameters() if name != "persistent"]


def _place(name: str, kinds: Sequence[str]) -> str:
    """What a weight is called in a model of these blocks."""
    part, _, rest = name.partition(".mixer.attention.")
    if rest and find_block(kinds[int(part.removeprefix("blocks."))]).kind == "mac":
        return f"{part}.mixer.context.attention.{rest}"
    return name


def _attention(part: nn.Module) -> CausalAttention | None:
    return next((module for module in part.modules() if isinstance(module, CausalAttention)), None)


def _memory(block: nn.Module) -> tuple[str, NeuralMemory | None]:
    """The memory of a block with its name, if it has one."""
    for name, module in block.named_modules():
        if isinstance(module, NeuralMemory):
            return name, module
    return "", None


def _begin_memory(attention: CausalAttention | None, memory: NeuralMemory) -> None:
    """Projections of a new memory begin as those of attention, where its heads are like them."""
    if attention is None or memory.rule.writes > 1:
        return
    if (memory.heads, memory.head_dim) != (attention.heads, attention.head_dim):
        return
    heads, shared = attention.heads, attention.heads // attention.kv_heads
    projections = attention.in_proj.weight.unflatten(0, (-1, attention.head_dim))
    q, k, v = projections.split([heads, attention.kv_heads, attention.kv_heads])
    k, v = k.repeat_interleave(shared, 0), v.repeat_interleave(shared, 0)
    memory.in_proj.weight.copy_(torch.cat([q, k, v]).flatten(0, 1))
    memory.out_proj.weight.copy_(attention.out_proj.weight)


def _keep_in_sight(model: LanguageModel, changed: LanguageModel, token: int) -> None:
    """The persistent token of each attention becomes what ``token`` is at its place if a text begins with it."""
    ids = torch.tensor([[token]], device=model.unembedding.device)
    was_training = model.training
    between = model.eval()(ids, hidden=True).hidden
    model.train(was_training)
    assert between is not None
    for x, block in zip(between, changed.blocks, strict=False):  # the last is behind all blocks
        if (attention := _attention(block)) is not None and attention.persistent is not None:
            attention.persistent.copy_(cast(Block, block).mixer_norm(x)[0])


def _kinds(content: Mapping[str, Any], layers: int, window: int | None) -> tuple[str, ...]:
    """Of each layer, `attention` or `window`."""
    if content.get("layer_types"):
        names = {"full_attention": "attention", "sliding_attention": "window"}
        return tuple(names[kind] for kind in content["layer_types"])
    if window is None or not content.get("use_sliding_window", content["model_type"] == "mistral"):
        return ("attention",) * layers
    full = content.get("max_window_layers", 0)  # the first so many see everything
    return tuple("attention" if layer < full else "window" for layer in range(layers))


def _rope(
    content: Mapping[str, Any], refuse: Callable[[str], UserError]
) -> tuple[float, tuple[float, float, float, float] | None]:
    """Base and stretch of the turns; they are in one table or, in older files, in two places."""
    table = content.get("rope_parameters") or content.get("rope_scaling") or {}
    base = table.get("rope_theta", content.get("rope_theta", 10000.0))
    kind = table.get("rope_type", table.get("type", "default"))
    if content.get("partial_rotary_factor", table.get("partial_rotary_factor", 1.0)) != 1.0:
        raise refuse("it turns a part of each head only")
    if kind == "default":
        return float(base), None
    if kind != "llama3":
        raise refuse(f"its rotary positions are of type {kind!r}")
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    factor, low, high, length = (float(table[name]) for name in names)
    return float(base), (factor, low, high, length)


def _translated(config: ModelConfig, take: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """Weights by our names; ``take`` gives those of theirs."""
    made = {"embedding.weight": take("embed_tokens.weight"), "norm.weight": take("norm.weight")}
    if not config.tied:
        made["head.weight"] = take(HEAD)
    for i in range(len(config.blocks)):
        ours, layer = f"blocks.{i}.", f"layers.{i}."
        parts = [f"{layer}self_attn.{name}_proj" for name in "qkv"]
        attention = f"{ours}mixer.attention."
        made[f"{ours}mixer_norm.weight"] = take(f"{layer}input_layernorm.weight")
        made[f"{attention}in_proj.weight"] = torch.cat([take(f"{part}.weight") for part in parts])
        if config.qkv_bias:
            made[f"{attention}in_proj.bias"] = torch.cat([take(f"{part}.bias") for part in parts])
        if config.qk_norm:
            for name in ("q_norm", "k_norm"):
                made[f"{attention}{name}.weight"] = take(f"{layer}self_attn.{name}.weight")
        made[f"{attention}out_proj.weight"] = take(f"{layer}self_attn.o_proj.weight")
        made[f"{ours}mlp_norm.weight"] = take(f"{layer}post_attention_layernorm.weight")
        made[f"{ours}mlp.gate_up.weight"] = torch.cat(
            [take(f"{layer}mlp.{name}_proj.weight") for name in ("gate", "up")]
        )
        made[f"{ours}mlp.down.weight"] = take(f"{layer}mlp.down_proj.weight")
    return made
