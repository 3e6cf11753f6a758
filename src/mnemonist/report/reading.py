"""What a memory did while it read, as one page.

A memory whose weights change with every byte leaves a trace: how surprised it was (the norm of the inner
gradient), how far it stepped, what it kept. The page lays that trace over the text itself, next to the
curve that tells whether learning while reading paid off. It is one file that loads nothing: it opens from
disk, travels by mail, and still opens in ten years.

The text is untrusted. It travels in base64, the browser writes it as text and never as markup, and the
page's own policy allows no script or style but the two whose hashes it names.
"""

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from mnemonist.files import write_atomically

from .curve_plot import Curve, draw_curves
from .pack import Detail, choose_detail, encode, pack_quantity, pack_rows
from .shading import LEVELS, style_rules

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
    style = _template("page.css") + style_rules()
    script = _template("page.js")
    return _fill(
        _template("page.html"),
        {
            "title": escape(reading.title),
            "style": style,
            "style_hash": _hash(style),
            "script": script,
            "script_hash": _hash(script),
            "figures": _figures(reading.figures),
            "plot": plot,
            "plot_hidden": _hidden_unless(reading.curves),
            "bands_hidden": _hidden_unless([curve for curve in reading.curves if curve.low is not None]),
            "map_hidden": _hidden_unless(reading.maps),
            "facts": _facts(reading.facts),
            "facts_hidden": _hidden_unless(reading.facts),
            "command": escape(reading.command),
            "command_hidden": _hidden_unless(reading.command),
            "data": _json_in_html(data),
        },
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


def _figures(figures: Sequence[tuple[str, str]]) -> str:
    items = (f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in figures)
    return f'<dl class="figures">{"".join(items)}</dl>' if figures else ""


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    rows = (f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in facts)
    return "\n".join(rows)


def _hidden_unless(shown: Sequence[Any]) -> str:
    return "" if shown else "hidden"


def _template(name: str) -> str:
    return files("mnemonist.report").joinpath(name).read_text(encoding="utf-8")


def _fill(template: str, parts: Mapping[str, str]) -> str:
    """Replace each `{{name}}` once, in one pass: what is put in is never searched itself."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def _hash(content: str) -> str:
    """What a content security policy calls the inline script or style with this content."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode('ascii')}"


def _json_in_html(data: object) -> str:
    """JSON that can neither end the script element it stands in nor begin a comment there."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
