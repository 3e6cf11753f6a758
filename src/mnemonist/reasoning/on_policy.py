"""Rounds whose fit is a step or a few: policy gradients on attempts of the moment.

All iterations together are one run of the shared training loop. When a step is the first of an iteration, the policy
as it is then proposes; the attempts are written to a file and only then used:

    folder/attempts/000007.jsonl    what iteration 7 proposed, all of it
    folder/metrics.jsonl            what was measured at each step
    folder/fit/                     the training run with its checkpoints

What a step reads follows from those files and from nothing else, so a run that was killed goes on exactly. Attempts of
iterations that began after the checkpoint are deleted then: they are of weights that are lost.

With dynamic sampling, a run ends early where the policy is right in all that was drawn, and cannot go on where it is
not and still no group teaches. Either way it leaves a checkpoint of its last step.

Does not include: sampling while the last step is still being taken, and models that FSDP has cut into parts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from mnemonist.errors import CannotGoOn
from mnemonist.reasoning.advantages import advantages, draw_groups, overlong_penalty, teaching
from mnemonist.reasoning.completions import Batch, Row, RowMaker, read, stack
from mnemonist.reasoning.losses import policy_losses, sum_over_attempts
from mnemonist.reasoning.objective import PolicyObjective
from mnemonist.reasoning.proposing import Group, Material, Policy, agreed, groups_of, measure, propose
from mnemonist.reasoning.round_folder import wearing, weights_of
from mnemonist.reasoning.rounds import Round
from mnemonist.reasoning.shuffling import endless, mix, share
from mnemonist.reasoning.tasks.task import Problem
from mnemonist.reasoning.weighing import load_judged, save_judged
from mnemonist.training import LossSum, StepMetrics, TrainingConfig, TrainingResult, train
from mnemonist.training.checkpoint import saved_step
from mnemonist.training.loop import CHECKPOINT, METRICS
from mnemonist.training.metrics import MetricsLog


@dataclass(frozen=True)
class PolicyMetrics:
    """One step of a policy gradient, measured; a line of the round's metrics."""

    step: int
    """Optimiser steps done, this one included."""
    iteration: int
    """Whose attempts were read; counted from 0."""
    proposed: dict[str, float]
    """Of those attempts: see `proposing.measure`."""
    loss: float
    grad_norm: float
    entropy: float
    """Nats per token of the attempts, before the step."""
    clipped: float
    """Share of tokens whose gradient was cut off."""
    kl: float | None
    """Nats per token between the policy and its reference; None without one."""

    def to_json(self) -> str:
        """One line of the metrics file, without its end."""
        own = {name: value for name, value in vars(self).items() if name != "proposed"}
        return json.dumps({**own, **self.proposed})


def learn_on_policy(
    round_: Round,
    policy: Policy,
    material: Material,
    folder: Path,
    config: TrainingConfig,
    accelerator: Accelerator,
    progress: bool,
) -> TrainingResult:
    """Run all iterations, from wherever they have come to.

    Raises:
        CannotGoOn, UserError: as `learning.learn`.
    """
    config = policy_config(round_, len(material.problems), config, accelerator.num_processes)
    fit = folder / "fit"
    with accelerator.main_process_first():  # the first one forgets before the others look
        done = saved_step(fit / CHECKPOINT)
        if accelerator.is_main_process:
            _forget_after(folder, done, round_.steps_per_iteration)
    run = _Run(round_, policy, material, folder, config, accelerator)
    if not accelerator.is_main_process:
        return run.train(fit, done, progress, None)
    with MetricsLog(folder / METRICS, done) as log:
        return run.train(fit, done, progress, log)


