"""A server that fails when it has been asked often enough, without a net."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from mnemonist.reasoning.attempts import Attempt, Decoding
from mnemonist.reasoning.ledger import Ledger
from mnemonist.reasoning.sampling import SamplingFailed, ServerSampler


class Shaky(ServerSampler):
    """What it says follows from the prompt, the seed and the number alone.

    Args:
        policy: prompt and chance to all that would be written.
        left: attempts before it fails.
    """

    def __init__(self, policy: Callable[[str, Random], str], left: int = 10**9) -> None:
        super().__init__("http://nowhere", "shaky")
        self.policy, self.left = policy, left
        self.asked: list[str] = []

    def sample_each(
        self,
        prompts: Sequence[str],
        decoding: Decoding,
        limits: Sequence[int],
        numbers: Sequence[int],
        ledger: Ledger | None = None,
        on_attempt: Callable[[int, Attempt], None] | None = None,
    ) -> list[Attempt]:
        done: dict[int, Attempt] = {}
        for place, (prompt, limit, number) in enumerate(zip(prompts, limits, numbers, strict=True)):
            if not self.left:
                raise SamplingFailed("it is down", done, len(prompts))
            self.left -= 1
            self.asked.append(prompt)
            text = self.policy(prompt, Random(f"{decoding.seed} {number}"))
            found = [text.index(stop) + len(stop) for stop in decoding.stop if stop in text]
            cut = text[: min([limit, *found])]
            finish = "stop" if found and min(found) <= limit else "length" if len(text) > limit else "end"
            log_probs = (-1 / 3,) * len(cut)
            done[place] = Attempt(prompt, cut, log_probs=log_probs, tokens=len(cut), finish=finish)  # type: ignore[arg-type]
            if ledger is not None:
                ledger.charge(prompt=len(prompt), generated=len(cut), calls=1, flops=0.5)
            if on_attempt is not None:
                on_attempt(place, done[place])
        return list(done.values())
