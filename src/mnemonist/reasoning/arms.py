"""Matched arms: journeys against shortcuts, so that what differs is what is taught and not how much of it.

A journey is longer than its shortcut. With the same problems in both arms (`examples`) the journey arm reads more
tokens, and a gain may come from these alone. With the same tokens in both arms the shortcut arm needs more of
something: more problems (`tokens-by-problems`), which favours it, or more passes over the same ones
(`tokens-by-passes`), which may wear them out. No single match is fair; a claim that holds under all three is.

Everything here is a pure function of twins: examples of prompt and completion, each with where it comes from.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Any

from mnemonist.errors import UserError, nearest
from mnemonist.reasoning.journey_text import Twin

MATCHES: Mapping[str, str] = {
    "examples": "the same problems, each once, in both arms",
    "tokens-by-problems": "as many tokens in both arms; the shortcut arm has more problems",
    "tokens-by-passes": "as many tokens in both arms; the shortcut arm reads its problems more than once",
}
"""What two arms may have in common."""

CountTokens = Callable[[str, str], int]
"""Training tokens of a prompt and a completion."""


def completion_bytes(prompt: str, completion: str) -> int:
    """What a model of bytes is trained on: each byte of the completion and the mark behind it."""
    return len(completion.encode()) + 1


@dataclass(frozen=True)
class Example:
    """One text to learn. `to_json` has the columns ``prompt`` and ``completion`` that trainers look for."""

    prompt: str
    completion: str
    arm: str
    """journey or shortcut."""
    problem: str
    """Id of the problem."""
    tree: str
    """Id of the tree that it was told from."""
    rules: str
    """Of the journey, as `find_journey` reads them."""
    seed: int
    """Of the walk."""
    reading: int = 1
    """Which pass over the problems it belongs to."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Arm:
    """What one model is trained on."""

    name: str
    examples: tuple[Example, ...]
    tokens: int
    """Training tokens of all examples."""
    mean_dead_ends: float = 0.0
    """Of an example."""

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Prompts and completions."""
        return [(each.prompt, each.completion) for each in self.examples]

    @property
    def summary(self) -> dict[str, Any]:
        """Counts and means, as JSON values."""
        count = max(1, len(self.examples))
        return {
            "examples": len(self.examples),
            "problems": len({each.problem for each in self.examples}),
            "passes": max((each.reading for each in self.examples), default=0),
            "tokens": self.tokens,
            "mean_tokens": self.tokens / count,
            "mean_characters": sum(len(each.completion) for each in self.examples) / count,
            "mean_dead_ends": self.mean_dead_ends,
        }


@dataclass(frozen=True)
class Arms:
    """Two arms and what they have in common."""

    match: str
    """A row of `MATCHES`."""
    journey: Arm
    shortcut: Arm

    @property
    def summary(self) -> dict[str, Any]:
        """Of both arms, as JSON values."""
        return {"match": self.match, "journey": self.journey.summary, "shortcut": self.shortcut.summary}


def match_arms(
    twins: Sequence[Twin],
    match: str = "examples",
    *,
    problems: int | None = None,
    seed: int = 0,
    tokens: CountTokens = completion_bytes,
) -> Arms:
    """Divide twins into two arms.

    The journey arm has the first ``problems`` twins, and so has the shortcut arm before it has anything else. Tokens
    match to within half an example.

    Args:
        twins: of different problems, in the order they are used.
        match: a row of `MATCHES`.
        problems: of the journey arm. Without a number all twins; or, where the shortcut arm needs more of them, as
            many as leave it enough.
        seed: for the order of every pass after the first.
        tokens: counts what an example costs in training.

    Raises:
        UserError: there is no such match, or there are not enough twins.
    """
    if match not in MATCHES:
        raise UserError(f"there is no match {match!r}{nearest(match, MATCHES)}; known: {', '.join(MATCHES)}")
    costs = [(tokens(twin.prompt, twin.journey), tokens(twin.prompt, twin.shortcut)) for twin in twins]
    if problems is None:
        problems = len(twins)
        if match == "tokens-by-problems":
            problems = bisect_right(list(accumulate(cost for cost, _ in costs)), sum(cost for _, cost in costs))
    if not 1 <= problems <= len(twins):
        raise UserError(f"{len(twins)} twins are not enough for arms of {problems} problems; make more of them")
    wanted = sum(cost for cost, _ in costs[:problems])
    straight = [cost for _, cost in costs]
    if match == "examples":
        picked = [(number, 1) for number in range(problems)]
    elif match == "tokens-by-problems":
        picked = _more_problems(straight, wanted, problems)
    else:
        picked = _more_passes(straight[:problems], wanted, seed)
    journey = [_example(twin, "journey", 1) for twin in twins[:problems]]
    shortcut = [_example(twins[number], "shortcut", reading) for number, reading in picked]
    dead_ends = sum(twin.dead_ends for twin in twins[:problems]) / problems
    return Arms(
        match,
        Arm("journey", tuple(journey), wanted, dead_ends),
        Arm("shortcut", tuple(shortcut), sum(straight[number] for number, _ in picked)),
    )


def _more_problems(costs: Sequence[int], wanted: int, problems: int) -> list[tuple[int, int]]:
    numbers = range(len(costs))
    taken = _until(costs, numbers, wanted)
    if taken == len(costs) and sum(costs) < wanted - costs[-1] / 2:
        raise UserError(
            f"{len(costs)} shortcuts have {sum(costs)} tokens, the journeys of {problems} problems {wanted}; make more "
            "twins, or match by passes"
        )
    return [(number, 1) for number in numbers[: max(taken, problems)]]


def _more_passes(costs: Sequence[int], wanted: int, seed: int) -> list[tuple[int, int]]:
    random = Random(f"{seed} passes")
    order = list(range(len(costs)))
    picked: list[tuple[int, int]] = []
    left = wanted
    reading = 1
    while taken := _until(costs, order, left):
        picked += [(number, reading) for number in order[:taken]]
        left -= sum(costs[number] for number in order[:taken])
        random.shuffle(order)
        reading += 1
    return picked


def _until(costs: Sequence[int], order: Sequence[int], wanted: int) -> int:
    """How many of these in this order come nearest to so many tokens."""
    total = 0
    for count, number in enumerate(order):
        if total + costs[number] / 2 >= wanted:
            return count
        total += costs[number]
    return len(order)


def _example(twin: Twin, arm: str, reading: int) -> Example:
    text = twin.journey if arm == "journey" else twin.shortcut
    return Example(twin.prompt, text, arm, twin.problem, twin.tree, twin.rules, twin.seed, reading)
