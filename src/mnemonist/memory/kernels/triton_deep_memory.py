"""Deep memories for NVIDIA GPUs, in Triton: the equations of `chunked` and `gates`, and their derivatives by hand.

What must be done one chunk after the other is kept apart from what need not:

    gates_kernel         all chunks at once   what the gates of a chunk amount to
    states_kernel        chunk after chunk    the errors, and the weights and momentum that each chunk starts from
    reads_kernel         all chunks at once   the answers
    reads_back_kernel    all chunks at once   back from the answers to what was read
    states_back_kernel   chunk after chunk    back through the writes and the inner gradient
    gates_back_kernel    all chunks at once   back to the gates

Tokens of all sequences stand in a row, ``[total, H, D]``, and `spans` says where each chunk is, so nothing is cut or
padded outside. The weights of a memory are one row of ``P`` numbers: ``W_1 [K, D]``, then the last matrix transposed,
``W_2^T [V, D]``; a memory of one layer has the last one alone. Hidden columns ``D`` are taken in blocks. Weights and
momentum are float32; what chunks start from is also kept, one *slot* a chunk, in the type of the operands, for the
kernels that read all chunks at once. Programs own what they write: what heads of several sequences share is summed up
outside.

This module imports triton; only `triton_reading` imports it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mnemonist.memory.kernels.triton_algebra import (
    LEAST_LOG,
    activation,
    activation_back,
    dot,
    gates,
    gates_back,
    inner_error,
    inner_error_back,
    normalise,
    normalise_back,
    tile,
)

SWEEP = tl.constexpr(1024)  # numbers of a derivative measured at a time
SHARES = tl.constexpr(5)  # beta, pull, f of each token's read; its part in the last M and in the last S
ENDS = tl.constexpr(4)  # beta, pull, f of the last M; what is left of S


@triton.jit
def load_share(shares, which: tl.constexpr, row, BLOCK_C: tl.constexpr):
    return tl.load(shares + which * BLOCK_C + row)


@triton.jit
def _read_shares(shares, row, BLOCK_C: tl.constexpr):
    """Beta, pull and f of the read of each token of a chunk."""
    beta, pull = load_share(shares, 0, row, BLOCK_C), load_share(shares, 1, row, BLOCK_C)
    return beta, pull, load_share(shares, 2, row, BLOCK_C)


@triton.jit
def load_tokens(pointer, token, valid, column, width):
    """What stands at tokens, ``[C, width]``. Loaded where it is used, and again: registers are scarcer than loads."""
    return tl.load(pointer + tile(token, column, width), valid[:, None] & (column < width)[None, :], 0.0)


@triton.jit
def tokens_of(spans, chunk, head, row, H: tl.constexpr):
    """Where the tokens of a chunk stand, which of its rows have one, and how many there are."""
    begin, count = tl.load(spans + chunk * 4), tl.load(spans + chunk * 4 + 1)
    return (begin + row).to(tl.int64) * H + head, row < count, count


@triton.jit
def load_gates(step_size, log_momentum, log_decay, token, valid, MOMENTUM: tl.constexpr, DECAY: tl.constexpr):
    """Theta, log eta and log (1 - alpha) of tokens; the logs are 0 where the rule has no such gate."""
    theta = tl.load(step_size + token, valid, 0.0)
    log_eta, log_left = tl.zeros_like(theta), tl.zeros_like(theta)
    if MOMENTUM:
        log_eta = tl.maximum(tl.load(log_momentum + token, valid, 0.0), LEAST_LOG)
    if DECAY:
        log_left = tl.maximum(tl.load(log_decay + token, valid, 0.0), LEAST_LOG)
    return theta, log_eta, log_left


@triton.jit
def _nudge(count):
    """Nothing, of which the compiler does not know that: added to pointers in a loop, it keeps their tiles, which would
    take up most registers, from being made before the loop."""
    return tl.multiple_of(tl.minimum(count, 0), 16)


# --- gates


@triton.jit
def _chunk_gates(
    step_size, log_momentum, log_decay, spans, H: tl.constexpr, BLOCK_C: tl.constexpr, BEFORE: tl.constexpr,
    MOMENTUM: tl.constexpr, DECAY: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.arange(0, BLOCK_C)
    token, valid, count = tokens_of(spans, tl.program_id(0) // H, tl.program_id(0) % H, row, H)
    theta, log_eta, log_left = load_gates(step_size, log_momentum, log_decay, token, valid, MOMENTUM, DECAY)
    return row, token, valid, theta, gates(theta, log_eta, log_left, row, count, BEFORE, MOMENTUM, OPERAND, PRECISION)


@triton.jit
def gates_kernel(
    step_size, log_momentum, log_decay, spans, mixes, shares, ends,
    H: tl.constexpr, BLOCK_C: tl.constexpr, BEFORE: tl.constexpr, MOMENTUM: tl.constexpr, DECAY: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row, token, valid, theta, found = _chunk_gates(
        step_size, log_momentum, log_decay, spans, H, BLOCK_C, BEFORE, MOMENTUM, DECAY, OPERAND, PRECISION
    )
    A, E, G, beta, pull, f, m, left, moved, mix_last, moved_last, beta_last, pull_last, f_last, carry = found
    own = tl.program_id(0).to(tl.int64)
    tl.store(mixes + own * BLOCK_C * BLOCK_C + tile(row, row, BLOCK_C), G)
    shares += own * SHARES * BLOCK_C
    tl.store(shares + row, beta)
    tl.store(shares + BLOCK_C + row, pull)
    tl.store(shares + 2 * BLOCK_C + row, f)
    tl.store(shares + 3 * BLOCK_C + row, mix_last)
    tl.store(shares + 4 * BLOCK_C + row, moved_last)
    ends += own * ENDS
    tl.store(ends, beta_last)
    tl.store(ends + 1, pull_last)
    tl.store(ends + 2, f_last)
    tl.store(ends + 3, carry)


@triton.jit
def gates_back_kernel(
    step_size, log_momentum, log_decay, spans, to_mixes, to_shares, to_ends,
    to_step_size, to_log_momentum, to_log_decay,
    H: tl.constexpr, BLOCK_C: tl.constexpr, BEFORE: tl.constexpr, MOMENTUM: tl.constexpr, DECAY: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row, token, valid, theta, found = _chunk_gates(
        step_size, log_momentum, log_decay, spans, H, BLOCK_C, BEFORE, MOMENTUM, DECAY, OPERAND, PRECISION
    )
    A, E, G, beta, pull, f, m, left, moved, mix_last, moved_last, beta_last, pull_last, f_last, carry = found
    own = tl.program_id(0).to(tl.int64)
    to_G = tl.load(to_mixes + own * BLOCK_C * BLOCK_C + tile(row, row, BLOCK_C))
    to_shares += own * SHARES * BLOCK_C
    to_ends += own * ENDS
    to_theta, to_log_eta, to_log_left = gates_back(
        theta, row, A, E, beta, m, left, moved, beta_last, carry,
        to_G,
        load_share(to_shares, 0, row, BLOCK_C), load_share(to_shares, 1, row, BLOCK_C),
        load_share(to_shares, 2, row, BLOCK_C),
        tl.load(to_ends), tl.load(to_ends + 1), tl.load(to_ends + 2),
        load_share(to_shares, 3, row, BLOCK_C), load_share(to_shares, 4, row, BLOCK_C), tl.load(to_ends + 3),
        BEFORE, MOMENTUM, OPERAND, PRECISION,
    )  # fmt: skip
    tl.store(to_step_size + token, to_theta, valid)
    if MOMENTUM:
        tl.store(to_log_momentum + token, to_log_eta, valid)
    if DECAY:
        tl.store(to_log_decay + token, to_log_left, valid)


# --- chunk after chunk


@triton.jit
def _move(
    x, d, at, inside, weights, momentum, target, weights_at, momentum_at, last_anchor, last,
    mix_last, moved_last, beta_last, pull_last, f_last, carry,
    TARGETS: tl.constexpr, MOMENTUM: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the tokens ``x [C, I]``, ``d [C, O]`` into a tile ``[I, O]``, and keep what it was before."""
    met = tl.load(weights + at, inside, 0.0)
    tl.store(weights_at + at, met.to(OPERAND), inside)
    tl.store(last_anchor + at, met, inside & (tl.zeros_like(at) + last > 0))
    after = beta_last * met - dot(tl.trans(x * mix_last[:, None]), d, OPERAND, PRECISION)
    if TARGETS:
        after += pull_last * tl.load(target + at, inside, 0.0)
    if MOMENTUM:
        moving = tl.load(momentum + at, inside, 0.0)
        tl.store(momentum_at + at, moving.to(OPERAND), inside)
        after += f_last * moving
        kept = carry * moving - dot(tl.trans(x * moved_last[:, None]), d, OPERAND, PRECISION)
        tl.debug_barrier()
        tl.store(momentum + at, kept, inside)
    tl.debug_barrier()  # all of the tile has been read before any of it is replaced
    tl.store(weights + at, after, inside)


