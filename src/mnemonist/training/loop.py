"""The loop: read, differentiate, step; log, save; stop politely; go on exactly.

    folder/metrics.jsonl   one line per logged step
    folder/checkpoint/     the latest checkpoint; after the last step, the trained model

What is read at a step is a pure function of the step's number, and the checkpoint holds everything else
that the next step depends on. So a run that was interrupted, or killed, and resumed takes bitwise the same
steps on a CPU, with as many threads as before, as one that never stopped.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from mnemonist.errors import CannotGoOn, NotFinite, RunFinished, UserError
from mnemonist.files import require_possible
from mnemonist.training.accelerator import flushing_denormals, home_of, prepared, start_accelerator
from mnemonist.training.checkpoint import (
    Checkpoint,
    has_checkpoint,
    load_checkpoint,
    restore_model,
    save_checkpoint,
    to_json,
)
from mnemonist.training.configuration import TrainingConfig
from mnemonist.training.gradients import BatchOf, LossOf, Unit, accumulate_gradients, normalise_and_clip
from mnemonist.training.held_out import HeldOut, Reading, read_held_out
from mnemonist.training.interruption import StopRequest, stop_on_signals
from mnemonist.training.metrics import MetricsLog, StepMetrics, read_metrics
from mnemonist.training.optimiser import load_optimiser_tensors, make_optimiser
from mnemonist.training.progress import training_progress
from mnemonist.training.randomness import capture_random_state, restore_random_state, seed_generators
from mnemonist.training.schedule import learning_rate
from mnemonist.training.sharding import gather

CHECKPOINT, METRICS = "checkpoint", "metrics.jsonl"

_MAY_CHANGE = {"save_every", "log_every"}  # on resuming: they decide no step


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended."""

    step: int
    """Steps done."""
    loss: float | None
    """Nats per target of the last logged step, or in the run's unit; None if none was logged."""
    interrupted: bool
    """Whether it was asked to stop before its last step; `resume=True` goes on."""
    seconds: float
    """Time spent training, over all resumptions."""
    checkpoint: Path
    """The folder with the latest checkpoint, at `step`."""
    held_out: StepMetrics | None = None
    """The last step after which held-out text or problems were read; None if they never were."""


def train(
    model: nn.Module,
    batch_of: BatchOf,
    loss_of: LossOf,
    config: TrainingConfig,
    folder: str | Path,
    *,
    resume: bool = False,
    extra: Mapping[str, Any] | None = None,
    progress: bool = True,
    on_step: Callable[[StepMetrics], None] | None = None,
    more: Callable[[int], bool] | None = None,
    skip_empty: bool = False,
    held_out: HeldOut | Sequence[HeldOut] | None = None,
    unit: Unit = "nats",
) -> TrainingResult:
    """Train `model` in place.

    Seeds the random generators of Python, numpy and torch. Ctrl-C or SIGTERM ends the run after the current
    step, with a checkpoint; so does a `CannotGoOn`, before it goes on to the caller.

    Args:
        model: any module; it is moved to the device, and set to training mode before every step.
        batch_of: `(step, micro, rank, world) -> batch`, pure; steps count from 0. Process `rank` reads
            `batch_size / (accumulation * world)` rows. Tensors in the batch are moved to the device.
        loss_of: `(model, batch) -> LossSum`; must call the model it is given.
        config: see `TrainingConfig`.
        folder: of this run; made if missing.
        resume: go on from the checkpoint in `folder`. Does no step if the run is finished; the model has
            the trained weights either way.
        extra: JSON values kept in every checkpoint; None keeps those of the checkpoint resumed from.
        progress: show a bar or lines on stderr.
        on_step: called after every step, on every process, before a checkpoint that is due.
        more: `more(step)` is called before every step, on every process; the run ends well, with a checkpoint,
            where it says no. It may raise `CannotGoOn`, if it does so on every process.
        skip_empty: pass over steps without a single target, which change nothing then; otherwise they are an error.
        held_out: what is read now and then and not trained on; it changes no step. Of several, all but one have a
            name, and no two the same.
        unit: what `loss_of` gives, for those who read the metrics; what is held out and has no name is told in it.

    Raises:
        CannotGoOn: the loss, the gradient or what a memory is given is not finite; or as `more`. The model is as the
            step before left it.
        UserError: `folder` has a checkpoint and `resume` is false, or has none and it is true; the
            checkpoint is damaged, of another model, or of a run with other settings; a step has no targets; the disk
            refuses.
    """
    accelerator = start_accelerator(config.device)
    settings = _settings(config, accelerator)
    place = Path(folder) / CHECKPOINT
    to_json(dict(extra or {}))  # complain now, not at the first checkpoint
    checkpoint = require_place(folder, config, resume)
    model.to(home_of(accelerator))
    optimiser = make_optimiser(model, config)
    if checkpoint is None:
        seed_generators(config.seed, accelerator.process_index)
        extra = extra or {}
    else:
        restore_model(model, checkpoint)
        load_optimiser_tensors(optimiser, model, checkpoint.optimiser)
        if checkpoint.step == config.steps:
            return _result(place, config.steps, False, checkpoint.seconds)
        extra = checkpoint.extra if extra is None else extra
    asked = (held_out,) if isinstance(held_out, HeldOut) else tuple(held_out or ())
    run = _Run(accelerator, model, optimiser, config, settings, extra, place, skip_empty, asked, unit)
    return _go(run, checkpoint, batch_of, loss_of, progress, on_step, more)


