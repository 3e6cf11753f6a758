"""``mnemonist train``, and the training that other commands share."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
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
    Split,
    Tokenizer,
    find_tokenizer,
    fingerprint,
    hold_out,
    read_corpus,
    require_vocabulary,
    shakespeare,
    standard_library,
)
from mnemonist.errors import RunFinished, UserError, nearest
from mnemonist.files import FileError
from mnemonist.models.configuration import ModelConfig, find_preset
from mnemonist.models.cost import matched
from mnemonist.models.modeling import LanguageModel
from mnemonist.models.shipped import find_model
from mnemonist.training import HeldOut, HeldOutConfig, TrainingConfig, TrainingResult, train
from mnemonist.training.language import (
    batches_of_rows,
    held_out_batches,
    rows_held_out,
    truncated_next_token_loss,
)
from mnemonist.training.loop import require_place
from mnemonist.training.metrics import StepMetrics
from mnemonist.training.recomputation import recompute
from mnemonist.training.tensorboard import tensorboard_log

MODEL_FILE = "model.safetensors"
CORPORA = ("stdlib", "shakespeare")
SHARE = 0.05
"""How much of a user's own text is held out, where nothing is said about it."""


@dataclass(frozen=True)
class HeldOutText:
    """What a run does not train on, and reads now and then."""

    documents: Sequence[Document]
    rows: PackedRows
    config: HeldOutConfig

    def identity(self, training: TrainingConfig) -> str:
        """Equal for the same rows."""
        return f"{fingerprint(self.documents)} {rows_held_out(self.rows, training, self.config)} {self.rows.seed}"

    def describe(self, training: TrainingConfig) -> str:
        """For people."""
        where = f"{len(self.documents):,} documents" if len(self.documents) > 1 else self.documents[0].name
        return (
            f"{sum(len(d.text) for d in self.documents):,} bytes of {where}; "
            f"{rows_held_out(self.rows, training, self.config):,} rows of {training.row_length} are read after every "
            f"{self.config.every:,} steps and at the end"
        )


@dataclass(frozen=True)
class TrainingText:
    """What a run reads."""

    documents: Sequence[Document]
    tokenizer: Tokenizer
    rows: PackedRows
    held_out: HeldOutText | None = None

    def identity(self, config: ModelConfig, training: TrainingConfig) -> dict[str, str]:
        """What a run that is resumed must have in common with the run that began."""
        return {
            "model": config.to_json(),
            "held_out": "" if self.held_out is None else self.held_out.identity(training),
            "data": fingerprint(self.documents),
            "tokenizer": self.tokenizer.fingerprint,
        }

    def asked(self, training: TrainingConfig) -> HeldOut | None:
        """What `mnemonist.training.train` is to read now and then."""
        if self.held_out is None:
            return None
        return held_out_batches(self.held_out.rows, training, self.held_out.config)


def run_train(options: Train) -> int:
    """Say what it will cost, train, save, and say what came of it."""
    prepare_torch()
    if options.task:
        from mnemonist.cli.task import run_train_tasks  # which needs what is in this file

        return run_train_tasks(options)
    before = run_before(options)
    origin = find_origin(options)
    tokenizer = choose_tokenizer(options.tokenizer, origin)
    config = choose_config(options, tokenizer, origin)

    def tell(lines: Sequence[str]) -> None:  # at once: what comes next takes longer
        if not options.plan:
            say("\n".join(lines))
        elif first_process():
            print("\n".join(lines), flush=True)

    if origin is not None:
        tell([f"begins with: {origin.path}"])
    tell(describe_model(config, find_preset(options.preset) if origin is None else config, tokenizer))
    documents = find_documents(options.data, options.text_field)
    say(f"{sum(len(d.text) for d in documents):,} bytes in {len(documents):,} documents of {options.data}")
    text = divide_text(documents, options, tokenizer, before)
    identity = text.identity(config, options.training) | identity_of(origin)
    done = steps_done(before, identity)
    tell(describe_reading(options.training, text.rows))
    tell([f"held out: {text.held_out.describe(options.training) if text.held_out else 'nothing'}"])
    model = build_model(config, options, origin)
    measured = measure(model, batches_of_rows(text.rows, options.training), options.training)
    tell(describe_time(options.training, measured, done, text.asked(options.training)))
    if options.plan:
        return 0
    if done == options.training.steps:
        say(f"the run is finished; to train its model further, begin another one: --from {options.out} --out ELSEWHERE")
    with ExitStack() as stack:
        log = None
        if options.tensorboard and first_process():
            folder = options.out / "tensorboard"
            log = stack.enter_context(tensorboard_log(folder, done, options.training.log_every))
        result = train_model(model, text, options.training, options.out, identity, resume=options.resume, on_step=log)
    loss = result.loss
    if loss is not None:
        bits = loss / math.log(2) / text.rows.bytes_per_token
        say(f"step {result.step}: {bits:.3f} bits per byte on what it was trained on")
    asked = result.held_out
    if asked is not None:
        say(f"step {asked.step}: {asked.held_out_bits_per_byte:.3f} bits per byte on text it was not trained on")
    say(f"model in {options.out / MODEL_FILE}; read with it: mnemonist read PATH --model {options.out}")
    return 130 if result.interrupted else 0


