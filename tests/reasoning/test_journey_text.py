"""Journeys in words: each line is where it belongs, and what is written can be read and judged again."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from mnemonist.errors import UserError
from mnemonist.reasoning.formats import FORMATS, LONGEST_TEXT
from mnemonist.reasoning.growing import grow
from mnemonist.reasoning.journey import JOURNEYS, walk
from mnemonist.reasoning.journey_text import (
    PHRASES,
    Phrases,
    find_phrases,
    goal_of,
    make_twin,
    state_of,
    tell,
    tree_id,
    twins,
)
from mnemonist.reasoning.tasks.countdown import Countdown
from mnemonist.reasoning.tasks.task import Problem
from mnemonist.reasoning.tree import Tree

PLAIN = FORMATS["plain"]
TASK = Countdown()
PROBLEM = Problem("countdown", "train", 3, 0, "Make 24 from 2 7 8.", "", {"numbers": [2, 7, 8], "target": 24})
ALL = replace(JOURNEYS["depth-first"], name="all", returning="straight")


def hand_built() -> Tree:
    tree = Tree(PROBLEM, "hand")
    tree.add(0, "8 + 7 = 15, left 2 15", hopeful=False, reason="2 and 15 cannot make 24")
    tree.add(
        1, "15 + 2 = 17, left 17", hopeful=False, finished=True, right=False, answer="8+7+2", reason="17 is not 24"
    )
    tree.add(1, "15 * 2 = 30, left 30", hopeful=False, finished=True, right=False, answer="(8+7)*2")
    tree.add(0, "8 / 2 = 4, left 4 7", hopeful=True)
    tree.add(4, "7 - 4 = 3, left 3", hopeful=False, finished=True, right=False, answer="7-8/2", reason="3 is not\n24")
    tree.add(0, "8 * 2 = 16, left 7 16", hopeful=True)
    right = tree.add(6, "7 + 16 = 23, left 23", hopeful=False, finished=True, right=False, answer="8*2+7")
    right.text, right.right, right.hopeful, right.answer = "16 + 7 = 23, left 23", True, True, "8*(2*7-11)"
    return tree


def test_a_journey_in_full():
    telling = tell(walk(hand_built(), ALL), PLAIN)
    assert telling.write(PLAIN) == (
        "8 + 7 = 15, left 2 15\n"
        "15 + 2 = 17, left 17\n"
        "no: 17 is not 24\n"
        "back to: 2 15\n"
        "15 * 2 = 30, left 30\n"
        "no: this leads nowhere\n"
        "back to: start\n"
        "8 * 2 = 16, left 7 16\n"
        "16 + 7 = 23, left 23\n"
        "answer: 8*(2*7-11)\n"
    )
    assert [(line.kind, line.node, line.astray) for line in telling.lines] == [
        ("step", 1, True),
        ("step", 2, True),
        ("dead end", 2, True),
        ("back", 1, True),
        ("step", 3, True),
        ("dead end", 3, True),
        ("back", 0, True),
        ("step", 6, False),
        ("step", 7, False),
    ]


def test_places_are_called_what_the_task_or_the_last_step_calls_them():
    tree, rules = hand_built(), replace(ALL, returning="level by level")
    backs = [line.text for line in tell(walk(tree, rules), PLAIN).lines if line.kind == "back"]
    assert backs == ["back to: 2 15", "back to: 2 15", "back to: start"]
    whole = tell(walk(tree, rules), PLAIN, Phrases("whole", left=""))
    assert next(line.text for line in whole.lines if line.kind == "back") == "back to: 8 + 7 = 15, left 2 15"
    named = tell(walk(tree, rules), PLAIN, state=lambda problem, steps: f"{len(steps)} of\n{len(problem.facts)}")
    assert [line.text for line in named.lines if line.kind == "back"][-1] == "back to: 0 of 2"

    class Named(Countdown):
        def state(self, problem, steps):
            return "here"

    assert state_of(Named())(PROBLEM, []) == "here"
    assert state_of(object()) is None


def test_steps_of_a_policy_lose_the_marks_of_their_answers():
    tree = hand_built()
    tree.nodes[7].text = "16 + 7 = 23,\nleft 23\nanswer: 8*(2*7-11)\n"
    texts = tell(walk(tree, ALL), PLAIN).texts
    assert texts[-2:] == ["16 + 7 = 23,", "left 23"]
    tree.nodes[7].text = "answer: 8*(2*7-11)"  # a node that is an answer alone
    assert tell(walk(tree, ALL), PLAIN).texts[-1] == "8 * 2 = 16, left 7 16"


def test_spoken_phrases_vary_and_the_same_seed_says_the_same():
    tree = grow(TASK.problem("train", 4, 0), TASK, ALL, 3)
    assert len(tree.nodes) > 20
    told = [tell(walk(tree, ALL, seed), PLAIN, PHRASES["spoken"]).texts for seed in (3, 3, 4)]
    assert told[0] == told[1] != told[2]
    for phrase in (*PHRASES["spoken"].dead_end, *PHRASES["spoken"].back):
        pattern = re.escape(phrase).replace(r"\{reason\}", ".+").replace(r"\{state\}", ".+")
        assert any(re.fullmatch(pattern, line) for line in told[0]), phrase
    silent = tell(walk(hand_built(), ALL), PLAIN, Phrases("silent", dead_end=("",), back=("",)))
    assert {line.kind for line in silent.lines} == {"step"} and len(silent.lines) == 5


def test_checked_phrases_compare_with_the_goal_wherever_steps_end():
    tree, rules = hand_built(), replace(ALL, returning="level by level")
    telling = tell(walk(tree, rules), PLAIN, PHRASES["checked"], goal="24")
    assert telling.texts == [
        "8 + 7 = 15, left 2 15",
        "15 + 2 = 17, left 17",
        "24? no",
        "15 * 2 = 30, left 30",
        "24? no",
        "back to: start",
        "8 * 2 = 16, left 7 16",
        "16 + 7 = 23, left 23",
        "24? yes",
    ]
    assert [line.kind for line in telling.lines if "?" in line.text] == ["dead end", "dead end", "said"]
    straight = tell(walk(tree, ALL), PLAIN, PHRASES["checked"], goal="24").texts
    assert straight[-4:] == ["back to: start", *telling.texts[-3:]]  # a return of two steps is said
    with pytest.raises(UserError, match="this task names none"):
        tell(walk(tree, rules), PLAIN, PHRASES["checked"])


def test_a_goal_is_what_the_task_calls_it():
    assert goal_of(TASK, PROBLEM) == "24"
    assert goal_of(object(), PROBLEM) is None


def test_excursions_are_left_out_until_the_text_fits():
    tree = grow(TASK.problem("train", 4, 0), TASK, ALL, 3)
    whole = tell(walk(tree, ALL, 3), PLAIN)
    size = len("\n".join(whole.texts)) + 1
    assert whole.left_out == 0
    assert tell(walk(tree, replace(ALL, most_characters=size), 3), PLAIN).texts == whole.texts
    less = tell(walk(tree, replace(ALL, most_characters=size - 1), 3), PLAIN)
    assert less.left_out >= 1 and len("\n".join(less.texts)) + 1 < size
    least = tell(walk(tree, replace(ALL, most_characters=1), 3), PLAIN)
    assert least.texts == tree.steps(tree.chosen) and least.left_out > less.left_out
    astray = [[line.text for line in telling.lines if line.astray] for telling in (less, whole)]
    assert astray[0] == astray[1][: len(astray[0])]  # it is the last ones that go


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rules", JOURNEYS.values(), ids=list(JOURNEYS))
def test_twins_of_countdown(format, rules):
    format = FORMATS[format]
    problems = [TASK.problem("train", difficulty, index) for difficulty in (3, 4) for index in range(15)]
    made = list(twins(problems, TASK, rules, format, PHRASES["spoken"], seed=5))
    assert made == list(twins(iter(problems), TASK, rules, format, PHRASES["spoken"], seed=5))
    assert made != list(twins(problems, TASK, rules, format, PHRASES["spoken"], seed=6))
    assert sum(twin.dead_ends for twin in made) > 30
    for twin, problem in zip(made, problems, strict=True):
        assert (twin.prompt, twin.problem, twin.rules, twin.seed) == (
            format.prompt(problem.question), problem.id, rules.spec, 5,
        )  # fmt: skip
        long, short = format.parse(twin.journey), format.parse(twin.shortcut)
        assert long.well_formed and short.well_formed and long.answer == short.answer
        assert TASK.judge(problem, short.answer).right
        left = iter(long.steps)
        assert all(step in left for step in short.steps)  # in order
        assert TASK.label(problem, short.steps).right
        # Whoever follows the steps and the returns arrives where the shortcut does.
        place, seen = [], {}
        for step in long.steps:
            if " = " in step:
                place.append(step)
            elif re.match(r"(Back to|Let me go back to|So back to) ", step):
                name = re.sub(r"(Back to|Let me go back to|So back to) |( again)?\.$", "", step)
                while place and place[-1].rpartition(", left ")[2] != name:
                    place.pop()
                assert place or sorted(map(int, name.split())) == sorted(problem.facts["numbers"])
            else:
                seen[step] = not TASK.label(problem, place).hopeful
        assert tuple(place) == short.steps and all(seen.values())


def test_what_is_wrong_is_never_taught():
    tree = hand_built()  # its answer is right by what the tree says, but uses 11
    telling = tell(walk(tree, ALL), PLAIN)
    with pytest.raises(UserError, match=r"a journey of countdown/train/3/0 ends with '8\*\(2\*7-11\)', which is wrong"):
        make_twin(telling, TASK, PLAIN)
    tree.nodes[7].text, tree.nodes[7].answer = "fine", "(8-2)*4"
    tree.nodes[2].reason = "x\x0bno: x"
    with pytest.raises(UserError, match="which is wrong"):
        make_twin(tell(walk(tree, ALL), PLAIN), TASK, PLAIN)
    marked = tell(walk(tree, ALL), PLAIN, Phrases("marked", dead_end=("answer: {reason}",)))
    with pytest.raises(UserError, match="cannot be written: 'answer: x no: x' is no step of format 'plain'"):
        make_twin(marked, TASK, PLAIN)
    endless = Phrases("endless", dead_end=("x" * LONGEST_TEXT,))  # the answer is where nobody looks
    with pytest.raises(UserError, match="does not come back from format 'plain'"):
        make_twin(tell(walk(tree, replace(ALL, most_characters=10 * LONGEST_TEXT)), PLAIN, endless), TASK, PLAIN)


def test_ids_of_trees_tell_them_apart():
    tree, other = hand_built(), hand_built()
    assert tree_id(tree) == tree_id(other) and re.fullmatch(r"hand/[0-9a-f]{12}", tree_id(tree))
    other.nodes[3].text += "0"
    moved = hand_built()
    moved.nodes[3].parent = 2
    assert len({tree_id(tree), tree_id(other), tree_id(moved)}) == 3


def test_phrases_have_names_and_one_line():
    assert find_phrases("spoken") is PHRASES["spoken"]
    for call, message in (
        (lambda: find_phrases("spokn"), "did you mean 'spoken'"),
        (lambda: Phrases("none", dead_end=()), "no variant for a dead end"),
        (lambda: Phrases("lines", back=("a\nb",)), "line break"),
    ):
        with pytest.raises(UserError, match=message):
            call()
