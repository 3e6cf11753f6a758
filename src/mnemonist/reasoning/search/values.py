"""Values: how good a path is that is not at its end yet, from 0 (hopeless) to 1.

Two of the judges know the truth, and belong where trees are grown to learn from, or as the upper bound of all others:
*gold* labels, and *rollouts*, which let the policy finish a path several times and count how often it comes out right
(Math-Shepherd, Wang et al. 2023, arXiv 2312.08935). *outcome* knows only whether an answer is right, once it is given.
Two can be used on problems that nobody has solved: a trained *model* of steps, and the policy *self*, asked whether it
thinks the answer can still be reached (tree of thoughts, Yao et al. 2023, arXiv 2305.10601).

A judge scores the last step of a path; what the path is worth is the last of its scores, their minimum, or their
product. A path that ends without an answer is worth nothing to anyone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from mnemonist.errors import UserError
from mnemonist.reasoning.formats import Format
from mnemonist.reasoning.search.lockstep import Place, Search, check_choice
from mnemonist.reasoning.search.proposers import LINE_END, require_steps
from mnemonist.reasoning.tasks.task import StepTask, Task
from mnemonist.reasoning.tree import Node, Tree

VALUES = ("model", "self", "gold", "outcome", "rollouts", "any-rollout")
KNOWING = ("gold", "outcome", "rollouts", "any-rollout")
"""Those who know right answers: a method that asks them is no fair way to answer."""
AGGREGATES = ("last", "min", "product")

QUESTION = """A problem, and the first steps towards its solution:

{question}
{steps}

Can the right answer still be reached from here? End with one word: sure, likely or impossible."""
OPINIONS = {"sure": 1.0, "likely": 0.05, "impossible": 0.0}
"""What a word is worth. That one "sure" outweighs twenty "likely" is from the published code of tree of thoughts."""
OPPOSITES = {"sure": "likely", "likely": "impossible", "impossible": "likely"}


class Path(NamedTuple):
    """A path, or the beginning of one, to be judged by its last step."""

    tree: Tree
    node: Node
    """At its end; it pays for what is tried out."""
    steps: tuple[str, ...]
    whole: bool = True
    """Whether the path includes all of the node, which may have several steps."""

    @property
    def ended(self) -> bool:
        """Whether no step can follow."""
        return self.whole and self.node.finished


class Judge(Protocol):
    """Scores the last steps of paths, none of which has ended without an answer."""

    def scores(self, search: Search, paths: Sequence[Path]) -> list[float]:
        """A number from 0 to 1 for each."""
        ...


@dataclass(frozen=True)
class Gold:
    """The truth, which nodes then know too: 1 for a valid step from which a right answer can be reached, else 0."""

    def scores(self, search: Search, paths: Sequence[Path]) -> list[float]:
        """See `Judge.scores`."""
        return [self._score(search.task, path) for path in paths]

    def _score(self, task: Task, path: Path) -> float:
        if path.ended:
            verdict = task.judge(path.tree.problem, path.node.answer or "")
            good, reason = verdict.right, verdict.reason
        elif path.steps:
            require_steps(task, "value=gold")
            assert isinstance(task, StepTask)
            label = task.label(path.tree.problem, path.steps)
            good, reason = label.valid and label.hopeful, label.reason
        else:  # nothing but empty lines so far
            good, reason = True, ""
        if path.whole:
            path.node.hopeful, path.node.reason = good, reason
        return float(good)


@dataclass(frozen=True)
class Outcome:
    """1 while a path is open, then whether its answer is right: a search that can only check what it has found."""

    def scores(self, search: Search, paths: Sequence[Path]) -> list[float]:
        """See `Judge.scores`."""
        return [float(path.node.right or False) if path.ended else 1.0 for path in paths]


@dataclass(frozen=True)
class Model:
    """A `PathScorer`'s opinion; where there is no step yet it has none, and a path is worth 1."""

    def scores(self, search: Search, paths: Sequence[Path]) -> list[float]:
        """See `Judge.scores`.

        Raises:
            ValueError: the scorer gave something else than one number from 0 to 1 for each path.
        """
        assert search.scorer is not None
        scores = [1.0] * len(paths)
        places: dict[int, list[int]] = {}
        for place, path in enumerate(paths):
            if path.steps:
                places.setdefault(id(path.tree), []).append(place)
        for own in places.values():
            tree = paths[own[0]].tree
            given = search.scorer.score(tree.problem, [paths[place].steps for place in own], tree.ledger)
            if len(given) != len(own) or not all(0 <= score <= 1 for score in given):
                raise ValueError(
                    f"The scorer gave {given} for {len(own)} paths; it must give each a number from 0 to 1."
                )
            for place, score in zip(own, given, strict=True):
                scores[place] = float(score)
        return scores


