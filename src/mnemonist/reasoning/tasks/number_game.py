"""Number games: take two numbers, put their result in their place, until the target lies there.

Countdown and the game of 24 are this game under different `Rules`. A step shows the whole state, so that nothing must
be kept in mind: ``8 - 5 = 3, left 3 7``. Negative results are not allowed. That costs no solution: whatever has the
size of the target when some value on the way is negative can be had with that value's size instead.

Whether the target can still be made is decided exactly, by working backwards from it: if it is ``a + b`` and the one
half of the numbers makes ``a``, then the others must make ``target - a``.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from mnemonist.reasoning.tasks.drawn import DrawnTask, Facts
from mnemonist.reasoning.tasks.expressions import Rejected, read_expression, shown
from mnemonist.reasoning.tasks.task import Problem, StepLabel, Verdict

Number = int | Fraction
"""Whole ones are always int: equal numbers look the same, and Python counts faster with them."""
Pool = tuple[Number, ...]
"""The numbers that lie there, rising."""

OPERATORS = ("+", "-", "*", "/")
BRACKETED_LEFT = {"+": "", "-": "", "*": "+-", "/": "+-"}
BRACKETED_RIGHT = {"+": "", "-": "+-", "*": "+-", "/": "+-*/"}
"""By operator: expressions of which operators need brackets on its left and on its right."""
LONGEST_STEP = 200
"""Characters of a line that is looked at; the longest honest one has fewer than half of them."""
ENUMERATED = 3
"""Numbers all of whose results are listed; what more of them make is asked for one value at a time."""
MISTAKES = 6
"""Wrong expressions of which one is taken; three numbers, all alike, have as many."""
KEPT = 1 << 16
"""Answers of the solver that are remembered: about 20 MB."""


class Rules(NamedTuple):
    """Which results are allowed."""

    whole: bool
    """Only whole ones: what does not divide exactly must not be divided."""
    ceiling: int
    """None above it."""
    all_used: bool
    """Whether the target must be made of all numbers; otherwise some may be left over."""


def compute(left: Number, operator: str, right: Number, rules: Rules) -> Number:
    """The result of a step.

    Raises:
        Rejected: it is not allowed.
    """
    result: Number
    if operator == "+":
        result = left + right
    elif operator == "-":
        result = left - right
    elif operator == "*":
        result = left * right
    elif not right:
        raise Rejected("nothing can be divided by 0")
    else:
        quotient = Fraction(left) / Fraction(right)
        if rules.whole and quotient.denominator != 1:
            raise Rejected(f"{left} / {right} is no whole number")
        result = quotient
    if result < 0:
        raise Rejected(f"{left} - {right} is negative")
    if result > rules.ceiling:
        raise Rejected(f"{left} {operator} {right} is more than {rules.ceiling}")
    return result.numerator if result.denominator == 1 else result


def combinations(a: Number, b: Number, rules: Rules) -> Iterator[tuple[Number, str, Number, Number]]:
    """Everything that may be done with two numbers, as left, operator, right and result; the larger stands first."""
    large, small = (a, b) if a >= b else (b, a)
    if large + small <= rules.ceiling:
        yield large, "+", small, _tidy(large + small)
    yield large, "-", small, _tidy(large - small)
    if large * small <= rules.ceiling:
        yield large, "*", small, _tidy(large * small)
    for over, under in ((large, small), (small, large))[: 1 if large == small else 2]:
        if under and not (rules.whole and over % under):
            result = _tidy(Fraction(over) / under) if over % under else _tidy(over // under)
            if result <= rules.ceiling:
                yield over, "/", under, result


@lru_cache(KEPT)
def makes(numbers: Pool, target: Number, rules: Rules) -> bool:
    """Whether all of the numbers together can make the target."""
    if len(numbers) <= ENUMERATED:
        return target in _values(numbers, rules)
    for part, rest in _splits(numbers):
        for a in _values(part, rules):
            if any(makes(rest, b, rules) for b in _partners(a, target, rules)):
                return True
    return False


@lru_cache(KEPT)
def enough(numbers: Pool, target: Number, rules: Rules) -> Pool | None:
    """The fewest of the numbers that make the target; all of them if all must be used; None if it cannot be made."""
    sizes = range(len(numbers) if rules.all_used else 1, len(numbers) + 1)
    for size in sizes:
        for some in sorted(set(itertools.combinations(numbers, size))):
            if makes(some, target, rules):
                return some
    return None


@dataclass(frozen=True)
class NumberGame(DrawnTask):
    """What Countdown and the game of 24 share: everything but the draw and the question."""

    @property
    def rules(self) -> Rules:
        """Of the game."""
        raise NotImplementedError

    def judge(self, problem: Problem, answer: str) -> Verdict:
        """Whether an expression uses given numbers, each as often as it is given at most, and equals the target.

        Its values on the way may be anything, negative and broken ones as well: the rules bind steps.
        """
        try:
            expression = read_expression(answer)
        except Rejected as error:
            return Verdict(False, parsed=False, reason=str(error))
        spare = Counter(problem.facts["numbers"])
        spare.subtract(expression.numbers)
        for number in expression.numbers:
            if spare[number] < 0:
                return Verdict(False, reason=f"it uses {shown(number)} more often than given")
        unused = sorted(spare.elements())
        if unused and self.rules.all_used:
            return Verdict(False, reason=f"it does not use {unused[0]}")
        target = problem.facts["target"]
        if expression.value != target:
            return Verdict(False, reason=f"it is {shown(expression.value)}, not {target}")
        return Verdict(True)

    def moves(self, problem: Problem, steps: Sequence[str]) -> list[str]:
        """See `StepTask.moves`. Each step is written once, the larger number first; `label` takes `5 + 8` as well."""
        try:
            pool = self._pool(problem, steps)
        except Rejected:
            return []
        if self._finished(problem, pool, steps):
            return []
        return list(self._moves(pool))

    def label(self, problem: Problem, steps: Sequence[str]) -> StepLabel:
        """See `StepTask.label`."""
        try:
            pool = self._pool(problem, steps[:-1])
            if not steps or self._finished(problem, pool, steps[:-1]):
                raise Rejected("there is no step to be taken")
            pool = _after(pool, steps[-1], self.rules)
        except Rejected as error:
            return StepLabel(valid=False, hopeful=False, reason=str(error))
        target = problem.facts["target"]
        finished = self._finished(problem, pool, steps)
        right = finished and target in pool
        hopeful = right or (not finished and enough(pool, target, self.rules) is not None)
        reason = "" if hopeful else f"{_listed(pool)} {'is not' if len(pool) == 1 else 'cannot make'} {target}"
        return StepLabel(True, hopeful, finished, right, reason)

    def solution(self, problem: Problem) -> list[str]:
        """See `StepTask.solution`. No other has fewer steps."""
        return self._solve(problem.facts)[0]

    def answer_of(self, problem: Problem, steps: Sequence[str]) -> str | None:
        """The steps as one expression; None unless they are allowed and finished."""
        try:
            pool = self._pool(problem, steps)
        except Rejected:
            return None
        if not self._finished(problem, pool, steps):
            return None
        return _expression(problem.facts["numbers"], steps)

    def state(self, problem: Problem, steps: Sequence[str]) -> str:
        """What is left after allowed steps, as journeys name the places that they return to."""
        return _texts(self._pool(problem, steps))

    def goal(self, problem: Problem) -> str:
        """The target, as journeys that check where they have come to name it."""
        return str(problem.facts["target"])

    def answer(self, facts: Facts) -> str:
        """The expression of `solution`."""
        return self._solve(facts)[1]

    def content(self, facts: Facts) -> Facts:
        """Numbers in any order are the same problem."""
        return {"numbers": sorted(facts["numbers"]), "target": facts["target"]}

    def mistake(self, problem: Problem, random: np.random.Generator) -> str:
        """Of some expressions that use all numbers and miss the target, the one that comes nearest."""
        numbers, target = problem.facts["numbers"], problem.facts["target"]
        wrong: dict[str, Fraction] = {}
        while len(wrong) < MISTAKES:
            first, *others = (numbers[place] for place in random.permutation(len(numbers)))
            text = str(first)
            for number in others:
                operator = OPERATORS[random.integers(3)]  # a division would often give a fraction, and itself, away
                text = f"{text}{operator}{number}"
            if not self.judge(problem, text).right:
                wrong[text] = abs(read_expression(text).value - target)
        return min(wrong, key=lambda text: wrong[text])

    def play(self, random: np.random.Generator, numbers: Sequence[int]) -> Number:
        """What is left when two numbers are taken at random again and again, and any allowed step."""
        pool: list[Number] = list(numbers)
        while len(pool) > 1:
            a, b = (pool.pop(int(random.integers(len(pool)))) for _ in range(2))
            results = [result for *_, result in combinations(a, b, self.rules)]
            pool.append(results[random.integers(len(results))])
        return pool[0]

    def _solve(self, facts: Facts) -> tuple[list[str], str]:
        """Steps and expression of a shortest solution."""
        target, rules = facts["target"], self.rules._replace(all_used=True)
        pool = tuple(sorted(facts["numbers"]))
        needed = enough(pool, target, self.rules) or ()
        steps: list[str] = []
        while len(needed) > 1:
            moves = self._moves(needed).items()
            move, after = next((move, after) for move, after in moves if makes(after, target, rules))
            spare = Counter(pool) - Counter(needed)
            pool, needed = tuple(sorted((*spare.elements(), *after))), after
            steps.append(f"{move.partition(', ')[0]}, left {_texts(pool)}")
        return steps, _expression(facts["numbers"], steps)

    def _moves(self, pool: Pool) -> dict[str, Pool]:
        """Every allowed step, and what lies there after it."""
        moves: dict[str, Pool] = {}
        for first, second in itertools.combinations(range(len(pool)), 2):
            rest = [number for place, number in enumerate(pool) if place not in (first, second)]
            for left, operator, right, result in combinations(pool[first], pool[second], self.rules):
                after = tuple(sorted((*rest, result)))
                moves.setdefault(f"{left} {operator} {right} = {result}, left {_texts(after)}", after)
        return moves

    def _pool(self, problem: Problem, steps: Sequence[str]) -> Pool:
        """What lies there after some steps."""
        pool, rules = tuple(sorted(problem.facts["numbers"])), self.rules
        for step in steps:
            pool = _after(pool, step, rules)
        return pool

    def _finished(self, problem: Problem, pool: Pool, steps: Sequence[str]) -> bool:
        """Whether no step follows."""
        return len(pool) == 1 or (bool(steps) and not self.rules.all_used and problem.facts["target"] in pool)


@lru_cache(KEPT)
def _after(pool: Pool, step: str, rules: Rules) -> Pool:
    """What lies there after one step.

    Numbers are never read, but compared as text with those that lie there: there is only one way to write each.

    Raises:
        Rejected: the step is none, is not true or not allowed.
    """
    if len(step) > LONGEST_STEP:
        raise Rejected(f"more than {LONGEST_STEP} characters")
    sum_, comma, left_over = step.strip(" ").partition(", left ")
    parts = sum_.split(" ")
    if len(parts) != 5 or parts[1] not in OPERATORS or parts[3] != "=" or not comma:
        raise Rejected("no step of the form 'a + b = c, left c ...'")
    lying = {str(number): number for number in pool}
    rest = list(pool)
    taken: list[Number] = []
    for text in (parts[0], parts[2]):
        if lying.get(text) not in rest:
            raise Rejected(f"{text[:20]!a} {'lies there only once' if text in lying else 'does not lie there'}")
        rest.remove(lying[text])
        taken.append(lying[text])
    result = compute(taken[0], parts[1], taken[1], rules)
    if parts[4] != str(result):
        raise Rejected(f"{parts[0]} {parts[1]} {parts[2]} is {result}")
    after = tuple(sorted((*rest, result)))
    if sorted(left_over.split(" ")) != sorted(map(str, after)):
        raise Rejected(f"what is left is {_texts(after)}")
    return after


def _tidy(number: Number) -> Number:
    return number.numerator if number.denominator == 1 else number


def _splits(numbers: Pool) -> Iterator[tuple[Pool, Pool]]:
    """The numbers in two parts, the first not the longer one."""
    places = range(len(numbers))
    seen = set()
    for size in range(1, len(numbers) // 2 + 1):
        for chosen in itertools.combinations(places, size):
            part = tuple(numbers[place] for place in chosen)
            if part not in seen:  # equal numbers make equal parts
                seen.add(part)
                yield part, tuple(numbers[place] for place in places if place not in chosen)


@lru_cache(KEPT)
def _values(numbers: Pool, rules: Rules) -> frozenset[Number]:
    """Everything that all of the numbers together can make."""
    if len(numbers) == 1:
        return frozenset(numbers)
    return frozenset(
        result
        for part, rest in _splits(numbers)
        for a in _values(part, rules)
        for b in _values(rest, rules)
        for *_, result in combinations(a, b, rules)
    )


def _partners(a: Number, target: Number, rules: Rules) -> set[Number]:
    """Every b that makes the target together with a.

    If both are 0, then 0 is named alone, though 0 times anything would do: where a part of the numbers makes 0, one of
    the others times all the rest makes 0 as well, and that is found by another split.
    """
    partners = {target - a, a - target, target + a}
    if a:
        partners |= {target * a, _tidy(Fraction(target) / a)}
        if target:
            partners.add(_tidy(Fraction(a) / target))
    return {_tidy(b) for b in partners if 0 <= b <= rules.ceiling and not (rules.whole and b.denominator != 1)}


def _expression(numbers: Sequence[int], steps: Sequence[str]) -> str:
    """Allowed steps as the expression of the last result, with no bracket too many."""
    lying = [(str(number), str(number), "") for number in numbers]  # value, expression, its outermost operator
    for step in steps:
        left, operator, right, _, result = step.strip(" ").partition(", ")[0].split(" ")
        texts = []
        for value, bracketed in ((left, BRACKETED_LEFT[operator]), (right, BRACKETED_RIGHT[operator])):
            place = next(place for place, (other, *_) in enumerate(lying) if other == value)
            _, text, outermost = lying.pop(place)
            texts.append(f"({text})" if outermost and outermost in bracketed else text)
        lying.append((result, operator.join(texts), operator))
    return lying[-1][1]


def _texts(pool: Pool) -> str:
    return " ".join(map(str, pool))


def _listed(pool: Pool) -> str:
    *most, last = map(str, pool)
    return f"{', '.join(most)} and {last}" if most else last