def require_place(
    folder: str | Path, config: TrainingConfig, resume: bool, unknown: Collection[str] = ()
) -> Checkpoint | None:
    """Make sure that `train` can begin or go on in a folder, before long work that comes before it. Makes nothing.

    Args:
        folder, config, resume: as of `train`.
        unknown: settings that are not known yet, which are not compared with those of the run before.

    Returns:
        The checkpoint to go on from, or None for a run that begins.

    Raises:
        UserError: the folder cannot be written; or as `train`, as far as the model has no part in it.
    """
    accelerator = start_accelerator(config.device)
    settings = _settings(config, accelerator)
    place = Path(folder) / CHECKPOINT
    require_possible(place.parent / METRICS)
    checkpoint = _find_checkpoint(accelerator, place, resume)
    if checkpoint is not None:
        _require_same(checkpoint, settings, _MAY_CHANGE.union(unknown))
    return checkpoint


@dataclass(frozen=True)
class _Run:
    """What stays the same from the first step to the last."""

    accelerator: Accelerator
    model: nn.Module  # as the caller gave it; Accelerate's wrappers exist only inside `_go`
    optimiser: torch.optim.AdamW
    config: TrainingConfig
    settings: dict[str, Any]
    extra: Mapping[str, Any]
    place: Path
    skip_empty: bool
    held_out: tuple[HeldOut, ...]
    unit: Unit


def _go(
    run: _Run,
    checkpoint: Checkpoint | None,
    batch_of: BatchOf,
    loss_of: LossOf,
    progress: bool,
    on_step: Callable[[StepMetrics], None] | None,
    more: Callable[[int], bool] | None,
) -> TrainingResult:
    """Take the steps from the checkpoint to the end, or until someone asks to stop or no more are wanted."""
    accelerator, config, main = run.accelerator, run.config, run.accelerator.is_main_process
    step = saved = checkpoint.step if checkpoint else 0
    with ExitStack() as stack:
        stack.enter_context(flushing_denormals(accelerator.device))
        wrapped = stack.enter_context(prepared(accelerator, run.model, run.optimiser))
        stop = stack.enter_context(stop_on_signals())
        log = stack.enter_context(MetricsLog(run.place.parent / METRICS, step)) if main else None
        report = stack.enter_context(training_progress(progress and main, step, config.steps))
        if checkpoint is not None:  # last of all, since what comes before may draw random numbers
            restore_random_state(checkpoint.rng[accelerator.process_index], accelerator.device)
        clock = _Clock(*_read_before(checkpoint, config))
        stopping = False

        def save() -> None:
            nonlocal saved
            if step > saved:
                if accelerator.is_fsdp2:
                    gather(wrapped, run.model, run.optimiser)
                _save(run, step, clock)
                saved = step

        try:
            while step < config.steps and not stopping and (more is None or more(step)):
                loss, norm, tokens, stopping = _take_step(run, wrapped, batch_of, loss_of, step, stop)
                step += 1
                metrics = replace(clock.measure(step, loss, norm, tokens, config), unit=run.unit)
                asked = [one for one in run.held_out if one.due(step, config.steps)]
                if asked:  # after the measurement: this time is none of the step's
                    metrics = replace(metrics, **_read_held_out(run, wrapped[0], loss_of, asked, step))
                if asked or step % config.log_every == 0 or step == config.steps:
                    clock.restart_rate()
                    if log is not None:
                        log.write(metrics)
                report(metrics)
                if on_step is not None:
                    on_step(metrics)
                if step % config.save_every == 0:
                    save()
        except CannotGoOn:
            save()
            raise
        save()
    interrupted = stopping and step < config.steps
    if interrupted and main:
        print(
            f"interrupted after step {step} of {config.steps}; saved in {run.place}: "
            "go on with --resume (in Python: resume=True)",
            file=sys.stderr,
        )
    return _result(run.place, step, interrupted, clock.seconds())


