"""Reading on an NVIDIA GPU: what stands around the kernels of `triton_deep_memory`.

Both ways are operations of torch (``mnemonist::read_deep_memory`` and ``..._backward``), so that compilers, meta
tensors and counters of FLOPs know them. With ``TRITON_INTERPRET=1`` the kernels run, slowly, on CPU tensors: that is
how they are tested. Second derivatives need ``backend="chunked"`` or ``"recurrent"``.

Importing this module does not import triton.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mnemonist.memory.kernels.native_chunks import ADJOINT_LIMIT
from mnemonist.memory.network import NORM_EPS
from mnemonist.memory.rule import MemoryRule
from mnemonist.memory.state import MemoryState
from mnemonist.memory.stream import Gates, Trace

LONGEST_CHUNK = 128
WIDEST = 256
"""Channels of keys and values, a denominator included."""
HIDDEN_BLOCK = 64
WARPS = 8
STAGES = 1
"""The loops read what they wrote; nothing may be fetched ahead."""


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def refusal(rule: MemoryRule, device: torch.device, dtype: torch.dtype, key_dim: int, value_dim: int) -> str | None:
    """Why the kernels cannot read for ``rule`` on such tensors, as the end of a sentence, or None if they can."""
    if rule.per_token:
        return "it takes a gradient at every token"
    if rule.depth > 2:
        return f"its memory has {rule.depth} layers, and the kernels know 1 and 2"
    if rule.retention == "channel":
        return "it forgets per channel"
    if rule.chunk_size > LONGEST_CHUNK:
        return f"chunk_size is {rule.chunk_size}, and the kernels go to {LONGEST_CHUNK}"
    if max(key_dim, value_dim) > WIDEST:
        return f"keys and values of width {key_dim} and {value_dim} are wider than {WIDEST}"
    if dtype == torch.float64:
        return "the kernels do not compute in float64"
    if device.type != "cuda" and not interpreted():
        return f"the tensors are on {device.type}, not on an NVIDIA GPU"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install 'mnemonist[gpu]')"
    return None


def read_packed(
    rule: MemoryRule,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    initial: Sequence[Tensor],
    state: MemoryState,
    lengths: Tensor,
    trace: bool,
) -> tuple[Tensor, MemoryState, Trace | None]:
    """Read N sequences that stand one after the other.

    Args:
        rule: one that `refusal` does not refuse.
        q: queries ``[total, H, K]``, float32 or, for products in half precision, bfloat16 or float16.
        k: keys ``[total, H, K]``.
        v: values ``[total, H, V]``.
        gates: each ``[total, H]``, float32.
        initial: per layer ``[H, D_in, D_out]``.
        state: of N rows.
        lengths: ``[N]`` int64 on the CPU: tokens of each sequence, 0 allowed.
        trace: whether losses and gradient norms are wanted.

    Returns:
        Answers ``[total, H, V]`` in float32, the state, and the trace ``[total, H]``.
    """
    assert state.phase is not None
    H = q.shape[1]
    given = (q, k, v, *gates.given(), *initial, *state.weights, *state.momentum, *state.anchor)
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    counts = chunk_counts(state.phase, lengths, rule.chunk_size)
    slots_of = counts + 1 if keep else torch.full_like(counts, 2)
    first = slots_of.cumsum(0) - slots_of
    ends = lengths.cumsum(0)
    plan = torch.stack([ends - lengths, ends, state.phase, first], 1).to(torch.int32).to(q.device)

    def row(matrices: Sequence[Tensor]) -> Tensor:
        return torch.cat([w.flatten(-2) for w in matrices], -1).contiguous()

    longest = min(rule.chunk_size, int(lengths.max()))
    y, weights, momentum, anchor, loss, norm, *_ = torch.ops.mnemonist.read_deep_memory(
        q.contiguous(), k.contiguous(), v.contiguous(), gates.step_size.contiguous(),
        None if gates.log_momentum is None else gates.log_momentum.contiguous(),
        None if gates.log_decay is None else gates.log_decay.contiguous(),
        row(initial), row(state.weights), row(state.momentum) if rule.momentum else None, row(state.anchor), plan,
        rule.to_json(), initial[-1].shape[-2], longest, int(slots_of.sum()), keep, trace,
    )  # fmt: skip

    def matrices(packed_NHP: Tensor) -> tuple[Tensor, ...]:
        parts = packed_NHP.split([w.shape[-2] * w.shape[-1] for w in initial], -1)
        return tuple(p.reshape(-1, H, *w.shape[-2:]) for p, w in zip(parts, initial, strict=True))

    after = MemoryState(
        rule,
        matrices(weights),
        matrices(momentum) if rule.momentum else (),
        matrices(anchor),
        (state.phase + lengths) % rule.chunk_size,
    )
    return y, after, Trace(loss, norm) if trace else None


def chunk_counts(phase: Tensor, lengths: Tensor, chunk_size: int) -> Tensor:
    """Chunks that sequences of ``lengths [N]`` reach into, if each begins ``phase [N]`` tokens into one."""
    return torch.where(lengths > 0, (phase + lengths + chunk_size - 1).div(chunk_size, rounding_mode="floor"), 0)


@functools.cache
def _rule(choices: str) -> MemoryRule:
    return MemoryRule.from_json(choices)


def _power(n: int) -> int:
    return max(16, 1 << (int(n) - 1).bit_length())


def _choices(rule: MemoryRule, q: Tensor, v: Tensor, hidden: int, longest: int, width: int) -> dict[str, Any]:
    """What both kernels are specialised to."""
    import triton.language as tl

    H, K, V = *q.shape[1:], v.shape[-1]
    operand = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}.get(q.dtype, tl.float32)
    tf32 = q.is_cuda and torch.backends.cuda.matmul.allow_tf32
    block_k = _power(K)
    return {
        "H": H, "K": K, "D": hidden, "V": V, "P": width, "CHUNK": rule.chunk_size,
        "BLOCK_C": _power(longest), "BLOCK_K": block_k, "BLOCK_V": _power(V),
        "BLOCK_D": block_k if rule.depth == 1 else min(HIDDEN_BLOCK, _power(hidden)),
        "DEPTH": rule.depth, "ACTIVATION": rule.activation, "OBJECTIVE": rule.objective, "DELTA": rule.huber_delta,
        "NORM": rule.norm, "RESIDUAL": rule.residual, "DENOMINATOR": rule.denominator, "EPS": NORM_EPS,
        "MOMENTUM": rule.momentum, "DECAY": rule.retention != "none", "TARGETS": rule.decay_to == "initial",
        "BEFORE": int(rule.read_at == "before"), "OPERAND": operand, "PRECISION": "tf32" if tf32 else "ieee",
        "num_warps": WARPS, "num_stages": STAGES,
    }  # fmt: skip


def _ends(plan: Tensor, chunk_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Per sequence: chunks, whether it ends between two chunks, and whether its last anchor is the one it was given."""
    lengths, phase = plan[:, 1] - plan[:, 0], plan[:, 2]
    counts = chunk_counts(phase, lengths, chunk_size)
    between = (phase + lengths) % chunk_size == 0
    return counts, between, ~between & ((counts == 0) | ((counts == 1) & (phase > 0)))


