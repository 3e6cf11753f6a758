"""The grammar says what arithmetic says, takes nothing else, and never works long."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest

from mnemonist.reasoning.tasks.expressions import LIMITS, Limits, Rejected, read_expression, read_integer, shown


def written(source: random.Random, depth: int) -> tuple[str, Fraction | None, list[int]]:
    """A random expression in full brackets, its value (None if something is divided by zero) and its numbers."""
    if depth == 0 or source.random() < 0.2:
        number = source.randrange(30)
        return str(number), Fraction(number), [number]
    if source.random() < 0.1:
        text, value, numbers = written(source, depth - 1)
        return f"-({text})", None if value is None else -value, numbers
    left, a, first = written(source, depth - 1)
    right, b, second = written(source, depth - 1)
    operator = source.choice("+-*/")
    value = None
    if a is not None and b is not None and not (operator == "/" and b == 0):
        value = {"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "/": lambda: a / b}[operator]()
    space = source.choice(["", " "])
    return f"({left}){space}{operator}{space}({right})", value, first + second


def test_values_are_those_of_the_tree_that_was_written():
    source, divided = random.Random(0), 0
    for _ in range(500):
        text, value, numbers = written(source, 3)
        if value is None:
            divided += 1
            with pytest.raises(Rejected, match="divided by zero"):
                read_expression(text, Limits(characters=1000))
        else:
            read = read_expression(text, Limits(characters=1000))
            assert (read.value, list(read.numbers)) == (value, numbers)
    assert divided > 10


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("2+3*4", 14),
        ("2*3+4", 10),
        ("20-3-4", 13),
        ("20-(3-4)", 21),
        ("48/4/2", 6),
        ("48/(4/2)", 24),
        ("8/(3-8/3)", 24),
        ("1/3", Fraction(1, 3)),
        ("-3+8", 5),
        ("3--2", 5),
        ("-2*-3", 6),
        ("2*-(3+1)", -8),
        ("-8/4/2", -1),
        (" ( 3 + 5 ) * 7 ", 56),
        ("007", 7),
        ("2-3*4/6+5", 5),
    ],
)
def test_precedence_and_signs(text, value):
    assert read_expression(text).value == value


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "+",
            "()",
            "(",
            ")",
            "3+",
            "*3",
            "3 4",
            "3(4)",
            "(3)(4)",
            "(3+4",
            "3+4)",
            "3**2",
            "3//2",
            "3^2",
            "3%2",
        ),
        *("0x10", "1e3", "1.5", "1_000", "x", "3+x", "3\n+4", "3\t+4", "3\x00", "\u0663+\uff14", "\u00b2", "3\u00d74"),
        *("3=3", "3,4", "__import__('os')", "a if b else c", "[3]", "3!", "3;4", "+3"),
    ],
)
def test_nothing_else_is_taken(text):
    with pytest.raises(Rejected):
        read_expression(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1+" * 100 + "1", "characters"),
        ("(" * 21 + "1" + ")" * 21, "brackets"),
        ("1+" * 41 + "1", "operations"),
        ("-" * 41 + "1", "operations"),
        ("1234567890", "digits"),
        ("*".join(["999999"] * 3), "a value has more than 12 digits"),
        ("1/999999/999999/999999", "a value has more than 12 digits"),
    ],
)
def test_everything_has_a_limit(text, reason):
    with pytest.raises(Rejected, match=reason):
        read_expression(text)


def test_limits_are_reached_exactly():
    deep = "(" * LIMITS.depth + "1" + ")" * LIMITS.depth
    assert read_expression(deep).value == 1
    assert read_expression("1+" * 40 + "1").value == 41
    assert read_expression("999999999").value == 999999999
    assert read_expression("1000000*1000000").value == LIMITS.size


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("-0", 0), ("17", 17), ("-5", -5), ("9" * 40, int("9" * 40))])
def test_integers(text, value):
    assert read_integer(text) == value


@pytest.mark.parametrize(
    "text", ["", "-", "--1", "+1", " 1", "1 ", "1_0", "1.0", "\u0661", "\u00b2", "9" * 41, "0x1", "1e2"]
)
def test_no_integers(text):
    with pytest.raises(Rejected):
        read_integer(text)


def test_values_in_reasons_stay_short():
    assert shown(Fraction(1, 3)) == "1/3" and len(shown(10**300)) < 40
