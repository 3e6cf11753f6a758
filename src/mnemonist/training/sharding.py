"""Models too large for one device: every process keeps a part of each weight (FSDP2, `torch.distributed.fsdp`).

A module that has been cut into shards cannot be made whole again. So a copy is cut, and the model that the caller gave
stays as it is, on the CPU: it is brought up to date when a checkpoint is due, which ends with the last step.

Zhao et al. 2023, PyTorch FSDP (arXiv 2304.11277).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(
    accelerator: Accelerator, model: nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A copy of both, cut among the processes; every process must come here."""
    if accelerator.mixed_precision == "bf16":
        # What a module is given stays as it is: the states of memories are in float32.
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    parts, stepping = accelerator.prepare(*copy.deepcopy((model, optimiser)))
    for (name, parameter), part in zip(model.named_parameters(), parts.parameters(), strict=True):
        for key, value in optimiser.state.get(parameter, {}).items():
            stepping.state[part][key] = _like(value, part) if value.shape == parameter.shape else value.clone()
        assert part.shape == parameter.shape, name
    return parts, stepping


def gather(
    sharded: tuple[nn.Module, torch.optim.Optimizer], model: nn.Module, optimiser: torch.optim.Optimizer
) -> None:
    """Bring model and optimiser to where their shards are; every process must come here."""
    parts, stepping = sharded
    with torch.no_grad():
        for tensor, part in zip(_tensors(model), _tensors(parts), strict=True):
            tensor.copy_(whole(part))
        for parameter, part in zip(model.parameters(), parts.parameters(), strict=True):
            state: dict[str, Any] = stepping.state.get(part, {})
            if state:
                optimiser.state[parameter] = {key: whole(value).cpu().clone() for key, value in state.items()}


def reshard(model: nn.Module) -> None:
    """Give up what reading without a way back has left whole, so that its parameters are the shards again."""
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or of a shard the tensor it is part of; then every process must come here."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """The tensor itself, or of a shard what this process has of it; changing that changes the shard."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _like(value: Tensor, part: Tensor) -> Tensor:
    if not isinstance(part, DTensor):
        return value.to(part.device).clone()
    return distribute_tensor(value.to(part.device), part.device_mesh, part.placements)
