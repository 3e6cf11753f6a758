"""The one door to the inner loop: `memorize` reads a piece of a stream with a memory that learns as it reads."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mnemonist.errors import NotFinite
from mnemonist.memory.chunked import read_chunked
from mnemonist.memory.eager import eager
from mnemonist.memory.exact import read_exact
from mnemonist.memory.feature_map_table import FEATURE_MAPS
from mnemonist.memory.feature_maps import build_feature_map
from mnemonist.memory.least_squares import minimum
from mnemonist.memory.network import answer
from mnemonist.memory.optimum import read_optimum
from mnemonist.memory.recurrent import read_recurrent
from mnemonist.memory.rule import MemoryRule, find_rule
from mnemonist.memory.state import MemoryState, as_kept, initial_weights
from mnemonist.memory.stream import Gates, Trace, among_writes

Backend = Literal["auto", "recurrent", "chunked", "exact", "fla", "triton"]

log = logging.getLogger(__name__)

DENOMINATOR_FLOOR = 1e-6
HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Surprise:
    """What each token did to the memory, per token and head: ``[B, T, H]`` each, cut from the graph.

    Values at padding mean nothing. Of a token's several writes, losses are summed up, the norm is that of all their
    gradients together, and step size and momentum are means.
    """

    loss: Tensor
    """Inner loss before the write."""
    gradient_norm: Tensor
    """Norm of the inner gradient: the surprise of the Titans paper. A denominator's count is one more channel of it."""
    step_size: Tensor
    momentum: Tensor | None
    """eta, or None for a rule without momentum."""
    decay: Tensor | None
    """alpha (the mean over channels where each has its own), or None for a rule that does not forget."""

    def each(self, change: Callable[[Tensor], Tensor]) -> Surprise:
        """The report with ``change`` applied to each of its parts."""
        parts: dict[str, Any] = {name: None if part is None else change(part) for name, part in vars(self).items()}
        return Surprise(**parts)

    @staticmethod
    def join(reports: Sequence[Surprise]) -> Surprise:
        """One report out of several of one rule, one after the other in time."""
        parts: dict[str, Any] = {
            name: None if first is None else torch.cat([getattr(report, name) for report in reports], dim=1)
            for name, first in vars(reports[0]).items()
        }
        return Surprise(**parts)


@dataclass(frozen=True)
class MemoryRead:
    """What came of reading."""

    y: Tensor
    """``[B, T, H, V]``: what the memory answers to ``q`` after writing ``(k, v)`` of the same token; 0 at padding."""
    state: MemoryState
    """What the memory has become; pass it back as ``state=`` to read on."""
    surprise: Surprise | None
    """Per token and head, or None if it was not asked for."""
    backend: str
    """Which implementation read."""


