"""Lockstep: one method on many problems at once, so that samplers get full batches.

All trees of a call grow together, round by round. What they want written in a round goes to the sampler in one call,
and each tree is charged its share: what was written for it exactly, and of what the call cost besides (prompts that a
sampler read once, arithmetic, time) a part by the tokens it had. The ledgers of the trees add up to the sampler's.

No tree sees another. A problem's tree is the same alone and among others if the sampler's draws for a prompt are.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, Protocol

from mnemonist.errors import UserError, nearest
from mnemonist.reasoning.attempts import Attempt, Decoding, Sampler
from mnemonist.reasoning.formats import Format
from mnemonist.reasoning.ledger import Ledger
from mnemonist.reasoning.tasks.task import Problem, Task
from mnemonist.reasoning.tree import ROOT, Node, Tree


class PathScorer(Protocol):
    """Judges partial solutions: a process reward model."""

    def score(self, problem: Problem, paths: Sequence[Sequence[str]], ledger: Ledger) -> list[float]:
        """How good the last step of each path is after those before it, from 0 to 1.

        A path is a list of steps as the policy wrote them, one line each; the last one may be the end of its text, with
        the answer in its marks. What was read is charged to the ledger, as reward tokens.
        """
        ...


class Place(NamedTuple):
    """A node, and the tree it is in."""

    tree: Tree
    node: Node


@dataclass(frozen=True)
class Method(ABC):
    """A way to spend tokens on problems. Its fields are its choices."""

    name: str = ""
    """What tables call it."""

    def solve(
        self,
        problems: Sequence[Problem],
        task: Task,
        format: Format,
        sampler: Sampler,
        decoding: Decoding | None = None,
        scorer: PathScorer | None = None,
    ) -> list[Tree]:
        """A tree for each problem, in their order, with the answer that the method gives in the end.

        Args:
            problems: of ``task``.
            task: judges the answers; methods that look at gold labels or moves need a `StepTask`.
            format: how questions are put and answers are marked.
            sampler: the policy.
            decoding: how tokens are drawn. The method chooses its seeds (all follow from the one given), and while it
                draws step by step, where to stop.
            scorer: of methods that have ``value=model``.

        Raises:
            UserError: the method needs what was not given, or the sampler cannot answer.
        """
        search = Search(task, format, sampler, decoding or Decoding(), scorer)
        settings = self._settings(search)
        trees = [Tree(problem, self.name, dict(settings)) for problem in problems]
        self.run(search, trees)
        return trees

    @abstractmethod
    def run(self, search: Search, trees: Sequence[Tree]) -> None:
        """Grow the trees from their roots, and conclude each."""

    def _settings(self, search: Search) -> dict[str, Any]:
        drawn = {**asdict(search.decoding), "stop": list(search.decoding.stop)}
        choices = {name: value for name, value in asdict(self).items() if name != "name"}
        asked = {"format": search.format.name, "sampler": search.sampler.name, "decoding": drawn}
        return {**choices, **asked, **getattr(search.sampler, "settings", {})}


@dataclass
class Search:
    """What a method works with: whom it asks, and how much it has asked."""

    task: Task
    format: Format
    sampler: Sampler
    decoding: Decoding
    scorer: PathScorer | None = None
    calls: int = 0
    """Rounds of writing so far; each draws from a seed of its own."""

    def write(
        self,
        wanted: Sequence[tuple[Tree, str]],
        stop: tuple[str, ...] | None = None,
        max_tokens: int | None = None,
        reward: bool = False,
    ) -> list[Attempt]:
        """One attempt for each prompt, paid by the tree beside it.

        A round in which nothing is wanted counts too: it may be empty only because no other problem wanted anything.

        Args:
            wanted: who pays, and the prompt.
            stop: None takes the decoding's own.
            max_tokens: at most, if that is less than the decoding's.
            reward: whether this is judging: all of it is charged as reward tokens.

        Raises:
            ValueError: the sampler did not give one attempt for each prompt.
        """
        self.calls += 1
        if not wanted:
            return []
        decoding = replace(
            self.decoding,
            seed=_seed_of(self.decoding.seed, self.calls),
            stop=self.decoding.stop if stop is None else stop,
            max_tokens=min(self.decoding.max_tokens, max_tokens or self.decoding.max_tokens),
        )
        spent = Ledger()
        attempts = self.sampler.sample([prompt for _, prompt in wanted], decoding, spent)
        if len(attempts) != len(wanted):
            raise ValueError(f"{self.sampler.name} gave {len(attempts)} attempts for {len(wanted)} prompts.")
        _share(spent, [tree for tree, _ in wanted], attempts, reward)
        return attempts

    def right(self, problem: Problem, answer: str | None) -> bool:
        """Whether it is an answer, and right."""
        return answer is not None and self.task.judge(problem, answer).right

    def conclude(self, tree: Tree, answer: str | None, givers: Iterable[Node] = ()) -> None:
        """Give the tree its answer; all that lies on no path to its ``givers`` is discarded."""
        ends = list(givers)
        kept = {ROOT} | {node.number for end in ends for node in tree.path(end.number)}
        lost = 0
        for node in tree.nodes:
            node.discarded = node.number not in kept
            lost += node.extra_tokens + (node.tokens if node.discarded else 0)
        tree.ledger.discard(lost)
        tree.answer, tree.right = answer, self.right(tree.problem, answer)
        tree.chosen = ends[0].number if len(ends) == 1 else None


def check_choice(field: str, value: str, known: Iterable[str]) -> None:
    """Make sure that a choice by name is one of the known ones.

    Raises:
        UserError: it is not; the message suggests the nearest one.
    """
    names = list(known)
    if value not in names:
        raise UserError(f"{field} is {value!r}{nearest(value, names)}; it must be one of {', '.join(names)}")


def check_least(**numbers: tuple[float, float]) -> None:
    """Make sure that each number (the first of a pair) is at least the second.

    Raises:
        UserError: one is not.
    """
    for name, (value, least) in numbers.items():
        if not value >= least:
            raise UserError(f"{name} is {value}; it must be at least {least}")


def _seed_of(seed: int, call: int) -> int:
    """Seeds of neighbouring searches must not meet, as ``seed + call`` would."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{call}".encode()).digest()[:4], "big") >> 1


