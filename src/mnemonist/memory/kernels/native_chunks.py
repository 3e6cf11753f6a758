"""The loop over chunks, compiled (`native_chunks.cpp`, see `native`).

It reads, and goes back for derivatives, on a CPU and where a head has one decay. Everything else, and every machine
without a compiler, takes the way through torch in `chunked`, which it equals. Second derivatives of a reading need
``MNEMONIST_KERNELS=off``.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mnemonist.memory.gates import ChunkGates
from mnemonist.memory.kernels import native
from mnemonist.memory.network import ACTIVATION_GAIN, NORM_EPS
from mnemonist.memory.rule import MemoryRule

MOST_LAYERS = 8
ADJOINT_LIMIT = 1e6
"""Of a derivative with respect to a memory, where it flows from chunk to chunk; see `chunked.bounded_adjoint`."""
ACTIVATIONS = ("silu", "gelu", "relu", "tanh")
OBJECTIVES = ("l2", "dot", "huber")
assert set(ACTIVATIONS) == set(ACTIVATION_GAIN)


class _Work(native.Structure):
    """As `Work` in the source."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("G", "N", "C", "depth", "threads", "double_precision")),
        *((name, ctypes.c_int32) for name in ("activation", "objective", "norm", "residual", "denominator")),
        *((name, ctypes.c_int32) for name in ("targets", "momentum")),
        ("sizes", ctypes.c_int32 * (MOST_LAYERS + 1)),
        ("huber_delta", ctypes.c_double),
        ("norm_eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "base", "mix", "base_last", "shares", "carry", "fresh")),
        *((name, ctypes.c_void_p * MOST_LAYERS) for name in ("target", "weights", "moving", "anchor")),
        *((name, ctypes.c_void_p) for name in ("last", "loss", "gradient_norm")),
        *((name, ctypes.c_void_p * MOST_LAYERS) for name in ("start", "start_moving", "before", "sent", "asked")),
        ("first_anchor", ctypes.c_void_p * MOST_LAYERS),
        *((name, ctypes.c_void_p) for name in ("to_last", "to_q", "to_k", "to_v", "to_base", "to_mix", "to_base_last")),
        *((name, ctypes.c_void_p) for name in ("to_shares", "to_carry")),
        ("to_target", ctypes.c_void_p * MOST_LAYERS),
        ("longest", ctypes.c_double),
    ]


def chunk_kernel() -> ctypes.CDLL | None:
    """The compiled kernel, or None if there is no way to have it."""
    return native.kernel("native_chunks.cpp", ("read_chunks", "go_back"), _Work)


def applies(rule: MemoryRule, tensors: Sequence[Tensor]) -> bool:
    """Whether the kernel can read for ``rule`` with these tensors, which are all that it would be given."""
    return (
        all(t.device.type == "cpu" and t.dtype == tensors[0].dtype for t in tensors)
        and tensors[0].dtype in (torch.float32, torch.float64)
        and rule.retention != "channel"
        and rule.depth <= MOST_LAYERS
        and chunk_kernel() is not None
    )


def read_chunks(
    rule: MemoryRule,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: ChunkGates,
    fresh: Tensor,
    weights: Sequence[Tensor],
    momentum: Sequence[Tensor],
    anchor: Sequence[Tensor],
    targets: Sequence[Tensor] | None,
    trace: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor], tuple[Tensor, Tensor] | None]:
    """Read G chunks, one after the other.

    Args:
        rule: with one decay per head, or none.
        q: queries ``[G, N, C, K]``.
        k: keys ``[G, N, C, K]``.
        v: values ``[G, N, C, V]``.
        gates: of all layers, ``[G, N, ...]``.
        fresh: ``[G, N]`` bool: whether the gradient is taken at the weights as they are when the chunk begins.
        weights: ``[N, D_in, D_out]`` per layer, as momentum, anchor and targets.
        momentum: empty, if the rule has none.
        anchor: where gradients are taken in chunks that are not fresh.
        targets: what the memory decays to, if not to zero.
        trace: whether losses and gradient norms are wanted.

    Returns:
        What the last layer gives for the queries ``[G, N, C, V]``; weights, momentum and anchor after the last chunk;
        losses and gradient norms ``[G, N, C]``.
    """
    shares = [gates.mix_last] if gates.momentum_last is None else [gates.mix_last, gates.momentum_last]
    carry = [] if gates.carry is None else [gates.carry]
    layout = _Layout(rule, fresh.to(torch.uint8), trace, targets is not None)
    out = _ReadChunks.apply(
        layout, q, k, v, torch.cat(gates.base, -1), gates.mix, torch.cat(gates.base_last, -1), torch.stack(shares, 2),
        *carry, *weights, *anchor, *momentum, *(targets or []),
    )  # fmt: skip
    depth = rule.depth
    after = [list(out[i : i + depth]) for i in range(1, len(out) - 2 * trace, depth)]
    return out[0], after[0], after[2] if rule.momentum else [], after[1], (out[-2], out[-1]) if trace else None


