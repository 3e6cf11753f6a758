"""``mnemonist read``, and the page that the demo shares."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from mnemonist import __version__
from mnemonist.cli.options import Read
from mnemonist.cli.train import load_model, prepare_torch, say
from mnemonist.data import Document, fingerprint, read_document, read_path
from mnemonist.evals.reading import TextReading, bits_by_position, interval, paired_difference, read_texts
from mnemonist.files import require_writable
from mnemonist.models.modeling import LanguageModel
from mnemonist.report import Curve, Reading, SurpriseMap, write_reading

MOST_TEXTS = 8


@dataclass(frozen=True)
class Comparison:
    """The same texts read in several ways."""

    texts: tuple[Document, ...]
    readings: dict[str, TextReading]
    """By the name each goes by on the page; the first is what the others are compared with."""

    @property
    def learning(self) -> TextReading:
        """The first reading."""
        return next(iter(self.readings.values()))


def run_read(options: Read) -> int:
    """Read, print, write the page."""
    if options.map_bytes < 1:
        raise ValueError(f"map_bytes is {options.map_bytes}; show at least 1 byte of each text.")
    require_writable(options.out)  # now, not after an hour of reading
    prepare_torch()
    model = load_model(options.model)
    baseline = None if options.baseline is None else load_model(options.baseline)
    texts = choose_texts(options.path, options.limit)
    say(f"reading {len(texts)} x {len(texts[0].text):,} bytes: {', '.join(text.name for text in texts)}")
    comparison = compare(model, baseline, texts)
    for line in summary(comparison):
        print(f"{line[0]}: {line[1]}")
    facts = run_facts(model, comparison, {"model file": str(options.model)})
    command = f"mnemonist read {options.path} --model {options.model}"
    write_page(options.out, f"Reading {options.path.resolve().name}", comparison, facts, command, options.map_bytes)
    print(f"page: {options.out}")
    return 0


def choose_texts(path: Path, limit: int | None) -> tuple[Document, ...]:
    """The file, or of a folder the longest texts, all cut to one length.

    Raises:
        UserError: nothing to read there; see `mnemonist.data.read_path`.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; read at least 1 byte, or leave it out to read everything.")
    if os.path.isdir(path):  # False, and no error, for a path that cannot be
        found = sorted(read_path(path).documents, key=lambda d: (-len(d.text), d.name))[:MOST_TEXTS]
    else:
        found = [read_document(path)]
    return cut_alike(found, limit)


def cut_alike(texts: Sequence[Document], limit: int | None) -> tuple[Document, ...]:
    """The texts cut to the length of the shortest, at most ``limit`` bytes."""
    length = min(len(text.text) for text in texts)
    length = length if limit is None else min(length, limit)
    return tuple(Document(text.name, text.text[:length]) for text in texts)


def compare(model: LanguageModel, baseline: LanguageModel | None, texts: tuple[Document, ...]) -> Comparison:
    """Read the texts with the memory learning, with the memory frozen, and with the baseline."""
    raw = [text.text for text in texts]
    with Progress(
        TextColumn("{task.description:<16}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(), console=Console(stderr=True),
    ) as bars:  # fmt: skip

        def read(name: str, reader: LanguageModel, learn: bool, surprise: bool) -> TextReading:
            task = bars.add_task(name, total=len(raw[0]), rate="")

            def advance(done: int, total: int) -> None:
                speed = bars.tasks[task].speed
                bars.update(task, completed=done, rate="" if speed is None else f"{speed * len(raw):,.0f} bytes/s")

            return read_texts(reader, raw, learn=learn, surprise=surprise, progress=advance)

        readings = {}
        if model.config.has_memory:
            readings["memory learning"] = read("memory learning", model, True, True)
            readings["memory frozen"] = read("memory frozen", model, False, False)
        else:
            readings["attention only"] = read("attention only", model, True, False)
        if baseline is not None:
            plain = model.config.has_memory and not baseline.config.has_memory
            name = "attention only" if plain else "baseline"
            readings[name] = read(name, baseline, True, False)
    return Comparison(texts, readings)


def summary(comparison: Comparison) -> list[tuple[str, str]]:
    """The key figures as (label, value)."""
    bits = comparison.learning.bits
    half = bits.shape[1] // 2
    lines = [
        (f"{name}, bits per byte", str(interval(reading.bits.mean(1)))) for name, reading in comparison.readings.items()
    ]
    for name, reading in list(comparison.readings.items())[1:]:
        saved = paired_difference(bits, reading.bits, half)
        lines.append((f"bits saved per byte against {name}, second half", str(saved)))
    lines.append(("state while reading, bytes per text", f"{comparison.learning.state.nbytes // len(bits):,}"))
    lines.append(("speed, bytes per second", f"{bits.size / comparison.learning.seconds:,.0f}"))
    return lines


def run_facts(model: LanguageModel, comparison: Comparison, more: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """What was run, as (name, value)."""
    config = model.config
    facts = {
        "model": f"{' '.join(config.blocks)}; rule {config.rule}; width {config.width}; window {config.window}; "
        f"{model.parameter_count:,} parameters",
        "texts": f"{len(comparison.texts)} of {len(comparison.texts[0].text):,} bytes "
        f"(fingerprint {fingerprint(comparison.texts)}): {', '.join(text.name for text in comparison.texts)}",
        **more,
        "reading time": f"{sum(reading.seconds for reading in comparison.readings.values()):.0f} s",
        "versions": f"mnemonist {__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    return tuple(facts.items())


def write_page(
    path: Path,
    title: str,
    comparison: Comparison,
    facts: tuple[tuple[str, str], ...],
    command: str,
    map_bytes: int,
    maps: int = 3,
) -> None:
    """Write the HTML page of a reading."""
    curves = []
    for name, reading in comparison.readings.items():
        by = bits_by_position(reading.bits)
        curves.append(Curve(name, by.positions, by.mean, by.low, by.high))
    count = min(maps, len(comparison.texts)) if comparison.learning.memories else 0
    shown = tuple(_surprise_map(comparison, i, map_bytes) for i in range(count))
    write_reading(path, Reading(title, tuple(summary(comparison)), tuple(curves), shown, facts, command))


def _surprise_map(comparison: Comparison, row: int, most: int) -> SurpriseMap:
    memories = comparison.learning.memories
    text = comparison.texts[row]

    def stacked(field: str) -> np.ndarray | None:
        parts = [getattr(memory, field) for memory in memories.values()]
        return None if not parts or parts[0] is None else np.stack([part[row, :, :most] for part in parts])

    norm, loss, step = stacked("gradient_norm"), stacked("loss"), stacked("step_size")
    assert norm is not None and loss is not None and step is not None
    return SurpriseMap(
        title=text.name,
        text=text.text[:most],
        layers=tuple(f"block {block + 1}" for block in memories),
        heads=norm.shape[1],
        surprise=norm,
        loss=loss,
        step_size=step,
        momentum=stacked("momentum"),
        decay=stacked("decay"),
        bits=comparison.learning.bits[row, :most],
    )
