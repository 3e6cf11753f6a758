"""Diagnosis by a rule book: findings lead to signs, these and findings to further signs, and the last is the answer.

    Findings: mofa, tuli, denko, sani. Options: A vosin, B kelim, C harun, D bozat. Diagnosis?
    mofa and tuli give sarit
    sarit and sani give kelim
    answer: B

A small stand-in for medical reasoning (part 3 of the O1 replication, Huang et al. 2025, arXiv 2501.06458): answering
takes knowledge, which is learned, and a chain of inferences, which is carried out. All words are made up, so that
nothing is known before. The book is the same in all problems of a task and must be learned from them; or it is another
one in every problem and stands in the question (`rules_given`), and then nothing can be learned but to use it. Without
options the answer is a name, and cannot be found by exclusion.

Difficulty is how many rules lead to the diagnosis. Some findings are noise: rules may apply to them, and lead nowhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np

from mnemonist.errors import UserError
from mnemonist.reasoning.tasks.drawn import DrawnTask, Facts
from mnemonist.reasoning.tasks.expressions import Rejected
from mnemonist.reasoning.tasks.task import Problem, StepLabel, Verdict

LETTERS = "ABCDEFGHIJ"
CONSONANTS = "bdfgklmnprstvz"
VOWELS = "aeiou"
WORDS = [*map("".join, itertools.product(CONSONANTS, VOWELS, CONSONANTS, VOWELS))]
LAYERS = 5
"""Rules in the longest chain of a book."""
LONGEST = 100
"""Characters of a line or an answer that are looked at."""
TRIES = 1000  # of drawing noise before a rule book is called too dense


class Rule(NamedTuple):
    """One line of a book."""

    first: str
    second: str
    sign: str
    """What the two give."""

    def __str__(self) -> str:
        return f"{self.first} and {self.second} give {self.sign}"


@lru_cache(1024)
def rule_book(seed: int, findings: int, signs: int) -> tuple[tuple[str, ...], tuple[tuple[Rule, ...], ...]]:
    """A book: its findings, and its rules by layers.

    Each layer has as many rules as signs. Those of the first need two findings, those of the others a sign of the layer
    before and a finding. No two rules need the same.
    """
    random = np.random.default_rng([seed, findings, signs])
    chosen = [WORDS[place] for place in random.choice(len(WORDS), findings + LAYERS * signs, replace=False).tolist()]
    seen = tuple(chosen[:findings])
    endings = random.choice([*CONSONANTS], LAYERS * signs)  # signs sound unlike findings
    names = [word + ending for word, ending in zip(chosen[findings:], endings, strict=True)]
    layers: list[tuple[Rule, ...]] = []
    for layer in range(LAYERS):
        before = [rule.sign for rule in layers[-1]] if layers else []
        needs = [*itertools.product(before, seen)] if layers else [*itertools.combinations(seen, 2)]
        pairs = [needs[place] for place in sorted(random.choice(len(needs), signs, replace=False).tolist())]
        named = names[layer * signs : (layer + 1) * signs]
        layers.append(tuple(Rule(one, other, sign) for (one, other), sign in zip(pairs, named, strict=True)))
    return seen, tuple(layers)


@dataclass(frozen=True)
class Diagnosis(DrawnTask):
    """Diagnosis by a rule book.

    Raises:
        UserError: a field is out of range.
    """

    key: ClassVar[str] = "diagnosis"

    options: int = 4
    """Diagnoses to choose from, by letter; 0 asks for the name itself."""
    rules_given: bool = False
    """Whether each problem has a book of its own, which stands in its question."""
    book: int = 0
    """Which book is to be learned; of no effect where the rules are given."""
    findings: int = 16
    """Of a book."""
    signs: int = 12
    """Of each layer of a book."""
    noise: int = 3
    """Findings of a patient that the diagnosis does not need."""

    def __post_init__(self) -> None:
        if self.options not in (0, *range(2, len(LETTERS) + 1)) or self.options > self.signs:
            raise UserError(
                f"options is {self.options}; take 0 for none, or from 2 to {len(LETTERS)} and at most as many as "
                f"there are signs ({self.signs})"
            )
        if not (2 <= self.signs <= 100 and 8 <= self.findings <= 100 and self.signs <= self.findings * 2):
            raise UserError(
                f"findings is {self.findings} and signs {self.signs}; the first is from 8 to 100, the second from 2 to "
                "100 and at most twice the first"
            )
        if self.book < 0 or not 0 <= self.noise <= self.findings - LAYERS - 1:
            raise UserError(
                f"book is {self.book} and noise {self.noise}; the first is a number from 0, the second from 0 to "
                f"{self.findings - LAYERS - 1}"
            )

    @property
    def difficulties(self) -> range:
        """One to five rules."""
        return range(1, LAYERS + 1)

    def draw(self, random: np.random.Generator, difficulty: int) -> Facts:
        """A patient with one diagnosis; all that can be had alone are equally frequent."""
        book = int(random.integers(2**31)) if self.rules_given else self.book
        seen, layers = rule_book(book, self.findings, self.signs)
        layers = layers[:difficulty]
        cases = _clear_cases(layers)
        diagnosis = cases[random.integers(len(cases))] if cases else layers[-1][0].sign
        needed = _needed(diagnosis, layers)
        others = [finding for finding in seen if finding not in needed]
        others_named = [rule.sign for rule in layers[-1] if rule.sign != diagnosis]
        for _ in range(TRIES if cases else 0):
            patient = [*needed, *random.choice(others, self.noise, replace=False).tolist()]
            if _reached(patient, layers).intersection(others_named):
                continue
            shuffled = [patient[place] for place in random.permutation(len(patient))]
            facts = {"book": book, "rules": difficulty, "findings": shuffled, "diagnosis": diagnosis}
            if self.options:
                options = [diagnosis, *random.choice(others_named, self.options - 1, replace=False).tolist()]
                facts["options"] = [options[place] for place in random.permutation(len(options))]
            return facts
        raise UserError(f"{self.name} has next to no patient with one diagnosis; take fewer signs or less noise")

    def content(self, facts: Facts) -> Facts:
        """The findings in any order, with whatever options, are the same problem."""
        sizes = [facts["book"], self.findings, self.signs]
        return {"book": sizes, "rules": facts["rules"], "findings": sorted(facts["findings"])}

    def ask(self, facts: Facts) -> str:
        """Rules if they are given, findings, options if there are any."""
        parts = []
        if self.rules_given:
            rules = self._rules(facts)
            order = np.random.default_rng(facts["book"]).permutation(len(rules))  # or the last rules are the diagnoses
            parts.append(f"Rules: {'; '.join(str(rules[place]) for place in order)}.")
        parts.append(f"Findings: {', '.join(facts['findings'])}.")
        if self.options:
            named = (f"{letter} {option}" for letter, option in zip(LETTERS, facts["options"], strict=False))
            parts.append(f"Options: {', '.join(named)}.")
        return f"{' '.join(parts)} Diagnosis?"

    def answer(self, facts: Facts) -> str:
        """A letter, or a name where there are no options."""
        return self._written(facts, facts["diagnosis"])

    def judge(self, problem: Problem, answer: str) -> Verdict:
        """Whether it is the letter; where there are no options, the name."""
        given = answer.strip(" ") if len(answer) <= LONGEST else ""
        possible = [self._written(problem.facts, sign) for sign in self._named(problem.facts)]
        if given not in possible:
            form = f"one of the letters {possible[0]} to {possible[-1]}" if self.options else "the name of a diagnosis"
            return Verdict(False, parsed=False, reason=f"it is not {form}")
        return Verdict(True) if given == problem.answer else Verdict(False, reason=f"it is not {given}")

    def moves(self, problem: Problem, steps: Sequence[str]) -> list[str]:
        """See `StepTask.moves`: every rule that applies and tells something new, in the order of the book."""
        try:
            known = self._known(problem, steps)
        except Rejected:
            return []
        if problem.facts["diagnosis"] in known:
            return []
        return [
            str(rule)
            for rule in self._rules(problem.facts)
            if rule.sign not in known and {rule.first, rule.second} <= known
        ]

    def label(self, problem: Problem, steps: Sequence[str]) -> StepLabel:
        """See `StepTask.label`. Every rule that applies is hopeful: what is known stays known."""
        try:
            if not steps:
                raise Rejected("there is no step to be taken")
            known = self._known(problem, steps)
        except Rejected as error:
            return StepLabel(valid=False, hopeful=False, reason=str(error))
        finished = problem.facts["diagnosis"] in known
        return StepLabel(valid=True, hopeful=True, finished=finished, right=finished)

    def solution(self, problem: Problem) -> list[str]:
        """The rules that lead to the diagnosis, and no others."""
        by_sign = {rule.sign: rule for rule in self._rules(problem.facts)}
        chain: list[str] = []
        sign = problem.facts["diagnosis"]
        while sign in by_sign:
            chain.append(str(by_sign[sign]))
            sign = by_sign[sign].first
        return chain[::-1]

    def answer_of(self, problem: Problem, steps: Sequence[str]) -> str | None:
        """The diagnosis once a rule has given it."""
        return problem.answer if steps and self.label(problem, steps).finished else None

    def mistake(self, problem: Problem, random: np.random.Generator) -> str:
        """Another option, or another diagnosis that takes as many rules."""
        others = [sign for sign in self._named(problem.facts) if sign != problem.facts["diagnosis"]]
        return self._written(problem.facts, others[random.integers(len(others))])

    def _known(self, problem: Problem, steps: Sequence[str]) -> set[str]:
        """Findings, and the signs that steps have told.

        Raises:
            Rejected: a step is no rule of the book, does not apply, or tells nothing new.
        """
        rules = {str(rule): rule for rule in self._rules(problem.facts)}
        known = set(problem.facts["findings"])
        for step in steps:
            if problem.facts["diagnosis"] in known:
                raise Rejected("the diagnosis is known already")
            rule = rules.get(step.strip(" ")) if len(step) <= LONGEST else None
            if not rule:
                raise Rejected("the book has no such rule")
            for need in (rule.first, rule.second):
                if need not in known:
                    raise Rejected(f"{need} is not known")
            if rule.sign in known:
                raise Rejected(f"{rule.sign} is known already")
            known.add(rule.sign)
        return known

    def _rules(self, facts: Facts) -> list[Rule]:
        """Those of as many layers as the diagnosis takes."""
        _, layers = rule_book(facts["book"], self.findings, self.signs)
        return [rule for layer in layers[: facts["rules"]] for rule in layer]

    def _named(self, facts: Facts) -> list[str]:
        """What an answer may name."""
        return facts["options"] if self.options else [rule.sign for rule in self._rules(facts)[-self.signs :]]

    def _written(self, facts: Facts, sign: str) -> str:
        return LETTERS[facts["options"].index(sign)] if self.options else sign


@lru_cache(1024)
def _clear_cases(layers: tuple[tuple[Rule, ...], ...]) -> list[str]:
    """The signs of the last layer that can be had alone: what they need gives no other one."""
    diagnoses = [rule.sign for rule in layers[-1]]
    return [sign for sign in diagnoses if _reached(_needed(sign, layers), layers).intersection(diagnoses) == {sign}]


def _needed(sign: str, layers: Iterable[Iterable[Rule]]) -> list[str]:
    """The findings without which a sign is not reached."""
    by_sign = {rule.sign: rule for layer in layers for rule in layer}
    needed: list[str] = []
    while sign in by_sign:
        needed.append(by_sign[sign].second)
        sign = by_sign[sign].first
    return list(dict.fromkeys([sign, *reversed(needed)]))


def _reached(findings: Iterable[str], layers: Iterable[Iterable[Rule]]) -> set[str]:
    """Everything that is known in the end."""
    known = set(findings)
    for layer in layers:
        known |= {rule.sign for rule in layer if {rule.first, rule.second} <= known}
    return known
