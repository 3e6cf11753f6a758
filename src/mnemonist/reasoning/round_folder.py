"""The folder of a round: whose it is, and the weights that the round began with.

A round that is resumed with another policy, other problems or other choices would be neither the one nor the other. So
the folder says what its outcome follows from, and whoever comes back is compared with that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mnemonist.errors import CannotGoOn, UserError
from mnemonist.evaluating import evaluating
from mnemonist.files import differences, differing_fields, write_atomically
from mnemonist.reasoning.attempts import Sampler
from mnemonist.reasoning.proposing import Material, Policy, agreed
from mnemonist.reasoning.rounds import IDENTITY, Round
from mnemonist.reasoning.sampling import SamplingFailed
from mnemonist.reasoning.tasks.rewards import Reward
from mnemonist.tensors import content_hash
from mnemonist.training import TrainingConfig

FORMAT = "mnemonist-round/3"

Weights = Mapping[str, Tensor]
"""By the names of parameters."""


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of what training can change: of a model with LoRA, the adapters alone."""
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


@torch.no_grad()
def put_weights(model: nn.Module, weights: Weights) -> None:
    """Give the model what `weights_of` took."""
    for name, value in model.named_parameters():
        if name in weights:
            value.copy_(weights[name])


@contextmanager
def wearing(model: nn.Module, weights: Weights) -> Iterator[None]:
    """For a while the model has these weights and no dropout; nothing is copied.

    What was computed with its own before must not need a gradient any more.
    """
    own = {name: value for name, value in model.named_parameters() if name in weights}
    data = {name: value.data for name, value in own.items()}
    with evaluating(model):
        try:
            for name, value in own.items():
                value.data = weights[name]
            yield
        finally:
            for name, value in own.items():
                value.data = data[name]


def identity(
    round_: Round, policy: Policy, material: Material, config: TrainingConfig, base: Weights | None
) -> dict[str, Any]:
    """All that the outcome follows from, as JSON values."""
    known = asdict(config) | {"warmup_steps": config.warmup}
    settings = {name: value for name, value in known.items() if name not in ("save_every", "log_every")}
    values = {
        "format": FORMAT,
        "round": round_.to_json(),
        "config": settings,
        "text format": asdict(material.format),
        "problems": _digest([problem.to_json() for problem in material.problems]),
        "validation": _digest([problem.to_json() for problem in material.validation]),
        "pairs": _digest(list(material.pairs)),
        "rewards": [_reward(reward) for reward in material.rewards],
        "teacher": None if material.teacher is None else _teacher(material.teacher),
        "weights": content_hash("", dict(policy.model.named_parameters())),
        "base": None if base is None else content_hash("", base),
    }
    return json.loads(json.dumps(values))


def _reward(reward: Reward) -> str:
    """What it pays for, as far as can be told: all choices of ours, the name of a plain function."""
    if is_dataclass(reward):
        return repr(reward)
    kind = reward if hasattr(reward, "__qualname__") else type(reward)
    return f"{kind.__module__}.{kind.__qualname__}"


def _teacher(teacher: Sampler) -> list[str]:
    """Its name and, where it is a model in this process, what tells its weights from others."""
    asked: Any = teacher
    while hasattr(asked, "sampler"):  # one that asks another
        asked = asked.sampler
    model = getattr(asked, "model", None)
    return [teacher.name, content_hash("", model.state_dict()) if isinstance(model, nn.Module) else ""]


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def claimed(folder: Path, own: dict[str, Any], resume: bool, accelerator: Accelerator) -> Iterator[None]:
    """As `claim`; the claim is taken back if the work is refused before anything came of it.

    Raises:
        UserError: as `claim`.
    """
    before = _work_in(folder)
    claim(folder, own, resume, accelerator)
    try:
        yield
    except (CannotGoOn, SamplingFailed):  # which keep what they have
        raise
    except UserError:
        if accelerator.is_main_process and not resume and _work_in(folder) <= before:
            (folder / IDENTITY).unlink(missing_ok=True)
        raise


def _work_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and path.stat().st_size and path.name != IDENTITY}


def claim(folder: Path, own: dict[str, Any], resume: bool, accelerator: Accelerator) -> None:
    """Say whose folder it is, or make sure that it is ours.

    Raises:
        UserError: it is not, or not yet, or already.
    """
    path = folder / IDENTITY
    begun = agreed(path.exists())
    if begun and not resume:
        raise UserError(f"{folder} already has a round: go on with --resume, or take another folder")
    if resume and not begun:
        raise UserError(f"there is no round in {folder} to resume; start without --resume")
    if not begun:
        if accelerator.is_main_process:
            write_atomically(path, json.dumps(own, indent=1))
        return
    differing = differing_fields(path, own)
    if "format" in differing:
        raise UserError(
            f"the round in {folder} was begun by another version of mnemonist; finish it with that one, or take "
            "another folder"
        )
    if differing:
        raise UserError(
            f"the round in {folder} is another one: {differences(path, own)}; take the same, or another folder"
        )
