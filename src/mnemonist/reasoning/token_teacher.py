"""A teacher's opinion of every token that a policy has written itself: on-policy distillation.

A policy that is fitted to a teacher's texts never sees what comes of its own mistakes. Here it writes, and both say of
each token what they would have written in its place; what is left between them is the loss (GKD, Agarwal et al. 2023,
arXiv 2306.13649, on data of its own alone; with the reverse divergence it is that of MiniLLM, arXiv 2306.08543, without
what a token does to those behind it). Every token is a lesson, right attempt or wrong, so that one attempt at a problem
will do.

A teacher may be shown more than the policy, solved problems for example: what these are worth to it is then learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from mnemonist.errors import UserError
from mnemonist.evaluating import evaluating
from mnemonist.reasoning.completions import Batch, Row, RowMaker, entropies, logits_of, stack
from mnemonist.reasoning.losses import divergence
from mnemonist.reasoning.prompting import InContext
from mnemonist.reasoning.proposing import Group, Material, Policy
from mnemonist.reasoning.rounds import Round
from mnemonist.reasoning.sampling import LocalSampler
from mnemonist.reasoning.sampling.text import text_tokenizer
from mnemonist.training import LossSum

PROBE = "Fox 0123456789 jumps: (a+b)-c*d/e = f? \n\t'quoted' <think> [x], {y}; \u00e9 \u6f22\u5b57"
"""What two tokenizers must read alike."""
TEACHER = "teacher "
"""Stands before the names of its tensors."""


class TokenTeacher:
    """See `on_policy.Aim`.

    Raises:
        UserError: the teacher is no model in this process, or reads other tokens than the policy.
    """

    dynamic = False
    compares = True

    def __init__(self, round_: Round, policy: Policy, material: Material) -> None:
        teacher = material.teacher
        self._context = teacher if isinstance(teacher, InContext) else None
        asked = teacher.sampler if isinstance(teacher, InContext) else teacher
        if not isinstance(asked, LocalSampler):
            raise UserError(
                f"round {round_.name} asks its teacher about every token, which only a model in this process tells; "
                "name one with --teacher"
            )
        asked.model.to(next(policy.model.parameters()).device)
        self._asked, self._temperature, self._beta = asked, round_.decoding.temperature, round_.divergence
        if asked.tokenizer.encode(PROBE) != text_tokenizer(policy.tokenizer).encode(PROBE):
            raise UserError(
                f"the teacher {asked.name} reads other tokens than the policy, so that they cannot be compared token "
                "by token; take a teacher of the same family, or learn from its texts (round distil)"
            )
        self._maker = RowMaker(policy.tokenizer, material.format.end)
        self._prompts: dict[tuple[int, ...], tuple[int, ...]] = {}  # of the policy, and as the teacher is asked

    def weigh(self, groups: Sequence[Group], wanted: int, iteration: int) -> list[Row]:
        """All attempts; each of their tokens counts.

        Raises:
            UserError: an attempt is longer than what the teacher reads.
        """
        rows, self._prompts = [], {}
        for one in (one for group in groups for one in group):
            row = self._maker.of_attempt(one.attempt)
            if row.prompt not in self._prompts:
                prompt = one.attempt.prompt if self._context is None else self._context.as_shown(one.attempt.prompt)
                self._prompts[row.prompt] = tuple(self._asked.tokenizer.encode(prompt))
            length, most = len(self._prompts[row.prompt]) + len(row.completion), self._asked.max_positions
            if most is not None and length > most:
                raise UserError(
                    f"an attempt at {one.problem.id} has {length} tokens with its prompt, and the teacher reads "
                    f"{most}; lower max_tokens"
                )
            rows.append(row)
        return rows

    def stack(self, rows: Sequence[Row]) -> Batch:
        """Rows as the policy reads them, and as the teacher does."""
        shown = stack([replace(row, prompt=self._prompts[row.prompt]) for row in rows])
        return stack(rows) | {TEACHER + name: shown[name] for name in ("tokens", "attention", "targets")}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[LossSum, Tensor]:
        """The divergence of every token at the temperature of the attempts, and sums of entropies and divergences."""
        logits_NV, asked_BT = logits_of(model, batch, self._temperature)
        given = {name.removeprefix(TEACHER): value for name, value in batch.items() if name.startswith(TEACHER)}
        with torch.no_grad(), evaluating(self._asked.model):
            teacher_NV, _ = logits_of(self._asked.model, given, self._temperature)
        V = min(logits_NV.shape[1], teacher_NV.shape[1])  # some models have logits beyond their tokens
        log_probs_NV, theirs_NV = logits_NV[:, :V].log_softmax(-1), teacher_NV[:, :V].log_softmax(-1)
        counts_N = batch["counts"][:, None].expand(asked_BT.shape)[asked_BT]
        apart_N = divergence(log_probs_NV, theirs_NV, self._beta)
        tokens, apart = counts_N.sum(), (apart_N * counts_N).sum()
        entropy = (entropies(log_probs_NV) * counts_N).sum()
        return LossSum(apart, tokens), torch.stack([tokens, entropy, torch.zeros_like(tokens), apart.detach()]).double()