@eager
def memorize(
    rule: MemoryRule | str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    step_size: Tensor | None = None,
    log_momentum: Tensor | None = None,
    log_decay: Tensor | None = None,
    initial: Sequence[Tensor] | None = None,
    state: MemoryState | None = None,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: Backend = "auto",
    feature_map: Callable[[Tensor], Tensor] | None = None,
    surprise: bool = True,
) -> MemoryRead:
    """Read a piece of a stream: every token is written into the memory, then the memory is asked.

    Any way of cutting a stream into calls gives the same answers and the same final state, and padding is a no-op.

    Args:
        rule: the choices, or the name of a row of `RULES`.
        q: queries ``[B, T, H, K]``.
        k: keys ``[B, T * W, H, K]``, where each token makes W = `MemoryRule.writes` of them, one after the other.
        v: values ``[B, T * W, H, V]``.
        step_size: theta ``[B, T * W, H]``; None means 1, which only the dot objective allows.
        log_momentum: log eta ``[B, T * W, H]``; given if and only if the rule has momentum.
        log_decay: log (1 - alpha): ``[B, T, H]``, or ``[B, T, H, D]`` if the rule forgets per channel, with ``D`` from
            `MemoryRule.decay_channels`; given if and only if the rule forgets. -inf forgets everything.
        initial: ``M_0``, a list of ``[H, D_in, D_out]`` applied as ``x @ W``; None means zeros, which only a linear
            memory allows. Every piece of a stream is given the same one: it is also what a memory may decay to.
        state: what an earlier call returned, or None at the beginning of a stream.
        mask: ``[B, T]`` bool, False on padding.
        cu_seqlens: ``[N + 1]`` int32 or int64: where each of N sequences begins that stand one after the other in one
            row (``B = 1``), and at last their ``total`` of tokens. Answers and surprise are packed alike; a state has N
            rows. Not together with a mask.
        backend: auto, or the implementation by name. Auto takes exact or chunked where the rule allows it. On an NVIDIA
            GPU it takes, where they are installed and know the rule, triton in place of chunked, and for a linear
            memory the kernels of flash-linear-attention (fla), which report no surprise. Both multiply in the type of
            the tokens, but triton in float32 where there is one token a row and no derivative is wanted. By name,
            triton also reads linear memories with the l2 objective (momentum, a decay to initial weights), not as fast
            yet as fla reads those that it knows.
        feature_map: what to use as phi; needed if the rule's map has parameters or random draws.
        surprise: whether to also report the surprise of every token.

    Raises:
        ValueError: shapes, gates or state do not fit the rule, or gates hold NaN; the message says which and what to
            do. Numbers are only looked at on a CPU: elsewhere every call would wait for the device.
    """
    rule = find_rule(rule)
    _check_tokens(rule, q, k, v, mask)
    lengths = None if cu_seqlens is None else rule.writes * _check_sequences(cu_seqlens, q, mask)
    with _full_precision(q.device):
        if mask is not None and bool(mask.all()):
            mask = None
        if mask is not None:  # whatever stands at padding, NaN too, must reach nothing: 0 * NaN is NaN
            q = q.masked_fill(~mask[..., None, None], 0)
            mask = mask.repeat_interleave(rule.writes, 1)  # from here on of writes, as all else
            k, v = (x.masked_fill(~mask[..., None, None], 0) for x in (k, v))
        phi = _feature_map(rule, feature_map, q)
        dtype = torch.float64 if v.dtype == torch.float64 else torch.float32
        # Where nothing is done to tokens they stay as they came: passes over all of them cost as much as a kernel.
        queries, keys, values = q, k, v
        if rule.feature_map is not None or rule.denominator:
            queries, keys, values = phi(q.to(dtype)), phi(k.to(dtype)), v.to(dtype)
        H, K = queries.shape[2:]
        B = q.shape[0] if lengths is None else lengths.numel()
        gates = _check_gates(rule, queries, v.shape[-1], step_size, log_momentum, log_decay, mask, dtype)
        weights = _check_initial(rule, initial, H, K, v.shape[-1], dtype, q.device)
        asking = 0 if rule.read_at == "before" else rule.writes - 1
        queries = among_writes(queries, rule.writes, asking)
        if rule.denominator:
            # Summing up phi(k) is writing the value 1: one more output channel.
            values = torch.cat([values, torch.ones_like(values[..., :1])], dim=-1)
        weights = as_kept(rule, weights)
        if state is None:
            state = MemoryState.fresh(rule, weights, B)
        _check_state(rule, state, weights, B)

        operand = v.dtype if q.dtype == k.dtype == v.dtype and v.dtype in HALF else dtype
        chosen = _choose(rule, backend, queries, values, operand, surprise)
        trace: Trace | None
        taken = operand if chosen == "triton" else dtype
        tokens = (queries.to(taken), keys.to(taken), values.to(taken))
        if chosen == "triton":
            y, after, trace = _read_triton(tokens, gates, weights, state, mask, lengths, surprise)
        else:
            read = functools.partial(_read, chosen, operand, surprise)
            if lengths is not None:
                y, after, trace = _read_sequences(read, tokens, gates, weights, state, lengths)
            else:
                y, after, trace = read(tokens, gates, weights, state, mask)
        if rule.writes > 1:
            y = y[:, asking :: rule.writes]
        y = _normalised(rule, y)
        report = _surprise(rule, trace, gates) if surprise and trace is not None else None
        return MemoryRead(y.to(v.dtype), after, report, chosen)