@dataclass(frozen=True)
class SelfEvaluation:
    """The policy's own opinion, several times, in words."""

    samples: int = 3
    tokens: int = 64
    """Of an opinion, at most."""

    def scores(self, search: Search, paths: Sequence[Path]) -> list[float]:
        """See `Judge.scores`. Opinions that cannot be read do not count; without any, a path is "likely"."""
        wanted = []
        for path in paths:
            steps = "\n".join(path.steps) or "(none yet)"
            prompt = search.format.prompt(QUESTION.format(question=path.tree.problem.question, steps=steps))
            wanted += [(path.tree, prompt)] * self.samples
        stop = () if search.format.close_thought else (LINE_END,)  # who has a thought to close thinks before it judges
        texts = [attempt.text for attempt in search.write(wanted, stop, self.tokens, reward=True)]
        scores = []
        for at in range(0, len(texts), self.samples):
            opinions = [each for text in texts[at : at + self.samples] if (each := read_opinion(text)) is not None]
            scores.append(math.fsum(opinions) / len(opinions) if opinions else OPINIONS["likely"])
        return scores


@dataclass(frozen=True)
class Rollouts:
    """How often the policy comes from here to a right answer."""

    samples: int = 4
    any: bool = False
    """1 if it ever does (the paper's hard estimate), instead of the share (its soft one)."""

    def scores(self, search: Search, paths: Sequence[Path]) -> list[float]:
        """See `Judge.scores`. What is written is part of no path; the node at the end of its path pays for it."""
        open_paths = [path for path in paths if not path.ended]
        wanted = [(path.tree, _prompt(search.format, path)) for path in open_paths for _ in range(self.samples)]
        attempts = search.write(wanted)
        shares = []
        for at, path in enumerate(open_paths):
            own = attempts[at * self.samples : (at + 1) * self.samples]
            path.node.extra_tokens += sum(attempt.tokens for attempt in own)
            before = "".join(step + LINE_END for step in path.steps)
            answers = [search.format.parse(before + attempt.text).answer for attempt in own]
            right = sum(search.right(path.tree.problem, answer) for answer in answers)
            shares.append(float(right > 0) if self.any else right / self.samples)
        given = iter(shares)
        return [float(path.node.right or False) if path.ended else next(given) for path in paths]


def find_judge(name: str, samples: int, search: Search) -> Judge:
    """A judge by name, one of `VALUES`.

    Raises:
        UserError: there is none, or it needs a scorer and there is none.
    """
    check_choice("value", name, VALUES)
    if name == "model" and search.scorer is None:
        knowing = ", ".join(KNOWING)
        raise UserError(
            f"value=model needs a trained scorer of steps; give one, or take value=self, or one of {knowing}"
        )
    judges: Mapping[str, Judge] = {
        "model": Model(),
        "self": SelfEvaluation(samples),
        "gold": Gold(),
        "outcome": Outcome(),
        "rollouts": Rollouts(samples),
        "any-rollout": Rollouts(samples, any=True),
    }
    return judges[name]


def judge_ends(search: Search, judge: Judge, places: Iterable[Place]) -> list[float]:
    """The scores of the last steps of paths; 0 for those that ended without an answer."""
    paths = [_path(search.format, place) for place in places]
    return _scores(search, judge, paths)


def appraise(search: Search, judge: Judge, places: Sequence[Place], aggregate: str = "last") -> None:
    """Set the nodes' values: what their paths are worth. Their parents' have been set, unless they are roots."""
    paths, owners = [], []
    for at, place in enumerate(places):
        whole = _path(search.format, place)
        own = len(units(search.format, place.node.text))
        lengths = range(len(whole.steps) - own + 1, len(whole.steps)) if aggregate != "last" else ()
        ends = [*(whole._replace(steps=whole.steps[:length], whole=False) for length in lengths), whole]
        paths += ends
        owners += [at] * len(ends)
    scores: list[list[float]] = [[] for _ in places]
    for at, score in zip(owners, _scores(search, judge, paths), strict=True):
        scores[at].append(score)
    for (tree, node), own_scores in zip(places, scores, strict=True):
        before = tree.nodes[node.parent].value if node.parent is not None else None
        node.value = combine([1.0 if before is None else before, *own_scores], aggregate)


def combine(scores: Sequence[float], aggregate: str) -> float:
    """What a path with these step scores is worth.

    Raises:
        UserError: there is no such aggregate.
    """
    check_choice("aggregate", aggregate, AGGREGATES)
    if aggregate == "last":
        return scores[-1]
    return min(scores) if aggregate == "min" else math.prod(scores)


def units(format: Format, text: str) -> list[str]:
    """The steps in a piece of a policy's text: its lines without empty ones, then its end as one, if it has come."""
    lines, end = format.pieces(text)
    return lines if end is None else [*lines, end]


def read_opinion(text: str) -> float | None:
    """What a text says last, by `OPINIONS`; None if it says nothing of the kind."""
    found = re.findall(r"\b(not\s+)?(sure|likely|impossible)\b", text.lower())
    if not found:
        return None
    negated, word = found[-1]
    return OPINIONS[OPPOSITES[word] if negated else word]


def _path(format: Format, place: Place) -> Path:
    steps = [step for text in place.tree.steps(place.node.number) for step in units(format, text)]
    return Path(place.tree, place.node, tuple(steps))


def _scores(search: Search, judge: Judge, paths: Sequence[Path]) -> list[float]:
    asked = [path for path in paths if not (path.ended and path.node.answer is None)]
    given = iter(judge.scores(search, asked))
    return [0.0 if path.ended and path.node.answer is None else next(given) for path in paths]


def _prompt(format: Format, path: Path) -> str:
    return format.prompt(path.tree.problem.question) + "".join(step + LINE_END for step in path.steps)