@triton.jit
def _write_block(
    k, errors, before, x, token, valid, hidden, key, value, point, weights, momentum, target, weights_at, momentum_at,
    last_anchor, last, mix_last, moved_last, beta_last, pull_last, f_last, carry,
    K: tl.constexpr, D: tl.constexpr, V: tl.constexpr, LAST: tl.constexpr, DEPTH: tl.constexpr,
    ACTIVATION: tl.constexpr, TARGETS: tl.constexpr, MOMENTUM: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Write a chunk into the columns ``hidden``. Returns, by token, the squares of inputs and of errors sent there."""
    at_last, inside_last = LAST + tile(value, hidden, D), (value < V)[:, None] & (hidden < D)[None, :]
    sent_back = tl.sum(x, 1)
    if DEPTH == 2:
        w_last = tl.load(point + at_last, inside_last, 0.0)
        slope, curve = activation_back(before, ACTIVATION)
        d = dot(load_tokens(errors, token, valid, value, V), w_last, OPERAND, PRECISION) * slope
        sent_back = tl.sum(d * d, 1)
        at, inside = tile(key, hidden, D), (key < K)[:, None] & (hidden < D)[None, :]
        _move(
            load_tokens(k, token, valid, key, K).to(tl.float32), d, at, inside,
            weights, momentum, target, weights_at, momentum_at, last_anchor, last,
            mix_last, moved_last, beta_last, pull_last, f_last, carry, TARGETS, MOMENTUM, OPERAND, PRECISION,
        )  # fmt: skip
    _move(
        load_tokens(errors, token, valid, value, V).to(tl.float32), x, at_last, inside_last,
        weights, momentum, target, weights_at, momentum_at, last_anchor, last,
        mix_last, moved_last, beta_last, pull_last, f_last, carry, TARGETS, MOMENTUM, OPERAND, PRECISION,
    )  # fmt: skip
    return tl.sum(x * x, 1), sent_back


@triton.jit
def _met(
    k_CK, hidden, key, point, K: tl.constexpr, D: tl.constexpr, DEPTH: tl.constexpr, ACTIVATION: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What the first layer makes of the keys at the anchor, before and after its non-linearity."""
    if DEPTH == 1:
        before, x = k_CK, k_CK
    else:
        inside = (key < K)[:, None] & (hidden < D)[None, :]
        w = tl.load(point + tile(key, hidden, D), inside, 0.0)
        before = dot(k_CK, w, OPERAND, PRECISION)
        x = activation(before, ACTIVATION)
    return before, x


@triton.jit
def states_kernel(
    k, v, shares, ends, target, anchor, weights, momentum, last_anchor, weights_at, momentum_at, errors,
    outputs, loss, gradient_norm, spans, plan,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, V: tl.constexpr, P: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    DEPTH: tl.constexpr, ACTIVATION: tl.constexpr, OBJECTIVE: tl.constexpr, DELTA: tl.constexpr, NORM: tl.constexpr,
    RESIDUAL: tl.constexpr, DENOMINATOR: tl.constexpr, EPS: tl.constexpr, MOMENTUM: tl.constexpr,
    TARGETS: tl.constexpr, KEEP: tl.constexpr, TRACE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`weights` and `momentum` are what the first chunk meets, and in the end what the last one leaves. `last_anchor`
    gets what the last chunk met, unless that began before the first token."""
    sequence, head = tl.program_id(0) // H, tl.program_id(0) % H
    row, key, value = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    block = tl.arange(0, BLOCK_D)
    real = (value < V)[None, :]
    LAST: tl.constexpr = P - D * V  # where the last matrix begins
    own = (sequence * H + head).to(tl.int64) * P
    weights += own
    momentum += own
    anchor += own
    last_anchor += own
    target += head * P
    first, chunks = tl.load(plan + sequence * 4), tl.load(plan + sequence * 4 + 1)

    for g in range(chunks):
        slot = (first + g).to(tl.int64) * H + head
        token, valid, count = tokens_of(spans, first + g, head, row, H)
        anchored = tl.load(spans + (first + g) * 4 + 3) > 0
        nudge = _nudge(count)
        weights_now, momentum_now, target_now = weights + nudge, momentum + nudge, target + nudge
        last_anchor_now = last_anchor + nudge
        point = weights_now
        if anchored:
            point = anchor + nudge
        tokens_V = valid[:, None] & real
        k_CK = load_tokens(k, token, valid, key, K).to(tl.float32)
        mix_last = load_share(shares + slot * SHARES * BLOCK_C, 3, row, BLOCK_C)
        moved_last = load_share(shares + slot * SHARES * BLOCK_C, 4, row, BLOCK_C)
        beta_last, pull_last = tl.load(ends + slot * ENDS), tl.load(ends + slot * ENDS + 1)
        f_last, carry = tl.load(ends + slot * ENDS + 2), tl.load(ends + slot * ENDS + 3)

        # The error at the anchor.
        u = tl.zeros([BLOCK_C, BLOCK_V], tl.float32)
        for start in range(0, D, BLOCK_D):
            hidden = start + block
            before, x = _met(k_CK, hidden, key, point, K, D, DEPTH, ACTIVATION, OPERAND, PRECISION)
            at_last, inside = LAST + tile(value, hidden, D), (value < V)[:, None] & (hidden < D)[None, :]
            u += dot(x, tl.trans(tl.load(point + at_last, inside, 0.0)), OPERAND, PRECISION)
        v_CV = load_tokens(v, token, valid, value, V).to(tl.float32)
        normed, inverse, sent, error, off, each_loss = inner_error(
            u, k_CK, v_CV, real, V, OBJECTIVE, DELTA, NORM, RESIDUAL, DENOMINATOR, EPS
        )
        tl.store(errors + tile(token, value, V), error.to(OPERAND), tokens_V)
        if KEEP:
            tl.store(outputs + tile(token, value, V), u, tokens_V)
        squares = tl.sum(error * error, 1)
        tl.debug_barrier()  # errors are loaded again

        # What is written.
        last = tl.where((first + g == first + chunks - 1) & (anchored == 0), 1, 0)
        seen, sent_back = tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32)
        for start in range(0, D, BLOCK_D):
            hidden = start + block
            k_CK = load_tokens(k, token, valid, key, K).to(tl.float32)
            before, x = _met(k_CK, hidden, key, point, K, D, DEPTH, ACTIVATION, OPERAND, PRECISION)
            more_seen, more_sent = _write_block(
                k, errors, before, x, token, valid, hidden, key, value, point, weights_now, momentum_now, target_now,
                weights_at + slot * P, momentum_at + slot * P, last_anchor_now, last,
                mix_last, moved_last, beta_last, pull_last, f_last, carry,
                K, D, V, LAST, DEPTH, ACTIVATION, TARGETS, MOMENTUM, OPERAND, PRECISION,
            )  # fmt: skip
            seen += more_seen
            sent_back += more_sent
        if TRACE:
            tl.store(loss + token, each_loss, valid)
            squares *= seen
            if DEPTH == 2:
                k_CK = load_tokens(k, token, valid, key, K).to(tl.float32)
                squares += tl.sum(k_CK * k_CK, 1) * sent_back
            tl.store(gradient_norm + token, tl.sqrt(squares), valid)
        tl.debug_barrier()  # the next chunk starts from what all threads have written


# --- all chunks at once: answers


@triton.jit
def _point(spans, chunk, head, weights, anchor, H: tl.constexpr, P: tl.constexpr):
    """Where a chunk takes its gradients: at what it starts from, or at the anchor that its sequence was given."""
    sequence, anchored = tl.load(spans + chunk * 4 + 2), tl.load(spans + chunk * 4 + 3) > 0
    point = weights
    if anchored:
        point = anchor + (sequence * H + head).to(tl.int64) * P
    return point


@triton.jit
def _part(base, at, inside, TRANSPOSED: tl.constexpr):
    """A tile of weights as the inputs of its layer meet it: the last matrix stands transposed."""
    part = tl.load(base + at, inside, 0.0)
    if TRANSPOSED:
        part = tl.trans(part)
    return part


@triton.jit
def _read(
    z, at, inside, weights, momentum, target, beta, pull, f, TRANSPOSED: tl.constexpr,
    TARGETS: tl.constexpr, MOMENTUM: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What queries ``z [C, I]`` meet of a tile as the chunk started."""
    answer = dot(z.to(tl.float32) * beta[:, None], _part(weights, at, inside, TRANSPOSED), OPERAND, PRECISION)
    if TARGETS:
        answer += dot(z.to(tl.float32) * pull[:, None], _part(target, at, inside, TRANSPOSED), OPERAND, PRECISION)
    if MOMENTUM:
        answer += dot(z.to(tl.float32) * f[:, None], _part(momentum, at, inside, TRANSPOSED), OPERAND, PRECISION)
    return answer


@triton.jit
def _ask(
    q_CK, k_CK, error, mixed_first, hidden, key, value, point, weights, momentum, target, beta, pull, f,
    K: tl.constexpr, D: tl.constexpr, V: tl.constexpr, LAST: tl.constexpr, DEPTH: tl.constexpr,
    ACTIVATION: tl.constexpr, TARGETS: tl.constexpr, MOMENTUM: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The columns ``hidden`` of what the last layer sees: of keys (``x``) and queries (``z``), and what each was before
    its non-linearity; and the error ``d`` that the first layer was sent."""
    before, x = _met(k_CK, hidden, key, point, K, D, DEPTH, ACTIVATION, OPERAND, PRECISION)
    asked, z, d = q_CK, q_CK, x
    if DEPTH == 2:
        at_last, inside_last = LAST + tile(value, hidden, D), (value < V)[:, None] & (hidden < D)[None, :]
        slope, curve = activation_back(before, ACTIVATION)
        d = dot(error, tl.load(point + at_last, inside_last, 0.0), OPERAND, PRECISION) * slope
        at, inside = tile(key, hidden, D), (key < K)[:, None] & (hidden < D)[None, :]
        asked = _read(
            q_CK, at, inside, weights, momentum, target, beta, pull, f, False, TARGETS, MOMENTUM, OPERAND, PRECISION
        )
        asked -= dot(mixed_first, d, OPERAND, PRECISION)
        z = activation(asked, ACTIVATION)
    return before, x, d, asked, z


@triton.jit
def reads_kernel(
    q, k, errors, mixes, shares, target, anchor, weights_at, momentum_at, y, spans,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, V: tl.constexpr, P: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    DEPTH: tl.constexpr, ACTIVATION: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, EPS: tl.constexpr,
    MOMENTUM: tl.constexpr, TARGETS: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`target`, `anchor`, weights and momentum are in the type of the operands."""
    chunk, head = tl.program_id(0) // H, tl.program_id(0) % H
    row, key, value = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    block = tl.arange(0, BLOCK_D)
    real = (value < V)[None, :]
    LAST: tl.constexpr = P - D * V
    slot = tl.program_id(0).to(tl.int64)
    token, valid, count = tokens_of(spans, chunk, head, row, H)
    weights, momentum = weights_at + slot * P, momentum_at + slot * P
    target += head * P
    point = _point(spans, chunk, head, weights, anchor, H, P)
    beta, pull, f = _read_shares(shares + slot * SHARES * BLOCK_C, row, BLOCK_C)

    tokens_V = valid[:, None] & real
    q_CK, k_CK = load_tokens(q, token, valid, key, K), load_tokens(k, token, valid, key, K)
    error = tl.load(errors + tile(token, value, V), tokens_V, 0.0)
    G = tl.load(mixes + slot * BLOCK_C * BLOCK_C + tile(row, row, BLOCK_C)).to(tl.float32)
    first_scores = dot(q_CK, tl.trans(k_CK), OPERAND, PRECISION)
    mixed_first = (first_scores * G).to(OPERAND)
    last_scores = first_scores
    if DEPTH == 2:
        last_scores = tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
    r = tl.zeros([BLOCK_C, BLOCK_V], tl.float32)
    for start in range(0, D, BLOCK_D):
        hidden = start + block
        before, x, d, asked, z = _ask(
            q_CK, k_CK, error, mixed_first, hidden, key, value, point, weights, momentum, target,
            beta, pull, f, K, D, V, LAST, DEPTH, ACTIVATION, TARGETS, MOMENTUM, OPERAND, PRECISION,
        )  # fmt: skip
        if DEPTH == 2:
            last_scores += dot(z, tl.trans(x), OPERAND, PRECISION)
        at, inside = LAST + tile(value, hidden, D), (value < V)[:, None] & (hidden < D)[None, :]
        r += _read(z, at, inside, weights, momentum, target, beta, pull, f, True, TARGETS, MOMENTUM, OPERAND, PRECISION)
    r -= dot(last_scores * G, error, OPERAND, PRECISION)
    if NORM:
        r, deviation = normalise(r, real, V, EPS)
    if RESIDUAL:
        r += load_tokens(q, token, valid, key, K).to(tl.float32)
    tl.store(y + tile(token, value, V), r, tokens_V)


# --- all chunks at once: back from the answers to what was read


@triton.jit
def _read_back(
    z, r, at, inside, weights, momentum, target, beta, pull, f, TRANSPOSED: tl.constexpr,
    TARGETS: tl.constexpr, MOMENTUM: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Back through `_read`, given the derivative ``r`` of its answer: those of z, beta, pull and f."""
    met = dot(r, tl.trans(_part(weights, at, inside, TRANSPOSED)), OPERAND, PRECISION)
    to_z = beta[:, None] * met
    to_beta = tl.sum(met * z.to(tl.float32), 1)
    to_pull, to_f = tl.zeros_like(to_beta), tl.zeros_like(to_beta)
    if TARGETS:
        met = dot(r, tl.trans(_part(target, at, inside, TRANSPOSED)), OPERAND, PRECISION)
        to_z += pull[:, None] * met
        to_pull = tl.sum(met * z.to(tl.float32), 1)
    if MOMENTUM:
        met = dot(r, tl.trans(_part(momentum, at, inside, TRANSPOSED)), OPERAND, PRECISION)
        to_z += f[:, None] * met
        to_f = tl.sum(met * z.to(tl.float32), 1)
    return to_z, to_beta, to_pull, to_f


@triton.jit
def _block_back(
    q_CK, x, d, asked, z, to_r, mixed_first, mixed_scores, token, valid, hidden, key, value,
    weights, momentum, target, beta, pull, f, back_x, back_d, back_z, back_asked,
    K: tl.constexpr, D: tl.constexpr, V: tl.constexpr, LAST: tl.constexpr, DEPTH: tl.constexpr,
    ACTIVATION: tl.constexpr, TARGETS: tl.constexpr, MOMENTUM: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The columns ``hidden`` of the way back. Returns the derivatives of the queries, of the first layer's scores, and
    of beta, pull and f; stores what the writes of the chunk are sent, and what is needed once more."""
    at_last, inside_last = LAST + tile(value, hidden, D), (value < V)[:, None] & (hidden < D)[None, :]
    to_z, to_beta, to_pull, to_f = _read_back(
        z, to_r, at_last, inside_last, weights, momentum, target, beta, pull, f, True,
        TARGETS, MOMENTUM, OPERAND, PRECISION,
    )  # fmt: skip
    to_z -= dot(mixed_scores, x, OPERAND, PRECISION)
    to_x = -dot(tl.trans(mixed_scores), z, OPERAND, PRECISION)
    at_token, tokens_D = tile(token, hidden, D), valid[:, None] & (hidden < D)[None, :]
    tl.store(back_x + at_token, to_x.to(OPERAND), tokens_D)
    to_q, to_scores = to_z, mixed_scores
    if DEPTH == 2:
        slope, curve = activation_back(asked, ACTIVATION)
        to_asked = to_z * slope
        at, inside = tile(key, hidden, D), (key < K)[:, None] & (hidden < D)[None, :]
        to_q, b0, b1, b2 = _read_back(
            q_CK, to_asked, at, inside, weights, momentum, target, beta, pull, f, False,
            TARGETS, MOMENTUM, OPERAND, PRECISION,
        )  # fmt: skip
        to_beta += b0
        to_pull += b1
        to_f += b2
        to_scores = dot(to_asked, tl.trans(d), OPERAND, PRECISION)
        to_d = -dot(tl.trans(mixed_first), to_asked, OPERAND, PRECISION)
        tl.store(back_d + at_token, to_d.to(OPERAND), tokens_D)
        tl.store(back_z + at_token, z.to(OPERAND), tokens_D)
        tl.store(back_asked + at_token, to_asked.to(OPERAND), tokens_D)
    return to_q, to_scores, to_beta, to_pull, to_f


@triton.jit
def reads_back_kernel(
    q, k, errors, mixes, shares, target, anchor, weights_at, momentum_at, to_y, spans,
    to_q, back_k, back_error, back_r, back_x, back_d, back_z, back_asked, to_mixes, to_shares,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, V: tl.constexpr, P: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    DEPTH: tl.constexpr, ACTIVATION: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, EPS: tl.constexpr,
    MOMENTUM: tl.constexpr, TARGETS: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What the writes of a chunk are sent by the reads of the same chunk is left in `back_...`, for
    `states_back_kernel`: of the keys, of the errors of the last and of the first layer (``back_d``), of the inputs of
    the last one; with what it needs once more: the derivative of the answers before their norm, what the last layer
    saw of the queries, and the derivative of what that was before its non-linearity."""
    chunk, head = tl.program_id(0) // H, tl.program_id(0) % H
    row, key, value = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    block = tl.arange(0, BLOCK_D)
    real = (value < V)[None, :]
    LAST: tl.constexpr = P - D * V
    slot = tl.program_id(0).to(tl.int64)
    token, valid, count = tokens_of(spans, chunk, head, row, H)
    weights, momentum = weights_at + slot * P, momentum_at + slot * P
    target += head * P
    point = _point(spans, chunk, head, weights, anchor, H, P)
    beta, pull, f = _read_shares(shares + slot * SHARES * BLOCK_C, row, BLOCK_C)

    # The chunk once more, as in `reads_kernel`.
    tokens_K, tokens_V = valid[:, None] & (key < K)[None, :], valid[:, None] & real
    q_CK, k_CK = load_tokens(q, token, valid, key, K), load_tokens(k, token, valid, key, K)
    error = tl.load(errors + tile(token, value, V), tokens_V, 0.0)
    G = tl.load(mixes + slot * BLOCK_C * BLOCK_C + tile(row, row, BLOCK_C)).to(tl.float32)
    first_scores = dot(q_CK, tl.trans(k_CK), OPERAND, PRECISION)
    mixed_first = (first_scores * G).to(OPERAND)
    last_scores = first_scores
    if DEPTH == 2:
        last_scores = tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
    r = tl.zeros([BLOCK_C, BLOCK_V], tl.float32)
    for start in range(0, D, BLOCK_D):
        hidden = start + block
        before, x, d, asked, z = _ask(
            q_CK, k_CK, error, mixed_first, hidden, key, value, point, weights, momentum, target,
            beta, pull, f, K, D, V, LAST, DEPTH, ACTIVATION, TARGETS, MOMENTUM, OPERAND, PRECISION,
        )  # fmt: skip
        if DEPTH == 2:
            last_scores += dot(z, tl.trans(x), OPERAND, PRECISION)
        if NORM:
            at, inside = LAST + tile(value, hidden, D), (value < V)[:, None] & (hidden < D)[None, :]
            r += _read(
                z, at, inside, weights, momentum, target, beta, pull, f, True, TARGETS, MOMENTUM, OPERAND, PRECISION
            )

    # Back from the answers. What was loaded is loaded again: registers are scarcer than loads.
    tl.debug_barrier()
    G = tl.load(mixes + slot * BLOCK_C * BLOCK_C + tile(row, row, BLOCK_C)).to(tl.float32)
    error = load_tokens(errors, token, valid, value, V)
    grad_y = tl.load(to_y + tile(token, value, V), tokens_V, 0.0).to(tl.float32)
    to_r = grad_y
    mixed_last = (last_scores * G).to(OPERAND)
    if NORM:
        r -= dot(mixed_last, error, OPERAND, PRECISION)
        normed, inverse = normalise(r, real, V, EPS)
        to_r = normalise_back(normed, inverse, grad_y, real, V)
    tl.store(back_r + tile(token, value, V), to_r.to(OPERAND), tokens_V)
    to_scores = dot(to_r, tl.trans(error), OPERAND, PRECISION)  # of the last layer, but for its sign and G
    to_G = -last_scores * to_scores
    to_error = -dot(tl.trans(mixed_last), to_r, OPERAND, PRECISION)
    tl.store(back_error + tile(token, value, V), to_error.to(OPERAND), tokens_V)
    mixed_scores = (to_scores * G).to(OPERAND)
    grad_q, to_first = tl.zeros([BLOCK_C, BLOCK_K], tl.float32), tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
    to_beta = tl.zeros([BLOCK_C], tl.float32)
    to_pull, to_f = to_beta, to_beta
    for start in range(0, D, BLOCK_D):
        hidden = start + block
        before, x, d, asked, z = _ask(
            q_CK, k_CK, error, mixed_first, hidden, key, value, point, weights, momentum, target,
            beta, pull, f, K, D, V, LAST, DEPTH, ACTIVATION, TARGETS, MOMENTUM, OPERAND, PRECISION,
        )  # fmt: skip
        more_q, more_first, b0, b1, b2 = _block_back(
            q_CK, x, d, asked, z, to_r, mixed_first, mixed_scores, token, valid, hidden, key, value,
            weights, momentum, target, beta, pull, f, back_x, back_d, back_z, back_asked,
            K, D, V, LAST, DEPTH, ACTIVATION, TARGETS, MOMENTUM, OPERAND, PRECISION,
        )  # fmt: skip
        grad_q += more_q
        to_first += more_first
        to_beta += b0
        to_pull += b1
        to_f += b2
    if DEPTH == 2:
        q_CK, k_CK = load_tokens(q, token, valid, key, K), load_tokens(k, token, valid, key, K)
        to_G -= dot(q_CK, tl.trans(k_CK), OPERAND, PRECISION) * to_first
        mixed = to_first * G
        grad_q -= dot(mixed, k_CK, OPERAND, PRECISION)
        grad_k = -dot(tl.trans(mixed), q_CK, OPERAND, PRECISION)
        tl.store(back_k + tile(token, key, K), grad_k.to(OPERAND), tokens_K)
    if RESIDUAL:
        grad_q += grad_y
    tl.store(to_q + tile(token, key, K), grad_q, tokens_K)
    tl.store(to_mixes + slot * BLOCK_C * BLOCK_C + tile(row, row, BLOCK_C), to_G)
    to_shares += slot * SHARES * BLOCK_C
    tl.store(to_shares + row, to_beta)
    tl.store(to_shares + BLOCK_C + row, to_pull)
    tl.store(to_shares + 2 * BLOCK_C + row, to_f)


# --- chunk after chunk, from the last to the first


@triton.jit
def _move_back(
    z, x, d, r, token, valid, column, width, at_token, tokens_D, at, inside,
    weights, momentum, target, to_weights, to_momentum, to_target,
    beta, pull, f, mix_last, moved_last, beta_last, pull_last, f_last, carry,
    TARGETS: tl.constexpr, MOMENTUM: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Back through `_move` of ``x [C, I]``, ``d [C, O]``, and what `_read` sends to the tile: ``z^T r``. All but ``d``
    are pointers: ``z`` and ``x`` to tokens of some width, ``r`` to hidden columns.

    Returns the derivative of the weights before the chunk, that of x, of d, and of what weighs the writes; replaces
    that of the momentum after the chunk by the one before it, and adds that of the target.
    """
    after, w = tl.load(to_weights + at, inside, 0.0), tl.load(weights + at, inside, 0.0).to(tl.float32)
    to_beta_last = tl.sum(w * after)
    nothing = to_beta_last * 0
    to_pull_last, to_f_last, to_carry, squares = nothing, nothing, nothing, nothing
    if TARGETS:
        goal = tl.load(target + at, inside, 0.0).to(tl.float32)
        to_pull_last = tl.sum(goal * after)
        so_far = tl.load(to_target + at, inside, 0.0) + pull_last * after
        here = load_tokens(z, token, valid, column, width).to(tl.float32) * pull[:, None]
        so_far += dot(tl.trans(here), tl.load(r + at_token, tokens_D, 0.0), OPERAND, PRECISION)
        tl.debug_barrier()
        tl.store(to_target + at, so_far, inside)
    here = load_tokens(z, token, valid, column, width).to(tl.float32) * beta[:, None]
    new = beta_last * after + dot(tl.trans(here), tl.load(r + at_token, tokens_D, 0.0), OPERAND, PRECISION)
    written = load_tokens(x, token, valid, column, width).to(tl.float32)
    sent = dot(d, tl.trans(after), OPERAND, PRECISION)
    to_mix_last = -tl.sum(sent * written, 1)
    to_x = -mix_last[:, None] * sent
    to_d = -dot(written * mix_last[:, None], after, OPERAND, PRECISION)
    to_moved_last = tl.zeros_like(to_mix_last)
    if MOMENTUM:
        after_moving = tl.load(to_momentum + at, inside, 0.0)
        moving = tl.load(momentum + at, inside, 0.0).to(tl.float32)
        to_f_last, to_carry = tl.sum(moving * after), tl.sum(moving * after_moving)
        here = load_tokens(z, token, valid, column, width).to(tl.float32) * f[:, None]
        new_moving = carry * after_moving + f_last * after
        new_moving += dot(tl.trans(here), tl.load(r + at_token, tokens_D, 0.0), OPERAND, PRECISION)
        squares = tl.sum(new_moving * new_moving)
        written = load_tokens(x, token, valid, column, width).to(tl.float32)
        sent = dot(d, tl.trans(after_moving), OPERAND, PRECISION)
        to_moved_last = -tl.sum(sent * written, 1)
        to_x -= moved_last[:, None] * sent
        to_d -= dot(written * moved_last[:, None], after_moving, OPERAND, PRECISION)
        tl.debug_barrier()
        tl.store(to_momentum + at, new_moving, inside)
    return new, to_x, to_d, to_mix_last, to_moved_last, to_beta_last, to_pull_last, to_f_last, to_carry, squares


@triton.jit
def _add(pointer, value, inside):
    """Add to a tile; returns the sum of its squares."""
    tl.debug_barrier()
    value += tl.load(pointer, inside, 0.0)
    tl.debug_barrier()
    tl.store(pointer, value, inside)
    return tl.sum(tl.where(inside, value * value, 0.0))


@triton.jit
def _shorten(pointer, COUNT: tl.constexpr, LIMIT: tl.constexpr):
    """Shorten a derivative that has exploded (`chunked.bounded_adjoint`)."""
    place = tl.arange(0, SWEEP)
    squares = tl.zeros([SWEEP], tl.float32)
    for start in range(0, COUNT, SWEEP):
        one = tl.load(pointer + start + place, start + place < COUNT, 0.0)
        squares += one * one
    norm = tl.sqrt(tl.sum(squares, 0))
    tl.debug_barrier()
    if norm > LIMIT:
        for start in range(0, COUNT, SWEEP):
            one = tl.load(pointer + start + place, start + place < COUNT, 0.0)
            tl.store(pointer + start + place, one * (LIMIT / norm), start + place < COUNT)
    tl.debug_barrier()


@triton.jit
def _writes_back(
    q, k, errors, back_r, before, x, token, valid, hidden, key, value, point, to_anchor, anchored,
    weights, momentum, target, to_weights, to_momentum, to_target, back_x, back_d, back_z, back_asked,
    beta, pull, f, mix_last, moved_last, beta_last, pull_last, f_last, carry,
    K: tl.constexpr, D: tl.constexpr, V: tl.constexpr, LAST: tl.constexpr, DEPTH: tl.constexpr,
    ACTIVATION: tl.constexpr, TARGETS: tl.constexpr, MOMENTUM: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Back through `_write_block` and the gradient it writes. Returns derivatives of the keys, of the last layer's
    error, and of what weighs the writes."""
    at_token, tokens_D = tile(token, hidden, D), valid[:, None] & (hidden < D)[None, :]
    at_last, inside_last = LAST + tile(value, hidden, D), (value < V)[:, None] & (hidden < D)[None, :]
    new_last, to_error, to_x, to_mix, to_moved, l0, l1, l2, l3, squares = _move_back(
        back_r, errors, x, back_z, token, valid, value, V, at_token, tokens_D, at_last, inside_last,
        weights, momentum, target, to_weights, to_momentum, to_target,
        beta, pull, f, mix_last, moved_last, beta_last, pull_last, f_last, carry,
        TARGETS, MOMENTUM, OPERAND, PRECISION,
    )  # fmt: skip
    to_x += tl.load(back_x + at_token, tokens_D, 0.0).to(tl.float32)
    to_k = to_x
    if DEPTH == 2:
        w_last = tl.load(point + at_last, inside_last, 0.0)
        slope, curve = activation_back(before, ACTIVATION)
        sent_back = dot(load_tokens(errors, token, valid, value, V), w_last, OPERAND, PRECISION)
        d = sent_back * slope
        at, inside = tile(key, hidden, D), (key < K)[:, None] & (hidden < D)[None, :]
        new, to_k, to_d, m0, m1, e0, e1, e2, e3, more = _move_back(
            q, k, d, back_asked, token, valid, key, K, at_token, tokens_D, at, inside,
            weights, momentum, target, to_weights, to_momentum, to_target,
            beta, pull, f, mix_last, moved_last, beta_last, pull_last, f_last, carry,
            TARGETS, MOMENTUM, OPERAND, PRECISION,
        )  # fmt: skip
        to_mix += m0
        to_moved += m1
        l0 += e0
        l1 += e1
        l2 += e2
        l3 += e3
        squares += more
        # The inner gradient: d = (error W_2^T) * act'(before), x = act(before).
        to_d += tl.load(back_d + at_token, tokens_D, 0.0).to(tl.float32)
        to_before = to_x * slope + to_d * sent_back * curve
        to_sent_back = to_d * slope
        to_error += dot(to_sent_back, tl.trans(tl.load(point + at_last, inside_last, 0.0)), OPERAND, PRECISION)
        to_k += dot(to_before, tl.trans(tl.load(point + at, inside, 0.0)), OPERAND, PRECISION)
        sent = dot(tl.trans(load_tokens(k, token, valid, key, K)), to_before, OPERAND, PRECISION)
        sent_last = dot(tl.trans(load_tokens(errors, token, valid, value, V)), to_sent_back, OPERAND, PRECISION)
        if anchored:
            _add(to_anchor + at, sent, inside)
            _add(to_anchor + at_last, sent_last, inside_last)
        else:
            new += sent
            new_last += sent_last
        tl.debug_barrier()  # all of the tiles has been read before any of it is replaced
        tl.store(to_weights + at, new, inside)
    tl.debug_barrier()
    tl.store(to_weights + at_last, new_last, inside_last)
    return to_k, to_error, to_mix, to_moved, l0, l1, l2, l3, squares


@triton.jit
def _anchor_back(
    k, before, x, to_u, token, valid, hidden, key, value, point, to_point, to_last_anchor, last,
    K: tl.constexpr, D: tl.constexpr, V: tl.constexpr, LAST: tl.constexpr, DEPTH: tl.constexpr,
    ACTIVATION: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Back through what the anchor made of the keys, given the derivative of what came out of it. Returns the
    derivative of the keys, and the squares of the anchor's."""
    at_last, inside_last = LAST + tile(value, hidden, D), (value < V)[:, None] & (hidden < D)[None, :]
    to_x = dot(to_u, tl.load(point + at_last, inside_last, 0.0), OPERAND, PRECISION)
    to_k = to_x
    handed = inside_last & (tl.zeros_like(at_last) + last > 0)  # the interpreter wants masks of full shape
    grad = dot(tl.trans(to_u), x, OPERAND, PRECISION) + tl.load(to_last_anchor + at_last, handed, 0.0)
    squares = _add(to_point + at_last, grad, inside_last)
    if DEPTH == 2:
        slope, curve = activation_back(before, ACTIVATION)
        to_before = to_x * slope
        at, inside = tile(key, hidden, D), (key < K)[:, None] & (hidden < D)[None, :]
        to_k = dot(to_before, tl.trans(tl.load(point + at, inside, 0.0)), OPERAND, PRECISION)
        handed = inside & (tl.zeros_like(at) + last > 0)
        grad = dot(tl.trans(load_tokens(k, token, valid, key, K)), to_before, OPERAND, PRECISION)
        squares += _add(to_point + at, grad + tl.load(to_last_anchor + at, handed, 0.0), inside)
    return to_k, squares


@triton.jit
def states_back_kernel(
    q, k, v, errors, shares, ends, target, anchor, weights_at, momentum_at,
    outputs, back_r, back_x, back_d, back_z, back_asked, to_last_anchor,
    to_k, to_v, to_shares, to_ends, to_initial, to_weights, to_momentum, to_anchor, spans, plan,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, V: tl.constexpr, P: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    DEPTH: tl.constexpr, ACTIVATION: tl.constexpr, OBJECTIVE: tl.constexpr, DELTA: tl.constexpr, NORM: tl.constexpr,
    RESIDUAL: tl.constexpr, DENOMINATOR: tl.constexpr, EPS: tl.constexpr, MOMENTUM: tl.constexpr,
    TARGETS: tl.constexpr, LIMIT: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`to_weights`, `to_momentum` hold the derivative with respect to what the last chunk left, and in the end that
    with respect to what the first one found; `to_initial` and `to_anchor` are added to. `to_k` and `to_v` hold what
    `reads_back_kernel` left as ``back_k`` and ``back_error``."""
    sequence, head = tl.program_id(0) // H, tl.program_id(0) % H
    row, key, value = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    block = tl.arange(0, BLOCK_D)
    real = (value < V)[None, :]
    LAST: tl.constexpr = P - D * V
    own = (sequence * H + head).to(tl.int64) * P
    to_weights += own
    to_momentum += own
    to_anchor += own
    to_initial += own
    to_last_anchor += own
    anchor += own
    target += head * P
    first, chunks = tl.load(plan + sequence * 4), tl.load(plan + sequence * 4 + 1)

    for done in range(chunks):
        chunk = first + chunks - 1 - done
        slot = chunk.to(tl.int64) * H + head
        token, valid, count = tokens_of(spans, chunk, head, row, H)
        anchored = tl.load(spans + chunk * 4 + 3) > 0
        weights, momentum = weights_at + slot * P, momentum_at + slot * P
        nudge = _nudge(count)
        to_weights_now, to_momentum_now = to_weights + nudge, to_momentum + nudge
        to_initial_now, target_now, to_last_anchor_now = to_initial + nudge, target + nudge, to_last_anchor + nudge
        point, to_point = weights, to_weights_now
        if anchored:
            point, to_point = anchor + nudge, to_anchor + nudge
        own_shares = shares + slot * SHARES * BLOCK_C
        beta, pull, f = _read_shares(own_shares, row, BLOCK_C)
        mix_last, moved_last = load_share(own_shares, 3, row, BLOCK_C), load_share(own_shares, 4, row, BLOCK_C)
        beta_last, pull_last = tl.load(ends + slot * ENDS), tl.load(ends + slot * ENDS + 1)
        f_last, carry = tl.load(ends + slot * ENDS + 2), tl.load(ends + slot * ENDS + 3)
        tokens_K, tokens_V = valid[:, None] & (key < K)[None, :], valid[:, None] & real
        to_error = tl.load(to_v + tile(token, value, V), tokens_V, 0.0).to(tl.float32)

        # Back through what was written.
        grad_k = tl.zeros([BLOCK_C, BLOCK_K], tl.float32)
        to_mix = tl.zeros([BLOCK_C], tl.float32)
        to_moved = to_mix
        squares = tl.sum(to_mix, 0)
        l0, l1, l2, l3 = squares, squares, squares, squares
        for start in range(0, D, BLOCK_D):
            hidden = start + block
            k_CK = load_tokens(k, token, valid, key, K).to(tl.float32)
            before, x = _met(k_CK, hidden, key, point, K, D, DEPTH, ACTIVATION, OPERAND, PRECISION)
            sent_k, more_error, m0, m1, e0, e1, e2, e3, more = _writes_back(
                q, k, errors, back_r, before, x, token, valid, hidden, key, value, point, to_anchor + nudge, anchored,
                weights, momentum, target_now, to_weights_now, to_momentum_now, to_initial_now,
                back_x, back_d, back_z, back_asked,
                beta, pull, f, mix_last, moved_last, beta_last, pull_last, f_last, carry,
                K, D, V, LAST, DEPTH, ACTIVATION, TARGETS, MOMENTUM, OPERAND, PRECISION,
            )  # fmt: skip
            grad_k += sent_k
            to_error += more_error
            to_mix += m0
            to_moved += m1
            l0 += e0
            l1 += e1
            l2 += e2
            l3 += e3
            squares += more

        # Back through the error at the anchor, and through what it is an error of.
        u = load_tokens(outputs, token, valid, value, V)
        k_CK, v_CV = (
            load_tokens(k, token, valid, key, K).to(tl.float32),
            load_tokens(v, token, valid, value, V).to(tl.float32),
        )
        normed, inverse, sent, error, off, each_loss = inner_error(
            u, k_CK, v_CV, real, V, OBJECTIVE, DELTA, NORM, RESIDUAL, DENOMINATOR, EPS
        )
        to_value, to_output, to_u = inner_error_back(
            normed, inverse, sent, error, off, to_error, real, V, OBJECTIVE, DELTA, NORM
        )
        if RESIDUAL:
            grad_k += to_output
        last = tl.where(chunk == first + chunks - 1, 1, 0)  # whose anchor may have been handed on
        for start in range(0, D, BLOCK_D):
            hidden = start + block
            k_CK = load_tokens(k, token, valid, key, K).to(tl.float32)
            before, x = _met(k_CK, hidden, key, point, K, D, DEPTH, ACTIVATION, OPERAND, PRECISION)
            sent_k, more = _anchor_back(
                k, before, x, to_u, token, valid, hidden, key, value, point, to_point, to_last_anchor_now, last,
                K, D, V, LAST, DEPTH, ACTIVATION, OPERAND, PRECISION,
            )  # fmt: skip
            grad_k += sent_k
            squares += more

        if DEPTH == 2:
            grad_k += tl.load(to_k + tile(token, key, K), tokens_K, 0.0).to(tl.float32)
        tl.store(to_k + tile(token, key, K), grad_k, tokens_K)
        tl.store(to_v + tile(token, value, V), to_value, tokens_V)
        sent_shares = to_shares + slot * SHARES * BLOCK_C
        tl.store(sent_shares + 3 * BLOCK_C + row, to_mix)
        tl.store(sent_shares + 4 * BLOCK_C + row, to_moved)
        tl.store(to_ends + slot * ENDS, l0)
        tl.store(to_ends + slot * ENDS + 1, l1)
        tl.store(to_ends + slot * ENDS + 2, l2)
        tl.store(to_ends + slot * ENDS + 3, l3)
        tl.debug_barrier()
        if anchored | (squares > LIMIT * LIMIT):
            if LAST > 0:
                _shorten(to_weights, LAST, LIMIT)
            _shorten(to_weights + LAST, P - LAST, LIMIT)
            if MOMENTUM:
                if LAST > 0:
                    _shorten(to_momentum, LAST, LIMIT)
                _shorten(to_momentum + LAST, P - LAST, LIMIT)
