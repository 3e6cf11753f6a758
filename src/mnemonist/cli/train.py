"""``mnemonist train``, and the training that other commands share."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from mnemonist.cli.options import Train
from mnemonist.cli.plan import describe_model, describe_reading, describe_time, measure
from mnemonist.data import (
    ByteTokenizer,
    Document,
    PackedRows,
    Tokenizer,
    find_tokenizer,
    fingerprint,
    read_corpus,
    require_vocabulary,
    shakespeare,
    standard_library,
)
from mnemonist.errors import UserError, nearest
from mnemonist.files import FileError
from mnemonist.models.configuration import ModelConfig, find_preset
from mnemonist.models.cost import matched
from mnemonist.models.modeling import LanguageModel
from mnemonist.models.shipped import find_model
from mnemonist.training import TrainingConfig, TrainingResult, train
from mnemonist.training.language import batches_of_rows, truncated_next_token_loss
from mnemonist.training.loop import require_place
from mnemonist.training.metrics import StepMetrics
from mnemonist.training.recomputation import recompute
from mnemonist.training.tensorboard import tensorboard_log

MODEL_FILE = "model.safetensors"
CORPORA = ("stdlib", "shakespeare")


@dataclass(frozen=True)
class TrainingText:
    """What a run reads."""

    documents: Sequence[Document]
    tokenizer: Tokenizer
    rows: PackedRows

    def identity(self, config: ModelConfig) -> dict[str, str]:
        """What a run that is resumed must have in common with the run that began."""
        return {
            "model": config.to_json(),
            "data": fingerprint(self.documents),
            "tokenizer": self.tokenizer.fingerprint,
        }


def run_train(options: Train) -> int:
    """Say what it will cost, train, save, and say what came of it."""
    prepare_torch()
    if options.task:
        from mnemonist.cli.task import run_train_tasks  # which needs what is in this file

        return run_train_tasks(options)
    before = run_before(options)
    tokenizer = choose_tokenizer(options.tokenizer)
    config = with_vocabulary(options.model, options.preset, tokenizer)
    if options.parameters is not None:
        config = matched(config, options.parameters)

    def tell(lines: Sequence[str]) -> None:  # at once: what comes next takes longer
        if not options.plan:
            say("\n".join(lines))
        elif first_process():
            print("\n".join(lines), flush=True)

    tell(describe_model(config, find_preset(options.preset), tokenizer))
    documents = find_documents(options.data, options.text_field)
    say(f"{sum(len(d.text) for d in documents):,} bytes in {len(documents):,} documents of {options.data}")
    text = prepare_text(documents, options.training, tokenizer)
    done = steps_done(before, text.identity(config))
    tell(describe_reading(options.training, text.rows))
    model = build_model(config, options)
    measured = measure(model, batches_of_rows(text.rows, options.training), options.training)
    tell(describe_time(options.training, measured, done))
    if options.plan:
        return 0
    with ExitStack() as stack:
        log = None
        if options.tensorboard and first_process():
            folder = options.out / "tensorboard"
            log = stack.enter_context(tensorboard_log(folder, done, options.training.log_every))
        result = train_model(model, text, options.training, options.out, resume=options.resume, on_step=log)
    loss = result.loss
    if loss is not None:
        bits = loss / math.log(2) / text.rows.bytes_per_token
        say(f"step {result.step}: {bits:.3f} bits per byte on what it was trained on")
    say(f"model in {options.out / MODEL_FILE}; read with it: mnemonist read PATH --model {options.out}")
    return 130 if result.interrupted else 0


def build_model(config: ModelConfig, options: Train) -> LanguageModel:
    """A new model, its weights drawn from the run's seed."""
    torch.manual_seed(options.training.seed)
    model = LanguageModel(config)
    if options.activation_checkpointing:
        recompute(model)
    return model


def train_model(
    model: LanguageModel,
    text: TrainingText,
    training: TrainingConfig,
    folder: Path,
    *,
    resume: bool,
    on_step: Callable[[StepMetrics], None] | None = None,
) -> TrainingResult:
    """Train a new model in ``folder``, and write it there with its tokenizer, also when interrupted.

    Raises:
        UserError: see `mnemonist.training.train`.
    """
    batch_of = batches_of_rows(text.rows, training)
    extra = text.identity(model.config)
    loss_of = truncated_next_token_loss(training.truncation)
    result = train(model, batch_of, loss_of, training, folder, resume=resume, extra=extra, on_step=on_step)
    model.eval()
    if first_process():
        model.save(folder, text.tokenizer)
    return result


