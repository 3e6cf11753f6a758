"""Rows: what is learned from and asked, in the forms that TRL and `datasets` know.

    text               {"text"}                                     read on, whoever wrote it
    prompt-completion  {"prompt", "completion"}                     likelihood of what comes after the prompt
    messages           {"messages"}                                 the same as a conversation
    prompt             {"prompt", ...}                              to be sampled from; other columns reach the rewards
    preference         {"prompt", "chosen", "rejected"}             pairs
    stepwise           {"prompt", "completions", "labels"}          steps and whether each is right, for process rewards

Prompts and completions are texts as a `Format` writes them, or lists of messages: `conversational` and `plain` turn the
one into the other. A file has one JSON object a line, which ``datasets.load_dataset("json", data_files=path)`` reads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mnemonist.errors import UserError
from mnemonist.files import FileError, write_atomically
from mnemonist.reasoning.formats import Format
from mnemonist.reasoning.tasks.task import Problem

Row = dict[str, Any]
T = TypeVar("T")


class _Placed(Row):
    """A row of a file that knows where it stands."""

    place = ""
    """File and line, for messages."""


KINDS: Mapping[str, tuple[str, ...]] = {
    "preference": ("prompt", "chosen", "rejected"),
    "stepwise": ("prompt", "completions", "labels"),
    "prompt-completion": ("prompt", "completion"),
    "prompt": ("prompt",),
    "messages": ("messages",),
    "text": ("text",),
}
"""The columns by which a row is known; the first kind that has all of its columns is meant."""


def text_row(prompt: str, completion: str) -> Row:
    """A text to be learned from its first character on."""
    return {"text": prompt + completion}


def completion_row(prompt: str, completion: str) -> Row:
    """A completion to be learned, after a prompt that is not."""
    return {"prompt": prompt, "completion": completion}


def messages_row(prompt: str, completion: str, format: Format) -> Row:
    """The same as one conversation.

    Raises:
        UserError: as `conversational`.
    """
    row = conversational(completion_row(prompt, completion), format)
    return {"messages": row["prompt"] + row["completion"]}


def prompt_row(prompt: str, problem: Problem) -> Row:
    """A prompt to be sampled from, and its problem, which `problem_of` and the rewards read.

    It is written as text: tables want columns of one type, and the facts of problems have many.
    """
    told = json.dumps(problem.to_json(), ensure_ascii=False)
    return {"prompt": prompt, "answer": problem.answer, "difficulty": problem.difficulty, "problem": told}


def preference_row(prompt: str, chosen: str, rejected: str) -> Row:
    """Two completions of which the first is better."""
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def stepwise_row(prompt: str, steps: Sequence[str], labels: Sequence[bool]) -> Row:
    """Steps, and of each whether it is right, as TRL trains process reward models on them.

    Raises:
        ValueError: there are not as many labels as steps.
    """
    if len(steps) != len(labels):
        raise ValueError(f"{len(steps)} steps have {len(labels)} labels; give each step one.")
    return {"prompt": prompt, "completions": list(steps), "labels": [bool(label) for label in labels]}


def problem_of(row: Row) -> Problem:
    """The problem of a row that `prompt_row` made; one that was not written as text is taken as well.

    Raises:
        UserError: it has none.
    """
    try:
        told = row["problem"]
        return Problem.from_json(json.loads(told) if isinstance(told, str) else told)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"this row has no problem; make it with prompt_row ({error!r})") from error


def kind_of(row: Row) -> str:
    """Which of `KINDS` a row is.

    Raises:
        UserError: none of them.
    """
    for kind, columns in KINDS.items():
        if all(column in row for column in columns):
            return kind
    known = "; ".join(", ".join(columns) for columns in KINDS.values())
    raise UserError(f"a row has the columns {', '.join(map(str, row)) or 'none'}; it needs one of: {known}")


def conversational(row: Row, format: Format) -> Row:
    """A row of texts as a row of messages: the user asks, the assistant thinks and answers.

    What the format lets the prompt open, `<think>` say, goes to the assistant: chat templates know nothing of it.

    Raises:
        UserError: the format has marks of a chat of its own, a prompt is not of the format, or the row is no
            prompt with what comes after it.
    """
    _require_no_chat(format)
    changed = dict(row)
    for column in _sides(row):
        if isinstance(row[column], str):
            user = column == "prompt"
            content = _question(row[column], format) if user else format.opening + row[column]
            changed[column] = [{"role": "user" if user else "assistant", "content": content}]
    return changed


def plain(row: Row, format: Format) -> Row:
    """What `conversational` or `messages_row` made, back as texts: kinds and other columns stay, but ``messages``
    becomes prompt and completion.

    Raises:
        UserError: the format has marks of a chat of its own, or there is not one question and one answer to it.
    """
    _require_no_chat(format)
    if kind_of(row) == "messages":
        *asked, told = row["messages"] or [None]
        row = {**{name: row[name] for name in row if name != "messages"}, "prompt": asked, "completion": [told]}
    changed = dict(row)
    for column in _sides(row):
        if not isinstance(row[column], str):
            user = column == "prompt"
            content = _only(row[column], "user" if user else "assistant")
            changed[column] = format.prompt(content) if user else content.removeprefix(format.opening)
    return changed


def pair_of(row: Row, format: Format) -> tuple[str, str]:
    """Prompt and completion of a row that has both: prompt-completion, messages, or a text of the format.

    Raises:
        UserError: it has not, or its prompt or the beginning of its text is not of the format; of a row that
            `load_rows` has read, the message names file and line.
    """
    try:
        return _pair(row, format)
    except UserError as error:
        if isinstance(row, _Placed):
            raise UserError(f"{row.place}: {error}") from error
        raise


def _pair(row: Row, format: Format) -> tuple[str, str]:
    kind = kind_of(row)
    if kind == "text":
        text = row["text"]
        if not isinstance(text, str):
            raise UserError(f"its text is none but {str(text)[:50]!r}")
        end = text.find(format.after, len(format.before_question)) if text.startswith(format.before_question) else -1
        if end < 0:
            raise UserError(f"this text does not begin with a question of format {format.name!r}: {text[:50]!r}")
        end += len(format.after)
        return text[:end], text[end:]
    if kind not in ("prompt-completion", "messages"):
        raise UserError(f"a row of kind {kind} is no prompt with one completion")
    texts = kind != "messages" and isinstance(row["prompt"], str) and isinstance(row["completion"], str)
    made = row if texts else plain(row, format)
    prompt, completion = made["prompt"], made["completion"]
    if not (prompt.startswith(format.before_question) and prompt.endswith(format.after)):
        raise UserError(
            f"it has a prompt that is not of format {format.name}: {_ends(prompt)}; write prompts as "
            f"{format.prompt('QUESTION')!r}, name the format that they are of, or give the question alone as messages: "
            '[{"role": "user", "content": "QUESTION"}]'
        )
    return prompt, completion


def _ends(text: str) -> str:
    """A text, or its two ends."""
    return repr(text) if len(text) <= 80 else f"{text[:35]!r} ... {text[-35:]!r}"


def save_rows(path: str | os.PathLike[str], rows: Iterable[Row]) -> None:
    """Write rows of one kind, whole or not at all.

    Raises:
        UserError: a row is of no kind, or of another than the first.
        FileError: the file cannot be written.
    """
    lines, first = [], ""
    for number, row in enumerate(rows, 1):
        kind = kind_of(row)
        first = first or kind
        if kind != first:
            raise UserError(f"row {number} is of kind {kind}, those before of kind {first}; write them to two files")
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_atomically(path, "".join(lines))


def load_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Read a file of rows, by whomever it was made.

    Raises:
        FileError: it is missing or cannot be read.
        UserError: a line is no row of a known kind; the message names it.
    """

    def placed(row: Row, place: str) -> Row:
        kind_of(row)
        found = _Placed(row)
        found.place = place
        return found

    return read_lines(path, placed, "row")


