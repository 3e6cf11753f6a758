"""Trees that are grown hold what their journeys visit, all of it, and nothing else."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnemonist.errors import UserError
from mnemonist.reasoning.formats import FORMATS
from mnemonist.reasoning.growing import PREFERENCES, grow, nearest_to_target, with_truth
from mnemonist.reasoning.journey import JOURNEYS, JourneyRules, walk
from mnemonist.reasoning.tasks.countdown import Countdown
from mnemonist.reasoning.tasks.task import Problem, StepLabel, StepTask, Verdict
from mnemonist.reasoning.tree import ROOT, Tree

DEPTH_FIRST = JOURNEYS["depth-first"]
O1 = replace(JOURNEYS["o1-journey"], chance=1.0)


@dataclass(frozen=True)
class Stairs:
    """Climb exactly so many stairs, two, three or seven at a time. It counts what it is asked."""

    asked: Counter = field(default_factory=Counter, compare=False)
    name = "stairs"
    difficulties = range(1, 30)

    def problem(self, split, difficulty, index):
        return Problem(self.name, split, difficulty, index, f"Climb {difficulty}.", "", {"target": difficulty})

    def judge(self, problem, answer):
        return Verdict(answer == f"{problem.facts['target']}")

    def moves(self, problem: Problem, steps: Sequence[str]) -> list[str]:
        self.asked["moves"] += 1
        here = self._here(steps)
        return [f"{here} + {n}, {here + n}" for n in (2, 3, 7)] if here < problem.facts["target"] else []

    def label(self, problem: Problem, steps: Sequence[str]) -> StepLabel:
        self.asked["label"] += 1
        left = problem.facts["target"] - self._here(steps)
        reason = f"{left} stairs cannot be climbed" if left == 1 else f"{-left} too many" if left < 0 else ""
        return StepLabel(True, left == 0 or left > 1, left <= 0, left == 0, reason)

    def solution(self, problem):
        return []

    def answer_of(self, problem, steps):
        return f"{self._here(steps)}"

    def _here(self, steps: Sequence[str]) -> int:
        return int(steps[-1].rpartition(", ")[2]) if steps else 0


def shape(tree: Tree) -> list[tuple[int | None, str]]:
    return [(node.parent, node.text) for node in tree.nodes[1:]]


def test_a_tree_in_full():
    task = Stairs()
    problem = task.problem("train", 4, 0)
    # In order of the moves: 2, and from there 2; nothing wrong is tried before what is right.
    tree = grow(problem, task, DEPTH_FIRST, prefer=lambda problem, steps, move: 0.0)
    assert shape(tree) == [(0, "0 + 2, 2"), (1, "2 + 2, 4")]
    # The other way round: 7 is too many, 3 leaves one stair, and below it everything is tried.
    tree = grow(problem, task, DEPTH_FIRST, prefer=lambda problem, steps, move: -int(move.rpartition(", ")[2]))
    assert shape(tree) == [
        (0, "0 + 7, 7"),
        (0, "0 + 3, 3"),
        (2, "3 + 7, 10"),
        (2, "3 + 3, 6"),
        (2, "3 + 2, 5"),
        (0, "0 + 2, 2"),
        (6, "2 + 7, 9"),
        (6, "2 + 3, 5"),
        (6, "2 + 2, 4"),
    ]
    nodes = tree.nodes
    assert [node.reason for node in nodes[1:4]] == ["3 too many", "1 stairs cannot be climbed", "6 too many"]
    assert (nodes[3].finished, nodes[3].answer, nodes[3].right, nodes[3].hopeful) == (True, "10", False, False)
    assert (nodes[9].finished, nodes[9].answer, nodes[9].right, nodes[9].hopeful) == (True, "4", True, True)
    assert [node.number for node in nodes if node.discarded] == [1, 2, 3, 4, 5, 7, 8]
    assert (tree.answer, tree.right, tree.chosen) == ("4", True, 9)
    assert tree.settings["rules"] == "depth-first" and tree.settings["seed"] == 0
    assert Tree.from_json(tree.to_json()) == tree


def test_nothing_is_asked_that_nobody_needs():
    task = Stairs()
    tree = grow(task.problem("train", 20, 0), task, replace(O1, chance=0.0), prefer=lambda *_: 0.0)
    assert len(tree.nodes) == 11 and task.asked == {"moves": 10, "label": 10}


RULES = st.builds(
    JourneyRules,
    st.just("any"),
    trials=st.integers(0, 4),
    chance=st.sampled_from([0.0, 0.5, 1.0]),
    below=st.integers(0, 3),
    entering=st.sampled_from(["dead ends first", "as grown"]),
    returning=st.sampled_from(["straight", "level by level"]),
    patience=st.integers(0, 3),
    most_steps=st.integers(12, 40),
)


def check(task: StepTask, problem: Problem, rules: JourneyRules, seed: int) -> None:
    tree = grow(problem, task, rules, seed)
    assert grow(problem, task, rules, seed) == tree
    journey = walk(tree, rules, seed)
    assert [move.node for move in journey.moves if move.kind == "step"] == list(range(1, len(tree.nodes)))
    for node in tree.nodes[1:]:
        truth = task.label(problem, tree.steps(node.number))
        assert truth.valid and node.hopeful is truth.hopeful and node.hopeful is (node.number in journey.path)
        if node.finished:
            assert (truth.finished, truth.right) == (True, node.right)
    for move in journey.moves:
        if move.kind == "dead end":
            assert tree.nodes[move.node].reason == task.label(problem, tree.steps(move.node)).reason != ""
    assert task.judge(problem, tree.answer or "").right


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 12), RULES, st.integers(0, 5))
def test_a_grown_tree_is_walked_in_full(target, rules, seed):
    task = Stairs()
    check(task, task.problem("train", target, 0), rules, seed)


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 4), st.integers(0, 30), RULES, st.integers(0, 5))
def test_so_is_a_tree_of_countdown(numbers, index, rules, seed):
    task = Countdown()
    check(task, task.problem("train", numbers, index), rules, seed)


def test_seeds_find_other_paths():
    task = Countdown()
    problem = task.problem("train", 4, 1)
    assert len({str(shape(grow(problem, task, DEPTH_FIRST, seed))) for seed in range(8)}) > 4


def test_a_rule_of_thumb_saves_steps_and_noise_blurs_it():
    task = Countdown()
    problems = [task.problem("train", 3, index) for index in range(60)]

    def steps(prefer, noise=0.0):
        return sum(len(grow(p, task, DEPTH_FIRST, prefer=prefer, noise=noise).nodes) for p in problems)

    assert steps(nearest_to_target) < 0.9 * steps(None)
    assert steps(nearest_to_target, noise=100.0) > steps(nearest_to_target)
    target = problems[0].facts["target"]
    assert nearest_to_target(problems[0], (), f"1 * {target} = {target}, left 900 {target}") == 0
    seven = nearest_to_target(problems[0], (), "9 - 2 = 7, left 7 90000")  # 9 and 2 do not lie there any more
    assert seven == pytest.approx(abs(math.log(8 / (target + 1))))
    with pytest.raises(UserError, match="has no target"):
        nearest_to_target(Problem("t", "train", 1, 0, "q", "a"), (), "1")


def test_what_cannot_be_reached_says_so():
    task = Stairs()
    with pytest.raises(UserError, match="no right answer of stairs/train/1/0 can be reached"):
        grow(task.problem("train", 1, 0), task, DEPTH_FIRST)
    with pytest.raises(UserError, match="within 3 steps; raise most_steps"):
        grow(task.problem("train", 29, 0), task, replace(DEPTH_FIRST, most_steps=3))


def test_steps_are_tried_as_listed():
    """In the task's own order, without a gap."""
    task = Countdown(largest=12, ceiling=100)
    for index in range(20):
        rules = replace(DEPTH_FIRST, most_steps=10_000)
        tree = grow(task.problem("train", 4, index), task, rules, prefer=PREFERENCES["listed"])
        steps = [node.text for node in tree.nodes[1:] if node.parent == ROOT]
        assert steps == task.moves(tree.problem, [])[: len(steps)]


