"""Losses: equal to TRL's, with the right gradient, however a step is cut."""

from __future__ import annotations

from dataclasses import replace

import loss_cases
import pytest
import torch
from loss_cases import CASES, DIVERGENCES, LENGTHS, LIMIT, REWARDS

from mnemonist.errors import UserError
from mnemonist.reasoning.advantages import advantages
from mnemonist.reasoning.losses import (
    divergence,
    k3,
    policy_losses,
    preference_loss,
    sum_over_attempts,
    weighted_likelihood,
)
from mnemonist.reasoning.objective import OBJECTIVES, Length, PolicyObjective, find_objective

PINNED_DIVERGENCES = (1.5192134, 0.2228833, 0.2857442, 1.6019056)  # by the same
PINNED = {  # by TRL 1.16.0 with torch 2.13.0: `python tests/reasoning/test_trl.py`
    "grpo": 0.0428381,
    "r1": 0.0121248,
    "dr-grpo": -0.0541415,
    "dapo": -0.3114881,
    "gspo": 0.0242635,
    "lite-ppo": -0.2704606,
    "grpo, corrected kl": 0.0429877,
    "gspo with kl": 0.0283445,
    "dr-grpo with kl": -0.0549627,
}


def loss_of(objective: PolicyObjective, policy: torch.Tensor, part: slice = slice(None)) -> tuple[torch.Tensor, float]:
    """Sum and divisor of the pinned batch, or of some of its attempts."""
    given, mask = loss_cases.log_probs(), loss_cases.mask().to(policy.dtype)
    advantages_B = advantages(torch.tensor(REWARDS).view(2, 2), objective.advantage).flatten().to(policy.dtype)
    old, reference = given["old"].to(policy.dtype), given["reference"].to(policy.dtype)
    losses = policy_losses(policy[part], old[part], advantages_B[part], mask[part], objective, reference[part])
    total = sum_over_attempts(losses.loss_BT, mask[part], objective.length, LIMIT)
    return total.loss, float(total.targets)


@pytest.mark.parametrize("case", CASES)
def test_policy_losses_are_those_of_trl(case: str) -> None:
    loss, targets = loss_of(CASES[case], loss_cases.log_probs()["policy"])
    assert float(loss) / targets == pytest.approx(PINNED[case], abs=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_formula(case: str) -> None:
    policy = loss_cases.log_probs()["policy"].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda log_probs: loss_of(CASES[case], log_probs)[0], policy)


@pytest.mark.parametrize("case", CASES)
def test_the_cut_of_a_step_does_not_matter(case: str) -> None:
    policy = loss_cases.log_probs()["policy"].double()
    whole, divisor = loss_of(CASES[case], policy)
    parts = [loss_of(CASES[case], policy, part) for part in (slice(0, 1), slice(1, 3), slice(3, 4))]
    assert float(sum(loss for loss, _ in parts)) == pytest.approx(float(whole), rel=1e-12)
    assert sum(targets for _, targets in parts) == divisor


@pytest.mark.parametrize(("advantage", "moves"), [(1.0, True), (-1.0, False)])
def test_the_gradient_ends_where_going_further_would_pay_no_more(advantage: float, moves: bool) -> None:
    """A ratio below 1 - clip_low: raising it again is paid for, lowering it further is not."""
    policy = torch.tensor([[-2.0]], requires_grad=True)
    losses = policy_losses(policy, torch.tensor([[-1.0]]), torch.tensor([advantage]), torch.ones(1, 1), CASES["dapo"])
    losses.loss_BT.sum().backward()
    assert policy.grad is not None
    assert (policy.grad.item() < 0) is moves  # a negative gradient of the loss makes the token likelier
    assert losses.clipped_BT.item() is not moves


