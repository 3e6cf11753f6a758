"""Prompting: how a policy that was not trained on a format is asked to think in it.

Chain of thought (Wei et al. 2022, arXiv 2201.11903) shows a few problems with their solutions before the question;
zero-shot prompting says in words what is wanted. A policy that was tuned for chats gets either in its own template.
The thought is opened in every case: whatever the policy writes next is parsed like any other text of the format.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mnemonist.errors import UserError
from mnemonist.reasoning.formats import Format
from mnemonist.reasoning.tasks.task import Split, StepTask


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
        opening = self.format.after.lstrip("\n")  # the question ends with its message
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for example in self.examples:
            messages.append({"role": "user", "content": example.question})
            messages.append({"role": "assistant", "content": opening + self._solution(example).rstrip("\n")})
        messages.append({"role": "user", "content": question})
        if self.instruction:
            asked = next(message for message in messages if message["role"] == "user")
            asked["content"] = f"{self.instruction}\n\n{asked['content']}"
        text: str = self.chat.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text + opening

    def _solution(self, example: Example) -> str:
        return self.format.write(example.steps, example.answer)
