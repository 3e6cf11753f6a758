"""A rewriter may say what it likes between the steps, but every step survives."""

from __future__ import annotations

import pytest

from mnemonist.errors import UserError
from mnemonist.reasoning.attempts import Attempt, Decoding
from mnemonist.reasoning.formats import FORMATS
from mnemonist.reasoning.journey import JourneyRules, walk
from mnemonist.reasoning.journey_text import tell
from mnemonist.reasoning.ledger import Ledger
from mnemonist.reasoning.rewriting import rewrite
from mnemonist.reasoning.tasks.task import Problem
from mnemonist.reasoning.tree import Tree

PLAIN, THINK = FORMATS["plain"], FORMATS["think"]


class Script:
    """Answers what it was told to, and remembers what it was asked."""

    name = "script"

    def __init__(self, *texts: str, finish: str = "end") -> None:
        self.texts, self.finish, self.prompts = texts, finish, []

    def sample(self, prompts, decoding, ledger=None):
        self.prompts, self.decoding = list(prompts), decoding
        if ledger is not None:
            ledger.charge(calls=len(prompts))
        return [Attempt(p, t, finish=self.finish) for p, t in zip(prompts, self.texts, strict=True)]


def draft():
    tree = Tree(Problem("hand", "train", 1, 0, "What is 1 + 2 + {draft}?", "5"), "hand")
    tree.add(0, "1 + 2 = 3", hopeful=False, reason="3 is too few")
    tree.add(0, "2 + 2 = 4", hopeful=True)
    tree.add(2, "4 + 1 = 5", hopeful=True, finished=True, right=True, answer="5")
    return tell(walk(tree, JourneyRules("all", trials=0, below=0)), PLAIN)


GOOD = "Let me see.\n\nFirst 1 + 2 =  3, hmm.\nThat is too few, wait:\n2 + 2 = 4 and then 4 + 1 = 5!\nYes.\n"


def test_what_is_said_between_the_steps_is_kept():
    script, ledger = Script(GOOD), Ledger()
    result = rewrite([draft()], script, PLAIN, Decoding(max_tokens=99), ledger)
    assert (result.rewritten, result.kept, ledger.calls, script.decoding.max_tokens) == (1, {}, 1, 99)
    (telling,) = result.tellings
    assert [(line.text, line.kind, line.node, line.astray) for line in telling.lines] == [
        ("Let me see.", "said", 0, False),
        ("First 1 + 2 = 3, hmm.", "step", 1, True),
        ("That is too few, wait:", "said", 1, True),
        ("2 + 2 = 4 and then 4 + 1 = 5!", "step", 3, False),
        ("Yes.", "said", 3, False),
    ]
    assert telling.write(PLAIN).endswith("Yes.\nanswer: 5\n")


def test_the_request_has_question_draft_and_steps():
    script = Script(GOOD)
    rewrite([draft()], script, PLAIN, request="Q {question} D {draft} S {steps} {other}")
    assert script.prompts == [
        "Q What is 1 + 2 + {draft}? D 1 + 2 = 3\nno: 3 is too few\nback to: start\n2 + 2 = 4\n4 + 1 = 5 "
        "S 1 + 2 = 3\n2 + 2 = 4\n4 + 1 = 5 {other}"
    ]
    with pytest.raises(UserError, match="no {draft} in it"):
        rewrite([draft()], script, PLAIN, request="{question}")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "a step is missing"),
        (GOOD.replace("2 + 2 = 4", "2 + 2 is 4"), "a step is missing"),
        (GOOD.replace("1 + 2 =  3", "11 + 2 = 3"), "a step is missing"),  # the step is only a part of it
        (GOOD.replace("4 + 1 = 5", "4 + 1 = 52"), "a step is missing"),
        ("2 + 2 = 4\n1 + 2 = 3\n4 + 1 = 5", "a step is missing"),  # out of order
        ("1 + 2 = 3\nso 4 + 1 = 5, since 2 + 2 = 4\n", "a step is missing"),  # out of order within a line
        (GOOD + "answer: 7\n", "it has marks of the format"),
        (GOOD + "So my answer: 7\n", "it has marks of the format"),
    ],
)
def test_a_damaged_draft_is_kept_and_counted(text, why):
    result = rewrite([draft(), draft()], Script(text, GOOD), PLAIN)
    assert result.kept == {why: 1} and result.rewritten == 1
    assert result.tellings[0] == draft() and result.tellings[1] != draft()


def test_what_was_cut_off_is_kept():
    result = rewrite([draft()], Script(GOOD, finish="length"), PLAIN)
    assert result.tellings == (draft(),) and result.kept == {"it was cut off": 1}
    assert rewrite([], Script(), PLAIN).tellings == ()


def test_marks_are_those_of_the_format_that_is_asked_for():
    text = GOOD + "</think>\n"
    assert rewrite([draft()], Script(text), PLAIN).rewritten == 1
    assert rewrite([draft()], Script(text), THINK).kept == {"it has marks of the format": 1}
