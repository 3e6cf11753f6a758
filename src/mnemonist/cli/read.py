"""``mnemonist read``, and what other commands share with it: a model with its tokenizer, sessions, and the page."""

from __future__ import annotations

import itertools
import json
import os
import platform
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from mnemonist import __version__
from mnemonist.cli import INTERRUPTED
from mnemonist.cli.options import Read
from mnemonist.cli.process import prepare_torch, say
from mnemonist.cli.train import load_model, load_tokenizer
from mnemonist.data import (
    ByteTokenizer,
    Document,
    Tokenizer,
    fingerprint,
    read_document,
    read_path,
)
from mnemonist.errors import UserError
from mnemonist.evals.reading import (
    StreamReading,
    TextReading,
    bits_by_position,
    paired_difference,
    read_on,
    read_texts,
    require_tokenizer,
)
from mnemonist.files import require_writable
from mnemonist.intervals import interval
from mnemonist.models.modeling import LanguageModel
from mnemonist.models.session import Session
from mnemonist.report import Curve, Reading, SurpriseMap, write_reading
from mnemonist.training.interruption import stop_on_signals

MOST_TEXTS = 8
FROZEN = (
    "the same model with its memory held still. It shows how much this model depends on learning while it reads, "
    "not what a model without memory would do: a baseline shows that (--baseline)"
)


@dataclass(frozen=True)
class Reader:
    """A model and its tokenizer."""

    model: LanguageModel
    tokenizer: Tokenizer = field(default_factory=ByteTokenizer)


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
    for name, least in (("map_bytes", 1), ("start", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"{name} is {getattr(options, name)}; it must be at least {least}.")
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"limit is {options.limit}; read at least 1 byte, or leave it out to read everything.")
    require_writable(options.out)  # now, not after an hour of reading
    prepare_torch()
    reader = load_reader(options.model)
    if options.session is not None:
        return read_session(options, reader, options.session)
    baseline = None if options.baseline is None else load_reader(options.baseline)
    texts = choose_texts(options.path, options.start, options.limit)
    say(f"reading {len(texts)} x {len(texts[0].text):,} bytes: {', '.join(text.name for text in texts)}")
    report(options, reader, compare(reader, baseline, texts))
    return 0


def read_session(options: Read, reader: Reader, path: Path) -> int:
    """Read on from a session, save it, and compare with the memory held as the session had left it.

    Raises:
        UserError: the session is damaged or of another model or tokenizer, or a baseline is asked for.
    """
    if options.baseline is not None:
        raise UserError("a baseline has no session to go on from; leave out --baseline or --session")
    require_writable(path)
    begin = load_session(path, reader) if path.exists() else Session.begin(reader.model)
    # What goes on may have been cut anywhere.
    documents, at_border = rest_of(read_path(options.path, part=True).documents, options.start, options.limit)
    new_document = options.new_document or (at_border and options.start > 0)
    texts = [document.text for document in documents]
    total = sum(map(len, texts))
    how = f"going on from token {begin.position:,} of {path}" if begin.position else f"beginning {path}"
    say(f"{how}: {total:,} bytes of {', '.join(document.name for document in documents[:MOST_TEXTS])}")

    learns = reader.model.config.has_memory
    name = "memory learning" if learns else "attention only"

    def read(name: str, learn: bool, stop: Callable[[], bool]) -> StreamReading:
        with progress_bars() as bars:
            return read_on(
                reader.model, texts, begin, tokenizer=reader.tokenizer, new_document=new_document,
                learn=learn, surprise=learn and learns, progress=track(bars, name, total, 1), stop=stop,
            )  # fmt: skip

    with stop_on_signals() as stop:
        reading = read(name, True, lambda: stop.requested)
        reading.session.save(path)
    after = reading.session
    say(
        f"{path}: {after.position:,} tokens read, {after.nbytes:,} bytes, {len(after.remainder)} of them text held back"
    )
    if stop.requested:
        rest = "all was read" if reading.taken == total else f"read on: {command_for_the_rest(options, reading.taken)}"
        say(f"interrupted after byte {options.start + reading.taken:,} of {options.path}; {rest}")
        return INTERRUPTED
    if not reading.text:
        say("no byte has a token yet; there is nothing to report")
        return 0
    readings: dict[str, TextReading] = {name: reading}
    if learns:
        readings["memory frozen"] = read("memory frozen", False, lambda: False)
    comparison = Comparison((Document(documents[0].name, reading.text),), readings)
    report(options, reader, comparison, (begin.position, after.position))
    return 0


