"""The reference work against the machine: which part of its rate of multiplying a deep memory reaches.

The peer is the batched matrix product that the work consists of, as often as makes the same number of operations; so
the ratio of the seconds is the fraction of the machine's rate, measured between the runs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from cpu_measure import Group, Measure, Pairs, Row, Sizes, Take, timed
from timing import Work
from work import DeepWork

from mnemonist.memory import RULES, MemoryRule, initial_weights, memorize

WAYS = (("forward", False), ("forward and backward", True))
TARGETS = {False: 0.60, True: 0.45}


def deep_rule(work: DeepWork) -> MemoryRule:
    """The paper's memory, which decays to zero."""
    return RULES["titans"].replace(expansion=work.expansion, chunk_size=work.chunk, decay_to="zero")


def tokens_for(rule: MemoryRule, heads: int, dim: int, tokens: int) -> dict[str, Any]:
    """One row of random tokens with gates at every token, as `memorize` takes them."""
    shape = (1, tokens, heads)
    given: dict[str, Any] = {name: F.normalize(torch.randn(*shape, dim), dim=-1) for name in ("q", "k")}
    # A linear memory replaces what a key held at step size 1; a deep one moves further than that. Momentum repeats.
    step = torch.rand(shape) * (1.0 if rule.linear else 0.05)
    given["v"] = torch.randn(*shape, dim)
    if rule.momentum:
        given["log_momentum"] = F.logsigmoid(torch.randn(shape) + 2)
        step *= -torch.expm1(given["log_momentum"])
    given["step_size"] = step
    if rule.retention != "none":
        channels = (rule.decay_channels(dim, dim),) if rule.retention == "channel" else ()
        given["log_decay"] = F.logsigmoid(torch.randn(*shape, *channels) + 4)
    if not rule.linear:  # which begins at zero
        given["initial"] = initial_weights(rule, heads, dim, dim)
    return given


def reading(rule: MemoryRule, heads: int, dim: int, tokens: int, back: bool) -> Work:
    """Reading a text with a bare memory; both ways, with gradients of all that it was given."""
    given = tokens_for(rule, heads, dim, tokens)
    leaves = [x for name, x in given.items() if name != "initial"] + given.get("initial", [])
    for leaf in leaves:
        leaf.requires_grad_(back)
    outer = torch.randn_like(given["v"])

    def work() -> None:
        with torch.set_grad_enabled(back):
            y = memorize(rule, **given, surprise=False).y
            if back:
                torch.autograd.grad(y, leaves, outer)

    return work


def products(work: DeepWork, flops: float) -> tuple[Work, float]:
    """The batched matrix product of the work, as often as makes nearly ``flops``, and how many it does make."""
    H, C, D, wide = work.heads, work.chunk, work.dim, int(work.expansion * work.dim)
    a, b, out = torch.randn(H, C, D), torch.randn(H, D, wide), torch.empty(H, C, wide)
    each = 2 * H * C * D * wide
    count = max(1, round(flops / each))

    def multiply() -> None:
        for _ in range(count):
            torch.bmm(a, b, out=out)

    return multiply, count * each


def against_products(work: DeepWork, tokens: int, back: bool, runs: int, threads: int | None = None) -> Take:
    """Takes the seconds of reading and of as many operations in products."""

    def take() -> list[Pairs]:
        flops = (3 if back else 1) * work.flops * tokens
        multiply, made = products(work, flops)
        sides = [reading(deep_rule(work), work.heads, work.dim, tokens, back), multiply]
        (pairs,) = timed(lambda: sides, runs, threads)()
        theirs = [s * flops / made for s in pairs.theirs]
        facts = {"chunk": work.chunk, "flops": flops, "bytes": work.bytes * tokens, "parts": work.parts}
        return [Pairs(pairs.ours, theirs, {name: facts[name] for name in facts if not back or name == "flops"})]

    return take


def reference_work(sizes: Sizes) -> Group:
    work = sizes.reference
    measures = tuple(
        Measure(
            (Row(f"{way}, {label}", "batched products of as many operations", TARGETS[back]),),
            against_products(work, sizes.tokens, back, sizes.runs, threads),
        )
        for label, threads in (("1 thread", 1), ("all threads", None))
        for way, back in WAYS
    )
    text = (
        f"A deep memory of two layers that learns at every token: {_words(work)}, one row of {sizes.tokens:,} tokens, "
        f"chunks of {work.chunk}, gates at every token, momentum, decay to zero, float32. The ratio is the fraction "
        "of the machine's own rate of batched matrix products, measured between the runs. Forward and backward counts "
        "as three times the operations of forward, and gives gradients of queries, keys, values, all gates and the "
        "initial weights."
    )
    return Group("Reference work", text, measures)


def roofline(sizes: Sizes) -> Group:
    measures = tuple(
        Measure(
            (Row(f"forward, chunks of {chunk}", "products with as many rows as the chunk has tokens"),),
            against_products(sizes.reference.with_chunk(chunk), sizes.tokens, False, sizes.runs),
        )
        for chunk in sizes.chunks
    )
    text = (
        "The reference work at other chunk sizes, against products of its own shape; [limits.md](limits.md) explains "
        "what it shows. A chunk size is a choice of the model, not of the machine."
    )
    return Group("Roofline", text, measures)


def _words(work: DeepWork) -> str:
    return f"{work.heads} heads of width {work.dim}, expansion {work.expansion:g}"
