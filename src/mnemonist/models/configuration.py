"""What a model is made of: a list of block kinds, their sizes, and the rule by which its memories learn.

No torch in here: the command line builds its options from these dataclasses and lists the tables at once.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mnemonist.choices import parse_choices
from mnemonist.errors import nearest
from mnemonist.memory.rule import MemoryRule, find_rule

MODEL_TYPE, CONFIG_FILE = "mnemonist", "config.json"
"""What our folders say they hold, as those of transformers do, and where."""


@dataclass(frozen=True)
class BlockInfo:
    """One row of `BLOCKS`."""

    summary: str
    source: str
    memory: bool
    """Whether it has a memory that learns while it reads."""
    choices: tuple[str, ...] = ()
    """Fields of `BlockChoices` that it knows."""


@dataclass(frozen=True)
class BlockChoices:
    """A kind of block with what the paper leaves open about it; as text, ``mag:gate=sigmoid``.

    Raises:
        ValueError: the kind or a choice is unknown.
    """

    kind: str
    """A row of `BLOCKS`."""
    gate: str = "silu"
    """mac, mag: what weighs attention by the memory (Titans eq. 25, 28): silu or sigmoid; or add, which adds what the
    memory says, at first nothing, to what attention says: for models that were trained without a memory."""
    skip: bool = True
    """mac, mal: residual connections within the mixer (Titans section 4.4): what comes second is given the text beside
    what the first made of it (eq. 24, 31), and adds to it."""

    def __post_init__(self) -> None:
        if self.kind not in BLOCKS:
            raise ValueError(
                f"There is no block {self.kind!r}{nearest(self.kind, BLOCKS)}; known blocks: {', '.join(BLOCKS)}."
            )
        if self.gate not in ("silu", "sigmoid", "add"):
            raise ValueError(f"gate is {self.gate!r}; it must be silu, sigmoid or add.")


BLOCKS: Mapping[str, BlockInfo] = {
    "lmm": BlockInfo(
        "the neural memory alone, in place of attention",
        "Titans (arXiv 2501.00663) section 4.3, LMM; with another rule: that paper's layer",
        memory=True,
    ),
    "mac": BlockInfo(
        "attention within a segment over the text and what the memory recalls for it; the memory learns the result",
        "Titans (arXiv 2501.00663) section 4.1, eq. 21-25, MAC, made causal",
        memory=True,
        choices=("gate", "skip"),
    ),
    "mag": BlockInfo(
        "sliding-window attention gated by the memory, both reading the same input",
        "Titans (arXiv 2501.00663) section 4.2, eq. 26-28, MAG",
        memory=True,
        choices=("gate",),
    ),
    "mal": BlockInfo(
        "the memory first, then sliding-window attention over what it made of the text",
        "Titans (arXiv 2501.00663) section 4.3, eq. 29-31, MAL",
        memory=True,
        choices=("skip",),
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


def find_block(block: str) -> BlockChoices:
    """A row of `BLOCKS` by name, with choices if wanted: ``"mag:gate=sigmoid"``.

    Raises:
        ValueError: no block or choice has this name (the message suggests the nearest one), or a value does not fit.
    """
    kind, _, changes = block.partition(":")
    plain = BlockChoices(kind)
    if not changes:
        return plain
    values = parse_choices(BlockChoices, changes, f"the block {kind!r}", BLOCKS[kind].choices)
    return dataclasses.replace(plain, **values)


@dataclass(frozen=True)
class ModelConfig:
    """A language model as a list of blocks.

    Raises:
        ValueError: a size is not positive, or a block or rule is unknown; the message says which.
    """

    blocks: tuple[str, ...] = ("mag", "mag")
    """Kinds of block from the input up, mixed at will: mag, mag:gate=sigmoid; `mnemonist models` lists them."""
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
    """Tokens that sliding-window attention sees, the present one included; for mac, the tokens of a segment."""
    persistent_tokens: int = 4
    """Learned tokens that every attention also sees (Titans eq. 19)."""
    mlp_width: int = 344
    """Hidden width of the gated MLP of every block."""
    conv_size: int = 4
    """Tokens that the memory's short convolution sees; 1 leaves it out."""
    step_bound: float | None = None
    """Largest displacement of one write, where step sizes follow from tokens; None takes the rule's bound, at which a
    write replaces what its key held. Up to 2, deltanet can also turn it around (arXiv 2411.12537): eigenvalues in
    [-1, 1], which counting needs."""
    kv_heads: int | None = None
    """Heads of keys and values in attention, each shared by several heads of queries (arXiv 2305.13245); None: as many
    as there are heads."""
    rope_base: float = 10000.0
    """Base of the angles by which attention turns queries and keys (arXiv 2104.09864)."""
    rope_stretch: tuple[float, float, float, float] | None = None
    """Slower turns for longer texts, as in Llama 3.1: factor, low, high, and the length that was first trained at."""
    qkv_bias: bool = False
    """Whether queries, keys and values of attention have a bias, as in Qwen 2."""
    qk_norm: bool = False
    """Whether attention normalises queries and keys head by head, as in Qwen 3 (arXiv 2302.05442)."""
    norm_eps: float = 1e-6
    """Of the norms before each half of a block and after the last: what keeps a vector of zeros finite."""
    tied: bool = True
    """Whether logits come from the embeddings; else from weights of their own."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))  # JSON and command lines bring lists
        if self.rope_stretch is not None:
            object.__setattr__(self, "rope_stretch", tuple(self.rope_stretch))
            self._check_stretch(self.rope_stretch)
        if not self.blocks:
            raise ValueError("blocks is empty; a model needs at least one block.")
        for block in self.blocks:
            find_block(block)
        find_rule(self.rule)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "persistent_tokens" else 1
            if isinstance(value, int) and not isinstance(value, bool) and value < least:
                raise ValueError(f"{field.name} is {value}; it must be at least {least}.")
        if self.step_bound is not None and not (0 < self.step_bound < math.inf):
            raise ValueError(f"step_bound is {self.step_bound}; it must be a positive number, or None.")
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; rotary positions need an even number.")
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"kv_heads is {self.kv_heads}; it must divide heads, which is {self.heads}.")
        for name in ("rope_base", "norm_eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a positive number.")

    @staticmethod
    def _check_stretch(stretch: tuple[float, ...]) -> None:
        sound = len(stretch) == 4 and all(0 < number < math.inf for number in stretch) and stretch[1] < stretch[2]
        if not sound:
            raise ValueError(
                f"rope_stretch is {stretch}; it must be four positive numbers: factor, low, high (above low), length."
            )

    @property
    def has_memory(self) -> bool:
        """Whether any block learns while it reads."""
        return any(BLOCKS[find_block(block).kind].memory for block in self.blocks)

    @property
    def memory_rule(self) -> MemoryRule:
        """The rule with its changes applied."""
        return find_rule(self.rule)

    def replace(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed; validated like any other."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """The fields as JSON text; `from_json` reads it back.

        Those of attention that have been added are left out where they say nothing: models without them, and the
        sessions and runs that name them by this text, stay what they were.
        """
        fields = dataclasses.asdict(self)
        for field in dataclasses.fields(self):
            if field.name in _ADDED and fields[field.name] == field.default:
                del fields[field.name]
        return json.dumps(fields, indent=2, sort_keys=True)

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


_ADDED = frozenset({"kv_heads", "rope_base", "rope_stretch", "qkv_bias", "qk_norm", "norm_eps", "tied"})


@dataclass(frozen=True)
class _Size:
    """What models of one size have in common, and the width of the MLP that brings each kind of block to it."""

    blocks: int
    width: int
    heads: int
    head_dim: int
    window: int
    persistent_tokens: int
    vocab_size: int
    mlp_width: Mapping[str, int]

    def config(self, block: str) -> ModelConfig:
        return ModelConfig(
            blocks=(block,) * self.blocks,
            vocab_size=self.vocab_size,
            width=self.width,
            heads=self.heads,
            head_dim=self.head_dim,
            memory_heads=self.heads,
            memory_head_dim=self.head_dim,
            window=self.window,
            persistent_tokens=self.persistent_tokens,
            mlp_width=self.mlp_width[block],
        )


def _widths(lmm: int, mac: int, mag: int, mal: int, window: int, attention: int) -> Mapping[str, int]:
    return {"lmm": lmm, "mac": mac, "mag": mag, "mal": mal, "window": window, "attention": attention}


# The paper gives sizes and a vocabulary of 32,000; blocks, widths and heads are not in it (docs/titans-choices.md).
# Up to 50m the models are made for bytes.
_SIZES = {
    "1m": _Size(3, 128, 4, 32, 64, 4, 259, _widths(528, 272, 360, 360, 664, 664)),
    "4m": _Size(4, 256, 4, 64, 128, 4, 259, _widths(672, 160, 328, 328, 936, 936)),
    "15m": _Size(6, 384, 6, 64, 128, 4, 259, _widths(1336, 560, 824, 824, 1640, 1640)),
    "50m": _Size(10, 512, 8, 64, 256, 16, 259, _widths(2208, 1176, 1520, 1520, 2560, 2560)),
    "170m": _Size(12, 768, 12, 64, 512, 16, 32000, _widths(3792, 2248, 2760, 2760, 4232, 4232)),
    "340m": _Size(20, 1024, 16, 64, 512, 16, 32000, _widths(3104, 1048, 1728, 1728, 3632, 3632)),
    "400m": _Size(24, 1024, 16, 64, 512, 16, 32000, _widths(3080, 1032, 1712, 1712, 3608, 3608)),
    "760m": _Size(20, 1536, 24, 64, 512, 16, 32000, _widths(4952, 1872, 2896, 2904, 5656, 5656)),
}

PRESETS: Mapping[str, ModelConfig] = {
    "mag-tiny": ModelConfig(),
    "lmm-tiny": ModelConfig(blocks=("lmm", "lmm")),
    "window-tiny": ModelConfig(blocks=("window", "window")),
    "attention-tiny": ModelConfig(blocks=("attention", "attention")),
} | {f"{block}-{name}": size.config(block) for name, size in _SIZES.items() for block in size.mlp_width}
"""Named configurations: a kind of block and a size. Those of one size have equally many parameters, within 1%."""


def find_preset(name: str) -> ModelConfig:
    """The row of `PRESETS` with this name.

    Raises:
        ValueError: no preset has this name; the message suggests the nearest one.
    """
    if name not in PRESETS:
        raise ValueError(f"There is no preset {name!r}{nearest(name, PRESETS)}; known presets: {', '.join(PRESETS)}.")
    return PRESETS[name]