def _take_step(
    run: _Run,
    wrapped: tuple[nn.Module, torch.optim.Optimizer],
    batch_of: BatchOf,
    loss_of: LossOf,
    step: int,
    stop: StopRequest,
) -> tuple[float, float, int, bool]:
    """One optimiser step: loss per target, gradient norm, tokens, and whether any process was asked to stop.

    Raises:
        CannotGoOn: the loss, the gradient or what a memory is given is not finite; the model is unchanged then.
        UserError: there are no targets.
    """
    model, optimiser = wrapped
    model.train()  # an evaluation in `on_step` may have left it in the other mode
    optimiser.zero_grad()
    try:
        totals = accumulate_gradients(run.accelerator, model, batch_of, loss_of, run.config, step, stop)
    except NotFinite as error:
        what = str(error).partition(";")[0]
        if run.accelerator.num_processes > 1:  # the others may not have met it, and saving would wait for them
            raise UserError(_not_taken(run, step, what, "the last checkpoint")) from error
        raise CannotGoOn(_not_taken(run, step, what, f"step {step}")) from error
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    norm = normalise_and_clip(run.accelerator, parameters, totals[1], run.config.clip_norm)
    # One transfer, since a GPU has to be waited for at each.
    loss_sum, targets, stops, tokens, norm_value = torch.cat([totals, norm.detach().double().reshape(1)]).tolist()
    rate = learning_rate(step, run.config)
    if not targets and run.skip_empty:
        return 0.0, 0.0, round(tokens), bool(stops)
    if not targets:
        raise UserError(f"step {step + 1} has no targets; every step's batch needs one at least")
    for name, value in (("loss", loss_sum / targets), ("gradient norm", norm_value)):
        if not math.isfinite(value):
            raise CannotGoOn(_not_taken(run, step, f"the {name} is {value}", f"step {step}"))
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()
    return loss_sum / targets, norm_value, round(tokens), bool(stops)


def _read_held_out(run: _Run, model: nn.Module, loss_of: LossOf, asked: Sequence[HeldOut], step: int) -> dict[str, Any]:
    """The fields of `StepMetrics` that tell of held-out text and problems after `step` steps.

    Raises:
        CannotGoOn, UserError: see `_reading`.
    """
    fields: dict[str, Any] = {}
    for one in asked:
        reading = _reading(run, model, loss_of, one, step)
        if not one.name and run.unit == "nats":
            fields["held_out_bits_per_byte"] = reading.bits_per_byte
            continue
        if not one.name:
            fields["held_out_unexplained_share"] = reading.loss
            continue
        right = {} if reading.accuracy is None else {"accuracy": reading.accuracy}
        fields.setdefault("held_out_problems", {})[one.name] = {"loss": reading.loss, **right}
    return fields


def _reading(run: _Run, model: nn.Module, loss_of: LossOf, held_out: HeldOut, step: int) -> Reading:
    """What the model makes of held-out rows after `step` steps.

    Raises:
        CannotGoOn: what they cost, or what a memory is given, is not finite.
        UserError: see `read_held_out`; or as above in one process of several.
    """
    where = f"on held-out {held_out.name or 'text'}"
    try:
        reading = read_held_out(run.accelerator, model, loss_of, held_out)
    except NotFinite as error:
        what = _diverged(run, step - 1, f"{where} {str(error).partition(';')[0]}")
        if run.accelerator.num_processes > 1:  # as in `_take_step`
            raise UserError(what) from error
        raise CannotGoOn(what) from error
    if not math.isfinite(reading.loss):
        raise CannotGoOn(_diverged(run, step - 1, f"{where} the loss is {reading.loss}"))
    return reading


def _not_taken(run: _Run, step: int, what: str, kept: str) -> str:
    """What to tell of a step that cannot be taken."""
    kept = f"{run.place} holds {kept}" if step else "there is none before it"
    return _diverged(run, step, f"{what}, and the step was not taken ({kept})")


def _diverged(run: _Run, step: int, what: str) -> str:
    """What to tell of the step after `step`, and what to do: a run that is resumed must keep its settings."""
    return (
        f"the run diverged at step {step + 1}: {what}; start a new run in another "
        f"folder with a lower learning_rate (it was {learning_rate(step, run.config):.3g}), a longer warm-up or a "
        "smaller clip_norm"
    )


