"""A language model: embeddings, a list of blocks, and logits from the same embeddings."""

from __future__ import annotations

import os
import textwrap
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mnemonist.errors import UserError
from mnemonist.memory.reading import Surprise
from mnemonist.models.blocks import Block, BlockState
from mnemonist.models.configuration import ModelConfig
from mnemonist.models.documents import gather_documents, put_back
from mnemonist.models.normalisation import RMSNorm
from mnemonist.models.state import StreamState, join_states
from mnemonist.tensors import load_tensors, save_tensors

FORMAT = "mnemonist-model/1"
INITIAL_STD = 0.02


@dataclass(frozen=True)
class ModelState(StreamState):
    """What a model has become while reading; constant in size unless a block attends to everything."""

    blocks: tuple[BlockState, ...]


@dataclass(frozen=True)
class ModelOutput:
    """What reading a piece of text gave."""

    logits: Tensor
    """``[B, T, vocab]``: scores of the token after each token."""
    state: ModelState
    """Pass it back as ``state=`` to read on."""
    surprise: dict[int, Surprise]
    """Per block that has a memory, if asked for."""


class LanguageModel(nn.Module):
    """Reads token ids ``[B, T]`` and says what comes next, its memories learning at every token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config, kind) for kind in config.blocks)
        self.norm = RMSNorm(config.width)
        self._initialise()

    @property
    def parameter_count(self) -> int:
        """Numbers that training learns."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _initialise(self) -> None:
        """Small normal weights; what ends a branch is smaller in deep models (Radford et al. 2019, section 2.3)."""
        nn.init.normal_(self.embedding.weight, std=INITIAL_STD)
        branches = 2 * len(self.blocks)
        for name, parameter in self.named_parameters():
            if name.endswith(("in_proj.weight", "gate_up.weight", "out_gate.weight")) or ".attention." in name:
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
            elif name.endswith(("down.weight", "out_proj.weight")):
                nn.init.normal_(parameter, std=(parameter.shape[-1] * branches) ** -0.5)

    def forward(
        self,
        tokens: Tensor,
        state: ModelState | None = None,
        mask: Tensor | None = None,
        *,
        starts: Tensor | None = None,
        learn: bool = True,
        surprise: bool = False,
    ) -> ModelOutput:
        """Read a piece of text.

        Args:
            tokens: int64 ``[B, T]``.
            state: what an earlier call returned, or None at the beginning.
            mask: bool ``[B, T]``, False on padding: it changes nothing, and its logits mean nothing.
            starts: bool ``[B, T]``, True where a document begins in the middle of a row: nothing that was read
                before, by memory, convolution or attention, reaches it. The ``state`` returned is that of the last
                document of each row; one that is given belongs to the text before the first start.
            learn: False reads with every memory as it is.
            surprise: whether to report the surprise of every memory.

        Raises:
            ValueError: ids outside the vocabulary, an empty piece, a state of another model or batch size, or
                ``starts`` together with ``mask``.
        """
        self._check(tokens, state)
        if starts is None:
            return self._read(tokens, state, mask, learn, surprise)
        if mask is not None:
            raise ValueError("starts (packed documents) cannot be combined with mask; read them apart.")
        return self._read_documents(tokens, state, starts, learn, surprise)

    def _read(
        self, tokens: Tensor, state: ModelState | None, mask: Tensor | None, learn: bool, surprise: bool
    ) -> ModelOutput:
        x = self.embedding(tokens)
        states: list[BlockState] = []
        seen: dict[int, Surprise] = {}
        for i, block in enumerate(self.blocks):
            mixed = block(x, None if state is None else state.blocks[i], mask, learn=learn, surprise=surprise)
            x = mixed.y
            states.append(mixed.state)
            if mixed.surprise is not None:
                seen[i] = mixed.surprise
        logits = nn.functional.linear(self.norm(x), self.embedding.weight)
        return ModelOutput(logits, ModelState(tuple(states)), seen)

    def _read_documents(
        self, tokens: Tensor, state: ModelState | None, starts: Tensor, learn: bool, surprise: bool
    ) -> ModelOutput:
        """Give every document a row of its own, read, and put the answers back where their tokens were."""
        groups = gather_documents(starts, state is not None)
        if not groups:
            return self._read(tokens, state, None, learn, surprise)
        flat, shape = tokens.flatten(), tokens.shape
        outputs = []
        for group in groups:
            before = state.select(group.row) if state is not None and group.carried else None
            outputs.append(self._read(flat[group.source], before, group.mask, learn, surprise))

        seen = {}
        for block in outputs[0].surprise:
            reports = [vars(output.surprise[block]) for output in outputs]
            seen[block] = Surprise(
                **{
                    name: None if reports[0][name] is None else put_back(groups, [r[name] for r in reports], shape)
                    for name in reports[0]
                }
            )
        last = join_states(
            [output.state.select(group.ends.nonzero()[:, 0]) for group, output in zip(groups, outputs, strict=True)]
        )
        order = torch.cat([group.row[group.ends] for group in groups]).argsort()
        logits = put_back(groups, [output.logits for output in outputs], shape)
        return ModelOutput(logits, last.select(order), seen)

    def _check(self, tokens: Tensor, state: ModelState | None) -> None:
        if tokens.dim() != 2 or tokens.numel() == 0:
            raise ValueError(f"tokens is {list(tokens.shape)}; it must be [B, T] with at least one token.")
        low, high = tokens.aminmax()
        if int(low) < 0 or int(high) >= self.config.vocab_size:
            raise ValueError(
                f"token ids run from {int(low)} to {int(high)}, but the vocabulary has ids 0 to "
                f"{self.config.vocab_size - 1}; use the model's own tokenizer."
            )
        if state is not None and len(state.blocks) != len(self.blocks):
            raise ValueError(
                f"The state has {len(state.blocks)} blocks but the model {len(self.blocks)}; it is of another model."
            )
        if state is not None and state.batch != len(tokens):
            raise ValueError(
                f"The state has {state.batch} rows but the batch has {len(tokens)}; state.select(rows) changes it."
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and configuration as one safetensors file, whole or not at all.

        Raises:
            FileError: the file cannot be written.
        """
        save_tensors(path, self.state_dict(), format=FORMAT, config=self.config.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str | torch.device = "cpu") -> LanguageModel:
        """Read what `save` wrote; nothing in the file is executed.

        Raises:
            UserError: there is no such file, or it is not a model of this version.
        """
        tensors, header = load_tensors(path, FORMAT, device)
        try:
            model = cls(ModelConfig.from_json(header.get("config", "")))
            model.load_state_dict(tensors)
        except (ValueError, TypeError, RuntimeError) as error:
            reason = textwrap.shorten(str(error), 300)  # torch lists every tensor, on lines of their own
            raise UserError(f"{path} does not hold the weights its configuration asks for: {reason}") from error
        return model.to(device)
