"""Rounds whose fit is a step or a few, on attempts of the moment: policy gradients, and a teacher's opinion of tokens.

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
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from mnemonist.errors import UserError
from mnemonist.reasoning.advantages import draw_groups
from mnemonist.reasoning.completions import Batch, Row
from mnemonist.reasoning.policy_gradient import PolicyGradient
from mnemonist.reasoning.proposing import Group, Material, Policy, agreed, groups_of, measure, propose, rewards_of
from mnemonist.reasoning.rounds import Round
from mnemonist.reasoning.shuffling import endless, mix, share
from mnemonist.reasoning.tasks.task import Problem
from mnemonist.reasoning.token_teacher import TokenTeacher
from mnemonist.reasoning.weighing import load_judged, save_judged
from mnemonist.training import LossSum, StepMetrics, TrainingConfig, TrainingResult, train
from mnemonist.training.checkpoint import saved_step
from mnemonist.training.loop import CHECKPOINT, METRICS
from mnemonist.training.metrics import MetricsLog

ATTEMPTS = "attempts"
"""Where in its folder a run keeps them."""


class Aim(Protocol):
    """What the steps are taken for."""

    dynamic: bool
    """Whether groups that teach nothing are replaced by groups of further problems."""
    compares: bool
    """Whether the policy is compared with another."""

    def weigh(self, groups: Sequence[Group], wanted: int, iteration: int) -> list[Row]:
        """What an iteration proposed, as rows that count; none if there is nothing left to learn."""

    def stack(self, rows: Sequence[Row]) -> Batch:
        """Rows as tensors."""

    def loss(self, model: nn.Module, batch: Batch) -> tuple[LossSum, torch.Tensor]:
        """The loss of a micro-batch; and sums over its tokens ``[4]`` of one, and of what `PolicyMetrics` says of each:
        the entropy, whether it was clipped, and its divergence."""


@dataclass(frozen=True)
class PolicyMetrics:
    """One step on attempts of the moment, measured; a line of the round's metrics."""

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
    """Nats per token between the policy and its reference, or its teacher; None without one."""

    def to_json(self) -> str:
        """One line of the metrics file, without its end."""
        own = {name: value for name, value in vars(self).items() if name != "proposed"}
        return json.dumps({**own, **self.proposed})


def aim_of(round_: Round, policy: Policy, material: Material, folder: Path) -> Aim:
    """What the steps of a round are taken for; the policy has the weights that the round began with.

    Raises:
        UserError: the policy or its teacher cannot be used for it.
    """
    if round_.weight == "teacher":
        return TokenTeacher(round_, policy, material)
    return PolicyGradient(round_, policy, material, folder / ATTEMPTS)


def learn_on_policy(
    round_: Round,
    policy: Policy,
    material: Material,
    folder: Path,
    config: TrainingConfig,
    aim: Aim,
    accelerator: Accelerator,
    progress: bool,
) -> TrainingResult:
    """Run all iterations, from wherever they have come to.

    Args:
        round_, policy, material, folder, progress: as for `learning.learn`.
        config: of the whole run, as `policy_config` makes it.
        aim: see `aim_of`.
        accelerator: of this process.

    Raises:
        CannotGoOn, UserError: as `learning.learn`.
    """
    fit = folder / "fit"
    with accelerator.main_process_first():  # the first one forgets before the others look
        done = saved_step(fit / CHECKPOINT)
        if accelerator.is_main_process:
            _forget_after(folder, done, round_.steps_per_iteration)
    run = _Run(round_, policy, material, folder, config, aim, accelerator)
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
    if rows % (config.accumulation * world):
        raise UserError(
            f"a step of round {round_.name} has {rows} attempts, which cannot be cut into {config.accumulation} x "
            f"{world} equal parts (accumulation times processes); lower accumulation, or change problems or attempts"
        )
    raised = range(config.accumulation, rows // world + 1, config.accumulation)
    small = (parts for parts in raised if not rows % (parts * world) and rows <= parts * world * config.batch_size)
    return config.for_steps(
        steps,
        batch_size=rows,
        row_length=round_.decoding.max_tokens,
        accumulation=next(small, config.accumulation),
    )


def _forget_after(folder: Path, done: int, steps_per_iteration: int) -> None:
    """Delete attempts of iterations that began after step ``done``."""
    for path in (folder / ATTEMPTS).glob("*.jsonl"):
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
        aim: Aim,
        accelerator: Accelerator,
    ) -> None:
        assert policy.sampler is not None
        self._round, self._policy, self._material, self._folder = round_, policy, material, folder
        self._config, self._aim, self._accelerator, self._sampler = config, aim, accelerator, policy.sampler
        self._wanted = round_.problems or len(material.problems)
        self._iteration = -1  # whose attempts are being read
        self._rows: list[Row] = []
        self._proposed: dict[str, float] = {}
        self._sums = torch.zeros(4, dtype=torch.float64)

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
            self._proposed = measure(groups)
            self._rows = self._aim.weigh(groups, self._wanted, iteration)
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
        batch = self._aim.stack(own or [replace(self._rows[0], counts=False, weight=0.0)])
        return {**batch, "attempts": torch.tensor(len(own))}

    def _groups(self, iteration: int) -> list[Group]:
        """What an iteration proposed, in the order of the draws."""
        path = self._folder / ATTEMPTS / f"{iteration:06}.jsonl"
        if self._aim.dynamic:
            return self._draw_dynamically(path, iteration)
        problems = self._problems(iteration, 0, 1)
        return self._propose(path, problems, iteration, 0)

    def _draw_dynamically(self, path: Path, iteration: int) -> list[Group]:
        draws = self._round.draws
        if not agreed(path.exists()):
            parts = [path.with_name(f".{path.stem}.{number}.jsonl") for number in range(draws)]

            def draw(number: int, count: int) -> list[Group]:
                return self._propose(parts[number], self._problems(iteration, number, draws), iteration, number)

            groups = draw_groups(draw, rewards_of, self._wanted, draws)
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

    # Fit.

    def loss_of(self, model: nn.Module, batch: Batch) -> LossSum:
        """The loss of one micro-batch; what is measured beside it is added up until the step is done."""
        loss, sums = self._aim.loss(model, batch)
        self._sums += sums.cpu()
        return loss

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
            kl / max(tokens, 1) if self._aim.compares else None,
        )