class _Clock:
    """Time and speed: tokens and seconds over all resumptions, tokens per second since the last logged step."""

    def __init__(self, tokens: int, seconds: float) -> None:
        self._begin = time.perf_counter() - seconds
        self.tokens = tokens
        self.restart_rate()

    def seconds(self) -> float:
        return time.perf_counter() - self._begin

    def restart_rate(self) -> None:
        self._rate_tokens, self._rate_seconds = self.tokens, self.seconds()

    def measure(self, step: int, loss: float, norm: float, tokens: int, config: TrainingConfig) -> StepMetrics:
        self.tokens += tokens
        seconds = self.seconds()
        rate = (self.tokens - self._rate_tokens) / (seconds - self._rate_seconds)
        return StepMetrics(
            step=step,
            loss=loss,
            learning_rate=learning_rate(step - 1, config),
            grad_norm=norm,
            tokens=self.tokens,
            tokens_per_second=rate,
            seconds=seconds,
        )


def _read_before(checkpoint: Checkpoint | None, config: TrainingConfig) -> tuple[int, float]:
    """Tokens and seconds of the part of a run that is over."""
    if checkpoint is None:
        return 0, 0.0
    tokens = checkpoint.tokens
    if tokens is None:  # of a run that began before they were counted
        tokens = checkpoint.step * config.batch_size * config.row_length
    return tokens, checkpoint.seconds


def _save(run: _Run, step: int, clock: _Clock) -> None:
    """Write the checkpoint of `step`; every process must come here, the first one writes."""
    states = gather_object([capture_random_state(run.accelerator.device)])
    if run.accelerator.is_main_process:
        save_checkpoint(
            run.place,
            run.model,
            run.optimiser,
            step,
            states,
            run.extra,
            config=run.settings,
            seconds=clock.seconds(),
            tokens=clock.tokens,
        )
    run.accelerator.wait_for_everyone()


def _result(place: Path, step: int, interrupted: bool, seconds: float) -> TrainingResult:
    path = place.parent / METRICS
    logged = read_metrics(path) if path.exists() else []
    asked = [metrics for metrics in logged if metrics.has_held_out]
    loss = logged[-1].loss if logged else None
    return TrainingResult(step, loss, interrupted, seconds, place, asked[-1] if asked else None)


def _settings(config: TrainingConfig, accelerator: Accelerator) -> dict[str, Any]:
    """What must be the same when the run is resumed, and the settings that may change, as JSON values.

    Raises:
        UserError: the rows of a step cannot be shared equally among the processes.
    """
    processes = accelerator.num_processes
    if config.batch_size % (config.accumulation * processes):
        raise UserError(
            f"batch_size is {config.batch_size}; it must be a multiple of accumulation times processes, "
            f"{config.accumulation} x {processes}"
        )
    settings = {
        **asdict(config),
        "warmup_steps": config.warmup,
        "device": accelerator.device.type,
        "processes": processes,
        "mixed_precision": accelerator.mixed_precision,
    }
    return json.loads(to_json(settings))


def _find_checkpoint(accelerator: Accelerator, place: Path, resume: bool) -> Checkpoint | None:
    """The checkpoint to go on from, if `resume`."""
    with accelerator.main_process_first():  # which puts right what a killed run may have left
        found = has_checkpoint(place)
    if found and not resume:
        raise UserError(f"{place.parent} already has a checkpoint: go on with --resume, or take another folder")
    if resume and not found:
        raise UserError(f"there is no checkpoint in {place.parent} to resume from; start without --resume")
    return load_checkpoint(place) if found else None


def _require_same(checkpoint: Checkpoint, settings: Mapping[str, Any], but: Collection[str]) -> None:
    """Refuse to go on with other settings: the steps would not be those of the run that began.

    Raises:
        UserError: names what differs; a `RunFinished` where the run that began has come to its end.
    """
    saved = checkpoint.config
    differing = [
        f"{name} (was {saved.get(name)!r}, now {settings.get(name)!r})"
        for name in sorted(saved.keys() | settings.keys())
        if name not in but and saved.get(name) != settings.get(name)
    ]
    if differing:
        kind = RunFinished if checkpoint.step == saved.get("steps") else UserError
        raise kind(
            f"cannot resume from {checkpoint.folder} with other settings: {', '.join(differing)}; take the "
            "same ones, or another folder"
        )
    if not 0 < checkpoint.step <= settings["steps"] or len(checkpoint.rng) != settings["processes"]:
        raise UserError(f"the checkpoint in {checkpoint.folder} contradicts itself: use another one")
