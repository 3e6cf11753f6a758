"""Blocks: what a model is a list of. Each mixes tokens (by attention, by a memory, or both), then thinks per token.

    x = x + mixer(norm(x));    x = x + mlp(norm(x))

A mixer is a class with one signature, `Mixer`; a new block kind is a new class and a row in `BLOCKS` and `MIXERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mnemonist.memory.kernels.native_elementwise import gated_halves
from mnemonist.memory.reading import Surprise
from mnemonist.models.attention import AttentionState, CausalAttention
from mnemonist.models.configuration import BlockChoices, ModelConfig, find_block
from mnemonist.models.context import ContextState, MemoryContext
from mnemonist.models.linear import Linear
from mnemonist.models.neural_memory import NeuralMemory, NeuralMemoryState
from mnemonist.models.normalisation import RMSNorm, gated_norms
from mnemonist.models.state import StreamState, join_states


@dataclass(frozen=True)
class BlockState(StreamState):
    """What a block remembers of a stream; a part is None if the block has no such part."""

    attention: AttentionState | None = None
    memory: NeuralMemoryState | None = None
    context: ContextState | None = None


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

    def initial_state(self, x_BTE: Tensor) -> BlockState:
        """The state before the first token, for the rows of ``x``: those of the parts that a mixer has."""
        parts = {name: getattr(self, name, None) for name in ("attention", "memory", "context")}
        return BlockState(**{name: part.initial_state(x_BTE) for name, part in parts.items() if part is not None})


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

    Persistent tokens are seen by attention; the memory has its learned initial weights instead.
    """

    def __init__(self, config: ModelConfig, choices: BlockChoices) -> None:
        super().__init__()
        self.attention = attention(config, config.window)
        self.memory = memory(config)
        self.gate = Gate(config.width, choices.gate)

    def forward(
        self, x_BTE: Tensor, state: BlockState, mask_BT: Tensor | None, *, learn: bool, surprise: bool
    ) -> Mixed:
        near, attended = self.attention(x_BTE, state.attention, mask_BT)
        far, memorised, seen = self.memory(x_BTE, state.memory, mask_BT, learn=learn, surprise=surprise)
        return Mixed(self.gate(near, far), BlockState(attended, memorised), seen)


class MemoryAsContext(Mixer):
    """MAC: attention over a segment and what the memory recalls for it; the memory learns the result (eq. 21-25).

    By default the memory is given the text beside what attention says, and what attention says is added to what comes
    of both (section 4.4 has residual connections everywhere). With ``skip=false`` the memory learns what attention
    says and nothing else, and everything passes through the gate, as eq. 24-25 are printed.
    """

    def __init__(self, config: ModelConfig, choices: BlockChoices) -> None:
        super().__init__()
        self.context = MemoryContext(attention(config, None), memory(config), config.window, skip=choices.skip)
        self.gate = Gate(config.width, choices.gate)
        self.skip = choices.skip

    def forward(
        self, x_BTE: Tensor, state: BlockState, mask_BT: Tensor | None, *, learn: bool, surprise: bool
    ) -> Mixed:
        near, far, after, seen = self.context(x_BTE, state.context, mask_BT, learn=learn, surprise=surprise)
        y = self.gate(near, far)
        return Mixed(near + y if self.skip else y, BlockState(context=after), seen)


class MemoryAsLayer(Mixer):
    """MAL: the memory first, then a window of attention over what it made of the text (eq. 29-31).

    By default each half is added to what it was given (section 4.4 has residual connections everywhere); with
    ``skip=false`` attention sees the memory's answers and nothing else, as eq. 30-31 are printed.
    """

    def __init__(self, config: ModelConfig, choices: BlockChoices) -> None:
        super().__init__()
        self.memory = memory(config)
        self.norm = RMSNorm(config.width)
        self.attention = attention(config, config.window)
        self.skip = choices.skip

    def forward(
        self, x_BTE: Tensor, state: BlockState, mask_BT: Tensor | None, *, learn: bool, surprise: bool
    ) -> Mixed:
        far, memorised, seen = self.memory(x_BTE, state.memory, mask_BT, learn=learn, surprise=surprise)
        near, attended = self.attention(self.norm(x_BTE + far if self.skip else far), state.attention, mask_BT)
        return Mixed(far + near if self.skip else near, BlockState(attended, memorised), seen)


