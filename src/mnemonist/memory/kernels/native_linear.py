"""Linear memories exact at every token, compiled (`native_linear.cpp`, see `native`).

It reads, and goes back for derivatives, on a CPU. Everything else, and every machine without a compiler, takes the way
through torch in `exact`, which it equals. Second derivatives of a reading need ``MNEMONIST_KERNELS=off``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mnemonist.memory.kernels import native
from mnemonist.memory.rule import MemoryRule

BLOCK = 32
"""Tokens read at a time where a head has one decay."""
CHANNEL_BLOCK = 16
"""Where each channel has its own, tokens of a block meet channel by channel, not in a matrix product."""


class _Work(native.Structure):
    """As `Work` in the source."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("B", "T", "H", "K", "V", "C", "threads", "double_precision")),
        *((name, ctypes.c_int32) for name in ("solves", "momentum", "rates", "decays", "targets", "decayed")),
        *((name, ctypes.c_int32) for name in ("read_before", "denominator")),
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "step_size", "log_momentum", "log_decay")),
        *((name, ctypes.c_void_p) for name in ("valid", "target", "weights", "moving", "y", "loss", "gradient_norm")),
        *((name, ctypes.c_void_p) for name in ("start", "start_moving", "errors")),
        *((name, ctypes.c_void_p) for name in ("to_y", "to_q", "to_k", "to_v")),
        *((name, ctypes.c_void_p) for name in ("to_step_size", "to_log_momentum", "to_log_decay", "to_target")),
    ]


def linear_kernel() -> ctypes.CDLL | None:
    """The compiled kernel, or None if there is no way to have it."""
    return native.kernel("native_linear.cpp", ("read_blocks", "go_back"), _Work)


def applies(tensors: Sequence[Tensor]) -> bool:
    """Whether the kernel can read with these tensors, which are all that it would be given."""
    return native.fits(*tensors) and linear_kernel() is not None


def read_tokens(
    rule: MemoryRule,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: dict[str, Tensor],
    weights: Tensor,
    momentum: Tensor | None,
    target: Tensor | None,
    mask: Tensor | None,
    trace: bool,
) -> tuple[Tensor, Tensor, Tensor | None, tuple[Tensor, Tensor] | None]:
    """Read T tokens, one after the other in effect.

    Args:
        rule: one that can be solved.
        q: queries ``[B, T, H, K]``.
        k: keys ``[B, T, H, K]``.
        v: values ``[B, T, H, V]``.
        gates: step_size, and log_momentum and log_decay if the rule has them, neutral at padding.
        weights: ``[B, H, K, V]``.
        momentum: likewise, if the rule has it.
        target: what the memory decays to if not to zero, ``[H, K, V]``.
        mask: ``[B, T]`` bool, False on padding, or None.
        trace: whether losses and gradient norms are wanted.

    Returns:
        Answers ``[B, T, H, V]``, weights and momentum after the last token, losses and gradient norms ``[B, T, H]``.
    """
    optional = {**gates, "weights": weights, "moving": momentum, "target": target}
    given = {name: tensor for name, tensor in optional.items() if tensor is not None}
    layout = _Layout(rule, tuple(given), None if mask is None else mask.to(torch.uint8).contiguous(), trace)
    tensors = (q, k, v, *given.values())
    y, after, *rest = (
        _ReadTokens.apply(layout, *tensors)
        if native.wants_derivatives(*tensors)
        else _read(layout, [tensor.contiguous() for tensor in tensors], {})
    )
    moving = rest.pop(0) if momentum is not None else None
    return y, after, moving, (rest[0], rest[1]) if trace else None


