"""The algebra of one chunk: how much of what was there, and of each write, is left at each token.

Unrolling ``S_t = eta_t S_{t-1} - theta_t g_t`` and ``M_t = (1-alpha_t) M_{t-1} + alpha_t M_target + S_t`` from the
start of a chunk gives, with ``A[t,s] = prod_{s<l<=t} (1-alpha_l)``, ``E[t,s] = prod_{s<l<=t} eta_l`` (both lower
triangular), ``beta_t = prod_{l<=t} (1-alpha_l)`` and ``m_t = prod_{l<=t} eta_l``:

    M_t = beta_t M_0 + (1 - beta_t) M_target + f_t S_0 - sum_s G[t,s] g_s      f = A m,  G = A E diag(theta)
    S_t = m_t S_0 - sum_s (E diag(theta))[t,s] g_s

Products are sums of logs taken over the very tokens between ``s`` and ``t`` (never differences of long cumulative
sums), so a gate may be exactly 0 (log -inf) and nothing cancels. What would underflow is set to zero: products that
sink into denormal numbers cost a CPU several times the arithmetic.

A padded token takes no part: its gates are neutral (log 0, theta 0), and its column of ``A`` is zero, or momentum
would act once more on it.

Where a step goes down the losses of several tokens, ``diag(theta)`` is a band: in row ``t`` are the step sizes of the
tokens of its window, some of which may stand before the chunk.

Shapes: ``X`` is any number of leading dimensions (chunks, sequences); ``C`` tokens; ``K`` is 1, or the input channels
of a layer when each channel forgets at its own rate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class ChunkGates:
    """What the gates of a chunk amount to, for one layer.

    A chunk starts from one, two or three *parts*: ``[M]``, ``[M, target]``, ``[M, S]`` or ``[M, target, S]``.
    """

    base: tuple[Tensor, ...]
    """Weight of each part in ``M_t``, ``[X, C, K]``: beta, 1 - beta, f."""
    mix: Tensor
    """``G``: ``[X, C, C]``, or ``[X, C, C, K]`` per channel; ``P + C`` columns if P tokens before have a part."""
    base_last: tuple[Tensor, ...]
    """Weight of each part in the last ``M``: ``[X, K]``."""
    mix_last: Tensor
    """Weight of each write in the last ``M``: ``[X, C]``, or ``[X, C, K]`` per channel."""
    momentum_last: Tensor | None
    """Weight of each write in the last ``S``, ``(E diag(theta))[C, s]``: ``[X, C]``."""
    carry: Tensor | None
    """``m_C``, what is left of ``S_0`` in the last ``S``: ``[X]``."""

    def unbind(self) -> list[ChunkGates]:
        """The gates of each chunk, along the first dimension.

        All at once: the derivative of taking one chunk out of many would be as large as all of them.
        """
        chunks = self.mix.shape[0]
        base, base_last = ([b.unbind() for b in group] for group in (self.base, self.base_last))
        mix, mix_last = self.mix.unbind(), self.mix_last.unbind()
        none: list[None] = [None] * chunks
        momentum = none if self.momentum_last is None else self.momentum_last.unbind()
        carry = none if self.carry is None else self.carry.unbind()
        return [
            ChunkGates(
                tuple(b[g] for b in base), mix[g], tuple(b[g] for b in base_last), mix_last[g], momentum[g], carry[g]
            )
            for g in range(chunks)
        ]


def chunk_gates(
    step_size: Tensor,
    log_momentum: Tensor | None,
    log_decay: Tensor | None,
    valid: Tensor | None,
    to_target: bool,
    window: int = 1,
) -> ChunkGates:
    """Unroll the gates of a chunk.

    Args:
        step_size: theta ``[X, P + C]``: P = ``window - 1`` tokens before the chunk have a part in its steps.
        log_momentum: log eta ``[X, C]`` or None.
        log_decay: log (1 - alpha) ``[X, C]`` or ``[X, C, K]`` or None.
        valid: ``[X, C]`` bool, False on padding (whose gates must be neutral already), or None.
        to_target: whether the memory decays towards other weights than zero.
        window: tokens whose losses a step goes down.
    """
    own = step_size[..., window - 1 :]
    per_channel = log_decay is not None and log_decay.dim() == own.dim() + 1
    if log_decay is None:
        log_decay = torch.zeros_like(own)
    log_decay_XKC = log_decay.mT if per_channel else log_decay.unsqueeze(-2)
    A = products_between(log_decay_XKC)  # [X, K, C, C]
    if valid is not None:
        A = A * valid[..., None, None, :]
    beta_XKC = _exp(log_decay_XKC.cumsum(-1))
    base = [beta_XKC]
    if to_target:
        base.append(-torch.expm1(log_decay_XKC.cumsum(-1)))

    if log_momentum is None:
        mix = _of_gradients(A, _steps(step_size, valid, window).unsqueeze(-3))
        momentum = carry = None
    else:
        kept = products_between(log_momentum)
        writes = _of_gradients(kept, _steps(step_size, valid, window))  # E diag(theta) [X, C, P + C]
        left = _exp(log_momentum.cumsum(-1))  # m [X, C]
        base.append((A @ left[..., None, :, None]).squeeze(-1))
        mix = A @ writes.unsqueeze(-3)
        momentum, carry = writes[..., -1, :], left[..., -1]

    weights = tuple(b.mT.contiguous() for b in base)  # [X, K, C] -> [X, C, K]
    mix = mix.movedim(-3, -1).contiguous() if per_channel else mix.squeeze(-3)
    mix_last = mix[..., -1, :, :] if per_channel else mix[..., -1, :]
    return ChunkGates(weights, mix, tuple(b[..., -1] for b in base), mix_last, momentum, carry)


def _steps(step_size: Tensor, valid: Tensor | None, window: int) -> Tensor:
    """How far each token's step goes down each gradient: a diagonal ``[X, 1, C]``, or a band ``[X, C, P + C]``."""
    steps = step_size.unsqueeze(-2)
    if window == 1:
        return steps
    column = torch.arange(step_size.shape[-1], device=step_size.device)
    row = column[: len(column) - window + 1, None]
    met = (column >= row) & (column < row + window)
    if valid is not None:  # padding takes no step
        met = met & valid.unsqueeze(-1)
    return torch.where(met, steps, torch.zeros_like(steps))