@torch.library.custom_op("mnemonist::read_deep_memory", mutates_args=())
def read_deep_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    step_size: Tensor,
    log_momentum: Tensor | None,
    log_decay: Tensor | None,
    initial: Tensor,
    weights: Tensor,
    momentum: Tensor | None,
    anchor: Tensor,
    plan: Tensor,
    rule: str,
    hidden: int,
    longest: int,
    slots: int,
    keep: bool,
    trace: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Read packed sequences; see `read_packed` for tokens and gates.

    Args:
        initial: ``[H, P]``: the matrices of a memory in one row.
        weights: ``[N, H, P]``, as momentum and anchor.
        plan: ``[N, 4]`` int32: first token, token after the last, phase and first slot of each sequence.
        rule: its choices as JSON.
        hidden: width of what the last layer sees.
        longest: tokens of the longest chunk.
        slots: states to make room for.
        keep: whether the state before each chunk is kept for the way back.
        trace: whether losses and gradient norms are wanted.

    Returns:
        Answers; weights, momentum and anchor after the last token; losses and gradient norms; states in their slots.
    """
    from mnemonist.memory.kernels.triton_deep_memory import read_kernel

    choices = _rule(rule)
    y, loss, norm, weights_at, momentum_at = _room(v, weights, momentum, slots, trace)
    first = plan[:, 3].long()
    weights_at[first] = weights
    if momentum is not None:
        momentum_at[first] = momentum
    N, H, P = weights.shape
    with torch.cuda.device_of(q):
        read_kernel[(N * H,)](
            q, k, v, step_size, log_momentum, log_decay, initial, anchor, weights_at, momentum_at, plan, y, loss, norm,
            TRACE=trace, KEEP=keep, **_choices(choices, q, v, hidden, longest, P),
        )  # fmt: skip
    counts, between, given = _ends(plan, choices.chunk_size)
    last, anchored = counts, (counts - 1).clamp_min(0)
    if not keep:
        last, anchored = last % 2, anchored % 2
    after = weights_at[first + last]
    anchor_after = torch.where(between[:, None, None], after, weights_at[first + anchored])
    anchor_after = torch.where(given[:, None, None], anchor, anchor_after)
    momentum_after = weights.new_empty(0) if momentum is None else momentum_at[first + last]
    if not keep:
        weights_at, momentum_at = weights.new_empty(0), weights.new_empty(0)
    return y, after, momentum_after, anchor_after, loss, norm, weights_at, momentum_at


def _room(v: Tensor, weights: Tensor, momentum: Tensor | None, slots: int, trace: bool) -> list[Tensor]:
    """Answers, losses, gradient norms, and slots for weights and momentum."""
    tokens, none = v.shape[:2], (0,)
    state = (slots, *weights.shape[1:])
    shapes = (v.shape, tokens if trace else none, tokens if trace else none, state, none if momentum is None else state)
    return [weights.new_empty(shape) for shape in shapes]


@read_deep_memory.register_fake
def _read_fake(
    q: Tensor, k: Tensor, v: Tensor, step_size: Tensor, log_momentum: Tensor | None, log_decay: Tensor | None,
    initial: Tensor, weights: Tensor, momentum: Tensor | None, anchor: Tensor, plan: Tensor, rule: str, hidden: int,
    longest: int, slots: int, keep: bool, trace: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    y, loss, norm, weights_at, momentum_at = _room(v, weights, momentum, slots, trace)
    if not keep:
        weights_at, momentum_at = weights.new_empty(0), weights.new_empty(0)
    after = [torch.empty_like(weights) for _ in range(3)]
    if momentum is None:
        after[1] = weights.new_empty(0)
    return y, *after, loss, norm, weights_at, momentum_at


@torch.library.custom_op("mnemonist::read_deep_memory_backward", mutates_args=())
def read_deep_memory_backward(
    to_y: Tensor,
    to_weights: Tensor,
    to_momentum: Tensor,
    to_anchor: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    step_size: Tensor,
    log_momentum: Tensor | None,
    log_decay: Tensor | None,
    initial: Tensor,
    anchor: Tensor,
    weights_at: Tensor,
    momentum_at: Tensor,
    plan: Tensor,
    rule: str,
    hidden: int,
    longest: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Derivatives of `read_deep_memory`, from those of its answers and of what it left.

    Returns:
        Those of q, k, v, step_size, log_momentum, log_decay (empty where there is none), initial ``[H, P]``, weights,
        momentum and anchor ``[N, H, P]``.
    """
    from mnemonist.memory.kernels.triton_deep_memory import read_back_kernel

    choices = _rule(rule)
    N, H, P = to_weights.shape
    between, given = (x[:, None, None] for x in _ends(plan, choices.chunk_size)[1:])
    # The anchor that was handed on is the weights themselves, the one that was given, or the start of the last chunk.
    none = torch.zeros_like(to_anchor)
    back_weights = (to_weights + torch.where(between, to_anchor, none)).contiguous()
    back_anchor = torch.where(given, to_anchor, none).contiguous()
    to_last_anchor = torch.where(~between & ~given, to_anchor, none).contiguous()
    back_momentum = to_momentum.clone(memory_format=torch.contiguous_format)
    per_token, back_initial = _back_room(q, k, v, step_size, log_momentum, log_decay, to_weights)
    with torch.cuda.device_of(q):
        read_back_kernel[(N * H,)](
            q, k, v, step_size, log_momentum, log_decay, initial, anchor, weights_at, momentum_at, plan,
            to_y.contiguous(), to_last_anchor, *per_token, back_initial, back_weights, back_momentum, back_anchor,
            LIMIT=ADJOINT_LIMIT, **_choices(choices, q, v, hidden, longest, P),
        )  # fmt: skip
    to_q, to_k, to_v, to_step, to_eta, to_decay = per_token
    return to_q, to_k, to_v, to_step, to_eta, to_decay, back_initial.sum(0), back_weights, back_momentum, back_anchor