def recall(
    rule: MemoryRule | str,
    q: Tensor,
    weights: Sequence[Tensor],
    feature_map: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Ask a memory without writing anything: ``M(q)`` (Titans eq. 15).

    Args:
        rule: the choices, or the name of a row of `RULES`.
        q: queries ``[B, T, H, K]``.
        weights: ``M``, per layer ``[B, H, D_in, D_out]``, as `MemoryState.weights` holds them.
        feature_map: as for `memorize`.

    Returns:
        ``[B, T, H, V]``, in the type of ``q``.
    """
    rule = find_rule(rule)
    with _full_precision(q.device):
        phi = _feature_map(rule, feature_map, q)
        queries = phi(q.to(weights[0].dtype)).transpose(1, 2)
        asked = [minimum(w) for w in weights] if rule.step == "optimum" else weights
        y = answer(rule, lambda i, z: z @ asked[i], queries).transpose(1, 2)
        return _normalised(rule, y).to(q.dtype)


def _full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Under mixed precision the algebra would be run in half precision, and a state would be no better."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()  # which takes a token less time


def _normalised(rule: MemoryRule, y: Tensor) -> Tensor:
    """Answers ``[..., V]``; with a denominator, what is divided by it is all but the last channel."""
    if not rule.denominator:
        return y
    total = y[..., -1:]
    return y[..., :-1] / torch.where(total.abs() < DENOMINATOR_FLOOR, torch.full_like(total, DENOMINATOR_FLOOR), total)


def _choose(rule: MemoryRule, backend: str, q: Tensor, v: Tensor, operand: torch.dtype, trace: bool) -> str:
    able = {"recurrent": True, "exact": rule.solvable, "chunked": not rule.per_token and rule.step_is_gradient}
    if backend not in {"auto", "fla", "triton", *able}:
        raise ValueError(f"backend is {backend!r}; it must be auto, {', '.join(able)}, fla or triton.")
    for kernels, reason in _refusals(rule, backend, q, v, operand, trace):
        if reason is None:
            return kernels
        if backend != "auto":
            raise ValueError(f"backend {kernels!r} cannot read rule {rule.name!r} here: {reason}; use auto.")
        _say_once(f"Reading through torch, not {kernels}: {reason}.")
    if backend == "auto":
        return "exact" if able["exact"] else "chunked" if able["chunked"] else "recurrent"
    if not able[backend]:
        reason = (
            "its steps are more than the gradient, so that those of a chunk do not add up"
            if not rule.step_is_gradient
            else "it takes gradients at the chunk's start"
            if backend == "exact" and not rule.per_token
            else "only a linear memory with the dot or l2 objective can be solved for"
            if backend == "exact"
            else "it takes a gradient at every token"
        )
        raise ValueError(f"backend {backend!r} cannot read rule {rule.name!r}: {reason}; use auto.")
    return backend


def _refusals(
    rule: MemoryRule, backend: str, q: Tensor, v: Tensor, operand: torch.dtype, trace: bool
) -> Iterator[tuple[str, str | None]]:
    """The kernels for a GPU that are asked for or would be the choice, and why they cannot read here, if they cannot.

    They are imported here: it takes a while, and registers operations of torch.
    """
    if backend == "fla" or (backend == "auto" and v.is_cuda and rule.linear):
        from mnemonist.memory.kernels.flash_linear_attention import obstacle

        yield "fla", obstacle(rule, q, operand, trace)
    if backend == "triton" or (backend == "auto" and v.is_cuda and not rule.per_token):
        from mnemonist.memory.kernels import triton_linear_reading, triton_reading

        kernels = triton_linear_reading if rule.per_token else triton_reading
        yield "triton", kernels.refusal(rule, v.device, v.dtype, q.shape[-1], v.shape[-1])


@functools.cache
def _say_once(line: str) -> None:
    log.info(line)


Tokens = tuple[Tensor, Tensor, Tensor]
Read = tuple[Tensor, MemoryState, Trace | None]


def _read(
    chosen: str,
    operand: torch.dtype,
    surprise: bool,
    tokens: Tokens,
    gates: Gates,
    weights: list[Tensor],
    state: MemoryState,
    mask: Tensor | None,
) -> Read:
    if chosen == "recurrent":
        return read_recurrent(*tokens, gates, weights, state, mask)
    if chosen == "fla":
        from mnemonist.memory.kernels.flash_linear_attention import read_fla

        return *read_fla(*tokens, gates, weights, state, mask, operand), None
    by_chunk = read_optimum if state.rule.step == "optimum" else read_exact
    reader = by_chunk if chosen == "exact" else read_chunked
    return reader(*tokens, gates, weights, state, mask, surprise)


def _read_sequences(
    read: Callable[[Tokens, Gates, list[Tensor], MemoryState, Tensor | None], Read],
    tokens: Tokens,
    gates: Gates,
    weights: list[Tensor],
    state: MemoryState,
    lengths: Tensor,
) -> Read:
    """Sequences that stand in one row get rows of their own, padded; what comes of it is packed again."""
    column = torch.arange(int(lengths.max()))
    mask = column < lengths[:, None]
    first = lengths.cumsum(0) - lengths
    source = ((first[:, None] + column) * mask).to(tokens[0].device)
    mask = mask.to(source.device)
    padded = (tokens[0][0, source], tokens[1][0, source], tokens[2][0, source])
    rows = gates.each(lambda g: g[0, source]).without_padding(mask)
    y, after, trace = read(padded, rows, weights, state, None if bool(mask.all()) else mask)
    packed = None if trace is None else Trace(trace.loss[mask][None], trace.gradient_norm[mask][None])
    return y[mask][None], after, packed


def _read_triton(
    tokens: Tokens,
    gates: Gates,
    weights: list[Tensor],
    state: MemoryState,
    mask: Tensor | None,
    lengths: Tensor | None,
    surprise: bool,
) -> Read:
    """The real tokens of all rows in one row, which is what the kernels read; or, decoding, one token a row."""
    from mnemonist.memory.kernels import triton_decoding, triton_linear_reading, triton_reading

    if mask is None and lengths is None and triton_decoding.applies(*tokens, gates, weights, state):
        return triton_decoding.read_one_token(*tokens, gates, weights, state, surprise)
    shape, device = tokens[0].shape[:2], tokens[0].device
    real = None
    if mask is not None:
        real, lengths = mask.flatten().nonzero().squeeze(1), mask.sum(1).cpu()
    elif lengths is None:
        lengths = torch.full((shape[0],), shape[1])

    def pack(x: Tensor) -> Tensor:
        return x.flatten(0, 1) if real is None else x.flatten(0, 1)[real]

    def unpack(x: Tensor) -> Tensor:
        if real is not None:
            x = torch.zeros(shape.numel(), *x.shape[1:], dtype=x.dtype, device=device).index_copy(0, real, x)
        return x.unflatten(0, shape)

    q, k, v = (pack(x) for x in tokens)
    read_packed = (triton_linear_reading if state.rule.per_token else triton_reading).read_packed
    y, after, trace = read_packed(state.rule, q, k, v, gates.each(pack), weights, state, lengths, surprise)
    return unpack(y), after, None if trace is None else Trace(unpack(trace.loss), unpack(trace.gradient_norm))


def _feature_map(rule: MemoryRule, given: Callable[[Tensor], Tensor] | None, q: Tensor) -> Callable[[Tensor], Tensor]:
    if rule.feature_map is None:
        if given is not None:
            raise ValueError(f"rule {rule.name!r} has no feature map, but one was given; set feature_map in the rule.")
        return lambda x: x
    if given is not None:
        return given
    if FEATURE_MAPS[rule.feature_map].kind != "deterministic":
        raise ValueError(
            f"rule {rule.name!r} uses the {FEATURE_MAPS[rule.feature_map].kind} feature map {rule.feature_map!r}; "
            "build it once with build_feature_map and pass it as feature_map=."
        )
    return build_feature_map(rule.feature_map, q.shape[-2], q.shape[-1], **rule.feature_options)


def _check_tokens(rule: MemoryRule, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
    if (
        not q.dim() == k.dim() == v.dim() == 4
        or k.shape != (q.shape[0], rule.writes * q.shape[1], *q.shape[2:])
        or v.shape[:3] != k.shape[:3]
    ):
        if rule.writes > 1:
            raise ValueError(
                f"rule {rule.name!r} has {rule.writes} writes a token: q {list(q.shape)} must be [B, T, H, K], and k "
                f"{list(k.shape)} and v {list(v.shape)} [B, {rule.writes} T, H, K] and [B, {rule.writes} T, H, V] with "
                "the same B, T and H."
            )
        raise ValueError(
            f"q {list(q.shape)} and k {list(k.shape)} must both be [B, T, H, K] and v {list(v.shape)} [B, T, H, V] "
            "with the same B, T and H."
        )
    if not all(x.is_floating_point() for x in (q, k, v)):
        raise ValueError(f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}; they must be floating point numbers.")
    if 0 in q.shape or 0 in v.shape:
        raise ValueError(f"There is nothing to read: q is {list(q.shape)} and v {list(v.shape)}; no size may be 0.")
    if mask is not None and (mask.shape != q.shape[:2] or mask.dtype != torch.bool):
        raise ValueError(
            f"mask is {mask.dtype} {list(mask.shape)}; it must be torch.bool [B, T] = "
            f"{list(q.shape[:2])}, False on padding."
        )


def _check_sequences(cu_seqlens: Tensor, q: Tensor, mask: Tensor | None) -> Tensor:
    """Tokens of each sequence: ``[N]`` int64 on the CPU."""
    if mask is not None:
        raise ValueError("cu_seqlens and mask exclude each other: packed sequences have no padding; give one of them.")
    if q.shape[0] != 1:
        raise ValueError(
            f"cu_seqlens is given with B = {q.shape[0]}; pack the sequences into one row, [1, total, H, K]."
        )
    if cu_seqlens.dtype not in (torch.int32, torch.int64) or cu_seqlens.dim() != 1 or cu_seqlens.numel() < 2:
        raise ValueError(
            f"cu_seqlens is {cu_seqlens.dtype} {list(cu_seqlens.shape)}; it must be int32 or int64 [N + 1] for N "
            "sequences."
        )
    borders = cu_seqlens.detach().to("cpu", torch.int64)
    lengths = borders.diff()
    if int(borders[0]) != 0 or int(borders[-1]) != q.shape[1] or bool((lengths < 0).any()):
        raise ValueError(f"cu_seqlens must rise from 0 to the {q.shape[1]} tokens there are; it is {borders.tolist()}.")
    return lengths


def _check_gates(
    rule: MemoryRule,
    q: Tensor,
    value_dim: int,
    step_size: Tensor | None,
    log_momentum: Tensor | None,
    log_decay: Tensor | None,
    mask: Tensor | None,
    dtype: torch.dtype,
) -> Gates:
    B, T, H, K = q.shape
    writes = (B, rule.writes * T, H)
    if step_size is None:
        if rule.objective != "dot":
            raise ValueError(f"rule {rule.name!r} needs step_size [B, T, H]; only the dot objective has a default (1).")
        step_size = q.new_ones(writes)
    channels = (rule.decay_channels(K, value_dim),) if rule.retention == "channel" else ()
    expected = {
        "step_size": (step_size, True, writes),
        "log_momentum": (log_momentum, rule.momentum, writes),
        "log_decay": (log_decay, rule.retention != "none", (B, T, H, *channels)),
    }
    for name, (gate, used, shape) in expected.items():
        if (gate is not None) != used:
            verb = "needs" if used else "does not use"
            raise ValueError(f"rule {rule.name!r} {verb} {name}; {'give it' if used else 'leave it None'}.")
        if gate is not None and gate.shape != shape:
            raise ValueError(f"{name} is {list(gate.shape)}; rule {rule.name!r} needs {list(shape)} here.")
    gates = Gates(
        step_size.to(dtype),
        None if log_momentum is None else log_momentum.to(dtype),
        None if log_decay is None else among_writes(log_decay.to(dtype), rule.writes, 0),
    ).without_padding(mask)
    if q.device.type == "cpu" and q.numel():  # elsewhere asking would wait for the device
        for name in expected:
            _check_range(name, getattr(gates, name))
    return gates


def _check_range(name: str, gate: Tensor | None) -> None:
    """The extremes say it of all, and are NaN if one value is. What has a logarithm may be zero."""
    if gate is None:
        return
    least, most = (extreme.item() for extreme in gate.detach().aminmax())
    logarithm = name.startswith("log")
    if math.isnan(most) or most == math.inf or (least == -math.inf and not logarithm):
        raise NotFinite(f"{name} holds NaN or infinite values; check the inputs or the weights that made it.")
    if logarithm and most > 0:
        kept = "of the momentum" if name == "log_momentum" else "of the memory, 1 - alpha"
        raise ValueError(f"{name} is up to {most:g}; it is the log of what is left {kept}, and must be at most 0.")
    if least < 0 and not logarithm:
        raise ValueError(f"{name} is down to {least:g}; a step must be at least 0.")


def _check_initial(
    rule: MemoryRule,
    initial: Sequence[Tensor] | None,
    heads: int,
    key_dim: int,
    value_dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> list[Tensor]:
    sizes = rule.layer_sizes(key_dim, value_dim)
    if initial is None:
        if not rule.linear:
            raise ValueError(
                f"rule {rule.name!r} has a memory of more than a bare matrix, which cannot start from zero; "
                "pass initial=initial_weights(rule, heads, key_dim, value_dim)."
            )
        return [w.to(device) for w in initial_weights(rule, heads, key_dim, value_dim, dtype=dtype)]
    shapes, expected = [tuple(w.shape) for w in initial], [(heads, *size) for size in sizes]
    if shapes != expected:
        raise ValueError(f"initial holds {shapes}; rule {rule.name!r} needs {expected} here.")
    return [w.to(dtype) for w in initial]


def _check_state(rule: MemoryRule, state: MemoryState, weights: list[Tensor], batch: int) -> None:
    if state.rule is not rule and state.rule != rule:
        raise ValueError(
            f"The state belongs to rule {state.rule.name!r} with other choices than {rule.name!r}; "
            "read on with the rule that began the stream."
        )
    if state.batch != batch:
        raise ValueError(
            f"The state has {state.batch} rows but the batch has {batch}; "
            "use state.select(rows) to repeat or drop rows."
        )
    if [w.shape[1:] for w in state.weights] != [w.shape for w in weights]:
        raise ValueError(
            f"The state's weights are {[list(w.shape[1:]) for w in state.weights]}, but this memory's are "
            f"{[list(w.shape) for w in weights]}; it belongs to another memory."
        )
    (here, there) = ((w.dtype, w.device) for w in (weights[0], state.weights[0]))
    if here != there:
        raise ValueError(
            f"The state is {there[0]} on {there[1]}, but this reading is {here[0]} on {here[1]}; "
            "move it with state.map(lambda w: w.to(device, dtype))."
        )


def _surprise(rule: MemoryRule, trace: Trace, gates: Gates) -> Surprise:
    def of_tokens(x_BTH: Tensor, join: Callable[[Tensor], Tensor]) -> Tensor:
        x = x_BTH.detach()
        return x if rule.writes == 1 else join(x.unflatten(1, (-1, rule.writes)))

    decay = None
    if gates.log_decay is not None:
        decay = -torch.expm1(of_tokens(gates.log_decay, lambda x: x[:, :, 0]))
    return Surprise(
        of_tokens(trace.loss, lambda x: x.sum(2)),
        of_tokens(trace.gradient_norm, lambda x: x.norm(dim=2)),
        of_tokens(gates.step_size, lambda x: x.mean(2)),
        None if gates.log_momentum is None else of_tokens(gates.log_momentum.detach().exp(), lambda x: x.mean(2)),
        decay.mean(-1) if decay is not None and decay.dim() == 4 else decay,
    )
