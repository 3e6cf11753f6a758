"""``mnemonist train --task``: learning to solve the problems that `mnemonist eval` asks, beside text if wanted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.filesize import decimal

from mnemonist.cli import INTERRUPTED
from mnemonist.cli.begun import keep_options
from mnemonist.cli.options import Train
from mnemonist.cli.process import first_process, say
from mnemonist.cli.text import find_documents, prepare_text
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
from mnemonist.data import Tokenizer, fingerprint
from mnemonist.errors import UserError
from mnemonist.evals.lessons import Curriculum, curriculum, take_turns
from mnemonist.evals.problems import draw
from mnemonist.evals.regression import Regression
from mnemonist.evals.suites import build_task, fields_of, reads_text
from mnemonist.files import write_atomically
from mnemonist.models.configuration import ModelConfig
from mnemonist.models.cost import matched, model_cost
from mnemonist.training import HeldOutConfig, train
from mnemonist.training.language import batches_of_rows, next_token_loss

TASK_FILE = "tasks.json"
TEXT = "text"
"""The part of what is learned that is text, as `--data` names it."""


@dataclass(frozen=True)
class Part:
    """What takes its turn in training: a task, or text."""

    spec: str
    curriculum: Curriculum
    vocab_size: int
    longest: int
    """Tokens of its longest row."""
    fingerprint: str
    description: str


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
    if options.held_out != HeldOutConfig():
        raise UserError(
            "text is held out from texts alone; mnemonist eval asks problems that a model was not trained on: leave "
            "out --held-out"
        )
    reads = [spec == TEXT or reads_text(spec) for spec in options.task]
    if options.tokenizer is not None and not all(reads):
        raise UserError(f"{options.task[reads.index(False)]} is not made of text; leave out --tokenizer")
    if len(options.task) > 1 and not all(reads):
        raise UserError(f"{options.task[reads.index(False)]} is not made of text, so it cannot take turns with others")
    before = run_before(options, unknown=("row_length",))
    origin = find_origin(options)
    tokenizer = tokenizer_of(options, origin) if any(reads) else None
    parts = [_part(options, spec, tokenizer) for spec in options.task]
    config = _config(options, parts, tokenizer, origin)
    training = replace(options.training, row_length=max(part.longest for part in parts))
    identity = {
        "model": config.to_json(),
        "data": " ".join(part.fingerprint for part in parts),
        "tokenizer": tokenizer.fingerprint if tokenizer is not None else "",
    } | identity_of(options, origin)
    steps_done(before, identity)
    cost = model_cost(config)
    if origin is not None:
        say(f"begins with: {origin.path}")
    for part in parts:
        say(f"task: {part.spec}, {part.description}")
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
    result = train(model, batch_of, loss_of, training, options.out, resume=options.resume, extra=identity)
    model.eval()
    if first_process():
        model.save(options.out, tokenizer)
        write_atomically(options.out / TASK_FILE, json.dumps({"tasks": list(options.task)}) + "\n")
    if result.loss is not None:
        of = options.task[(result.step - 1) % len(parts)]
        unit = "squared error over dimension" if of.startswith("regression") else "nats a token that was asked for"
        say(f"step {result.step}: {result.loss:.4f} {unit} ({of})")
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


def _part(options: Train, spec: str, tokenizer: Tokenizer | None) -> Part:
    if spec == TEXT:
        documents = find_documents(options.data, options.text_field)
        text = prepare_text(documents, options.training, tokenizer)
        described = f"{sum(len(d.text) for d in documents):,} bytes of {options.data}"
        curriculum_of_text = batches_of_rows(text.rows, options.training), next_token_loss
        vocabulary = text.tokenizer.vocab_size
        return Part(spec, curriculum_of_text, vocabulary, text.rows.row_length, fingerprint(documents), described)
    task = build_task(spec, tokenizer)
    if isinstance(task, Regression):
        lessons, longest = 1, 2 * task.length
    else:
        lessons = len(task.lessons)
        longest = max(draw(task, lesson, 1).tokens.shape[1] for lesson in task.lessons)
    made_of = hashlib.sha256(json.dumps([task.name, fields_of(task)]).encode()).hexdigest()[:16]
    described = f"{lessons} lessons of up to {longest:,} tokens"
    return Part(spec, curriculum(task, options.training), task.vocab_size, longest, made_of, described)


def read_tasks(path: Path) -> list[str]:
    """The tasks that a file of a run's folder names.

    Raises:
        UserError: it is damaged.
    """
    try:
        return [str(spec) for spec in json.loads(path.read_text(encoding="utf-8"))["tasks"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not say what the model was trained on ({error}); delete it") from error
