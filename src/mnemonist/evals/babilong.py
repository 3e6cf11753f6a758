"""Facts scattered over a long text: to answer, find the few sentences that matter and put them together.

BABILong (Kuratov et al. 2024, arXiv 2406.10149) scatters the facts of bAbI questions over books. Here a small world
tells the facts (`world`) and a small grammar writes the text around them (`background`), which is easier to tell
apart from the facts than a book is: hence ``babilong-like``. As there, facts keep their order, gaps are drawn with
equal chances, and setting ``length`` 0 is the facts alone.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from mnemonist.data import ByteTokenizer, Tokenizer
from mnemonist.errors import UserError
from mnemonist.evals.background import sentences
from mnemonist.evals.needles import doubling
from mnemonist.evals.problems import Problem, Question, Setting
from mnemonist.evals.world import FACTS, ROOMS, Story, tell


@dataclass(frozen=True)
class Babilong:
    """bAbI questions in long texts.

    Raises:
        ValueError: a field is out of range.
    """

    name: ClassVar[str] = "babilong-like"
    metric: ClassVar[Literal["token", "problem"]] = "problem"

    task: int = 0
    """1, where is a person; 2, where is a thing; 3, where was it before; 0 tests all three, and trains on all."""
    facts: int = 10
    """Most facts of a question; BABILong has up to 10, 68 and 32."""
    trained: int = 1024
    """Tokens of the longest lesson."""
    shortest: int = 1024
    """Tokens of the shortest test but the one of facts alone; the others double up to `longest`."""
    longest: int = 16384
    """Tokens of the longest test."""
    tokenizer: Tokenizer = field(default_factory=ByteTokenizer)
    """The model's."""

    def __post_init__(self) -> None:
        if self.task not in (0, *FACTS):
            raise ValueError(f"task is {self.task}; it must be 1, 2 or 3, or 0 for all.")
        if self.facts < 4:
            raise ValueError(f"facts is {self.facts}; questions of task 3 need at least 4.")
        if self.trained < 1 or not 1 <= self.shortest <= self.longest:
            raise ValueError(
                f"trained is {self.trained}, shortest {self.shortest} and longest {self.longest}; they must be "
                "positive, and shortest at most longest."
            )

    @property
    def vocab_size(self) -> int:
        """Of the tokenizer."""
        return self.tokenizer.vocab_size

    @property
    def grid(self) -> list[Setting]:
        """For each task: the facts alone, then doubling lengths."""
        lengths = [0, *doubling(self.shortest, self.longest)]
        return [{"task": task, "length": length} for task in self._tasks for length in lengths]

    @property
    def lessons(self) -> list[Setting]:
        """For each task: the facts alone, half of the longest, and the longest."""
        return [{"task": t, "length": length} for t in self._tasks for length in (0, self.trained // 2, self.trained)]

    @property
    def chance(self) -> float:
        """Of one of the rooms; to name the room that was named last is right about half of the time."""
        return 1 / len(ROOMS)

    def draw(self, random: np.random.Generator, setting: Setting) -> Problem:
        """One text with its question, of at most so many tokens, the answer included.

        Raises:
            UserError: there is no such task, or the length has no room for the facts.
        """
        task, length = int(setting["task"]), int(setting["length"])
        if task not in FACTS:
            raise UserError(f"there is no task {task}; the tasks are 1, 2 and 3")
        least, most = FACTS[task]
        count = int(random.integers(least, min(most, self.facts) + 1))
        while True:
            story = tell(random, task, count)
            problem = _question(story, [], np.zeros(count, np.int64)).problem(self.tokenizer)
            room = length - len(problem.tokens) - 1
            if length == 0:
                return problem
            if room >= 0:
                break
            if count == least:
                raise UserError(
                    f"{count} facts with their question take {len(problem.tokens) + 1} tokens; {length} are too few"
                )
            count = max(least, count // 2)  # a short text has room for few facts
        around: list[str] = []
        for sentence in sentences(random):
            room -= len(self.tokenizer.encode(sentence + " "))
            if room < 0:
                break
            around.append(sentence)
        gaps = np.sort(random.integers(0, len(around) + 1, len(story.facts)))
        return _question(story, around, gaps).problem(self.tokenizer)

    @property
    def _tasks(self) -> tuple[int, ...]:
        return tuple(FACTS) if self.task == 0 else (self.task,)


def _question(story: Story, around: list[str], gaps: np.ndarray) -> Question:
    """The facts within a text, each before the sentence with the number of its gap."""
    parts: list[str] = []
    begins = [0, *gaps.tolist()]
    for (begin, end), fact in zip(itertools.pairwise(begins), story.facts, strict=True):
        parts += [*around[begin:end], fact]
    parts += around[begins[-1] :]
    return Question(f"{' '.join(parts)}\nQuestion: {story.question}\nAnswer:", f" {story.answer}")
