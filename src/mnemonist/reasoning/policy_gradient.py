"""Policy gradients on attempts of the moment: advantages of their rewards for weights, and a clipped loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mnemonist.errors import CannotGoOn
from mnemonist.reasoning.advantages import advantages, overlong_penalty, teaching
from mnemonist.reasoning.completions import Batch, Row, RowMaker, read, stack
from mnemonist.reasoning.losses import policy_losses, sum_over_attempts
from mnemonist.reasoning.proposing import Group, Material, Policy, rewards_of
from mnemonist.reasoning.round_folder import wearing, weights_of
from mnemonist.reasoning.rounds import Round
from mnemonist.training import LossSum


class PolicyGradient:
    """See `on_policy.Aim`.

    Args:
        round_: with an objective.
        policy: with the weights that the round began with, which are the reference if the objective has one.
        material: what attempts are made of.
        kept: where they are.
    """

    def __init__(self, round_: Round, policy: Policy, material: Material, kept: Path) -> None:
        assert round_.objective is not None
        self._objective, self._decoding, self._policy, self._kept = round_.objective, round_.decoding, policy, kept
        self._maker = RowMaker(policy.tokenizer, material.format.end)
        # With LoRA that is the adapters alone.
        self._reference = weights_of(policy.model) if self._objective.beta else None
        self.dynamic = self._objective.dynamic
        self.compares = self._reference is not None

    def weigh(self, groups: Sequence[Group], wanted: int, iteration: int) -> list[Row]:
        """Attempts as rows with their advantages for weights; none where dynamic sampling found all of them right.

        Raises:
            CannotGoOn: nothing is left to learn from.
        """
        objective, limit, problems = self._objective, self._decoding.max_tokens, len(groups)
        all_right = all(one.right for group in groups for one in group)
        if objective.dynamic:
            groups = teaching(groups, rewards_of, wanted)
        kept = f"they are kept in {self._kept}"
        if not groups and all_right:
            return []
        if not groups:
            raise CannotGoOn(
                f"none of the {problems} problems of iteration {iteration} has attempts of different "
                f"worth, so there is nothing to learn from ({kept}): take easier or harder problems, more attempts at "
                "each, or a policy that was distilled first"
            )
        lost = [[one.attempt.finish == "length" and objective.skip_overlong for one in group] for group in groups]
        if all(map(all, lost)):
            raise CannotGoOn(
                f"every attempt of iteration {iteration} was cut off at {limit} tokens, and the objective leaves those "
                f"out ({kept}): raise max_tokens, or take skip_overlong=false"
            )
        rewards_PG = torch.tensor(
            [
                [one.reward - overlong_penalty(one.attempt.tokens, limit, objective.overlong_share) for one in group]
                for group in groups
            ]
        )
        advantages_PG = advantages(rewards_PG, objective.advantage).tolist()
        rows = []
        for group, weights, cut in zip(groups, advantages_PG, lost, strict=True):
            for one, weight, skipped in zip(group, weights, cut, strict=True):
                rows.append(replace(self._maker.drawn(one.attempt), weight=weight, counts=not skipped))
        return rows

    def stack(self, rows: Sequence[Row]) -> Batch:
        """See `completions.stack`."""
        return stack(rows)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[LossSum, Tensor]:
        """The clipped loss, and sums of entropies, of what was clipped and of divergences from the reference."""
        temperature = self._decoding.temperature
        reference = None
        if self._reference is not None:  # first, while no gradient waits for the policy's own weights
            with torch.no_grad(), wearing(self._policy.model, self._reference):
                reference = read(self._policy.model, batch, temperature).log_probs_BT
        opinion = read(model, batch, temperature, entropy=True)
        assert opinion.entropy_BT is not None
        mask_BT = opinion.mask_BT * batch["counts"][:, None]
        losses = policy_losses(
            opinion.log_probs_BT, batch["old"], batch["weights"], mask_BT, self._objective, reference
        )
        kl_BT = torch.zeros_like(mask_BT) if losses.kl_BT is None else losses.kl_BT.detach()
        parts = (torch.ones_like(mask_BT), opinion.entropy_BT, losses.clipped_BT, kl_BT)
        sums = torch.stack([(part * mask_BT).sum().double() for part in parts])
        limit, length = self._decoding.max_tokens, self._objective.length
        return sum_over_attempts(losses.loss_BT, mask_BT, length, limit, batch["attempts"]), sums
