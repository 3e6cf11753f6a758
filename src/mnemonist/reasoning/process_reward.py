"""Process rewards: a model that says after every step whether a right answer can still be reached.

A causal language model reads the prompt and the steps, one line each; a single linear layer on what it has made of the
last token of a line says how good the path is up to there. It is trained on `step_labels`, by cross entropy, through
the shared loop; `ProcessScorer` is what a search asks. How good it is, `step_quality` says.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnemonist.errors import UserError
from mnemonist.evaluating import evaluating
from mnemonist.reasoning.fitting import config_for, stacked_batches
from mnemonist.reasoning.formats import Format
from mnemonist.reasoning.ledger import Ledger
from mnemonist.reasoning.sampling.cache_rows import arguments
from mnemonist.reasoning.sampling.text import text_tokenizer
from mnemonist.reasoning.step_labels import Labelled
from mnemonist.reasoning.tasks.task import Problem
from mnemonist.tensors import load_tensors, save_tensors
from mnemonist.training import LossSum, TrainingConfig, TrainingResult, train

FORMAT = "mnemonist-process-reward/1"

StepBatch = dict[str, Tensor]


class ProcessRewardModel(nn.Module):
    """A causal language model with a head that gives one number for each step.

    Args:
        model: any that is called like one of transformers and can return its hidden states.
        width: channels of these; by default what its configuration says.

    Raises:
        UserError: the width is not to be found.
    """

    def __init__(self, model: nn.Module, width: int | None = None) -> None:
        super().__init__()
        config: Any = getattr(model, "config", None)
        width = width or getattr(config, "hidden_size", None)
        if width is None:
            raise UserError(f"{type(model).__name__} does not say how wide it is; give the width of its hidden states")
        self.model = model
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)  # so that it begins without an opinion, and follows from the model alone
        nn.init.zeros_(self.head.bias)
        self._spared: dict[str, int] = {}
        if "logits_to_keep" in arguments(model):
            self._spared["logits_to_keep"] = 1  # the scores of the next token are nobody's business here
        _freeze_output(model)

    def forward(self, tokens: Tensor, attention: Tensor, ends: Tensor) -> Tensor:
        """Log-odds ``[N]`` of the steps that end where ``ends [B, T]`` is True, row by row."""
        read: Any = self.model(input_ids=tokens, attention_mask=attention, output_hidden_states=True, **self._spared)
        return self.head(read.hidden_states[-1][ends].float()).squeeze(-1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all weights as one safetensors file, whole or not at all.

        Raises:
            FileError: it cannot be written.
        """
        save_tensors(path, _own_tensors(self), format=FORMAT)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Read what `save` wrote, into a model of the same kind.

        Raises:
            UserError: there is no such file, it is damaged, or of another kind of model; nothing has changed then.
        """
        saved, _ = load_tensors(path, FORMAT)
        own = _own_tensors(self)
        wrong = [name for name in own.keys() | saved.keys() if name not in own or name not in saved]
        wrong += [name for name in own.keys() & saved.keys() if own[name].shape != saved[name].shape]
        if wrong:
            raise UserError(f"{path} is of another kind of model: it differs in {min(wrong)!r}")
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(saved[name])


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Tensors of the state dict, what is tied only once."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in model.state_dict().items():
        if value.data_ptr() not in seen or not value.numel():
            seen.add(value.data_ptr())
            tensors[name] = value
    return tensors


def _freeze_output(model: nn.Module) -> None:
    """The matrix that scores next tokens has no part in this, unless it is that of the input as well."""
    find_output, find_input = (getattr(model, f"get_{side}_embeddings", lambda: None) for side in ("output", "input"))
    output, read = find_output(), find_input()
    if output is not None and (read is None or output.weight is not read.weight):
        output.requires_grad_(False)


# Training.


class StepReader:
    """Paths as rows of tokens. Lines are encoded one by one, so that a step is the same whatever follows it."""

    def __init__(self, tokenizer: Any, format: Format) -> None:
        self._tokenizer, self._format = text_tokenizer(tokenizer), format
        self._opening = len(self._tokenizer.encode(""))

    def ids(self, problem: Problem, steps: Sequence[str]) -> tuple[list[int], list[int]]:
        """Tokens of a path, and the place of the last one of each step."""
        ids = list(self._tokenizer.encode(self._format.prompt(problem.question)))
        ends = []
        for step in steps:
            ids += self._tokenizer.encode(f"{step}\n")[self._opening :]
            ends.append(len(ids) - 1)
        return ids, ends

    def stack(self, paths: Sequence[tuple[Problem, Sequence[str]]]) -> StepBatch:
        """Paths as tensors ``[B, T]``, filled up on the right."""
        read = [self.ids(problem, steps) for problem, steps in paths]
        shape = (len(read), max(len(ids) for ids, _ in read))
        tokens, attention = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
        ends = torch.zeros(shape, dtype=torch.bool)
        for n, (ids, places) in enumerate(read):
            tokens[n, : len(ids)] = torch.tensor(ids)
            attention[n, : len(ids)] = 1
            ends[n, places] = True
        return {"tokens": tokens, "attention": attention, "ends": ends}


def train_process_reward(
    model: ProcessRewardModel,
    examples: Sequence[Labelled],
    tokenizer: Any,
    format: Format,
    config: TrainingConfig,
    folder: str | Path,
    *,
    epochs: int = 1,
    resume: bool = False,
    progress: bool = True,
) -> TrainingResult:
    """Fit the model to labels, by the cross entropy of each step.

    Args:
        model: trained in place.
        examples: labelled paths.
        tokenizer, format: of the model that reads.
        config: the number of steps follows from the epochs; `TrainingConfig.row_length` has no say.
        folder, resume, progress: see `mnemonist.training.train`.
        epochs: how often every path is read.

    Raises:
        UserError: there are no examples, or all are right, or all wrong; or as `train`.
    """
    if not examples:
        raise UserError("there are no labelled paths to train a process reward model on")
    labels = {label for one in examples for label in one.labels}
    if labels in ({0.0}, {1.0}):
        raise UserError(
            f"all steps are labelled {labels.pop():g}, so there is nothing to tell apart; add paths that go another "
            "way, such as a policy's own attempts"
        )
    reader = StepReader(tokenizer, format)
    lengths = [len(reader.ids(one.problem, one.steps)[0]) for one in examples]
    config = config_for(config, len(examples), epochs, max(lengths), config.seed)

    def stack(numbers: Sequence[int]) -> StepBatch:
        chosen = [examples[n] for n in numbers]
        batch = reader.stack([(one.problem, one.steps) for one in chosen])
        return {**batch, "labels": torch.tensor([label for one in chosen for label in one.labels])}

    return train(
        model,
        stacked_batches(lengths, config, stack),
        step_loss,
        config,
        folder,
        resume=resume,
        progress=progress,
    )


def step_loss(model: nn.Module, batch: StepBatch) -> LossSum:
    """``loss_of`` for `train`: cross entropy of steps with labels from 0 to 1, summed over them."""
    logits_N = model(batch["tokens"], batch["attention"], batch["ends"])
    loss = F.binary_cross_entropy_with_logits(logits_N, batch["labels"], reduction="sum")
    return LossSum(loss, len(logits_N))


# Judging.


@dataclass(frozen=True)
class ProcessScorer:
    """A trained model as those who search want it: paths in, numbers from 0 to 1 out, tokens in the ledger."""

    model: ProcessRewardModel
    tokenizer: Any
    format: Format
    batch_size: int = 32

    def score(self, problem: Problem, paths: Sequence[Sequence[str]], ledger: Ledger) -> list[float]:
        """How good each path is up to its last step.

        Raises:
            ValueError: a path has no steps.
        """
        return [scores[-1] for scores in self.score_steps([(problem, path) for path in paths], ledger)]

    @torch.no_grad()
    def score_steps(
        self, paths: Sequence[tuple[Problem, Sequence[str]]], ledger: Ledger | None = None
    ) -> list[list[float]]:
        """How good each path is up to each of its steps.

        Raises:
            ValueError: a path has no steps.
        """
        if not all(steps for _, steps in paths):
            raise ValueError("A path has no steps, so there is nothing to score.")
        ledger = Ledger() if ledger is None else ledger
        reader = StepReader(self.tokenizer, self.format)
        device = self.model.head.weight.device
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        scores: list[list[float]] = []
        with evaluating(self.model):
            for first in range(0, len(paths), self.batch_size):
                part = paths[first : first + self.batch_size]
                batch = {name: value.to(device) for name, value in reader.stack(part).items()}
                with ledger.timing():
                    values = self.model(**batch).sigmoid().tolist()
                tokens = int(batch["attention"].sum())
                ledger.charge(reward=tokens, calls=len(part), flops=2.0 * parameters * tokens)
                for _, steps in part:
                    scores.append(values[: len(steps)])
                    values = values[len(steps) :]
        return scores
