"""Everything a run needs in order to go on as if it had never stopped, as a folder of three files.

    model.safetensors       parameters and persistent buffers; what is tied is kept once
    optimiser.safetensors   AdamW's memory, by parameter name
    state.json              step, seconds, configuration, random generators, and what the caller adds

The folder appears whole or not at all, and a new one takes the place of the old only when it is complete
on the disk: a run that is killed at any moment leaves a checkpoint that works. All three files carry the
step, so files of different checkpoints are never taken for one. Nothing in them is ever executed.

Does not include: sharded checkpoints (FSDP), and more than one checkpoint per folder.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mnemonist.errors import UserError
from mnemonist.files import FileError, atomic_folder, recover_folder
from mnemonist.training.optimiser import optimiser_tensors
from mnemonist.training.randomness import RandomState

FORMAT = "mnemonist-training"
VERSION = 1
_MODEL, _OPTIMISER, _STATE = "model.safetensors", "optimiser.safetensors", "state.json"
_ALIASES = "tied"  # metadata of model.safetensors: {name: the name under which the same tensor is kept}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A run as it was after `step` steps."""

    folder: Path
    """Where it was read from."""
    step: int
    """Optimiser steps done."""
    seconds: float
    """Time spent training."""
    tokens: int | None
    """Tokens read; None in a checkpoint of the time when they were not counted."""
    config: dict[str, Any]
    """The run's configuration, as JSON values."""
    rng: tuple[RandomState, ...]
    """Random generators, one entry per process."""
    extra: dict[str, Any]
    """What the caller added, as JSON values."""
    model: dict[str, Tensor]
    """State dict of the model, on the CPU; tied names share one tensor."""
    optimiser: dict[str, Tensor]
    """What `optimiser_tensors` gave, on the CPU."""


def save_checkpoint(
    folder: str | Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    step: int,
    rng: Sequence[RandomState],
    extra: Mapping[str, Any],
    *,
    config: Mapping[str, Any],
    seconds: float = 0.0,
    tokens: int | None = None,
) -> None:
    """Write a checkpoint; one that was in `folder` is replaced when the new one is complete.

    Args:
        folder: the checkpoint itself, not the folder of the run. One writer at a time.
        model, optimiser: not wrapped; on any device.
        step, rng, extra, config, seconds, tokens: see `Checkpoint`.

    Raises:
        UserError: the disk refuses, `extra` or `config` is not made of JSON values, or the model keeps
            something else than tensors in its state dict.
    """
    state = {
        "format": FORMAT,
        "version": VERSION,
        "step": step,
        "seconds": seconds,
        "tokens": tokens,
        "config": dict(config),
        "rng": list(rng),
        "extra": dict(extra),
    }
    text = to_json(state)
    tensors, aliases = _model_tensors(model)
    metadata = {"format": "pt", "step": str(step)}
    with atomic_folder(folder) as temporary:
        _write_tensors(temporary / _MODEL, tensors, {**metadata, _ALIASES: json.dumps(aliases)})
        _write_tensors(temporary / _OPTIMISER, optimiser_tensors(optimiser, model), metadata)
        try:
            (temporary / _STATE).write_text(text, encoding="utf-8")
        except OSError as error:
            raise FileError(f"cannot write {temporary / _STATE}: {error.strerror}") from error


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Read and check a checkpoint; what a killed writer may have left is put right first.

    Raises:
        UserError: there is no checkpoint, or it is incomplete, truncated, of another program, or of a
            newer version.
    """
    folder = Path(folder)
    if not has_checkpoint(folder):
        raise UserError(f"there is no checkpoint in {folder}")
    state = _read_state(folder / _STATE)
    model, metadata = _read_tensors(folder / _MODEL, state["step"])
    optimiser, _ = _read_tensors(folder / _OPTIMISER, state["step"])
    try:
        model |= {name: model[kept] for name, kept in json.loads(metadata.get(_ALIASES, "{}")).items()}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise _damaged(folder / _MODEL, "its list of tied tensors is wrong") from error
    return Checkpoint(
        folder=folder,
        step=state["step"],
        seconds=float(state["seconds"]),
        tokens=state.get("tokens"),
        config=state["config"],
        rng=tuple(state["rng"]),
        extra=state["extra"],
        model=model,
        optimiser=optimiser,
    )


def has_checkpoint(folder: str | Path) -> bool:
    """Whether something is there to load; what a killed writer may have left is put right first."""
    recover_folder(folder)
    return Path(folder).is_dir()


def saved_step(folder: str | Path) -> int:
    """The step of the checkpoint, without reading its tensors; 0 if there is none.

    Raises:
        UserError: as `load_checkpoint`, as far as `state.json` tells.
    """
    folder = Path(folder)
    return _read_state(folder / _STATE)["step"] if has_checkpoint(folder) else 0


def restore_model(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy the checkpoint's parameters and buffers into the model.

    Raises:
        UserError: names or shapes differ: the checkpoint is of another model. Nothing has been changed then.
    """
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    saved = checkpoint.model
    other = f"the checkpoint in {checkpoint.folder} is of another model"
    for word, names in (("lacks", own.keys() - saved.keys()), ("also has", saved.keys() - own.keys())):
        if names:
            raise UserError(f"{other}: it {word} {min(names)!r}")
    for name, value in own.items():
        if value.shape != saved[name].shape:
            raise UserError(
                f"{other}: {name!r} has shape {tuple(saved[name].shape)} there and {tuple(value.shape)} here"
            )
    model.load_state_dict(saved)


