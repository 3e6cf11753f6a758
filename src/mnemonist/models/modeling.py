"""A language model: embeddings, a list of blocks, and logits, from the same embeddings unless told otherwise."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mnemonist.data import Tokenizer
from mnemonist.memory.eager import eager
from mnemonist.memory.kernels import native_linear_layer
from mnemonist.memory.kernels.native_linear_layer import linear
from mnemonist.memory.reading import Surprise
from mnemonist.models.blocks import Block, BlockState
from mnemonist.models.configuration import ModelConfig
from mnemonist.models.documents import gather_documents, put_back
from mnemonist.models.folder import misfit, read_model, save_model
from mnemonist.models.linear import Linear
from mnemonist.models.neural_memory import GATES
from mnemonist.models.normalisation import RMSNorm
from mnemonist.models.session import Progress, Reading, Session, read_tokens
from mnemonist.models.state import StreamState
from mnemonist.tensors import content_hash

INITIAL_STD = 0.02
ALL = slice(None)


@dataclass(frozen=True)
class ModelState(StreamState):
    """What a model has become while reading; constant in size unless a block attends to everything."""

    blocks: tuple[BlockState, ...]


@dataclass(frozen=True)
class ModelOutput:
    """What reading a piece of text gave."""

    logits: Tensor
    """``[B, T, vocab]``: scores of the token after each token (or after those asked for)."""
    state: ModelState
    """Pass it back as ``state=`` to read on."""
    surprise: dict[int, Surprise]
    """Per block that has a memory, if asked for."""
    hidden: tuple[Tensor, ...] | None = None
    """``[B, T, E]`` before the first block and after each one, the last one normalised; if asked for."""


class LanguageModel(nn.Module):
    """Reads token ids ``[B, T]`` and says what comes next, its memories learning at every token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config, kind) for kind in config.blocks)
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = None if config.tied else Linear(config.width, config.vocab_size, bias=False)
        self.gradient_checkpointing = False
        """Whether training keeps what enters each block alone, and computes its inside again on the way back."""
        self._initialise()

    @property
    def unembedding(self) -> Tensor:
        """``[vocab, E]``: what gives the logits."""
        return self.embedding.weight if self.head is None else self.head.weight

    @property
    def parameter_count(self) -> int:
        """Numbers that training learns."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def dtype(self) -> torch.dtype:
        """Of everything but perhaps its matrices (`matrices_to`): what goes from block to block, states, logits."""
        return self.norm.weight.dtype

    def matrices(self) -> Iterator[nn.Parameter]:
        """What a token waits for when a model writes: embeddings, head, and the matrices of linear layers.

        Small ones are left out, for to read them faster would gain nothing, and those of gates, which are read with
        their tokens in one pass of another kernel.
        """
        for name, module in self.named_modules():
            if (isinstance(module, Linear | nn.Embedding) or module is self.head) and GATES.isdisjoint(name.split(".")):
                weight: nn.Parameter = cast(Any, module).weight
                if weight.numel() >= native_linear_layer.LEAST_WEIGHTS:
                    yield weight

    def matrices_to(self, dtype: torch.dtype) -> LanguageModel:
        """Hold its `matrices` in another type, in place: a model in bfloat16 takes half the memory and writes faster.

        All else is computed and kept as before: a model whose matrices were in bfloat16 once, as many are published,
        says bit for bit what it said. Matrices that were not are rounded. To train them, take them back:
        ``model.float()``.

        Args:
            dtype: torch.bfloat16, or `dtype`.

        Returns:
            The model itself.

        Raises:
            ValueError: another type.
        """
        if dtype not in (torch.bfloat16, self.dtype):
            raise ValueError(f"dtype is {dtype}; matrices are held in torch.bfloat16, or in {self.dtype} as all else.")
        for matrix in self.matrices():
            matrix.data, matrix.grad = matrix.data.to(dtype), None
        return self

    def _halves(self) -> Iterator[nn.Parameter]:
        """Matrices in bfloat16 where all else is wider."""
        return (matrix for matrix in self.matrices() if matrix.dtype == torch.bfloat16 != self.dtype)

    def _initialise(self) -> None:
        """Small normal weights; what ends a branch is smaller in deep models (Radford et al. 2019, section 2.3)."""
        nn.init.normal_(self.embedding.weight, std=INITIAL_STD)
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=INITIAL_STD)
        branches = 2 * len(self.blocks)
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
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
        hidden: bool = False,
        positions: slice | Tensor = ALL,
    ) -> ModelOutput:
        """Read a piece of text.

        Args:
            tokens: int64 ``[B, T]``, or embeddings ``[B, T, E]`` of any origin.
            state: what an earlier call returned, or None at the beginning.
            mask: bool ``[B, T]``, False on padding: it changes nothing, and its logits mean nothing.
            starts: bool ``[B, T]``, True where a document begins in the middle of a row: nothing that was read
                before, by memory, convolution or attention, reaches it. The ``state`` returned is that of the last
                document of each row; one that is given belongs to the text before the first start.
            learn: False reads with every memory as it is.
            surprise: whether to report the surprise of every memory.
            hidden: whether to return what went from block to block.
            positions: those of the ``T`` tokens that logits are wanted for: a slice, or int64 indices; or bool
                ``[B, T]``, which gives logits ``[N, vocab]`` of the N tokens where it is True, row by row.

        Raises:
            ValueError: ids outside the vocabulary, an empty piece, a state of another model or batch size,
                ``starts`` together with ``mask``, ``hidden`` or ``positions``, or matrices of another type
                (`matrices_to`) that are to be trained.
        """
        self._check(tokens, state)
        if starts is None:
            return self._read(tokens, state, mask, learn, surprise, hidden, positions)
        if mask is not None or hidden or positions is not ALL:
            raise ValueError(
                "starts (packed documents) cannot be combined with mask, hidden or positions; read them apart."
            )
        return self._read_documents(tokens, state, starts, learn, surprise)

    def _read(
        self,
        tokens: Tensor,
        state: ModelState | None,
        mask: Tensor | None,
        learn: bool,
        surprise: bool,
        hidden: bool = False,
        positions: slice | Tensor = ALL,
        beginning: int = 0,
    ) -> ModelOutput:
        x = tokens if tokens.is_floating_point() else self.embedding(tokens)
        if self.embedding.weight.dtype != self.dtype:
            x = x.to(self.dtype)
        between = [x]
        states: list[BlockState] = []
        seen: dict[int, Surprise] = {}
        how: dict[str, Any] = {"learn": learn, "surprise": surprise, "beginning": beginning}
        for i, block in enumerate(self.blocks):
            before = None if state is None else state.blocks[i]
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                mixed = checkpoint(block, x, before, mask, use_reentrant=False, **how)
            else:
                mixed = block(x, before, mask, **how)
            x = mixed.y
            states.append(mixed.state)
            if hidden:
                between.append(x)
            if mixed.surprise is not None:
                seen[i] = mixed.surprise
        x = self.norm(x)
        each = isinstance(positions, Tensor) and positions.dtype == torch.bool
        logits = linear(x[positions] if each else x[:, positions], self.unembedding)
        return ModelOutput(logits, ModelState(tuple(states)), seen, (*between[:-1], x) if hidden else None)

    def initial_state(self, batch: int = 1) -> ModelState:
        """The state before the first token of ``batch`` streams: reading from it is reading from the beginning."""
        x = self.norm.weight.new_empty(batch, 0, self.config.width)
        return ModelState(tuple(cast(Block, block).initial_state(x) for block in self.blocks))

    def _read_documents(
        self, tokens: Tensor, state: ModelState | None, starts: Tensor, learn: bool, surprise: bool
    ) -> ModelOutput:
        """Give every document a row of its own, read, and put the answers back where their tokens were."""
        documents = gather_documents(starts, state is not None)
        if documents is None:
            return self._read(tokens, state, None, learn, surprise)
        flat, shape, carried = tokens.flatten(0, 1), tokens.shape[:2], documents.carried
        before = state.select(documents.row[:carried]) if state is not None and carried else None
        beginning = len(documents.row) - carried
        read = self._read(flat[documents.source], before, documents.mask, learn, surprise, beginning=beginning)
        seen = {i: report.each(lambda part: put_back(documents, part, shape)) for i, report in read.surprise.items()}
        last = documents.ends.nonzero()[:, 0]
        last = last[documents.row[last].argsort()]
        return ModelOutput(put_back(documents, read.logits, shape), read.state.select(last), seen)

    @eager
    def _check(self, tokens: Tensor, state: ModelState | None) -> None:
        """The shapes, the ids and the state of a call."""
        if self.training and torch.is_grad_enabled() and any(matrix.requires_grad for matrix in self._halves()):
            raise ValueError(
                "The model's matrices are in bfloat16, which would round most steps of training away; train "
                "model.float(), or hold them: requires_grad_(False)."
            )
        embedded = tokens.is_floating_point()
        if tokens.dim() != 2 + embedded or tokens.numel() == 0:
            raise ValueError(f"tokens is {list(tokens.shape)}; it must be [B, T] with at least one token.")
        if embedded and tokens.shape[2] != self.config.width:
            raise ValueError(f"The embeddings are {tokens.shape[2]} wide, but the model is {self.config.width}.")
        if not embedded:
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

    def read(
        self,
        tokens: Tensor,
        session: Session | None = None,
        *,
        learn: bool = True,
        surprise: bool = False,
        progress: Progress | None = None,
    ) -> tuple[Reading, Session]:
        """Read a text of any length, without gradients, and keep what the model has become.

        Reading on from the session, now or in another process, gives the very bits of reading both at once.

        Args:
            tokens: int64 ``[B, T]``.
            session: what an earlier call returned, or None at the beginning.
            learn: False reads with every memory as it is.
            surprise: whether to report the surprise of every memory.
            progress: called after each piece with tokens read so far and tokens in all.

        Raises:
            ValueError: nothing to read, ids outside the vocabulary, or a session of another number of streams.
            UserError: the session is of another model.
        """
        return read_tokens(self, tokens, session, learn=learn, surprise=surprise, progress=progress)

    def replace_embedding(self, embedding: nn.Embedding) -> None:
        """Take other embeddings of the same width, perhaps of more or fewer tokens; a head of its own stays."""
        self.embedding = embedding
        self.config = self.config.replace(vocab_size=embedding.num_embeddings)

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the configuration and all weights: equal for equal models, saved or not.

        Matrices in bfloat16 (`matrices_to`) count as the numbers that they stand for, as what is computed is equal.
        """
        return content_hash(self.config.to_json(), self.state_dict(), halves_as=self.dtype)

    def save(self, path: str | os.PathLike[str], tokenizer: Tokenizer | None = None) -> None:
        """Write a folder that transformers reads too, or one file if ``path`` ends in .safetensors; each file is whole.

        Args:
            path: where.
            tokenizer: what a folder also gets, so that it is complete; a model of bytes needs none named.

        Raises:
            UserError: the tokenizer does not fit the model, or a file cannot be written.
        """
        save_model(path, self.state_dict(), self.config, tokenizer)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str | torch.device = "cpu") -> LanguageModel:
        """Read what `save` or transformers' ``save_pretrained`` wrote; nothing in the files is executed.

        Raises:
            UserError: there is no such file, or it is not a model of this version.
        """
        config, tensors = read_model(path, device)
        try:
            with torch.device("meta"):  # takes no memory: a wrong configuration must not
                model = cls(config)
            shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
            for name in shapes.keys() | tensors.keys():
                wanted, found = shapes.get(name), tensors[name].shape if name in tensors else None
                if wanted != found:
                    raise ValueError(f"{name} is {found and list(found)}, not {wanted and list(wanted)}")
            model.load_state_dict(tensors, assign=True)
        except (ValueError, TypeError, RuntimeError) as error:
            raise misfit(path, error) from error
        model.mark_parameters()
        return model

    def mark_parameters(self) -> None:
        """Mark the parameters that weight decay leaves alone, which loading replaces by others."""
        with torch.device("meta"):
            fresh = LanguageModel(self.config)
        for parameter, like in zip(self.parameters(), fresh.parameters(), strict=True):
            parameter.__dict__.update(like.__dict__)
