"""Completions as rows of tokens, and what a policy thinks of them.

A row is a prompt and a completion behind it. Rows of a batch are filled up on the right, and a *target* stands above
the token before it, where a causal model says what comes next; prompts and padding have no targets, whatever token
fills them. So a pad that is also the end mark can never hide the end mark from the loss.

Any module that is called like a causal language model of transformers will do: `model(input_ids=, attention_mask=)`
with logits in its answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnemonist.data import IGNORED
from mnemonist.errors import UserError
from mnemonist.evaluating import evaluating
from mnemonist.reasoning.attempts import Attempt
from mnemonist.reasoning.sampling.cache_rows import arguments
from mnemonist.reasoning.sampling.text import text_tokenizer

Batch = dict[str, Tensor]

ENTROPIES = 256
"""Tokens whose entropies are found at a time."""


@dataclass(frozen=True)
class Row:
    """A prompt, a completion, and how much it counts."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    """With the end mark, if it ends."""
    weight: float = 1.0
    old: tuple[float, ...] = ()
    """ln p of the completion's tokens when they were drawn; empty if nobody asked."""
    counts: bool = True
    """Whether its tokens are part of a policy gradient; one that does not may still be one of so many attempts."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


class RowMaker:
    """Makes rows of texts and attempts, with the tokens that the policy itself reads and writes.

    Args:
        tokenizer: of the policy.
        end: mark of the end, as `Format` has it; "" takes the tokenizer's own.

    Raises:
        UserError: the tokenizer has no end mark, or not this one.
    """

    def __init__(self, tokenizer: Any, end: str = "") -> None:
        self._tokenizer = text_tokenizer(tokenizer)
        self._opening = len(self._tokenizer.encode(""))
        if not self._tokenizer.end_ids:
            raise UserError("the tokenizer has no end mark, so a policy cannot learn to stop; give it one")
        self.end = self._mark(end) if end else next(iter(self._tokenizer.end_ids))
        """The mark that ends a completion."""

    def _mark(self, end: str) -> int:
        read = self._tokenizer.encode(end)
        ids = read[self._opening :] or read  # a mark that also opens texts is put once
        if len(ids) != 1 or ids[0] not in self._tokenizer.end_ids:
            raise UserError(f"{end!r} ends no text for this tokenizer; give a format with a mark that does, or none")
        return ids[0]

    def of_text(self, prompt: str, completion: str, weight: float = 1.0) -> Row:
        """A completion that somebody else wrote; the end mark is put behind it.

        Raises:
            UserError: the prompt is empty.
        """
        read = tuple(self._tokenizer.encode(prompt))
        # Encoded alone, as a sampler does: the tokens of a prompt never depend on what is written behind it.
        written = tuple(self._tokenizer.encode(completion)[self._opening :])
        if not read:
            raise UserError("a prompt has no tokens; nothing can be written behind nothing")
        return Row(read, (*written, self.end), weight)

    def of_attempt(self, attempt: Attempt, weight: float = 1.0) -> Row:
        """What a policy wrote itself, token by token; where a stop string ended it, the end mark is put behind it."""
        if not attempt.ids or not attempt.prompt_ids:
            return self.of_text(attempt.prompt, attempt.text, weight)
        closed = (*attempt.ids, self.end) if attempt.finish == "stop" else attempt.ids
        return Row(attempt.prompt_ids, closed, weight)

    def drawn(self, attempt: Attempt) -> Row:
        """What a policy drew and nothing else, with its log-probabilities.

        Raises:
            UserError: the sampler tells no tokens or no log-probabilities.
        """
        if not attempt.ids or len(attempt.ids) != len(attempt.log_probs) or not attempt.prompt_ids:
            raise UserError(
                "a policy gradient needs the tokens and log-probabilities of every attempt, and this sampler does not "
                "tell them; sample from the model in this process"
            )
        return Row(attempt.prompt_ids, attempt.ids, 1.0, attempt.log_probs)


def stack(rows: Sequence[Row], fill: int = 0) -> Batch:
    """Rows as tensors ``[B, T]``, filled up on the right; ``weights`` and ``counts`` are ``[B]``."""
    longest = max(map(len, rows))
    shape = (len(rows), longest)
    batch = {
        "tokens": torch.full(shape, fill, dtype=torch.int64),
        "attention": torch.zeros(shape, dtype=torch.int64),
        "targets": torch.full(shape, IGNORED, dtype=torch.int64),
        "old": torch.zeros(shape),
        "weights": torch.tensor([row.weight for row in rows]),
        "counts": torch.tensor([float(row.counts) for row in rows]),
    }
    for i, row in enumerate(rows):
        begin = len(row.prompt) - 1  # the token that the first of the completion is predicted from
        end = begin + len(row.completion)
        batch["tokens"][i, : len(row)] = torch.tensor(row.prompt + row.completion)
        batch["attention"][i, : len(row)] = 1
        batch["targets"][i, begin:end] = torch.tensor(row.completion)
        if row.old:
            batch["old"][i, begin:end] = torch.tensor(row.old)
    return batch


@dataclass(frozen=True, eq=False)
class Opinion:
    """What a policy thinks of completions, ``[B, T]``, 0 where nothing is asked."""

    log_probs_BT: Tensor
    """ln p of every target, with a gradient."""
    mask_BT: Tensor
    """1 where a target is."""
    entropy_BT: Tensor | None = None
    """Nats, without a gradient; if it was asked for."""

    @property
    def log_probs_B(self) -> Tensor:
        """ln p of whole completions."""
        return self.log_probs_BT.sum(-1)


def logits_of(model: nn.Module, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logits ``[N, V]`` in float32 for the N targets of a batch, row after row; and where these are, ``[B, T]``."""
    asked_BT = batch["targets"] != IGNORED
    # What stands before every completion has no targets.
    first = int(asked_BT.any(0).int().argmax())
    spared: dict[str, Any] = {"logits_to_keep": asked_BT.shape[1] - first, "use_cache": False}
    given = {name: spared[name] for name in arguments(model) & spared.keys()}
    logits_BSV = model(input_ids=batch["tokens"], attention_mask=batch["attention"], **given).logits
    logits_NV = logits_BSV[asked_BT[:, -logits_BSV.shape[1] :]].float()
    return logits_NV if temperature == 1 else logits_NV / temperature, asked_BT


