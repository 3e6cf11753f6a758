"""A needle in a haystack: one sentence says a secret, much text stands around it, and at the end it is asked for.

RULER (Hsieh et al. 2024, arXiv 2404.06654), S-NIAH and MK-NIAH. Templates, needles, haystacks of noise and of needles
are RULER's, to the letter; keys are made of the same lists of words (of the package wonderwords). So ``single-1``,
``multikey-2`` and ``multikey-3`` are RULER's tasks exactly. The others put needles into essays that may not be passed
on; here `background` writes the text, and their names end in ``-like``.

Two things differ, and both make the task stricter. RULER looks for the answer anywhere in 128 tokens that a model
writes; here it must come next, greedily. And where there are several answers, RULER takes them in any order; here
they are asked for with commas between, in the order of the text (``multivalue-like``) or of the question
(``multiquery-like``).
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import ClassVar, Literal

import numpy as np

from mnemonist.data import ByteTokenizer, Tokenizer
from mnemonist.errors import UserError, nearest
from mnemonist.evals.background import sentences
from mnemonist.evals.problems import Problem, Question, Setting, generator

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "One of the special magic {kind} for {key} is: {value}."
OPENING = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. I will quiz you about "
    "the {kind} afterwards.\n"
)
QUESTION = (
    "\nWhat are all the special magic {kind} for {query} mentioned in the provided text?"
    " The special magic {kind} for {query} mentioned in the provided text are"
)
DEPTHS = np.round(np.linspace(0, 100, 40)).astype(int)  # percent, where needles stand in essays


@dataclass(frozen=True)
class Variant:
    """One of RULER's haystacks and needles."""

    haystack: Literal["noise", "needles", "background"]
    kind: Literal["numbers", "uuids"]
    keys: Literal["words", "uuids"] = "words"
    needles: int = 1
    """Keys with a secret each."""
    values: int = 1
    """Secrets of each key."""
    queries: int = 1
    """Keys that are asked for."""


VARIANTS = {
    "single-1": Variant("noise", "numbers"),
    "single-2-like": Variant("background", "numbers"),
    "single-3-like": Variant("background", "uuids"),
    "multikey-1-like": Variant("background", "numbers", needles=4),
    "multikey-2": Variant("needles", "numbers"),
    "multikey-3": Variant("needles", "uuids", keys="uuids"),
    "multivalue-like": Variant("background", "numbers", values=4),
    "multiquery-like": Variant("background", "numbers", needles=4, queries=4),
}


@dataclass(frozen=True)
class NeedleInHaystack:
    """NIAH.

    Raises:
        ValueError: a field is out of range.
    """

    name: ClassVar[str] = "niah"
    metric: ClassVar[Literal["token", "problem"]] = "problem"

    variant: str = "single-1"
    """single-1, single-2-like, single-3-like, multikey-1-like, multikey-2, multikey-3, multivalue-like,
    multiquery-like."""
    shortest: int = 1024
    """Tokens of the shortest problems of the test; the others double up to `longest`."""
    longest: int = 16384
    """Tokens of the longest."""
    trained: int = 1024
    """Tokens of the longest lesson; shorter ones halve down to 512 (or to this, if it is less)."""
    depth: int = -1
    """Where the needle stands, in percent of the text; -1 draws it as RULER does."""
    tokenizer: Tokenizer = field(default_factory=ByteTokenizer)
    """The model's."""

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(
                f"variant is {self.variant!r}{nearest(self.variant, VARIANTS)}; it must be one of "
                f"{', '.join(VARIANTS)}."
            )
        if not 1 <= self.shortest <= self.longest or self.trained < 1:
            raise ValueError(
                f"shortest is {self.shortest}, longest {self.longest} and trained {self.trained}; they must be "
                "positive, and the first at most the second."
            )
        if not -1 <= self.depth <= 100:
            raise ValueError(f"depth is {self.depth}; it must be a percentage, or -1 to draw it.")
        if self.depth >= 0 and self.spec.needles * self.spec.values > 1:
            raise ValueError(f"depth is {self.depth}, but {self.variant} has several needles; leave depth out.")

    @property
    def spec(self) -> Variant:
        """The variant's row of `VARIANTS`."""
        return VARIANTS[self.variant]

    @property
    def vocab_size(self) -> int:
        """Of the tokenizer."""
        return self.tokenizer.vocab_size

    @property
    def grid(self) -> list[Setting]:
        """Doubling lengths."""
        return [{"length": length} for length in doubling(self.shortest, self.longest)]

    @property
    def lessons(self) -> list[Setting]:
        """Lengths up to the one trained."""
        return [{"length": length} for length in doubling(min(512, self.trained), self.trained)]

    @property
    def chance(self) -> float:
        """Next to nothing."""
        return 0.0

    def draw(self, random: np.random.Generator, setting: Setting) -> Problem:
        """One text with its question, of at most so many tokens, the answer included.

        Raises:
            UserError: the length has no room for the needles and the question.
        """
        return fitted(self._plan(random), int(setting["length"]), self.tokenizer, f"niah:variant={self.variant}")

    def _plan(self, random: np.random.Generator) -> Callable[[int], Question]:
        """What the problem is with so many pieces of haystack; whatever their number, the rest is the same."""
        spec = self.spec
        keys = _keys(random, spec.keys, spec.needles)
        secrets = {key: [secret(random, spec.kind) for _ in range(spec.values)] for key in keys}
        needles = [NEEDLE.format(kind=spec.kind, key=key, value=value) for key in keys for value in secrets[key]]
        needles = [needles[i] for i in random.permutation(len(needles))]
        asked = [keys[i] for i in random.permutation(len(keys))[: spec.queries]]
        if self.depth >= 0:
            places = np.array([self.depth / 100])
        elif spec.haystack == "background":  # RULER's essays: one of 40 depths for each needle
            places = np.sort(random.choice(DEPTHS, len(needles), replace=False)) / 100
        else:
            places = np.sort(random.random(len(needles)))
        hay = _Haystack(spec, random)

        def question(count: int) -> Question:
            pieces = hay.first(count)
            for needle, place in reversed(list(zip(needles, places, strict=True))):
                pieces.insert(int(place * count), needle)
            context = (" " if spec.haystack == "background" else "\n").join(pieces)
            answers = [value for key in asked for value in secrets[key]]
            if len(asked) == 1:
                answers.sort(key=context.index)
            opening, asks = parts_of_prompt(spec.kind, asked, len(answers))
            return Question(opening + context + asks, " " + ", ".join(answers))

        return question


