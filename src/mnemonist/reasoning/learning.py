"""Learning from attempts: propose, weigh, fit, again and again; any round, any recipe.

    folder/round.json               what the round is, so that no other goes on in its place
    folder/0/attempts/00000.jsonl   iteration 0: what was proposed,
    folder/0/fit/                   the fit to what had weight,
    folder/0/validation.jsonl       and what the policy then answered
    folder/metrics.jsonl            a line for each iteration
    folder/base/validation.jsonl    what it answered before the first fit

Each stage leaves a file, whole or not at all, and begins by looking for it. To resume is therefore to run again: what
is there is read, what is not is done, and the outcome is that of a run that never stopped. Policy gradients, whose
iterations are single steps, keep their files as `on_policy` says.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from mnemonist.errors import CannotGoOn, UserError
from mnemonist.files import write_atomically
from mnemonist.reasoning.completions import Row, RowMaker, log_probs_of
from mnemonist.reasoning.fitting import Fit, config_for, likelihood_fit, preference_fit
from mnemonist.reasoning.on_policy import aim_of, learn_on_policy, policy_config
from mnemonist.reasoning.proposing import Group, Material, Policy, agreed, measure, propose, propose_all
from mnemonist.reasoning.round_folder import Weights, claimed, identity, put_weights, weights_of
from mnemonist.reasoning.rounds import BASE, IDENTITY, Round
from mnemonist.reasoning.shuffling import mix
from mnemonist.reasoning.tasks.rows import preference_row
from mnemonist.reasoning.weighing import Judged
from mnemonist.training import TrainingConfig, TrainingResult, load_checkpoint, restore_model, train
from mnemonist.training.accelerator import home_of, start_accelerator
from mnemonist.training.checkpoint import has_checkpoint
from mnemonist.training.loop import CHECKPOINT, METRICS


@dataclass(frozen=True)
class Learned:
    """How a round ended; the policy has its weights."""

    folder: Path
    iterations: int
    """Iterations done."""
    best: int | None
    """The iteration whose weights are left, counted from 0; None for the weights that the round began with."""
    checkpoint: Path | None
    """Where the weights of that iteration are."""
    validation: float | None
    """Accuracy in validation with them; None without problems for it."""
    interrupted: bool
    """Whether it was asked to stop before its end; `resume=True` goes on."""
    before: float | None = None
    """Accuracy in validation with the weights that the round began with; None without problems for it."""


def learn(
    round_: Round,
    policy: Policy,
    material: Material,
    folder: str | Path,
    config: TrainingConfig,
    *,
    resume: bool = False,
    base: Weights | None = None,
    progress: bool = True,
) -> Learned:
    """Run a round; the policy is trained in place.

    Args:
        round_: see `rounds.ROUNDS`.
        policy: who learns.
        material: what from.
        folder: of this run; made if missing.
        config: of the fits. Steps follow from the round (`epochs`, `iterations`), rows are as long as they are, and
            policy gradients have as many rows a step as the round says and read at most ``batch_size`` of them at a
            time; the rest holds for every fit.
        resume: go on with the round in ``folder``, with the weights that it began with in the policy.
        base: where fits "from the base" begin; None means the policy's weights as given.
        progress: show on stderr how far it is.

    Raises:
        CannotGoOn: no attempt has any weight (they are kept); the loss is not finite. The policy has the weights of the
            last iteration that was done then; in the first one, those of the last step.
        KeyboardInterrupt: while attempts were drawn, or a second time; the policy has weights as after `CannotGoOn`.
        UserError: ``folder`` has a round and ``resume`` is false, or none and it is true, or another one; what the
            round needs is missing; a file of attempts is damaged.
    """
    _require(round_, policy, material)
    accelerator = start_accelerator(config.device)
    if accelerator.is_fsdp2 and policy.sampler is not None:
        raise UserError(
            "a policy that FSDP has cut into parts cannot be sampled from here; run with one process or DDP"
        )
    policy.model.to(home_of(accelerator))
    folder = Path(folder)
    own = identity(round_, policy, material, config, base)
    # All that can be refused is, before the folder is claimed.
    if round_.on_policy:
        steps = policy_config(round_, len(material.problems), config, accelerator.num_processes)
        aim = aim_of(round_, policy, material, folder)
        with claimed(folder, own, resume, accelerator):
            before = validate(folder / BASE / "validation.jsonl", round_, policy, material)
            try:
                fitted = learn_on_policy(round_, policy, material, folder, steps, aim, accelerator, progress)
            except KeyboardInterrupt:  # perhaps in the middle of a step
                _put_back_checkpoint(policy, folder / "fit" / CHECKPOINT)
                raise
            accuracy = None if fitted.interrupted else validate(folder / "validation.jsonl", round_, policy, material)
        done = fitted.step // round_.steps_per_iteration
        if done < round_.iterations and not fitted.interrupted and progress:
            _tell(
                f"iteration {done}: all attempts are right; nothing is left to learn from these problems", accelerator
            )
        best, checkpoint = (done - 1, fitted.checkpoint) if fitted.step else (None, None)
        return Learned(folder, done, best, checkpoint, accuracy, fitted.interrupted, before)
    run = _Run(round_, policy, material, folder, config, accelerator, progress)
    with claimed(folder, own, resume, accelerator):
        return run.iterate(base if base is not None else weights_of(policy.model))


def learn_recipe(
    recipe: Sequence[Round],
    policy: Policy,
    material: Material,
    folder: str | Path,
    configs: Sequence[TrainingConfig],
    *,
    resume: bool = False,
    progress: bool = True,
) -> list[Learned]:
    """Run rounds one after the other, each in a folder of its own; see `rounds.RECIPES`.

    Args:
        recipe: the rounds.
        policy, material, folder, resume, progress: as for `learn`.
        configs: of each round; one alone holds for all.

    Raises:
        UserError: as `learn`; or there are another number of configurations than rounds.
    """
    if len(configs) not in (1, len(recipe)) or not recipe:
        raise UserError(f"there are {len(configs)} configurations for {len(recipe)} rounds; give one for each, or one")
    start_accelerator(configs[0].device)  # before processes ask one another
    base = weights_of(policy.model)
    ends: list[Learned] = []
    for number, round_ in enumerate(recipe):
        place = Path(folder) / f"{number + 1}-{round_.name}"
        begun = agreed((place / IDENTITY).exists())
        if begun and not resume:
            raise UserError(f"{place} already has a round: go on with --resume, or take another folder")
        config = configs[number if len(configs) > 1 else 0]
        # The first round has nothing before it, so that what it began with is its base.
        own_base = base if number else None
        ends.append(learn(round_, policy, material, place, config, resume=begun, base=own_base, progress=progress))
        if ends[-1].interrupted:
            break
    return ends


def validate(path: Path, round_: Round, policy: Policy, material: Material) -> float | None:
    """The accuracy in validation of the policy as it is, from its likeliest answers; None without problems for it."""
    if not material.validation:
        return None
    assert policy.sampler is not None
    decoding = replace(round_.decoding, temperature=0.0)
    groups = propose(path, material.validation, 1, policy.sampler, material, decoding, policy)
    return measure(groups)["accuracy"]


class _Run:
    """A round whose iterations are long: each fit is a training run of its own."""

    def __init__(
        self,
        round_: Round,
        policy: Policy,
        material: Material,
        folder: Path,
        config: TrainingConfig,
        accelerator: Accelerator,
        progress: bool,
    ) -> None:
        self._round, self._policy, self._material, self._folder = round_, policy, material, folder
        self._config, self._accelerator, self._progress = config, accelerator, progress
        self._maker = RowMaker(policy.tokenizer, material.format.end)

    def iterate(self, base: Weights) -> Learned:
        """Propose, weigh and fit, until it is enough."""
        start = weights_of(self._policy.model)
        best: int | None = None
        before = self._validated(BASE)
        best_accuracy = before if self._round.until_worse else None
        records: list[Mapping[str, Any]] = []
        for iteration in range(self._round.iterations):
            place = self._folder / str(iteration)
            try:
                groups = self._propose(place, iteration)
                fitted = self._fit(place, iteration, groups, base)
                accuracy = None if fitted.interrupted else self._validated(place.name)
            except (CannotGoOn, KeyboardInterrupt):
                if iteration or not _put_back_checkpoint(self._policy, place / "fit" / CHECKPOINT):
                    self._put_back(best, start)
                raise
            if fitted.interrupted:
                if best is not None:
                    self._put_back(best, start)
                return Learned(self._folder, iteration, best, self._checkpoint(best), best_accuracy, True, before)
            proposed = measure(groups) if groups else {}
            kept = not self._round.until_worse or (accuracy or 0) > (best_accuracy or 0)
            measured = {**proposed, "loss": fitted.loss, "validation": accuracy, "kept": kept}
            records.append({"iteration": iteration, **measured})
            self._log(records)
            if not kept:
                self._put_back(best, start)
                break
            best, best_accuracy = iteration, accuracy
        if best is None:
            self._say("no iteration is better in validation than the policy before the first fit, which is kept")
        return Learned(self._folder, len(records), best, self._checkpoint(best), best_accuracy, False, before)

    def _checkpoint(self, iteration: int | None) -> Path | None:
        return None if iteration is None else self._folder / str(iteration) / "fit" / CHECKPOINT

    def _put_back(self, iteration: int | None, start: Weights) -> None:
        """Give the policy the weights of an iteration, or those that the round began with."""
        checkpoint = self._checkpoint(iteration)
        if checkpoint is None:
            put_weights(self._policy.model, start)
        else:
            restore_model(self._policy.model, load_checkpoint(checkpoint))

    def _validated(self, place: str) -> float | None:
        return validate(self._folder / place / "validation.jsonl", self._round, self._policy, self._material)

    def _propose(self, place: Path, iteration: int) -> list[Group]:
        """What the iteration's proposer has to say; nothing where texts are given."""
        round_, material = self._round, self._material
        if round_.proposer == "given":
            return []
        sampler = material.teacher if round_.proposer == "teacher" else self._policy.sampler
        assert sampler is not None
        count = round_.problems or len(material.problems)
        problems = [material.problems[(iteration * count + n) % len(material.problems)] for n in range(count)]
        decoding = replace(round_.decoding, seed=mix(self._config.seed, "attempts", iteration))
        groups: list[Group] = []
        for part in propose_all(
            place / "attempts", problems, round_.attempts, sampler, material, decoding, self._policy
        ):
            groups += part
            self._say(f"iteration {iteration}: attempts at {len(groups)} of {count} problems")
        return groups

    def _fit(self, place: Path, iteration: int, groups: list[Group], base: Weights) -> TrainingResult:
        """Fit the policy to what has weight; go on with the fit if it has begun.

        Raises:
            CannotGoOn: nothing has weight, or the loss is not finite.
        """
        if self._round.from_base:
            put_weights(self._policy.model, base)
        if self._round.weight == "pairs":
            config, fit = self._preference_fit(place, iteration, groups)
        else:
            rows = self._given() if self._round.proposer == "given" else self._kept(place, iteration, groups)
            config = self._config_for(len(rows), max(map(len, rows)), iteration)
            fit = likelihood_fit(rows, config)
        begun = has_checkpoint(place / "fit" / CHECKPOINT)
        return train(self._policy.model, *fit, config, place / "fit", resume=begun, progress=self._progress)

    def _config_for(self, count: int, longest: int, iteration: int) -> TrainingConfig:
        return config_for(self._config, count, self._round.epochs, longest, mix(self._config.seed, "fit", iteration))

    def _given(self) -> list[Row]:
        return [self._maker.of_text(*pair) for pair in self._material.pairs]

    def _kept(self, place: Path, iteration: int, groups: list[Group]) -> list[Row]:
        """Attempts that have weight, at most `Round.keep` of a problem.

        Raises:
            CannotGoOn: there is none.
        """
        round_ = self._round
        kept = [[one for one in group if one.right or round_.weight == "one"][: round_.keep] for group in groups]
        if not any(kept):
            raise CannotGoOn(self._nothing(place, iteration, groups, "is right"))
        if round_.proposer == "teacher":  # whose tokens need not be ours
            return [self._maker.of_text(one.attempt.prompt, one.attempt.text) for group in kept for one in group]
        return [self._maker.of_attempt(one.attempt) for group in kept for one in group]

    def _preference_fit(self, place: Path, iteration: int, groups: list[Group]) -> tuple[TrainingConfig, Fit]:
        """Pairs of right and wrong attempts, with what the policy thought of them before the fit.

        Raises:
            CannotGoOn: there is none.
        """
        pairs = [pair for group in groups for pair in right_and_wrong(group, self._round.keep)]
        if not pairs:
            raise CannotGoOn(self._nothing(place, iteration, groups, "is right where another at its problem is wrong"))
        rows = [
            (self._maker.of_attempt(right.attempt), self._maker.of_attempt(wrong.attempt)) for right, wrong in pairs
        ]
        found = log_probs_of(self._policy.model, [row for both in rows for row in both], self._config.batch_size)
        references = list(zip(found[::2], found[1::2], strict=True))
        records = [
            {
                **preference_row(right.attempt.prompt, right.attempt.text, wrong.attempt.text),
                "reference_chosen": reference[0],
                "reference_rejected": reference[1],
            }
            for (right, wrong), reference in zip(pairs, references, strict=True)
        ]
        if self._accelerator.is_main_process:
            write_lines(place / "pairs.jsonl", records)
        longest = max(max(map(len, both)) for both in rows)
        config = self._config_for(len(rows), longest, iteration)
        return config, preference_fit(rows, references, self._round.beta, config)

    def _nothing(self, place: Path, iteration: int, groups: list[Group], what: str) -> str:
        count = sum(map(len, groups))
        return (
            f"none of the {count} attempts of iteration {iteration} {what}, so there is nothing to fit to (they are "
            f"kept in {place / 'attempts'}): take easier problems, more attempts at each, or a policy that was "
            "distilled first"
        )

    def _log(self, records: Sequence[Mapping[str, Any]]) -> None:
        if self._accelerator.is_main_process:
            write_lines(self._folder / METRICS, records)
        last = records[-1]
        shares = [(last.get("accuracy"), "of attempts"), (last["validation"], "in validation")]
        told = [f"{share:.3f} right {where}" for share, where in shares if share is not None]
        self._say(f"iteration {last['iteration']}: " + ", ".join([f"loss {last['loss']:.4f}", *told]))

    def _say(self, line: str) -> None:
        if self._progress:
            _tell(line, self._accelerator)


