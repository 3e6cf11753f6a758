"""Fitting: the M-step, for the shared training loop.

A fit is what `mnemonist.training.train` needs: which rows a step reads, and what they cost. Rows are as long as they
are, so `TrainingConfig.row_length` has no say. Policy gradients fit to attempts of the moment: see `on_policy`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from mnemonist.reasoning.completions import Batch, Row, read, stack
from mnemonist.reasoning.losses import preference_loss, weighted_likelihood
from mnemonist.reasoning.shuffling import endless, share
from mnemonist.training import LossSum, TrainingConfig
from mnemonist.training.gradients import BatchOf, LossOf

Fit = tuple[BatchOf, LossOf]
"""``batch_of`` and ``loss_of`` for `mnemonist.training.train`."""


def likelihood_fit(rows: Sequence[Row], config: TrainingConfig) -> Fit:
    """Weighted likelihood of completions; see `losses.weighted_likelihood`."""

    def loss_of(model: nn.Module, batch: Batch) -> LossSum:
        opinion = read(model, batch)
        return weighted_likelihood(opinion.log_probs_BT, opinion.mask_BT, batch["weights"])

    lengths = [len(row) for row in rows]
    return stacked_batches(lengths, config, lambda numbers: stack([rows[n] for n in numbers])), loss_of


def preference_fit(
    pairs: Sequence[tuple[Row, Row]],
    references: Sequence[tuple[float, float]],
    beta: float,
    config: TrainingConfig,
) -> Fit:
    """Preference of right completions over wrong ones; see `losses.preference_loss`.

    Args:
        pairs: a right and a wrong one each.
        references: their log-probabilities before the fit.
        beta: how strongly the policy is held near what it was.
        config: of the run.
    """

    def stack_pairs(numbers: Sequence[int]) -> Batch:
        batch = stack([pairs[n][0] for n in numbers] + [pairs[n][1] for n in numbers])
        return {**batch, "references": torch.tensor([references[n] for n in numbers])}

    def loss_of(model: nn.Module, batch: Batch) -> LossSum:
        right_B, wrong_B = read(model, batch).log_probs_B.chunk(2)
        reference_right_B, reference_wrong_B = batch["references"].unbind(1)
        return preference_loss(right_B, wrong_B, reference_right_B, reference_wrong_B, beta)

    lengths = [max(map(len, pair)) for pair in pairs]
    return stacked_batches(lengths, config, stack_pairs), loss_of


def config_for(config: TrainingConfig, count: int, epochs: int, longest: int, seed: int) -> TrainingConfig:
    """The configuration of a fit that reads ``count`` rows ``epochs`` times.

    `TrainingConfig.steps` follows from that; a warm-up is shortened to at most the whole fit.
    """
    steps = max(1, math.ceil(epochs * count / config.batch_size))
    return config.for_steps(steps, row_length=longest, seed=seed)


def stacked_batches(
    lengths: Sequence[int], config: TrainingConfig, stack_rows: Callable[[Sequence[int]], Batch]
) -> BatchOf:
    """``batch_of`` for `train`: things of these lengths in an order that is drawn anew whenever all were read."""

    def batch_of(step: int, micro: int, rank: int, world: int) -> Batch:
        step_rows = endless(len(lengths), config.seed, step * config.batch_size, config.batch_size)
        return stack_rows(share(step_rows, lengths.__getitem__, micro, config.accumulation, rank, world))

    return batch_of
