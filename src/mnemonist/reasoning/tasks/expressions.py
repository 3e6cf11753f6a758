"""Arithmetic as text: a grammar for what a model wrote, with a limit on everything that could grow.

    sum      = product (("+" | "-") product)*
    product  = operand (("*" | "/") operand)*
    operand  = "-" operand | "(" sum ")" | digits

Spaces may stand between. There are no powers, no names and no other digits than 0 to 9, so that nothing can be called
and nothing explodes; values are exact fractions. The length is looked at first and brackets are kept on a list, not on
Python's stack: a megabyte of them costs no more than its first few characters.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

DIGITS = frozenset("0123456789")
PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "negative": 3}


class Rejected(ValueError):
    """A text that breaks the rules; its message says why, in a few words without a full stop."""


@dataclass(frozen=True)
class Limits:
    """How much of everything a text may have."""

    characters: int = 200
    depth: int = 20
    """Brackets that are open at once."""
    digits: int = 9
    """Of a number."""
    operations: int = 40
    """A minus before a number is one too."""
    size: int = 10**12
    """The largest numerator or denominator of any value on the way."""


LIMITS = Limits()


@dataclass(frozen=True)
class Expression:
    """What a text says."""

    value: Fraction
    numbers: tuple[int, ...]
    """Those that stand in it, from left to right, without their signs."""


def read_expression(text: str, limits: Limits = LIMITS) -> Expression:
    """Parse and evaluate an expression.

    Raises:
        Rejected: it is none, something is divided by zero, or a limit is passed.
    """
    if len(text) > limits.characters:
        raise Rejected(f"more than {limits.characters} characters")
    values: list[Fraction] = []
    waiting: list[str] = []  # operators and open brackets whose right side is still being read
    numbers: list[int] = []
    depth = operations = place = 0
    operand_next = True
    while place < len(text):
        mark = text[place]
        place += 1
        if mark == " ":
            continue
        if operand_next and mark in DIGITS:
            end = place
            while end < len(text) and text[end] in DIGITS:
                end += 1
            number = _whole(text[place - 1 : end], limits.digits)
            place = end
            numbers.append(number)
            values.append(Fraction(number))
            operand_next = False
        elif operand_next and mark == "(":
            depth += 1
            if depth > limits.depth:
                raise Rejected(f"more than {limits.depth} brackets inside each other")
            waiting.append(mark)
        elif (operand_next and mark == "-") or (not operand_next and mark in PRECEDENCE):
            operations += 1
            if operations > limits.operations:
                raise Rejected(f"more than {limits.operations} operations")
            operator = "negative" if operand_next else mark
            # A sign has only its operand before it, so nothing that waits may be computed yet.
            while operator != "negative" and waiting and PRECEDENCE.get(waiting[-1], 0) >= PRECEDENCE[operator]:
                _apply(waiting.pop(), values, limits)
            waiting.append(operator)
            operand_next = True
        elif not operand_next and mark == ")" and depth:
            depth -= 1
            while (operator := waiting.pop()) != "(":
                _apply(operator, values, limits)
        else:
            raise Rejected(f"{mark!a} cannot stand there")
    if operand_next:
        raise Rejected("it ends where a number is missing" if numbers or waiting else "nothing is written")
    if depth:
        raise Rejected("a bracket is not closed")
    while waiting:
        _apply(waiting.pop(), values, limits)
    return Expression(values[0], tuple(numbers))


def read_integer(text: str, digits: int = 40) -> int:
    """Parse a whole number, with a minus before it if need be.

    Raises:
        Rejected: it is none, or has too many digits.
    """
    if len(text) > digits + 1:
        raise Rejected(f"more than {digits} digits")
    return -_whole(text[1:], digits) if text.startswith("-") else _whole(text, digits)


def shown(value: Fraction | int) -> str:
    """A value as text, fit to stand in a reason."""
    text = str(value)
    return text if len(text) <= 30 else f"{text[:30]}..."


def _whole(text: str, digits: int) -> int:
    if len(text) > digits:
        raise Rejected(f"a number of more than {digits} digits")
    if not text or not DIGITS.issuperset(text):  # int() would take spaces, underscores and the digits of other scripts
        raise Rejected("no whole number")
    return int(text)


def _apply(operator: str, values: list[Fraction], limits: Limits) -> None:
    """Replace the last values by what an operator makes of them."""
    right = values.pop()
    if operator == "negative":
        values.append(-right)
        return
    left = values.pop()
    if operator == "/" and not right:
        raise Rejected("something is divided by zero")
    if operator == "+":
        value = left + right
    elif operator == "-":
        value = left - right
    else:
        value = left * right if operator == "*" else left / right
    if max(abs(value.numerator), value.denominator) > limits.size:
        raise Rejected(f"a value has more than {len(str(limits.size)) - 1} digits")
    values.append(value)
