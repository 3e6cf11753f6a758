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
        *((name, ctypes.c_int32) for name in ("B", "T", "H", "C", "G", "phase", "depth", "threads")),
        *((name, ctypes.c_int32) for name in ("double_precision", "activation", "objective", "norm", "residual")),
        *((name, ctypes.c_int32) for name in ("denominator", "targets", "momentum", "decays", "read_before")),
        ("sizes", ctypes.c_int32 * (MOST_LAYERS + 1)),
        *((name, ctypes.c_double) for name in ("huber_delta", "norm_eps", "longest")),
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "step_size", "log_momentum", "log_decay")),
        *((name, ctypes.c_void_p) for name in ("valid", "begins", "ends")),
        *((name, ctypes.c_void_p * MOST_LAYERS) for name in ("target", "found", "found_moving")),
        *((name, ctypes.c_void_p * MOST_LAYERS) for name in ("weights", "moving", "anchor")),
        *((name, ctypes.c_void_p) for name in ("y", "loss", "gradient_norm")),
        *((name, ctypes.c_void_p * MOST_LAYERS) for name in ("start", "start_moving", "before", "sent", "asked")),
        ("first_anchor", ctypes.c_void_p * MOST_LAYERS),
        *((name, ctypes.c_void_p) for name in ("to_y", "to_q", "to_k", "to_v")),
        *((name, ctypes.c_void_p) for name in ("to_step_size", "to_log_momentum", "to_log_decay")),
        ("to_target", ctypes.c_void_p * MOST_LAYERS),
    ]


def chunk_kernel() -> ctypes.CDLL | None:
    """The compiled kernel, or None if there is no way to have it."""
    return native.kernel("native_chunks.cpp", ("read_chunks", "go_back"), _Work)


def applies(rule: MemoryRule, tensors: Sequence[Tensor]) -> bool:
    """Whether the kernel can read for ``rule`` with these tensors, which are all that it would be given."""
    return (
        native.fits(*tensors)
        and rule.retention != "channel"
        and rule.window == 1
        and rule.built_in
        and rule.depth <= MOST_LAYERS
        and chunk_kernel() is not None
    )


def read_chunks(
    rule: MemoryRule,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Sequence[Tensor],
    weights: Sequence[Tensor],
    momentum: Sequence[Tensor],
    anchor: Sequence[Tensor],
    targets: Sequence[Tensor],
    place: Place,
    trace: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor], tuple[Tensor, Tensor] | None]:
    """Read T tokens, chunk by chunk.

    Args:
        rule: with one decay per head, or none.
        q: queries ``[B, T, H, K]``.
        k: keys ``[B, T, H, K]``.
        v: values ``[B, T, H, V]``.
        gates: step size, then log momentum and log decay if the rule has them, ``[B, T, H]``, neutral at padding.
        weights: ``[B, H, D_in, D_out]`` per layer, as momentum and anchor.
        momentum: empty, if the rule has none.
        anchor: where gradients are taken until the first chunk of a row ends.
        targets: what the memory decays to, ``[H, D_in, D_out]`` per layer; empty, if that is zero.
        place: where in their chunks the tokens are.
        trace: whether losses and gradient norms are wanted.

    Returns:
        The memory's answers to the queries ``[B, T, H, V]``; weights, momentum and anchor after the last token;
        losses and gradient norms ``[B, T, H]``.
    """
    layout = _Layout(rule, place, trace)
    out = _ReadChunks.apply(layout, q, k, v, *gates, *weights, *anchor, *momentum, *targets)
    depth = rule.depth
    after = [list(out[i : i + depth]) for i in range(1, len(out) - 2 * trace, depth)]
    return out[0], after[0], after[2] if rule.momentum else [], after[1], (out[-2], out[-1]) if trace else None


@dataclass(frozen=True)
class Place:
    """Where in their chunks the tokens of a piece are."""

    phase: int
    """Tokens of its chunk that stand before the first column; chunks begin where every row's would."""
    begins: Tensor
    """``[B]`` int64: tokens of its chunk that a row has read; where it is 0, its first chunk begins in this piece."""
    ends: Tensor
    """``[B]`` int64: the column after the last token of each row, counted from where the first chunk would begin."""
    valid: Tensor | None
    """``[B, T]`` bool: False on padding."""


