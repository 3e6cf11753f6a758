"""What a measure on the CPU is: rows of a table, and how their figures are taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from timing import Side, Work, alternate, ratios, spread
from work import DeepWork


@dataclass(frozen=True)
class Sizes:
    """Of the work that is measured."""

    reference: DeepWork
    tokens: int
    long: int
    per_token: int
    """Tokens read by titans-pytorch with a step each: it takes gigabytes and seconds."""
    chunks: tuple[int, ...]
    """Chunk sizes of the roofline."""
    lengths: tuple[int, ...]
    """Texts whose cost per token should be one."""
    blocks: tuple[int, int]
    """Of the models that are trained on a short text, and on a long one."""
    mlp_width: int
    """Of the model of attention; the others get the width that brings them to as many parameters."""
    texts: tuple[int, int]
    """Tokens that these read in a step of training."""
    early: int
    streamed: int
    """Tokens after which decoding is timed: few, and many."""
    piece: int
    """Tokens of a stream that are read in one call."""
    settled: int
    """Pieces after which the allocator of the process holds what reading needs."""
    decoded: int
    prefixes: tuple[int, int]
    """Tokens before the one that is decoded with and without a state."""
    matrices: tuple[int, int, int]
    """How many matrices few rows are multiplied with in turn, beyond the caches, and their sides."""
    written: tuple[int, int]
    """Blocks and width of the transformer that writes."""
    ideas: int
    """Tokens read with functions of one's own."""
    runs: int
    long_runs: int
    """Of what takes many seconds."""
    rehearsal: bool = False
    """Whether the figures mean nothing."""


FULL = Sizes(
    reference=DeepWork(heads=4, dim=64, expansion=4.0, chunk=64),
    tokens=2048,
    long=16384,
    per_token=512,
    chunks=(16, 32, 64, 128),
    lengths=(1024, 4096, 16384, 65536),
    blocks=(2, 1),
    mlp_width=944,
    texts=(4096, 16384),
    early=1000,
    streamed=1_000_000,
    piece=8192,
    settled=10,
    decoded=256,
    prefixes=(64, 512),
    matrices=(64, 1536, 576),
    written=(12, 576),
    ideas=128,
    runs=9,
    long_runs=5,
)
TINY = Sizes(
    reference=DeepWork(heads=2, dim=8, expansion=2.0, chunk=8),
    tokens=24,
    long=40,
    per_token=8,
    chunks=(4, 8),
    lengths=(16, 32),
    blocks=(1, 1),
    mlp_width=96,
    texts=(16, 32),
    early=10,
    streamed=200,
    piece=32,
    settled=2,
    decoded=4,
    prefixes=(4, 8),
    matrices=(2, 256, 128),
    written=(1, 192),
    ideas=12,
    runs=2,
    long_runs=1,
    rehearsal=True,
)


class PeerMissing(Exception):
    """What ours would be compared with is not installed."""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    peer: str
    """What ours is compared with."""
    target: float | None = None
    """What the ratio, theirs over ours, should be at least."""
    note: str = ""
    flops: float | None = None
    """Operations in matrix products that ours takes, where they are counted."""


@dataclass(frozen=True)
class Pairs:
    """What was taken for a row: figures of both sides that belong together, one pair a run; less is better."""

    ours: Sequence[float]
    theirs: Sequence[float]
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else the page needs."""


Take = Callable[[], Sequence[Pairs]]


@dataclass(frozen=True)
class Measure:
    """Rows whose figures are taken together."""

    rows: tuple[Row, ...]
    take: Take
    """The pairs of each row."""
    unit: str = "seconds"


@dataclass(frozen=True)
class Group:
    """Measures of one idea."""

    title: str
    text: str
    """What is measured, and what the ratio is."""
    measures: tuple[Measure, ...]


def timed(sides: Callable[[], Sequence[Side | Work]], runs: int, threads: int | None = None) -> Take:
    """Times the sides in turn; the last one is the peer of each of the others.

    Args:
        sides: makes them, when it is their time.
        runs: pairs to take.
        threads: of torch; None leaves their number as it is.
    """

    def take() -> list[Pairs]:
        with limited(threads):
            made = [side if isinstance(side, Side) else Side(side) for side in sides()]
            *ours, theirs = alternate(made, runs)
        return [Pairs(times, theirs) for times in ours]

    return take


@contextmanager
def limited(threads: int | None) -> Iterator[None]:
    """With so many threads of torch, or as many as there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def empty_entry(group: Group, measure: Measure, row: Row) -> dict[str, Any]:
    """A result without figures."""
    entry: dict[str, Any] = {
        "group": group.title,
        "name": row.name,
        "peer": row.peer,
        f"ours_{measure.unit}": None,
        f"theirs_{measure.unit}": None,
        "ratio": None,
        "target": row.target,
    }
    told = {"note": row.note or None, "flops": row.flops}
    return entry | {name: fact for name, fact in told.items() if fact is not None}


def filled_entry(group: Group, measure: Measure, row: Row, pairs: Pairs) -> dict[str, Any]:
    """A result as the report holds it."""
    entry = empty_entry(group, measure, row) | {
        f"ours_{measure.unit}": spread(pairs.ours),
        f"theirs_{measure.unit}": spread(pairs.theirs),
        "ratio": ratios(pairs.ours, pairs.theirs),
        "runs": len(pairs.ours),
        **pairs.facts,
    }
    if row.target is not None:
        entry["met"] = entry["ratio"]["median"] >= row.target
    return entry
