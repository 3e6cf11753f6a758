"""Losses: one family of them, from weighted likelihood to clipped policy gradients.

A policy gives every token of a completion a log-probability. Each loss is a way to add these up, a pure function of
them; nothing here knows a model. `B` is attempts, `T` the tokens of their completions; masks are 1 on tokens that count
and 0 on prompts and padding. The end mark is a token like any other: a policy that is not taught it never stops.

    likelihood     - sum_i w_i sum_t ln p_it / sum_i w_i |o_i|
    policy         - sum_i c_i sum_t [ min(rho_it A_i, clip(rho_it, 1 - low, 1 + high) A_i) - beta k3_it ]
    divergence     sum_it JSD_beta(teacher || policy at t) / sum_i |o_i|
    preference     - ln sigmoid(beta [ln p(right) / ref(right) - ln p(wrong) / ref(wrong)])

with `rho` the ratio of the policy to the one that made the attempt and `c_i` what a token of attempt i weighs. Every
loss comes as a sum and the number it has to be divided by, so that a step may be cut into parts at will.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mnemonist.reasoning.objective import Length, PolicyObjective
from mnemonist.training import LossSum

# Likelihood: distillation, journeys, ReST-EM.


def weighted_likelihood(log_probs_BT: Tensor, mask_BT: Tensor, weights_B: Tensor) -> LossSum:
    """Minus the log-likelihood of completions, each token weighing as much as its attempt.

    ReST-EM's objective (arXiv 2312.06585, equation 4) with a reward for a weight; with weights of 1 it is the cross
    entropy of completions alone.
    """
    weights_BT = weights_B[:, None] * mask_BT
    return LossSum(-(weights_BT * log_probs_BT).sum(), weights_BT.sum())


# Clipped policy gradients.


@dataclass(frozen=True, eq=False)
class TokenLosses:
    """What each token of each attempt costs, ``[B, T]``; what the mask leaves out has no meaning."""

    loss_BT: Tensor
    """With a gradient."""
    clipped_BT: Tensor
    """Whether the gradient is cut off there: the ratio has gone as far as it may in the direction that pays."""
    kl_BT: Tensor | None
    """Estimate of the divergence from the reference; None without one."""


def policy_losses(
    log_probs_BT: Tensor,
    old_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    objective: PolicyObjective,
    reference_BT: Tensor | None = None,
) -> TokenLosses:
    """The clipped surrogate of every token (PPO, arXiv 1707.06347, equation 7), and beta times `k3`.

    Args:
        log_probs_BT: of the policy, with a gradient.
        old_BT: of the policy that made the attempts, at the temperature at which it did.
        advantages_B: how much better than others each attempt was.
        mask_BT: 1 on completions.
        objective: its clips, its ratio and its beta.
        reference_BT: of the policy that this one is to stay near to.

    Raises:
        ValueError: beta asks for a reference, and there is none.
    """
    log_ratio_BT = (log_probs_BT - old_BT) * mask_BT
    if objective.ratio == "sequence":  # GSPO, equation 7; the mean is an attempt's, whatever its length
        log_ratio_B = log_ratio_BT.sum(-1) / mask_BT.sum(-1).clamp(min=1)
        log_ratio_BT = log_ratio_B[:, None].expand_as(log_probs_BT)
    ratio_BT = log_ratio_BT.exp()
    low, high = 1 - objective.clip_low, 1 + objective.clip_high
    advantages_B1 = advantages_B[:, None]
    loss_BT = -torch.minimum(ratio_BT * advantages_B1, ratio_BT.clamp(low, high) * advantages_B1)
    clipped_BT = ((ratio_BT > high) & (advantages_B1 > 0)) | ((ratio_BT < low) & (advantages_B1 < 0))
    if objective.beta and reference_BT is None:
        raise ValueError(f"beta is {objective.beta}, which needs log-probabilities of a reference.")
    kl_BT = None if reference_BT is None else k3(log_probs_BT, reference_BT) * mask_BT
    if objective.beta and kl_BT is not None:
        loss_BT = loss_BT + objective.beta * (kl_BT * ratio_BT if objective.corrected_kl else kl_BT)
    return TokenLosses(loss_BT, clipped_BT, kl_BT)


def k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """An estimate of KL(policy || reference) from the policy's own samples: unbiased, and never negative.

    `ref/p - ln(ref/p) - 1` (Schulman 2020, Approximating KL divergence).
    """
    difference = reference - log_probs
    return difference.exp() - difference - 1


def sum_over_attempts(
    loss_BT: Tensor, mask_BT: Tensor, length: Length, limit: int, attempts: Tensor | None = None
) -> LossSum:
    """Add up the losses of tokens, weighing lengths in one of three ways.

    Args:
        loss_BT: of each token.
        mask_BT: 1 on what counts. An attempt that is masked whole still counts as an attempt, as in TRL.
        length: see `PolicyObjective`.
        limit: tokens that an attempt may have at most.
        attempts: how many rows are attempts, where some only fill the batch up; left out, all are.
    """
    loss_BT = loss_BT * mask_BT
    count = len(loss_BT) if attempts is None else attempts
    if length == "token":  # DAPO
        return LossSum(loss_BT.sum(), mask_BT.sum())
    if length == "constant":  # Dr. GRPO
        return LossSum(loss_BT.sum() / limit, count)
    return LossSum((loss_BT.sum(-1) / mask_BT.sum(-1).clamp(min=1)).sum(), count)


# A teacher's opinion.


def divergence(log_probs_NV: Tensor, teacher_NV: Tensor, beta: float) -> Tensor:
    """Generalised Jensen-Shannon divergence of each token, ``[N]`` in nats (GKD, arXiv 2306.13649, equation 1).

    `beta KL(teacher || m) + (1 - beta) KL(policy || m)` with `m = beta teacher + (1 - beta) policy`; at its ends, where
    that is zero, what it is like near them: `KL(teacher || policy)` at 0, `KL(policy || teacher)` at 1.

    Args:
        log_probs_NV: of the policy, over all tokens.
        teacher_NV: of the teacher.
        beta: from 0 to 1.
    """

    def apart(one_NV: Tensor, other_NV: Tensor) -> Tensor:
        return F.kl_div(other_NV, one_NV, reduction="none", log_target=True).sum(-1)

    if beta == 0:
        return apart(teacher_NV, log_probs_NV)
    if beta == 1:
        return apart(log_probs_NV, teacher_NV)
    mixed_NV = torch.logaddexp(teacher_NV + math.log(beta), log_probs_NV + math.log1p(-beta))
    return beta * apart(teacher_NV, mixed_NV) + (1 - beta) * apart(log_probs_NV, mixed_NV)


# Preferences.


def preference_loss(
    right_B: Tensor, wrong_B: Tensor, reference_right_B: Tensor, reference_wrong_B: Tensor, beta: float
) -> LossSum:
    """Direct preference optimisation (arXiv 2305.18290, equation 7) from log-probabilities of whole completions.

    Args:
        right_B: of the better completion of each pair, by the policy.
        wrong_B: of the worse one.
        reference_right_B: as ``right_B``, by the reference: the policy before the fit.
        reference_wrong_B: likewise.
        beta: how strongly the policy is held near the reference.
    """
    margin_B = (right_B - reference_right_B) - (wrong_B - reference_wrong_B)
    return LossSum(-F.logsigmoid(beta * margin_B).sum(), len(margin_B))
