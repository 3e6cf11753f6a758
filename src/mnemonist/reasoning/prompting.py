"""Prompting: how a policy that was not trained on a format is asked to think in it.

Chain of thought (Wei et al. 2022, arXiv 2201.11903) shows a few problems with their solutions before the question;
zero-shot prompting says in words what is wanted. A policy that was tuned for chats gets either in its own template.
The thought is opened in every case: whatever the policy writes next is parsed like any other text of the format.

What stays the same for every question becomes part of a format (`in_context`), so that whoever takes formats can ask
that way, and learn that way. A teacher is asked so without its student learning more than the question and the attempt
(`InContext`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mnemonist.errors import UserError
from mnemonist.reasoning.attempts import Attempt, Decoding, Sampler
from mnemonist.reasoning.formats import Format
from mnemonist.reasoning.ledger import Ledger
from mnemonist.reasoning.sampling.text import BORDER, end_of_message, in_template
from mnemonist.reasoning.search.proposers import require_steps
from mnemonist.reasoning.tasks.task import Split, StepTask, Task


@dataclass(frozen=True)
class Example:
    """A problem that is solved before the policy's eyes."""

    question: str
    steps: tuple[str, ...]
    answer: str


def solved_examples(
    task: StepTask, count: int, difficulty: int, split: Split = "train", first: int = 0
) -> tuple[Example, ...]:
    """Problems of a task from number ``first`` on, with the task's own solutions.

    Raises:
        UserError: the task has no such problems.
    """
    examples = []
    for index in range(first, first + count):
        problem = task.problem(split, difficulty, index)
        steps = tuple(task.solution(problem))
        examples.append(Example(problem.question, steps, task.answer_of(problem, steps) or problem.answer))
    return tuple(examples)


def instruction_for(format: Format) -> str:
    """Says in words what a text of the format is."""
    close, before, end = (mark.strip() for mark in (format.close_thought, format.open_answer, format.close_answer))
    told = f"When you know the answer, write {close}, then {before}, the" if close else f"Then write {before} and the"
    return f"Solve the problem step by step, one step a line. {told} answer alone{f', and {end}' if end else ''}."


@dataclass(frozen=True)
class Prompting:
    """Puts questions.

    Raises:
        UserError: the tokenizer has no chat template, the format has its own, or a system is told something without a
            chat.
    """

    format: Format
    instruction: str = ""
    """Says what is wanted, before all else; `instruction_for` a format writes one."""
    examples: tuple[Example, ...] = ()
    """Shown in this order."""
    chat: Any = None
    """A tokenizer of transformers whose chat template is used; None puts plain text."""
    system: str = ""
    """What a chat begins with."""

    def __post_init__(self) -> None:
        if self.chat is not None and not getattr(self.chat, "chat_template", None):
            raise UserError("this tokenizer has no chat template; leave chat out, and questions are put as plain text")
        if self.chat is not None and self.format.before:
            raise UserError(f"format {self.format.name!r} has a chat's marks of its own; leave chat out")
        if self.system and self.chat is None:
            raise UserError("there is no chat to give the system's words to; put them into the instruction")

    def prompt(self, question: str) -> str:
        """What the policy reads; the thought is open."""
        if self.chat is not None:
            return self._chat(question)
        solved = [self.format.prompt(e.question) + self._solution(e).rstrip("\n") for e in self.examples]
        parts = [self.instruction] if self.instruction else []
        return "\n\n".join([*parts, *solved, self.format.prompt(question)])

    def _chat(self, question: str) -> str:
        opening = self.format.opening  # the question ends with its message
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for example in self.examples:
            messages.append({"role": "user", "content": example.question})
            messages.append({"role": "assistant", "content": opening + self._solution(example).rstrip("\n")})
        messages.append({"role": "user", "content": question})
        if self.instruction:
            asked = next(message for message in messages if message["role"] == "user")
            asked["content"] = f"{self.instruction}\n\n{asked['content']}"
        text = in_template(self.chat, messages, answering=True)
        return text if text.endswith(opening) else text + opening  # templates of models that think open the thought

    def _solution(self, example: Example) -> str:
        return self.format.write(example.steps, example.answer)


def in_context(
    format: Format,
    task: Task,
    shots: int,
    difficulty: int,
    chat: Any = None,
    *,
    told: bool = False,
    first: int = 0,
) -> Format:
    """A format that shows solved problems before each question, or puts it into a chat, or both.

    Args:
        format: of the texts.
        task: solves what is shown.
        shots: problems that are shown, of the split train.
        difficulty: of these.
        chat: a tokenizer of transformers with a chat template; None puts plain text.
        told: whether the policy is told in words what is wanted where nothing is shown and there is no template: for
            chat servers, which have the template themselves.
        first: number of the first problem that is shown.

    Raises:
        UserError: the task cannot solve its problems, or there is no chat template.
    """
    if shots < 0:
        raise UserError(f"shots is {shots}; show some problems, or 0 for none")
    if not (shots or told or chat is not None):
        return format
    examples: tuple[Example, ...] = ()
    if shots:
        require_steps(task, "showing solved problems")
        assert isinstance(task, StepTask)
        examples = solved_examples(task, shots, difficulty, first=first)
    prompt = Prompting(format, instruction_for(format), examples, chat).prompt(BORDER)
    before, _, after = prompt.rpartition(BORDER)
    context = [f"{shots} shots"] * bool(shots) + ["chat"] * (chat is not None) or ["told"]
    end = end_of_message(chat) if chat is not None else ""
    message = format.opening if chat is not None else None
    name = f"{format.name} ({', '.join(context)})"
    return replace(format, name=name, before=before, lead="", after=after, end=end, message=message)


class InContext:
    """A sampler that is shown more than it is asked: its attempts have the prompts as they were.

    Args:
        sampler: whom it asks.
        format: of the prompts.
        shown: how their questions are put, see `in_context`.
    """

    def __init__(self, sampler: Sampler, format: Format, shown: Format) -> None:
        self.sampler, self.format, self.shown = sampler, format, shown

    @property
    def name(self) -> str:
        """What tables and ledgers call it."""
        return f"{self.sampler.name}, asked in {self.shown.name}"

    def as_shown(self, prompt: str) -> str:
        """What the sampler reads where it is asked a prompt.

        Raises:
            UserError: the prompt is not of the format.
        """
        return self.shown.prompt(self.format.question_in(prompt))

    def sample(self, prompts: Sequence[str], decoding: Decoding, ledger: Ledger | None = None) -> list[Attempt]:
        """One attempt for each prompt, see `Sampler`; without the tokens of the prompt, which are those of another.

        Raises:
            UserError: a prompt is not of the format, or the sampler fails.
        """
        attempts = self.sampler.sample([self.as_shown(prompt) for prompt in prompts], decoding, ledger)
        return [
            replace(attempt, prompt=prompt, prompt_ids=()) for prompt, attempt in zip(prompts, attempts, strict=True)
        ]
