"""Formats: how a problem is put to a policy, and where in its text the thought ends and the answer begins.

A text of a policy is a *thought*, a list of steps one line each, and an *answer* between two marks. A `Format` writes
such texts for training and takes them apart again for judging. What it cannot take apart is no failure of the program
but of the policy: `Parsed` says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mnemonist.errors import UserError, nearest

LONGEST_TEXT = 1_000_000
"""Characters that are looked at; what stands behind them is no answer."""
MOST_LINES = 50_000
"""Lines of a thought that are looked at, empty ones among them; what stands behind them is no step."""


@dataclass(frozen=True)
class Parsed:
    """A policy's text, taken apart."""

    steps: tuple[str, ...]
    """The lines of the thought, without empty ones."""
    answer: str | None
    """What stands between the marks of the answer, stripped; None if there is no closed answer."""
    well_formed: bool
    """Whether the text is a closed thought, then a closed answer, and nothing else."""


@dataclass(frozen=True)
class Format:
    """The marks of a text.

    ``{before}{lead}question{after}`` is read, ``thought{close_thought}{open_answer}answer{close_answer}`` is written.

    Raises:
        UserError: an answer has no marks.
    """

    name: str
    source: str = ""
    before: str = ""
    """A chat's marks before the question."""
    lead: str = ""
    """Stands before the question where no chat has marks of its own. A pretrained model that gets no mark for the
    beginning of a text cannot read its first token, which must not be a part of the question (`docs/log.md`)."""
    after: str = "\n"
    """Stands behind the question; it opens the thought, so that every text begins inside."""
    close_thought: str = ""
    open_answer: str = "answer: "
    close_answer: str = "\n"
    end: str = ""
    """The mark behind a whole text, where it is not the one that the policy's tokenizer has for the end of all texts:
    chat templates may have another for the end of a message."""
    message: str | None = None
    """Where questions are a user's message in a chat template: what the prompt opens of the answering message. None
    where they are plain text."""

    def __post_init__(self) -> None:
        if not self.open_answer or not self.close_answer:
            raise UserError(f"format {self.name!r} has no mark before or behind an answer; nobody could find it")

    def prompt(self, question: str) -> str:
        """What the policy reads."""
        return f"{self.before_question}{question}{self.after}"

    @property
    def before_question(self) -> str:
        """What the policy reads before the question."""
        return self.before + self.lead

    @property
    def opening(self) -> str:
        """What the prompt writes on behalf of the policy: the line after the question's own, or within its message."""
        return self.after.lstrip("\n") if self.message is None else self.message

    def question_in(self, prompt: str) -> str:
        """The question of a prompt.

        Raises:
            UserError: the prompt is not of this format.
        """
        before, after = self.before_question, self.after
        if len(prompt) < len(before + after) or not (prompt.startswith(before) and prompt.endswith(after)):
            raise UserError(f"{prompt[-50:]!r} is no prompt of format {self.name}; ask with the format's own")
        return prompt[len(before) : len(prompt) - len(after)]

    def write(self, steps: Sequence[str], answer: str | None) -> str:
        """What a policy should write; without an answer, the thought so far, still open.

        Raises:
            ValueError: a step is empty, has a line break, or holds a mark; or the answer is empty, or holds its end.
        """
        for step in steps:
            if not step.strip() or "\n" in step or self._has_mark(step):
                raise ValueError(f"{step!r} is no step of format {self.name!r}: a step is one line without its marks.")
        thought = "".join(f"{step}\n" for step in steps)
        if answer is None:
            return thought
        if not answer.strip() or self.close_answer in answer:
            raise ValueError(f"{answer!r} is no answer of format {self.name!r}: it is empty, or holds its end.")
        return f"{thought}{self.close_thought}{self.open_answer}{answer}{self.close_answer}"

    def parse(self, text: str) -> Parsed:
        """Take a text apart. Never raises: a text that ends too early has no answer."""
        text = text[:LONGEST_TEXT]
        thought, opened, rest = text.partition(self.open_answer if not self.close_thought else self.close_thought)
        closed_thought = bool(opened)
        between = ""
        if self.close_thought and opened:
            between, opened, rest = rest.partition(self.open_answer)
        answer, closed, behind = rest.partition(self.close_answer) if opened else ("", "", "")
        if opened and not closed and not self.close_answer.strip():  # the end of the text ends a line too
            answer, closed = rest, "\n"
        given = answer.strip() if closed and answer.strip() else None
        steps = tuple(line.strip() for line in _lines(thought))
        fine = (
            closed_thought and given is not None and not (between.strip() or behind.strip() or self._has_mark(thought))
        )
        return Parsed(steps, given, fine)

    def _has_mark(self, thought: str) -> bool:
        marks = (self.close_thought.strip(), self.open_answer.strip())
        return any(mark and mark in thought for mark in marks)

    def pieces(self, text: str) -> tuple[list[str], str | None]:
        """What a judge looks at one by one: the lines of a thought; and its end as one, None if it has not come."""
        thought, opened, rest = text.partition(self.close_thought or self.open_answer)
        return _lines(thought), (opened + rest).strip() if opened else None


def _lines(thought: str) -> list[str]:
    """Those that are not empty."""
    return [line for line in thought.split("\n", MOST_LINES)[:MOST_LINES] if line.strip()]


FORMATS: Mapping[str, Format] = {
    "plain": Format("plain", "ours: few characters, for small models trained from nothing"),
    "think": Format(
        "think",
        "DeepSeek-R1 (arXiv 2501.12948), with the answer in marks as in TinyZero and open-r1",
        lead="Question: ",
        after="\n<think>\n",
        close_thought="</think>\n",
        open_answer="<answer>",
        close_answer="</answer>",
    ),
    "s1": Format(
        "s1",
        "s1 (arXiv 2501.19393), section 3 and its published training text",
        before="<|im_start|>user\n",
        after="<|im_end|>\n<|im_start|>assistant\n<|im_start|>think\n",
        close_thought="<|im_start|>answer\n",
        open_answer="Answer: ",
        close_answer="\n",
    ),
}
"""Named formats, each with its source."""


def find_format(name: str) -> Format:
    """The row of `FORMATS` with this name.

    Raises:
        UserError: there is none; the message suggests the nearest one.
    """
    if name not in FORMATS:
        raise UserError(f"there is no format {name!r}{nearest(name, FORMATS)}; known: {', '.join(FORMATS)}")
    return FORMATS[name]
