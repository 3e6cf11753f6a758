"""Linear memories on an NVIDIA GPU, exact at every token: what stands around the kernels of `triton_linear_memory`.

They know what flash-linear-attention has no kernel for: momentum, a decay towards initial weights, answers from before
the write. As `triton_reading`, whose packing and plans these are: operations of torch, and interpreted on CPU tensors
with ``TRITON_INTERPRET=1``. Importing this module does not import triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mnemonist.memory.kernels.triton_reading import (
    any_refusal,
    contiguous,
    gates_of_chunks,
    kernel_choices,
    kernel_sizes,
    may_run,
    plan_for,
    rule_of,
    slots_for,
    wants_derivatives,
)
from mnemonist.memory.rule import MemoryRule
from mnemonist.memory.state import MemoryState
from mnemonist.memory.stream import Gates, Trace

BLOCK_V = 64
"""Columns of values that a program keeps from the first chunk to the last."""
STAGES = 2
"""Of the loops over chunks in half precision: they read nothing that they wrote, and fetch ahead what comes next."""


def refusal(rule: MemoryRule, device: torch.device, dtype: torch.dtype, key_dim: int, value_dim: int) -> str | None:
    """Why the kernels cannot read for ``rule`` on such tensors, as the end of a sentence, or None if they can."""
    if not rule.solvable or rule.objective != "l2":
        return "it takes a gradient at every token, and the kernels that do know linear memories with the l2 objective"
    if rule.step == "optimum":
        return "they take steps, and this memory is at its optimum"
    return any_refusal(rule, device, dtype, key_dim, value_dim)


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
    """Read N sequences that stand one after the other: `triton_reading.read_packed` for linear memories."""
    H, K = q.shape[1:]
    V = v.shape[-1]
    keep = wants_derivatives(q, k, v, gates, initial, state)

    def row(matrix: Tensor) -> Tensor:
        return matrix.mT.flatten(-2).contiguous()

    tokens = contiguous(q, k, v, gates)
    target = row(initial[0])
    slots = None if keep else slots_for(q, target, rule)
    spans, plan, cuts = plan_for(torch.zeros_like(lengths), lengths, rule.chunk_size, slots, q.device)
    y, weights, momentum, errors, *_ = torch.ops.mnemonist.read_linear_memory(
        *tokens, target, row(state.weights[0]), row(state.momentum[0]) if rule.momentum else None,
        spans, plan, cuts, rule.to_json(), min(rule.chunk_size, int(lengths.max())), keep,
    )  # fmt: skip

    def matrix(packed_NHP: Tensor) -> Tensor:
        return packed_NHP.reshape(-1, H, V, K).mT.contiguous()

    after = MemoryState(rule, (matrix(weights),), (matrix(momentum),) if rule.momentum else ())
    if not trace:
        return y, after, None
    off = errors.detach().float()
    return y, after, Trace(0.5 * off.square().sum(-1), k.detach().float().norm(dim=-1) * off.norm(dim=-1))


def _blocks(sizes: dict[str, Any], V: int) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Sizes for the kernels that have all columns of values, for those that have a block, and blocks."""
    whole = {name: sizes[name] for name in ("H", "K", "V", "BLOCK_C", "BLOCK_K", "BLOCK_V")}
    block = min(BLOCK_V, sizes["BLOCK_V"])
    return whole, whole | {"BLOCK_V": block}, -(-V // block)


def _run(rule: MemoryRule, choices: dict[str, dict[str, Any]], half: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Choices for the kernels that go through the gates, and for those that go chunk after chunk."""
    run = choices["chained"] | {"MOMENTUM": rule.momentum, "TARGETS": rule.decay_to == "initial"}
    decay = rule.retention != "none"
    gated = run | {"DECAY": decay, "DECAYED": decay and rule.gradient_at == "decayed"}
    return gated, run | ({"num_stages": STAGES} if half else {})


@torch.library.custom_op("mnemonist::read_linear_memory", mutates_args=())
def read_linear_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    step_size: Tensor,
    log_momentum: Tensor | None,
    log_decay: Tensor | None,
    initial: Tensor,
    weights: Tensor,
    momentum: Tensor | None,
    spans: Tensor,
    plan: Tensor,
    cuts: list[int],
    rule: str,
    longest: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Read packed sequences; see `triton_reading.read_deep_memory`. A memory stands transposed.

    Returns:
        Answers; weights and momentum after the last token; the errors of all tokens; and, for the way back, the weights
        and momentum that each chunk starts from, and the inverse that its errors were found with.
    """
    from mnemonist.memory.kernels.triton_deep_memory import reads_kernel
    from mnemonist.memory.kernels.triton_linear_memory import linear_states_kernel

    of = rule_of(rule)
    N, H, P = weights.shape
    sizes, choices = kernel_sizes(of, q, v, q.shape[-1], longest, P), kernel_choices(of, q, longest)
    y, errors, weights_at, momentum_at, inverses = _room(v, weights, momentum, cuts, sizes["BLOCK_C"])
    after = weights.clone()
    momentum_after = weights.new_empty(0) if momentum is None else momentum.clone()
    _, part, blocks = _blocks(sizes, v.shape[-1])
    run = _run(of, choices, q.dtype != torch.float32)[1]
    low_initial = initial.to(q.dtype)
    with torch.cuda.device_of(q):
        for these, turn in zip(spans.split(cuts), plan, strict=True):
            mixes, shares, ends = gates_of_chunks(step_size, log_momentum, log_decay, these, q, sizes, choices)
            from_weights, from_momentum, _, alone = _solved(
                k, v, step_size, log_momentum, log_decay, initial, inverses, False, these, of, sizes, choices
            )
            linear_states_kernel[(N * H, blocks)](
                k, shares, ends, initial, from_weights, from_momentum, alone, after, momentum_after, weights_at,
                momentum_at, errors, these, turn, **part, **run,
            )  # fmt: skip
            if len(these):
                reads_kernel[(len(these) * H,)](
                    q, k, errors, mixes, shares, low_initial, weights_at, weights_at, momentum_at, y, these,
                    **sizes, **choices["reads"],
                )  # fmt: skip
    if not keep:
        weights_at, momentum_at, inverses = (weights.new_empty(0) for _ in range(3))
    return y, after, momentum_after, errors, weights_at, momentum_at, inverses


def _solved(
    k: Tensor, v: Tensor, step_size: Tensor, log_momentum: Tensor | None, log_decay: Tensor | None, initial: Tensor,
    inverses: Tensor, known: bool, spans: Tensor, rule: MemoryRule, sizes: dict[str, Any],
    choices: dict[str, dict[str, Any]],
) -> tuple[Tensor, ...]:  # fmt: skip
    """What `solve_kernel` makes: what errors are of weights, momentum and target; and, unless the inverses are known,
    by themselves."""
    from mnemonist.memory.kernels.triton_linear_memory import solve_kernel

    parts = [
        torch.empty_like(k) if used else k.new_empty(0) for used in (True, rule.momentum, rule.decay_to == "initial")
    ]
    alone = v.new_empty(0 if known else v.shape, dtype=torch.float32)
    if len(spans):
        solve_kernel[(len(spans) * sizes["H"],)](
            k, v, step_size, log_momentum, log_decay, initial, inverses, *parts, alone, spans,
            KNOWN=known, **_blocks(sizes, v.shape[-1])[0], **_run(rule, choices, False)[0],
        )  # fmt: skip
    return *parts, alone


def _room(v: Tensor, weights: Tensor, momentum: Tensor | None, cuts: Sequence[int], block: int) -> list[Tensor]:
    """Answers, errors, and slots for weights, momentum and inverses, these of ``block`` tokens."""
    state, square = (max(cuts), *weights.shape[1:]), (max(cuts), weights.shape[1], block, block)
    return [v.new_empty(s) for s in (v.shape, v.shape, state, (0,) if momentum is None else state, square)]


@read_linear_memory.register_fake
def _read_fake(
    q: Tensor, k: Tensor, v: Tensor, step_size: Tensor, log_momentum: Tensor | None, log_decay: Tensor | None,
    initial: Tensor, weights: Tensor, momentum: Tensor | None, spans: Tensor, plan: Tensor, cuts: list[int], rule: str,
    longest: int, keep: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    block = kernel_sizes(rule_of(rule), q, v, q.shape[-1], longest, weights.shape[-1])["BLOCK_C"]
    y, errors, *slots = _room(v, weights, momentum, cuts, block)
    if not keep:
        slots = [weights.new_empty(0) for _ in slots]
    moving = weights.new_empty(0) if momentum is None else torch.empty_like(weights)
    return y, torch.empty_like(weights), moving, errors, *slots


@torch.library.custom_op("mnemonist::read_linear_memory_backward", mutates_args=())
def read_linear_memory_backward(
    to_y: Tensor,
    to_weights: Tensor,
    to_momentum: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    step_size: Tensor,
    log_momentum: Tensor | None,
    log_decay: Tensor | None,
    initial: Tensor,
    errors: Tensor,
    weights_at: Tensor,
    momentum_at: Tensor,
    inverses: Tensor,
    spans: Tensor,
    plan: Tensor,
    rule: str,
    longest: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Derivatives of `read_linear_memory`, from those of its answers and of what it left.

    Returns:
        Those of q, k, v, step_size, log_momentum, log_decay (empty where there is none), initial ``[H, P]``, weights
        and momentum ``[N, H, P]``.
    """
    from mnemonist.memory.kernels.triton_deep_memory import gates_back_kernel, reads_back_kernel
    from mnemonist.memory.kernels.triton_linear_memory import (
        linear_states_back_kernel,
        linear_writes_back_kernel,
        met_gates_back_kernel,
    )

    of = rule_of(rule)
    N, H, P = to_weights.shape
    back_weights, back_momentum = (x.clone(memory_format=torch.contiguous_format) for x in (to_weights, to_momentum))
    back_initial = to_weights.new_zeros(to_weights.shape)
    to_q, to_k, to_v, back_error, back_r, to_errors = (torch.empty_like(x) for x in (q, k, v, v, v, v))
    back_x = torch.empty_like(k)
    named = (step_size, log_momentum, log_decay)
    to_gates, to_met = ([step_size.new_empty(0) if g is None else torch.empty_like(g) for g in named] for _ in range(2))
    sizes, choices = kernel_sizes(of, q, v, q.shape[-1], longest, P), kernel_choices(of, q, longest)
    whole, part, blocks = _blocks(sizes, v.shape[-1])
    gated, run = _run(of, choices, q.dtype != torch.float32)
    chunks, none, low_initial = (len(spans) * H,), q.new_empty(0), initial.to(q.dtype)
    to_weights_at, to_momentum_at = torch.empty_like(weights_at), torch.empty_like(momentum_at)
    with torch.cuda.device_of(q):
        mixes, shares, ends = gates_of_chunks(*named, spans, q, sizes, choices)
        from_weights, from_momentum, from_target, _ = _solved(
            k, v, *named, initial, inverses, True, spans, of, sizes, choices
        )
        room = mixes.new_empty(len(spans) * H, 3, *mixes.shape[-2:])
        to_mixes = torch.empty_like(mixes, dtype=torch.float32)
        to_met_mixes, to_met_shares = torch.empty_like(to_mixes), torch.empty_like(shares)
        to_shares, to_ends = torch.empty_like(shares), torch.empty_like(ends)
        if len(spans):
            reads_back_kernel[chunks](
                q, k, errors, mixes, shares, low_initial, weights_at, weights_at, momentum_at, to_y.contiguous(), spans,
                to_q, none, back_error, back_r, none, none, none, none, back_x, none, none, none, none, none,
                room, to_mixes, to_shares, STATES=False, **sizes, **choices["reads_back"],
            )  # fmt: skip
        linear_states_back_kernel[(N * H, blocks)](
            q, k, shares, ends, from_weights, from_momentum, from_target, back_error, back_r, to_errors,
            to_weights_at, to_momentum_at, back_initial, back_weights, back_momentum, spans, plan, **part, **run,
        )  # fmt: skip
        if len(spans):
            linear_writes_back_kernel[chunks](
                k, *named, low_initial, inverses, errors, weights_at, momentum_at, shares, to_errors, to_weights_at,
                to_momentum_at, back_x, to_k, to_v, to_shares, to_ends, to_met_mixes, to_met_shares, spans,
                **whole, **gated,
            )  # fmt: skip
            met = {name: choice for name, choice in gated.items() if name != "TARGETS"}
            met_gates_back_kernel[chunks](
                *named, to_met_mixes, to_met_shares, *to_met, spans, H=H, BLOCK_C=sizes["BLOCK_C"], **met
            )
            gates_back_kernel[chunks](
                *named, spans, to_mixes, to_shares, to_ends, *to_gates,
                H=H, BLOCK_C=sizes["BLOCK_C"], **choices["gates"],
            )  # fmt: skip
    to_step, to_eta, to_decay = (a + b for a, b in zip(to_gates, to_met, strict=True))
    return to_q, to_k, to_v, to_step, to_eta, to_decay, back_initial.sum(0), back_weights, back_momentum


@read_linear_memory_backward.register_fake
def _read_back_fake(
    to_y: Tensor, to_weights: Tensor, to_momentum: Tensor, q: Tensor, k: Tensor, v: Tensor, step_size: Tensor,
    log_momentum: Tensor | None, log_decay: Tensor | None, initial: Tensor, errors: Tensor, weights_at: Tensor,
    momentum_at: Tensor, inverses: Tensor, spans: Tensor, plan: Tensor, rule: str, longest: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    gates = [step_size.new_empty(0) if g is None else torch.empty_like(g) for g in (log_momentum, log_decay)]
    states = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (to_weights, to_momentum)]
    return *(torch.empty_like(x) for x in (q, k, v, step_size)), *gates, torch.empty_like(initial), *states


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tokens, initial, weights, momentum, spans, plan, _, ctx.rule, ctx.longest, ctx.keep = inputs
    ctx.save_for_backward(*tokens, initial, *output[3:], spans, plan, weights, momentum)
    ctx.set_materialize_grads(False)


def _go_back(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    if not ctx.keep:
        raise RuntimeError("This reading kept nothing to go back with; read with keep=True.")
    *inputs, spans, plan, weights, momentum = ctx.saved_tensors
    like = (inputs[2], weights, weights.new_empty(0) if momentum is None else momentum)
    sent = [torch.zeros_like(x) if g is None else g for g, x in zip(grads[:3], like, strict=True)]
    back = torch.ops.mnemonist.read_linear_memory_backward(*sent, *inputs, spans, plan, ctx.rule, ctx.longest)
    to_q, to_k, to_v, to_step, to_momentum, to_decay, to_initial, to_weights, to_moving = back
    _, _, _, _, log_momentum, log_decay, *_ = inputs
    return (
        to_q, to_k, to_v, to_step, None if log_momentum is None else to_momentum,
        None if log_decay is None else to_decay, to_initial, to_weights, None if momentum is None else to_moving,
        *[None] * 6,
    )  # fmt: skip


read_linear_memory.register_autograd(_go_back, setup_context=_remember)


def read_flops(tokens: int, heads: int, key_dim: int, value_dim: int, rule: MemoryRule) -> int:
    """FLOPs of reading ``tokens`` tokens: what the algebra needs, not what a kernel computes again."""
    C, parts = rule.chunk_size, 1 + (rule.decay_to == "initial") + rule.momentum
    # Errors and answers of each part, writes to M and S; scores of keys and queries, and the system solved and applied.
    state = (2 * parts + 1 + rule.momentum) * key_dim * value_dim
    within = C * (2 * key_dim + 2 * value_dim + parts * key_dim) + C * C // 3 + rule.momentum * C * C
    return 2 * tokens * heads * (state + within)


def _register_flops() -> None:
    from torch.utils.flop_counter import register_flop_formula

    @register_flop_formula(torch.ops.mnemonist.read_linear_memory)
    def _(q: Any, k: Any, v: Any, *rest: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return read_flops(q[0], q[1], q[2], v[2], rule_of(rest[9]))

    @register_flop_formula(torch.ops.mnemonist.read_linear_memory_backward)
    def _(y: Any, w: Any, s: Any, q: Any, k: Any, v: Any, *rest: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return 2 * read_flops(q[0], q[1], q[2], v[2], rule_of(rest[10]))  # two products for each


if may_run():
    _register_flops()
