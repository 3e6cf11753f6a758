"""Facts planted in a real text: a line says a number for a name, and long afterwards another line asks for it.

Between the two stands source code, as it comes, so that a memory must keep a fact while it goes on learning from
everything else it reads. It is the haystack test of RULER (arXiv 2404.06654) with a haystack that is worth reading: a
model of text can be trained on it without unlearning its text. Lessons are stretches of Python's standard library with
several facts and questions. In a third of them every byte is to be foretold; in the others there are more questions
than text, and their answers are what counts. The test reads modules that training leaves out, and asks for one number
at a distance.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar, Literal

import numpy as np

from mnemonist.data import IGNORED, ByteTokenizer, Split, Tokenizer, standard_library
from mnemonist.errors import UserError
from mnemonist.evals.needles import doubling, word_lists
from mnemonist.evals.problems import Problem, Question, Setting

FACT, QUESTION = "# remember: {key} = {value}\n", "# recall: {key} ="
DIGITS = 4
NEAREST = 64  # bytes between a fact and its first question in a lesson, at least
BEFORE = 256  # bytes of source code before the fact of a test
FACTS = (1, 2, 4, 8)  # of a lesson; with one, it is enough to copy, with more, names must be told apart
LEAST_TEXT = 8  # a lesson has at least the eighth part of its bytes of source code, or fewer questions
TEXT, RECALL = 128, 32  # bytes of a lesson for each question: mostly text, or mostly questions


@dataclass(frozen=True)
class Planted:
    """Recall in source code.

    Raises:
        ValueError: a field is out of range.
    """

    name: ClassVar[str] = "planted"
    metric: ClassVar[Literal["token", "problem"]] = "problem"

    trained: int = 1024
    """Bytes of a lesson."""
    shortest: int = 256
    """Bytes between fact and question in the nearest test; the others double up to `longest`."""
    longest: int = 16384
    """Bytes in the furthest."""
    tokenizer: Tokenizer = field(default_factory=ByteTokenizer)
    """The model's."""

    def __post_init__(self) -> None:
        if self.trained < 1024 or not 1 <= self.shortest <= self.longest:
            raise ValueError(
                f"trained is {self.trained}, shortest {self.shortest} and longest {self.longest}; the first must be at "
                "least 1024, the others positive and the second at most the third."
            )

    @property
    def vocab_size(self) -> int:
        """Of the tokenizer."""
        return self.tokenizer.vocab_size

    @property
    def grid(self) -> list[Setting]:
        """Doubling distances."""
        return [{"distance": distance} for distance in doubling(self.shortest, self.longest)]

    @property
    def lessons(self) -> list[Setting]:
        """One length, with few facts and many, and with much text between them or little.

        Where text is little, only the answers are asked for: beside everything else that a text has to teach, recall
        would hardly be learned at first.
        """
        counts = [self.trained // each for each in (TEXT, RECALL, RECALL)]
        return [{"bytes": self.trained, "facts": facts, "questions": n} for n in counts for facts in FACTS]

    @property
    def chance(self) -> float:
        """Next to nothing."""
        return 0.0

    def draw(self, random: np.random.Generator, setting: Setting) -> Problem:
        """A lesson of so many ``bytes`` with ``facts`` and ``questions``, or a test at a ``distance``.

        Raises:
            UserError: there is not so much source code.
        """
        if "bytes" in setting:
            return self._lesson(random, *(int(setting[name]) for name in ("bytes", "facts", "questions")))
        distance = int(setting["distance"])
        text = _stretch(random, "heldout", BEFORE + distance)
        key, value = fact(random)
        at, end = text.rfind(b"\n", 0, BEFORE) + 1, text.rfind(b"\n") + 1
        read = text[:at] + FACT.format(key=key, value=value).encode() + text[at:end]
        return Question(read.decode("utf-8", "replace") + QUESTION.format(key=key), f" {value}").problem(self.tokenizer)

    def _lesson(self, random: np.random.Generator, length: int, facts: int, questions: int) -> Problem:
        """Source code with facts and questions between its lines."""
        values: dict[str, str] = {}
        for _ in range(facts):
            key, value = fact(random, values)
            values[key] = value
        said = [FACT.format(key=key, value=value) for key, value in values.items()]
        asked = [(QUESTION.format(key=key), f" {value}") for key, value in values.items()]
        room, times = length - sum(map(len, said)), [0] * facts
        for number in range(questions):
            which = number % facts
            taken = sum(map(len, asked[which])) + 1
            if room - taken >= length // LEAST_TEXT:
                room -= taken
                times[which] += 1
        text = _stretch(random, "train", room)
        planted: list[tuple[int, tuple[str, ...]]] = []
        for line, question, count in zip(said, asked, times, strict=True):
            gaps = np.exp(random.uniform(np.log(min(NEAREST, room // 8)), np.log(room - 1), count)).astype(int)
            at = int(random.integers(0, room - gaps.max(initial=0)))
            planted += [(at, (line,)), *((at + int(gap), (*question, "\n")) for gap in gaps)]
        planted.sort(key=lambda place: place[0])
        return self._written(text, planted, everything=questions <= length // TEXT)

    def _written(self, text: bytes, planted: Sequence[tuple[int, tuple[str, ...]]], everything: bool) -> Problem:
        """The text with lines in their places; of a line of several parts, the second is an answer."""
        ids = [self.tokenizer.encode("", bos=True)]
        wanted = [np.zeros(1, bool)]
        done = 0

        def write(part: str, answer: bool) -> None:
            ids.append(self.tokenizer.encode(part))
            wanted.append(np.full(len(ids[-1]), answer or everything))

        for at, parts in planted:
            end = max(done, text.find(b"\n", at) + 1)  # behind the line that the place is in
            write(text[done:end].decode("utf-8", "replace"), False)
            done = end
            for number, part in enumerate(parts):
                write(part, number == 1)
        write(text[done:].decode("utf-8", "replace"), False)
        whole, asks = np.concatenate(ids), np.concatenate(wanted)
        return Problem(whole[:-1], np.where(asks, whole, IGNORED)[1:])


def fact(random: np.random.Generator, taken: Container[str] = ()) -> tuple[str, str]:
    """A name that is not taken, and a number."""
    names = word_lists()[1]
    while (name := names[random.integers(len(names))]) in taken or " " in name:
        pass
    return name, str(random.integers(10 ** (DIGITS - 1), 10**DIGITS))


def source_lines(random: np.random.Generator) -> Iterator[str]:
    """Lines of the source code that training leaves out, from one of them on, all over again and again."""
    whole, lines = _source("heldout")
    begin = int(lines[random.integers(len(lines))])
    for text in itertools.chain([whole[begin:]], itertools.repeat(whole)):
        yield from text.decode("utf-8", "replace").splitlines(keepends=True)


def _stretch(random: np.random.Generator, split: Split, length: int) -> bytes:
    """So many bytes of source code from the beginning of a line on.

    Raises:
        UserError: there is not so much of it.
    """
    whole, lines = _source(split)
    last = int(np.searchsorted(lines, len(whole) - length, side="right"))
    if last == 0:
        raise UserError(f"{length:,} bytes of source code are asked for, but there are {len(whole):,} of {split}")
    begin = int(lines[random.integers(last)])
    return whole[begin : begin + length]


@cache
def _source(split: Split) -> tuple[bytes, np.ndarray]:
    """All modules of a split, one after the other, and where lines begin."""
    documents = standard_library(split)
    whole = b"\n\n".join(document.text for document in documents)
    breaks = np.flatnonzero(np.frombuffer(whole, np.uint8) == ord("\n"))
    return whole, np.array(list(itertools.chain([0], breaks[:-1] + 1)))