@dataclass(frozen=True)
class _Layout:
    """How the tensors of a reading stand in a row, which is what autograd functions take."""

    rule: MemoryRule
    place: Place
    trace: bool

    def groups(self, tensors: Sequence[Tensor]) -> tuple[dict[str, Tensor], dict[str, Sequence[Tensor]]]:
        """The tensors of tokens, and those of memories, layer by layer, by their names in `Work`."""
        rule, depth = self.rule, self.rule.depth
        names = ["q", "k", "v", "step_size"]
        names += ["log_momentum"] * rule.momentum + ["log_decay"] * (rule.retention != "none")
        states = ["weights", "anchor"] + ["moving"] * rule.momentum + ["target"] * (rule.decay_to == "initial")
        of_tokens = dict(zip(names, tensors, strict=False))
        return of_tokens, {
            name: tensors[len(names) + i * depth : len(names) + (i + 1) * depth] for i, name in enumerate(states)
        }

    def work(self, tensors: Sequence[Tensor]) -> _Work:
        """What the kernel is given, but for what it writes."""
        rule, place = self.rule, self.place
        of_tokens, of_memories = self.groups(tensors)
        (B, T, H, K), v, C = of_tokens["q"].shape, of_tokens["v"], rule.chunk_size
        work = _Work(
            B=B, T=T, H=H, C=min(C, place.phase + T), G=-(-(place.phase + T) // C), phase=place.phase, depth=rule.depth,
            threads=torch.get_num_threads(), double_precision=v.dtype == torch.float64,
            activation=ACTIVATIONS.index(rule.activation), objective=OBJECTIVES.index(rule.objective), norm=rule.norm,
            residual=rule.residual, denominator=rule.denominator, targets=rule.decay_to == "initial",
            momentum=rule.momentum, decays=rule.retention != "none", read_before=rule.read_at == "before",
            huber_delta=rule.huber_delta, norm_eps=NORM_EPS, longest=ADJOINT_LIMIT,
            begins=place.begins.data_ptr(), ends=place.ends.data_ptr(),
        )  # fmt: skip
        for name, tensor in of_tokens.items():
            setattr(work, name, tensor.data_ptr())
        if place.valid is not None:
            work.valid = place.valid.data_ptr()
        for i, size in enumerate([K, *(weight.shape[-1] for weight in of_memories["weights"])]):
            work.sizes[i] = size
        native.point(work.target, of_memories.get("target", ()))
        return work


class _ReadChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layout: _Layout, *tensors: Tensor) -> tuple[Tensor, ...]:
        kernel = chunk_kernel()
        assert kernel is not None
        tensors = tuple(tensor.contiguous() for tensor in tensors)
        of_memories, v = layout.groups(tensors)[1], tensors[2]
        work = layout.work(tensors)
        for name, of in (("found", "weights"), ("found_moving", "moving")):
            native.point(getattr(work, name), of_memories.get(of, ()))
        new = {"weights", "moving"} if work.G else set()
        # Where a chunk begins with the piece, nobody reads the anchor that was before.
        new |= {"anchor"} if layout.place.valid is None and not layout.place.phase and work.T else set()
        state = {
            name: [torch.empty_like(w) if name in new else w.clone() for w in group]
            for name, group in of_memories.items()
            if name != "target"
        }
        y = torch.empty_like(v)
        seen = [v.new_empty(v.shape[:3]) for _ in range(2 * layout.trace)]
        if seen:
            work.loss, work.gradient_norm = (tensor.data_ptr() for tensor in seen)
        work.y = y.data_ptr()
        kept: dict[str, list[Tensor]] = {}
        if any(ctx.needs_input_grad):
            weights = state["weights"]
            rows = [v.new_empty(work.G, work.B * work.H, work.C, w.shape[-1]) for w in weights]
            kept = {"before": rows, "sent": [torch.empty_like(r) for r in rows]}
            kept["asked"] = [torch.empty_like(r) for r in (rows if layout.rule.norm else rows[:-1])]
            for name, of in (("start", "weights"), ("start_moving", "moving")):
                kept[name] = [w.new_empty(work.G, *w.shape) for w in state.get(of, ())]
        native.on_large_pages(y, *itertools.chain(*kept.values()))
        for name, group in (state | kept).items():
            native.point(getattr(work, name), group)
        kernel.read_chunks(ctypes.byref(work))
        ctx.layout, ctx.kept = layout, {name: len(group) for name, group in kept.items()}
        ctx.save_for_backward(*tensors, *itertools.chain(*kept.values()))
        ctx.mark_non_differentiable(*seen)
        return y, *itertools.chain(*state.values()), *seen

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kernel, layout = chunk_kernel(), ctx.layout
        assert kernel is not None
        depth = layout.rule.depth
        tensors = ctx.saved_tensors  # once: checkpointing computes them again when asked
        count = len(tensors) - sum(ctx.kept.values())
        inputs, rest = tensors[:count], iter(tensors[count:])
        of_tokens, of_memories = layout.groups(inputs)
        work = layout.work(inputs)
        for name, length in ctx.kept.items():
            native.point(getattr(work, name), list(itertools.islice(rest, length)))
        native.point(work.first_anchor, of_memories["anchor"])
        to_y = grads[0].contiguous()
        work.to_y = to_y.data_ptr()
        to_tokens = {name: torch.empty_like(tensor) for name, tensor in of_tokens.items()}
        native.on_large_pages(*to_tokens.values())
        for name, tensor in to_tokens.items():
            setattr(work, f"to_{name}", tensor.data_ptr())
        to_state = [
            grad.clone(memory_format=torch.contiguous_format)
            for grad in grads[1 : 1 + depth * len(of_memories.keys() - {"target"})]
        ]
        for i, name in enumerate(name for name in of_memories if name != "target"):
            native.point(getattr(work, name), to_state[i * depth : (i + 1) * depth])
        to_target = [tensor.new_zeros(work.B, *tensor.shape) for tensor in of_memories.get("target", ())]
        native.point(work.to_target, to_target)
        kernel.go_back(ctypes.byref(work))
        return None, *to_tokens.values(), *to_state, *(tensor.sum(0) for tensor in to_target)
