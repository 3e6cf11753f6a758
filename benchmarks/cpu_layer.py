"""The layer against titans-pytorch, in time and in memory.

Its `chunk_size=64` is coarser than ours: one step size, momentum and decay a chunk, and reads of what the chunks before
have left. Its `chunk_size=1` learns at every token, as ours does.
"""

from __future__ import annotations

import torch
from alone import alone
from cpu_measure import Group, Measure, Pairs, PeerMissing, Row, Sizes, Take, timed
from cpu_reference import WAYS, deep_rule
from timing import Work
from work import DeepWork

from mnemonist.models import NeuralMemory
from mnemonist.models.cost import reading_flops


def our_layer(work: DeepWork, decay_to: str = "zero") -> NeuralMemory:
    return NeuralMemory(work.width, work.heads, work.dim, deep_rule(work).replace(decay_to=decay_to))


def their_layer(work: DeepWork, chunk_size: int) -> torch.nn.Module:
    try:
        from titans_pytorch import MemoryMLP
        from titans_pytorch import NeuralMemory as TheirMemory
    except ImportError as error:
        raise PeerMissing(f"titans-pytorch cannot be imported ({error}); make bench installs it") from error

    memory = MemoryMLP(dim=work.dim, depth=2, expansion_factor=float(work.expansion))
    return TheirMemory(dim=work.width, chunk_size=chunk_size, heads=work.heads, dim_head=work.dim, model=memory)


def reading(layer: torch.nn.Module, work: DeepWork, tokens: int, back: bool) -> Work:
    """Reading a text with a layer; both ways, with gradients of its parameters."""
    x = torch.randn(1, tokens, work.width)

    def run() -> None:
        layer.zero_grad(set_to_none=True)
        with torch.set_grad_enabled(back):
            y = layer(x)[0]
            if back:
                y.square().mean().backward()

    return run


def layer(sizes: Sizes) -> Group:
    work = sizes.reference
    coarse = f"titans-pytorch, chunk_size={work.chunk}"

    def against(decay_to: str, chunk_size: int, tokens: int, back: bool, runs: int) -> Take:
        def sides() -> list[Work]:
            both = our_layer(work, decay_to), their_layer(work, chunk_size)
            return [reading(one, work, tokens, back) for one in both]

        return timed(sides, runs)

    measures = []
    for decay_to, name, target in (("zero", "", 2.5), ("initial", ", decay to the initial weights", None)):
        with torch.device("meta"):
            flops = sizes.tokens * reading_flops(our_layer(work, decay_to))
        for way, back in WAYS:
            take = against(decay_to, work.chunk, sizes.tokens, back, sizes.runs)
            row = Row(f"{way}{name}", coarse, target, flops=(3 if back else 1) * flops)
            measures.append(Measure((row,), take))
    note = f"{sizes.per_token:,} tokens, as theirs takes seconds and gigabytes"
    row = Row("forward, learning at every token", "titans-pytorch, chunk_size=1", 200.0, note)
    measures.append(Measure((row,), against("zero", 1, sizes.per_token, False, sizes.long_runs)))
    row = Row("peak memory, forward and backward", coarse, 1.0, "resident, beyond what was there before the first call")
    measures.append(Measure((row,), lambda: [peaks(sizes)], "bytes"))
    text = (
        f"The layer with its projections, around the memory of the reference work; {sizes.tokens:,} tokens. The ratio "
        "says how many times less time or memory ours takes. Memory is that of fresh processes that read once."
    )
    return Group("Layer", text, tuple(measures))


def peaks(sizes: Sizes) -> Pairs:
    """Bytes that the first call of each side adds, each in a process of its own."""
    taken = [[alone("peak", sizes, side)["bytes"] for side in ("ours", "theirs")] for _ in range(sizes.long_runs)]
    return Pairs(*zip(*taken, strict=True))
