"""The options that a run was begun with: a file in its folder, so that ``--resume`` needs the folder alone.

Whatever dataclass of options a command has, all its fields are kept, and they are the defaults of the command that goes
on. What is given besides is compared by those who know what a run follows from.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from mnemonist.errors import UserError
from mnemonist.files import FileError, write_atomically

OPTIONS_FILE = "options.json"
FORMAT = "mnemonist-options/1"
OF_NOW = ("out", "resume", "plan")
"""Fields that say what is to be done, and not what the run is."""

Options = TypeVar("Options")


def keep_options(options: Any) -> None:
    """Write the options of a run that begins into its folder, ``options.out``.

    Raises:
        FileError: the file cannot be written.
    """
    values = {name: value for name, value in dataclasses.asdict(options).items() if name not in OF_NOW}
    content = {"format": FORMAT, "command": type(options).__name__, "options": values}
    write_atomically(options.out / OPTIONS_FILE, json.dumps(content, indent=1, default=os.fspath) + "\n")


def begun_with(kind: type[Options], arguments: Sequence[str]) -> Options | None:
    """What the run was begun with that the arguments go on with.

    Args:
        kind: the dataclass of the command's options; it has the fields `out` and `resume`.
        arguments: of the command.

    Returns:
        None where they go on with none, or with one whose options were not kept, or with that of another command.

    Raises:
        UserError: the file cannot be read, is damaged, or of a newer version.
    """
    if "--resume" not in arguments:
        return None
    out: Any = value_of("--out", arguments) or vars(kind)["out"]
    path = Path(out) / OPTIONS_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"it is not of the format {FORMAT}")
        if content.get("command") != kind.__name__:
            return None
        made: Options = _made(kind, content.get("options"))
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} does not say what the run was begun with ({error}); move it away, and give all options again"
        ) from error
    return made


def value_of(option: str, arguments: Sequence[str]) -> str | None:
    """The value that arguments give an option, if they do."""
    for i, argument in enumerate(arguments):
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
        if argument == option and i + 1 < len(arguments):
            return arguments[i + 1]
    return None


def _made(kind: Any, value: Any) -> Any:
    """A value of this type from JSON.

    Raises:
        ValueError: it is none.
    """
    among = get_args(kind)
    if dataclasses.is_dataclass(kind):
        kinds = get_type_hints(kind)
        if unknown := value.keys() - kinds.keys():
            raise ValueError(f"it has {min(unknown)!r}, which this version does not know")
        made: Any = kind
        return made(**{name: _made(kinds[name], part) for name, part in value.items()})
    if NoneType in among:
        return None if value is None else _made(next(one for one in among if one is not NoneType), value)
    if get_origin(kind) is tuple:
        each = among[:1] * len(value) if among[-1] is Ellipsis else among
        if type(value) is list and len(value) == len(each):
            return tuple(map(_made, each, value))
    elif get_origin(kind) is Literal:
        if value in among:
            return value
    elif kind is Path:
        return Path(value)
    elif type(value) is kind or (kind is float and type(value) is int):
        return value
    raise ValueError(f"{value!r} is not of type {getattr(kind, '__name__', kind)}")