def test_upper_and_lower_clip_are_their_own_choices() -> None:
    policy = torch.tensor([[0.25]])  # a ratio of 1.284: above 1.28, below 1.3
    for high, clipped in ((0.28, True), (0.3, False)):
        objective = replace(OBJECTIVES["dapo"], clip_high=high)
        losses = policy_losses(policy, torch.zeros(1, 1), torch.ones(1), torch.ones(1, 1), objective)
        assert losses.clipped_BT.item() is clipped
        assert float(losses.loss_BT) == pytest.approx(-1.28 if clipped else -1.2840254)


def test_with_the_policy_that_drew_it_is_the_plain_policy_gradient() -> None:
    """Ratios of 1: the gradient is minus the advantage on every token, for token and sequence ratios alike."""
    given, mask = loss_cases.log_probs()["policy"], loss_cases.mask()
    advantages_B = torch.tensor([1.0, -2.0, 0.5, 0.0])
    for name in ("lite-ppo", "gspo"):
        policy = given.clone().requires_grad_()
        losses = policy_losses(policy, given, advantages_B, mask, OBJECTIVES[name])
        total = sum_over_attempts(losses.loss_BT, mask, "token", LIMIT).loss
        torch.testing.assert_close(torch.autograd.grad(total, policy)[0], -advantages_B[:, None] * mask)


@pytest.mark.parametrize(
    ("length", "mean"), [("sequence", (1 + 4 + 1 + 1) / 4), ("token", (6 + 12 + 5 + 1) / 15), ("constant", 24 / 32)]
)
def test_how_lengths_weigh(length: Length, mean: float) -> None:
    assert LENGTHS == (6, 3, 5, 1)
    loss = torch.tensor([1.0, 4.0, 1.0, 1.0])[:, None].expand(4, 6)  # what is masked does not count
    total = sum_over_attempts(loss, loss_cases.mask(), length, LIMIT)
    assert float(total.loss) / float(total.targets) == pytest.approx(mean)


@pytest.mark.parametrize("length", ["sequence", "token", "constant"])
def test_rows_that_only_fill_a_batch_up_count_for_nothing(length: Length) -> None:
    loss, mask = torch.tensor([1.0, 4.0, 1.0, 1.0])[:, None].expand(4, 6), loss_cases.mask()
    filled = sum_over_attempts(
        torch.cat([loss, loss[:1]]), torch.cat([mask, 0 * mask[:1]]), length, LIMIT, torch.tensor(4)
    )
    alone = sum_over_attempts(loss, mask, length, LIMIT)
    assert (float(filled.loss), float(filled.targets)) == (float(alone.loss), float(alone.targets))


def test_k3_is_never_negative_and_its_mean_is_the_divergence() -> None:
    policy, reference = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.3, 0.3, 0.4]).log()
    estimate = k3(policy, reference)
    assert (estimate >= 0).all()
    divergence = (policy.exp() * (policy - reference)).sum()
    assert float((policy.exp() * estimate).sum()) == pytest.approx(float(divergence), rel=1e-5)
    assert float(k3(policy, policy).abs().max()) == 0


def test_a_penalty_without_a_reference_is_refused() -> None:
    zeros = torch.zeros(1, 1)
    with pytest.raises(ValueError, match=r"beta is 0.04, which needs log-probabilities of a reference."):
        policy_losses(zeros, zeros, torch.ones(1), zeros, OBJECTIVES["grpo"])


def test_likelihood_weighs_tokens_as_their_attempts() -> None:
    log_probs = loss_cases.log_probs()["policy"].double().requires_grad_()
    mask, weights = loss_cases.mask().double(), torch.tensor([1.0, 0.0, 2.0, 1.0]).double()
    total = weighted_likelihood(log_probs, mask, weights)
    rows = (log_probs * mask).sum(-1)
    assert total.loss.item() == pytest.approx(-(rows[0] + 2 * rows[2] + rows[3]).item())
    assert float(total.targets) == 6 + 2 * 5 + 1
    gradient = torch.autograd.grad(total.loss, log_probs)[0]
    assert torch.equal(gradient, -weights[:, None] * mask)


