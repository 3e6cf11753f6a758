"""Mixers that take over what others did: each is fitted to a teacher's, given what the teacher's was given.

A pretrained transformer whose attention was exchanged for memories (`with_blocks`) goes wrong in its first block, and
what every later block is given then, none of them has seen. So each mixer learns alone first. The teacher reads a text;
of its block ``b``

    x_b    is what enters it,
    y_b    = mixer_b(norm_b(x_b)), what its mixer adds,

and the mixer of the student's block ``b`` is given the same ``x_b`` and learns to answer ``y_b``. What is minimised is
the share that is left unexplained, over blocks ``b`` and tokens ``t``:

    sum_bt w_b |student_b(x_b)_t - y_bt|^2  /  sum_bt w_b |y_bt|^2

which is 0 where all is taken over and 1 where mixers say nothing. ``w_b`` is one over the sum of squares of ``y_b`` on
a few rows read beforehand, so that blocks weigh alike, whatever their scale. (Constants, since a mean of shares
could not be taken apart into micro-batches. AdamW would learn the same with any others, but for clipping: no two blocks
share a parameter.)

Gradients stay within a block, and neither MLPs nor logits of the student are computed. The norm before a mixer learns
with it: it is the function from ``x_b`` to ``y_b`` that is replaced.

It is stage 2 of MOHAWK (hidden-state alignment, Bick et al. 2024, arXiv 2408.10189), stage 1 of LoLCATs (attention
transfer, Zhang et al. 2024, arXiv 2410.10254) and step 1 of RADLADS (Goldstein et al. 2025, arXiv 2505.03005), whose
errors are not divided by what there is to explain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mnemonist.evaluating import evaluating
from mnemonist.models.blocks import Block, BlockState
from mnemonist.models.documents import gather_documents
from mnemonist.models.modeling import LanguageModel
from mnemonist.models.normalisation import wide


@dataclass(frozen=True)
class Example:
    """What a teacher's mixers were given and what they answered, on ``N`` documents of at most ``L`` tokens."""

    inputs: tuple[Tensor, ...]
    """``x_b [N, L, E]`` of each mixer."""
    answers: tuple[Tensor, ...]
    """``y_b [N, L, E]``."""
    mask: Tensor | None
    """``[N, L]`` bool: False at padding; None where there is none."""
    counted: Tensor
    """``[N, L]`` bool: the tokens whose answers are compared."""

    @property
    def squares(self) -> Tensor:
        """``[M]``: the sum of squares of each mixer's answers, which is all that there is to explain."""
        return torch.stack([wide(y[self.counted]).square().sum() for y in self.answers])


class MixerTeacher:
    """A model that shows what its mixers do to a text.

    Args:
        model: read with, without gradients and as in use; it is moved to where the text is.
        blocks: those whose mixers are shown, as `differing_mixers` gives them.
        autocast: a context to read in, `Accelerator.autocast` say; the precision of its weights by default.
    """

    def __init__(
        self,
        model: LanguageModel,
        blocks: Sequence[int],
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model = model
        self.blocks = tuple(blocks)
        self._autocast = autocast

    def __call__(self, tokens: Tensor, starts: Tensor, counted: Tensor) -> Example:
        """Read packed documents, none of which knows of another.

        Args:
            tokens: int64 ``[B, T]``.
            starts: bool ``[B, T]``, as of `LanguageModel.forward`.
            counted: bool ``[B, T]``: the tokens whose answers are to be compared.
        """
        documents, mask = gather_documents(starts, carried=False), None
        if documents is not None:
            mask = documents.mask
            tokens, counted = (part.flatten()[documents.source] for part in (tokens, counted))
            counted = counted & mask
        inputs, answers = [], []
        model = self.model.to(tokens.device)
        with evaluating(model), torch.no_grad(), self._autocast():
            x = model.embedding(tokens)
            for i, part in enumerate(model.blocks[: max(self.blocks) + 1]):
                block = cast(Block, part)
                y = block.mix(x, BlockState(), mask, learn=True, surprise=False).y
                if i in self.blocks:
                    inputs.append(x)
                    answers.append(y)
                x = block.think(x + y)
        return Example(tuple(inputs), tuple(answers), mask, counted)


class AlignedMixers(nn.Module):
    """Some mixers of a student, with the norms before them, as a module of their own to be trained.

    They are the student's: what they learn, it has learned. All else of it has no part in training, neither in its
    gradients nor in its checkpoints.

    Args:
        student: it stays as it is but for these parts.
        blocks: those whose mixers are meant, in the order of the teacher's.
    """

    def __init__(self, student: LanguageModel, blocks: Sequence[int]) -> None:
        super().__init__()
        chosen = [cast(Block, student.blocks[i]) for i in blocks]
        self.norms = nn.ModuleList(block.mixer_norm for block in chosen)
        self.mixers = nn.ModuleList(block.mixer for block in chosen)
        self.gradient_checkpointing = student.gradient_checkpointing
        """As of `LanguageModel`, for each mixer."""

    def forward(self, example: Example) -> Tensor:
        """``[M]``: the sum of squares by which each mixer's answers differ from the teacher's."""
        errors = []
        again = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for number, (x, y) in enumerate(zip(example.inputs, example.answers, strict=True)):
            if again:
                answer = checkpoint(self._answer, number, x, example.mask, use_reentrant=False)
            else:
                answer = self._answer(number, x, example.mask)
            errors.append((wide(answer[example.counted]) - wide(y[example.counted])).square().sum())
        return torch.stack(errors)

    def _answer(self, number: int, x_NLE: Tensor, mask_NL: Tensor | None) -> Tensor:
        x = self.norms[number](x_NLE)
        y: Tensor = self.mixers[number](x, BlockState(), mask_NL, learn=True, surprise=False).y
        return y


def differing_mixers(student: LanguageModel, teacher: LanguageModel) -> tuple[int, ...]:
    """The blocks whose mixers are built otherwise than the teacher's: another kind, rule, window or size.

    What weights are in them does not matter, and mixers of which nothing wants a gradient are left out.

    Raises:
        ValueError: the models differ in width or in the number of blocks, so that mixers have no counterparts.
    """
    ours, theirs = student.config, teacher.config
    if (ours.width, len(ours.blocks)) != (theirs.width, len(theirs.blocks)):
        raise ValueError(
            f"The student has {len(ours.blocks)} blocks of width {ours.width} and the teacher {len(theirs.blocks)} of "
            f"width {theirs.width}; mixers are matched one to one."
        )
    return tuple(
        i
        for i, (a, b) in enumerate(zip(student.blocks, teacher.blocks, strict=True))
        if any(parameter.requires_grad for parameter in cast(Block, a).mixer.parameters())
        and _built(cast(Block, a).mixer) != _built(cast(Block, b).mixer)
    )


def _built(mixer: nn.Module) -> list[Any]:
    """What a mixer is made of, weights left out: equal for mixers that compute the same function of their weights."""
    return [
        (name, type(part), {key: value for key, value in vars(part).items() if key[0] != "_" and key != "training"})
        for name, part in mixer.named_modules()
    ] + [(name, parameter.shape) for name, parameter in mixer.named_parameters()]
