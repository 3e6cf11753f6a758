"""What a memory did while it read, as one page.

A memory whose weights change with every byte leaves a trace: how surprised it was (the norm of the inner
gradient), how far it stepped, what it kept. The page lays that trace over the text itself, next to the
curve that tells whether learning while reading paid off. The text is untrusted, and travels in base64.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnemonist.files import write_atomically

from .curve_plot import Curve, draw_curves
from .pack import Detail, choose_detail, encode, pack_quantity, pack_rows
from .page import hidden_unless, render_page
from .shading import LEVELS

QUANTITIES = ("surprise", "loss", "step_size", "momentum", "decay")
"""The arrays of shape [L, H, T]; the first keeps its heads longest when the page has to be made smaller."""


@dataclass(frozen=True)
class SurpriseMap:
    """What every memory of a model did at every byte of one text of T bytes.

    Attributes:
        title: name of the text.
        text: T bytes, UTF-8, one token a byte.
        layers: names of the L layers that hold a memory, such as "layer 2 (mag)".
        heads: H, memories of a layer.
        surprise: [L, H, T] norm of the inner gradient. What is not finite is shown as a gap, here and below.
        loss: [L, H, T] inner loss before the write.
        step_size: [L, H, T] inner learning rate.
        momentum, decay: [L, H, T], or None for rules without them.
        bits: [T] bits the model paid for each byte; NaN where it predicted none.
    """

    title: str
    text: bytes
    layers: tuple[str, ...]
    heads: int
    surprise: np.ndarray
    loss: np.ndarray
    step_size: np.ndarray
    momentum: np.ndarray | None
    decay: np.ndarray | None
    bits: np.ndarray

    def __post_init__(self) -> None:
        if not self.text:
            raise ValueError(f"the text of {self.title!r} is empty: there is nothing to show")
        if not self.layers or self.heads < 1:
            raise ValueError(f"{self.title!r} needs at least one layer and one head")
        expected = {name: (len(self.layers), self.heads, len(self.text)) for name in QUANTITIES}
        shapes = {name: array.shape for name, array in self.arrays().items()}
        for name, shape in {**shapes, "bits": self.bits.shape}.items():
            wanted = expected.get(name, (len(self.text),))
            if shape != wanted:
                raise ValueError(
                    f"{name} of {self.title!r} has shape {list(shape)}, but its layers, heads and bytes "
                    f"ask for {list(wanted)}"
                )

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of shape [L, H, T] that this text has, by name."""
        named = {name: getattr(self, name) for name in QUANTITIES}
        return {name: array for name, array in named.items() if array is not None}


@dataclass(frozen=True)
class Reading:
    """One page.

    Attributes:
        title: heading.
        figures: headline figures, as (label, value).
        curves: bits per byte against position; the first is drawn in the accent colour. May be empty.
        maps: the texts and what the memories did with them. May be empty.
        facts: what was run (model, data, seed, time, versions), as (name, value).
        command: the command that repeats it; empty if there is none.
    """

    title: str
    figures: tuple[tuple[str, str], ...]
    curves: tuple[Curve, ...]
    maps: tuple[SurpriseMap, ...]
    facts: tuple[tuple[str, str], ...]
    command: str


def write_reading(path: str | os.PathLike[str], reading: Reading) -> None:
    """Write `reading` to `path` as one HTML file, whole or not at all.

    Raises:
        ValueError: when the texts are too long for one page.
        FileError: when `path` cannot be written.
    """
    write_atomically(path, render_reading(reading))


def render_reading(reading: Reading) -> str:
    """The page as HTML.

    Raises:
        ValueError: when the texts are too long for one page.
    """
    plot, geometry = draw_curves(reading.curves) if reading.curves else ("", None)
    data = {"levels": LEVELS, "plot": geometry, "maps": _pack_maps(reading.maps)}
    return render_page(
        "reading",
        "a reading",
        title=reading.title,
        figures=reading.figures,
        facts=reading.facts,
        command=reading.command,
        parts={
            "plot": plot,
            "plot_hidden": hidden_unless(reading.curves),
            "bands_hidden": hidden_unless([curve for curve in reading.curves if curve.low is not None]),
            "map_hidden": hidden_unless(reading.maps),
        },
        data=data,
    )


def _pack_maps(maps: Sequence[SurpriseMap]) -> list[dict[str, Any]]:
    shapes = [{name: array.shape for name, array in each.arrays().items()} for each in maps]
    detail = choose_detail(shapes, QUANTITIES)
    return [_pack_map(each, detail) for each in maps]


def _pack_map(each: SurpriseMap, detail: Detail) -> dict[str, Any]:
    return {
        "title": each.title,
        "text": encode(each.text),
        "layers": list(each.layers),
        "heads": each.heads,
        "bits": pack_rows(each.bits[None], 2),
        "quantities": {name: pack_quantity(array, name, detail) for name, array in each.arrays().items()},
    }