def command_for_the_rest(options: Read, taken: int) -> str:
    """The command that goes on where a reading with a session was stopped, ``taken`` bytes behind its start."""
    limit = None if options.limit is None else options.limit - taken
    begins = options.new_document and not taken
    return command_of(replace(options, start=options.start + taken, limit=limit, new_document=begins))


def command_of(options: Read) -> str:
    """The command with these options, as a shell takes it; what is as it is by default is left out."""
    words = ["mnemonist", "read", str(options.path)]
    for option in fields(options)[1:]:
        value = getattr(options, option.name)
        if value != option.default:
            words += [f"--{option.name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(words)


def load_reader(path: Path) -> Reader:
    """The model at a path, and the tokenizer beside it.

    Raises:
        UserError: there is no model, or no tokenizer that fits it.
    """
    model = load_model(path)
    return Reader(model, load_tokenizer(path, model))


def load_session(path: Path, reader: Reader) -> Session:
    """A saved session that a model and its tokenizer can go on from.

    Raises:
        UserError: there is none, it is damaged, or it is of another model or tokenizer.
    """
    session = Session.load(path, reader.model)
    if session.batch != 1:
        raise UserError(f"{path} holds {session.batch} streams side by side; only the Python API goes on from these")
    require_tokenizer(session, reader.tokenizer)
    return session


def choose_texts(path: Path, start: int, limit: int | None) -> tuple[Document, ...]:
    """The file, or of a folder the longest texts, all cut to one length.

    Raises:
        UserError: nothing to read there; see `mnemonist.data.read_path`.
    """
    if os.path.isdir(path):  # False, and no error, for a path that cannot be
        found = sorted(read_path(path).documents, key=lambda d: (-len(d.text), d.name))[:MOST_TEXTS]
    else:
        found = [read_document(path)]
    return cut_alike(found, limit, start)


def cut_alike(texts: Sequence[Document], limit: int | None, start: int = 0) -> tuple[Document, ...]:
    """The texts from byte ``start`` on, cut to the length of the shortest, at most ``limit`` bytes.

    Raises:
        UserError: a text ends before ``start``.
    """
    shortest = min(texts, key=lambda text: len(text.text))
    length = len(shortest.text) - start
    if length < 1:
        raise UserError(f"{shortest.name} has {len(shortest.text):,} bytes; --start {start} leaves nothing to read")
    length = length if limit is None else min(length, limit)
    return tuple(Document(text.name, text.text[start : start + length]) for text in texts)


def rest_of(documents: Sequence[Document], start: int, limit: int | None) -> tuple[list[Document], bool]:
    """What is to be read of documents one after another, and whether a document begins at ``start``.

    Raises:
        UserError: all of them end before ``start``.
    """
    borders = list(itertools.accumulate((len(document.text) for document in documents), initial=0))
    if start >= borders[-1]:
        raise UserError(f"there are {borders[-1]:,} bytes to read; --start {start} leaves nothing")
    end = borders[-1] if limit is None else start + limit
    rest = [
        Document(document.name, document.text[max(0, start - at) : max(0, end - at)])
        for document, at in zip(documents, borders, strict=False)
    ]
    return [document for document in rest if document.text], start in borders


def compare(reader: Reader, baseline: Reader | None, texts: tuple[Document, ...]) -> Comparison:
    """Read the texts with the memory learning, with the memory frozen, and with the baseline."""
    raw = [text.text for text in texts]
    model = reader.model
    with progress_bars() as bars:

        def read(name: str, reader: Reader, learn: bool, surprise: bool) -> TextReading:
            advance = track(bars, name, len(raw[0]), len(raw))
            return read_texts(
                reader.model, raw, tokenizer=reader.tokenizer, learn=learn, surprise=surprise, progress=advance
            )

        readings = {}
        if model.config.has_memory:
            readings["memory learning"] = read("memory learning", reader, True, True)
            readings["memory frozen"] = read("memory frozen", reader, False, False)
        else:
            readings["attention only"] = read("attention only", reader, True, False)
        if baseline is not None:
            plain = model.config.has_memory and not baseline.model.config.has_memory
            name = "attention only" if plain else "baseline"
            readings[name] = read(name, baseline, True, False)
    return Comparison(texts, readings)


def progress_bars() -> Progress:
    """Bars on stderr, each with its rate."""
    return Progress(
        TextColumn("{task.description:<16}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(), console=Console(stderr=True),
    )  # fmt: skip


def track(bars: Progress, name: str, total: int, rows: int, unit: str = "bytes") -> Callable[[int, int], None]:
    """A bar for ``rows`` texts of ``total`` bytes each; what is returned moves it."""
    task = bars.add_task(name, total=total, rate="")

    def advance(done: int, total: int) -> None:
        speed = bars.tasks[task].speed
        bars.update(task, completed=done, rate="" if speed is None else f"{speed * rows:,.0f} {unit}/s")

    return advance


def report(options: Read, reader: Reader, comparison: Comparison, span: tuple[int, int] | None = None) -> None:
    """Print the figures and write the page; ``span`` is where a session was, in tokens, before and after."""
    facts = {"model file": str(options.model)}
    numbers = figures(comparison) | {"page": str(options.out)}
    if span is not None:
        facts["session"] = f"{options.session}, from token {span[0]:,} to {span[1]:,}"
        numbers |= {"session": str(options.session), "from_token": span[0], "to_token": span[1]}
    lines = [json.dumps(numbers)] if options.json else [f"{label}: {value}" for label, value in summary(comparison)]
    print("\n".join(lines))
    title = f"Reading {options.path.resolve().name}"
    facts_of_run = run_facts(reader.model, comparison, facts)
    write_page(options.out, title, comparison, facts_of_run, command_of(options), options.map_bytes)
    if not options.json:
        print(f"page: {options.out}")


def figures(comparison: Comparison) -> dict[str, Any]:
    """The key figures as numbers: means over texts and bytes."""
    learning = comparison.learning
    half = learning.bits.shape[1] // 2
    return {
        "texts": [text.name for text in comparison.texts],
        "bytes": learning.bits.shape[1],
        "bits_per_byte": {name: float(reading.bits.mean()) for name, reading in comparison.readings.items()},
        "bits_per_byte_second_half": {
            name: float(reading.bits[:, half:].mean()) for name, reading in comparison.readings.items()
        },
        "state_bytes": learning.state_bytes,
        "seconds": learning.seconds,
    }


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
    lines.append(("state while reading, bytes per text", f"{comparison.learning.state_bytes:,}"))
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
        **({"memory frozen": FROZEN} if "memory frozen" in comparison.readings else {}),
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
    first: Sequence[tuple[str, str]] = (),
) -> None:
    """Write the HTML page of a reading; ``first`` are figures that stand before those of the reading."""
    curves = []
    for name, reading in comparison.readings.items():
        by = bits_by_position(reading.bits)
        curves.append(Curve(name, by.positions, by.mean, by.low, by.high))
    count = min(maps, len(comparison.texts)) if comparison.learning.memories else 0
    shown = tuple(_surprise_map(comparison, i, map_bytes) for i in range(count))
    write_reading(path, Reading(title, (*first, *summary(comparison)), tuple(curves), shown, facts, command))


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
