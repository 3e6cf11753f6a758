"""Growing: trees without a model, from a task that knows every step and its truth.

A depth-first search that can see which steps are hopeful never has to look far: it goes down the right path and enters
dead ends only where a journey will. So a tree costs what its journey is long, not what the problem is wide, and
teaching texts come by the hundred thousand.

Trees that a search has grown, who may not know which steps are hopeful, can be told so afterwards (`with_truth`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from mnemonist.errors import UserError
from mnemonist.reasoning.formats import Format
from mnemonist.reasoning.journey import Draws, Excursions, JourneyRules
from mnemonist.reasoning.tasks.task import Problem, StepLabel, StepTask, Task
from mnemonist.reasoning.tree import ROOT, Node, Tree

METHOD = "grown"
"""What trees made here give as their method."""

Prefer = Callable[[Problem, Sequence[str], str], float]
"""How far a move, after the steps before it, seems from the goal: less is tried sooner."""


def nearest_to_target(problem: Problem, steps: Sequence[str], move: str) -> float:
    """For games of numbers: how many times larger or smaller than the target the nearest number is that is left.

    Args:
        problem: has a ``target`` among its facts.
        steps: not looked at.
        move: names what is left behind its last comma, or everywhere.

    Raises:
        UserError: the problem has no target.
    """
    target = problem.facts.get("target")
    if not isinstance(target, (int, float)):
        raise UserError(f"{problem.id} has no target that a number could be near to; prefer nothing")
    numbers = re.findall(r"\d+", move.rpartition(",")[2])
    return min((abs(math.log((1 + int(n)) / (1 + abs(target)))) for n in numbers), default=math.inf)


def as_listed(problem: Problem, steps: Sequence[str], move: str) -> float:
    """As the task lists them: an order that a model can learn to go through without a gap."""
    return 0.0


PREFERENCES: Mapping[str, Prefer | None] = {"any": None, "nearest": nearest_to_target, "listed": as_listed}
"""Named rules of thumb."""


def with_truth(tree: Tree, task: Task, format: Format) -> Tree:
    """A tree whose nodes know the truth about themselves as far as the task can say it: of answers, and of steps if it
    knows its steps.

    Args:
        tree: of a search.
        task: its.
        format: of the texts in it.
    """

    def known(node: Node) -> Node:
        if node.finished:
            wrong = node.right is False and node.answer is not None and not node.reason
            return replace(node, reason=task.judge(tree.problem, node.answer or "").reason) if wrong else node
        steps = [line for text in tree.steps(node.number) for line in format.parse(text).steps]
        if not steps or not isinstance(task, StepTask):
            return node
        label = task.label(tree.problem, steps)
        return replace(node, hopeful=label.valid and label.hopeful, reason=label.reason)

    return replace(tree, nodes=[known(node) for node in tree.nodes])


def grow(
    problem: Problem,
    task: StepTask,
    rules: JourneyRules,
    seed: int = 0,
    *,
    prefer: Prefer | None = None,
    noise: float = 0.0,
) -> Tree:
    """The part of a problem's tree that a journey under these rules visits, and nothing else.

    Args:
        problem: of this task.
        task: proposes steps and tells the truth about them.
        rules: of the journeys that will be made; `walk` with the same rules and seed enters all of the tree.
        seed: for the order in which steps are tried; another one finds another path.
        prefer: a rule of thumb for that order. Without it, any order is as likely as any other.
        noise: standard deviation of what is added to each value of ``prefer``.

    Raises:
        UserError: no right answer can be reached.
    """
    return _Growth(problem, task, rules, seed, prefer, noise).grow()


class _Fork(NamedTuple):
    """A node of the right path: the dead ends to enter there, and the step that is right."""

    dead_ends: list[tuple[str, StepLabel]]
    step: str
    label: StepLabel


class _Growth:
    def __init__(
        self, problem: Problem, task: StepTask, rules: JourneyRules, seed: int, prefer: Prefer | None, noise: float
    ) -> None:
        self.problem, self.task, self.rules = problem, task, rules
        self.prefer, self.noise = prefer, noise
        self.draw = Draws(problem.id, rules, seed)
        settings = {"rules": rules.spec, "seed": seed, "ordered": prefer is not None, "noise": noise}
        self.tree = Tree(problem, METHOD, settings)
        self.tree.nodes[ROOT].hopeful = True
        self.steps: list[list[str]] = [[]]
        """The steps that lead to each node."""

    def grow(self) -> Tree:
        # The right path first, for its length says what room excursions have; then nodes in the order of a search.
        forks = self._right_path()
        excursions = Excursions(self.rules, self.rules.most_steps - len(forks), self._tried_below)
        here = ROOT
        for dead_ends, step, label in forks:
            for wrong, wrong_label in dead_ends:
                if excursions.room > 0:
                    self._enter(excursions, here, wrong, wrong_label)
            here = self._add(here, step, label)
        tree, node = self.tree, self.tree.nodes[here]
        tree.answer, tree.right, tree.chosen = node.answer, True, here
        return tree

    def _right_path(self) -> list[_Fork]:
        forks: list[_Fork] = []
        steps: list[str] = []
        while not forks or not forks[-1].label.finished:
            fork = self._fork(steps, self.draw.trials())
            if fork is None or len(forks) >= self.rules.most_steps:
                raise UserError(
                    f"no right answer of {self.problem.id} can be reached within {self.rules.most_steps} steps; "
                    "raise most_steps, or leave the problem out"
                )
            forks.append(fork)
            steps = [*steps, fork.step]
        return forks

    def _fork(self, steps: list[str], most: int) -> _Fork | None:
        dead_ends: list[tuple[str, StepLabel]] = []
        right: tuple[str, StepLabel] | None = None
        patient = self.rules.entering == "dead ends first"
        for move in self._ordered(steps):
            if right is not None and not (patient and len(dead_ends) < most):
                break
            label = self.task.label(self.problem, [*steps, move])
            if label.hopeful:
                right = right or (move, label)
            elif len(dead_ends) < most:
                dead_ends.append((move, label))
        return None if right is None else _Fork(dead_ends, *right)

    def _ordered(self, steps: Sequence[str]) -> Iterable[str]:
        moves = self.task.moves(self.problem, steps)
        if self.prefer is None:
            return self.draw.shuffled(moves)
        values = [self.prefer(self.problem, steps, move) for move in moves]
        if self.noise:
            values = [value + self.draw.random.gauss(0.0, self.noise) for value in values]
        return [move for _, move in sorted(zip(values, moves, strict=True), key=lambda pair: pair[0])]

    def _tried_below(self, number: int) -> Iterator[int]:
        """What is tried below a dead end; each node is made when it is asked for."""
        if self.tree.nodes[number].finished:
            return
        for count, move in enumerate(self._ordered(self.steps[number])):
            if self.rules.below and count >= self.rules.below:
                return
            yield self._add(number, move, None)

    def _enter(self, excursions: Excursions, here: int, step: str, label: StepLabel) -> None:
        for move in excursions.walk(self._add(here, step, label), here):
            node = self.tree.nodes[move.node]
            if move.kind == "dead end" and not node.reason:
                self._know(node.number, self.task.label(self.problem, self.steps[node.number]))

    def _add(self, parent: int, step: str, label: StepLabel | None) -> int:
        number = self.tree.add(parent, step).number
        self.steps.append([*self.steps[parent], step])
        node = self.tree.nodes[number]
        # Behind a hopeless step all are hopeless: what it would cost to ask is spared until a reason is wanted.
        node.hopeful, node.discarded = label is not None and label.hopeful, label is None or not label.hopeful
        if label is not None:
            self._know(number, label)
        return number

    def _know(self, number: int, label: StepLabel) -> None:
        node = self.tree.nodes[number]
        node.reason, node.finished = label.reason, label.finished
        if label.finished:
            node.answer, node.right = self.task.answer_of(self.problem, self.steps[number]), label.right
