"""Budget forcing: deciding for a policy how long it thinks (Muennighoff et al. 2025, arXiv 2501.19393, section 3).

A policy that would end its thought too early is made to go on: the end is taken away and a word such as "Wait" put in
its place. One that would think for too long is cut off: the thought is closed and the answer opened for it, so that an
answer always comes. Both are done by asking again with the text so far, so any sampler will do that takes prompts as
they are, in this process or behind a server; what is read again is charged like everything else.

    prompt . . . . . . . . . |- thought, at most so many tokens -|            |- answer -|
    <think>  2 + 2 = 5   Wait   2 + 2 = 4   Wait   so it is 4       </think>    4           </answer>
                         forced             forced                  forced, if it did not come by itself

What the paper does not do: a thought that runs in circles is closed early.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from mnemonist.errors import UserError
from mnemonist.reasoning.attempts import Attempt, Decoding, Finish, Sampler, draw_numbers
from mnemonist.reasoning.formats import Format
from mnemonist.reasoning.ledger import Ledger

Closed = Literal["itself", "budget", "loop"]
"""Why a thought was closed: by the policy, or for it as the budget was used up or as it ran in circles."""


@dataclass(frozen=True)
class LoopDetector:
    """Tells a thought that runs in circles: its end repeats itself, or one line comes again and again.

    Raises:
        UserError: a number is out of range.
    """

    times: int = 4
    """How often something must stand in a row at the end, be it a letter or a page."""
    shortest: int = 32
    """Characters that all of these have together at least: a few dots are no circle."""
    lines: int = 0
    """How often the same line must have come, wherever it stands; 0 counts none."""
    window: int = 4096
    """Characters at the end that are looked at for what is in a row."""

    def __post_init__(self) -> None:
        if self.times < 2 or self.lines == 1 or min(self.lines, self.shortest, self.window) < 0:
            raise UserError(
                f"times is {self.times}, lines {self.lines}, shortest {self.shortest} and window {self.window}; what "
                "comes only once is no loop, so the first two are at least 2 (lines may be 0), the others from 0"
            )

    def found(self, text: str) -> bool:
        """Whether the text ends in a loop."""
        if self.lines:
            lines = Counter(line.strip() for line in text.splitlines() if line.strip())
            if lines and max(lines.values()) >= self.lines:
                return True
        tail = text[-self.window :]
        for length in range(-(-self.shortest // self.times) or 1, len(tail) // self.times + 1):
            repeated = tail[len(tail) - self.times * length :]
            # A text repeats itself with a period if it is itself, moved by that period.
            if repeated[length:] == repeated[:-length]:
                return True
        return False


@dataclass(frozen=True)
class Budget:
    """How long a thought may and must be.

    Raises:
        UserError: a number is out of range.
    """

    most: int = 512
    """Tokens of the thought at most; then it is closed."""
    least: int = 0
    """Tokens before which the policy cannot end it."""
    extensions: int = 0
    """How often the policy is kept from ending it, besides."""
    wait: str = "Wait"
    """Put where it would have ended; on a new line, unless the thought ends in white space or this begins with it."""
    answer: int = 64
    """Tokens of the answer at most."""
    loops: LoopDetector | None = None
    """Closes thoughts that run in circles; None lets them run."""
    piece: int = 128
    """Tokens after which loops are looked for: a thought is then asked for in pieces, each of which reads all before it
    again."""

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most or min(self.most, self.answer, self.piece) < 1 or self.extensions < 0:
            raise UserError(
                f"a thought of {self.least} to {self.most} tokens with {self.extensions} extensions, in pieces of "
                f"{self.piece}, and an answer of {self.answer} is no budget: the first number is from 0 up to the "
                "second, and the others leave room"
            )
        if not self.wait.strip():
            raise UserError("wait is blank, so a policy would end its thought again; give it a word")


@dataclass(frozen=True)
class Thought:
    """What came of a prompt under a budget."""

    attempt: Attempt
    """The whole text, what was forced into it included; its tokens are those that the policy wrote."""
    thinking_tokens: int
    """Written by the policy for the thought, ends that were taken away included."""
    answer_tokens: int
    """Written by the policy for the answer."""
    extensions: int
    """How often it was kept from ending its thought."""
    closed: Closed


@runtime_checkable
class EachSampler(Protocol):
    """A sampler that can have a limit for each prompt, as both of ours can."""

    def sample_each(
        self,
        prompts: Sequence[str],
        decoding: Decoding,
        limits: Sequence[int],
        numbers: Sequence[int],
        ledger: Ledger | None = None,
    ) -> list[Attempt]:
        """As `Sampler.sample`, with ``limits`` in place of ``max_tokens``, and draws that follow from ``numbers``."""
        ...


@runtime_checkable
class Bounded(Protocol):
    """A sampler that knows how much its policy can read."""

    def room(self, prompt: str) -> int | None:
        """Tokens that can follow a prompt; None if there is no end."""
        ...


@dataclass
class _Open:
    """A thought on its way."""

    prompt: str
    number: int
    """See `draw_numbers`."""
    text: str = ""
    tokens: int = 0
    asked: int = 0
    """Times."""
    limit: int = 0
    """Tokens that were asked for last."""
    extensions: int = 0
    closed: Closed | None = None

    def ended(self, format: Format) -> str:
        """The text with its thought closed and its answer opened."""
        newline = "\n" if self.text and not self.text.endswith("\n") else ""
        return self.text + newline + format.close_thought + format.open_answer


class BudgetForcing:
    """A sampler whose attempts keep to a budget.

    Args:
        sampler: whom it asks; one that takes prompts as they are, so no chat server.
        format: whose marks close the thought and open the answer. Prompts end inside the thought, as its prompts do.
        budget: how long thoughts may and must be.
    """

    def __init__(self, sampler: Sampler, format: Format, budget: Budget) -> None:
        self.sampler, self.format, self.budget = sampler, format, budget

    @property
    def name(self) -> str:
        """What tables and ledgers call it."""
        return f"{self.sampler.name} under a budget"

    @property
    def settings(self) -> dict[str, Any]:
        """The budget, as trees remember it."""
        budget = self.budget
        given = {"thinking": budget.most, "least": budget.least, "extensions": budget.extensions, "wait": budget.wait}
        return {**given, "answer": budget.answer, "loops": None if budget.loops is None else asdict(budget.loops)}

    def sample(self, prompts: Sequence[str], decoding: Decoding, ledger: Ledger | None = None) -> list[Attempt]:
        """The attempts of `think`; see `Sampler`."""
        return [thought.attempt for thought in self.think(prompts, decoding, ledger)]

    def think(self, prompts: Sequence[str], decoding: Decoding, ledger: Ledger | None = None) -> list[Thought]:
        """A thought and an answer for each prompt, in their order.

        Every text is whole: a closed thought, and a closed answer, which is blank only if the policy left it so. Where
        a policy in this process has few positions, thoughts end early enough to leave room for the answer.

        Args:
            prompts: as in `Sampler.sample`.
            decoding: its ``max_tokens`` does not matter, as the budget has its own.
            ledger: charged with everything that was read and written.

        Raises:
            UserError: as the sampler; or the decoding has stop strings, since the format's marks are what ends texts.
        """
        if decoding.stop:
            raise UserError("stop strings and a budget exclude each other: the marks of the format end a thought")
        thoughts = [_Open(prompt, number) for prompt, number in zip(prompts, draw_numbers(prompts), strict=True)]
        mark = self.format.close_thought or self.format.open_answer
        end = mark.strip() or mark
        while unfinished := [number for number, thought in enumerate(thoughts) if thought.closed is None]:
            for thought in (thoughts[number] for number in unfinished):
                thought.limit = self._limit(thought)
                if thought.limit < 1:
                    thought.closed = "budget"
            asked = [number for number in unfinished if thoughts[number].closed is None]
            pieces = self._ask(thoughts, asked, dataclasses.replace(decoding, stop=(end,)), ledger)
            for number, piece in zip(asked, pieces, strict=True):
                self._think_on(thoughts[number], piece, end)
        for thought in thoughts:
            # Tokens that spell no text are more of them when they are read again.
            while thought.text and (lacking := self.budget.answer - self._room(thought)) > 0:
                thought.text = thought.text[:-lacking]
            thought.text = thought.ended(self.format)
            thought.limit = self.budget.answer
        stop = dataclasses.replace(decoding, stop=(self.format.close_answer,))
        answers = self._ask(thoughts, range(len(thoughts)), stop, ledger)
        return [self._thought(thought, answer) for thought, answer in zip(thoughts, answers, strict=True)]

    def _limit(self, thought: _Open) -> int:
        left = min(self.budget.most - thought.tokens, self._room(thought) - self.budget.answer)
        return left if self.budget.loops is None else min(left, self.budget.piece)

    def _room(self, thought: _Open) -> int:
        """Tokens that can follow if the thought ends here."""
        if not isinstance(self.sampler, Bounded):
            return sys.maxsize
        room = self.sampler.room(thought.prompt + thought.ended(self.format))
        return sys.maxsize if room is None else room

    def _think_on(self, thought: _Open, piece: Attempt, end: str) -> None:
        """Take in what was written, and close the thought or make it go on."""
        budget = self.budget
        written = piece.text.removesuffix(end) if piece.finish == "stop" else piece.text
        thought.text += written
        thought.tokens += max(1, piece.tokens)  # so that a server that counts no end marks cannot keep us here
        ended = piece.finish != "length"
        if ended and thought.tokens >= budget.least and thought.extensions >= budget.extensions:
            thought.closed = "itself"
        elif thought.tokens >= budget.most or (
            not ended and piece.tokens < thought.limit
        ):  # the policy can read no more
            thought.closed = "budget"
        elif budget.loops is not None and budget.loops.found(thought.text):
            thought.closed = "loop"
        elif ended:
            apart = thought.text and not thought.text[-1].isspace() and not budget.wait[0].isspace()
            thought.text += ("\n" if apart else "") + budget.wait
            thought.extensions += 1

    def _ask(
        self,
        thoughts: Sequence[_Open],
        numbers: Sequence[int],
        decoding: Decoding,
        ledger: Ledger | None,
    ) -> list[Attempt]:
        """What these thoughts go on with. Draws follow from the prompt, and how often it was asked, alone."""
        asked = [thoughts[number] for number in numbers]
        if not asked:
            return []
        prompts = [thought.prompt + thought.text for thought in asked]
        limits = [thought.limit for thought in asked]
        draws = [thought.number + thought.asked for thought in asked]
        for thought in asked:
            thought.asked += 1
        if isinstance(self.sampler, EachSampler):
            return self.sampler.sample_each(prompts, decoding, limits, draws, ledger)
        return _grouped(self.sampler, prompts, decoding, limits, max(thought.asked for thought in asked), ledger)

    def _thought(self, thought: _Open, answer: Attempt) -> Thought:
        assert thought.closed is not None
        closing = "" if answer.finish == "stop" else self.format.close_answer
        finish: Finish = answer.finish
        text = thought.text + answer.text + closing
        tokens = thought.tokens + answer.tokens
        attempt = Attempt(thought.prompt, text, tokens=tokens, finish=finish, thinking_tokens=thought.tokens)
        return Thought(attempt, thought.tokens, answer.tokens, thought.extensions, thought.closed)


def _grouped(
    sampler: Sampler,
    prompts: Sequence[str],
    decoding: Decoding,
    limits: Sequence[int],
    turn: int,
    ledger: Ledger | None,
) -> list[Attempt]:
    """For samplers that have one limit for all: a call for every limit."""
    attempts: dict[int, Attempt] = {}
    for limit in dict.fromkeys(limits):
        places = [place for place, other in enumerate(limits) if other == limit]
        # Another seed for every call: the same one would draw the same for the same place.
        own = dataclasses.replace(decoding, max_tokens=limit, seed=decoding.seed + 1_000_003 * turn + limit)
        found = sampler.sample([prompts[place] for place in places], own, ledger)
        attempts.update(zip(places, found, strict=True))
    return [attempts[place] for place in range(len(prompts))]


# --- how well a method keeps to budgets, and what they are good for (section 3.2 of the paper)


def control(tokens: Sequence[float], least: float, most: float) -> float:
    """The share of thoughts that keep to their budget: ``1/|A| sum_a 1[least <= a <= most]``.

    Raises:
        ValueError: there is no thought.
    """
    if not tokens:
        raise ValueError("There is no thought to measure; give at least one.")
    return sum(least <= count <= most for count in tokens) / len(tokens)


def scaling(points: Sequence[tuple[float, float]]) -> float:
    """What a token more brings, on average: the mean of ``(f(b) - f(a)) / (b - a)`` over all pairs of budgets a < b.

    Args:
        points: thinking tokens, and the accuracy ``f`` with them.

    Raises:
        ValueError: no two budgets differ.
    """
    slopes = [
        (high - low) / (more - fewer)
        for (fewer, low), (more, high) in itertools.combinations(sorted(points), 2)
        if fewer < more
    ]
    if not slopes:
        raise ValueError(f"{len(points)} points give no slope; measure at two different budgets at least.")
    return sum(slopes) / len(slopes)


def performance(points: Sequence[tuple[float, float]]) -> float:
    """The best accuracy at any budget: ``max_a f(a)``; points as in `scaling`.

    Raises:
        ValueError: there is no point.
    """
    if not points:
        raise ValueError("There is no accuracy to choose from; measure at one budget at least.")
    return max(accuracy for _, accuracy in points)
