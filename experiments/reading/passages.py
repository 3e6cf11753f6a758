"""Three passages of unseen modules, byte by byte: what surprised the memory, and what it saved.

The models are those that come with the package (`shipped/memory`, `shipped/window`), so this needs no training.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import torch

from mnemonist.data import standard_library
from mnemonist.evals.reading import read_texts
from mnemonist.files import write_atomically
from mnemonist.models import LanguageModel
from mnemonist.models.shipped import find_model
from mnemonist.report.figure import INK, PAPER, SOFT
from mnemonist.report.shading import LEVELS, LIGHT, ramp

LENGTH = 8192
"""Bytes that are read of each module, from its beginning."""
MOST_BITS = 6.0
"""Saved or lost by a byte that is coloured in full."""
LOST = (31, 95, 139)
CELL, LINE, GAP, TOP = 6.4, 15.0, 28.0, 24.0


@dataclass(frozen=True)
class Passage:
    """Whole lines of a module."""

    name: str
    module: str
    first: bytes
    """How its first line begins."""
    lines: int

    def bounds(self, text: bytes) -> tuple[int, int]:
        """Where it is."""
        begin = end = text.index(b"\n" + self.first) + 1
        for _ in range(self.lines):
            end = text.index(b"\n", end) + 1
        return begin, end


PASSAGES = (
    Passage("exceptions", "asyncio/base_subprocess.py", b"            for callback, data in self._pending_calls", 9),
    Passage("again", "distutils/util.py", b"    dictionary, or in 'os.environ'", 5),
    Passage("digits", "_pydecimal.py", b"if sys.maxsize == 2**63-1:", 8),
)


@dataclass(frozen=True)
class Shown:
    """A passage that was read."""

    passage: Passage
    begin: int
    text: bytes
    surprise: np.ndarray
    """``[T]``: norm of the inner gradient, mean over the heads of the last block; 0 and 1 are the module's 5th and 99th
    percentile."""
    bits: np.ndarray
    """``[2, T]``: of the memory, and of the window alone."""


def read_passages() -> list[Shown]:
    """Each module from its beginning, by both models."""
    library = {document.name: document.text for document in standard_library("heldout")}
    modules = list(dict.fromkeys(passage.module for passage in PASSAGES))
    texts = [library[module][:LENGTH] for module in modules]
    torch.set_flush_denormal(True)
    models = [LanguageModel.load(find_model(f"shipped/{name}")) for name in ("memory", "window")]
    memory, window = (read_texts(model, texts, surprise=model.config.has_memory) for model in models)
    norms = memory.memories[max(memory.memories)].gradient_norm.mean(1)
    shown = []
    for passage in PASSAGES:
        number = modules.index(passage.module)
        begin, end = passage.bounds(texts[number])
        low, high = np.quantile(norms[number], (0.05, 0.99))
        surprise = (norms[number] - low) / (high - low)
        bits = np.stack([reading.bits[number, begin:end] for reading in (memory, window)])
        shown.append(Shown(passage, begin, texts[number][begin:end], surprise[begin:end], bits))
    return shown


def draw_passage(path: Path, shown: Shown) -> None:
    """The text twice: shaded by surprise, and by what the memory saved against the window alone."""
    lines = shown.text.decode().splitlines()
    assert len(shown.text) == len(shown.text.decode()), "a passage is ASCII, so that a byte is a letter"
    width = max(48, *map(len, lines)) * CELL  # no narrower than the titles
    saved = shown.bits[1] - shown.bits[0]
    colours = (
        [ramp(LIGHT)[min(LEVELS - 1, int(max(0.0, value) * (LEVELS - 1)))][0] for value in shown.surprise],
        [_saved_colour(value) for value in saved],
    )
    titles = ("surprise: norm of the inner gradient", "bits saved against the window alone; blue: lost")
    parts = []
    for column, (title, colour) in enumerate(zip(titles, colours, strict=True)):
        left, place = column * (width + GAP), 0
        parts.append(f'<text x="{left}" y="12" fill="{SOFT}" font-family="sans-serif">{title}</text>')
        for row, line in enumerate(lines):
            y = TOP + row * LINE
            for number in range(len(line)):
                x, fill = left + number * CELL, colour[place + number]
                parts.append(f'<rect x="{x:.1f}" y="{y}" width="{CELL + 0.3:.1f}" height="{LINE}" fill="{fill}"/>')
            parts.append(
                f'<text x="{left:.1f}" y="{y + 11}" textLength="{len(line) * CELL:.1f}" xml:space="preserve" '
                f'font-family="monospace" fill="{INK}">{escape(line)}</text>'
            )
            place += len(line) + 1
    size = (2 * width + GAP, TOP + len(lines) * LINE)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]:.0f} {size[1]:.0f}" font-size="10.5">'
    back = f'<rect width="100%" height="100%" fill="{PAPER}"/>'
    write_atomically(path, "\n".join([head, back, *parts, "</svg>"]) + "\n")


def _saved_colour(bits: float) -> str:
    part = min(1.0, abs(bits) / MOST_BITS)
    if bits >= 0:
        return ramp(LIGHT)[round(part * (LEVELS - 1))][0]
    paper = tuple(int(PAPER[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(p + part * (c - p)):02x}" for p, c in zip(paper, LOST, strict=True))


def passages(folder: Path) -> str:
    """Pictures, and a line of figures for each."""
    lines = ["| passage | module | bytes | bits, memory | bits, window alone | saved |", "|---|---|--:|--:|--:|--:|"]
    pictures = []
    for shown in read_passages():
        passage = shown.passage
        memory, window = (float(bits.sum()) for bits in shown.bits)
        where = f"{shown.begin:,} to {shown.begin + len(shown.text):,}"
        cells = [passage.name, f"`{passage.module}`", where, f"{memory:.0f}", f"{window:.0f}", f"{window - memory:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
        draw_passage(folder / f"passage-{passage.name}.svg", shown)
        pictures.append(f"![Surprise, and bits saved: {passage.name}](passage-{passage.name}.svg)")
    return "\n".join(lines) + "\n\n" + "\n\n".join(pictures)