def _put_back_checkpoint(policy: Policy, checkpoint: Path) -> bool:
    """Give the policy the weights of a checkpoint, if it is there."""
    found = has_checkpoint(checkpoint)
    if found:
        restore_model(policy.model, load_checkpoint(checkpoint))
    return found


def _tell(line: str, accelerator: Accelerator) -> None:
    if accelerator.is_main_process:
        print(line, file=sys.stderr, flush=True)


def write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """A file of JSON, one object a line, whole or not at all."""
    write_atomically(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def right_and_wrong(group: Group, most: int) -> list[tuple[Judged, Judged]]:
    """The first right attempt with the first wrong one, the second with the second, ``most`` pairs at most."""
    right = [one for one in group if one.right]
    wrong = [one for one in group if not one.right]
    return list(zip(right, wrong, strict=False))[:most]


def _require(round_: Round, policy: Policy, material: Material) -> None:
    """Complain about what is missing before anything is done."""
    own = round_.proposer == "self" or bool(material.validation)
    missing = {
        "a sampler of the policy": own and policy.sampler is None,
        "a teacher": round_.asks_teacher and material.teacher is None,
        "problems": round_.proposer != "given" and not material.problems,
        "pairs of prompts and completions": round_.proposer == "given" and not material.pairs,
        "problems for validation, or until_worse=false,": round_.until_worse and not material.validation,
    }
    for what, needed in missing.items():
        if needed:
            raise UserError(f"round {round_.name} needs {what} and has been given none")