def _back_room(
    q: Tensor, k: Tensor, v: Tensor, step_size: Tensor, log_momentum: Tensor | None, log_decay: Tensor | None,
    weights: Tensor,
) -> tuple[list[Tensor], Tensor]:  # fmt: skip
    """For derivatives by token, and by initial weights for each sequence."""
    gates = [step_size.new_empty(0) if g is None else torch.empty_like(g) for g in (log_momentum, log_decay)]
    per_token = [torch.empty_like(x) for x in (q, k, v, step_size)]
    return [*per_token, *gates], weights.new_zeros(weights.shape)


@read_deep_memory_backward.register_fake
def _read_back_fake(
    to_y: Tensor, to_weights: Tensor, to_momentum: Tensor, to_anchor: Tensor, q: Tensor, k: Tensor, v: Tensor,
    step_size: Tensor, log_momentum: Tensor | None, log_decay: Tensor | None, initial: Tensor, anchor: Tensor,
    weights_at: Tensor, momentum_at: Tensor, plan: Tensor, rule: str, hidden: int, longest: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    per_token, _ = _back_room(q, k, v, step_size, log_momentum, log_decay, to_weights)
    states = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (to_weights, to_momentum, to_anchor)]
    return *per_token, torch.empty_like(initial), *states


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, step_size, log_momentum, log_decay, initial, weights, momentum, anchor, plan, *rest = inputs
    ctx.rule, ctx.hidden, ctx.longest, _, ctx.keep, _ = rest
    ctx.save_for_backward(
        q, k, v, step_size, log_momentum, log_decay, initial, anchor, output[6], output[7], plan, weights, momentum
    )
    ctx.set_materialize_grads(False)  # or the checkpoints' derivative, which nobody takes, would be as large as they


