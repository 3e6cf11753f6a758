"""What is written can be taken apart again, and what cannot be is nobody's crash."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mnemonist.errors import UserError
from mnemonist.reasoning.formats import FORMATS, LONGEST_TEXT, MOST_LINES, Format, Parsed, find_format

PLAIN, THINK, S1 = FORMATS["plain"], FORMATS["think"], FORMATS["s1"]
PIECES = ["answer: ", "<answer>", "</answer>", "</think>\n", "</think>", "<|im_start|>answer\n", "Answer: ", "\n", " "]
lines = st.text(st.characters(blacklist_characters="\n"), min_size=1, max_size=12)
hostile = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=6)), max_size=12).map("".join)
formats = st.sampled_from(list(FORMATS.values()))


@given(formats, st.lists(lines, max_size=4), lines)
@example(PLAIN, ["a\rb", "c\x0bd", "e\u2028f"], "5")  # line breaks to Python, not to a policy
@example(PLAIN, ["so the answer: 5"], "7")
@example(THINK, ["x </think>"], "7")
@example(THINK, [], "5</answer")
def test_what_is_written_can_be_read(format, steps, answer):
    try:
        text = format.write(steps, answer)
    except ValueError:
        return  # it says so, rather than write what would be read as something else
    assert format.parse(text) == Parsed(tuple(step.strip() for step in steps), answer.strip(), True)
    thought = format.write(steps, None)
    assert text.startswith(thought)
    assert format.parse(thought) == Parsed(tuple(step.strip() for step in steps), None, False)


@given(formats, hostile)
def test_any_text_can_be_taken_apart(format, text):
    parsed = format.parse(text)
    assert all(step and step == step.strip() and "\n" not in step for step in parsed.steps)
    assert parsed.answer is None or (parsed.answer and parsed.answer == parsed.answer.strip())
    if parsed.well_formed:
        again = format.write(parsed.steps, parsed.answer)
        assert format.parse(again) == parsed


@pytest.mark.parametrize(
    ("format", "text", "steps", "answer", "fine"),
    [
        (PLAIN, "a\n\n b \nanswer: 5\n", ("a", "b"), "5", True),
        (PLAIN, "answer: 5", (), "5", True),  # the end of a text ends a line
        (PLAIN, "answer: 5\nand more", (), "5", False),
        (PLAIN, "answer: 5\n\n", (), "5", True),
        (PLAIN, "answer: \n5", (), None, False),
        (PLAIN, "answer:5\n", ("answer:5",), None, False),
        (PLAIN, "Answer: 5\n", ("Answer: 5",), None, False),
        (PLAIN, "a", ("a",), None, False),
        (PLAIN, "", (), None, False),
        (PLAIN, "answer: 5\nanswer: 6\n", (), "5", False),
        (THINK, "a\n</think>\n<answer>5</answer>", ("a",), "5", True),
        (THINK, "a\n</think>\n<answer>5</answer>\n", ("a",), "5", True),
        (THINK, "a\n</think>\n<answer> 5\n6 </answer>", ("a",), "5\n6", True),
        (THINK, "a\n</think>\nwell <answer>5</answer>", ("a",), "5", False),
        (THINK, "a <answer>4\n</think>\n<answer>5</answer>", ("a <answer>4",), "5", False),
        (PLAIN, "answer:4\nanswer: 5\n", ("answer:4",), "5", False),
        (THINK, "a\n</think>\n<answer>5", ("a",), None, False),
        (THINK, "<answer>5</answer>", ("<answer>5</answer>",), None, False),
        (THINK, "a </think> <answer>5</answer>", ("a </think> <answer>5</answer>",), None, False),
        (THINK, "</think>\n<answer></answer>", (), None, False),
        (S1, "a\n<|im_start|>answer\nAnswer: 5", ("a",), "5", True),
        (S1, "a\nAnswer: 5\n", ("a", "Answer: 5"), None, False),
    ],
)
def test_taken_apart_by_hand(format, text, steps, answer, fine):
    assert format.parse(text) == Parsed(steps, answer, fine)


def test_in_full():
    assert PLAIN.prompt("2 + 2?") == "2 + 2?\n" and PLAIN.write(["a", "b"], "4") == "a\nb\nanswer: 4\n"
    assert THINK.prompt("2 + 2?") + THINK.write(["a"], "4") == (
        "Question: 2 + 2?\n<think>\na\n</think>\n<answer>4</answer>"
    )
    whole = S1.prompt("2 + 2?") + S1.write(["a"], "4")
    assert whole == (
        "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n<|im_start|>think\na\n"
        "<|im_start|>answer\nAnswer: 4\n"
    )


@pytest.mark.parametrize(
    ("format", "step"),
    [
        (PLAIN, ""),
        (PLAIN, "  "),
        (PLAIN, "a\nb"),
        (PLAIN, "answer: 5"),
        (PLAIN, "my answer: 5"),
        (THINK, "so </think>"),
    ],
)
def test_no_steps(format, step):
    with pytest.raises(ValueError, match="is no step of format"):
        format.write(["fine", step], "5")


@pytest.mark.parametrize(("format", "answer"), [(PLAIN, ""), (PLAIN, " "), (PLAIN, "5\n6"), (THINK, "5</answer>")])
def test_no_answers(format, answer):
    with pytest.raises(ValueError, match="is no answer of format"):
        format.write(["fine"], answer)


def test_what_is_too_long_is_not_looked_at():
    assert PLAIN.parse("a\n" * (LONGEST_TEXT // 2) + "answer: 5\n").answer is None
    assert PLAIN.parse("answer: " + "5" * 2 * LONGEST_TEXT).answer == "5" * (LONGEST_TEXT - len("answer: "))


def test_lines_that_are_too_many_are_no_steps():
    text = "a\n\n" * MOST_LINES + PLAIN.open_answer + "5\n"
    parsed = PLAIN.parse(text)
    assert parsed.steps == ("a",) * (MOST_LINES // 2) and parsed.answer == "5"
    assert PLAIN.pieces(text) == (list(parsed.steps), "answer: 5")


def test_names():
    assert find_format("think") is THINK and all(name == format.name for name, format in FORMATS.items())
    with pytest.raises(UserError, match="no format 'thinks' .did you mean 'think'."):
        find_format("thinks")
    for marks in ({"open_answer": ""}, {"close_answer": ""}):
        with pytest.raises(UserError, match="format 'mine' has no mark"):
            Format("mine", **marks)
