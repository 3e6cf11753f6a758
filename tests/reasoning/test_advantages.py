"""Advantages: what a group's rewards come to, and how groups that teach nothing are replaced."""

from __future__ import annotations

import pytest
import torch

from mnemonist.reasoning.advantages import advantages, draw_groups, overlong_penalty, teaches, teaching

REWARDS = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 2.0]])


def test_a_group_is_measured_by_itself() -> None:
    found = advantages(REWARDS, "group")
    torch.testing.assert_close(found[0], torch.tensor([1.0, -1.0, -1.0, 1.0]) * 0.5 / (1 / 3) ** 0.5, rtol=1e-3, atol=0)
    assert found[1].tolist() == [0, 0, 0, 0]
    assert found.sum(1).abs().max() < 1e-5


def test_centred_rewards_keep_their_unit() -> None:
    assert advantages(REWARDS, "centred")[2].tolist() == [-0.5, -0.5, -0.5, 1.5]


def test_a_batch_is_measured_by_the_spread_of_all() -> None:
    expected = advantages(REWARDS, "centred") / (REWARDS.std() + 1e-4)
    torch.testing.assert_close(advantages(REWARDS, "batch"), expected)


def test_a_single_attempt_has_nothing_to_be_compared_with() -> None:
    with pytest.raises(ValueError, match="groups of at least two attempts"):
        advantages(torch.ones(3, 1), "group")


def test_equal_rewards_teach_nothing() -> None:
    assert [teaches(group) for group in REWARDS.tolist()] == [True, False, True]


@pytest.mark.parametrize(("tokens", "penalty"), [(60, 0), (75, 0), (80, 0.2), (100, 1), (101, 1)])
def test_long_attempts_are_punished_in_a_straight_line(tokens: int, penalty: float) -> None:
    assert overlong_penalty(tokens, 100, 0.25) == pytest.approx(penalty)
    assert overlong_penalty(tokens, 100, 0.0) == 0


def test_groups_are_drawn_until_enough_of_them_teach() -> None:
    drawn: list[int] = []

    def draw(number: int, count: int) -> list[list[float]]:
        drawn.append(number)
        return [[0, 1] if number and i == 0 else [1, 1] for i in range(count)]

    groups = draw_groups(draw, list, wanted=3, most_draws=9)
    assert drawn == [0, 1, 2, 3]  # one of three in every draw but the first
    assert len(groups) == 12
    assert teaching(groups, list, 3) == [[0, 1]] * 3
    assert teaching(groups, list, 2) == [[0, 1]] * 2


def test_drawing_ends() -> None:
    groups = draw_groups(lambda number, count: [[0.0, 0.0]] * count, list, wanted=2, most_draws=3)
    assert (len(groups), teaching(groups, list, 2)) == (6, [])
