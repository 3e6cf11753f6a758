"""``mnemonist train``, and the training that other commands share."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mnemonist.cli.options import Train
from mnemonist.data import Document, fingerprint, read_path, shakespeare, standard_library
from mnemonist.errors import UserError
from mnemonist.models.configuration import ModelConfig
from mnemonist.models.modeling import LanguageModel
from mnemonist.training import TrainingConfig, TrainingResult, load_checkpoint, train
from mnemonist.training.checkpoint import has_checkpoint
from mnemonist.training.language import next_token_loss, packed_batches
from mnemonist.training.loop import CHECKPOINT

MODEL_FILE = "model.safetensors"


@dataclass(frozen=True)
class Trained:
    """A model and how its training ended."""

    model: LanguageModel
    result: TrainingResult


def run_train(options: Train) -> int:
    """Train, save, and say what came of it."""
    prepare_torch()
    documents = find_documents(options.data)
    say(f"{sum(len(d.text) for d in documents):,} bytes in {len(documents)} documents of {options.data}")
    trained = train_model(options.model, options.training, documents, options.out, resume=options.resume)
    loss = trained.result.loss
    if loss is not None:
        say(f"step {trained.result.step}: {loss / 0.6931471805599453:.3f} bits per byte on what it was trained on")
    say(f"model in {options.out / MODEL_FILE}; read with it: mnemonist read PATH --model {options.out}")
    return 130 if trained.result.interrupted else 0


def train_model(
    config: ModelConfig,
    training: TrainingConfig,
    documents: Sequence[Document],
    folder: Path,
    *,
    resume: bool,
    name: str = "model",
) -> Trained:
    """Build a model from its seed, train it in ``folder``, and write it there as one file, also when interrupted.

    Raises:
        UserError: see `mnemonist.training.train`; or the run to resume had another model or other data.
    """
    torch.manual_seed(training.seed)
    model = LanguageModel(config)
    say(f"{name}: {model.parameter_count:,} parameters, blocks {' '.join(config.blocks)}, {training.steps} steps of "
        f"{training.batch_size} x {training.row_length} bytes")  # fmt: skip
    about = {"model": config.to_json(), "data": fingerprint(documents)}
    if resume and has_checkpoint(folder / CHECKPOINT):
        _require_same_run(load_checkpoint(folder / CHECKPOINT).extra, about, folder)
    result = train(
        model, packed_batches(documents, training), next_token_loss, training, folder, resume=resume, extra=about
    )
    model.eval()
    model.save(folder / MODEL_FILE)
    return Trained(model, result)


def load_model(path: Path) -> LanguageModel:
    """The model in a run's folder, or in a file.

    Raises:
        UserError: there is none.
    """
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"There is no model at {file}; train one with `mnemonist train` or name one with --model.")
    return LanguageModel.load(file).eval()


def find_documents(data: str) -> Sequence[Document]:
    """The corpus a user names: stdlib, shakespeare, or a path.

    Raises:
        UserError: the path is missing, empty or not text.
    """
    if data == "stdlib":
        return standard_library("train")
    if data == "shakespeare":
        return shakespeare()
    corpus = read_path(Path(data))
    if corpus.skipped:
        say(f"left out {len(corpus.skipped)} files that are not text, such as {corpus.skipped[0]}")
    return corpus.documents


def prepare_torch() -> None:
    """Before the first tensor: round denormals to zero in every thread that torch will start.

    Products of many decays sink into denormals, which CPUs compute several times slower.
    """
    torch.set_flush_denormal(True)


def say(sentence: str) -> None:
    """Tell the person at the terminal; stdout stays free for results."""
    print(sentence, file=sys.stderr, flush=True)


def _require_same_run(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    for part, what in (("model", "another model"), ("data", "other data")):
        if before.get(part) != now[part]:
            raise UserError(f"The run in {folder} had {what}; resume it with the same, or take another folder.")
