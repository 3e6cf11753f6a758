"""AdamW, and its state as named tensors.

Weight decay pulls matrices towards zero, because many of their sizes compute nearly the same function. A
bias, a scale of a norm or any other vector has no such freedom and is left alone. A matrix that should
not shrink either (the learned first state of a memory, say) says so itself: `param._no_weight_decay = True`.

The state is kept by parameter *name*: what was saved can be read by anyone, and does not depend on the
order in which parameters were made. AdamW: Loshchilov and Hutter, Decoupled Weight Decay (2019).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mnemonist.errors import UserError
from mnemonist.training.configuration import TrainingConfig

_MOMENTS = ("exp_avg", "exp_avg_sq")
_STATE = ("step", *_MOMENTS)
_FUSED_DEVICES = {"cpu", "cuda"}  # where AdamW has one kernel for the whole update


def decays(parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to whatever has two dimensions or more and does not opt out."""
    return parameter.ndim >= 2 and not getattr(parameter, "_no_weight_decay", False)


def make_optimiser(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that want a gradient; put the model on its device first.

    Raises:
        UserError: no parameter wants a gradient.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise UserError("the model has no parameter that wants a gradient: there is nothing to train")
    shrinking = [parameter for parameter in trained if decays(parameter)]
    free = [parameter for parameter in trained if not decays(parameter)]
    groups = [
        {"params": shrinking, "weight_decay": config.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    fused = all(p.device.type in _FUSED_DEVICES and p.is_floating_point() for p in trained)
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        fused=fused,
    )


def optimiser_tensors(optimiser: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The state of AdamW as `{"<parameter>.exp_avg": tensor, ...}`; `load_optimiser_tensors` undoes it.

    Parameters that never had a gradient have no state. The tensors are the optimiser's own, not copies.

    Raises:
        ValueError: the optimiser steps a parameter that is not the model's.
    """
    tensors = {}
    for name, parameter in _named(optimiser, model):
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"{name}.{key}"] = value
    return tensors


def load_optimiser_tensors(optimiser: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give AdamW the state that `optimiser_tensors` took; the tensors are copied.

    Raises:
        ValueError: the optimiser steps a parameter that is not the model's.
        UserError: the tensors belong to other parameters or are incomplete; nothing has been changed then.
    """
    left = dict(tensors)
    state: dict[int, dict[str, Tensor]] = {}
    for index, (name, parameter) in enumerate(_named(optimiser, model)):
        found = {key: left.pop(f"{name}.{key}") for key in _STATE if f"{name}.{key}" in left}
        if not found:
            continue
        _require_complete(name, parameter, found)
        state[index] = {key: value.clone() for key, value in found.items()}
    if left:
        raise UserError(f"the saved optimiser state has {min(left)!r}, which belongs to no parameter of the model")
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def _require_complete(name: str, parameter: nn.Parameter, found: Mapping[str, Tensor]) -> None:
    missing = [key for key in _STATE if key not in found]
    if missing:
        raise UserError(f"the saved optimiser state of {name!r} lacks {', '.join(missing)}")
    shapes = {tuple(found[key].shape) for key in _MOMENTS}
    if shapes != {tuple(parameter.shape)} or found["step"].numel() != 1:
        raise UserError(
            f"the saved optimiser state of {name!r} has shape {min(shapes)} and the parameter "
            f"{tuple(parameter.shape)}: it belongs to another model"
        )


def _named(optimiser: torch.optim.Optimizer, model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """Name and parameter in the order by which the optimiser numbers them."""
    names: dict[int, str] = {id(parameter): name for name, parameter in model.named_parameters()}
    groups: list[dict[str, Any]] = optimiser.param_groups
    for group in groups:
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise ValueError("the optimiser steps a parameter that is not the model's")
            yield names[id(parameter)], parameter