@dataclass(frozen=True)
class _Layout:
    """What the tensors of a reading are, which autograd functions take in a row."""

    rule: MemoryRule
    names: tuple[str, ...]
    """Of those after q, k and v."""
    valid: Tensor | None
    trace: bool

    def blocks(self, q: Tensor) -> tuple[int, int]:
        """Tokens, and those of a block."""
        T = q.shape[1]
        return T, min(T, CHANNEL_BLOCK if self.rule.retention == "channel" else BLOCK)

    def work(self, tensors: Sequence[Tensor]) -> _Work:
        """What the kernel is given, but for what it writes."""
        q, k, v, *rest = tensors
        rule, (T, C) = self.rule, self.blocks(q)
        (B, _, H, K), V = q.shape, v.shape[-1]
        by_channel = rule.retention == "channel"
        work = _Work(
            B=B, T=T, H=H, K=K, V=V, C=C,
            threads=torch.get_num_threads(), double_precision=v.dtype == torch.float64,
            solves=rule.objective == "l2", momentum=rule.momentum, rates=K if by_channel else 1,
            decays=rule.retention != "none", targets="target" in self.names,
            decayed=rule.gradient_at == "decayed" and rule.retention != "none", read_before=rule.read_at == "before",
            denominator=rule.denominator, q=q.data_ptr(), k=k.data_ptr(), v=v.data_ptr(),
        )  # fmt: skip
        for name, tensor in zip(self.names, rest, strict=True):
            setattr(work, name, tensor.data_ptr())
        if self.valid is not None:
            work.valid = self.valid.data_ptr()
        return work


def _read(layout: _Layout, tensors: Sequence[Tensor], kept: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Answers, weights and momentum, losses and gradient norms; ``kept`` is filled for the way back."""
    kernel = linear_kernel()
    assert kernel is not None
    v = tensors[2]
    work = layout.work(tensors)
    given = dict(zip(layout.names, tensors[3:], strict=True))
    state: dict[str, Tensor] = {name: given[name].clone() for name in ("weights", "moving") if name in given}
    y = torch.empty_like(v)
    seen = [v.new_empty(v.shape[:3]) for _ in range(2 * layout.trace)]
    written = {"y": y, **state, **dict(zip(("loss", "gradient_norm"), seen, strict=False)), **kept}
    native.on_large_pages(y, *kept.values())
    for name, tensor in written.items():
        setattr(work, name, tensor.data_ptr())
    kernel.read_blocks(ctypes.byref(work))
    return y, *state.values(), *seen


class _ReadTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layout: _Layout, *tensors: Tensor) -> tuple[Tensor, ...]:
        tensors = tuple(tensor.contiguous() for tensor in tensors)
        given = dict(zip(layout.names, tensors[3:], strict=True))
        starts = {name: given[of] for name, of in (("start", "weights"), ("start_moving", "moving")) if of in given}
        T, C = layout.blocks(tensors[0])
        kept = {"errors": torch.empty_like(tensors[2])}
        kept |= {name: w.new_empty(-(-T // C), *w.shape) for name, w in starts.items()}
        read = _read(layout, tensors, kept)
        ctx.layout, ctx.kept = layout, tuple(kept)
        ctx.save_for_backward(*tensors, *kept.values())
        ctx.mark_non_differentiable(*read[len(read) - 2 * layout.trace :])
        return read

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kernel, layout = linear_kernel(), cast(_Layout, ctx.layout)
        assert kernel is not None
        saved = ctx.saved_tensors  # once: checkpointing computes them again when asked
        inputs, kept = saved[: 3 + len(layout.names)], saved[3 + len(layout.names) :]
        work = layout.work(inputs)
        state = [name for name in layout.names if name in ("weights", "moving")]
        to_state: dict[str, Tensor] = {
            name: grad.clone(memory_format=torch.contiguous_format)
            for name, grad in zip(state, grads[1 : 1 + len(state)], strict=True)
        }
        to_y = grads[0].contiguous()
        to_inputs = {
            f"to_{name}": torch.empty_like(tensor)
            for name, tensor in zip(("q", "k", "v", *layout.names), inputs, strict=True)
            if name not in ("weights", "moving", "target")
        }
        if "target" in layout.names:
            to_inputs["to_target"] = torch.zeros_like(to_state["weights"])
        native.on_large_pages(*to_inputs.values())
        for name, tensor in [*zip(ctx.kept, kept, strict=True), *(to_state | to_inputs).items(), ("to_y", to_y)]:
            setattr(work, name, tensor.data_ptr())
        kernel.go_back(ctypes.byref(work))
        if "target" in layout.names:
            to_inputs["to_target"] = to_inputs["to_target"].sum(0)
        found = {**to_inputs, **to_state}
        return None, *(found[name if name in to_state else f"to_{name}"] for name in ("q", "k", "v", *layout.names))
