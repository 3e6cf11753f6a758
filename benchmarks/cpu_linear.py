"""Linear memories against full attention on the same heads: what is linear in the text and what is quadratic."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from cpu_measure import Group, Measure, Row, Sizes, timed
from cpu_reference import WAYS, reading
from timing import Side, Work

from mnemonist.memory import RULES

NAMES = ("titans-linear", "deltanet", "gated-deltanet", "gla", "mamba2")
PEER = "scaled_dot_product_attention, causal"


def attending(heads: int, dim: int, tokens: int, back: bool) -> Work:
    """Causal attention over a text; both ways, with gradients of queries, keys and values."""
    given = [torch.randn(1, heads, tokens, dim, requires_grad=back) for _ in range(3)]
    outer = torch.randn(1, heads, tokens, dim)

    def work() -> None:
        with torch.set_grad_enabled(back):
            y = F.scaled_dot_product_attention(*given, is_causal=True)
            if back:
                torch.autograd.grad(y, given, outer)

    return work


def linear(sizes: Sizes) -> Group:
    heads, dim = sizes.reference.heads, sizes.reference.dim

    def sides(names: tuple[str, ...], tokens: int, back: bool) -> list[Side]:
        """Long texts are warmed up to with short ones."""

        def both(tokens: int) -> list[Work]:
            return [reading(RULES[n], heads, dim, tokens, back) for n in names] + [attending(heads, dim, tokens, back)]

        return [Side(*works) for works in zip(both(tokens), both(min(tokens, sizes.tokens)), strict=True)]

    def measure(names: tuple[str, ...], tokens: int, way: str, back: bool, target: float, runs: int) -> Measure:
        rows = tuple(Row(f"{name}, {way}, {tokens:,} tokens", PEER, target) for name in names)
        return Measure(rows, timed(lambda: sides(names, tokens, back), runs))

    measures = [measure(NAMES, sizes.tokens, way, back, 1.2, sizes.runs) for way, back in WAYS]
    measures.append(measure(NAMES, sizes.long, "forward", False, 8.0, sizes.long_runs))
    measures.append(measure(NAMES[:1], sizes.long, "forward and backward", True, 8.0, sizes.long_runs))
    text = (
        f"Bare linear memories, exact at every token, against PyTorch's attention: {heads} heads of width {dim}, one "
        "row. The ratio says how many times less time ours takes. At the longer text each timed run follows one of "
        f"{sizes.tokens:,} tokens."
    )
    return Group("Linear memories", text, tuple(measures))
