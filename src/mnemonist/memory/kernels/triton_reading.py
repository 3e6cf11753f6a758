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

from mnemonist.memory.kernels import native
from mnemonist.memory.kernels.native_chunks import ADJOINT_LIMIT
from mnemonist.memory.network import NORM_EPS
from mnemonist.memory.rule import MemoryRule
from mnemonist.memory.state import MemoryState
from mnemonist.memory.stream import Gates, Trace

LONGEST_CHUNK = 128
WIDEST = 128
"""Channels of keys and values, a denominator included."""
HIDDEN_BLOCK = 64
"""Hidden columns at a time, with at most 64 channels and tokens of a chunk; fewer where tiles would be larger than
these. On an H100 128 took 7% longer in bfloat16, for its tiles spilled."""
NARROWEST = 64
"""Rows and columns of a block of weights on a GPU, of a block of hidden columns in half precision; half as many in
float32. Triton 3.6 compiles products of narrower ones wrongly: they read what is not theirs."""
WARPS = 8
"""Of kernels that go in steps: tiles are shared among them."""
CHAINED_WARPS = 4
"""Of kernels in which products feed products: as many as the 64 rows of a chunk keep busy; more would compute the same
twice."""
STAGES = 1
"""The loops read what they wrote; nothing may be fetched ahead."""
SLOT_BYTES = 2**29
"""Room for what chunks start from, where no derivative is wanted: longer streams are read in pieces."""


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def may_run() -> bool:
    """Whether kernels could run in this process: what prepares for them would import triton, 70 MB of it."""
    return torch.backends.cuda.is_built() or interpreted()


def refusal(rule: MemoryRule, device: torch.device, dtype: torch.dtype, key_dim: int, value_dim: int) -> str | None:
    """Why the kernels cannot read for ``rule`` on such tensors, as the end of a sentence, or None if they can."""
    if rule.per_token:
        return "it takes a gradient at every token"
    if rule.depth > 2:
        return f"its memory has {rule.depth} layers, and the kernels know 1 and 2"
    return any_refusal(rule, device, dtype, key_dim, value_dim)


