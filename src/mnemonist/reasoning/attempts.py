"""Attempts: what a policy wrote after a prompt, and the sampler that asked it.

A *sampler* is anything that turns prompts into attempts: a model in this process, a server, a script in a test. It
knows nothing of problems and answers; those who search, weigh and fit know nothing of models. Prompts and texts are
plain strings, exactly what the policy reads and writes: how a problem is put is a `Format`'s business.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from mnemonist.errors import UserError
from mnemonist.reasoning.ledger import Ledger

Finish = Literal["end", "stop", "length"]
"""Why an attempt ended: the policy's end mark, one of the stop strings, or the limit of tokens."""


@dataclass(frozen=True)
class Decoding:
    """How tokens are drawn.

    Raises:
        UserError: a field is out of range.
    """

    max_tokens: int = 256
    """Tokens that an attempt has at most."""
    temperature: float = 1.0
    """Logits are divided by it; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability."""
    top_k: int = 0
    """Draw from this many of the likeliest tokens; 0 means all."""
    stop: tuple[str, ...] = ()
    """Texts that end an attempt where they are first written; they stay part of its text."""
    seed: int = 0
    """The draws of an attempt follow from this seed, its prompt, and how often that came before it in the call: what is
    sampled beside it does not matter."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.top_k < 0 or self.seed < 0:
            raise UserError(
                f"max_tokens is {self.max_tokens}, top_k {self.top_k} and seed {self.seed}; draw at least 1 token, "
                "the other two are numbers from 0"
            )
        if not (0 <= self.temperature < math.inf and 0 < self.top_p <= 1):
            raise UserError(
                f"temperature is {self.temperature} and top_p {self.top_p}; the first is a number from 0, the second "
                "above 0 and at most 1"
            )
        if "" in self.stop:
            raise UserError("stop has an empty text, which is everywhere; leave it out")


@dataclass(frozen=True)
class Attempt:
    """One text that a policy wrote after a prompt."""

    prompt: str
    text: str
    """What was written: the stop string included, the end mark not."""
    prompt_ids: tuple[int, ...] = ()
    """Tokens of the prompt; empty if the sampler does not know them (servers)."""
    ids: tuple[int, ...] = ()
    """Tokens written, the end mark included; empty if the sampler does not know them."""
    log_probs: tuple[float, ...] = ()
    """Of each token written: ln p at the temperature of the draw (1 if it was 0), before top_p and top_k cut; empty if
    the sampler does not know. Servers may tell them without `ids`, and leave out the end mark's."""
    tokens: int = 0
    """Tokens written, the end mark included."""
    finish: Finish = "length"
    thinking_tokens: int | None = None
    """Those of them that were written for a thought under a budget (`BudgetForcing`); None where there is none."""

    @property
    def whole(self) -> bool:
        """Whether the policy ended it by itself."""
        return self.finish == "end"

    @property
    def log_prob(self) -> float:
        """Of the whole text; 0 if the sampler did not tell."""
        return math.fsum(self.log_probs)

    def to_json(self) -> dict[str, Any]:
        """As JSON values; `from_json` reads them back."""
        return {
            "prompt": self.prompt,
            "text": self.text,
            "prompt_ids": list(self.prompt_ids),
            "ids": list(self.ids),
            "log_probs": [round(value, 6) for value in self.log_probs],
            "tokens": self.tokens,
            "finish": self.finish,
            **({} if self.thinking_tokens is None else {"thinking_tokens": self.thinking_tokens}),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Attempt:
        """What `to_json` gave.

        Raises:
            UserError: it is no attempt of this version.
        """
        try:
            lists = {name: tuple(values[name]) for name in ("prompt_ids", "ids", "log_probs")}
            return cls(**{**values, **lists})
        except (TypeError, KeyError) as error:
            raise UserError(f"this is no attempt of this version ({error})") from error


def draw_numbers(prompts: Sequence[str]) -> list[int]:
    """For each prompt of a call the number, below 2^48, that its draws follow from beside the seed."""
    seen: Counter[str] = Counter()
    numbers = []
    for prompt in prompts:
        content = f"{seen[prompt]} {prompt}".encode("utf-8", "surrogatepass")
        numbers.append(int.from_bytes(hashlib.sha256(content).digest()[:6], "big"))
        seen[prompt] += 1
    return numbers


class Sampler(Protocol):
    """Turns prompts into attempts."""

    @property
    def name(self) -> str:
        """What tables and ledgers call the policy."""
        ...

    def sample(self, prompts: Sequence[str], decoding: Decoding, ledger: Ledger | None = None) -> list[Attempt]:
        """One attempt for each prompt, in their order; name a prompt several times for several attempts.

        Equal prompts are read once where the sampler can. What was read and written is charged to the ledger.

        Raises:
            UserError: a prompt is empty or too long, or a server does not answer.
        """
        ...