@dataclass(frozen=True)
class _Layout:
    """How the tensors of a reading stand in a row, which is what autograd functions take."""

    rule: MemoryRule
    fresh: Tensor
    trace: bool
    targets: bool

    def work(self, tensors: Sequence[Tensor]) -> _Work:
        """What the kernel is given, but for what it writes."""
        q, k, v, base, mix, base_last, shares, *rest = tensors
        rule, depth = self.rule, self.rule.depth
        G, N, C, K = q.shape
        work = _Work(
            G=G, N=N, C=C, depth=depth, threads=torch.get_num_threads(), double_precision=v.dtype == torch.float64,
            activation=ACTIVATIONS.index(rule.activation), objective=OBJECTIVES.index(rule.objective), norm=rule.norm,
            residual=rule.residual, denominator=rule.denominator, targets=self.targets, momentum=rule.momentum,
            huber_delta=rule.huber_delta, norm_eps=NORM_EPS, longest=ADJOINT_LIMIT,
            q=q.data_ptr(), k=k.data_ptr(), v=v.data_ptr(), base=base.data_ptr(), mix=mix.data_ptr(),
            base_last=base_last.data_ptr(), shares=shares.data_ptr(), fresh=self.fresh.data_ptr(),
        )  # fmt: skip
        if rule.momentum:
            work.carry = rest.pop(0).data_ptr()
        for i, size in enumerate([K, *(weight.shape[2] for weight in rest[:depth])]):
            work.sizes[i] = size
        if self.targets:
            native.point(work.target, rest[-depth:])
        return work


class _ReadChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layout: _Layout, *tensors: Tensor) -> tuple[Tensor, ...]:
        kernel, rule, depth = chunk_kernel(), layout.rule, layout.rule.depth
        assert kernel is not None
        tensors = tuple(tensor.contiguous() for tensor in tensors)
        v, (G, N, C, _) = tensors[2], tensors[0].shape
        first = 7 + rule.momentum
        groups = [tensors[first + i * depth : first + (i + 1) * depth] for i in range(2 + rule.momentum)]
        weights, anchor, *momentum = ([w.clone() for w in group] for group in groups)
        last = torch.empty_like(v)
        work = layout.work(tensors)
        work.last = last.data_ptr()
        native.point(work.weights, weights)
        native.point(work.anchor, anchor)
        native.point(work.moving, momentum[0] if momentum else [])
        seen = [v.new_empty(G, N, C) for _ in range(2 * layout.trace)]
        if seen:
            work.loss, work.gradient_norm = (tensor.data_ptr() for tensor in seen)
        kept: list[list[Tensor]] = []
        if any(ctx.needs_input_grad):
            rows = [v.new_empty(G, N, C, w.shape[2]) for w in weights]
            starts = [[w.new_empty(G, *w.shape) for w in weights] for _ in range(1 + rule.momentum)]
            kept = [rows, [torch.empty_like(r) for r in rows], [torch.empty_like(r) for r in rows[:-1]], *starts]
            for pointers, group in zip(
                (work.before, work.sent, work.asked, work.start, work.start_moving), kept, strict=False
            ):
                native.point(pointers, group)
        kernel.read_chunks(ctypes.byref(work))
        ctx.layout, ctx.groups = layout, [len(group) for group in kept]
        ctx.save_for_backward(*tensors, *itertools.chain(*kept))
        ctx.mark_non_differentiable(*seen)
        return last, *weights, *anchor, *(momentum[0] if momentum else []), *seen

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kernel, layout = chunk_kernel(), ctx.layout
        assert kernel is not None
        depth, momentum = layout.rule.depth, layout.rule.momentum
        tensors = ctx.saved_tensors  # once: checkpointing computes them again when asked
        inputs, rest = tensors[: len(tensors) - sum(ctx.groups)], iter(tensors[len(tensors) - sum(ctx.groups) :])
        kept = [list(itertools.islice(rest, count)) for count in ctx.groups]
        work = layout.work(inputs)
        for pointers, group in zip(
            (work.before, work.sent, work.asked, work.start, work.start_moving), kept, strict=False
        ):
            native.point(pointers, group)
        first = 7 + momentum
        native.point(work.first_anchor, inputs[first + depth : first + 2 * depth])
        to_last = grads[0].contiguous()
        work.to_last = to_last.data_ptr()
        per_token = [torch.zeros_like(tensor) for tensor in inputs[:first]]
        names = ("to_q", "to_k", "to_v", "to_base", "to_mix", "to_base_last", "to_shares", "to_carry")
        for name, tensor in zip(names, per_token, strict=False):
            setattr(work, name, tensor.data_ptr())
        state = [grad.clone(memory_format=torch.contiguous_format) for grad in grads[1 : 1 + (2 + momentum) * depth]]
        for i, pointers in enumerate((work.weights, work.anchor, work.moving)):
            native.point(pointers, state[i * depth : (i + 1) * depth])
        targets = [torch.zeros_like(tensor) for tensor in inputs[first + (2 + momentum) * depth :]]
        native.point(work.to_target, targets)
        kernel.go_back(ctypes.byref(work))
        return None, *per_token, *state, *targets