@dataclass(frozen=True)
class RunBefore:
    """A run that is to be resumed."""

    folder: Path
    step: int
    """Steps that it has taken."""
    identity: Mapping[str, Any]
    """What it learned, and from what."""


def run_before(options: Train, unknown: Collection[str] = ()) -> RunBefore | None:
    """The run that goes on, or None if one begins; now, since reading and measuring may take long.

    Raises:
        UserError: see `mnemonist.training.loop.require_place`.
    """
    if options.plan and not options.resume:  # nothing will be written
        return None
    checkpoint = require_place(options.out, options.training, options.resume, unknown)
    return None if checkpoint is None else RunBefore(options.out, checkpoint.step, checkpoint.extra)


def steps_done(run: RunBefore | None, identity: Mapping[str, str]) -> int:
    """Steps that a run has taken; 0 if there is none.

    Raises:
        UserError: it had another model, tokenizer or other data.
    """
    if run is None:
        return 0
    before = {"tokenizer": ByteTokenizer.fingerprint, **run.identity}
    for part, what in (("model", "another model"), ("data", "other data"), ("tokenizer", "another tokenizer")):
        if before.get(part) != identity[part]:
            raise UserError(f"The run in {run.folder} had {what}; resume it with the same, or take another folder.")
    return run.step


def load_model(path: Path) -> LanguageModel:
    """The model in a run's folder, in a file, or that comes with the package under this name.

    Raises:
        UserError: there is none.
    """
    path = find_model(path)
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"There is no model at {file}; train one with `mnemonist train` or name one with --model.")
    return LanguageModel.load(file).eval()


def find_documents(data: str, text_field: str = "text") -> Sequence[Document]:
    """The corpus a user names: stdlib, shakespeare, or a path.

    Raises:
        UserError: the path is missing, empty or not text.
    """
    if data == "stdlib":
        return standard_library("train")
    if data == "shakespeare":
        return shakespeare()
    path = Path(data)
    if not os.path.lexists(path) and nearest(data, CORPORA):
        raise FileError(f"there is no file {data}{nearest(data, CORPORA)}")
    corpus = read_corpus(path, text_field)
    if corpus.skipped:
        say(f"left out {len(corpus.skipped):,} files or records without text, such as {corpus.skipped[0]}")
    return corpus.documents


def choose_tokenizer(folder: Path | None) -> Tokenizer:
    """The tokenizer of a folder, or bytes; what a user should know about it is said.

    Raises:
        UserError: see `mnemonist.data.find_tokenizer`.
    """
    tokenizer = ByteTokenizer() if folder is None else find_tokenizer(folder)
    if tokenizer.bos_id == tokenizer.eos_id:
        say("the tokenizer has no mark of its own for the start of a document: its end mark stands there")
    if not tokenizer.lossless:
        say("the tokenizer tidies text up: bytes are counted after that")
    return tokenizer


def with_vocabulary(config: ModelConfig, preset: str, tokenizer: Tokenizer) -> ModelConfig:
    """The configuration with the tokenizer's vocabulary, unless another was chosen than the preset's.

    Raises:
        UserError: the one that was chosen does not fit.
    """
    if config.vocab_size == find_preset(preset).vocab_size:
        return config.replace(vocab_size=tokenizer.vocab_size)
    require_vocabulary(tokenizer, config.vocab_size)
    return config


def prepare_text(
    documents: Sequence[Document], training: TrainingConfig, tokenizer: Tokenizer | None = None
) -> TrainingText:
    """Documents as packed rows of tokens; without a tokenizer, of bytes.

    Raises:
        UserError: they do not fill one row.
    """
    tokenizer = tokenizer or ByteTokenizer()
    with Progress(
        TextColumn("tokens"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty(),
    ) as bar:  # fmt: skip
        task = bar.add_task("", total=sum(len(document.text) for document in documents))
        rows = PackedRows(
            documents, training.row_length, training.seed, tokenizer, lambda done: bar.update(task, completed=done)
        )
    return TrainingText(documents, tokenizer, rows)


def prepare_torch() -> None:
    """Before the first tensor: round denormals to zero in every thread that torch will start.

    Products of many decays sink into denormals, which CPUs compute several times slower.
    """
    torch.set_flush_denormal(True)


def say(sentence: str) -> None:
    """Tell the person at the terminal; stdout stays free for results."""
    if first_process():
        print(sentence, file=sys.stderr, flush=True)


def first_process() -> bool:
    """Whether this is the only process, or the first of those that a launcher has started."""
    return os.environ.get("RANK", "0") == "0"