def any_refusal(rule: MemoryRule, device: torch.device, dtype: torch.dtype, key_dim: int, value_dim: int) -> str | None:
    """What keeps deep and linear memories alike from being read."""
    if rule.retention == "channel":
        return "it forgets per channel"
    if rule.window > 1:
        return "its steps go down the losses of several tokens"
    if not (rule.built_in and rule.step_is_gradient):
        return "the kernels know the choices that come with the package, and gradient steps"
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
        Answers ``[total, H, V]`` in the type of v, or in float32 if the last channel is a denominator; the state, and
        the trace ``[total, H]``.
    """
    assert state.phase is not None
    H = q.shape[1]
    keep = wants_derivatives(q, k, v, gates, initial, state)

    def row(matrices: Sequence[Tensor]) -> Tensor:
        *others, last = matrices
        return torch.cat([w.flatten(-2) for w in (*others, last.mT)], -1).contiguous()

    tokens = contiguous(q, k, v, gates)
    target, weights, anchor = row(initial), row(state.weights), row(state.anchor)
    momentum = row(state.momentum) if rule.momentum else None
    choices, hidden, phase = rule.to_json(), initial[-1].shape[-2], state.phase
    slots = None if keep else slots_for(q, target, rule)
    spans, plan, cuts = plan_for(phase, lengths, rule.chunk_size, slots, q.device)
    longest = min(rule.chunk_size, int(lengths.max()))
    y, weights, momentum, anchor, loss, norm, *_ = torch.ops.mnemonist.read_deep_memory(
        *tokens, target, weights, momentum, anchor, spans, plan, cuts,
        choices, hidden, longest, keep, trace,
    )  # fmt: skip

    def matrices(packed_NHP: Tensor) -> tuple[Tensor, ...]:
        *others, last = packed_NHP.split([w.shape[-2] * w.shape[-1] for w in initial], -1)
        back = last.reshape(-1, H, *initial[-1].mT.shape[-2:]).mT.contiguous()
        return *(p.reshape(-1, H, *w.shape[-2:]) for p, w in zip(others, initial[:-1], strict=True)), back

    after = MemoryState(
        rule,
        matrices(weights),
        matrices(momentum) if rule.momentum else (),
        matrices(anchor),
        (phase + lengths) % rule.chunk_size,
    )
    return y, after, Trace(loss, norm) if trace else None


def wants_derivatives(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, initial: Sequence[Tensor], state: MemoryState
) -> bool:
    """Whether a reading must keep what the way back needs."""
    return native.wants_derivatives(q, k, v, *gates.given(), *initial, *state.tensors)


def contiguous(q: Tensor, k: Tensor, v: Tensor, gates: Gates) -> list[Tensor | None]:
    """Tokens and gates as the kernels find their way in them."""
    given = (q, k, v, gates.step_size, gates.log_momentum, gates.log_decay)
    return [None if x is None else x.contiguous() for x in given]


def chunk_counts(phase: Tensor, lengths: Tensor, chunk_size: int) -> Tensor:
    """Chunks that sequences of ``lengths [N]`` reach into, if each begins ``phase [N]`` tokens into one."""
    return torch.where(lengths > 0, (phase + lengths + chunk_size - 1).div(chunk_size, rounding_mode="floor"), 0)


def plan_of(
    phase: Tensor, lengths: Tensor, chunk_size: int, slots: int | None = None
) -> tuple[Tensor, Tensor, list[int]]:
    """Where the chunks of sequences are that stand in a row, one after the other.

    Args:
        phase: tokens into a chunk at which each sequence begins, ``[N]`` int64.
        lengths: tokens of each sequence, ``[N]`` int64.
        chunk_size: tokens of a whole chunk.
        slots: chunks whose start there is room for, or None for all of them. If there are more, the sequences are
            read in turns of some chunks each.

    Returns:
        ``[chunks, 4]`` int32: first token, tokens, sequence, and whether gradients are taken at the anchor that the
        state brought; ``[turns, N, 4]`` int32: first chunk within the turn, chunks, and of the sequence as a whole
        whether it ends between two chunks, and whether its last anchor is the one it was given; and the chunks of each
        turn.
    """
    counts = chunk_counts(phase, lengths, chunk_size)
    first_token, N = lengths.cumsum(0) - lengths, len(lengths)
    each = int(counts.max()) if slots is None else max(1, slots // N)
    turns = max(1, -(-int(counts.max()) // max(1, each)))
    of_turn = (counts[None] - each * torch.arange(turns)[:, None]).clamp(0, each)
    first = of_turn.flatten().cumsum(0).view(turns, N) - of_turn
    turn, sequence = (x.flatten() for x in torch.meshgrid(torch.arange(turns), torch.arange(N), indexing="ij"))
    turn, sequence = (x.repeat_interleave(of_turn.flatten()) for x in (turn, sequence))
    place = torch.arange(len(sequence)) - first[turn, sequence] + turn * each
    shift = phase[sequence]
    begin = (place * chunk_size - shift).clamp_min(0)
    end = torch.minimum((place + 1) * chunk_size - shift, lengths[sequence])
    anchored = (place == 0) & (shift > 0)
    spans = torch.stack([first_token[sequence] + begin, end - begin, sequence, anchored.long()], 1)
    between = (phase + lengths) % chunk_size == 0
    given = ~between & ((counts == 0) | ((counts == 1) & (phase > 0)))
    whole = torch.stack([between, given], 1).long().expand(turns, N, 2)
    within = first - first[:, :1]  # turns use the same slots
    plan = torch.cat([torch.stack([within, of_turn], 2), whole], 2)
    return spans.to(torch.int32), plan.to(torch.int32), of_turn.sum(1).tolist()


def plan_for(
    phase: Tensor, lengths: Tensor, chunk_size: int, slots: int | None, device: torch.device
) -> tuple[Tensor, Tensor, list[int]]:
    """`plan_of` on a device. All layers of a model and most steps of a training have the same; decoding comes back to
    the same ones with every chunk."""
    spans, plan, cuts = _kept_plan(tuple(phase.tolist()), tuple(lengths.tolist()), chunk_size, slots, device)
    return spans, plan, list(cuts)


@functools.lru_cache(maxsize=1024)
def _kept_plan(
    phase: tuple[int, ...], lengths: tuple[int, ...], chunk_size: int, slots: int | None, device: torch.device
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    spans, plan, cuts = plan_of(torch.tensor(phase), torch.tensor(lengths), chunk_size, slots)
    return spans.to(device), plan.to(device), tuple(cuts)


def slots_for(q: Tensor, target_HP: Tensor, rule: MemoryRule) -> int:
    """Chunks whose start there is room for."""
    return max(1, SLOT_BYTES // (target_HP.numel() * q.element_size() * (1 + rule.momentum)))


@functools.cache
def rule_of(choices: str) -> MemoryRule:
    return MemoryRule.from_json(choices)


def padded(n: int) -> int:
    """Rows or columns of a tile that has room for n: a power of two, and what tensor cores take at least."""
    return max(16, 1 << (int(n) - 1).bit_length())


def kernel_sizes(rule: MemoryRule, q: Tensor, v: Tensor, hidden: int, longest: int, width: int) -> dict[str, Any]:
    """What the kernels are specialised to but for what `kernel_choices` adds: widths, and blocks of them."""
    H, K, V = *q.shape[1:], v.shape[-1]
    least = 16 if interpreted() else NARROWEST
    block_c, block_k, block_v = padded(longest), max(least, padded(K)), max(least, padded(V))
    tallest = max(64, block_c, block_k, block_v)
    block_d = _block(min(HIDDEN_BLOCK * 64 // tallest, padded(hidden)), q.dtype)
    return {
        "H": H, "K": K, "D": hidden, "V": V, "P": width, "BLOCK_C": block_c, "BLOCK_K": block_k, "BLOCK_V": block_v,
        "BLOCK_D": block_k if rule.depth == 1 else block_d,
    }  # fmt: skip


def _block(columns: int, dtype: torch.dtype, least: int = NARROWEST // 2) -> int:
    """Of at least so many columns in float32, and of enough for half precision."""
    if interpreted():
        return max(columns, 16)
    return max(columns, NARROWEST if dtype != torch.float32 else least)


def read_sizes(rule: MemoryRule, sizes: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Of `reads_kernel`, which keeps more at a time."""
    return sizes if rule.depth == 1 else {**sizes, "BLOCK_D": _block(sizes["BLOCK_D"] // 2, dtype, 16)}


def write_sizes(rule: MemoryRule, sizes: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Of `writes_back_kernel`, which keeps less at a time, in half precision."""
    tallest, block = max(sizes[name] for name in ("BLOCK_C", "BLOCK_K", "BLOCK_V")), sizes["BLOCK_D"]
    if rule.depth == 1 or dtype == torch.float32 or tallest > NARROWEST or sizes["D"] <= block:
        return sizes
    return {**sizes, "BLOCK_D": 2 * block}


def kernel_choices(rule: MemoryRule, q: Tensor, longest: int) -> dict[str, dict[str, Any]]:
    """Choices of a rule by the kernels that need them, and how these multiply and run."""
    import triton.language as tl

    operand = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}.get(q.dtype, tl.float32)
    tf32 = q.is_cuda and torch.backends.cuda.matmul.allow_tf32
    precision = "ieee" if interpreted() else "tf32" if tf32 else "tf32x3"
    run = {"OPERAND": operand, "PRECISION": precision, "num_warps": WARPS, "num_stages": STAGES}
    chained = {"num_warps": CHAINED_WARPS if longest <= 64 else 2 * CHAINED_WARPS}
    gates = {"BEFORE": int(rule.read_at == "before"), "MOMENTUM": rule.momentum, "DECAY": rule.retention != "none"}
    depth = {"DEPTH": rule.depth, "RESIDUAL": rule.residual, "MOMENTUM": rule.momentum, **run}
    targets = {"TARGETS": rule.decay_to == "initial"}
    answer = {"NORM": rule.norm, "EPS": NORM_EPS}
    loss = {"OBJECTIVE": rule.objective, "DELTA": rule.huber_delta, "DENOMINATOR": rule.denominator}
    reads = depth | targets | answer | {"ACTIVATION": rule.activation}
    return {
        "gates": gates | run, "states": reads | loss, "reads": reads | chained, "reads_back": reads,
        "states_back": depth | answer | loss, "writes_back": depth | targets, "chained": run | chained,
        "sums": run | {"num_stages": 2},  # whose loop writes nothing
    }  # fmt: skip


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
    spans: Tensor,
    plan: Tensor,
    cuts: list[int],
    rule: str,
    hidden: int,
    longest: int,
    keep: bool,
    trace: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Read packed sequences; see `read_packed` for tokens and gates.

    Args:
        initial: ``[H, P]``: the matrices of a memory in one row, the last one transposed.
        weights: ``[N, H, P]``, as momentum and anchor.
        spans: of the chunks, see `plan_of`.
        plan: of the sequences.
        cuts: chunks of each turn; one turn, if the way back will be gone.
        rule: its choices as JSON.
        hidden: width of what the last layer sees.
        longest: tokens of the longest chunk.
        keep: whether the way back will be gone.
        trace: whether losses and gradient norms are wanted.

    Returns:
        Answers; weights, momentum and anchor after the last token; losses and gradient norms; and for the way back the
        errors of all tokens, what the last layer gave for their keys, and the weights and momentum that each chunk
        starts from.
    """
    from mnemonist.memory.kernels.triton_deep_memory import reads_kernel, states_kernel

    of = rule_of(rule)
    N, H, P = weights.shape
    y, loss, norm, errors, outputs, weights_at, momentum_at = _room(of, q, v, weights, momentum, cuts, keep, trace)
    after, anchor_after = weights.clone(), anchor.clone()
    momentum_after = weights.new_empty(0) if momentum is None else momentum.clone()
    sizes, choices = kernel_sizes(of, q, v, hidden, longest, P), kernel_choices(of, q, longest)
    low_initial, low_anchor = initial.to(q.dtype), anchor.to(q.dtype)
    room = q.new_empty(N * H, 3, sizes["BLOCK_C"], hidden if of.depth == 2 else 0)
    with torch.cuda.device_of(q):
        for these, turn in zip(spans.split(cuts), plan, strict=True):
            mixes, shares, ends = gates_of_chunks(step_size, log_momentum, log_decay, these, q, sizes, choices)
            states_kernel[(N * H,)](
                k, v, shares, ends, initial, anchor, after, momentum_after, anchor_after, weights_at, momentum_at,
                errors, outputs, loss, norm, room, these, turn, KEEP=keep, TRACE=trace, **sizes, **choices["states"],
            )  # fmt: skip
            if len(these):
                reads_kernel[(len(these) * H,)](
                    q, k, errors, mixes, shares, low_initial, low_anchor, weights_at, momentum_at, y, these,
                    **read_sizes(of, sizes, q.dtype), **choices["reads"],
                )  # fmt: skip
    anchor_after = torch.where(plan[0, :, 2, None, None] > 0, after, anchor_after)
    if not keep:
        errors, weights_at, momentum_at = (weights.new_empty(0) for _ in range(3))
    return y, after, momentum_after, anchor_after, loss, norm, errors, outputs, weights_at, momentum_at


def gates_of_chunks(
    step_size: Tensor, log_momentum: Tensor | None, log_decay: Tensor | None, spans: Tensor, q: Tensor,
    sizes: dict[str, Any], choices: dict[str, dict[str, Any]],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Mixes ``[chunks, H, C, C]``, in the type of the operands, and shares and ends of the chunks, in float32."""
    from mnemonist.memory.kernels.triton_deep_memory import ENDS, SHARES, gates_kernel

    head, C = (len(spans), sizes["H"]), sizes["BLOCK_C"]
    mixes = q.new_empty(*head, C, C)
    shares, ends = step_size.new_empty(*head, SHARES.value, C), step_size.new_empty(*head, ENDS.value)
    if len(spans):
        gates_kernel[(len(spans) * sizes["H"],)](
            step_size, log_momentum, log_decay, spans, mixes, shares, ends,
            H=sizes["H"], BLOCK_C=C, **choices["gates"],
        )  # fmt: skip
    return mixes, shares, ends


def _room(
    rule: MemoryRule,
    q: Tensor,
    v: Tensor,
    weights: Tensor,
    momentum: Tensor | None,
    cuts: Sequence[int],
    keep: bool,
    trace: bool,
) -> list[Tensor]:
    """Answers, losses, gradient norms, errors, outputs for keys, and slots for weights and momentum."""
    tokens, none = v.shape[:2], (0,)
    state = (max(cuts), *weights.shape[1:])
    answers = (weights if rule.denominator else v).new_empty(v.shape)  # a denominator is divided by in float32
    told = [weights.new_empty(tokens if trace else none) for _ in range(2)]
    outputs = weights.new_empty(v.shape if keep else none)
    slots = [q.new_empty(shape) for shape in (state, none if momentum is None else state)]
    return [answers, *told, q.new_empty(v.shape), outputs, *slots]


@read_deep_memory.register_fake
def _read_fake(
    q: Tensor, k: Tensor, v: Tensor, step_size: Tensor, log_momentum: Tensor | None, log_decay: Tensor | None,
    initial: Tensor, weights: Tensor, momentum: Tensor | None, anchor: Tensor, spans: Tensor, plan: Tensor,
    cuts: list[int], rule: str, hidden: int, longest: int, keep: bool, trace: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    y, loss, norm, *kept = _room(rule_of(rule), q, v, weights, momentum, cuts, keep, trace)
    if not keep:
        kept = [weights.new_empty(0) for _ in kept]
    after = [torch.empty_like(weights) for _ in range(3)]
    if momentum is None:
        after[1] = weights.new_empty(0)
    return y, *after, loss, norm, *kept


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
    errors: Tensor,
    outputs: Tensor,
    weights_at: Tensor,
    momentum_at: Tensor,
    spans: Tensor,
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
    from mnemonist.memory.kernels.triton_deep_memory import (
        gates_back_kernel,
        reads_back_kernel,
        states_back_kernel,
        targets_back_kernel,
        writes_back_kernel,
    )

    of = rule_of(rule)
    N, H, P = to_weights.shape
    # The anchor that was handed on is the weights themselves, the one that was given, or the start of the last chunk.
    between, given = (plan[0, :, i, None, None] > 0 for i in (2, 3))
    none = torch.zeros_like(to_anchor)
    back_weights = (to_weights + torch.where(between, to_anchor, none)).contiguous()
    back_anchor = torch.where(given, to_anchor, none).contiguous()
    to_last_anchor = torch.where(~between & ~given, to_anchor, none).contiguous()
    back_momentum = to_momentum.clone(memory_format=torch.contiguous_format)
    per_token, back_initial = _back_room(q, k, v, step_size, log_momentum, log_decay, to_weights)
    to_q, to_k, to_v, to_step, to_eta, to_decay = per_token
    sizes, choices = kernel_sizes(of, q, v, hidden, longest, P), kernel_choices(of, q, longest)
    back_r, back_u = torch.empty_like(errors), torch.empty_like(errors)
    seen, slopes, bends, sent_first, back_x, back_d, back_z, back_asked = (
        q.new_empty(*q.shape[:2], hidden if i == 4 or of.depth == 2 else 0) for i in range(8)
    )
    first, last = (q, back_asked, k.shape[-1]), (back_r, back_z if of.depth == 2 else q, v.shape[-1])
    to_weights_at, to_momentum_at = torch.empty_like(weights_at), torch.empty_like(momentum_at)
    chunks = (len(spans) * H,)
    with torch.cuda.device_of(q):
        mixes, shares, ends = gates_of_chunks(step_size, log_momentum, log_decay, spans, q, sizes, choices)
        room = mixes.new_empty(len(spans) * H, 3, *mixes.shape[-2:])
        to_mixes = torch.empty_like(mixes, dtype=torch.float32)
        to_shares, to_ends = torch.empty_like(shares), torch.empty_like(ends)
        low_initial, low_anchor = initial.to(q.dtype), anchor.to(q.dtype)
        if len(spans):
            reads_back_kernel[chunks](
                q, k, errors, mixes, shares, low_initial, low_anchor, weights_at, momentum_at, to_y.contiguous(), spans,
                to_q, to_k, to_v, back_r, seen, slopes, bends, sent_first, back_x, back_d, back_z, back_asked,
                to_weights_at, to_momentum_at, room, to_mixes, to_shares, STATES=True, **sizes, **choices["reads_back"],
            )  # fmt: skip
        states_back_kernel[(N * H,)](
            k, v, errors, shares, ends, low_anchor, weights_at, outputs, seen, slopes, bends, to_last_anchor,
            back_x, back_d, back_u, to_k, to_v, to_weights_at, to_momentum_at, back_weights, back_momentum, back_anchor,
            spans, plan, LIMIT=ADJOINT_LIMIT, **sizes, **choices["states_back"],
        )  # fmt: skip
        if len(spans):
            writes_back_kernel[chunks](
                k, errors, shares, low_initial, low_anchor, weights_at, momentum_at, seen, sent_first, back_x, back_u,
                to_weights_at, to_momentum_at, to_k, to_shares, to_ends, spans,
                **write_sizes(of, sizes, q.dtype), **choices["writes_back"],
            )  # fmt: skip
            gates_back_kernel[chunks](
                step_size, log_momentum, log_decay, spans, to_mixes, to_shares, to_ends, to_step, to_eta, to_decay,
                H=H, BLOCK_C=sizes["BLOCK_C"], **choices["gates"],
            )  # fmt: skip
        matrices = [(last, P - hidden * v.shape[-1], sizes["BLOCK_V"])]
        if of.depth == 2:
            matrices.append((first, 0, sizes["BLOCK_K"]))
        for (rows, columns, width), offset, block in matrices if of.decay_to == "initial" else ():
            targets_back_kernel[(N * H, -(-hidden // sizes["BLOCK_D"]))](
                rows, columns, shares, ends, to_weights_at, back_initial, spans, plan,
                H=H, D=hidden, P=P, OFFSET=offset, WIDTH=width, BLOCK_C=sizes["BLOCK_C"], BLOCK_W=block,
                BLOCK_D=sizes["BLOCK_D"], **choices["sums"],
            )  # fmt: skip
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
    errors: Tensor, outputs: Tensor, weights_at: Tensor, momentum_at: Tensor, spans: Tensor, plan: Tensor, rule: str,
    hidden: int, longest: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    per_token, _ = _back_room(q, k, v, step_size, log_momentum, log_decay, to_weights)
    states = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (to_weights, to_momentum, to_anchor)]
    return *per_token, torch.empty_like(initial), *states


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tokens, initial, weights, momentum, anchor, spans, plan, _, ctx.rule, ctx.hidden, ctx.longest, ctx.keep, _ = inputs
    ctx.save_for_backward(*tokens, initial, anchor, *output[6:], spans, plan, weights, momentum)
    ctx.set_materialize_grads(False)  # or the slots' derivative, which nobody takes, would be as large as they


def _go_back(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    if not ctx.keep:
        raise RuntimeError("This reading kept nothing to go back with; read with keep=True.")
    *inputs, spans, plan, weights, momentum = ctx.saved_tensors
    v = inputs[2]
    like = (v, weights, weights.new_empty(0) if momentum is None else momentum, weights)
    sent = [torch.zeros_like(x) if g is None else g for g, x in zip(grads[:4], like, strict=True)]
    back = torch.ops.mnemonist.read_deep_memory_backward(*sent, *inputs, spans, plan, ctx.rule, ctx.hidden, ctx.longest)
    to_q, to_k, to_v, to_step, to_momentum, to_decay, *to_state = back
    _, _, _, _, log_momentum, log_decay, *_ = inputs
    return (
        to_q, to_k, to_v, to_step, None if log_momentum is None else to_momentum,
        None if log_decay is None else to_decay, to_state[0], to_state[1], None if momentum is None else to_state[2],
        to_state[3], *[None] * 8,
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
    return read_flops(q_shape[0], q_shape[1], q_shape[2], v_shape[2], hidden, rule_of(rule))


def _register_flops() -> None:
    from torch.utils.flop_counter import register_flop_formula

    @register_flop_formula(torch.ops.mnemonist.read_deep_memory)
    def _(q: Any, k: Any, v: Any, *rest: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return _count(q, v, rest[10], rest[11])

    @register_flop_formula(torch.ops.mnemonist.read_deep_memory_backward)
    def _(y: Any, w: Any, s: Any, a: Any, q: Any, k: Any, v: Any, *rest: Any, out_shape: Any = None, **kw: Any) -> int:
        return 2 * _count(q, v, rest[11], rest[12])  # two products for each


if may_run():
    _register_flops()
