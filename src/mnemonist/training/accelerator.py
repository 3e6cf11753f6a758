"""The one gate to Hugging Face Accelerate: where to compute, with how many processes, how precisely.

One process, or several that each hold the whole model (DDP) or a part of every weight (FSDP2), started by
`accelerate launch`. On a CUDA device activations are bfloat16 unless Accelerate is configured otherwise; on CPU
everything is float32, because bfloat16 is slower there.

Does not include: DeepSpeed, the first FSDP, TPUs, and float16, whose loss scaling skips steps.
"""

import atexit
import functools
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    parse_choice_from_env,
    parse_flag_from_env,
)
from torch import nn

from mnemonist.errors import UserError
from mnemonist.training.configuration import Device
from mnemonist.training.sharding import shard

_PATCHED = ("forward", "_original_forward", "_is_accelerate_prepared")  # what preparing sets on a model


def start_accelerator(device: Device) -> Accelerator:
    """An Accelerator for `device`; in one process all of them share the choices of the first.

    Raises:
        UserError: the device is not there, this process has begun with another, or Accelerate is
            configured for something that the loop cannot do.
    """
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise UserError("device is 'cuda', but torch finds no CUDA device; take 'cpu' or 'auto'")
    on_cpu = device == "cpu" or not cuda
    precision = "no" if on_cpu else parse_choice_from_env("ACCELERATE_MIXED_PRECISION", "bf16")
    try:
        accelerator = Accelerator(cpu=on_cpu, mixed_precision=precision)
    except ValueError as error:
        raise UserError(
            f"this process already uses Accelerate with another device or precision than {device!r} "
            f"({precision}); start a new process"
        ) from error
    if accelerator.distributed_type == DistributedType.MULTI_CPU and parse_flag_from_env("ACCELERATE_USE_FSDP"):
        _shard_on_cpus(accelerator)
    kind = accelerator.distributed_type
    plain = kind in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if not plain and not accelerator.is_fsdp2:
        raise UserError(f"Accelerate is configured for {kind.value}; training needs one process, DDP, or FSDP 2")
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise UserError(f"mixed precision is {accelerator.mixed_precision!r}; take 'bf16' or 'no'")
    if accelerator.device.type != ("cpu" if on_cpu else "cuda"):
        raise UserError(f"device is {device!r}, but this process has begun on {accelerator.device.type}")
    if accelerator.num_processes > 1:
        _leave_at_exit()
    return accelerator


def _shard_on_cpus(accelerator: Accelerator) -> None:
    """Torch can shard on CPUs, where Accelerate does not ask it to: slow, but the same steps as on GPUs."""
    for state in (PartialState(), accelerator.state):  # the second is filled from the first again and again
        vars(state)["distributed_type"] = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()


def home_of(accelerator: Accelerator) -> torch.device:
    """Where the model that is trained lives: on the device, or where its shards are made from."""
    return torch.device("cpu") if accelerator.is_fsdp2 else accelerator.device


@functools.cache
def _leave_at_exit() -> None:
    """Part from the other processes before Python shuts down: threads of theirs would crash it."""
    atexit.register(lambda: torch.distributed.is_initialized() and torch.distributed.destroy_process_group())


@contextmanager
def prepared(
    accelerator: Accelerator, model: nn.Module, optimiser: torch.optim.Optimizer
) -> Iterator[tuple[nn.Module, torch.optim.Optimizer]]:
    """The model and optimiser as Accelerate wraps them; afterwards the model is as it was before.

    Shards are of a copy: see `sharding`.
    """
    if accelerator.is_fsdp2:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")  # none is written to
            yield shard(accelerator, model, optimiser)
        return
    before = {name: vars(model)[name] for name in _PATCHED if name in vars(model)}
    try:
        yield accelerator.prepare(model, optimiser)
    finally:
        # Left in place, the mark would make the next run take the model for one that is prepared already.
        for name in _PATCHED:
            vars(model).pop(name, None)
        vars(model).update(before)


@contextmanager
def flushing_denormals(device: torch.device) -> Iterator[None]:
    """On a CPU, round numbers below the smallest normal float to zero while the block runs.

    A memory that forgets multiplies many decays below one; such products sink into denormals, which CPUs
    compute in microcode, several times slower. They are zero for every purpose here. The setting belongs
    to a thread and is inherited by those that it starts, so it misses workers that torch has started before:
    a program that only trains does well to call `torch.set_flush_denormal(True)` before its first tensor.
    """
    if device.type != "cpu":
        yield
        return
    already = sys.float_info.min / 2 == 0.0  # torch sets the mode of the processor, but cannot tell it
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(already)  # others in this process may count on denormals
