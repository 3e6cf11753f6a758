"""A small batch whose losses TRL has computed: see `test_trl`, which does so again where TRL is installed.

Numbers come from sines, so that they are the same with every version of torch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mnemonist.reasoning.objective import OBJECTIVES, PolicyObjective

LENGTHS = (6, 3, 5, 1)
LIMIT = 8
"""Tokens that an attempt may have."""
REWARDS = (1.0, 0.0, 0.5, 0.25)
"""Of two groups of two."""
TRL = "1.16.0"

CASES: dict[str, PolicyObjective] = {
    "grpo": OBJECTIVES["grpo"],
    "r1": OBJECTIVES["r1"],
    "dr-grpo": OBJECTIVES["dr-grpo"],
    "dapo": replace(OBJECTIVES["dapo"], skip_overlong=False),
    "gspo": OBJECTIVES["gspo"],
    "lite-ppo": OBJECTIVES["lite-ppo"],
    "grpo, corrected kl": replace(OBJECTIVES["grpo"], corrected_kl=True),
    "gspo with kl": replace(OBJECTIVES["gspo"], beta=0.1, clip_low=0.05, clip_high=0.05),
    "dr-grpo with kl": replace(OBJECTIVES["dr-grpo"], beta=0.1, clip_high=0.28),
}


def wave(shape: tuple[int, ...], step: float, scale: float, offset: float = 0.0) -> Tensor:
    """Numbers that look like noise and never change."""
    count = int(torch.tensor(shape).prod())
    return (offset + scale * torch.sin(step * torch.arange(1, count + 1, dtype=torch.float64))).float().view(shape)


def mask() -> Tensor:
    """``[B, T]``: 1 on tokens."""
    return (torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]).float()


def log_probs() -> dict[str, Tensor]:
    """``[B, T]`` of the policy, of the one that drew, and of the reference."""
    shape = (len(LENGTHS), max(LENGTHS))
    policy = wave(shape, 1.7, 1.2, -1.5)
    return {
        "policy": policy,
        "old": policy + wave(shape, 2.3, 0.35),
        "reference": policy + wave(shape, 3.1, 0.6, 0.1),
    }


def trl_settings(objective: PolicyObjective) -> dict[str, Any]:
    """The same choices in TRL's words."""
    return {
        "loss_type": {"sequence": "grpo", "token": "dapo", "constant": "dr_grpo"}[objective.length],
        "scale_rewards": {"group": "group", "centred": "none", "batch": "batch"}[objective.advantage],
        "importance_sampling_level": objective.ratio,
        "epsilon": objective.clip_low,
        "epsilon_high": objective.clip_high,
        "beta": objective.beta,
        "use_bias_correction_kl": objective.corrected_kl,
        "mask_truncated_completions": objective.skip_overlong,
        "max_completion_length": LIMIT,
    }


DIVERGENCES = (0.0, 0.25, 0.5, 1.0)


def logits() -> tuple[Tensor, Tensor]:
    """``[N, V]`` of a policy and of its teacher, N being the tokens of the batch."""
    shape = (sum(LENGTHS), 7)
    return wave(shape, 2.3, 1.9), wave(shape, 1.1, 2.4, 0.3)
