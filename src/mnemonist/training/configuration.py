"""What decides the course of a training run, apart from the model and the data.

Two runs with equal configurations, models and data take the same steps. This module needs no torch, so
that the command line can list the options at once.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from mnemonist.errors import UserError

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class TrainingConfig:
    """The settings of one training run.

    Raises:
        UserError: a field is out of range or contradicts another one.
    """

    steps: int = 1000
    """Optimiser steps of the whole run; the learning rate falls over this many."""
    batch_size: int = 16
    """Rows read for one optimiser step, over all micro-batches and processes."""
    row_length: int = 512
    """Tokens of a row."""
    truncation: int | None = None
    """Tokens after which the graph is cut; the state goes on. None differentiates through the whole row."""
    accumulation: int = 1
    """Micro-batches of one step: more of them need less memory and give the same gradient."""
    learning_rate: float = 1e-3
    """Highest learning rate, reached at the end of the warm-up."""
    final_learning_rate_ratio: float = 0.1
    """Learning rate of the last step as a fraction of the highest."""
    warmup_steps: int | None = None
    """Steps over which the learning rate rises in a straight line; None takes 100, or half of fewer than 200 steps."""
    weight_decay: float = 0.1
    """How strongly matrices shrink at each step, times the learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """How much AdamW remembers of past gradients and of their squares."""
    clip_norm: float | None = 1.0
    """Longer gradients are shortened to this norm; None leaves them as they are."""
    seed: int = 0
    """Where the random numbers of training (dropout, say) begin."""
    save_every: int = 100
    """Steps between checkpoints; the last step is always saved."""
    log_every: int = 10
    """Steps between lines of metrics; the last step is always logged."""
    device: Device = "auto"
    """Where to compute: auto takes a CUDA device if there is one."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "row_length", "accumulation", "save_every", "log_every"):
            _require_whole(name, getattr(self, name), least=1)
        _require_whole("seed", self.seed, least=0)
        if self.warmup_steps is not None:
            _require_whole("warmup_steps", self.warmup_steps, least=0)
            if self.warmup_steps > self.steps:
                raise UserError(f"warmup_steps is {self.warmup_steps}; the run has only {self.steps} steps")
        if self.truncation is not None:
            _require_whole("truncation", self.truncation, least=1)
            if self.truncation > self.row_length:
                raise UserError(
                    f"truncation is {self.truncation}; a row has only {self.row_length} tokens: leave it out, or take "
                    "longer rows"
                )
        if self.batch_size % self.accumulation:
            raise UserError(
                f"batch_size is {self.batch_size} and accumulation {self.accumulation}: "
                "the micro-batches of a step must be equally large"
            )
        _require(_is_real(self.learning_rate) and self.learning_rate > 0, "learning_rate", self.learning_rate)
        ratio = self.final_learning_rate_ratio
        _require(_is_real(ratio) and 0 <= ratio <= 1, "final_learning_rate_ratio", ratio, "a number from 0 to 1")
        _require(
            _is_real(self.weight_decay) and self.weight_decay >= 0,
            "weight_decay",
            self.weight_decay,
            "a number from 0",
        )
        _require(
            isinstance(self.betas, tuple)
            and len(self.betas) == 2
            and all(_is_real(beta) and 0 <= beta < 1 for beta in self.betas),
            "betas",
            self.betas,
            "two numbers from 0 to below 1",
        )
        _require(
            self.clip_norm is None or (_is_real(self.clip_norm) and self.clip_norm > 0),
            "clip_norm",
            self.clip_norm,
            "a number above 0, or None",
        )
        _require(self.device in get_args(Device), "device", self.device, f"one of {', '.join(get_args(Device))}")

    @property
    def warmup(self) -> int:
        """Steps of the warm-up, also where it is left open."""
        return min(100, self.steps // 2) if self.warmup_steps is None else self.warmup_steps

    def for_steps(self, steps: int, **changes: Any) -> "TrainingConfig":
        """The same for a run of another length, with other changes; the warm-up is shortened to at most all of it."""
        warmup = None if self.warmup_steps is None else min(self.warmup_steps, steps)
        return replace(self, steps=steps, warmup_steps=warmup, **changes)

    @property
    def pieces(self) -> int:
        """Parts of a row that are differentiated one after the other."""
        return 1 if self.truncation is None else -(-self.row_length // self.truncation)


@dataclass(frozen=True)
class HeldOutConfig:
    """Text and problems that are not trained on, read at intervals and at the end: the same rows every time.

    Raises:
        UserError: a field is out of range or contradicts another one.
    """

    data: str | None = None
    """Text to hold out, named as `data` is. Left out: of stdlib its own held-out modules, of other text a share."""
    share: float | None = None
    """Hold out this share of `data` instead of training on it, by whole documents (the end of a single one); 0 holds
    nothing out, problems neither. Left out: 0.05, where that fills a row and no other text is held out."""
    every: int = 100
    """Steps between readings; the last step is always followed by one."""
    rows: int | None = None
    """Rows to read each time, if there are so many; of each task so many problems, in whole micro-batches. None takes
    as many as four steps do."""
    seed: int = 0
    """Draws the documents, the rows and the problems; runs of other seeds of training are thus asked the same."""

    def __post_init__(self) -> None:
        _require_whole("held_out.every", self.every, least=1)
        _require_whole("held_out.seed", self.seed, least=0)
        if self.rows is not None:
            _require_whole("held_out.rows", self.rows, least=1)
        if self.share is not None:
            fine = _is_real(self.share) and 0 <= self.share < 1
            _require(fine, "held_out.share", self.share, "a number from 0 to below 1")
            if self.data is not None:
                raise UserError(
                    f"held_out.data is {self.data} and held_out.share {self.share}: text is held out from one place; "
                    "leave one of them out"
                )

    @property
    def given(self) -> bool:
        """Whether it was chosen which text is held out."""
        return self.data is not None or self.share is not None


def _require_whole(name: str, value: object, least: int) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
    _require(whole, name, value, f"a whole number from {least}")


def _require(fine: bool, name: str, value: object, allowed: str = "a number above 0") -> None:
    if not fine:
        raise UserError(f"{name} is {value!r}; it must be {allowed}")


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
