"""Blocks: what a model is a list of. Each mixes tokens (by attention, by a memory, or both), then thinks per token.

    x = x + mixer(norm(x));    x = x + mlp(norm(x))

A mixer is a class with one signature, `Mixer`; a new block kind is a new class and a row in `BLOCKS` and `MIXERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from mnemonist.memory.reading import Surprise
from mnemonist.models.attention import AttentionState, CausalAttention
from mnemonist.models.configuration import ModelConfig
from mnemonist.models.neural_memory import NeuralMemory, NeuralMemoryState
from mnemonist.models.normalisation import RMSNorm
from mnemonist.models.state import StreamState


@dataclass(frozen=True)
class BlockState(StreamState):
    """What a block remembers of a stream; a part is None if the block has no such part."""

    attention: AttentionState | None = None
    memory: NeuralMemoryState | None = None


@dataclass(frozen=True)
class Mixed:
    """What a mixer returns: ``y [B, T, E]``, its state, and the surprise of its memory if it has one and was asked."""

    y: Tensor
    state: BlockState
    surprise: Surprise | None = None


class Mixer(nn.Module):
    """Mixes tokens ``[B, T, E]`` of a stream; subclasses say how."""

    def forward(
        self, x_BTE: Tensor, state: BlockState, mask_BT: Tensor | None, *, learn: bool, surprise: bool
    ) -> Mixed:
        """Read a piece of a stream; see `NeuralMemory.forward` for the arguments."""
        raise NotImplementedError


class AttentionMixer(Mixer):
    """Causal attention with persistent tokens, over everything or over a window."""

    def __init__(self, config: ModelConfig, window: int | None) -> None:
        super().__init__()
        self.attention = attention(config, window)

    def forward(
        self, x_BTE: Tensor, state: BlockState, mask_BT: Tensor | None, *, learn: bool, surprise: bool
    ) -> Mixed:
        y, after = self.attention(x_BTE, state.attention, mask_BT)
        return Mixed(y, BlockState(attention=after))


class MemoryMixer(Mixer):
    """LMM: the memory alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.memory = memory(config)

    def forward(
        self, x_BTE: Tensor, state: BlockState, mask_BT: Tensor | None, *, learn: bool, surprise: bool
    ) -> Mixed:
        y, after, seen = self.memory(x_BTE, state.memory, mask_BT, learn=learn, surprise=surprise)
        return Mixed(y, BlockState(memory=after), seen)


class MemoryAsGate(Mixer):
    """MAG: a window of attention for the near past, gated by what the memory makes of the far past (eq. 26-28).

    ``o = norm(attention(x)) * silu(norm(memory(x)))``. The paper normalises both with learned weights and leaves the
    non-linearity open; SiLU (its choice elsewhere) lets the memory pass content on where a sigmoid could only mask.
    Persistent tokens are seen by attention; the memory has its learned initial weights instead.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = attention(config, config.window)
        self.memory = memory(config)
        self.attention_norm = RMSNorm(config.width)
        self.memory_norm = RMSNorm(config.width)

    def forward(
        self, x_BTE: Tensor, state: BlockState, mask_BT: Tensor | None, *, learn: bool, surprise: bool
    ) -> Mixed:
        near, attended = self.attention(x_BTE, state.attention, mask_BT)
        far, memorised, seen = self.memory(x_BTE, state.memory, mask_BT, learn=learn, surprise=surprise)
        y = self.attention_norm(near) * F.silu(self.memory_norm(far))
        return Mixed(y, BlockState(attended, memorised), seen)


MIXERS: dict[str, Callable[[ModelConfig], Mixer]] = {
    "lmm": MemoryMixer,
    "mag": MemoryAsGate,
    "window": lambda config: AttentionMixer(config, config.window),
    "attention": lambda config: AttentionMixer(config, None),
}


def attention(config: ModelConfig, window: int | None) -> CausalAttention:
    """The attention half of a block."""
    return CausalAttention(
        config.width, config.heads, config.head_dim, window=window, persistent_tokens=config.persistent_tokens
    )


def memory(config: ModelConfig) -> NeuralMemory:
    """The memory half of a block."""
    return NeuralMemory(
        config.width, config.memory_heads, config.memory_head_dim, config.memory_rule, conv_size=config.conv_size
    )


class GatedMLP(nn.Module):
    """SwiGLU: ``down(silu(gate(x)) * up(x))`` (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., E] -> [..., E]``."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """One block of any kind."""

    def __init__(self, config: ModelConfig, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.mixer_norm = RMSNorm(config.width)
        self.mixer = MIXERS[kind](config)
        self.mlp_norm = RMSNorm(config.width)
        self.mlp = GatedMLP(config.width, config.mlp_width)

    def forward(
        self,
        x_BTE: Tensor,
        state: BlockState | None = None,
        mask_BT: Tensor | None = None,
        *,
        learn: bool = True,
        surprise: bool = False,
    ) -> Mixed:
        """Read a piece of a stream; padding yields whatever it likes and changes nothing else."""
        mixed = self.mixer(self.mixer_norm(x_BTE), state or BlockState(), mask_BT, learn=learn, surprise=surprise)
        x = x_BTE + mixed.y
        return Mixed(x + self.mlp(self.mlp_norm(x)), mixed.state, mixed.surprise)
