"""The text that a user names: which documents those are, in which tokens, and what of them is held out."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from mnemonist.cli.options import Train
from mnemonist.cli.process import say
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
    shakespeare,
    standard_library,
)
from mnemonist.errors import UserError, nearest
from mnemonist.files import FileError
from mnemonist.models.configuration import ModelConfig
from mnemonist.training import HeldOut, HeldOutConfig, TrainingConfig
from mnemonist.training.language import held_out_batches, rows_held_out

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


def choose_tokenizer(folder: Path | None, vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer of a folder, or bytes; what a user should know about it is said.

    Args:
        folder: None takes bytes.
        vocab_size: of the model it is for, if there is one already.

    Raises:
        UserError: see `mnemonist.data.find_tokenizer`.
    """
    tokenizer = ByteTokenizer() if folder is None else find_tokenizer(folder, vocab_size)
    if tokenizer.bos_id == tokenizer.eos_id:
        say("the tokenizer has no mark of its own for the start of a document: its end mark stands there")
    if not tokenizer.lossless:
        say("the tokenizer tidies text up: bytes are counted after that")
    return tokenizer


def divide_text(
    documents: Sequence[Document], options: Train, tokenizer: Tokenizer, before: Mapping[str, Any] | None
) -> TrainingText:
    """What a run trains on and, apart from it, what it holds out; all of the documents where these are too few to be
    divided and nobody has asked for it.

    Args:
        documents: what `data` names.
        options: of the run.
        tokenizer: of the model.
        before: the identity of the run that goes on, if one does.

    Raises:
        UserError: what is held out or what is left does not fill one row, there is no such text, or it is trained on.
    """
    training, config = options.training, options.held_out
    if before is not None and not before.get("held_out") and not config.given:
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
