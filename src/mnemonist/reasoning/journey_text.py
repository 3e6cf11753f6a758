"""Journeys in words: steps as they are, dead ends with their reasons, and where one goes back to.

A step is said as the tree has it. What a walk adds to the steps, that something leads nowhere and that one goes back,
is said by `Phrases`: a few words around a reason and a state that the task names, so that no large model is needed and
models of bytes read few of them. In the end a journey is lines of a thought and an answer, written by a `Format`; what
comes out is taken apart and judged again before anyone learns from it.

    tree = grow(problem, task, rules, seed)          or a search's
    telling = tell(walk(tree, rules, seed), format)
    twin = make_twin(telling, task, format)          the journey and its shortcut, as prompt and completions
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from mnemonist.errors import UserError, nearest
from mnemonist.reasoning.formats import Format
from mnemonist.reasoning.growing import Prefer, grow
from mnemonist.reasoning.journey import Journey, JourneyRules, Move, walk
from mnemonist.reasoning.tasks.task import Problem, StepTask, Task
from mnemonist.reasoning.tree import ROOT, Tree

LineKind = Literal["step", "dead end", "back", "said"]
"""What a line of a telling says: a step, a reason, a return; or what a rewriter has added between these."""

State = Callable[[Problem, Sequence[str]], str]
"""What the place behind some steps is called, on one line: what is left of the numbers, say."""


@dataclass(frozen=True)
class Phrases:
    """What is said at a dead end and on the way back. Of several variants one is drawn each time.

    Raises:
        UserError: a phrase has a line break, or a list is empty.
    """

    name: str
    dead_end: tuple[str, ...] = ("no: {reason}",)
    """``{reason}`` stands for why a step leads nowhere; an empty phrase leaves the line out."""
    back: tuple[str, ...] = ("back to: {state}",)
    """``{state}`` stands for where one is again; an empty phrase leaves the line out."""
    nowhere: str = "this leads nowhere"
    """The reason where a tree knows none."""
    start: str = "start"
    """The state before the first step, where the task has no name for it."""
    left: str = ", left "
    """Where the task has no names for states, one is called by what its last step says behind this; by the whole step
    if it says none of it."""
    check: str = ""
    """Said wherever steps end, right or wrong, in place of a reason: ``{goal}`` is what the problem is after and
    ``{verdict}`` is yes or no. What must be compared then stands side by side, each time, and the goal near by. Empty
    for nothing."""
    near: bool = True
    """Whether it is also said that one goes back where that is a single step from where steps ended."""

    def __post_init__(self) -> None:
        if not self.dead_end or not self.back:
            raise UserError(f"phrases {self.name!r} have no variant for a dead end or a return; give '' to say nothing")
        if any("\n" in phrase for phrase in (*self.dead_end, *self.back, self.nowhere, self.start, self.check)):
            raise UserError(f"phrases {self.name!r} have a line break; each phrase is one line")


PHRASES: Mapping[str, Phrases] = {
    "terse": Phrases("terse"),
    "spoken": Phrases(
        "spoken",
        ("Wait, {reason}.", "But {reason}.", "Hmm, {reason}, so this does not work."),
        ("Back to {state}.", "Let me go back to {state}.", "So back to {state} again."),
        start="the start",
    ),
    "checked": Phrases("checked", ("",), check="{goal}? {verdict}", near=False),
}
"""Named phrases: few characters for models trained from nothing; words that long thoughts are known by; and as few as
a search can be followed by, with a check in place of reasons."""


def find_phrases(name: str) -> Phrases:
    """The row of `PHRASES` with this name.

    Raises:
        UserError: there is none; the message suggests the nearest one.
    """
    if name not in PHRASES:
        raise UserError(f"there are no phrases {name!r}{nearest(name, PHRASES)}; known: {', '.join(PHRASES)}")
    return PHRASES[name]


class Line(NamedTuple):
    """One line of a telling."""

    text: str
    kind: LineKind
    node: int
    """The node that is entered, given up or returned to."""
    astray: bool
    """Whether it belongs to an excursion."""


@dataclass(frozen=True)
class Telling:
    """A journey in words."""

    journey: Journey
    lines: tuple[Line, ...]
    left_out: int = 0
    """Excursions left out for want of room."""
    dead_ends: int = 0
    """That it tells of, also when a rewriter has put them into other words."""

    @property
    def texts(self) -> list[str]:
        """The lines of the thought."""
        return [line.text for line in self.lines]

    @property
    def problem(self) -> Problem:
        """What it is about."""
        return self.journey.tree.problem

    def write(self, format: Format) -> str:
        """The whole text, answer included.

        Raises:
            ValueError: a line is none that the format can hold.
        """
        return format.write(self.texts, self.journey.answer)


def tell(
    journey: Journey,
    format: Format,
    phrases: Phrases = PHRASES["terse"],
    state: State | None = None,
    goal: str | None = None,
) -> Telling:
    """Put a journey into words; the same journey is told the same way.

    Args:
        journey: what was visited.
        format: takes the marks of an answer off the steps of a tree that a policy has written.
        phrases: for dead ends and returns.
        state: names places, see `state_of`. Without it a place is called after the last step that led there.
        goal: what the problem is after, see `goal_of`.

    Raises:
        UserError: the phrases name the goal, and there is none.
    """
    if goal is None and "{goal}" in phrases.check:
        raise UserError(f"phrases {phrases.name!r} name the goal of a problem, and this task names none; take others")
    teller = _Teller(journey, format, phrases, state, goal or "")
    excursions: list[list[Line]] = []
    order: list[list[Line]] = []
    on_path = {ROOT, *journey.path}
    for move in journey.moves:
        begins = move.kind == "step" and journey.tree.nodes[move.node].parent in on_path
        if begins or not order:
            order.append([])
            if move.astray:
                excursions.append(order[-1])
        order[-1].extend(teller.say(move))
    room = journey.rules.most_characters - sum(len(line.text) + 1 for lines in order for line in lines)
    left_out = 0
    while room < 0 and excursions:
        last = excursions.pop()
        room += sum(len(line.text) + 1 for line in last)
        last.clear()
        left_out += 1
    told = tuple(line for lines in order for line in lines)
    return Telling(journey, told, left_out, sum(line.kind == "dead end" for line in told))


class _Teller:
    def __init__(self, journey: Journey, format: Format, phrases: Phrases, state: State | None, goal: str) -> None:
        self.tree, self.format, self.phrases, self.state, self.goal = journey.tree, format, phrases, state, goal
        self.ended: int | None = None
        """The place one step before where steps ended just now."""
        self.random = Random(f"{journey.seed} {journey.tree.problem.id} phrases")
        self.steps: dict[int, Sequence[str]] = {ROOT: ()}

    def say(self, move: Move) -> Iterator[Line]:
        node, near = self.tree.nodes[move.node], self.ended
        self.ended = None
        if move.kind == "step":
            texts: Sequence[str] = self._steps(move.node)
        elif move.kind == "dead end" and node.finished and self.phrases.check:
            texts = [self._check(False)]
        elif move.kind == "dead end":
            phrase = self._draw(self.phrases.dead_end)
            texts = [phrase.replace("{reason}", _one_line(node.reason) or self.phrases.nowhere)]
        else:
            phrase = "" if near == move.node and not self.phrases.near else self._draw(self.phrases.back)
            texts = [phrase.replace("{state}", self._place(move.node))] if phrase else []
        if move.kind == "dead end" and node.finished:
            self.ended = node.parent
        for text in texts:
            if text:
                yield Line(text, move.kind, move.node, move.astray)
        if move.kind == "step" and node.finished and node.right and self.phrases.check:
            yield Line(self._check(True), "said", move.node, move.astray)

    def _check(self, right: bool) -> str:
        return self.phrases.check.replace("{goal}", self.goal).replace("{verdict}", "yes" if right else "no")

    def _draw(self, variants: tuple[str, ...]) -> str:
        return variants[0] if len(variants) == 1 else self.random.choice(variants)

    def _steps(self, number: int) -> Sequence[str]:
        if number not in self.steps:
            self.steps[number] = self.format.parse(self.tree.nodes[number].text).steps
        return self.steps[number]

    def _place(self, number: int) -> str:
        if self.state is not None:
            steps = [line for node in self.tree.path(number) for line in self._steps(node.number)]
            return _one_line(self.state(self.tree.problem, steps)) or self.phrases.start
        while number != ROOT and not self._steps(number):
            number = self.tree.nodes[number].parent or ROOT
        if number == ROOT:
            return self.phrases.start
        step, left = self._steps(number)[-1], self.phrases.left
        return step.rpartition(left)[2] if left and left in step else step


@runtime_checkable
class NamesStates(Protocol):
    """A task that can name what is left after some steps."""

    def state(self, problem: Problem, steps: Sequence[str]) -> str:
        """In a few words on one line; also before the first step."""
        ...


def state_of(task: Task) -> State | None:
    """How a task names states, if it does."""
    return task.state if isinstance(task, NamesStates) else None


@runtime_checkable
class NamesGoals(Protocol):
    """A task that can name what a problem is after."""

    def goal(self, problem: Problem) -> str:
        """In a few words on one line."""
        ...


def goal_of(task: Task, problem: Problem) -> str | None:
    """How a task names what a problem is after, if it does."""
    return _one_line(task.goal(problem)) if isinstance(task, NamesGoals) else None


@dataclass(frozen=True)
class Twin:
    """Two texts that teach the same steps to the same answer: with what went wrong on the way, and without."""

    prompt: str
    journey: str
    """Completion of the prompt."""
    shortcut: str
    """Another one."""
    problem: str
    """Id of the problem."""
    tree: str
    """Id of the tree, see `tree_id`."""
    rules: str
    """As `find_journey` reads them."""
    seed: int
    dead_ends: int
    """That the journey tells of."""


def make_twin(telling: Telling, task: Task, format: Format, shortcut: Telling | None = None) -> Twin:
    """A journey and its shortcut as texts, both taken apart and judged again.

    Args:
        telling: of the journey.
        task: judges the answers.
        format: writes the texts.
        shortcut: of the same journey, if it was rewritten too; otherwise it is told in the steps alone.

    Raises:
        UserError: a text does not come back from the format as it went in, or its answer is not right.
    """
    journey, tree = telling.journey, telling.journey.tree
    straight = shortcut or tell(journey.shortcut(), format)
    return Twin(
        format.prompt(tree.problem.question),
        _checked(telling, task, format),
        _checked(straight, task, format),
        tree.problem.id,
        tree_id(tree),
        journey.rules.spec,
        journey.seed,
        telling.dead_ends,
    )


def tellings(
    problems: Iterable[Problem],
    task: StepTask,
    rules: JourneyRules,
    format: Format,
    phrases: Phrases = PHRASES["terse"],
    seed: int = 0,
    *,
    prefer: Prefer | None = None,
    noise: float = 0.0,
) -> Iterator[Telling]:
    """A tree and its journey in words for each problem; lazily, so that a million of them need no memory.

    Raises:
        UserError: a problem has no right answer within the rules.
    """
    state = state_of(task)
    for problem in problems:
        tree = grow(problem, task, rules, seed, prefer=prefer, noise=noise)
        yield tell(walk(tree, rules, seed), format, phrases, state, goal_of(task, problem))


def twins(
    problems: Iterable[Problem],
    task: StepTask,
    rules: JourneyRules,
    format: Format,
    phrases: Phrases = PHRASES["terse"],
    seed: int = 0,
    *,
    prefer: Prefer | None = None,
    noise: float = 0.0,
) -> Iterator[Twin]:
    """The journeys of `tellings`, each with its shortcut.

    Raises:
        UserError: a problem has no right answer within the rules.
    """
    for telling in tellings(problems, task, rules, format, phrases, seed, prefer=prefer, noise=noise):
        yield make_twin(telling, task, format)


def tree_id(tree: Tree) -> str:
    """Method and a digest of the problem and all steps: two trees with the same one are the same tree."""
    lines = [tree.problem.id, *(f"{node.parent} {node.text}" for node in tree.nodes)]
    return f"{tree.method}/{hashlib.sha256(chr(0).join(lines).encode()).hexdigest()[:12]}"


def _checked(telling: Telling, task: Task, format: Format) -> str:
    name = telling.problem.id
    try:
        text = telling.write(format)
    except ValueError as error:
        raise UserError(f"a journey of {name} cannot be written: {error}") from error
    parsed = format.parse(text)
    if not parsed.well_formed or list(parsed.steps) != [line.strip() for line in telling.texts]:
        raise UserError(f"a journey of {name} does not come back from format {format.name!r} as it was written")
    verdict = task.judge(telling.problem, parsed.answer or "")
    if not verdict.right:
        raise UserError(f"a journey of {name} ends with {parsed.answer!r}, which is wrong: {verdict.reason}")
    return text


def _one_line(text: str) -> str:
    return " ".join(text.split())
