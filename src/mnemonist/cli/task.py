"""``mnemonist train --task``: learning to solve the problems that `mnemonist eval` asks, beside text if wanted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from mnemonist.cli import INTERRUPTED
from mnemonist.cli.begun import keep_options
from mnemonist.cli.options import Train
from mnemonist.cli.process import first_process, say
from mnemonist.cli.text import divide_text, find_documents
from mnemonist.cli.train import (
    MODEL_FILE,
    Origin,
    build_model,
    find_origin,
    identity_of,
    run_before,
    steps_done,
    tokenizer_of,
)
from mnemonist.data import ByteTokenizer, Tokenizer, fingerprint
from mnemonist.errors import UserError
from mnemonist.evals.lessons import Curriculum, curriculum, held_out_problems, take_turns
from mnemonist.evals.problems import draw
from mnemonist.evals.regression import Regression
from mnemonist.evals.suites import build_task, fields_of, reads_text
from mnemonist.files import write_atomically
from mnemonist.models.configuration import ModelConfig
from mnemonist.models.cost import matched, model_cost
from mnemonist.training import HeldOut, StepMetrics, train
from mnemonist.training.language import batches_of_rows, next_token_loss, rows_held_out

TASK_FILE = "tasks.json"
TEXT = "text"
"""The part of what is learned that is text, as `--data` names it."""


@dataclass(frozen=True, eq=False)
class Held:
    """What is read of a part now and then and not trained on."""

    rows: HeldOut
    fingerprint: str
    description: str


@dataclass(frozen=True, eq=False)
class Part:
    """What takes its turn in training: a task, or text."""

    spec: str
    curriculum: Curriculum
    vocab_size: int
    longest: int
    """Tokens of its longest row."""
    fingerprint: str
    description: str
    held: Held | None


def run_train_tasks(options: Train) -> int:
    """Say what it will cost, train, save.

    Raises:
        UserError: there is no such task, tasks do not go together, or an option does not go with them.
        ValueError: a change to a task does not fit.
    """
    if options.training.truncation is not None:
        raise UserError("truncation is for texts; the problems of a task are read whole: leave it out")
    if options.tensorboard:
        raise UserError("tensorboard is for texts; of a task, metrics.jsonl in the folder has the same figures")
    if TEXT not in options.task and (options.held_out.data is not None or options.held_out.share):
        raise UserError(
            "there is no text to hold out, and problems are drawn: leave out --held-out.data and --held-out.share "
            "(0 holds out no problems either)"
        )
    reads = [spec == TEXT or reads_text(spec) for spec in options.task]
    if options.tokenizer is not None and not all(reads):
        raise UserError(f"{options.task[reads.index(False)]} is not made of text; leave out --tokenizer")
    if len(options.task) > 1 and not all(reads):
        raise UserError(f"{options.task[reads.index(False)]} is not made of text, so it cannot take turns with others")
    before = run_before(options, unknown=("row_length",))
    origin = find_origin(options)
    tokenizer = tokenizer_of(options, origin) if any(reads) else None
    parts = _parts(options, tokenizer, None if before is None else before.identity)
    config = _config(options, parts, tokenizer, origin)
    training = replace(options.training, row_length=max(part.longest for part in parts))
    held = [part.held for part in dict.fromkeys(parts) if part.held is not None]
    identity = {
        "model": config.to_json(),
        "held_out": " ".join(one.fingerprint for one in held),
        "data": " ".join(part.fingerprint for part in parts),
        "tokenizer": tokenizer.fingerprint if tokenizer is not None else "",
    } | identity_of(options, origin)
    steps_done(before, identity)
    cost = model_cost(config)
    if origin is not None:
        say(f"begins with: {origin.path}")
    for part in parts:
        say(f"task: {part.spec}, {part.description}")
    rows = ", ".join(one.description for one in held)
    when = f"are read after every {options.held_out.every:,} steps and at the end"
    say(f"held out: {f'{rows} {when}' if held else 'nothing'}")
    say(f"training: {training.steps} steps of {training.batch_size} rows" + (", in turns" if len(parts) > 1 else ""))
    say(
        f"model: {' '.join(config.blocks)}; {cost.parameters:,} parameters; state {decimal(cost.state_bytes)}"
        + (f" and {cost.state_bytes_per_token:,} bytes a token" if cost.state_bytes_per_token else "")
    )
    if options.plan:
        return 0
    model = build_model(config, options, origin)
    if before is None and first_process():
        keep_options(options)
    batch_of, loss_of = take_turns([part.curriculum for part in parts])
    result = train(
        model, batch_of, loss_of, training, options.out, resume=options.resume, extra=identity,
        held_out=[one.rows for one in held],
    )  # fmt: skip
    model.eval()
    if first_process():
        model.save(options.out, tokenizer)
        write_atomically(options.out / TASK_FILE, json.dumps({"tasks": list(options.task)}) + "\n")
    if result.loss is not None:
        of = options.task[(result.step - 1) % len(parts)]
        say(f"step {result.step}: {result.loss:.4f} {_unit(of)} ({of})")
    if result.held_out is not None:
        tell_held_out(result.held_out)
    asked = next((spec.partition(":")[0] for spec in options.task if spec != TEXT), "positions")
    say(f"model in {options.out / MODEL_FILE}; evaluate it: mnemonist eval {asked} --model {options.out}")
    return INTERRUPTED if result.interrupted else 0


def _config(options: Train, parts: Sequence[Part], tokenizer: Tokenizer | None, origin: Origin | None) -> ModelConfig:
    """The sizes of the model to begin with, or those that were chosen.

    Raises:
        UserError: the model to begin with has another vocabulary than the task.
    """
    vocabulary = parts[0].vocab_size
    if origin is None:
        config = options.model.replace(vocab_size=vocabulary)
        return config if options.parameters is None else matched(config, options.parameters)
    has = origin.model.config.vocab_size
    if tokenizer is None and has != vocabulary:
        raise UserError(
            f"{origin.path} has {has:,} tokens but {parts[0].spec} is made of {vocabulary:,}: begin with a model that "
            "was trained for it, or change the vocabulary of the task if it has one"
        )
    return origin.model.config


def _parts(options: Train, tokenizer: Tokenizer | None, before: Mapping[str, Any] | None) -> list[Part]:
    """What takes turns, and what is held out of each: nothing in a run of the time when problems were not.

    Args:
        options: of the run.
        tokenizer: of parts that are text.
        before: the identity of the run that goes on, if one does.
    """
    parts: dict[str, Part] = {}
    holds = options.held_out.share != 0 and (before is None or bool(before.get("held_out")))
    kinds = [spec.partition(":")[0] for spec in dict.fromkeys(options.task)]
    for spec in dict.fromkeys(options.task):
        if spec == TEXT:
            parts[spec] = _text_part(options, tokenizer or ByteTokenizer(), before)
        else:
            name = spec.partition(":")[0]
            parts[spec] = _problem_part(options, spec, tokenizer, name if kinds.count(name) == 1 else spec, holds)
    return [parts[spec] for spec in options.task]


def _text_part(options: Train, tokenizer: Tokenizer, before: Mapping[str, Any] | None) -> Part:
    documents = find_documents(options.data, options.text_field)
    text = divide_text(documents, options, tokenizer, before)
    held, rows = None, text.asked(options.training)
    if text.held_out is not None and rows is not None:
        count = rows_held_out(text.held_out.rows, options.training, options.held_out)
        rows = replace(rows, loss_of=next_token_loss)
        held = Held(rows, text.held_out.identity(options.training), f"{count:,} rows of {TEXT}")
    return Part(
        TEXT,
        (batches_of_rows(text.rows, options.training), next_token_loss),
        tokenizer.vocab_size,
        text.rows.row_length,
        fingerprint(text.documents),
        f"{sum(len(d.text) for d in text.documents):,} bytes of {options.data}",
        held,
    )


def _problem_part(options: Train, spec: str, tokenizer: Tokenizer | None, name: str, holds: bool) -> Part:
    task = build_task(spec, tokenizer)
    if isinstance(task, Regression):
        lessons, longest = 1, 2 * task.length
    else:
        lessons = len(task.lessons)
        longest = max(draw(task, lesson, 1).tokens.shape[1] for lesson in task.lessons)
    made_of = hashlib.sha256(json.dumps([task.name, fields_of(task)]).encode()).hexdigest()[:16]
    described = f"{lessons} lessons of up to {longest:,} tokens"
    held = None
    if holds:
        rows = held_out_problems(task, options.training, options.held_out, name)
        count = rows.batches * options.training.batch_size // options.training.accumulation
        held = Held(rows, f"{count} {options.held_out.seed}", f"{count:,} problems of {spec}")
    return Part(spec, curriculum(task, options.training), task.vocab_size, longest, made_of, described, held)


def _unit(spec: str) -> str:
    """Of a task's loss."""
    return "squared error over dimension" if spec.startswith("regression") else "nats a token that was asked for"


def tell_held_out(found: StepMetrics) -> None:
    """Say what was read last of what is not trained on."""
    if found.held_out_bits_per_byte is not None:
        say(f"step {found.step}: {found.held_out_bits_per_byte:.3f} bits per byte on text it was not trained on")
    for name, one in (found.held_out_problems or {}).items():
        right = f", {one['accuracy']:.3f} right" if "accuracy" in one else ""
        say(f"step {found.step}: {one['loss']:.4f} {_unit(name)}{right} on problems it was not trained on ({name})")


def read_tasks(path: Path) -> list[str]:
    """The tasks that a file of a run's folder names.

    Raises:
        UserError: it is damaged.
    """
    try:
        return [str(spec) for spec in json.loads(path.read_text(encoding="utf-8"))["tasks"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not say what the model was trained on ({error}); delete it") from error
