"""Independent attempts: write several whole texts, then settle on one answer.

One attempt is a chain of thought. Of several, *self-consistency* takes the answer that most of them give (Wang et al.
2022, arXiv 2203.11171); *best-of-n* that of the attempt with the highest value; *weighted* best-of-n sums the values of
the attempts that agree (Li et al. 2022, arXiv 2206.02336):

    argmax_a  sum_i  [a_i = a] v_i

Answers are the same if they differ in blanks only. Where two do equally well, the one seen first wins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mnemonist.errors import UserError
from mnemonist.reasoning.search.lockstep import Method, Place, Search, check_choice, check_least
from mnemonist.reasoning.search.values import AGGREGATES, VALUES, appraise, find_judge
from mnemonist.reasoning.tree import ROOT, Node, Tree

CHOICES = ("majority", "best", "weighted")


@dataclass(frozen=True)
class Independent(Method):
    """Attempts that know nothing of each other; each is one node below the root.

    Raises:
        UserError: a field is out of range.
    """

    name: str = "independent"
    attempts: int = 1
    choice: str = "majority"
    """majority, best or weighted; the last two ask for values."""
    value: str = "model"
    """Who values attempts, if anyone is asked: see `VALUES`."""
    samples: int = 4
    """Opinions or rollouts for each value."""
    aggregate: str = "last"
    """How values of steps become that of an attempt: last, min or product."""

    def __post_init__(self) -> None:
        check_least(attempts=(self.attempts, 1), samples=(self.samples, 1))
        check_choice("choice", self.choice, CHOICES)
        check_choice("value", self.value, VALUES)
        check_choice("aggregate", self.aggregate, AGGREGATES)

    def run(self, search: Search, trees: Sequence[Tree]) -> None:
        """See `Method.run`."""
        judge = None if self.choice == "majority" else find_judge(self.value, self.samples, search)
        wanted = [(tree, search.format.prompt(tree.problem.question)) for tree in trees for _ in range(self.attempts)]
        places = []
        for (tree, _), attempt in zip(wanted, search.write(wanted), strict=True):
            answer = search.format.parse(attempt.text).answer
            node = tree.add(
                ROOT,
                attempt.text,
                tokens=attempt.tokens,
                thinking_tokens=attempt.thinking_tokens,
                log_prob=attempt.log_prob if attempt.log_probs else None,
                finished=True,
                answer=answer,
                right=search.right(tree.problem, answer),
            )
            places.append(Place(tree, node))
        if judge is not None:
            appraise(search, judge, places, self.aggregate)
        for tree in trees:
            search.conclude(tree, *elect(tree.nodes[1:], self.choice))


def elect(candidates: Sequence[Node], choice: str) -> tuple[str | None, list[Node]]:
    """The answer that finished nodes settle on, and those of them that give it: with "best" a single one.

    Args:
        candidates: those without an answer have no say.
        choice: one of `CHOICES`; all but majority need values.

    Raises:
        UserError: there is no such choice.
    """
    check_choice("choice", choice, CHOICES)
    groups: dict[str, list[Node]] = {}
    for node in candidates:
        if node.answer is not None:
            groups.setdefault("".join(node.answer.split()), []).append(node)
    if not groups:
        return None, []
    if choice == "best":
        answered = [node for node in candidates if node.answer is not None]
        best = max(answered, key=lambda node: node.value or 0.0)  # max keeps the first of equals
        return best.answer, [best]
    weight = {
        key: len(group) if choice == "majority" else math.fsum(node.value or 0.0 for node in group)
        for key, group in groups.items()
    }
    winners = groups[max(groups, key=weight.__getitem__)]  # here too
    return winners[0].answer, winners


def pass_at_k(attempts: int, right: int, k: int) -> float:
    """The chance that of k of these attempts, drawn without looking, at least one is right.

    The unbiased estimate of what k fresh attempts would reach (Chen et al. 2021, arXiv 2107.03374).

    Raises:
        UserError: there are fewer than k attempts, or more right ones than attempts.
    """
    if not (0 <= right <= attempts and 1 <= k <= attempts):
        raise UserError(
            f"pass@{k} of {attempts} attempts with {right} right cannot be told; make at least {k} attempts"
        )
    return 1.0 - math.comb(attempts - right, k) / math.comb(attempts, k)


def coverage(tree: Tree, k: int) -> float:
    """`pass_at_k` of the attempts in a tree of `Independent`.

    Raises:
        UserError: it has fewer than k.
    """
    attempts = tree.children(ROOT)
    return pass_at_k(len(attempts), sum(node.right is True for node in attempts), k)
