"""Choices as text: ``name:choice=value,choice=value``, for the dataclasses that a user changes by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

from mnemonist.errors import nearest


def parse_choices(cls: type, text: str, what: str, allowed: tuple[str, ...] | None = None) -> dict[str, Any]:
    """The fields of dataclass ``cls`` that ``text`` sets, by name: ``"depth=3,momentum=false"``.

    Args:
        cls: its fields' annotations (text, by `from __future__ import annotations`) say how to read values.
        text: what stands behind the colon.
        what: what is changed, for the message: "a rule".
        allowed: the fields that may be set; None means all.

    Raises:
        ValueError: no field has this name (the message suggests the nearest one), or a value does not fit.
    """
    kinds = {f.name: str(f.type) for f in dataclasses.fields(cls) if allowed is None or f.name in allowed}
    values: dict[str, Any] = {}
    for change in text.split(","):
        choice, equals, value = (part.strip() for part in change.partition("="))
        if choice not in kinds or not equals:
            known = f"write choice=value with one of {', '.join(kinds)}" if kinds else "it has no choices"
            raise ValueError(f"{change!r} is not a change to {what}{nearest(choice, kinds)}; {known}.")
        values[choice] = _value(choice, kinds[choice], value)
    return values


def _value(choice: str, annotation: str, text: str) -> Any:
    kinds = annotation.split(" | ")
    kind = kinds[0]
    if "None" in kinds and text.lower() == "none":
        return None
    try:
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        if kind in ("int", "float"):
            return {"int": int, "float": float}[kind](text)
    except (KeyError, ValueError):
        needed = "true or false" if kind == "bool" else f"of type {annotation}"
        raise ValueError(f"{choice} is {text!r}; it must be {needed}.") from None
    return text
