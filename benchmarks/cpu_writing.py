"""Writing one token at a time: what a few rows cost, which is what the weights take to come from memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from unittest.mock import patch

import torch
import torch.nn.functional as F
from cpu_measure import Group, Measure, Row, Sizes, timed
from timing import Work
from torch import Tensor

from mnemonist.memory.kernels import native_linear_layer
from mnemonist.models import LanguageModel, ModelConfig

PEER = "torch.nn.functional.linear"
ROWS = (1, 8)
HALVES = torch.bfloat16


def projecting(sizes: Sizes, rows: int) -> list[Work]:
    """All matrices in turn, through ours and through torch's."""
    x, weights = operands(sizes, rows)
    return [
        through(native_linear_layer.linear, x, weights),
        through(F.linear, x, weights),
    ]


def projecting_halves(sizes: Sizes, rows: int) -> list[Work]:
    """All matrices in turn, in bfloat16 and in float32, through ours."""
    x, weights = operands(sizes, rows)
    halves = [weight.to(HALVES) for weight in weights]
    return [through(native_linear_layer.linear, x, some) for some in (halves, weights)]


def operands(sizes: Sizes, rows: int) -> tuple[Tensor, list[Tensor]]:
    count, channels, width = sizes.matrices
    return torch.randn(rows, width), [torch.randn(channels, width) for _ in range(count)]


def through(linear: Callable[[Tensor, Tensor], Tensor], x: Tensor, weights: list[Tensor]) -> Work:
    @torch.inference_mode()
    def work() -> None:
        for weight in weights:
            linear(x, weight)

    return work


def model_of(sizes: Sizes) -> ModelConfig:
    blocks, width = sizes.written
    heads = width // 64
    return ModelConfig(blocks=("attention",) * blocks, width=width, heads=heads, head_dim=64, mlp_width=3 * width)


def decoding(sizes: Sizes, rows: int) -> list[Work]:
    """Tokens of a transformer, as it is and with torch's linear layers."""
    ours = writing_with(LanguageModel(model_of(sizes)).eval(), sizes, rows)

    def theirs() -> None:
        with patch.object(native_linear_layer, "linear_layer_kernel", lambda: None):
            ours()

    return [ours, theirs]


def decoding_halves(sizes: Sizes, rows: int) -> list[Work]:
    """Tokens of a transformer with matrices in bfloat16, and in float32."""
    model = LanguageModel(model_of(sizes)).eval()
    halves = copy.deepcopy(model).matrices_to(HALVES)
    return [writing_with(one, sizes, rows) for one in (halves, model)]


def writing_with(model: LanguageModel, sizes: Sizes, rows: int) -> Work:
    ids = torch.randint(0, model.config.vocab_size, (rows, sizes.prefixes[0]))
    with torch.inference_mode():
        before = model(ids).state

    @torch.inference_mode()
    def work() -> None:
        state = before
        for _ in range(tokens_of(sizes)):
            state = model(ids[:, :1], state).state

    return work


def tokens_of(sizes: Sizes) -> int:
    return max(1, sizes.decoded // 32)


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
            name = f"linear layers, weights in bfloat16, {rows} row{'s' * (rows > 1)}, {label}"
            row = Row(name, "the same in float32", 1.4 if rows == 1 else 1.2)
            take = timed(lambda rows=rows: projecting_halves(sizes, rows), sizes.runs, threads)
            measures.append(Measure((row,), take))
    for rows in ROWS:
        row = Row(f"tokens of a transformer, {rows} row{'s' * (rows > 1)}", f"the same with {PEER}", 1.1)
        measures.append(Measure((row,), timed(lambda rows=rows: decoding(sizes, rows), sizes.runs)))
    for rows in ROWS:
        name = f"tokens of a transformer, matrices in bfloat16, {rows} row{'s' * (rows > 1)}"
        row = Row(name, "the same in float32", 1.2 if rows == 1 else 1.1)
        measures.append(Measure((row,), timed(lambda rows=rows: decoding_halves(sizes, rows), sizes.runs)))
    text = (
        f"Few rows times {count} matrices of {channels} by {width} in turn, which no cache holds "
        f"({count * channels * width * 4 / 1e6:.0f} MB in float32); and {tokens_of(sizes)} tokens of a transformer of "
        f"{blocks} blocks of width {model_width}, after a prompt of {sizes.prefixes[0]}. Without gradients; the ratio "
        "says how many times less time ours takes."
    )
    return Group("Writing", text, tuple(measures))