def _of_gradients(kept: Tensor, steps: Tensor) -> Tensor:
    """What is left of steps, ``[..., C, C]``, as what is left of gradients; ``steps`` as `_steps` has them."""
    return kept * steps if steps.shape[-2] == 1 else kept @ steps


def products_between(log_gate: Tensor) -> Tensor:
    """``exp(sum_{s<l<=t} log_gate_l)`` for ``s <= t``, else 0: ``[..., C] -> [..., C, C]`` (rows t, columns s)."""
    C = log_gate.shape[-1]
    ones = torch.ones(C, C, dtype=torch.bool, device=log_gate.device)
    # Row s holds the logs of the tokens after s; its running sum along t is the log of the product.
    after = torch.where(ones.triu(1), log_gate.unsqueeze(-2), torch.zeros_like(log_gate).unsqueeze(-2))
    return torch.where(ones.tril(), _exp(after.cumsum(-1).mT), torch.zeros_like(log_gate[..., :1, None]))


def before(gates: ChunkGates, decay_XCK: Tensor | None, to_target: bool) -> tuple[tuple[Tensor, ...], Tensor]:
    """Base and mix of the memory each token meets: one row down, then decayed by the token itself if it is given."""
    first, *others = gates.base
    base = [_row_down(first, -2, 1.0), *(_row_down(b, -2, 0.0) for b in others)]  # the first token meets M_0
    per_channel = gates.mix.dim() == first.dim() + 1
    mix = _row_down(gates.mix, -3 if per_channel else -2, 0.0)
    if decay_XCK is not None:
        base = [b * decay_XCK for b in base]
        mix = mix * (decay_XCK.unsqueeze(-2) if per_channel else decay_XCK)
        if to_target:
            base[1] = base[1] + (1 - decay_XCK)
    return tuple(base), mix


def reading_before(gates: ChunkGates, to_target: bool) -> ChunkGates:
    """The same writes, but every token reads the memory that it meets."""
    base, mix = before(gates, None, to_target)
    return replace(gates, base=base, mix=mix)


def _row_down(x: Tensor, dim: int, first: float) -> Tensor:
    return torch.cat([torch.full_like(x.narrow(dim, 0, 1), first), x.narrow(dim, 0, x.shape[dim] - 1)], dim=dim)


def mixed_scores(z_XCK: Tensor, x_XCK: Tensor, mix: Tensor) -> Tensor:
    """``G[t,s] (z_t . x_s)``: how much of the write of token ``s`` the read of token ``t`` meets, ``[X, C, C]``."""
    if mix.dim() == z_XCK.dim():
        return (z_XCK @ x_XCK.mT) * mix
    return torch.einsum("...tk,...sk,...tsk->...ts", z_XCK, x_XCK, mix)


def _exp(log: Tensor) -> Tensor:
    """exp, with zero for what is too small to be multiplied by its like without becoming denormal. NaN stays NaN."""
    floor = torch.finfo(log.dtype).tiny ** 0.5
    value = log.exp()
    return torch.where(value <= floor, torch.zeros_like(value), value)
