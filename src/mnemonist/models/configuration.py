"""What a model is made of: a list of block kinds, their sizes, and the rule by which its memories learn.

No torch in here: the command line builds its options from these dataclasses and lists the tables at once.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mnemonist.errors import nearest
from mnemonist.memory.rule import MemoryRule, find_rule


@dataclass(frozen=True)
class BlockInfo:
    """One row of `BLOCKS`."""

    summary: str
    source: str
    memory: bool
    """Whether it has a memory that learns while it reads."""


BLOCKS: Mapping[str, BlockInfo] = {
    "lmm": BlockInfo(
        "the neural memory alone, in place of attention",
        "Titans (arXiv 2501.00663) section 4.3, LMM; with another rule: that paper's layer",
        memory=True,
    ),
    "mag": BlockInfo(
        "sliding-window attention gated by the memory, both reading the same input",
        "Titans (arXiv 2501.00663) section 4.2, eq. 26-28, MAG",
        memory=True,
    ),
    "window": BlockInfo(
        "sliding-window attention alone",
        "Beltagy et al. 2020 (arXiv 2004.05150); the short-term half of MAG",
        memory=False,
    ),
    "attention": BlockInfo(
        "full causal attention",
        "Vaswani et al. 2017 (arXiv 1706.03762) with RoPE (arXiv 2104.09864)",
        memory=False,
    ),
}
"""The kinds of block a model can be a list of."""


@dataclass(frozen=True)
class ModelConfig:
    """A language model as a list of blocks.

    Raises:
        ValueError: a size is not positive, or a block or rule is unknown; the message says which.
    """

    blocks: tuple[str, ...] = ("mag", "mag")
    """Kinds of block from the input up; any mixture of those that `mnemonist models` lists."""
    rule: str = "titans"
    """How the memories learn: a name from `mnemonist models`, with changes if any: titans:depth=3,chunk_size=32."""
    vocab_size: int = 259
    """Token ids; bytes and three marks by default."""
    width: int = 128
    """Width of the embeddings."""
    heads: int = 4
    """Attention heads."""
    head_dim: int = 32
    """Width of an attention head; even, for RoPE."""
    memory_heads: int = 4
    """Memories per block."""
    memory_head_dim: int = 32
    """Width of the keys and values of a memory."""
    window: int = 64
    """Tokens that sliding-window attention sees, the present one included."""
    persistent_tokens: int = 4
    """Learned tokens that every attention also sees (Titans eq. 19)."""
    mlp_width: int = 344
    """Hidden width of the gated MLP of every block."""
    conv_size: int = 4
    """Tokens that the memory's short convolution sees; 1 leaves it out."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))  # JSON and command lines bring lists
        if not self.blocks:
            raise ValueError("blocks is empty; a model needs at least one block.")
        for kind in self.blocks:
            if kind not in BLOCKS:
                raise ValueError(
                    f"There is no block {kind!r}{nearest(kind, BLOCKS)}; known blocks: {', '.join(BLOCKS)}."
                )
        find_rule(self.rule)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "persistent_tokens" else 1
            if isinstance(value, int) and value < least:
                raise ValueError(f"{field.name} is {value}; it must be at least {least}.")
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; rotary positions need an even number.")

    @property
    def has_memory(self) -> bool:
        """Whether any block learns while it reads."""
        return any(BLOCKS[kind].memory for kind in self.blocks)

    @property
    def memory_rule(self) -> MemoryRule:
        """The rule with its changes applied."""
        return find_rule(self.rule)

    def replace(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed; validated like any other."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """The fields as JSON text; `from_json` reads it back."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Read what `to_json` wrote.

        Raises:
            ValueError: not a model configuration of this version.
        """
        try:
            return cls(**json.loads(text))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"This is not a model configuration of this version: {error}.") from error


PRESETS: Mapping[str, ModelConfig] = {
    "mag-tiny": ModelConfig(),
    "lmm-tiny": ModelConfig(blocks=("lmm", "lmm")),
    "window-tiny": ModelConfig(blocks=("window", "window")),
    "attention-tiny": ModelConfig(blocks=("attention", "attention")),
}
"""Named configurations."""


def find_preset(name: str) -> ModelConfig:
    """The row of `PRESETS` with this name.

    Raises:
        ValueError: no preset has this name; the message suggests the nearest one.
    """
    if name not in PRESETS:
        raise ValueError(f"There is no preset {name!r}{nearest(name, PRESETS)}; known presets: {', '.join(PRESETS)}.")
    return PRESETS[name]
