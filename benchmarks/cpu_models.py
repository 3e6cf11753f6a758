"""Whole models: a step of training of each architecture against a transformer of as many parameters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from cpu_measure import Group, Measure, Row, Sizes, timed
from timing import Side, Work

from mnemonist.models import LanguageModel, ModelConfig
from mnemonist.models.cost import matched, model_cost

KINDS = ("mag", "mac", "lmm")
ROUND = 8
"""What widths of MLPs are multiples of: odd ones multiply at down to a third of the speed on some processors."""


def configurations(sizes: Sizes, blocks: int) -> dict[str, ModelConfig]:
    """Models of equal size: of each kind of block, and last a transformer, without tokens that a text has not."""
    work = sizes.reference
    transformer = ModelConfig(
        blocks=("attention",) * blocks,
        rule=f"titans:expansion={work.expansion:g},chunk_size={work.chunk}",
        width=work.width,
        heads=work.heads,
        head_dim=work.dim,
        memory_heads=work.heads,
        memory_head_dim=work.dim,
        window=4 * work.chunk,
        persistent_tokens=0,
        mlp_width=sizes.mlp_width,
    )
    parameters = model_cost(transformer).parameters
    return {
        kind: matched(transformer.replace(blocks=(kind,) * blocks, persistent_tokens=4), parameters, ROUND)
        for kind in KINDS
    } | {"attention": transformer}


def training(config: ModelConfig, lengths: tuple[int, ...]) -> list[Work]:
    """Steps of one model on a text of each length: forward, loss, backward, AdamW."""
    model = LanguageModel(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)  # as `training` has it

    def step(ids: torch.Tensor) -> None:
        optimiser.zero_grad(set_to_none=True)
        logits = model(ids[:, :-1]).logits
        F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimiser.step()

    texts = [torch.randint(0, config.vocab_size, (1, length + 1)) for length in lengths]
    return [lambda ids=ids: step(ids) for ids in texts]


def models(sizes: Sizes) -> Group:
    configs = [configurations(sizes, blocks) for blocks in sizes.blocks]
    parameters = [model_cost(each["attention"]).parameters / 1e6 for each in configs]

    def sides(length: int) -> list[Side]:
        """Untimed is a step on a quarter of the text."""
        each = configs[sizes.texts.index(length)]
        return [Side(*training(config, (length, length // 4))) for config in each.values()]

    measures = []
    for length, target, sized in zip(sizes.texts, (1.0, 2.0), configs, strict=True):
        rows = tuple(
            Row(
                f"{kind}, {length:,} tokens",
                "transformer with full attention",
                target,
                flops=length * model_cost(sized[kind], length).flops_training,
            )
            for kind in KINDS
        )
        measures.append(Measure(rows, timed(lambda length=length: sides(length), sizes.long_runs)))
    mlps = ", ".join(f"{kind} {config.mlp_width}" for kind, config in configs[0].items())
    text = (
        f"A step of training (forward, loss, backward, AdamW) of models of {parameters[0]:.1f}M parameters each: "
        f"{sizes.blocks[0]} blocks (on the longer text {sizes.blocks[1]}, {parameters[1]:.1f}M) of width "
        f"{sizes.reference.width}, {sizes.reference.heads} heads of "
        f"{sizes.reference.dim}, memories of expansion {sizes.reference.expansion:g} and chunks of "
        f"{sizes.reference.chunk}, windows and segments of {4 * sizes.reference.chunk}, one row of bytes. What a block "
        f"has less, its MLP has more (widths, multiples of {ROUND}: {mlps}). The ratio says how many times less "
        "time ours takes; each timed step follows an untimed one on a quarter of the text."
    )
    return Group("Training", text, tuple(measures))
