"""``mnemonist train``: where a run begins or goes on, and the models that it leaves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mnemonist.cli.begun import keep_options
from mnemonist.cli.fit import (
    Fit,
    Teacher,
    describe_fit,
    fit_to_teacher,
    fit_to_text,
    mixers_to_match,
    require_teachable,
)
from mnemonist.cli.options import Train
from mnemonist.cli.plan import describe_model, describe_reading, describe_time, measure
from mnemonist.cli.process import first_process, prepare_torch, say
from mnemonist.cli.text import TrainingText, choose_tokenizer, divide_text, find_documents
from mnemonist.data import ByteTokenizer, Tokenizer, find_tokenizer, require_vocabulary
from mnemonist.errors import RunFinished, UserError
from mnemonist.models.adoption import hold_all_but_memories
from mnemonist.models.configuration import ModelConfig, find_preset
from mnemonist.models.cost import matched
from mnemonist.models.folder import INDEX_FILE
from mnemonist.models.modeling import LanguageModel
from mnemonist.models.shipped import find_model, folder_of
from mnemonist.training import TrainingConfig, TrainingResult, train
from mnemonist.training.language import batches_of_rows
from mnemonist.training.loop import require_place
from mnemonist.training.metrics import StepMetrics
from mnemonist.training.recomputation import recompute
from mnemonist.training.tensorboard import tensorboard_log

MODEL_FILE = "model.safetensors"


def run_train(options: Train) -> int:
    """Say what it will cost, train, save, and say what came of it."""
    prepare_torch()
    require_teachable(options)
    if options.task:
        from mnemonist.cli.task import run_train_tasks  # which needs what is in this file

        return run_train_tasks(options)
    before = run_before(options)
    origin = find_origin(options)
    tokenizer = tokenizer_of(options, origin)
    config = choose_config(options, tokenizer, origin)
    teacher = find_teacher(options, config, tokenizer, origin)

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
    text = divide_text(documents, options, tokenizer, None if before is None else before.identity)
    identity = text.identity(config, options.training) | identity_of(options, origin, teacher)
    done = steps_done(before, identity)
    tell(describe_reading(options.training, text.rows))
    tell([f"held out: {text.held_out.describe(options.training) if text.held_out else 'nothing'}"])
    model = build_model(config, options, origin)
    if teacher is None:
        fit = fit_to_text(model, options.training)
    else:
        fit = fit_to_teacher(model, teacher, text, options.training)
        tell([describe_fit(fit, teacher, options.training.row_length)])
    measured = measure(fit, batches_of_rows(text.rows, options.training), options.training)
    tell(describe_time(options.training, measured, fit, done, text.asked(options.training)))
    if options.plan:
        return 0
    if done == options.training.steps:
        say(f"the run is finished; to train its model further, begin another one: --from {options.out} --out ELSEWHERE")
    with ExitStack() as stack:
        log = None
        if options.tensorboard and first_process():
            folder = options.out / "tensorboard"
            log = stack.enter_context(tensorboard_log(folder, done, options.training.log_every))
        if before is None and first_process():
            keep_options(options)
        result = train_model(
            model, fit, text, options.training, options.out, identity, resume=options.resume, on_step=log
        )
    if result.loss is not None:
        told = fit.told(result.loss, text.rows.bytes_per_token)
        say(f"step {result.step}: {told} on what it was trained on")
    if result.held_out is not None:
        say(f"step {result.held_out.step}: {fit.told_held_out(result.held_out)} on text it was not trained on")
    say(f"model in {options.out / MODEL_FILE}; read with it: mnemonist read PATH --model {options.out}")
    return 130 if result.interrupted else 0


@dataclass(frozen=True)
class Origin:
    """The model that a run begins with."""

    path: Path
    """As the user named it."""
    folder: Path
    """Where it is, and its tokenizer too."""
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
    folder = folder_of(options.origin)
    if options.out.resolve() == folder.resolve():
        raise UserError(f"{options.origin} is in the folder of the run that is to begin with it; take another --out")
    model = load_model(options.origin).float()  # transformers may have saved halves
    return Origin(options.origin, folder, model, model.fingerprint())


def find_teacher(options: Train, config: ModelConfig, tokenizer: Tokenizer, origin: Origin | None) -> Teacher | None:
    """The model that `--teacher` names, or None if a run learns from the text alone.

    Raises:
        UserError: there is none; it lives in the folder of the run; or it cannot teach a model of this configuration
            and tokenizer, or the one to begin with.
    """
    if options.teacher is None:
        return None
    if options.out.resolve() == folder_of(options.teacher).resolve():
        raise UserError(f"{options.teacher} is in the folder of the run that is to learn from it; take another --out")
    found = load_model(options.teacher).float()
    if found.config.vocab_size != config.vocab_size:
        raise UserError(
            f"{options.teacher} has {found.config.vocab_size:,} tokens, but the model that is to learn from it "
            f"{config.vocab_size:,}"
        )
    if load_tokenizer(options.teacher, found).fingerprint != tokenizer.fingerprint:
        raise UserError(f"{options.teacher} has another tokenizer than the model that is to learn from it")
    teacher = Teacher(options.teacher, found, found.fingerprint(), options.match or "logits")
    if origin is not None and teacher.fingerprint == origin.fingerprint:
        raise UserError(f"{options.teacher} is the very model that is to learn from it, so there is nothing to learn")
    if origin is not None and teacher.match == "mixers":
        mixers_to_match(origin.model, teacher)
    return teacher


def identity_of(options: Train, origin: Origin | None, teacher: Teacher | None = None) -> dict[str, str]:
    """What a run that is resumed must have begun with, what of it must learn, and from whom."""
    return {
        "origin": "" if origin is None else origin.fingerprint,
        "learn": options.learn,
        "teacher": "" if teacher is None else teacher.fingerprint,
        "match": "" if teacher is None else teacher.match,
    }


def tokenizer_of(options: Train, origin: Origin | None) -> Tokenizer:
    """The tokenizer of the model to begin with, or the one that was chosen.

    Raises:
        UserError: see `mnemonist.data.find_tokenizer`.
    """
    if origin is None:
        return choose_tokenizer(options.tokenizer)
    return choose_tokenizer(origin.folder, origin.model.config.vocab_size)


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


def with_vocabulary(config: ModelConfig, preset: str, tokenizer: Tokenizer) -> ModelConfig:
    """The configuration with the tokenizer's vocabulary, unless another was chosen than the preset's.

    Raises:
        UserError: the one that was chosen does not fit.
    """
    if config.vocab_size == find_preset(preset).vocab_size:
        return config.replace(vocab_size=tokenizer.vocab_size)
    require_vocabulary(tokenizer, config.vocab_size)
    return config


def build_model(config: ModelConfig, options: Train, origin: Origin | None = None) -> LanguageModel:
    """The model to begin with, or a new one, its weights drawn from the run's seed.

    Raises:
        UserError: memories alone are to learn, and there are none.
    """
    torch.manual_seed(options.training.seed)
    model = LanguageModel(config) if origin is None else origin.model
    if options.learn == "memories":
        if not config.has_memory:
            raise UserError("there are no memories in this model to learn; mnemonist adopt --blocks gives it some")
        say(f"learn: memories, {hold_all_but_memories(model):,} of {model.parameter_count:,} parameters")
    if options.activation_checkpointing:
        recompute(model)
    return model


def train_model(
    model: LanguageModel,
    fit: Fit,
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
    result = train(
        fit.module,
        batches_of_rows(text.rows, training),
        fit.loss_of,
        training,
        folder,
        resume=resume,
        extra=identity,
        on_step=on_step,
        held_out=fit.asked(text, training),
        unit=fit.unit,
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
        UserError: it began with another model, had another one or another tokenizer, another teacher, or other data,
            held out or trained on.
    """
    if run is None:
        return 0
    before = {
        "tokenizer": ByteTokenizer.fingerprint,
        "learn": "all",
        **dict.fromkeys(("held_out", "origin", "teacher", "match"), ""),
        **run.identity,
    }
    differing = {
        "origin": "another model to begin with (--from)",
        "learn": "other parts that learn (--learn)",
        "teacher": "another teacher (--teacher)",
        "match": "something else of its teacher to match (--match)",
        "model": "another model",
        "held_out": "something else held out",
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
    if not file.is_file() and not (path / INDEX_FILE).is_file():
        raise UserError(f"There is no model at {file}; train one with `mnemonist train` or name one with --model.")
    return LanguageModel.load(file if file.is_file() else path).eval()


def load_tokenizer(path: Path, model: LanguageModel) -> Tokenizer:
    """The tokenizer beside a model that `load_model` found at this path.

    Raises:
        UserError: there is none that fits it.
    """
    return find_tokenizer(folder_of(path), model.config.vocab_size)
