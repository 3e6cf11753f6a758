"""What the length of a stream costs: nothing, if the memory is of constant size."""

from __future__ import annotations

import statistics

import torch
from alone import alone
from cpu_layer import our_layer
from cpu_measure import Group, Measure, Pairs, Row, Sizes
from cpu_reference import deep_rule, reading
from timing import Side, Work, alternate

from mnemonist.models import LanguageModel, ModelConfig

FLAT = 1 / 1.1


def streaming_model(sizes: Sizes) -> LanguageModel:
    """A small model with both kinds of state: a window of attention, and a memory."""
    dim = sizes.reference.dim // 2
    config = ModelConfig(
        blocks=("mag",),
        width=2 * dim,
        heads=2,
        head_dim=dim,
        memory_heads=2,
        memory_head_dim=dim,
        window=2 * sizes.reference.chunk,
        mlp_width=4 * dim,
    )
    return LanguageModel(config).eval()


def streams(sizes: Sizes) -> Group:
    lengths = sizes.lengths
    flat = Row(
        f"cost per token, texts of {lengths[0]:,} to {lengths[-1]:,} tokens",
        "the cheapest length; ours is the dearest",
        FLAT,
        "bare memory of the reference work, forward; the target is within 1.1 times",
    )
    decoding = Row(
        f"decoding after {sizes.streamed:,} tokens", f"the same after {sizes.early:,}", 0.9, "per token; within 10%"
    )
    memory = Row(
        f"resident memory, at the most of {sizes.streamed:,} tokens",
        f"the same of the first {sizes.settled * sizes.piece:,}",
        1 / 1.05,
        "the allocator takes and gives back some 5% all the time; the target is a growth of at most 5%",
    )
    # Without a state there is no other way to decode than to read the whole text again for every token.
    naive = []
    for prefix, target in zip(sizes.prefixes, (None, 3.0), strict=True):
        row = Row(
            f"decoding after {prefix:,} tokens, with a state",
            "the layer called on the whole text for every token",
            target,
        )
        naive.append(Measure((row,), lambda prefix=prefix: [naive_decoding(sizes, prefix)]))
    found: dict[str, Pairs] = {}

    def streamed(part: str) -> list[Pairs]:
        if not found:  # one stream gives both
            found.update(streaming(sizes))
        return [found[part]]

    model = streaming_model(sizes).config
    text = (
        "The bare memory over longer and longer texts; a model with a window and a memory (one mag block of width "
        f"{model.width}, {model.heads} heads of {model.head_dim}, window {model.window}) in a fresh process that reads "
        f"a stream in pieces of {sizes.piece:,} tokens; and the layer of the reference work asked for one more token. "
        "One row each, without gradients."
    )
    measures = (
        Measure((flat,), lambda: [costs(sizes)]),
        Measure((decoding,), lambda: streamed("decoding")),
        Measure((memory,), lambda: streamed("memory"), "bytes"),
        *naive,
    )
    return Group("Streams", text, measures)


def costs(sizes: Sizes) -> Pairs:
    """Seconds a token at the dearest and at the cheapest length, by their medians; short texts are read repeatedly."""
    work = sizes.reference
    repeats = {length: max(1, sizes.long // length) for length in sizes.lengths}
    short = reading(deep_rule(work), work.heads, work.dim, sizes.lengths[0], back=False)

    def side(length: int) -> Side:
        read = reading(deep_rule(work), work.heads, work.dim, length, back=False)

        def repeatedly() -> None:
            for _ in range(repeats[length]):
                read()

        return Side(repeatedly, short)

    times = alternate([side(length) for length in sizes.lengths], sizes.runs)
    each = {
        length: [s / (length * repeats[length]) for s in taken]
        for length, taken in zip(sizes.lengths, times, strict=True)
    }
    medians = {length: statistics.median(taken) for length, taken in each.items()}
    dearest, cheapest = max(medians, key=medians.__getitem__), min(medians, key=medians.__getitem__)
    return Pairs(each[dearest], each[cheapest], {"seconds_per_token": {str(n): m for n, m in medians.items()}})


def streaming(sizes: Sizes) -> dict[str, Pairs]:
    """A stream in a fresh process: decoding late and early, and memory at the most, of all and of its beginning."""
    found = alone("stream", sizes)
    return {
        "decoding": Pairs(found["late"], found["early"], {"tokens_per_second": 1 / statistics.median(found["late"])}),
        "memory": Pairs([found["most"]], [found["start"]]),
    }


def naive_decoding(sizes: Sizes, prefix: int) -> Pairs:
    """Seconds a token of the layer with a state, and of the layer that reads the whole text for every token."""
    layer = our_layer(sizes.reference).eval()
    x = torch.randn(1, prefix + sizes.decoded, sizes.reference.width)
    few = max(1, sizes.decoded // 32)
    with torch.inference_mode():
        _, before, _ = layer(x[:, :prefix])

        def with_state() -> None:
            state = before
            for t in range(prefix, prefix + sizes.decoded):
                _, state, _ = layer(x[:, t : t + 1], state)

        def again() -> None:
            for t in range(prefix, prefix + few):
                layer(x[:, : t + 1])

        works: list[Work] = [with_state, again]
        ours, theirs = alternate([Side(work) for work in works], sizes.runs)
    return Pairs([s / sizes.decoded for s in ours], [s / few for s in theirs])
