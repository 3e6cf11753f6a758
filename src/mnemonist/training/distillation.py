"""Learning from a teacher: what it expects of every next token, or what its mixers do.

    logits   sum_t KL(teacher_t || student_t), in nats: over the whole vocabulary, and not of the token that came alone
    mixers   what the student's mixers leave unexplained of the teacher's, each given what the teacher's was given

The first is distillation of old (Hinton et al. 2015, arXiv 1503.02531, section 2, at temperature 1) and how conversions
of transformers end: stage 3 of MOHAWK (Bick et al. 2024, arXiv 2408.10189), step 2 of RADLADS (Goldstein et al. 2025,
arXiv 2505.03005), Mamba in the Llama (Wang et al. 2024, arXiv 2408.15237). The second comes before it; models know how
(`mnemonist.models.alignment`).

A teacher is no part of what is trained: it is in no checkpoint, and every process has the whole of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mnemonist.data import IGNORED
from mnemonist.evaluating import evaluating
from mnemonist.training.gradients import LossOf, LossSum
from mnemonist.training.language import Reader, Rows, pieces_of

AT_ONCE = 1 << 22
"""Numbers of the logits whose distributions are computed at once: 16 MB each in float32."""


def distillation_loss(
    teacher: nn.Module,
    truncation: int | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> LossOf:
    """``loss_of`` for `train`: the divergence of the model's expectations from the teacher's, in nats.

    Tokens without a target (before the start of the next document) are left out.

    Args:
        teacher: of the same vocabulary; read with as in use, without gradients, and moved to where the rows are.
        truncation: as of `truncated_next_token_loss`; both models go on from their states.
        autocast: a context for the teacher to read in, `Accelerator.autocast` say; the precision of its weights by
            default.

    Raises:
        ValueError: (when called) the models differ in their vocabulary.
        UserError: (when called) as `truncated_next_token_loss`.
    """

    def loss_of(model: nn.Module, rows: Rows) -> Iterator[LossSum]:
        ask, read = Reader(teacher.to(rows["tokens"].device)), Reader(model)
        for piece in pieces_of(rows, truncation):
            with evaluating(teacher), torch.no_grad(), autocast():
                expected = ask(piece)
            counted = piece["targets"] != IGNORED
            part = LossSum(divergence(expected, read(piece), counted), int(counted.sum()), counted.numel())
            del expected  # nothing of this piece may be left when the next one is read
            yield part
            del part

    return loss_of


def mixer_loss(teacher: Callable[[Tensor, Tensor, Tensor], Any], weights: Tensor) -> LossOf:
    """``loss_of`` for `train`: the share of the teacher's answers that the model's mixers leave unexplained.

    The model is a `mnemonist.models.alignment.AlignedMixers`; the formula is there. The share is a quotient of sums, so
    it does not depend on how a step is cut.

    Args:
        teacher: a `mnemonist.models.alignment.MixerTeacher`.
        weights: ``[M]``, of each mixer: see `mixer_weights`.
    """

    def loss_of(model: nn.Module, rows: Rows) -> LossSum:
        example = teacher(rows["tokens"], rows["starts"], rows["targets"] != IGNORED)
        errors, squares = model(example), example.squares
        each = weights.to(errors)
        return LossSum((errors * each).sum(), (squares * each).sum(), rows["tokens"].numel())

    return loss_of


def mixer_weights(teacher: Callable[[Tensor, Tensor, Tensor], Any], rows: Rows) -> Tensor:
    """``[M]``: for `mixer_loss`, what makes mixers weigh alike: one over the sum of squares of each one's answers.

    Args:
        teacher: as of `mixer_loss`.
        rows: a few, the same in every process and when a run is resumed.

    Raises:
        ValueError: a mixer answers nothing but zeros, or something that is not finite.
    """
    squares: Tensor = teacher(rows["tokens"], rows["starts"], rows["targets"] != IGNORED).squares
    for number, square in enumerate(squares.tolist()):
        if not 0 < square < float("inf"):
            raise ValueError(f"The sum of squares of what mixer {number} of the teacher answers is {square}.")
    return 1 / squares


def divergence(teacher: Tensor, student: Tensor, counted: Tensor) -> Tensor:
    """``sum_t sum_v p_tv (log p_tv - log q_tv)``, in nats: KL(p || q) of the tokens that count.

    Distributions are computed for some tokens at once, and each at once gives its gradient, ``q - p``; so beyond the
    logits nothing large is kept but that.

    Args:
        teacher: ``[B, T, V]``, logits of ``p``; no gradient goes there.
        student: ``[B, T, V]``, logits of ``q``.
        counted: bool ``[B, T]``.

    Returns:
        A scalar, in float32 at least; exactly 0 for equal logits, and then its gradient is too.

    Raises:
        ValueError: the shapes differ.
    """
    if teacher.shape != student.shape:
        raise ValueError(f"The teacher's logits are {list(teacher.shape)}, the student's {list(student.shape)}.")
    loss: Tensor = _Divergence.apply(student.flatten(0, 1), teacher.detach().flatten(0, 1), counted.flatten())
    return loss


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student_NV: Tensor, teacher_NV: Tensor, counted_N: Tensor) -> Tensor:
        N, V = student_NV.shape
        step = max(1, AT_ONCE // V)
        wide = torch.float64 if student_NV.dtype == torch.float64 else torch.float32
        total = torch.zeros((), dtype=torch.float64, device=student_NV.device)  # sums of chunks, however many
        gradient = torch.empty_like(student_NV) if ctx.needs_input_grad[0] else None
        for begin in range(0, N, step):
            some = slice(begin, begin + step)
            log_p, log_q = (logits[some].to(wide).log_softmax(-1) for logits in (teacher_NV, student_NV))
            p, counts = log_p.exp(), counted_N[some, None]
            total += torch.where(counts, p * (log_p - log_q), 0).sum()
            if gradient is not None:
                gradient[some] = torch.where(counts, log_q.exp_() - p, 0)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total.to(wide)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None, None