@torch.no_grad()
def entropies(logits_NV: Tensor) -> Tensor:
    """Nats ``[N]``."""
    return torch.cat([torch.special.entr(part.softmax(-1)).sum(-1) for part in logits_NV.split(ENTROPIES)])


def read(model: nn.Module, batch: Batch, temperature: float = 1.0, *, entropy: bool = False) -> Opinion:
    """What a model thinks of the targets of a batch, at a temperature. Entropies take a twentieth of a small model's
    step.

    Logits are most of what a small model with many tokens keeps for the way back, so there are as few of them as can
    be.
    """
    logits_NV, asked_BT = logits_of(model, batch, temperature)
    log_probs_N = -F.cross_entropy(logits_NV, batch["targets"][asked_BT], reduction="none")
    blank_BT = log_probs_N.new_zeros(asked_BT.shape)
    entropy_BT = blank_BT.masked_scatter(asked_BT, entropies(logits_NV)) if entropy else None
    return Opinion(blank_BT.masked_scatter(asked_BT, log_probs_N), asked_BT.to(log_probs_N.dtype), entropy_BT)


def log_probs_of(model: nn.Module, rows: Iterable[Row], batch_size: int) -> list[float]:
    """ln p of whole completions, one after the other, with the model as it is now."""
    waiting = list(rows)
    device = next(model.parameters()).device
    found: list[float] = []
    with evaluating(model), torch.no_grad():
        for first in range(0, len(waiting), batch_size):
            batch = {name: value.to(device) for name, value in stack(waiting[first : first + batch_size]).items()}
            found += read(model, batch).log_probs_B.tolist()
    return found