def test_preferences_are_those_of_trl() -> None:
    policy = (loss_cases.log_probs()["policy"] * loss_cases.mask()).sum(-1)
    reference = (loss_cases.log_probs()["reference"] * loss_cases.mask()).sum(-1)
    total = preference_loss(policy[:2], policy[2:], reference[:2], reference[2:], beta=0.1)
    assert float(total.loss) / float(total.targets) == pytest.approx(0.6843808, abs=1e-5)  # pinned as above


def test_a_preference_raises_the_right_one_and_lowers_the_wrong_one() -> None:
    right, wrong = torch.tensor([-3.0], requires_grad=True), torch.tensor([-2.0], requires_grad=True)
    total = preference_loss(right, wrong, torch.tensor([-3.0]), torch.tensor([-2.0]), beta=0.5)
    assert total.loss.item() == pytest.approx(0.6931472)  # at the reference nothing is preferred yet
    total.loss.backward()
    assert (right.grad, wrong.grad) == (torch.tensor([-0.25]), torch.tensor([0.25]))


# A teacher's opinion.


@pytest.mark.parametrize(("beta", "pinned"), [*zip(DIVERGENCES, PINNED_DIVERGENCES, strict=True)])
def test_divergences_are_those_of_trl(beta: float, pinned: float) -> None:
    policy, teacher = (x.log_softmax(-1) for x in loss_cases.logits())
    assert float(divergence(policy, teacher, beta).mean()) == pytest.approx(pinned, abs=1e-5)


@pytest.mark.parametrize("beta", DIVERGENCES)
def test_a_divergence_is_the_sum_over_all_tokens_and_zero_where_nothing_is_between(beta: float) -> None:
    policy, teacher = (x.double().log_softmax(-1) for x in loss_cases.logits())
    p, q = policy.exp(), teacher.exp()
    if beta == 0:
        expected = q * (q / p).log()
    elif beta == 1:
        expected = p * (p / q).log()
    else:
        m = beta * q + (1 - beta) * p
        expected = beta * q * (q / m).log() + (1 - beta) * p * (p / m).log()
    torch.testing.assert_close(divergence(policy, teacher, beta), expected.sum(-1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(divergence(policy, policy, beta), torch.zeros(len(policy)).double(), rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda logits: divergence(logits.log_softmax(-1), teacher, beta),
        loss_cases.logits()[0].double().requires_grad_(),
    )


@pytest.mark.parametrize("edge", [0.0, 1.0])
def test_near_its_ends_a_divergence_is_a_share_of_what_it_is_there(edge: float) -> None:
    policy, teacher = (x.double().log_softmax(-1) for x in loss_cases.logits())
    near = abs(edge - 1e-7)
    share = divergence(policy, teacher, near) / 1e-7
    torch.testing.assert_close(share, divergence(policy, teacher, edge), rtol=1e-5, atol=1e-5)


# The table.


def test_every_row_has_its_name_and_a_source() -> None:
    assert all(row.name == name and "arXiv" in row.source for name, row in OBJECTIVES.items())


def test_an_objective_is_found_by_name_and_changed_by_text() -> None:
    found = find_objective("dapo:beta=0.01,dynamic=false")
    assert found == replace(OBJECTIVES["dapo"], beta=0.01, dynamic=False)
    assert find_objective("grpo") is OBJECTIVES["grpo"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grppo", r"there is no objective 'grppo' \(did you mean 'grpo'\?\); known: grpo, r1,"),
        ("grpo:betta=1", r"'betta=1' is not a change to an objective \(did you mean 'beta'\?\)"),
        ("grpo:name=x", r"'name=x' is not a change"),
        ("grpo:beta=-1", r"beta is -1.0; it must be a number from 0"),
        ("grpo:ratio=word", r"ratio is 'word'; it must be one of token, sequence"),
        ("dapo:overlong_share=1", r"overlong_share is 1.0; it must be from 0 to below 1"),
    ],
)
def test_an_objective_that_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_objective(text)
