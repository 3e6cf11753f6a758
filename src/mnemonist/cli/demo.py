"""``mnemonist demo``: the main job from nothing, on Python's own source."""

from __future__ import annotations

import time
from dataclasses import replace

from mnemonist.cli.options import DEMO_BASELINE, DEMO_MODEL, DEMO_TRAINING, Demo
from mnemonist.cli.read import Reader, compare, cut_alike, run_facts, summary, write_page
from mnemonist.cli.train import Trained, build_model, prepare_text, prepare_torch, say, steps_done, train_model
from mnemonist.data import Document, fingerprint, standard_library
from mnemonist.errors import UserError
from mnemonist.models.configuration import ModelConfig


def run_demo(options: Demo) -> int:
    """Train both models, read held-out modules three ways, write the page."""
    began = time.perf_counter()
    prepare_torch()
    documents = standard_library("train")
    texts = held_out_texts(options.texts, options.length)
    training = replace(DEMO_TRAINING, steps=options.steps, seed=options.seed, warmup_steps=options.steps // 10)
    text = prepare_text(documents, training)

    def trained(config: ModelConfig, name: str) -> Trained:
        folder = options.out / name
        model = build_model(config, training)
        say(
            f"{name}: {model.parameter_count:,} parameters, blocks {' '.join(config.blocks)}, "
            f"{training.steps} steps of {training.batch_size} x {training.row_length} bytes"
        )
        resume = steps_done(folder, text.identity(config)) > 0
        return train_model(model, text, training, folder, resume=resume)

    memory = trained(DEMO_MODEL, "memory")
    if memory.result.interrupted:
        return 130
    window = trained(DEMO_BASELINE, "window")
    if window.result.interrupted:
        return 130
    say(f"reading {len(texts)} modules that neither model has seen, {len(texts[0].text):,} bytes each")
    comparison = compare(Reader(memory.model), Reader(window.model), texts)
    for label, value in summary(comparison):
        print(f"{label}: {value}")
    bytes_read = training.steps * training.batch_size * training.row_length
    more = {
        "attention only": f"{' '.join(DEMO_BASELINE.blocks)}; window {DEMO_BASELINE.window}; "
        f"{window.model.parameter_count:,} parameters; the same bytes in the same order",
        "training": f"{training.steps} steps of {training.batch_size} x {training.row_length} bytes ({bytes_read:,}) "
        f"of Python's standard library (fingerprint {fingerprint(documents)}); "
        f"{memory.result.seconds:.0f} s and {window.result.seconds:.0f} s",
        "seed": str(options.seed),
    }
    page = options.out / "demo.html"
    numbers = ("seed", "steps", "texts", "length")
    command = " ".join(["mnemonist demo", *(f"--{name} {getattr(options, name)}" for name in numbers)])
    facts = run_facts(memory.model, comparison, more)
    write_page(page, "A memory that learns while it reads", comparison, facts, command, map_bytes=options.length)
    print(f"page: {page} (open it in a browser)")
    say(f"done in {time.perf_counter() - began:.0f} s")
    return 0


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
