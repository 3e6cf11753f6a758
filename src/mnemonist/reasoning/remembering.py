"""Remembering: what a server says is written down as soon as it has said it.

Attempts of a server take long or cost money, and it may fail at any of them. `Remembering` stands between the server
and whoever asks, and has a file of all that was said. Whoever was stopped asks everything again: what is in the file
comes from there, with its cost, and the server is asked for the rest. So a search that grows trees step by step goes on
as well as one that wants whole attempts, to the outcome of one that never stopped.

The file has a line of JSON for each attempt: a digest of what was asked, and how; the attempt, and what it cost.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from mnemonist.errors import UserError
from mnemonist.files import append_lines, cut_unfinished_line, require_writable
from mnemonist.reasoning.attempts import Attempt, Decoding, Sampler, draw_numbers
from mnemonist.reasoning.ledger import Ledger
from mnemonist.reasoning.sampling.server import SamplingFailed, ServerSampler

COSTS = ("prompt_tokens", "generated_tokens", "calls", "flops")
"""Of an attempt, in a ledger."""


@runtime_checkable
class Wrapping(Protocol):
    """A sampler that asks another one, such as `BudgetForcing`."""

    sampler: Sampler


def remembering(sampler: Sampler, path: Path) -> Sampler:
    """A sampler with a memory for the server that it asks, however deep that is wrapped.

    One that asks no server comes back as it is: it does not fail halfway, and what it does costs no money.
    """
    if isinstance(sampler, ServerSampler):
        return Remembering(sampler, path)
    if not isinstance(sampler, Wrapping) or isinstance(sampler, Remembering):
        return sampler
    inner = remembering(sampler.sampler, path)
    if inner is sampler.sampler:
        return sampler
    wrapper: Any = copy.copy(sampler)
    wrapper.sampler = inner
    return wrapper


class _Said(NamedTuple):
    attempt: Attempt
    cost: tuple[float, ...]
    """See `COSTS`."""


class Remembering:
    """A sampler that asks a server for what its file does not say yet, and adds to the file what it is told.

    Args:
        sampler: the server.
        path: the file; it need not be there.
        on_attempts: called with how many of how many prompts have their attempts.
    """

    def __init__(
        self, sampler: ServerSampler, path: Path, on_attempts: Callable[[int, int], None] | None = None
    ) -> None:
        self.sampler, self.path, self.on_attempts = sampler, path, on_attempts

    @property
    def name(self) -> str:
        """That of the server."""
        return self.sampler.name

    def sample(self, prompts: Sequence[str], decoding: Decoding, ledger: Ledger | None = None) -> list[Attempt]:
        """One attempt for each prompt, see `Sampler`; the ledger is charged with those of the file too.

        Raises:
            UserError: the file cannot be read or written, or is another kind of file.
            SamplingFailed: the server fails; what it has said is in the file.
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
            UserError: as `sample`.
            SamplingFailed: as `sample`.
        """
        ledger = Ledger() if ledger is None else ledger
        keys = [self._key(*each, decoding) for each in zip(prompts, limits, numbers, strict=True)]
        missing = [place for place, key in enumerate(keys) if key not in self._known]
        for key in keys:
            if key in self._known:
                _charge(ledger, self._known[key].cost)
        spent, told = Ledger(), [_cost(Ledger())]

        def keep(number: int, attempt: Attempt) -> None:
            told.append(_cost(spent))
            cost = tuple(after - before for before, after in zip(*told[-2:], strict=True))
            self._keep(keys[missing[number]], _Said(attempt, cost))
            self._tell(len(keys) - len(missing) + len(told) - 1, len(keys))

        self._tell(len(keys) - len(missing), len(keys))
        try:
            self.sampler.sample_each(
                [prompts[place] for place in missing],
                decoding,
                [limits[place] for place in missing],
                [numbers[place] for place in missing],
                spent,
                keep,
            )
        except SamplingFailed as failed:
            done = {place: self._known[key].attempt for place, key in enumerate(keys) if key in self._known}
            kept = self.path if self.path.exists() else None
            raise SamplingFailed(failed.reason, done, len(prompts), kept) from failed
        finally:
            _charge(ledger, _cost(spent), spent.seconds)
        return [self._known[key].attempt for key in keys]

    def _key(self, prompt: str, limit: int, number: int, decoding: Decoding) -> str:
        server = [self.sampler.model, self.sampler.chat, self.sampler.more]
        asked = [*server, *map(repr, dataclasses.astuple(decoding)), limit, number, prompt]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:24]

    @cached_property
    def _known(self) -> dict[str, _Said]:
        known: dict[str, _Said] = {}
        require_writable(self.path)
        try:
            if self.path.exists():
                cut_unfinished_line(self.path)
                for line in self.path.read_text(encoding="utf-8").splitlines():
                    row = json.loads(line)
                    known[row["asked"]] = _Said(Attempt.from_json(row["attempt"]), tuple(row["cost"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.path} is no file of what a server said ({type(error).__name__}: {error}); move it away"
            ) from error
        return known

    def _keep(self, key: str, said: _Said) -> None:
        self._known[key] = said
        # Unrounded, unlike other files of attempts: what follows from a log-probability must be the same again.
        row = {"asked": key, "attempt": dataclasses.asdict(said.attempt), "cost": said.cost}
        append_lines(self.path, [json.dumps(row)])

    def _tell(self, done: int, count: int) -> None:
        if self.on_attempts is not None:
            self.on_attempts(done, count)


def _cost(ledger: Ledger) -> tuple[float, ...]:
    return tuple(getattr(ledger, name) for name in COSTS)


def _charge(ledger: Ledger, cost: Sequence[Any], seconds: float = 0.0) -> None:
    prompt, generated, calls, flops = cost
    ledger.charge(prompt=prompt, generated=generated, calls=calls, flops=flops, seconds=seconds)
