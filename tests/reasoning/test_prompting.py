"""What a policy reads, in full."""

from __future__ import annotations

import pytest
from tiny_tokenizers import chat_tokenizer

from mnemonist.errors import UserError
from mnemonist.reasoning.attempts import Attempt, Decoding
from mnemonist.reasoning.formats import FORMATS
from mnemonist.reasoning.prompting import Example, InContext, Prompting, in_context, instruction_for, solved_examples
from mnemonist.reasoning.tasks import build_task
from mnemonist.reasoning.tasks.task import Problem

EXAMPLES = (Example("1 + 1?", ("1 + 1 = 2",), "2"), Example("2 + 3?", ("2 + 3 = 5", "5"), "5"))
SUMS = build_task("chain-arithmetic:digits=1,minus=false")


def chat(thinking=""):
    said = "{% for one in messages %}[{{ one['role'] }}]{{ one['content'] }}{% endfor %}"
    return chat_tokenizer(said + "{% if add_generation_prompt %}[assistant]" + thinking + "{% endif %}")


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
    prompting = Prompting(FORMATS["think"], "Solve it.", EXAMPLES[:1], chat=chat(), system="Be brief.")
    assert prompting.prompt("7 + 1?") == (
        "[system]Be brief.[user]Solve it.\n\n1 + 1?[assistant]<think>\n1 + 1 = 2\n</think>\n<answer>2</answer>"
        "[user]7 + 1?[assistant]<think>\n"
    )
    assert Prompting(FORMATS["plain"], "Solve it.", chat=chat()).prompt("7?") == "[user]Solve it.\n\n7?[assistant]"


def test_a_template_that_opens_the_thought_opens_it_once():
    asked = Prompting(FORMATS["think"], chat=chat(thinking="<think>\n")).prompt("7 + 1?")
    assert asked == Prompting(FORMATS["think"], chat=chat()).prompt("7 + 1?") == "[user]7 + 1?[assistant]<think>\n"


def test_an_attempt_in_a_chat_ends_as_a_message_does():
    format = in_context(FORMATS["think"], SUMS, 0, 2, chat_tokenizer())
    assert format.end == "<|im_end|>" and format.question_in(format.prompt("7 + 1?")) == "7 + 1?"
    assert in_context(FORMATS["think"], SUMS, 0, 2, chat()).end == in_context(FORMATS["think"], SUMS, 1, 2).end == ""


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
        Prompting(FORMATS["s1"], chat=chat())
    with pytest.raises(UserError, match="no chat to give the system's words to"):
        Prompting(FORMATS["think"], system="Be brief.")


def test_what_is_shown_before_every_question_becomes_a_format():
    think = FORMATS["think"]
    examples = solved_examples(SUMS, 2, 3, first=7)
    format = in_context(think, SUMS, 2, 3, first=7)
    assert format.prompt("7 + 1?") == Prompting(think, instruction_for(think), examples).prompt("7 + 1?")
    assert format.name == "think (2 shots)" and format.write(["8"], "8") == think.write(["8"], "8")
    assert in_context(think, SUMS, 0, 3) is think
    told = in_context(think, SUMS, 0, 3, told=True)
    assert told.prompt("7?") == f"{instruction_for(think)}\n\n{think.prompt('7?')}" and told.name == "think (told)"
    chatting = in_context(think, SUMS, 0, 3, chat())
    assert chatting.prompt("7?") == Prompting(think, instruction_for(think), chat=chat()).prompt("7?")
    with pytest.raises(UserError, match="shots is -1"):
        in_context(think, SUMS, -1, 3)
    with pytest.raises(UserError, match="showing solved problems needs a task whose steps can be checked"):
        in_context(think, build_task("reasoning-gym:family=leg_counting"), 1, 3)


class Echo:
    name = "echo"

    def sample(self, prompts, decoding, ledger=None):
        self.prompts = list(prompts)
        return [Attempt(prompt, "8", prompt_ids=(1, 2), ids=(3,), finish="end") for prompt in prompts]


def test_a_teacher_sees_more_than_its_student_learns():
    think = FORMATS["think"]
    echo, shown = Echo(), in_context(think, SUMS, 1, 2)
    teacher = InContext(echo, think, shown)
    prompts = [think.prompt("7 + 1?"), think.prompt("2 + 6?")]
    assert teacher.sample(prompts, Decoding()) == [Attempt(one, "8", ids=(3,), finish="end") for one in prompts]
    assert echo.prompts == [shown.prompt("7 + 1?"), shown.prompt("2 + 6?")]
    assert teacher.name == "echo, asked in think (1 shots)"
    with pytest.raises(UserError, match="is no prompt of format think"):
        teacher.sample(["7 + 1?\n"], Decoding())
