"""What is asked: the problems of a task, how they are put, and whose folder the outcome is written to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mnemonist.cli.reason.options import Split
from mnemonist.cli.train import say
from mnemonist.errors import UserError
from mnemonist.files import differing_fields, write_atomically
from mnemonist.reasoning.formats import Format
from mnemonist.reasoning.prompting import Prompting, instruction_for, solved_examples
from mnemonist.reasoning.sampling.text import text_tokenizer
from mnemonist.reasoning.search.proposers import require_steps
from mnemonist.reasoning.tasks.task import Problem, StepTask, Task

BORDER = "\N{SYMBOL FOR START OF TEXT}"
"""Put in a question's place to see what a prompt has before and behind it."""


def draw(task: Task, split: Split, difficulties: Sequence[int], count: int, what: str = "count") -> list[Problem]:
    """The first problems of a split, the difficulties taking turns.

    Args:
        task: makes them.
        split: which ones.
        difficulties: none means the easiest.
        count: of all of them together.
        what: the option that the count comes from.

    Raises:
        UserError: the count is below 1, or the task has no such problems.
    """
    if count < 1:
        raise UserError(f"{what} is {count}; ask for at least 1 problem")
    levels = list(difficulties) or [task.difficulties[0]]
    if len(set(levels)) < len(levels):
        raise UserError("a difficulty is named twice; name each once")
    return [task.problem(split, levels[number % len(levels)], number // len(levels)) for number in range(count)]


def step_task(task: Task, what: str) -> StepTask:
    """The task itself, which must know its steps.

    Raises:
        UserError: it only judges answers.
    """
    require_steps(task, what)
    assert isinstance(task, StepTask)
    return task


def in_context(format: Format, task: Task, shots: int, difficulty: int, chat: Any = None) -> Format:
    """A format that shows solved problems before each question, or puts it into a chat, or both.

    Args:
        format: of the texts.
        task: solves what is shown.
        shots: problems that are shown, of the split train.
        difficulty: of these.
        chat: a tokenizer of transformers with a chat template; None puts plain text.

    Raises:
        UserError: the task cannot solve its problems, or there is no chat template.
    """
    if shots < 0:
        raise UserError(f"shots is {shots}; show some problems, or 0 for none")
    if not shots and chat is None:
        return format
    examples = solved_examples(step_task(task, "--shots"), shots, difficulty) if shots else ()
    prompt = Prompting(format, instruction_for(format), examples, chat).prompt(BORDER)
    before, _, after = prompt.rpartition(BORDER)
    told = [f"{shots} shots"] * bool(shots) + ["chat"] * (chat is not None)
    return replace(format, name=f"{format.name} ({', '.join(told)})", before=before, lead="", after=after)


def hides_first_token(tokenizer: Any, format: Format) -> bool:
    """Whether questions begin with the first token of a text that has no mark before it; see `Format.lead`."""
    return not format.before_question and not text_tokenizer(tokenizer).encode("")


def warn_of_hidden_token(tokenizer: Any, format: Format) -> None:
    """Say so, if `hides_first_token`."""
    if hides_first_token(tokenizer, format):
        say(
            "note: this tokenizer puts no mark before a text, and pretrained models can hardly read the first token "
            "of one; take a format with words before the question (--format think)"
        )


def claim(path: Path, identity: Mapping[str, Any], what: str) -> None:
    """Say in a file whose folder it is in, or make sure that it is ours.

    Args:
        path: of the file.
        identity: all that the outcome follows from, as JSON values.
        what: is in the folder, for the message: "solutions".

    Raises:
        UserError: it is another one's, or damaged.
    """
    own = json.loads(json.dumps(identity))
    if not path.exists():
        write_atomically(path, json.dumps(own, indent=1) + "\n")
        return
    if differing := differing_fields(path, own):
        raise UserError(
            f"the {what} in {path.parent} are of another run: its {', '.join(differing)} differ; take the same, or "
            "another folder with --out"
        )
