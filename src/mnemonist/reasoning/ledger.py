"""The ledger: what a method has spent, every token of it, those included that nobody will see.

Methods are compared by accuracy at equal cost, so each kind of cost has its own line: what the policy read, what it
wrote, how much of that was thrown away, and what those read who judged it. Arithmetic is two operations for each
parameter and token unless a sampler knows better (Kaplan et al. 2020, arXiv 2001.08361, section 2.1).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mnemonist.errors import UserError


@dataclass
class Ledger:
    """Sums; every method writes into the one it is given. ``a + b`` is a new one."""

    prompt_tokens: int = 0
    """Read by the policy: prompts, and what a search made it read again. What a cache spared is not counted."""
    generated_tokens: int = 0
    """Written by the policy."""
    discarded_tokens: int = 0
    """Those of them that are no part of the answer given in the end: other attempts, branches cut off."""
    reward_tokens: int = 0
    """Read or written by reward models and other judges."""
    calls: int = 0
    """Prompts that were sampled or judged."""
    flops: float = 0.0
    """Operations of all of that."""
    seconds: float = 0.0
    """Wall time inside samplers and judges."""

    @property
    def tokens(self) -> int:
        """All that were read or written by anyone."""
        return self.prompt_tokens + self.generated_tokens + self.reward_tokens

    def charge(
        self,
        *,
        prompt: int = 0,
        generated: int = 0,
        reward: int = 0,
        calls: int = 0,
        flops: float = 0.0,
        seconds: float = 0.0,
    ) -> None:
        """Add to the sums.

        Raises:
            ValueError: a cost is negative.
        """
        if min(prompt, generated, reward, calls, flops, seconds) < 0:
            raise ValueError("A cost is negative; nothing can be given back to a ledger.")
        self.prompt_tokens += prompt
        self.generated_tokens += generated
        self.reward_tokens += reward
        self.calls += calls
        self.flops += flops
        self.seconds += seconds

    def discard(self, tokens: int) -> None:
        """Say that so many of the tokens written are no part of the answer.

        Raises:
            ValueError: more than were written.
        """
        if not 0 <= tokens <= self.generated_tokens - self.discarded_tokens:
            raise ValueError(
                f"{tokens} tokens cannot be discarded: {self.generated_tokens} were written and "
                f"{self.discarded_tokens} of these discarded before."
            )
        self.discarded_tokens += tokens

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Charge the wall time of the block; also when it fails."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.charge(seconds=time.perf_counter() - began)

    def __add__(self, other: Ledger) -> Ledger:
        return Ledger(**{name: value + getattr(other, name) for name, value in self.to_json().items()})

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Ledger:
        """What `to_json` gave.

        Raises:
            UserError: it is no ledger of this version.
        """
        try:
            ledger = cls(**values)
            sound = min(ledger.to_json().values()) >= 0
        except TypeError as error:
            raise UserError(f"this is no ledger of this version ({error})") from error
        if not sound:
            raise UserError("this is no ledger (a cost is negative)")
        return ledger
