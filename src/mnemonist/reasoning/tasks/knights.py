"""Knights and knaves: everybody is a knight, who says what is true, or a knave, who says what is false. Who is what?

    A says B and C are the same. B says C is a knave. C says there are 2 knights. Who is what?
    suppose A is a knave
    suppose B is a knight
    from A: C is a knave
    answer: A knave, B knight, C knave

A line is an assumption, or what a single statement tells together with the lines before: one look at one sentence.
A wrong assumption is allowed and can be carried on until a statement contradicts it; there that path ends, and whoever
searches goes back. Labels are exact: with n people there are 2^n worlds, and a set of worlds is an integer whose bit w
says that world w is in it; in world w, person p is a knight if bit p of w is set.

Difficulty is how many people there are (Smullyan 1978 has the puzzles). Each puzzle has one solution, and all
solutions are equally frequent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from mnemonist.reasoning.tasks.drawn import DrawnTask, Facts
from mnemonist.reasoning.tasks.expressions import Rejected
from mnemonist.reasoning.tasks.task import Problem, StepLabel, Verdict

PEOPLE = "ABCDEFG"
KINDS = ("knave", "knight")
LONGEST = 200
"""Characters of a line or an answer that are looked at."""
STEP = re.compile(r"(?:suppose|from ([A-G]):) ([A-G]) is a (knave|knight)")
TRIES = 10_000  # of drawing statements for a world; one in three or so leaves no other

Statement = list[Any]
"""A form and what it is about, as JSON values; `_sentence` and `_truth` say which forms there are."""


@dataclass(frozen=True)
class Knights(DrawnTask):
    """Knights and knaves."""

    key: ClassVar[str] = "knights"

    @property
    def difficulties(self) -> range:
        """Two to seven people."""
        return range(2, len(PEOPLE) + 1)

    def draw(self, random: np.random.Generator, difficulty: int) -> Facts:
        """A world, then statements of which each fits its speaker there and that together fit no other world."""
        world = int(random.integers(2**difficulty))
        for _ in range(TRIES):
            says = [_statement(random, difficulty, speaker, world) for speaker in range(difficulty)]
            if len(list(_members(_all_true(_constraints(_key(says)))))) == 1:
                return {"says": says}
        raise AssertionError(f"no statements single out world {world} of {difficulty} people")

    def ask(self, facts: Facts) -> str:
        """One sentence a person."""
        said = (f"{PEOPLE[speaker]} says {_sentence(statement)}." for speaker, statement in enumerate(facts["says"]))
        return f"{' '.join(said)} Who is what?"

    def answer(self, facts: Facts) -> str:
        """The one world in which all fits: ``A knight, B knave``."""
        return _assignment(*_solved(facts))

    def judge(self, problem: Problem, answer: str) -> Verdict:
        """Whether everybody is named once, in any order, with what they are."""
        world, people = _solved(problem.facts)
        parts = answer.strip(" ").split(", ") if len(answer) <= LONGEST else []
        known = {f"{PEOPLE[p]} {kind}": (p, k) for p in range(people) for k, kind in enumerate(KINDS)}
        if len(parts) != people or not known.keys() >= set(parts):
            return Verdict(False, parsed=False, reason=f"not of the form {_assignment(0, 1)}, ...")
        given = dict(known[part] for part in parts)
        if len(given) < people:
            return Verdict(False, parsed=False, reason="somebody is named twice")
        wrong = [p for p, kind in sorted(given.items()) if kind != world >> p & 1]
        return Verdict(not wrong, reason=f"{_is(wrong[0], 1 - given[wrong[0]])}" if wrong else "")

    def moves(self, problem: Problem, steps: Sequence[str]) -> list[str]:
        """See `StepTask.moves`: what statements tell, then what can be assumed."""
        constraints = _constraints(_key(problem.facts["says"]))
        try:
            known = self._known(constraints, steps)
        except Rejected:
            return []
        return self._moves(constraints, known)

    def label(self, problem: Problem, steps: Sequence[str]) -> StepLabel:
        """See `StepTask.label`."""
        constraints = _constraints(_key(problem.facts["says"]))
        try:
            if not steps:
                raise Rejected("there is no step to be taken")
            known = self._known(constraints, steps)
        except Rejected as error:
            return StepLabel(valid=False, hopeful=False, reason=str(error))
        world, people = _solved(problem.facts)
        hopeful = bool(known >> world & 1)
        liar = _contradicted(constraints, known)
        finished = liar is not None or len(list(_members(known))) == 1
        reason = ""
        if liar is not None:
            kind = _told(known, people, liar)
            reason = f"then {PEOPLE[liar]} can be neither"  # who speaks of themselves can be caught before being judged
            if kind is not None:
                reason = f"then {PEOPLE[liar]}, a {KINDS[kind]}, said what is {'false' if kind else 'true'}"
        elif not hopeful:
            wrong = next(p for p in range(people) if _told(known, people, p) == 1 - (world >> p & 1))
            reason = f"{PEOPLE[wrong]} cannot be a {KINDS[1 - (world >> wrong & 1)]}"
        return StepLabel(True, hopeful, finished, finished and hopeful, reason)

    def solution(self, problem: Problem) -> list[str]:
        """Whatever statements tell, and where they tell nothing, a right assumption."""
        constraints = _constraints(_key(problem.facts["says"]))
        steps: list[str] = []
        while not (steps and self.label(problem, steps).finished):
            moves = self._moves(constraints, self._known(constraints, steps))
            steps.append(next(move for move in moves if self.label(problem, [*steps, move]).hopeful))
        return steps

    def answer_of(self, problem: Problem, steps: Sequence[str]) -> str | None:
        """Who is what after steps that are allowed and leave nobody open."""
        try:
            known = self._known(_constraints(_key(problem.facts["says"])), steps)
        except Rejected:
            return None
        worlds = list(_members(known))
        return _assignment(worlds[0], len(problem.facts["says"])) if len(worlds) == 1 else None

    def mistake(self, problem: Problem, random: np.random.Generator) -> str:
        """The solution with somebody taken for what they are not."""
        world, people = _solved(problem.facts)
        return _assignment(world ^ (1 << int(random.integers(people))), people)

    def _moves(self, constraints: tuple[int, ...], known: int) -> list[str]:
        """Every line that is allowed where these worlds are left; none if a statement contradicts them."""
        if _contradicted(constraints, known) is not None:
            return []
        people = len(constraints)
        is_open = [p for p in range(people) if _told(known, people, p) is None]
        told = [
            f"from {PEOPLE[speaker]}: {_is(p, kind)}"
            for speaker, constraint in enumerate(constraints)
            for p in is_open
            if (kind := _told(known & constraint, people, p)) is not None
        ]
        return told + [f"suppose {_is(p, kind)}" for p in is_open for kind in (1, 0)]

    def _known(self, constraints: tuple[int, ...], steps: Sequence[str]) -> int:
        """The worlds in which all lines are true.

        Raises:
            Rejected: a line is none or not allowed.
        """
        people = len(constraints)
        known = _everything(people)
        for step in steps:
            match = STEP.fullmatch(step.strip(" ")) if len(step) <= LONGEST else None
            if not match:
                raise Rejected("no line of the form 'suppose A is a knight' or 'from A: B is a knave'")
            speaker, person = (PEOPLE.index(name) if name else None for name in match.groups()[:2])
            kind = KINDS.index(match[3])
            assert person is not None
            if person >= people or (speaker is not None and speaker >= people):
                raise Rejected("nobody has that name")
            if _contradicted(constraints, known) is not None:
                raise Rejected("the lines before contradict each other")
            if _told(known, people, person) is not None:
                raise Rejected(f"what {PEOPLE[person]} is was said before")
            if speaker is not None and _told(known & constraints[speaker], people, person) != kind:
                raise Rejected(f"{PEOPLE[speaker]}'s statement does not tell that")
            known &= _where(people, person, kind)
        return known


# --- statements


def _statement(random: np.random.Generator, people: int, speaker: int, world: int) -> Statement:
    """One that fits its speaker in this world: true if they are a knight, false if a knave."""
    while True:
        form = ("is", "same", "count", "and", "or")[random.integers(5)]
        one = speaker if form == "is" else int(random.integers(people))
        other = (one + int(random.integers(1, people))) % people
        kinds = random.integers(0, 2, 2).tolist()
        first, second = sorted((one, other))
        statement: Statement
        if form == "is":
            statement = [form, other, kinds[0]]
        elif form == "same":
            statement = [form, first, second, kinds[0]]
        elif form == "count":
            statement = [form, int(random.integers(people + 1))]
        else:
            statement = [form, first, kinds[0], second, kinds[1]]
        if _truth(statement, people) >> world & 1 == world >> speaker & 1:
            return statement


def _truth(statement: Sequence[Any], people: int) -> int:
    """The worlds in which a statement is true."""
    form, *about = statement
    if form == "count":
        return _counting(people, about[0])
    if form == "is":
        return _where(people, *about)
    if form == "same":
        one, other = (_where(people, person, 1) for person in about[:2])
        return one ^ other ^ (_everything(people) if about[2] else 0)
    one, other = _where(people, *about[:2]), _where(people, *about[2:])
    return one & other if form == "and" else one | other


def _sentence(statement: Sequence[Any]) -> str:
    form, *about = statement
    if form == "is":
        return _is(*about)
    if form == "same":
        return f"{PEOPLE[about[0]]} and {PEOPLE[about[1]]} are {'the same' if about[2] else 'different'}"
    if form == "count":
        return f"there {'is 1 knight' if about[0] == 1 else f'are {about[0]} knights'}"
    return f"{_is(*about[:2])} {form} {_is(*about[2:])}"


def _is(person: int, kind: int) -> str:
    return f"{PEOPLE[person]} is a {KINDS[kind]}"


def _assignment(world: int, people: int) -> str:
    return ", ".join(f"{PEOPLE[p]} {KINDS[world >> p & 1]}" for p in range(people))


# --- sets of worlds


def _key(says: Sequence[Sequence[Any]]) -> tuple[tuple[Any, ...], ...]:
    return tuple(map(tuple, says))


def _everything(people: int) -> int:
    return (1 << (1 << people)) - 1


@lru_cache
def _where(people: int, person: int, kind: int) -> int:
    """The worlds in which somebody is of a kind."""
    return sum(1 << world for world in range(1 << people) if world >> person & 1 == kind)


@lru_cache
def _counting(people: int, knights: int) -> int:
    """The worlds with so many knights."""
    return sum(1 << world for world in range(1 << people) if world.bit_count() == knights)


@lru_cache(4096)
def _constraints(says: tuple[tuple[Any, ...], ...]) -> tuple[int, ...]:
    """For each speaker the worlds in which what they say fits what they are: it is true, and they are a knight, or
    neither.
    """
    people = len(says)
    return tuple(_truth(statement, people) ^ _where(people, speaker, 0) for speaker, statement in enumerate(says))


def _all_true(constraints: tuple[int, ...]) -> int:
    """The worlds in which everybody's statement fits."""
    known = _everything(len(constraints))
    for constraint in constraints:
        known &= constraint
    return known


def _solved(facts: Facts) -> tuple[int, int]:
    """The one world of a puzzle, and how many people live there."""
    constraints = _constraints(_key(facts["says"]))
    return next(_members(_all_true(constraints))), len(constraints)


def _members(worlds: int) -> Iterator[int]:
    return (world for world in range(worlds.bit_length()) if worlds >> world & 1)


def _told(worlds: int, people: int, person: int) -> int | None:
    """What somebody is in all of these worlds; None if that differs, or there are none."""
    knight = bool(worlds & _where(people, person, 1))
    knave = bool(worlds & _where(people, person, 0))
    return int(knight) if knight != knave else None


def _contradicted(constraints: tuple[int, ...], known: int) -> int | None:
    """The first speaker whose statement fits none of these worlds."""
    return next((speaker for speaker, constraint in enumerate(constraints) if not known & constraint), None)
