"""What an idea of one's own costs before it has a kernel: a layer that reads through torch, beside a compiled one."""

from __future__ import annotations

import torch
from cpu_measure import Group, Measure, Row, Sizes, timed
from timing import Work
from torch import Tensor

from mnemonist.memory import Write, add_objective, add_step
from mnemonist.models import NeuralMemory


def plain(write: Write) -> tuple[Tensor, Tensor | None]:
    """Down the gradient with momentum, as a step of one's own."""
    assert write.momentum is not None and write.persistence is not None
    momentum = write.persistence * write.momentum - write.step_size * write.gradient
    return write.kept + momentum, momentum


def add() -> None:
    """What the package has, once more as functions."""
    add_objective("bench-l2", lambda answer, value: (answer - value).square().sum(-1) / 2)
    add_step("bench-plain", plain)


def reading(sizes: Sizes, rule: str, change: str) -> list[Work]:
    """A layer both ways with the choice as a function, and as it comes along."""
    add()
    work = sizes.reference
    x = torch.randn(1, sizes.ideas, work.heads * work.dim // 2)

    def run(layer: NeuralMemory) -> None:
        layer.zero_grad(set_to_none=True)
        layer(x)[0].square().sum().backward()

    rules = (f"{rule}:{change}", rule)
    layers = [NeuralMemory(x.shape[2], work.heads, work.dim // 2, each) for each in rules]
    return [lambda layer=layer: run(layer) for layer in layers]


def ideas(sizes: Sizes) -> Group:
    cases = (
        ("titans", "objective=bench-l2", "an objective of one's own, titans (by chunk)", sizes.runs),
        ("deltanet", "objective=bench-l2", "an objective of one's own, deltanet (token by token)", sizes.long_runs),
        ("titans", "step=bench-plain", "a step of one's own, titans (token by token)", sizes.long_runs),
    )
    measures = tuple(
        Measure(
            (Row(f"{name}, forward and backward", "the same choice as it comes along"),),
            timed(lambda rule=rule, change=change: reading(sizes, rule, change), runs),
        )
        for rule, change, name, runs in cases
    )
    work = sizes.reference
    text = (
        f"A layer of {work.heads} heads of {work.dim // 2} that reads a row of {sizes.ideas} tokens, both ways, with "
        "one of its choices given as a function (docs/ideas.md). Such rules are read through torch; the ratio says "
        "what that leaves of the speed of compiled loops."
    )
    return Group("Ideas of one's own", text, measures)
