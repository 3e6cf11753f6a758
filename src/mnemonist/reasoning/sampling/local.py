"""A sampler that runs a model in this process, with a batch that never idles.

Attempts end at different times. If a batch waited for its last row, most rows would do nothing most of the time, so
here a row that ends is taken over by the next prompt at once, and when no prompt waits the batch shrinks:

    step        1 2 3 4 5 6 7 8 9
    row 1       a a a b b b b b f        five attempts and the first token of another in 9 steps of 3 rows;
    row 2       c c c c c c d d d        in batches of three, each waiting for its longest, a and c alone
    row 3       e e g g g h h h h        would have taken 6 steps

A prompt that is asked for several times is read once. Any causal language model of transformers will do whose cache
holds keys and values, and any whose cache can join its rows, as ours can.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mnemonist.errors import UserError
from mnemonist.evaluating import evaluating
from mnemonist.reasoning.attempts import Attempt, Decoding, Finish, draw_numbers
from mnemonist.reasoning.ledger import Ledger
from mnemonist.reasoning.sampling.cache_rows import Rows, arguments, empty_cache, rows_like
from mnemonist.reasoning.sampling.draws import draw_tokens, uniform_numbers
from mnemonist.reasoning.sampling.text import StopFinder, TextTokenizer, first_stop, text_tokenizer, written_text


class LocalSampler:
    """Asks a model in this process.

    Args:
        model: of transformers, or with its conventions. It keeps its device, its precision and its mode.
        tokenizer: one of ours, one of transformers, or a `TextTokenizer`.
        batch_size: attempts that are written at a time.
        name: what tables call it; by default what the model was loaded from, or its class.
        end_ids: tokens that end an attempt; by default those of the tokenizer and of the model's generation settings.
        flops_per_token: operations of the model for a token; by default two for each of its parameters.

    Raises:
        UserError: the batch size is below 1.
        TypeError: the tokenizer is of no known kind.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        batch_size: int = 16,
        *,
        name: str | None = None,
        end_ids: Collection[int] | None = None,
        flops_per_token: float | None = None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; at least one attempt must be written at a time")
        self.model: Any = model
        self.tokenizer: TextTokenizer = text_tokenizer(tokenizer)
        self.batch_size = batch_size
        config: Any = getattr(model, "config", None)
        self._name = name or str(getattr(config, "name_or_path", "")).rstrip("/").split("/")[-1] or type(model).__name__
        self.end_ids = frozenset({*self.tokenizer.end_ids, *_ends_of(model)} if end_ids is None else end_ids)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        self.flops_per_token = 2.0 * parameters if flops_per_token is None else flops_per_token
        text_config = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
        self.max_positions: int | None = getattr(text_config, "max_position_embeddings", None)
        """Tokens of a prompt and its attempt together at most; None if the model has no end."""
        self._takes = arguments(model)

    @property
    def name(self) -> str:
        """What tables and ledgers call the policy."""
        return self._name

    def sample(self, prompts: Sequence[str], decoding: Decoding, ledger: Ledger | None = None) -> list[Attempt]:
        """One attempt for each prompt, in their order; see `Sampler`.

        An attempt that reaches the model's last position ends there, as at ``max_tokens``.

        Raises:
            UserError: a prompt is empty, or leaves no position to write at; or the model gives no numbers.
        """
        limits = [decoding.max_tokens] * len(prompts)
        return self.sample_each(prompts, decoding, limits, draw_numbers(prompts), ledger)

    def sample_each(
        self,
        prompts: Sequence[str],
        decoding: Decoding,
        limits: Sequence[int],
        numbers: Sequence[int],
        ledger: Ledger | None = None,
    ) -> list[Attempt]:
        """As `sample`, with a limit of tokens for each prompt, and a number that its draws follow from.

        Raises:
            UserError: as `sample`; or a limit is below 1.
        """
        if min(limits, default=1) < 1:
            raise UserError(f"an attempt is to have at most {min(limits)} tokens; draw at least 1")
        ledger = Ledger() if ledger is None else ledger
        encoded = self._encoded(prompts)
        run = _Run(self, encoded, decoding, limits, numbers)
        with ledger.timing(), torch.inference_mode(), evaluating(self.model):
            try:
                run.finish()
            finally:
                flops = self.flops_per_token * (run.tokens_read + run.tokens_written)
                ledger.charge(prompt=run.tokens_read, generated=run.tokens_written, calls=run.started, flops=flops)
        return [
            _attempt(self.tokenizer, prompt, row, decoding.stop)
            for prompt, row in zip(prompts, run.done(), strict=True)
        ]

    def room(self, prompt: str) -> int | None:
        """Tokens that can follow a prompt, below 1 if it fills all positions; None if the model has no end."""
        return None if self.max_positions is None else self.max_positions - len(self.tokenizer.encode(prompt))

    def _encoded(self, prompts: Sequence[str]) -> list[tuple[int, ...]]:
        known: dict[str, tuple[int, ...]] = {}
        for number, prompt in enumerate(prompts):
            if prompt in known:
                continue
            known[prompt] = ids = tuple(self.tokenizer.encode(prompt))
            if not prompt or not ids:
                raise UserError(f"prompt {number} is empty; give the policy something to go on from")
            if self.max_positions is not None and len(ids) >= self.max_positions:
                raise UserError(
                    f"prompt {number} has {len(ids)} tokens, but {self.name} has {self.max_positions} positions for it "
                    "and its answer; shorten it, or take a model that reads more"
                )
        return [known[prompt] for prompt in prompts]

    def read_prompts(self, prompts: Sequence[tuple[int, ...]]) -> tuple[Any, Tensor]:
        """Read prompts, padded on the left: the cache, and the logits ``[B, V]`` of the token behind each."""
        width = max(map(len, prompts))
        ids = torch.tensor([(prompt[0],) * (width - len(prompt)) + prompt for prompt in prompts])
        inputs: dict[str, Any] = (
            {"past_key_values": empty_cache(self.model)} if "past_key_values" in self._takes else {}
        )
        if any(len(prompt) < width for prompt in prompts):
            starts = torch.tensor([width - len(prompt) for prompt in prompts])
            positions = torch.arange(width) - starts[:, None]
            inputs["attention_mask"] = (positions >= 0).long().to(self.device)
            if self.takes_positions:
                inputs["position_ids"] = positions.clamp_min(0).to(self.device)
        return self.call(ids, inputs)

    def call(self, ids: Tensor, inputs: dict[str, Any]) -> tuple[Any, Tensor]:
        """The cache after reading, and the logits ``[B, V]`` of the token that comes next."""
        if "logits_to_keep" in self._takes:
            inputs = {**inputs, "logits_to_keep": 1}
        output = self.model(input_ids=ids.to(self.device), use_cache=True, return_dict=True, **inputs)
        return getattr(output, "past_key_values", None), output.logits[:, -1]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def takes_positions(self) -> bool:
        """Whether the model is told the positions of tokens."""
        return "position_ids" in self._takes


