"""A task of a few lines and policies that are scripts, for the tests of search.

*Climb*: come from a number to exactly another one by steps of ``+ 3`` and ``* 2``. One token is one character, and the
end mark is another one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from mnemonist.reasoning.attempts import Attempt, Decoding
from mnemonist.reasoning.formats import FORMATS, Format
from mnemonist.reasoning.ledger import Ledger
from mnemonist.reasoning.tasks.task import Problem, Split, StepLabel, Verdict
from mnemonist.reasoning.tree import Tree

PLAIN = FORMATS["plain"]
OPERATIONS: dict[str, Callable[[int], int]] = {"+ 3": lambda n: n + 3, "* 2": lambda n: n * 2}


@dataclass(frozen=True)
class Climb:
    name: str = "climb"
    difficulties: tuple[int, ...] = (1,)

    def problem(self, split: Split, difficulty: int, index: int) -> Problem:
        start, target = 1 + index % 3, 11 + index + (index % 3 == 1)  # from 3, no target can be reached
        question = f"from {start} to {target}"
        return Problem("climb", split, difficulty, index, question, "", {"start": start, "target": target})

    def judge(self, problem: Problem, answer: str) -> Verdict:
        at = problem.facts["start"]
        for part in answer.split(","):
            if part.strip() not in OPERATIONS:
                return Verdict(False, parsed=False, reason="no operation")
            at = OPERATIONS[part.strip()](at)
        return Verdict(at == problem.facts["target"], reason="" if at == problem.facts["target"] else f"it is {at}")

    def moves(self, problem: Problem, steps: Sequence[str]) -> list[str]:
        at = self.at(problem, steps)
        if at is None or at >= problem.facts["target"]:
            return []
        return [f"{at} {name} = {do(at)}" for name, do in OPERATIONS.items()]

    def label(self, problem: Problem, steps: Sequence[str]) -> StepLabel:
        if not steps or steps[-1] not in self.moves(problem, steps[:-1]):
            return StepLabel(False, False, reason="not allowed")
        at, target = int(steps[-1].split("=")[1]), problem.facts["target"]
        good = reaches(at, target)
        return StepLabel(True, good, at >= target, at == target, "" if good else f"{target} is out of reach")

    def solution(self, problem: Problem) -> list[str]:
        steps: list[str] = []
        while moves := self.moves(problem, steps):
            steps.append(next(move for move in moves if self.label(problem, [*steps, move]).hopeful))
        return steps

    def answer_of(self, problem: Problem, steps: Sequence[str]) -> str | None:
        if not steps or self.moves(problem, steps):
            return None
        return ",".join(" ".join(step.split()[1:3]) for step in steps)

    def at(self, problem: Problem, steps: Sequence[str]) -> int | None:
        at = problem.facts["start"]
        for step in steps:
            if step not in [f"{at} {name} = {do(at)}" for name, do in OPERATIONS.items()]:
                return None
            at = int(step.split("=")[1])
        return at


def reaches(at: int, target: int) -> bool:
    return at == target or (at < target and (reaches(at + 3, target) or reaches(at * 2, target)))


@dataclass(frozen=True)
class Judging:
    """A task that knows no steps."""

    name: str = "judging"
    difficulties: tuple[int, ...] = (1,)

    def problem(self, split: Split, difficulty: int, index: int) -> Problem:
        return Problem("judging", split, difficulty, index, f"say {index}", str(index))

    def judge(self, problem: Problem, answer: str) -> Verdict:
        return Verdict(answer == problem.answer)


Policy = Callable[[str, Random], str]
"""Prompt and chance to all that would be written up to the end mark."""


class Scripted:
    """A sampler of a script. What it draws for a prompt does not depend on the prompts beside it."""

    name = "scripted"

    def __init__(self, policy: Policy, log_prob: Callable[[str], float] | None = None) -> None:
        self.policy = policy
        self.log_prob = log_prob
        self.total = Ledger()
        self.calls: list[tuple[list[str], Decoding]] = []

    def sample(self, prompts: Sequence[str], decoding: Decoding, ledger: Ledger | None = None) -> list[Attempt]:
        self.calls.append((list(prompts), decoding))
        seen: Counter[str] = Counter()
        attempts = []
        for prompt in prompts:
            text = self.policy(prompt, Random(f"{decoding.seed} {prompt} {seen[prompt]}"))
            seen[prompt] += 1
            attempts.append(self._cut(prompt, text, decoding))
        read, written = sum(map(len, seen)), sum(attempt.tokens for attempt in attempts)
        for each in (self.total, *([ledger] if ledger is not None else [])):
            each.charge(prompt=read, generated=written, calls=len(prompts), flops=2.0 * (read + written), seconds=0.5)
        return attempts

    def _cut(self, prompt: str, text: str, decoding: Decoding) -> Attempt:
        finish = "end"
        ends = [text.index(stop) + len(stop) for stop in decoding.stop if stop in text]
        if ends:
            text, finish = text[: min(ends)], "stop"
        tokens = len(text) + (finish == "end")
        if tokens > decoding.max_tokens:
            text, tokens, finish = text[: decoding.max_tokens], decoding.max_tokens, "length"
        log_probs = () if self.log_prob is None else (self.log_prob(text), *[0.0] * (tokens - 1))
        return Attempt(prompt, text, log_probs=log_probs, tokens=tokens, finish=finish)  # type: ignore[arg-type]


def wanderer(problems: Sequence[Problem], format: Format = PLAIN, wise: float = 0.0) -> Policy:
    """Goes on from any path at random, with this chance of a hopeful step at each; then gives its answer.

    Asked whether the target can be reached it tells the truth.
    """
    task = Climb()

    def policy(prompt: str, chance: Random) -> str:
        problem = next(problem for problem in problems if problem.question in prompt)
        if "Can the right answer still be reached" in prompt:
            steps = [line for line in prompt.splitlines() if " = " in line]
            return "sure" if not steps or task.label(problem, steps).hopeful else "impossible"
        body = prompt.removeprefix(format.prompt(problem.question))
        steps = list(format.parse(body).steps)
        while moves := task.moves(problem, steps):
            good = [move for move in moves if task.label(problem, [*steps, move]).hopeful]
            steps.append(chance.choice(good if good and chance.random() < wise else moves))
        text = format.write(steps, task.answer_of(problem, steps) or "none")
        assert text.startswith(body)
        return text[len(body) :]

    return policy


def says(*texts: str) -> Policy:
    """Each of these in turn, whatever is asked."""
    rest = iter(texts)
    return lambda prompt, chance: next(rest)


def check_books(tree: Tree, task: Climb | Judging) -> None:
    """What must be true of every tree that a method has concluded."""
    nodes = tree.nodes
    assert tree.ledger.generated_tokens == sum(node.tokens + node.extra_tokens for node in nodes)
    lost = sum(node.extra_tokens + (node.tokens if node.discarded else 0) for node in nodes)
    assert tree.ledger.discarded_tokens == lost
    assert not nodes[0].discarded
    assert tree.right == (tree.answer is not None and task.judge(tree.problem, tree.answer).right)
    for node in nodes[1:]:
        assert node.copies >= 1 and (node.copies == 1 or node.extra_tokens > 0 or node.tokens == 0)
        if node.finished:
            assert node.right == (node.answer is not None and task.judge(tree.problem, node.answer).right)
        else:
            assert node.answer is None and node.right is None
        if not node.discarded and node.parent is not None:
            assert not nodes[node.parent].discarded
    kept = [node for node in tree.leaves() if not node.discarded and node.number]
    assert all(node.answer is not None for node in kept)
    if tree.answer is None:
        assert not kept and tree.chosen is None
    if tree.chosen is not None:
        assert [node.number for node in kept] == [tree.chosen] and nodes[tree.chosen].answer == tree.answer
    assert Tree.from_json(tree.to_json()) == tree
    siblings = [(node.parent, node.text, node.finished) for node in nodes[1:]]
    assert len(set(siblings)) == len(siblings) or tree.method in INDEPENDENT


INDEPENDENT = ("chain-of-thought", "self-consistency", "best-of-n", "weighted-best-of-n")


class Oracle:
    """A scorer of paths that knows the truth, and charges a token for each character it reads."""

    def score(self, problem: Problem, paths: Sequence[Sequence[str]], ledger: Ledger) -> list[float]:
        ledger.charge(reward=sum(len(step) for path in paths for step in path), calls=len(paths))
        task, scores = Climb(), []
        for path in paths:
            closing = path[-1].rpartition("answer")[2].strip(">: </") if "answer" in path[-1] else None
            good = task.judge(problem, closing).right if closing is not None else task.label(problem, path).hopeful
            scores.append(0.9 if good else 0.1)
        return scores