@dataclass(frozen=True)
class Origin:
    """The model that a run begins with."""

    path: Path
    """As the user named it."""
    model: LanguageModel
    fingerprint: str
    """Of the model as it was."""


def find_origin(options: Train) -> Origin | None:
    """The model that `--from` names, or None if a run begins with new weights.

    Raises:
        UserError: there is none, or it lives in the folder of the run.
    """
    if options.origin is None:
        return None
    place = find_model(options.origin)
    if options.out.resolve() in (place.resolve(), place.parent.resolve()):
        raise UserError(f"{options.origin} is in the folder of the run that is to begin with it; take another --out")
    model = load_model(place).float()  # transformers may have saved halves
    return Origin(options.origin, model, model.fingerprint())


def identity_of(origin: Origin | None) -> dict[str, str]:
    """What a run that is resumed must have begun with."""
    return {"origin": "" if origin is None else origin.fingerprint}


def choose_config(options: Train, tokenizer: Tokenizer, origin: Origin | None) -> ModelConfig:
    """The sizes of the model to begin with, or those that were chosen.

    Raises:
        UserError: see `with_vocabulary`.
        ValueError: no model has so many parameters.
    """
    if origin is not None:
        return origin.model.config
    config = with_vocabulary(options.model, options.preset, tokenizer)
    return config if options.parameters is None else matched(config, options.parameters)


def build_model(config: ModelConfig, options: Train, origin: Origin | None = None) -> LanguageModel:
    """The model to begin with, or a new one, its weights drawn from the run's seed."""
    torch.manual_seed(options.training.seed)
    model = LanguageModel(config) if origin is None else origin.model
    if options.activation_checkpointing:
        recompute(model)
    return model


def train_model(
    model: LanguageModel,
    text: TrainingText,
    training: TrainingConfig,
    folder: Path,
    identity: Mapping[str, str],
    *,
    resume: bool,
    on_step: Callable[[StepMetrics], None] | None = None,
) -> TrainingResult:
    """Train a model in ``folder``, and write it there with its tokenizer, also when interrupted.

    Raises:
        UserError: see `mnemonist.training.train`.
    """
    batch_of = batches_of_rows(text.rows, training)
    loss_of = truncated_next_token_loss(training.truncation)
    held_out = text.asked(training)
    result = train(
        model, batch_of, loss_of, training, folder, resume=resume, extra=identity, on_step=on_step, held_out=held_out
    )
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
    try:
        checkpoint = require_place(options.out, options.training, options.resume, unknown)
    except RunFinished as error:
        raise UserError(f"{error}, which may begin with the model of this run: --from {options.out}") from error
    return None if checkpoint is None else RunBefore(options.out, checkpoint.step, checkpoint.extra)


def steps_done(run: RunBefore | None, identity: Mapping[str, str]) -> int:
    """Steps that a run has taken; 0 if there is none.

    Raises:
        UserError: it began with another model, had another one or another tokenizer, or other data, held out or
            trained on.
    """
    if run is None:
        return 0
    before = {"tokenizer": ByteTokenizer.fingerprint, "held_out": "", "origin": "", **run.identity}
    differing = {
        "origin": "another model to begin with (--from)",
        "model": "another model",
        "held_out": "other text held out",
        "data": "other data",
        "tokenizer": "another tokenizer",
    }
    for part, what in differing.items():
        if before.get(part) != identity.get(part, ""):
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