def test_a_tree_of_a_search_is_told_the_truth():
    """Whatever the search thought of its steps."""
    task = Countdown()
    problem = Problem("countdown", "train", 3, 0, "?", "", {"numbers": [2, 3, 4], "target": 20})
    tree = Tree(problem, "beam", {})
    tree.add(ROOT, "2 * 3 = 6, left 4 6", value=0.9)  # looks good, and is not
    tree.add(ROOT, "2 * 3 = 7, left 4 7", value=0.9)
    tree.add(ROOT, "2 + 3 = 5, left 4 5", value=0.1)
    tree.add(3, "4 * 5 = 20, left 20", value=0.1)
    tree.add(4, "answer: (2 + 3) * 4", finished=True, answer="(2 + 3) * 4", right=True)
    tree.add(1, "answer: 2 * 3 + 4", finished=True, answer="2 * 3 + 4", right=False)
    before = tree.to_json()
    known = with_truth(tree, task, FORMATS["plain"])
    assert tree.to_json() == before
    assert [node.hopeful for node in known.nodes] == [None, False, False, True, True, None, None]
    assert all(known.nodes[number].reason for number in (1, 2, 6)) and not known.nodes[5].reason
    journey = walk(known, JourneyRules("all", trials=0, below=0))
    assert journey.path == (3, 4, 5) and journey.dead_ends == 2
    assert [move.node for move in journey.moves if move.kind == "step"] == [1, 6, 2, 3, 4, 5]


def test_of_a_task_that_only_judges_answers_alone_are_known():
    class Judging:
        name = "judging"

        def judge(self, problem, answer):
            return Verdict(False, reason="it is too long")

    tree = Tree(Problem("judging", "train", 1, 0, "?", ""), "beam")
    tree.add(ROOT, "a step", value=0.2)
    tree.add(1, "answer: no", finished=True, answer="no", right=False)
    tree.add(1, "", finished=True, right=False)
    known = with_truth(tree, Judging(), FORMATS["plain"])
    assert known.nodes[:2] == tree.nodes[:2] and known.nodes[3] == tree.nodes[3]
    assert known.nodes[2].reason == "it is too long"
