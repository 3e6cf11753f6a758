"""``mnemonist demo``: the main job, with the models that come with the package, on source code they have never seen."""

from __future__ import annotations

import time
from collections.abc import Sequence

from mnemonist.cli.eval import steps_bar
from mnemonist.cli.options import Demo
from mnemonist.cli.process import prepare_torch, say
from mnemonist.cli.read import compare, cut_alike, load_reader, run_facts, summary, write_page
from mnemonist.data import Document, standard_library
from mnemonist.errors import UserError
from mnemonist.evals.evaluation import evaluate
from mnemonist.evals.results import Result, table
from mnemonist.evals.streaming import Streaming
from mnemonist.files import require_writable

NEAREST = 256  # bytes after which a fact is first asked for


def run_demo(options: Demo) -> int:
    """Ask both models for facts at growing distances, read held-out modules three ways, write the page."""
    began = time.perf_counter()
    texts = held_out_texts(options.texts, options.length)
    recall = recall_suite(options)
    page = options.out / "demo.html"
    require_writable(page)
    prepare_torch()
    memory, window = load_reader(options.model), load_reader(options.baseline)
    say(
        f"a fact at the beginning of {recall.count} streams of source code, asked for up to "
        f"{NEAREST * recall.times:,} bytes later; attention sees the last {memory.model.config.window}"
    )
    results = []
    for name, reader in (("memory", memory), ("window", window)):
        with steps_bar(name) as (advance, on_step):
            results.append(evaluate(reader.model, recall, name=name, progress=advance, on_step=on_step))
    print(table(results) + "\n")

    say(f"reading {len(texts)} modules that neither model has seen, {len(texts[0].text):,} bytes each")
    comparison = compare(memory, window, texts)
    lines = [*recalled(results), *summary(comparison)]
    for label, value in lines:
        print(f"{label}: {value}")
    numbers = ("texts", "length", "streams", "times", "seed")
    command = " ".join(["mnemonist demo", *(f"--{name} {getattr(options, name)}" for name in numbers)])
    more = {
        "model file": str(options.model),
        "attention only": f"{options.baseline}; {' '.join(window.model.config.blocks)}; window "
        f"{window.model.config.window}; {window.model.parameter_count:,} parameters; trained on the same bytes",
        "seed": str(options.seed),
    }
    facts = run_facts(memory.model, comparison, more)
    title = "A memory that learns while it reads"
    write_page(page, title, comparison, facts, command, map_bytes=options.length, first=recalled(results))
    print(f"page: {page} (open it in a browser)")
    say(f"done in {time.perf_counter() - began:.0f} s")
    return 0


def recall_suite(options: Demo) -> Streaming:
    """What is asked of both models.

    Raises:
        UserError: there is nothing to ask.
    """
    try:
        return Streaming(NEAREST, options.times, haystack="source", count=options.streams, seed=options.seed)
    except ValueError as error:
        raise UserError(str(error)) from error


def recalled(results: Sequence[Result]) -> list[tuple[str, str]]:
    """How many facts each model recalled, from the nearest distance to the furthest, as (label, value)."""
    lines = []
    for result in results:
        distances = " · ".join(f"{int(row.setting['distance']):,}" for row in result.rows)
        counts = " · ".join(str(round(row.mean * row.count)) for row in result.rows)
        label = f"facts recalled after {distances} bytes, {result.name}"
        lines.append((label, f"{counts} of {result.rows[0].count}"))
    return lines


def held_out_texts(count: int, length: int) -> tuple[Document, ...]:
    """Held-out modules of at least ``length`` bytes, the most alike in length first.

    Raises:
        UserError: there are not so many of that length.
    """
    if count < 1 or length < 1:
        raise UserError(f"texts is {count} and length {length}; both must be at least 1.")
    long = sorted(
        (d for d in standard_library("heldout") if len(d.text) >= length), key=lambda d: (len(d.text), d.name)
    )
    if len(long) < count:
        raise UserError(
            f"Only {len(long)} held-out modules have {length} bytes or more; ask for fewer --texts or a lower --length."
        )
    return cut_alike(long[:count], length)