def policy_config(round_: Round, problems: int, config: TrainingConfig, world: int) -> TrainingConfig:
    """The configuration of the whole run: its steps and its batches follow from the round.

    A process reads at most ``config.batch_size`` attempts at a time: the accumulation is raised to a multiple of itself
    that sees to it. A step may have hundreds of attempts, of which each token has the logits of a whole vocabulary.

    Raises:
        UserError: the attempts of a step cannot be cut into `accumulation` equal parts.
    """
    steps = round_.iterations * round_.steps_per_iteration
    rows = (round_.problems or problems) * round_.attempts // round_.minibatches
    raised = range(config.accumulation, rows // world + 1, config.accumulation)
    small = (parts for parts in raised if not rows % (parts * world) and rows <= parts * world * config.batch_size)
    return replace(
        config,
        steps=steps,
        warmup_steps=min(config.warmup_steps, steps),
        batch_size=rows,
        row_length=round_.decoding.max_tokens,
        accumulation=next(small, config.accumulation),
    )


def _forget_after(folder: Path, done: int, steps_per_iteration: int) -> None:
    """Delete attempts of iterations that began after step ``done``."""
    for path in (folder / "attempts").glob("*.jsonl"):
        iteration = path.name.lstrip(".").partition(".")[0]
        if iteration.isdecimal() and int(iteration) * steps_per_iteration > done:
            path.unlink()


class _Run:
    """What the loop asks for: rows, their loss, and what to do after a step."""

    def __init__(
        self,
        round_: Round,
        policy: Policy,
        material: Material,
        folder: Path,
        config: TrainingConfig,
        accelerator: Accelerator,
    ) -> None:
        assert round_.objective is not None and policy.sampler is not None
        self._round, self._policy, self._material, self._folder = round_, policy, material, folder
        self._config, self._accelerator, self._sampler = config, accelerator, policy.sampler
        self._objective: PolicyObjective = round_.objective
        self._maker = RowMaker(policy.tokenizer, material.format.end)
        self._wanted = round_.problems or len(material.problems)
        self._iteration = -1  # whose attempts are being read
        self._rows: list[Row] = []
        self._proposed: dict[str, float] = {}
        self._sums = torch.zeros(4, dtype=torch.float64)
        # Before the loop puts a checkpoint's weights into the policy: these are those that the round began with.
        # With LoRA that is the adapters alone.
        self._reference = weights_of(policy.model) if self._objective.beta else None

    def train(self, fit: Path, done: int, progress: bool, log: MetricsLog | None) -> TrainingResult:
        """Take all steps that are left."""

        def on_step(metrics: StepMetrics) -> None:
            measured = self._measured(metrics)
            if log is not None:
                log.write(measured)

        return train(
            self._policy.model,
            self.batch_of,
            self.loss_of,
            self._config,
            fit,
            resume=done > 0,
            progress=progress,
            on_step=on_step,
            more=self.more,
            skip_empty=True,  # minibatches of attempts that were all cut off
        )

    # Propose and weigh.

    def more(self, step: int) -> bool:
        """Propose and weigh, if an iteration begins with this step; no more steps where all there was is right.

        Raises:
            CannotGoOn: nothing is left to learn from.
        """
        iteration = step // self._round.steps_per_iteration
        if iteration != self._iteration:
            groups = self._groups(iteration)
            self._rows = self._weighed(groups, iteration)
            self._iteration = iteration
        return bool(self._rows)

    def batch_of(self, step: int, micro: int, rank: int, world: int) -> Batch:
        """The attempts of one micro-batch."""
        epoch, minibatch = divmod(step % self._round.steps_per_iteration, self._round.minibatches)
        seed = mix(self._config.seed, "minibatch", self._iteration, epoch)
        order = endless(len(self._rows), seed, 0, len(self._rows))
        rows = (self._rows[n] for n in order[minibatch :: self._round.minibatches])
        own = share(rows, len, micro, self._config.accumulation, rank, world)
        # A part without attempts still has to be a part: one that counts for nothing.
        batch = stack(own or [replace(self._rows[0], counts=False, weight=0.0)])
        return {**batch, "attempts": torch.tensor(len(own))}

    def _groups(self, iteration: int) -> list[Group]:
        """What an iteration proposed, in the order of the draws."""
        path = self._folder / "attempts" / f"{iteration:06}.jsonl"
        if self._objective.dynamic:
            return self._draw_dynamically(path, iteration)
        problems = self._problems(iteration, 0, 1)
        return self._propose(path, problems, iteration, 0)

    def _draw_dynamically(self, path: Path, iteration: int) -> list[Group]:
        draws = self._round.draws
        if not agreed(path.exists()):
            parts = [path.with_name(f".{path.stem}.{number}.jsonl") for number in range(draws)]

            def draw(number: int, count: int) -> list[Group]:
                return self._propose(parts[number], self._problems(iteration, number, draws), iteration, number)

            groups = draw_groups(draw, _rewards, self._wanted, draws)
            if self._accelerator.is_main_process:
                save_judged(path, [one for group in groups for one in group])
                for part in parts:
                    part.unlink(missing_ok=True)
            self._accelerator.wait_for_everyone()
        drawn = len(load_judged(path)) // self._round.attempts // self._wanted
        problems = [problem for number in range(drawn) for problem in self._problems(iteration, number, draws)]
        return groups_of(path, self._round.attempts, problems)

    def _problems(self, iteration: int, number: int, draws: int) -> list[Problem]:
        """Those of one draw: every iteration has a stretch of the endless row of problems for itself."""
        seed = mix(self._config.seed, "problems")
        numbers = endless(len(self._material.problems), seed, (iteration * draws + number) * self._wanted, self._wanted)
        return [self._material.problems[n] for n in numbers]

    def _propose(self, path: Path, problems: Sequence[Problem], iteration: int, number: int) -> list[Group]:
        decoding = replace(self._round.decoding, seed=mix(self._config.seed, "attempts", iteration, number))
        return propose(path, problems, self._round.attempts, self._sampler, self._material, decoding, self._policy)

    def _weighed(self, groups: list[Group], iteration: int) -> list[Row]:
        """Attempts as rows with their advantages for weights; none where dynamic sampling found all of them right.

        Raises:
            CannotGoOn: nothing is left to learn from.
        """
        objective, limit = self._objective, self._round.decoding.max_tokens
        self._proposed = measure(groups)
        if objective.dynamic:
            groups = teaching(groups, _rewards, self._wanted)
        kept = f"they are kept in {self._folder / 'attempts'}"
        if not groups and self._proposed["accuracy"] == 1:
            return []
        if not groups:
            raise CannotGoOn(
                f"none of the {self._proposed['problems']} problems of iteration {iteration} has attempts of different "
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

    # Fit.

    def loss_of(self, model: nn.Module, batch: Batch) -> LossSum:
        """The loss of one micro-batch; what is measured beside it is added up until the step is done."""
        temperature = self._round.decoding.temperature
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
        self._sums += torch.stack([(part * mask_BT).sum().double() for part in parts]).cpu()
        limit = self._round.decoding.max_tokens
        return sum_over_attempts(losses.loss_BT, mask_BT, self._objective.length, limit, batch["attempts"])

    def _measured(self, metrics: StepMetrics) -> PolicyMetrics:
        """What the step has come to, over all processes; the sums begin anew."""
        own = self._sums.tolist()
        parts = gather_object([own]) if self._accelerator.num_processes > 1 else [own]
        tokens, entropy, clipped, kl = (sum(values) for values in zip(*parts, strict=True))
        self._sums.zero_()
        return PolicyMetrics(
            metrics.step,
            self._iteration,
            self._proposed,
            metrics.loss,
            metrics.grad_norm,
            entropy / max(tokens, 1),
            clipped / max(tokens, 1),
            None if self._reference is None else kl / max(tokens, 1),
        )


def _rewards(group: Group) -> list[float]:
    return [one.reward for one in group]