def _go_back(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    if not ctx.keep:
        raise RuntimeError("This reading kept nothing to go back with; read with keep=True.")
    *inputs, plan, weights, momentum = ctx.saved_tensors
    v = inputs[2]
    like = (v.float(), weights, weights.new_empty(0) if momentum is None else momentum, weights)
    sent = [torch.zeros_like(x) if g is None else g for g, x in zip(grads[:4], like, strict=True)]
    back = torch.ops.mnemonist.read_deep_memory_backward(*sent, *inputs, plan, ctx.rule, ctx.hidden, ctx.longest)
    to_q, to_k, to_v, to_step, to_momentum, to_decay, *to_state = back
    _, _, _, _, log_momentum, log_decay, *_ = inputs
    return (
        to_q, to_k, to_v, to_step, None if log_momentum is None else to_momentum,
        None if log_decay is None else to_decay, to_state[0], to_state[1], None if momentum is None else to_state[2],
        to_state[3], *[None] * 7,
    )  # fmt: skip


read_deep_memory.register_autograd(_go_back, setup_context=_remember)


# --- FLOPs, two for a product and its sum: what the algebra needs, not what a kernel computes again


def read_flops(tokens: int, heads: int, key_dim: int, value_dim: int, hidden: int, rule: MemoryRule) -> int:
    """FLOPs of reading ``tokens`` tokens."""
    sizes = [(key_dim, value_dim)] if rule.depth == 1 else [(key_dim, hidden), (hidden, value_dim)]
    P = sum(d_in * d_out for d_in, d_out in sizes)
    parts = 1 + (rule.decay_to == "initial") + rule.momentum
    C = rule.chunk_size
    # At the anchor; the error sent back; reads of each part; writes to M and to S.
    products = P + sum(d_in * d_out for d_in, d_out in sizes[1:]) + parts * P + (1 + rule.momentum) * P
    within = C * sum(d_in + d_out for d_in, d_out in sizes) + rule.momentum * C * C
    return 2 * tokens * heads * (products + within)


def _count(q_shape: Sequence[int], v_shape: Sequence[int], rule: str, hidden: int) -> int:
    return read_flops(q_shape[0], q_shape[1], q_shape[2], v_shape[2], hidden, _rule(rule))


def _register_flops() -> None:
    from torch.utils.flop_counter import register_flop_formula

    @register_flop_formula(torch.ops.mnemonist.read_deep_memory)
    def _(q: Any, k: Any, v: Any, *rest: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return _count(q, v, rest[8], rest[9])

    @register_flop_formula(torch.ops.mnemonist.read_deep_memory_backward)
    def _(y: Any, w: Any, s: Any, a: Any, q: Any, k: Any, v: Any, *rest: Any, out_shape: Any = None, **kw: Any) -> int:
        return 2 * _count(q, v, rest[8], rest[9])  # two products for each


_register_flops()