@dataclass(eq=False)
class _Row:
    """An attempt that is being written."""

    place: int
    """Of its prompt among all."""
    prompt_ids: tuple[int, ...]
    limit: int
    """Tokens at most."""
    uniform: NDArray[np.float64]
    """A number for each of its draws."""
    finder: StopFinder | None
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finish: Finish | None = None
    """None until it ends."""


@dataclass
class _Spare:
    """A prompt that was read and is asked for again."""

    prompt: tuple[int, ...]
    cache: Any
    pick: int
    logits: Tensor


class _Run:
    """One call of `LocalSampler.sample`."""

    def __init__(
        self,
        sampler: LocalSampler,
        prompts: Sequence[tuple[int, ...]],
        decoding: Decoding,
        limits: Sequence[int],
        numbers: Sequence[int],
    ) -> None:
        self.sampler, self.decoding, self._limits, self._numbers = sampler, decoding, limits, numbers
        self.tokens_read = self.tokens_written = self.started = 0
        self._prompts = prompts
        places = {prompt: place for place, prompt in reversed(list(enumerate(prompts)))}
        # Equal prompts come one after the other, so that only one has to be remembered.
        self._waiting = deque(sorted(range(len(prompts)), key=lambda place: places[prompts[place]]))
        self._active: list[_Row] = []
        self._rows: Rows | None = None
        self._spare: _Spare | None = None
        self._done: dict[int, _Row] = {}

    def done(self) -> list[_Row]:
        """All rows, when they have ended."""
        return [self._done[place] for place in range(len(self._prompts))]

    def finish(self) -> None:
        """Write until nothing is left to write."""
        ended = list(range(min(self.sampler.batch_size, len(self._prompts))))  # rows to fill
        while True:
            while ended and self._waiting:
                taken = ended[: len(self._waiting)]
                logits = self._admit(taken)
                ended = sorted(self._write(taken, logits) + ended[len(taken) :])
            self._shrink(ended)
            if not self._active:
                return
            assert self._rows is not None
            last = torch.tensor([[row.ids[-1]] for row in self._active])
            _, logits = self.sampler.call(last, self._rows.inputs())
            self._rows.advance()
            ended = self._write(range(len(self._active)), logits)

    def _admit(self, rows: Sequence[int]) -> Tensor:
        """Put the next prompts into these rows; the logits of their first tokens."""
        places = [self._waiting.popleft() for _ in rows]
        prompts = [self._prompts[place] for place in places]
        first: list[Tensor] = []
        # Equal prompts are neighbours, so what was read before stands first.
        known = sum(self._spare is not None and prompt == self._spare.prompt for prompt in prompts)
        if known:
            assert self._spare is not None
            self._put(rows[:known], prompts[:known], self._spare.cache, [self._spare.pick] * known)
            first += [self._spare.logits] * known
        if known < len(prompts):
            unread = list(dict.fromkeys(prompts[known:]))
            cache, logits = self.sampler.read_prompts(unread)
            self.tokens_read += sum(map(len, unread))
            picks = [unread.index(prompt) for prompt in prompts[known:]]
            self._put(rows[known:], prompts[known:], cache, picks)
            first += [logits[pick] for pick in picks]
            self._spare = _Spare(unread[-1], cache, len(unread) - 1, logits[-1])
        if self._spare and not (self._waiting and self._prompts[self._waiting[0]] == self._spare.prompt):
            self._spare = None
        for row, place in zip(rows, places, strict=True):
            self._active[row : row + 1] = [self._begin(place)]
        self.started += len(rows)
        return torch.stack(first)

    def _put(self, rows: Sequence[int], prompts: Sequence[tuple[int, ...]], cache: Any, picks: Sequence[int]) -> None:
        if self._rows is None:
            most = min(self.sampler.batch_size, len(self._prompts))
            self._rows = rows_like(cache, most, self.sampler.takes_positions, self.sampler.device)
        self._rows.put(rows, cache, picks, [len(prompt) for prompt in prompts])

    def _begin(self, place: int) -> _Row:
        prompt, decoding, sampler = self._prompts[place], self.decoding, self.sampler
        limit = self._limits[place]
        if sampler.max_positions is not None:
            limit = min(limit, sampler.max_positions - len(prompt))
        greedy = decoding.temperature == 0
        uniform = np.zeros(limit) if greedy else uniform_numbers(decoding.seed, self._numbers[place], limit)
        finder = StopFinder(sampler.tokenizer, prompt, decoding.stop) if decoding.stop else None
        return _Row(place, prompt, limit, uniform, finder)

    def _write(self, rows: Sequence[int], logits: Tensor) -> list[int]:
        """Draw a token for each of these rows; those that have ended."""
        active = [self._active[row] for row in rows]
        uniform = np.array([row.uniform[len(row.ids)] for row in active])
        tokens, log_probs = draw_tokens(logits, self.decoding, uniform)
        self.tokens_written += len(active)
        ended = []
        for at, row, token, log_prob in zip(rows, active, tokens.tolist(), log_probs.tolist(), strict=True):
            row.ids.append(token)
            row.log_probs.append(log_prob)
            if token in self.sampler.end_ids:
                row.finish = "end"
            elif row.finder is not None and row.finder.push(token):
                row.finish = "stop"
            elif len(row.ids) == row.limit:
                row.finish = "length"
            else:
                continue
            self._done[row.place] = row
            ended.append(at)
        return ended

    def _shrink(self, ended: Sequence[int]) -> None:
        """Take out rows that have ended: the last ones that have not take their places."""
        if not ended:
            return
        gone = set(ended)
        count = len(self._active) - len(gone)
        later = iter([row for row in range(count, len(self._active)) if row not in gone])
        sources = [next(later) if row in gone else row for row in range(count)]
        if self._rows is not None and sources:
            self._rows.keep(sources)
        self._active = [self._active[source] for source in sources]


def _attempt(tokenizer: TextTokenizer, prompt: str, row: _Row, stop: Sequence[str]) -> Attempt:
    assert row.finish is not None
    text = written_text(tokenizer, row.prompt_ids, row.ids[:-1] if row.finish == "end" else row.ids)
    if row.finish == "stop":
        text = text[: first_stop(text, stop)]
    return Attempt(
        prompt, text, row.prompt_ids, tuple(row.ids), tuple(row.log_probs), tokens=len(row.ids), finish=row.finish
    )


def _ends_of(model: Any) -> set[int]:
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)
