"""Writing one token at a time: what a few rows cost, which is what the weights take to come from memory."""

from __future__ import annotations

from unittest.mock import patch

import torch
import torch.nn.functional as F
from cpu_measure import Group, Measure, Row, Sizes, timed
from timing import Work

from mnemonist.memory.kernels import native_linear_layer
from mnemonist.models import LanguageModel, ModelConfig

PEER = "torch.nn.functional.linear"
ROWS = (1, 8)


def projecting(sizes: Sizes, rows: int) -> list[Work]:
    """All matrices in turn, through ours and through torch's."""
    count, channels, width = sizes.matrices
    x = torch.randn(rows, width)
    weights = [torch.randn(channels, width) for _ in range(count)]

    @torch.inference_mode()
    def ours() -> None:
        for weight in weights:
            native_linear_layer.linear(x, weight)

    @torch.inference_mode()
    def theirs() -> None:
        for weight in weights:
            F.linear(x, weight)

    return [ours, theirs]


def model_of(sizes: Sizes) -> ModelConfig:
    blocks, width = sizes.written
    heads = width // 64
    return ModelConfig(blocks=("attention",) * blocks, width=width, heads=heads, head_dim=64, mlp_width=3 * width)


def decoding(sizes: Sizes, rows: int) -> list[Work]:
    """Tokens of a transformer, as it is and with torch's linear layers."""
    model = LanguageModel(model_of(sizes)).eval()
    ids = torch.randint(0, model.config.vocab_size, (rows, sizes.prefixes[0]))
    with torch.inference_mode():
        before = model(ids).state

    @torch.inference_mode()
    def ours() -> None:
        state = before
        for _ in range(max(1, sizes.decoded // 32)):
            state = model(ids[:, :1], state).state

    def theirs() -> None:
        with patch.object(native_linear_layer, "linear_layer_kernel", lambda: None):
            ours()

    return [ours, theirs]


def writing(sizes: Sizes) -> Group:
    count, channels, width = sizes.matrices
    blocks, model_width = sizes.written
    measures = []
    for label, threads, target in (("1 thread", 1, 1.0), ("all threads", None, 1.2)):
        for rows in ROWS:
            name = f"linear layers, {rows} row{'s' * (rows > 1)}, {label}"
            take = timed(lambda rows=rows: projecting(sizes, rows), sizes.runs, threads)
            measures.append(Measure((Row(name, PEER, target),), take))
    for rows in ROWS:
        row = Row(f"tokens of a transformer, {rows} row{'s' * (rows > 1)}", f"the same with {PEER}", 1.1)
        measures.append(Measure((row,), timed(lambda rows=rows: decoding(sizes, rows), sizes.runs)))
    tokens = max(1, sizes.decoded // 32)
    text = (
        f"Few rows times {count} matrices of {channels} by {width} in turn, which no cache holds "
        f"({count * channels * width * 4 / 1e6:.0f} MB); and {tokens} tokens of a transformer of {blocks} blocks of "
        f"width {model_width}, after a prompt of {sizes.prefixes[0]}. Without gradients; the ratio says how many times "
        "less time ours takes."
    )
    return Group("Writing", text, tuple(measures))
