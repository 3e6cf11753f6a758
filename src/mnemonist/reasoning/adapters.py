"""Adapters: train a few numbers beside each matrix instead of the matrix (LoRA, arXiv 2106.09685), through PEFT.

A policy with adapters is a policy like any other: rounds copy, compare and reset what can be trained, and that is the
adapters alone. The sampler of the model that was given sees them, for PEFT puts them into that very model.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import nn

from mnemonist.errors import UserError


def with_adapters(model: nn.Module, rank: int = 16, *, targets: Sequence[str] = (), seed: int = 0) -> nn.Module:
    """The model with adapters of a rank in its linear layers; nothing else can be trained then.

    Args:
        model: of transformers.
        rank: of each adapter; its effect is scaled as that of a rank-16 adapter with alpha 32 is.
        targets: names of the layers; none means all linear ones but the head.
        seed: adapters begin at zero effect, but with random directions, which follow from this alone, so that a round
            can be resumed.

    Raises:
        UserError: PEFT is not installed, or does not know what to do with the model.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError('adapters need PEFT: pip install "mnemonist[lora]"') from error
    chosen = list(targets) or "all-linear"
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=chosen, task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            raise UserError(f"the model cannot have adapters: {error}") from error