def load_tokenizer(path: Path, model: LanguageModel) -> Tokenizer:
    """The tokenizer beside a model that `load_model` found at this path.

    Raises:
        UserError: there is none that fits it.
    """
    path = find_model(path)
    return find_tokenizer(path if path.is_dir() else path.parent, model.config.vocab_size)


def find_documents(data: str, text_field: str = "text", split: Split = "train") -> Sequence[Document]:
    """The corpus a user names: stdlib, of which this is a split, shakespeare, or a path.

    Raises:
        UserError: the path is missing, empty or not text.
    """
    if data == "stdlib":
        return standard_library(split)
    if data == "shakespeare":
        return shakespeare()
    path = Path(data)
    if not os.path.lexists(path) and nearest(data, CORPORA):
        raise FileError(f"there is no file {data}{nearest(data, CORPORA)}")
    corpus = read_corpus(path, text_field)
    if corpus.skipped:
        say(f"left out {len(corpus.skipped):,} files or records without text, such as {corpus.skipped[0]}")
    return corpus.documents


def choose_tokenizer(folder: Path | None, origin: Origin | None = None) -> Tokenizer:
    """The tokenizer of the model to begin with, of a folder, or bytes; what a user should know about it is said.

    Raises:
        UserError: see `mnemonist.data.find_tokenizer`.
    """
    if origin is not None:
        tokenizer = load_tokenizer(origin.path, origin.model)
    else:
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


def divide_text(
    documents: Sequence[Document], options: Train, tokenizer: Tokenizer, before: RunBefore | None
) -> TrainingText:
    """What a run trains on and, apart from it, what it holds out; all of the documents where these are too few to be
    divided and nobody has asked for it.

    Raises:
        UserError: what is held out or what is left does not fill one row, there is no such text, or it is trained on.
    """
    training, config = options.training, options.held_out
    if before is not None and "held_out" not in before.identity and not config.given:
        say("the run began without held-out text, and goes on without it")
        return prepare_text(documents, training, tokenizer)
    if config.share == 0:
        return prepare_text(documents, training, tokenizer)
    learned, held = _divided(documents, options)
    try:
        rows = _packed(held, training.row_length, config.seed, tokenizer, "the text that is held out")
        text = prepare_text(learned, training, tokenizer)
    except UserError as error:
        if config.given:
            raise
        say(f"nothing is held out: {error}")
        return prepare_text(documents, training, tokenizer)
    return replace(text, held_out=HeldOutText(held, rows, config))


def _divided(documents: Sequence[Document], options: Train) -> tuple[Sequence[Document], Sequence[Document]]:
    config = options.held_out
    if config.data is not None:
        held = find_documents(config.data, options.text_field, "heldout")
        return documents, not_trained_on(held, documents, config.data)
    if config.share is None and options.data == "stdlib":
        return documents, standard_library("heldout")
    return hold_out(documents, SHARE if config.share is None else config.share, config.seed)


def not_trained_on(held: Sequence[Document], learned: Sequence[Document], name: str) -> Sequence[Document]:
    """The documents whose texts are not among those that are trained on; what is left out is said.

    Raises:
        UserError: all of them are trained on.
    """
    texts = {document.text for document in learned}
    known = [document for document in held if document.text in texts]
    if len(known) == len(held):
        raise UserError(f"all of {name} is trained on, so it cannot be held out; name other text with --held-out.data")
    if known:
        say(f"left out {len(known):,} documents of {name} that are trained on, such as {known[0].name}")
    return [document for document in held if document.text not in texts]


def prepare_text(
    documents: Sequence[Document], training: TrainingConfig, tokenizer: Tokenizer | None = None
) -> TrainingText:
    """Documents as packed rows of tokens; without a tokenizer, of bytes.

    Raises:
        UserError: they do not fill one row.
    """
    tokenizer = tokenizer or ByteTokenizer()
    rows = _packed(documents, training.row_length, training.seed, tokenizer, "the corpus")
    return TrainingText(documents, tokenizer, rows)


def _packed(documents: Sequence[Document], length: int, seed: int, tokenizer: Tokenizer, name: str) -> PackedRows:
    with Progress(
        TextColumn("tokens"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty(),
    ) as bar:  # fmt: skip
        task = bar.add_task("", total=sum(len(document.text) for document in documents))
        return PackedRows(documents, length, seed, tokenizer, lambda done: bar.update(task, completed=done), name)


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
