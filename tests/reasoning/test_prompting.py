"""What a policy reads, in full."""

from __future__ import annotations

import pytest

from mnemonist.errors import UserError
from mnemonist.reasoning.formats import FORMATS
from mnemonist.reasoning.prompting import Example, Prompting, instruction_for, solved_examples
from mnemonist.reasoning.tasks.task import Problem

EXAMPLES = (Example("1 + 1?", ("1 + 1 = 2",), "2"), Example("2 + 3?", ("2 + 3 = 5", "5"), "5"))


class Chat:
    chat_template = "yes"

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        assert not tokenize and add_generation_prompt
        return "".join(f"[{message['role']}]{message['content']}" for message in messages) + "[assistant]"


def test_a_few_examples():
    assert Prompting(FORMATS["plain"], examples=EXAMPLES).prompt("7 + 1?") == (
        "1 + 1?\n1 + 1 = 2\nanswer: 2\n\n2 + 3?\n2 + 3 = 5\n5\nanswer: 5\n\n7 + 1?\n"
    )
    assert Prompting(FORMATS["think"], "Solve it.", EXAMPLES[:1]).prompt("7 + 1?") == (
        "Solve it.\n\nQuestion: 1 + 1?\n<think>\n1 + 1 = 2\n</think>\n<answer>2</answer>\n\nQuestion: 7 + 1?\n<think>\n"
    )


@pytest.mark.parametrize("name", FORMATS)
def test_without_anything_it_is_the_prompt_of_the_format(name):
    assert Prompting(FORMATS[name]).prompt("7 + 1?") == FORMATS[name].prompt("7 + 1?")


def test_a_chat():
    prompting = Prompting(FORMATS["think"], "Solve it.", EXAMPLES[:1], chat=Chat(), system="Be brief.")
    assert prompting.prompt("7 + 1?") == (
        "[system]Be brief.[user]Solve it.\n\n1 + 1?[assistant]<think>\n1 + 1 = 2\n</think>\n<answer>2</answer>"
        "[user]7 + 1?[assistant]<think>\n"
    )
    assert Prompting(FORMATS["plain"], "Solve it.", chat=Chat()).prompt("7?") == "[user]Solve it.\n\n7?[assistant]"


def test_an_instruction_names_the_marks():
    assert instruction_for(FORMATS["plain"]) == (
        "Solve the problem step by step, one step a line. Then write answer: and the answer alone."
    )
    assert instruction_for(FORMATS["think"]) == (
        "Solve the problem step by step, one step a line. When you know the answer, write </think>, then <answer>, the "
        "answer alone, and </answer>."
    )


def test_solutions_of_a_task():
    class Sums:
        def problem(self, split, difficulty, index):
            return Problem("sums", split, difficulty, index, f"{index} + {difficulty}?", "unused")

        def solution(self, problem):
            return [f"{problem.index} + {problem.difficulty} = {problem.index + problem.difficulty}"]

        def answer_of(self, problem, steps):
            return steps[-1].split(" = ")[1]

    assert solved_examples(Sums(), 2, 5, first=3) == (
        Example("3 + 5?", ("3 + 5 = 8",), "8"),
        Example("4 + 5?", ("4 + 5 = 9",), "9"),
    )


def test_what_does_not_fit():
    with pytest.raises(UserError, match="has no chat template"):
        Prompting(FORMATS["think"], chat=object())
    with pytest.raises(UserError, match="'s1' has a chat's marks of its own"):
        Prompting(FORMATS["s1"], chat=Chat())
    with pytest.raises(UserError, match="no chat to give the system's words to"):
        Prompting(FORMATS["think"], system="Be brief.")
