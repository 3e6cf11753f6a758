"""``mnemonist train --task``: learning to solve the problems of a task, as `mnemonist eval` asks them."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

from rich.filesize import decimal

from mnemonist.cli import INTERRUPTED
from mnemonist.cli.options import Train
from mnemonist.cli.train import MODEL_FILE, build_model, choose_tokenizer, first_process, say, steps_done
from mnemonist.errors import UserError
from mnemonist.evals.lessons import curriculum
from mnemonist.evals.problems import draw
from mnemonist.evals.regression import Regression
from mnemonist.evals.suites import build_task, fields_of, reads_text
from mnemonist.files import write_atomically
from mnemonist.models.cost import matched, model_cost
from mnemonist.training import train

TASK_FILE = "task.json"


def run_train_task(options: Train, spec: str) -> int:
    """Say what it will cost, train, save.

    Raises:
        UserError: there is no such task, or an option does not go with one.
        ValueError: a change to the task does not fit.
    """
    if options.training.truncation is not None:
        raise UserError("truncation is for texts; the problems of a task are read whole: leave it out")
    if options.tensorboard:
        raise UserError("tensorboard is for texts; of a task, metrics.jsonl in the folder has the same figures")
    reads = reads_text(spec)
    if options.tokenizer is not None and not reads:
        raise UserError(f"the task {spec} is not made of text; leave out --tokenizer")
    tokenizer = choose_tokenizer(options.tokenizer) if reads else None
    task = build_task(spec, tokenizer)
    config = options.model.replace(vocab_size=task.vocab_size)
    if options.parameters is not None:
        config = matched(config, options.parameters)
    if isinstance(task, Regression):
        lessons, longest = 1, 2 * task.length
    else:
        lessons = len(task.lessons)
        longest = max(draw(task, lesson, 1).tokens.shape[1] for lesson in task.lessons)
    training = replace(options.training, row_length=longest)  # which is what speed is counted in
    identity = {
        "model": config.to_json(),
        "data": hashlib.sha256(json.dumps([task.name, fields_of(task)]).encode()).hexdigest()[:16],
        "tokenizer": tokenizer.fingerprint if tokenizer is not None else "",
    }
    if options.resume:
        steps_done(options.out, identity)
    cost = model_cost(config)
    say(f"task: {spec}, {lessons} lessons of up to {longest:,} tokens")
    say(f"training: {training.steps} steps of {training.batch_size} problems")
    say(
        f"model: {' '.join(config.blocks)}; {cost.parameters:,} parameters; state {decimal(cost.state_bytes)}"
        + (f" and {cost.state_bytes_per_token:,} bytes a token" if cost.state_bytes_per_token else "")
    )
    if options.plan:
        return 0
    model = build_model(config, training)
    batch_of, loss_of = curriculum(task, training)
    result = train(model, batch_of, loss_of, training, options.out, resume=options.resume, extra=identity)
    model.eval()
    if first_process():
        model.save(options.out, tokenizer)
        write_atomically(options.out / TASK_FILE, json.dumps({"task": spec}) + "\n")
    if result.loss is not None and isinstance(task, Regression):
        say(f"step {result.step}: {result.loss:.4f} squared error over dimension")
    elif result.loss is not None:
        say(f"step {result.step}: {result.loss / math.log(2):.3f} bits for each token that was asked for")
    say(f"model in {options.out / MODEL_FILE}; evaluate it: mnemonist eval {task.name} --model {options.out}")
    return INTERRUPTED if result.interrupted else 0


def read_task(path: Path) -> str:
    """The task that a file of a run's folder names.

    Raises:
        UserError: it is damaged.
    """
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))["task"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not say what the model was trained on ({error}); delete it") from error
    return str(spec)
