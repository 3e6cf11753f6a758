"""What is asked: the problems of a task, how they are put, and whose folder the outcome is written to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mnemonist.cli.process import say
from mnemonist.cli.reason.options import Asked, Split
from mnemonist.errors import UserError
from mnemonist.files import differences, write_atomically
from mnemonist.models.shipped import find_model
from mnemonist.reasoning.doctor import rounds_in
from mnemonist.reasoning.formats import Format, find_format
from mnemonist.reasoning.prompting import in_context
from mnemonist.reasoning.rounds import IDENTITY as ROUND
from mnemonist.reasoning.sampling.text import text_tokenizer
from mnemonist.reasoning.search.proposers import require_steps
from mnemonist.reasoning.tasks.row_file import RowFile
from mnemonist.reasoning.tasks.task import Problem, StepTask, Task


def draw(task: Task, split: Split, difficulties: Sequence[int], count: int, what: str = "count") -> list[Problem]:
    """The first problems of a split, the difficulties taking turns.

    Args:
        task: makes them.
        split: which ones.
        difficulties: none means the easiest.
        count: of all of them together; a task that has fewer gives what it has, and that is said.
        what: the option that the count comes from.

    Raises:
        UserError: the count is below 1, or the task has no such problems.
    """
    if count < 1:
        raise UserError(f"{what} is {count}; ask for at least 1 problem")
    levels = list(difficulties) or [task.difficulties[0]]
    if len(set(levels)) < len(levels):
        raise UserError("a difficulty is named twice; name each once")
    if isinstance(task, RowFile):
        count = _available(task, split, count, what)
    return [task.problem(split, levels[number % len(levels)], number // len(levels)) for number in range(count)]


def _available(task: RowFile, split: Split, count: int, what: str) -> int:
    """As many as are asked for, or as there are.

    Raises:
        UserError: it has none.
    """
    most = task.size(split)
    if not most:
        without = ", or leave them out with --validation 0" if what == "validation" else ""
        raise UserError(task.lacking(split) + without)
    if most < count:
        say(f"note: {task.name} has {most} problems of the split {split}; {what} is {count}, and these are taken")
    return min(count, most)


def step_task(task: Task, what: str) -> StepTask:
    """The task itself, which must know its steps.

    Raises:
        UserError: it only judges answers.
    """
    require_steps(task, what)
    assert isinstance(task, StepTask)
    return task


def put(asked: Asked, task: Task, *, shots: int, chat: bool, server: bool, tokenizer: Any, first: int = 0) -> Format:
    """How questions are put: in the format that is asked for, behind what is shown besides.

    Args:
        asked: names the format.
        task: solves what is shown.
        shots: problems that are shown.
        chat: whether questions are a user's message.
        server: whether a server has the chat's template; otherwise the tokenizer has it.
        tokenizer: of the model that is asked.
        first: number of the first problem that is shown.

    Raises:
        UserError: there is no such format, or it cannot be shown or put into a chat.
    """
    template = None
    if chat and not server:
        if not hasattr(tokenizer, "apply_chat_template"):
            raise UserError("a chat needs a model of transformers that has a template, or a server")
        template = tokenizer
    level = asked.difficulty[0] if asked.difficulty else task.difficulties[0]
    return in_context(find_format(asked.format), task, shots, level, template, told=chat, first=first)


def hides_first_token(tokenizer: Any, format: Format) -> bool:
    """Whether questions begin with the first token of a text that has no mark before it; see `Format.lead`."""
    return not format.before_question and not text_tokenizer(tokenizer).encode("")


def taught_format(model: Path) -> str | None:
    """The name of the format in which a model last learned; None if its folder does not say so."""
    with suppress(UserError, OSError, ValueError, LookupError, TypeError):
        *_, last = rounds_in(find_model(model)).values()
        return str(json.loads((last / ROUND).read_text(encoding="utf-8"))["text format"]["name"])
    return None


def warn_of_format(tokenizer: Any, format: Format, model: Path | None) -> None:
    """Say so, if a policy will hardly understand how it is asked.

    Args:
        tokenizer: of the policy.
        format: in which it is asked.
        model: where it comes from; None for a new one.
    """
    if hides_first_token(tokenizer, format):
        say(
            "note: this tokenizer puts no mark before a text, and pretrained models can hardly read the first token "
            "of one; take a format with words before the question (--format think)"
        )
    taught = None if model is None else taught_format(model)
    if taught is not None and _way(taught) != _way(format.name):
        name, chat = _way(taught)
        say(
            f"note: {model} has learned to be asked in format {taught}, and is asked in {format.name}: take "
            f"--format {name}{' --chat' * chat}"
        )


def _way(name: str) -> tuple[str, bool]:
    """The format that a name of `in_context` stands for, and whether it is put into a chat; shots are no other way."""
    base, _, context = name.partition(" (")
    return base, "chat" in context


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
    if differing := differences(path, own):
        raise UserError(
            f"the {what} in {path.parent} are of another run: {differing}; take the same, or another folder with --out"
        )
