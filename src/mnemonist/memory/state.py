"""Everything a memory has become while it read: a value of constant size.

A stream may be cut anywhere. Where the rule takes its gradients at the start of a chunk, a cut inside a chunk must
remember that point: the state then also holds the weights the unfinished chunk began with (`anchor`) and how many of
its tokens have been read (`phase`). Nothing else is needed, since later tokens act on the present weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mnemonist.errors import UserError
from mnemonist.memory.least_squares import sums_of
from mnemonist.memory.network import activation_gain
from mnemonist.memory.rule import MemoryRule
from mnemonist.tensors import load_tensors, save_tensors

FORMAT = "mnemonist-memory-state/1"


@dataclass(frozen=True)
class MemoryState:
    """A memory in the middle of a stream. A value: reading returns a new one and leaves this one as it was."""

    rule: MemoryRule
    weights: tuple[Tensor, ...]
    """``M``: per layer ``[B, H, D_in, D_out]``; with a denominator the last output column sums up phi(k). Of a
    memory at its optimum, the sums that it is the solution of, ``[B, H, K, V + K]`` (`least_squares`)."""
    momentum: tuple[Tensor, ...] = ()
    """``S``: like ``weights``; empty if the rule has no momentum."""
    anchor: tuple[Tensor, ...] = ()
    """Weights at the start of the unfinished chunk; empty unless the rule takes its gradients there."""
    phase: Tensor | None = None
    """``[B]`` int64 on the CPU (it steers the control flow): tokens read of the unfinished chunk, or None."""
    recent: tuple[Tensor, ...] = ()
    """Keys, values and step sizes of the last ``window - 1`` tokens, ``[B, window - 1, H, ...]``, which later steps go
    down too: zeros where there were none; empty if a step goes down the loss of its own token alone."""

    @classmethod
    def fresh(cls, rule: MemoryRule, initial: Sequence[Tensor], batch: int) -> MemoryState:
        """The state before the first token: ``initial`` weights ``[H, D_in, D_out]`` for each of ``batch`` rows."""
        weights = tuple(w.expand(batch, *w.shape) for w in initial)
        return cls(
            rule,
            weights,
            momentum=tuple(torch.zeros_like(w) for w in weights) if rule.momentum else (),
            anchor=() if rule.per_token else weights,
            recent=_no_tokens(rule, weights),
            phase=None if rule.per_token else torch.zeros(batch, dtype=torch.int64),
        )

    @property
    def batch(self) -> int:
        """Rows ``B``."""
        return self.weights[0].shape[0]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All but ``phase``."""
        return (*self.weights, *self.momentum, *self.anchor, *self.recent)

    @property
    def nbytes(self) -> int:
        """Size in bytes; it does not depend on how much was read."""
        return sum(t.numel() * t.element_size() for t in self.tensors) + (0 if self.phase is None else 8 * self.batch)

    def map(self, change: Callable[[Tensor], Tensor]) -> MemoryState:
        """The state with ``change`` applied to every tensor but ``phase``."""
        return replace(
            self,
            weights=tuple(map(change, self.weights)),
            momentum=tuple(map(change, self.momentum)),
            anchor=tuple(map(change, self.anchor)),
            recent=tuple(map(change, self.recent)),
        )

    def detach(self) -> MemoryState:
        """The same state, cut from the graph that computed it."""
        return self.map(Tensor.detach)

    def fork(self) -> MemoryState:
        """An independent copy: two readings may go on from here."""
        return replace(self.map(Tensor.clone), phase=None if self.phase is None else self.phase.clone())

    def select(self, rows: Tensor) -> MemoryState:
        """Rows ``rows`` (int64 ``[B']``, repeats allowed) as a new batch, e.g. the survivors of a beam."""
        phase = None if self.phase is None else self.phase[rows.to("cpu")]
        return replace(self.map(lambda t: t.index_select(0, rows.to(t.device))), phase=phase)

    def to_tensors(self) -> dict[str, Tensor]:
        """Named tensors, ready for safetensors; `from_tensors` reads them back."""
        # Copies: between two chunks the anchor is the weights themselves, and a file cannot share memory.
        own = self.detach().fork()
        groups = {"weights": own.weights, "momentum": own.momentum, "anchor": own.anchor, "recent": own.recent}
        named = {f"{g}.{i}": t.contiguous() for g, ts in groups.items() for i, t in enumerate(ts)}
        return named if own.phase is None else {**named, "phase": own.phase}

    @classmethod
    def from_tensors(cls, rule: MemoryRule, tensors: dict[str, Tensor]) -> MemoryState:
        """Rebuild a state from `to_tensors`.

        Raises:
            ValueError: tensors are missing, left over, or do not belong to this rule.
        """
        sizes = {
            "weights": rule.depth,
            "momentum": rule.depth * rule.momentum,
            "anchor": 0 if rule.per_token else rule.depth,
            "recent": 3 * (rule.window > 1),
        }
        expected = {f"{g}.{i}" for g, size in sizes.items() for i in range(size)}
        if not rule.per_token:
            expected.add("phase")
        if set(tensors) != expected:
            odd = ", ".join(sorted(set(tensors) ^ expected))
            raise ValueError(f"These tensors are not a state of rule {rule.name!r}: {odd} missing or left over.")
        group = {g: tuple(tensors[f"{g}.{i}"] for i in range(size)) for g, size in sizes.items()}
        state = cls(rule, **group, phase=tensors.get("phase"))
        state.check()
        return state

    def check(self) -> None:
        """Raise ValueError unless the tensors fit each other and the rule."""
        shapes = [w.shape for w in self.weights]
        sound = all(w.dim() == 4 and w.shape[:2] == shapes[0][:2] and w.is_floating_point() for w in self.weights)
        for group in (self.momentum, self.anchor):
            sound = sound and (not group or [w.shape for w in group] == shapes)
        tokens = [x.shape for x in _no_tokens(self.rule, self.weights)] if sound else []
        sound = sound and [x.shape for x in self.recent] == tokens
        if self.phase is not None:
            sound = sound and self.phase.dtype == torch.int64 and self.phase.shape == shapes[0][:1]
            sound = sound and bool(((self.phase >= 0) & (self.phase < self.rule.chunk_size)).all())
        if not sound:
            raise ValueError(f"These tensors are not a state of rule {self.rule.name!r}: their shapes or types differ.")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, whole or not at all.

        Raises:
            FileError: the file cannot be written.
        """
        save_tensors(path, self.to_tensors(), format=FORMAT, rule=self.rule.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str | torch.device = "cpu") -> MemoryState:
        """Read what `save` wrote; nothing in the file is executed.

        Raises:
            UserError: there is no such file, or it is not (or no longer) a memory state.
        """
        tensors, header = load_tensors(path, FORMAT, device)
        if "phase" in tensors:
            tensors["phase"] = tensors["phase"].cpu()
        try:
            return cls.from_tensors(MemoryRule.from_json(header.get("rule", "")), tensors)
        except ValueError as error:
            raise UserError(f"{path} cannot be used: {error}") from error


def _no_tokens(rule: MemoryRule, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """`MemoryState.recent` before the first token."""
    if rule.window == 1:
        return ()
    (B, H, K, _), V = weights[0].shape, weights[-1].shape[-1]
    shape = (B, rule.window - 1, H)
    return tuple(weights[0].new_zeros(*shape, *width) for width in ((K,), (V,), ()))


def as_kept(rule: MemoryRule, weights: Sequence[Tensor]) -> list[Tensor]:
    """``M_0`` as a state keeps it.

    With a denominator there is one more output channel, at first zero, that counts keys. Of an optimum there are sums,
    in which ``M_0`` stands as if it had been read.
    """
    if rule.denominator:
        return [torch.cat([w, torch.zeros_like(w[..., :1])], dim=-1) for w in weights]
    if rule.step == "optimum":
        return [sums_of(rule, w) for w in weights]
    return list(weights)


def initial_weights(
    rule: MemoryRule,
    heads: int,
    key_dim: int,
    value_dim: int,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Fresh ``M_0``: a list of ``[H, D_in, D_out]``.

    A linear memory starts empty, as in the papers. A deep one cannot (all its gradients would be zero): its layers
    are drawn uniformly such that keys of norm 1 reach every layer with variance 1. That keeps the inner loss gently
    curved; a memory that starts ten times smaller behind a layer norm learns, and overshoots, a hundred times faster.
    ``key_dim`` is the width *after* the feature map.
    """
    sizes = rule.layer_sizes(key_dim, value_dim)
    if rule.linear:
        return [torch.zeros(heads, *size, dtype=dtype) for size in sizes]
    gain = activation_gain(rule)
    scales = [1.0, *(gain / d_in**0.5 for d_in, _ in sizes[1:])]
    return [
        (torch.rand(heads, *size, generator=generator, dtype=dtype) * 2 - 1) * 3**0.5 * scale
        for size, scale in zip(sizes, scales, strict=True)
    ]