def read_lines(path: str | os.PathLike[str], made: Callable[[dict[str, Any], str], T], what: str) -> list[T]:
    """What is made of the lines of a file, each a JSON object; empty ones are passed over.

    Args:
        path: of the file.
        made: makes it of the object and of where it stands, file and line. If it raises a ValueError, the message tells
            the place too.
        what: a line is: "row".

    Raises:
        FileError: it is missing or cannot be read.
        UserError: a line is none; the message names it.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")  # and at nothing else that is called a line end
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    found: list[T] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise UserError("it is not an object with fields")
            found.append(made(row, place))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place} is no {what}: {error}") from error
    return found


def _sides(row: Row) -> list[str]:
    """The columns of a row that somebody says."""
    kind = kind_of(row)
    if kind in ("text", "messages", "stepwise"):
        raise UserError(f"a row of kind {kind} cannot be turned; start from prompt and completion")
    return list(KINDS[kind])


def _require_no_chat(format: Format) -> None:
    if format.before:
        raise UserError(
            f"format {format.name!r} writes the marks of a chat itself; take one that does not for messages"
        )


def _question(prompt: str, format: Format) -> str:
    begun, ended = format.before_question, format.after
    if not prompt.endswith(ended):
        raise UserError(f"this is no prompt of format {format.name!r}: {prompt[-50:]!r} does not end in {ended!r}")
    if not prompt.startswith(begun):
        raise UserError(f"this is no prompt of format {format.name!r}: {prompt[:50]!r} does not begin with {begun!r}")
    return format.question_in(prompt)


def _only(messages: Any, role: str) -> str:
    """What the only message says."""
    try:
        (message,) = messages
        if message["role"] != role:
            raise KeyError(role)
        return str(message["content"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"expected one message of the {role}, not {str(messages)[:100]}") from None