def _share(spent: Ledger, payers: Sequence[Tree], attempts: Sequence[Attempt], reward: bool) -> None:
    """Charge what a call cost to the trees that wanted it. Equal prompts of a tree are one reading."""
    trees = list({id(tree): tree for tree in payers}.values())
    of = {id(tree): place for place, tree in enumerate(trees)}
    written, prompts, read = [0] * len(trees), [0] * len(trees), [0] * len(trees)
    seen: set[tuple[int, str]] = set()
    for tree, attempt in zip(payers, attempts, strict=True):
        place = of[id(tree)]
        written[place] += attempt.tokens
        prompts[place] += 1
        if (place, attempt.prompt) not in seen:
            seen.add((place, attempt.prompt))
            read[place] += len(attempt.prompt_ids) or len(attempt.prompt)
    read = _apportion(spent.prompt_tokens, read)
    calls = _apportion(spent.calls, prompts)
    weights = [a + b for a, b in zip(read, written, strict=True)]
    whole = sum(weights)
    for place, tree in enumerate(trees):
        part = weights[place] / whole if whole else 1 / len(trees)
        tokens = {"reward": weights[place]} if reward else {"prompt": read[place], "generated": written[place]}
        tree.ledger.charge(**tokens, calls=calls[place], flops=spent.flops * part, seconds=spent.seconds * part)


def _apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Whole parts of a total in proportion to weights; those with the largest remainders are rounded up."""
    whole = sum(weights)
    if not whole:
        weights, whole = [1] * len(weights), len(weights)
    parts = [total * weight // whole for weight in weights]
    remainders = sorted(range(len(weights)), key=lambda place: -(total * weights[place] % whole))
    for place in remainders[: total - sum(parts)]:
        parts[place] += 1
    return parts