def to_json(value: object) -> str:
    """JSON text of a value.

    Raises:
        UserError: it holds something that JSON has no word for.
    """
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"a checkpoint keeps JSON values only: {error}") from error


def _model_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of the state dict, each once, and for every further name of a tensor the first one."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise UserError(f"the model keeps a {type(value).__name__} as {name!r}; only tensors can be saved")
        # An empty tensor has no address of its own, so that two of them would look tied.
        place = (value.data_ptr(), value.dtype, value.shape, value.stride()) if value.numel() else (name,)
        if place in first:
            aliases[name] = first[place]
        else:
            first[place] = name
            tensors[name] = value
    return tensors, aliases


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    try:
        save_file({name: _own_memory(tensor) for name, tensor in tensors.items()}, path, metadata)
    except (OSError, SafetensorError) as error:
        raise FileError(f"cannot write {path}: {error}") from error


def _own_memory(tensor: Tensor) -> Tensor:
    """The tensor on the CPU, contiguous, and alone in its memory, as safetensors wants it."""
    tensor = tensor.detach().cpu()
    alone = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if alone and tensor.is_contiguous() else tensor.clone(memory_format=torch.contiguous_format)


def _read_tensors(path: Path, step: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file that must belong to the checkpoint of `step`."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError as error:
        raise _damaged(path, "the file is missing") from error
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise _damaged(path, "the file is truncated or no safetensors file") from error
    if metadata.get("step") != str(step):
        raise _damaged(path, f"the file does not belong to the checkpoint of step {step}")
    return tensors, metadata


_FIELDS: dict[str, type | tuple[type, ...]] = {
    "step": int,
    "seconds": (int, float),
    "tokens": (int, NoneType),
    "config": dict,
    "rng": list,
    "extra": dict,
}


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _damaged(path, "the file is missing") from error
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "the file is truncated or no JSON") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise _damaged(path, "the file was not written by mnemonist's training")
    version = state.get("version")
    if isinstance(version, int) and version > VERSION:
        raise UserError(
            f"cannot use the checkpoint in {path.parent}: it has format version {version} and this mnemonist "
            f"reads up to {VERSION}; install a newer one"
        )
    wrong = [name for name, kind in _FIELDS.items() if not isinstance(state.get(name), kind)]
    if version != VERSION or wrong or not all(isinstance(entry, dict) for entry in state["rng"]):
        raise _damaged(path, f"its field {(wrong or ['version or rng'])[0]!r} is missing or wrong")
    return state


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"cannot use the checkpoint in {path.parent}: {path.name}: {what}")
