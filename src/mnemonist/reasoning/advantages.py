"""Advantages: how much better an attempt was than the others at the same problem.

A group is several attempts at one problem; the mean of its rewards stands in for a critic. A group whose rewards are
all equal, because the problem is too easy or too hard, has advantages of zero and teaches nothing, so that whoever
wants a gradient of steady size draws further problems instead (DAPO, arXiv 2503.14476, section 3.2).
`P` is problems, `G` the attempts at each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

from mnemonist.reasoning.objective import Advantage

Group = TypeVar("Group")

SMALLEST_STD = 1e-4
"""Added to standard deviations, as in TRL, so that tiny ones do not blow advantages up."""


def advantages(rewards_PG: Tensor, kind: Advantage) -> Tensor:
    """``[P, G]``: rewards minus the mean of their group, in units that `PolicyObjective.advantage` names.

    Raises:
        ValueError: a group has fewer than two attempts; it has nothing to be compared with.
    """
    if rewards_PG.ndim != 2 or rewards_PG.shape[1] < 2:
        raise ValueError(f"Rewards have shape {tuple(rewards_PG.shape)}; they need groups of at least two attempts.")
    centred_PG = rewards_PG - rewards_PG.mean(1, keepdim=True)
    if kind == "centred":
        return centred_PG
    std = rewards_PG.std(1, keepdim=True) if kind == "group" else rewards_PG.std()
    return centred_PG / (std + SMALLEST_STD)


def teaches(rewards: Sequence[float]) -> bool:
    """Whether the rewards of a group differ."""
    return max(rewards) - min(rewards) > 1e-6


def overlong_penalty(tokens: int, limit: int, share: float) -> float:
    """What is taken from the reward of an attempt of so many tokens: from 0 to 1 over the last ``share`` of the limit.

    DAPO, equation 13.
    """
    free = limit * (1 - share)
    if share == 0 or tokens <= free:
        return 0.0
    return min((tokens - free) / (limit - free), 1.0)


def draw_groups(
    draw: Callable[[int, int], Sequence[Group]],
    rewards_of: Callable[[Group], Sequence[float]],
    wanted: int,
    most_draws: int,
) -> list[Group]:
    """Draw until enough groups teach something (dynamic sampling), or until it is enough.

    Args:
        draw: ``draw(number, count)`` gives ``count`` groups of new problems; draws are counted from 0.
        rewards_of: the rewards of a group.
        wanted: groups that are to teach something.
        most_draws: draws at most.

    Returns:
        All groups that were drawn; `teaching` chooses among them.
    """
    drawn: list[Group] = []
    for number in range(most_draws):
        drawn += draw(number, wanted)
        if len(teaching(drawn, rewards_of, wanted)) == wanted:
            break
    return drawn


def teaching(groups: Sequence[Group], rewards_of: Callable[[Group], Sequence[float]], wanted: int) -> list[Group]:
    """The first groups that teach something, ``wanted`` at most."""
    return [group for group in groups if teaches(rewards_of(group))][:wanted]