class Gate(nn.Module):
    """``norm(near) * sigma(norm(far))``: what attention says of the near past, weighed by the memory of the far one.

    The paper normalises both with learned weights and leaves ``sigma`` open (section 4.2). SiLU, its choice elsewhere,
    lets the memory pass content on; a sigmoid can only let through or mask. With ``add``, which is ours, the answer of
    the memory is added to what attention says, each channel times a learned weight that begins at zero: attention that
    was trained without a memory goes on as it was.
    """

    def __init__(self, width: int, sigma: str) -> None:
        super().__init__()
        self.sigma = sigma
        self.far_norm = RMSNorm(width)
        if sigma == "add":
            nn.init.zeros_(self.far_norm.weight)
        else:
            self.near_norm = RMSNorm(width)

    def forward(self, near: Tensor, far: Tensor) -> Tensor:
        """``[..., E], [..., E] -> [..., E]``."""
        if self.sigma == "add":
            return near + self.far_norm(far)
        if self.sigma == "sigmoid":
            return self.near_norm(near) * torch.sigmoid(self.far_norm(far))
        return gated_norms(far, near, self.near_norm, self.far_norm)


MIXERS: dict[str, Callable[[ModelConfig, BlockChoices], Mixer]] = {
    "lmm": lambda config, choices: MemoryMixer(config),
    "mac": MemoryAsContext,
    "mag": MemoryAsGate,
    "mal": MemoryAsLayer,
    "window": lambda config, choices: AttentionMixer(config, config.window),
    "attention": lambda config, choices: AttentionMixer(config, None),
}


def attention(config: ModelConfig, window: int | None) -> CausalAttention:
    """The attention half of a block."""
    return CausalAttention(
        config.width,
        config.heads,
        config.head_dim,
        window=window,
        persistent_tokens=config.persistent_tokens,
        kv_heads=config.kv_heads,
        rope_base=config.rope_base,
        rope_stretch=config.rope_stretch,
        bias=config.qkv_bias,
        norm_eps=config.norm_eps if config.qk_norm else None,
    )


def memory(config: ModelConfig) -> NeuralMemory:
    """The memory half of a block."""
    return NeuralMemory(
        config.width,
        config.memory_heads,
        config.memory_head_dim,
        config.memory_rule,
        conv_size=config.conv_size,
        step_bound=config.step_bound,
    )


class GatedMLP(nn.Module):
    """SwiGLU: ``down(silu(gate(x)) * up(x))`` (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = Linear(width, 2 * hidden, bias=False)
        self.down = Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., E] -> [..., E]``."""
        return self.down(gated_halves(self.gate_up(x)))


class Block(nn.Module):
    """One block of any kind."""

    def __init__(self, config: ModelConfig, kind: str) -> None:
        super().__init__()
        choices = find_block(kind)
        self.mixer_norm = RMSNorm(config.width, config.norm_eps)
        self.mixer = MIXERS[choices.kind](config, choices)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = GatedMLP(config.width, config.mlp_width)

    def forward(
        self,
        x_BTE: Tensor,
        state: BlockState | None = None,
        mask_BT: Tensor | None = None,
        *,
        learn: bool = True,
        surprise: bool = False,
        beginning: int = 0,
    ) -> Mixed:
        """Read a piece of a stream; padding yields whatever it likes and changes nothing else.

        The last rows, ``beginning`` of them, begin here: a state that is given is of the rows before them.
        """
        if state is not None and beginning:
            state = join_states([state, self.initial_state(x_BTE[-beginning:])])
        mixed = self.mix(x_BTE, state or BlockState(), mask_BT, learn=learn, surprise=surprise)
        return Mixed(self.think(x_BTE + mixed.y), mixed.state, mixed.surprise)

    def mix(self, x_BTE: Tensor, state: BlockState, mask_BT: Tensor | None, *, learn: bool, surprise: bool) -> Mixed:
        """What the block adds from other tokens: ``mixer(norm(x))``; see `Mixer.forward`."""
        mixed: Mixed = self.mixer(self.mixer_norm(x_BTE), state, mask_BT, learn=learn, surprise=surprise)
        return mixed

    def think(self, x_BTE: Tensor) -> Tensor:
        """``x + mlp(norm(x))``, token by token."""
        return x_BTE + self.mlp(self.mlp_norm(x_BTE))

    def initial_state(self, x_BTE: Tensor) -> BlockState:
        """The state before the first token, for the rows of ``x``."""
        return self.mixer.initial_state(x_BTE)