def parts_of_prompt(kind: str, keys: Sequence[str], answers: int = 1) -> tuple[str, str]:
    """What is read before the haystack and behind it, as RULER words it."""
    opening, question = OPENING, QUESTION
    query = keys[0] if len(keys) == 1 else ", ".join(keys[:-1]) + ", and " + keys[-1]
    if answers == 1:
        kind = kind.removesuffix("s")
        opening = opening.replace("Some", "A").replace("are", "is")
        question = question.replace("are all", "is").replace("are", "is")
    return opening.format(kind=kind), question.format(kind=kind, query=query)


def words_of(variant: str, count: int) -> Iterator[str]:
    """Texts that a variant's problems are made of, for training a tokenizer: questions with little haystack, answers.

    Raises:
        ValueError: there is no such variant.
    """
    task = NeedleInHaystack(variant)
    for index in range(count):
        question = task._plan(generator("words of niah", "train", {}, 0, index))(3)
        yield from (question.text, question.answer)


def secret(random: np.random.Generator, kind: str) -> str:
    """A number of seven digits, or a UUID of version 4."""
    if kind == "numbers":
        return str(random.integers(10**6, 10**7))
    return str(uuid.UUID(bytes=random.bytes(16), version=4))


def key_words(random: np.random.Generator) -> str:
    """An adjective and a noun."""
    adjectives, nouns = word_lists()
    return f"{adjectives[random.integers(len(adjectives))]}-{nouns[random.integers(len(nouns))]}"


@cache
def word_lists() -> tuple[list[str], list[str]]:
    """Adjectives and nouns of the package wonderwords, as RULER takes them."""
    assets = files("wonderwords") / "assets"
    adjectives, nouns = (
        [line.strip() for line in (assets / name).read_text(encoding="utf-8").splitlines() if line.strip()]
        for name in ("adjectivelist.txt", "nounlist.txt")
    )
    return adjectives, nouns


def fitted(question: Callable[[int], Question], length: int, tokenizer: Tokenizer, what: str) -> Problem:
    """The question with as much haystack as fits into so many tokens, the answer included.

    Args:
        question: makes it with a number of pieces of haystack.
        length: tokens at most.
        tokenizer: what counts them.
        what: for the message.

    Raises:
        UserError: it does not fit without any haystack.
    """

    def tokens(count: int) -> int:
        asked = question(count)
        return 1 + len(tokenizer.encode(asked.text)) + len(tokenizer.encode(asked.answer))

    least = tokens(0)
    if least > length:
        raise UserError(f"{what} takes {least} tokens without any haystack; {length} are too few")
    sample = max(1, min(64, length // 16))
    per_piece = max(1.0, (tokens(sample) - least) / sample)
    count = int((length - least) / per_piece)
    while (over := tokens(count) - length) > 0:
        count -= max(1, int(over / per_piece))
    return question(count).problem(tokenizer)


class _Haystack:
    """Pieces of a haystack, drawn as they are needed."""

    def __init__(self, spec: Variant, random: np.random.Generator) -> None:
        self._made: list[str] = []
        self._source = self._pieces(spec, random)

    def first(self, count: int) -> list[str]:
        self._made += itertools.islice(self._source, max(0, count - len(self._made)))
        return self._made[:count]

    @staticmethod
    def _pieces(spec: Variant, random: np.random.Generator) -> Iterator[str]:
        if spec.haystack == "noise":
            return itertools.repeat(NOISE)
        if spec.haystack == "background":
            return sentences(random)
        return (
            NEEDLE.format(kind=spec.kind, key=_key(random, spec.keys), value=secret(random, spec.kind))
            for _ in itertools.count()
        )


def _key(random: np.random.Generator, kind: str) -> str:
    return key_words(random) if kind == "words" else secret(random, "uuids")


def _keys(random: np.random.Generator, kind: str, count: int) -> list[str]:
    """So many that differ."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[_key(random, kind)] = None
    return list(found)


def doubling(first: int, last: int) -> list[int]:
    """From the first, doubling, to the last."""
    lengths = [first]
    while lengths[-1] < last:
        lengths.append(min(2 * lengths[-1], last))
    return lengths
