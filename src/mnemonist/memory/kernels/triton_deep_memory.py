"""Deep memories for NVIDIA GPUs, in Triton: the equations of `chunked` and `gates`, and their derivatives by hand.

What must be done one chunk after the other is kept apart from what need not:

    gates_kernel         all chunks at once   what the gates of a chunk amount to
    states_kernel        chunk after chunk    the errors, and the weights and momentum that each chunk starts from
    reads_kernel         all chunks at once   the answers
    reads_back_kernel    all chunks at once   back from the answers to what was read
    states_back_kernel   chunk after chunk    back from what each chunk left to what it found
    writes_back_kernel   all chunks at once   back to what was written, and what it was weighed with
    targets_back_kernel  chunks summed up     back to the initial weights that memories are drawn to
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
    activation,
    activation_back,
    bounded_log,
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
        log_eta = bounded_log(tl.load(log_momentum + token, valid, 0.0))
    if DECAY:
        log_left = bounded_log(tl.load(log_decay + token, valid, 0.0))
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
#
# These take few steps, each of products of what was loaded and nothing else, and leave what the next step wants in
# memory. Products of products would have all rows of a tile in four warps, however many there are: Triton sees to that.


@triton.jit
def _move(
    x_CI, d_CO, at, inside, weights, momentum, target, weights_at, momentum_at, last_anchor, last,
    mix_last, moved_last, beta_last, pull_last, f_last, carry,
    TARGETS: tl.constexpr, MOMENTUM: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the tokens ``x``, ``d`` into a tile ``[I, O]``, and keep what it was before."""
    met = tl.load(weights + at, inside, 0.0)
    tl.store(weights_at + at, met.to(OPERAND), inside)
    tl.store(last_anchor + at, met, inside & (tl.zeros_like(at) + last > 0))
    x_CI = x_CI.to(tl.float32)
    after = beta_last * met - dot(tl.trans(x_CI * mix_last[:, None]), d_CO, OPERAND, PRECISION)
    if TARGETS:
        after += pull_last * tl.load(target + at, inside, 0.0)
    if MOMENTUM:
        moving = tl.load(momentum + at, inside, 0.0)
        tl.store(momentum_at + at, moving.to(OPERAND), inside)
        after += f_last * moving
        kept = carry * moving - dot(tl.trans(x_CI * moved_last[:, None]), d_CO, OPERAND, PRECISION)
        tl.debug_barrier()
        tl.store(momentum + at, kept, inside)
    tl.debug_barrier()  # all of the tile has been read before any of it is replaced
    tl.store(weights + at, after, inside)


@triton.jit
def states_kernel(
    k, v, shares, ends, target, anchor, weights, momentum, last_anchor, weights_at, momentum_at, errors,
    outputs, loss, gradient_norm, room, spans, plan,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, V: tl.constexpr, P: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    DEPTH: tl.constexpr, ACTIVATION: tl.constexpr, OBJECTIVE: tl.constexpr, DELTA: tl.constexpr, NORM: tl.constexpr,
    RESIDUAL: tl.constexpr, DENOMINATOR: tl.constexpr, EPS: tl.constexpr, MOMENTUM: tl.constexpr,
    TARGETS: tl.constexpr, KEEP: tl.constexpr, TRACE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`weights` and `momentum` are what the first chunk meets, and in the end what the last one leaves. `last_anchor`
    gets what the last chunk met, unless that began before the first token. ``room [N H, 3, C, D]`` is for what the
    last layer sees of the keys of a chunk, the slopes there, and the errors that the first layer is sent."""
    sequence, head = tl.program_id(0) // H, tl.program_id(0) % H
    row, key, value = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    block = tl.arange(0, BLOCK_D)
    real = (value < V)[None, :]
    LAST: tl.constexpr = P - D * V  # where the last matrix begins
    own = tl.program_id(0).to(tl.int64) * P
    weights += own
    momentum += own
    anchor += own
    last_anchor += own
    target += head * P
    seen = room + tl.program_id(0).to(tl.int64) * 3 * BLOCK_C * D
    slopes, sent_first = seen + BLOCK_C * D, seen + 2 * BLOCK_C * D
    first, chunks = tl.load(plan + sequence * 4), tl.load(plan + sequence * 4 + 1)

    for g in range(chunks):
        slot = (first + g).to(tl.int64) * H + head
        token, valid, count = tokens_of(spans, first + g, head, row, H)
        anchored = tl.load(spans + (first + g) * 4 + 3) > 0
        nudge = _nudge(count)
        weights_now, momentum_now, target_now = weights + nudge, momentum + nudge, target + nudge
        seen_now, slopes_now, sent_now = seen + nudge, slopes + nudge, sent_first + nudge
        last_anchor_now = last_anchor + nudge
        point = weights_now
        if anchored:
            point = anchor + nudge
        tokens_V = valid[:, None] & real
        squares_seen, squares_sent = tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32)

        # What the last layer sees of the keys; in a memory of one layer, the keys.
        if DEPTH == 2:
            for start in range(0, D, BLOCK_D):
                hidden = start + block
                w = tl.load(point + tile(key, hidden, D), (key < K)[:, None] & (hidden < D)[None, :], 0.0)
                before = dot(load_tokens(k, token, valid, key, K), w, OPERAND, PRECISION)
                x = activation(before, ACTIVATION)
                slope, curve = activation_back(before, ACTIVATION)
                if TRACE:
                    squares_seen += tl.sum(x * x, 1)
                at_row, columns = tile(row, hidden, D), valid[:, None] & (hidden < D)[None, :]
                tl.store(seen_now + at_row, x.to(OPERAND), columns)
                tl.store(slopes_now + at_row, slope.to(OPERAND), columns)
            tl.debug_barrier()

        # The error at the anchor.
        u = tl.zeros([BLOCK_C, BLOCK_V], tl.float32)
        for start in range(0, D, BLOCK_D):
            hidden = start + block
            if DEPTH == 2:
                x = load_tokens(seen_now, row, valid, hidden, D)
            else:
                x = load_tokens(k, token, valid, hidden, D)
                if TRACE:
                    squares_seen += tl.sum(x.to(tl.float32) * x.to(tl.float32), 1)
            w = tl.load(point + LAST + tile(value, hidden, D), (value < V)[:, None] & (hidden < D)[None, :], 0.0)
            u += dot(x, tl.trans(w), OPERAND, PRECISION)
        k_CV = u
        if RESIDUAL:
            k_CV = load_tokens(k, token, valid, value, V).to(tl.float32)
        v_CV = load_tokens(v, token, valid, value, V).to(tl.float32)
        normed, inverse, sent, error, off, each_loss = inner_error(
            u, k_CV, v_CV, real, V, OBJECTIVE, DELTA, NORM, RESIDUAL, DENOMINATOR, EPS
        )
        tl.store(errors + tile(token, value, V), error.to(OPERAND), tokens_V)
        if KEEP:
            tl.store(outputs + tile(token, value, V), u, tokens_V)
        squares = tl.sum(error * error, 1)
        tl.debug_barrier()

        # What the first layer is sent.
        if DEPTH == 2:
            for start in range(0, D, BLOCK_D):
                hidden = start + block
                w = tl.load(point + LAST + tile(value, hidden, D), (value < V)[:, None] & (hidden < D)[None, :], 0.0)
                d = dot(load_tokens(errors, token, valid, value, V), w, OPERAND, PRECISION)
                d *= load_tokens(slopes_now, row, valid, hidden, D).to(tl.float32)
                if TRACE:
                    squares_sent += tl.sum(d * d, 1)
                tl.store(sent_now + tile(row, hidden, D), d.to(OPERAND), valid[:, None] & (hidden < D)[None, :])
            tl.debug_barrier()

        # What is written.
        mix_last = load_share(shares + slot * SHARES * BLOCK_C, 3, row, BLOCK_C)
        moved_last = load_share(shares + slot * SHARES * BLOCK_C, 4, row, BLOCK_C)
        beta_last, pull_last = tl.load(ends + slot * ENDS), tl.load(ends + slot * ENDS + 1)
        f_last, carry = tl.load(ends + slot * ENDS + 2), tl.load(ends + slot * ENDS + 3)
        last = tl.where((g == chunks - 1) & (anchored == 0), 1, 0)
        for start in range(0, D, BLOCK_D):
            hidden = start + block
            at_last, inside_last = LAST + tile(value, hidden, D), (value < V)[:, None] & (hidden < D)[None, :]
            if DEPTH == 2:
                at, inside = tile(key, hidden, D), (key < K)[:, None] & (hidden < D)[None, :]
                _move(
                    load_tokens(k, token, valid, key, K), load_tokens(sent_now, row, valid, hidden, D), at, inside,
                    weights_now, momentum_now, target_now, weights_at + slot * P, momentum_at + slot * P,
                    last_anchor_now, last, mix_last, moved_last, beta_last, pull_last, f_last, carry,
                    TARGETS, MOMENTUM, OPERAND, PRECISION,
                )  # fmt: skip
                x = load_tokens(seen_now, row, valid, hidden, D)
            else:
                x = load_tokens(k, token, valid, hidden, D)
            _move(
                load_tokens(errors, token, valid, value, V), x, at_last, inside_last,
                weights_now, momentum_now, target_now, weights_at + slot * P, momentum_at + slot * P,
                last_anchor_now, last, mix_last, moved_last, beta_last, pull_last, f_last, carry,
                TARGETS, MOMENTUM, OPERAND, PRECISION,
            )  # fmt: skip
        if TRACE:
            tl.store(loss + token, each_loss, valid)
            squares *= squares_seen
            if DEPTH == 2:
                k_CK = load_tokens(k, token, valid, key, K).to(tl.float32)
                squares += tl.sum(k_CK * k_CK, 1) * squares_sent
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
    answer = beta[:, None] * dot(z, _part(weights, at, inside, TRANSPOSED), OPERAND, PRECISION)
    if TARGETS:
        answer += pull[:, None] * dot(z, _part(target, at, inside, TRANSPOSED), OPERAND, PRECISION)
    if MOMENTUM:
        answer += f[:, None] * dot(z, _part(momentum, at, inside, TRANSPOSED), OPERAND, PRECISION)
    return answer


@triton.jit
def _ask(
    q_CK, k_CK, error, mixed_first, hidden, key, value, point, weights, momentum, target, beta, pull, f,
    K: tl.constexpr, D: tl.constexpr, V: tl.constexpr, LAST: tl.constexpr, DEPTH: tl.constexpr,
    ACTIVATION: tl.constexpr, TARGETS: tl.constexpr, MOMENTUM: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The columns ``hidden`` of what the last layer sees: of keys (``x``) and queries (``z``); and the error ``d`` that
    the first layer was sent."""
    x, z, d = k_CK, q_CK, k_CK
    if DEPTH == 2:
        at, inside = tile(key, hidden, D), (key < K)[:, None] & (hidden < D)[None, :]
        before = dot(k_CK, tl.load(point + at, inside, 0.0), OPERAND, PRECISION)
        x = activation(before, ACTIVATION)
        at_last, inside_last = LAST + tile(value, hidden, D), (value < V)[:, None] & (hidden < D)[None, :]
        slope, curve = activation_back(before, ACTIVATION)
        d = dot(error, tl.load(point + at_last, inside_last, 0.0), OPERAND, PRECISION) * slope
        asked = _read(
            q_CK, at, inside, weights, momentum, target, beta, pull, f, False, TARGETS, MOMENTUM, OPERAND, PRECISION
        )
        asked -= dot(mixed_first, d, OPERAND, PRECISION)
        z = activation(asked, ACTIVATION)
    return x, d, z


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
        x, d, z = _ask(
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


# --- all chunks at once: back from the answers to what was read. In steps that meet in memory, as `states_kernel`.


@triton.jit
def _read_back(
    r, z, at, inside, weights, momentum, target, beta, pull, f, TRANSPOSED: tl.constexpr,
    TARGETS: tl.constexpr, MOMENTUM: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Back through `_read`, given the derivative ``r`` of its answer: those of z, beta, pull and f."""
    z_CI = z.to(tl.float32)
    met = dot(r, tl.trans(_part(weights, at, inside, TRANSPOSED)), OPERAND, PRECISION)
    to_z = beta[:, None] * met
    to_beta = tl.sum(met * z_CI, 1)
    to_pull, to_f = tl.zeros_like(to_beta), tl.zeros_like(to_beta)
    if TARGETS:
        met = dot(r, tl.trans(_part(target, at, inside, TRANSPOSED)), OPERAND, PRECISION)
        to_z += pull[:, None] * met
        to_pull = tl.sum(met * z_CI, 1)
    if MOMENTUM:
        met = dot(r, tl.trans(_part(momentum, at, inside, TRANSPOSED)), OPERAND, PRECISION)
        to_z += f[:, None] * met
        to_f = tl.sum(met * z_CI, 1)
    return to_z, to_beta, to_pull, to_f


@triton.jit
def _send(
    z_CI, r_CO, at, inside, beta, f, back_weights, back_momentum,
    MOMENTUM: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What `_read` sends to a tile of weights and momentum."""
    z_CI = z_CI.to(tl.float32)
    sent = dot(tl.trans(z_CI * beta[:, None]), r_CO, OPERAND, PRECISION)
    tl.store(back_weights + at, sent.to(OPERAND), inside)
    if MOMENTUM:
        sent = dot(tl.trans(z_CI * f[:, None]), r_CO, OPERAND, PRECISION)
        tl.store(back_momentum + at, sent.to(OPERAND), inside)


@triton.jit
def reads_back_kernel(
    q, k, errors, mixes, shares, target, anchor, weights_at, momentum_at, to_y, spans,
    to_q, back_k, back_error, back_r, seen, slopes, bends, sent_first, back_x, back_d, back_z, back_asked,
    back_weights, back_momentum, room, to_mixes, to_shares,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, V: tl.constexpr, P: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    DEPTH: tl.constexpr, ACTIVATION: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, EPS: tl.constexpr,
    MOMENTUM: tl.constexpr, TARGETS: tl.constexpr, STATES: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """What the writes of a chunk are sent by the reads of the same chunk is left in `back_...`: of the keys, of the
    errors of the last and of the first layer (``back_d``), of the inputs of the last one; and, if STATES, of the
    weights and momentum that the chunk starts from. With it goes what is needed once more: what the last layer saw of
    the keys (``seen``), first and second derivative there (``slopes``; ``bends``, times what comes back through the
    last layer), the error that the first layer was sent; the derivative of the answers before their norm, what the
    last layer saw of the queries, and the derivative of what that was before its non-linearity. A memory of one layer
    has `q` and `k` for what its layer sees. ``room [slots, 3, C, C]`` is for weights of scores."""
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
    tokens_K, tokens_V = valid[:, None] & (key < K)[None, :], valid[:, None] & real
    square = tile(row, row, BLOCK_C)
    mixes += slot * BLOCK_C * BLOCK_C
    to_mixes += slot * BLOCK_C * BLOCK_C
    mixed_first = room + slot * 3 * BLOCK_C * BLOCK_C
    mixed_last, mixed_scores = mixed_first + BLOCK_C * BLOCK_C, mixed_first + 2 * BLOCK_C * BLOCK_C

    # The chunk once more, as in `reads_kernel`: what became of the keys, then what the queries asked.
    if DEPTH == 2:
        for start in range(0, D, BLOCK_D):
            hidden = start + block
            at, inside = tile(key, hidden, D), (key < K)[:, None] & (hidden < D)[None, :]
            at_last, inside_last = LAST + tile(value, hidden, D), (value < V)[:, None] & (hidden < D)[None, :]
            at_token, tokens_D = tile(token, hidden, D), valid[:, None] & (hidden < D)[None, :]
            w = tl.load(point + at, inside, 0.0)
            before = dot(load_tokens(k, token, valid, key, K), w, OPERAND, PRECISION)
            tl.store(seen + at_token, activation(before, ACTIVATION).to(OPERAND), tokens_D)
            slope, curve = activation_back(before, ACTIVATION)
            tl.store(slopes + at_token, slope.to(OPERAND), tokens_D)
            w = tl.load(point + at_last, inside_last, 0.0)
            sent = dot(load_tokens(errors, token, valid, value, V), w, OPERAND, PRECISION)
            tl.store(sent_first + at_token, (sent * slope).to(OPERAND), tokens_D)
            tl.store(bends + at_token, (sent * curve).to(OPERAND), tokens_D)
        k_KC = tl.trans(load_tokens(k, token, valid, key, K))
        scores = dot(load_tokens(q, token, valid, key, K), k_KC, OPERAND, PRECISION)
        tl.store(mixed_first + square, (scores * tl.load(mixes + square).to(tl.float32)).to(OPERAND))
        tl.debug_barrier()
        for start in range(0, D, BLOCK_D):
            hidden = start + block
            at, inside = tile(key, hidden, D), (key < K)[:, None] & (hidden < D)[None, :]
            at_token, tokens_D = tile(token, hidden, D), valid[:, None] & (hidden < D)[None, :]
            asked = _read(
                load_tokens(q, token, valid, key, K), at, inside, weights, momentum, target, beta, pull, f, False,
                TARGETS, MOMENTUM, OPERAND, PRECISION,
            )  # fmt: skip
            asked -= dot(
                tl.load(mixed_first + square), load_tokens(sent_first, token, valid, hidden, D), OPERAND, PRECISION
            )
            tl.store(back_z + at_token, activation(asked, ACTIVATION).to(OPERAND), tokens_D)
            slope, curve = activation_back(asked, ACTIVATION)
            tl.store(back_asked + at_token, slope.to(OPERAND), tokens_D)
        tl.debug_barrier()
    z, x = q, k
    if DEPTH == 2:
        z, x = back_z, seen
    scores = tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
    for start in range(0, D, BLOCK_D):
        hidden = start + block
        x_DC = tl.trans(load_tokens(x, token, valid, hidden, D))
        scores += dot(load_tokens(z, token, valid, hidden, D), x_DC, OPERAND, PRECISION)
    tl.store(to_mixes + square, scores)
    tl.store(mixed_last + square, (scores * tl.load(mixes + square).to(tl.float32)).to(OPERAND))
    tl.debug_barrier()

    # Back from the answers.
    to_r = tl.load(to_y + tile(token, value, V), tokens_V, 0.0).to(tl.float32)
    if NORM:
        r = tl.zeros([BLOCK_C, BLOCK_V], tl.float32)
        for start in range(0, D, BLOCK_D):
            hidden = start + block
            at, inside = LAST + tile(value, hidden, D), (value < V)[:, None] & (hidden < D)[None, :]
            r += _read(
                load_tokens(z, token, valid, hidden, D), at, inside, weights, momentum, target, beta, pull, f, True,
                TARGETS, MOMENTUM, OPERAND, PRECISION,
            )  # fmt: skip
        r -= dot(tl.load(mixed_last + square), load_tokens(errors, token, valid, value, V), OPERAND, PRECISION)
        normed, inverse = normalise(r, real, V, EPS)
        to_r = normalise_back(normed, inverse, to_r, real, V)
    tl.store(back_r + tile(token, value, V), to_r.to(OPERAND), tokens_V)
    tl.debug_barrier()
    e_VC = tl.trans(load_tokens(errors, token, valid, value, V))
    to_scores = dot(load_tokens(back_r, token, valid, value, V), e_VC, OPERAND, PRECISION)  # but for sign and G
    tl.store(mixed_scores + square, (to_scores * tl.load(mixes + square).to(tl.float32)).to(OPERAND))
    to_G = -tl.load(to_mixes + square) * to_scores
    mixed = tl.trans(tl.load(mixed_last + square))
    to_error = -dot(mixed, load_tokens(back_r, token, valid, value, V), OPERAND, PRECISION)
    tl.store(back_error + tile(token, value, V), to_error.to(OPERAND), tokens_V)
    tl.debug_barrier()
    tl.store(to_mixes + square, to_G)
    grad_q = tl.zeros([BLOCK_C, BLOCK_K], tl.float32)
    to_beta = tl.zeros([BLOCK_C], tl.float32)
    to_pull, to_f = to_beta, to_beta
    for start in range(0, D, BLOCK_D):
        hidden = start + block
        at_last, inside_last = LAST + tile(value, hidden, D), (value < V)[:, None] & (hidden < D)[None, :]
        at_token, tokens_D = tile(token, hidden, D), valid[:, None] & (hidden < D)[None, :]
        z_CD = load_tokens(z, token, valid, hidden, D)
        to_z, b0, b1, b2 = _read_back(
            load_tokens(back_r, token, valid, value, V), z_CD, at_last, inside_last, weights, momentum, target,
            beta, pull, f, True, TARGETS, MOMENTUM, OPERAND, PRECISION,
        )  # fmt: skip
        to_beta += b0
        to_pull += b1
        to_f += b2
        to_z -= dot(tl.load(mixed_scores + square), load_tokens(x, token, valid, hidden, D), OPERAND, PRECISION)
        to_x = -dot(tl.trans(tl.load(mixed_scores + square)), z_CD, OPERAND, PRECISION)
        tl.store(back_x + at_token, to_x.to(OPERAND), tokens_D)
        if DEPTH == 2:
            to_asked = to_z * tl.load(back_asked + at_token, tokens_D, 0.0).to(tl.float32)
            tl.debug_barrier()
            tl.store(back_asked + at_token, to_asked.to(OPERAND), tokens_D)
        else:
            grad_q += to_z

    if DEPTH == 2:
        tl.debug_barrier()
        to_scores = tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
        for start in range(0, D, BLOCK_D):
            hidden = start + block
            at, inside = tile(key, hidden, D), (key < K)[:, None] & (hidden < D)[None, :]
            at_token, tokens_D = tile(token, hidden, D), valid[:, None] & (hidden < D)[None, :]
            to_asked = load_tokens(back_asked, token, valid, hidden, D)
            d_DC = tl.trans(load_tokens(sent_first, token, valid, hidden, D))
            to_scores += dot(to_asked, d_DC, OPERAND, PRECISION)
            to_d = -dot(tl.trans(tl.load(mixed_first + square)), to_asked, OPERAND, PRECISION)
            tl.store(back_d + at_token, to_d.to(OPERAND), tokens_D)
            more_q, b0, b1, b2 = _read_back(
                to_asked, load_tokens(q, token, valid, key, K), at, inside, weights, momentum, target,
                beta, pull, f, False, TARGETS, MOMENTUM, OPERAND, PRECISION,
            )  # fmt: skip
            grad_q += more_q
            to_beta += b0
            to_pull += b1
            to_f += b2
        k_KC = tl.trans(load_tokens(k, token, valid, key, K))
        scores = dot(load_tokens(q, token, valid, key, K), k_KC, OPERAND, PRECISION)
        to_G = tl.load(to_mixes + square) - scores * to_scores
        mixed = to_scores * tl.load(mixes + square).to(tl.float32)
        tl.debug_barrier()
        tl.store(to_mixes + square, to_G)
        tl.store(mixed_scores + square, mixed.to(OPERAND))
        tl.debug_barrier()
        grad_q -= dot(tl.load(mixed_scores + square), load_tokens(k, token, valid, key, K), OPERAND, PRECISION)
        mixed = tl.trans(tl.load(mixed_scores + square))
        grad_k = -dot(mixed, load_tokens(q, token, valid, key, K), OPERAND, PRECISION)
        tl.store(back_k + tile(token, key, K), grad_k.to(OPERAND), tokens_K)
    if RESIDUAL:
        grad_q += load_tokens(to_y, token, valid, key, K).to(tl.float32)
    tl.store(to_q + tile(token, key, K), grad_q, tokens_K)
    to_shares += slot * SHARES * BLOCK_C
    tl.store(to_shares + row, to_beta)
    tl.store(to_shares + BLOCK_C + row, to_pull)
    tl.store(to_shares + 2 * BLOCK_C + row, to_f)

    # What the chunk starts from.
    if STATES:
        back_weights += slot * P
        back_momentum += slot * P
        for start in range(0, D, BLOCK_D):
            hidden = start + block
            at_last, inside_last = LAST + tile(value, hidden, D), (value < V)[:, None] & (hidden < D)[None, :]
            _send(
                load_tokens(back_r, token, valid, value, V), load_tokens(z, token, valid, hidden, D),
                at_last, inside_last, beta, f, back_weights, back_momentum, MOMENTUM, OPERAND, PRECISION,
            )  # fmt: skip
            if DEPTH == 2:
                at, inside = tile(key, hidden, D), (key < K)[:, None] & (hidden < D)[None, :]
                _send(
                    load_tokens(q, token, valid, key, K), load_tokens(back_asked, token, valid, hidden, D), at, inside,
                    beta, f, back_weights, back_momentum, MOMENTUM, OPERAND, PRECISION,
                )  # fmt: skip


# --- chunk after chunk, from the last to the first


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
def _move_back(
    grad, at, inside, anchored, to_weights, to_momentum, to_anchor, to_weights_at, to_momentum_at,
    beta_last, f_last, carry, MOMENTUM: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """From the derivatives of a tile of weights and momentum after a chunk to those before it, where ``grad`` is that
    of what the gradients were taken at. Leaves the former in `to_..._at`, where what `_read` sent had been left.
    Returns the squares of the latter."""
    after = tl.load(to_weights + at, inside, 0.0)
    new = beta_last * after + tl.load(to_weights_at + at, inside, 0.0).to(tl.float32)
    if anchored:
        grad += tl.load(to_anchor + at, inside, 0.0)
    else:
        new += grad
    squares = tl.zeros_like(new)
    if MOMENTUM:
        after_moving = tl.load(to_momentum + at, inside, 0.0)
        moving = carry * after_moving + f_last * after + tl.load(to_momentum_at + at, inside, 0.0).to(tl.float32)
        squares += moving * moving
        tl.debug_barrier()
        tl.store(to_momentum_at + at, after_moving.to(OPERAND), inside)
        tl.store(to_momentum + at, moving, inside)
    squares += new * new
    tl.debug_barrier()  # all of the tiles has been read before any of it is replaced
    tl.store(to_weights_at + at, after.to(OPERAND), inside)
    tl.store(to_weights + at, new, inside)
    if anchored:
        tl.store(to_anchor + at, grad, inside)
    return tl.sum(squares)


@triton.jit
def _written_back(
    d, at, inside, after, after_moving, mix_last, moved_last, TRANSPOSED: tl.constexpr,
    MOMENTUM: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Back through a write ``x^T d`` into a tile: the derivative of x, but for its sign."""
    to_x = mix_last[:, None] * dot(d, _part(after, at, inside, TRANSPOSED), OPERAND, PRECISION)
    if MOMENTUM:
        to_x += moved_last[:, None] * dot(d, _part(after_moving, at, inside, TRANSPOSED), OPERAND, PRECISION)
    return to_x


@triton.jit
def states_back_kernel(
    k, v, errors, shares, ends, anchor, weights_at, outputs, seen, slopes, bends, to_last_anchor,
    back_x, back_d, back_u, to_k, to_v, to_weights_at, to_momentum_at, to_weights, to_momentum, to_anchor, spans, plan,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, V: tl.constexpr, P: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    DEPTH: tl.constexpr, OBJECTIVE: tl.constexpr, DELTA: tl.constexpr, NORM: tl.constexpr,
    RESIDUAL: tl.constexpr, DENOMINATOR: tl.constexpr, EPS: tl.constexpr, MOMENTUM: tl.constexpr,
    LIMIT: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`to_weights`, `to_momentum` hold the derivative with respect to what the last chunk left, and in the end that
    with respect to what the first one found; `to_anchor` is added to.

    Takes what `reads_back_kernel` left, ``back_k`` in `to_k` and ``back_error`` in `to_v`. Leaves for
    `writes_back_kernel` in `to_..._at` the derivatives of what each chunk left, in `back_x` that of what was before the
    non-linearity (in a memory of one layer it stays as it is), in `back_d` that of what came back through the last
    layer, and in `back_u` that of what came out at the anchor, with its sign changed."""
    sequence, head = tl.program_id(0) // H, tl.program_id(0) % H
    row, key, value = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    block = tl.arange(0, BLOCK_D)
    real = (value < V)[None, :]
    LAST: tl.constexpr = P - D * V
    own = tl.program_id(0).to(tl.int64) * P
    to_weights += own
    to_momentum += own
    to_anchor += own
    to_last_anchor += own
    anchor += own
    first, chunks = tl.load(plan + sequence * 4), tl.load(plan + sequence * 4 + 1)

    for done in range(chunks):
        chunk = first + chunks - 1 - done
        slot = chunk.to(tl.int64) * H + head
        token, valid, count = tokens_of(spans, chunk, head, row, H)
        anchored = tl.load(spans + chunk * 4 + 3) > 0
        nudge = _nudge(count)
        after, after_moving = to_weights + nudge, to_momentum + nudge
        to_anchor_now, to_last_anchor_now = to_anchor + nudge, to_last_anchor + nudge
        weights_after, momentum_after = to_weights_at + slot * P, to_momentum_at + slot * P
        point = weights_at + slot * P
        if anchored:
            point = anchor + nudge
        mix_last = load_share(shares + slot * SHARES * BLOCK_C, 3, row, BLOCK_C)
        moved_last = load_share(shares + slot * SHARES * BLOCK_C, 4, row, BLOCK_C)
        tokens_V = valid[:, None] & real
        x = k
        if DEPTH == 2:
            x = seen

        # Back through what was written, to the two layers: x = act(before), d = (error W_2^T) * slope.
        if DEPTH == 2:
            for start in range(0, D, BLOCK_D):
                hidden = start + block
                at, inside = tile(key, hidden, D), (key < K)[:, None] & (hidden < D)[None, :]
                at_last, inside_last = LAST + tile(value, hidden, D), (value < V)[:, None] & (hidden < D)[None, :]
                at_token, tokens_D = tile(token, hidden, D), valid[:, None] & (hidden < D)[None, :]
                to_x = load_tokens(back_x, token, valid, hidden, D).to(tl.float32) - _written_back(
                    load_tokens(errors, token, valid, value, V), at_last, inside_last, after, after_moving,
                    mix_last, moved_last, False, MOMENTUM, OPERAND, PRECISION,
                )  # fmt: skip
                to_d = load_tokens(back_d, token, valid, hidden, D).to(tl.float32) - _written_back(
                    load_tokens(k, token, valid, key, K), at, inside, after, after_moving,
                    mix_last, moved_last, False, MOMENTUM, OPERAND, PRECISION,
                )  # fmt: skip
                slope = load_tokens(slopes, token, valid, hidden, D).to(tl.float32)
                to_before = to_x * slope + to_d * load_tokens(bends, token, valid, hidden, D).to(tl.float32)
                tl.debug_barrier()
                tl.store(back_x + at_token, to_before.to(OPERAND), tokens_D)
                tl.store(back_d + at_token, (to_d * slope).to(OPERAND), tokens_D)
            tl.debug_barrier()

        # Back through the error at the anchor, and through what it is an error of.
        to_error = tl.load(to_v + tile(token, value, V), tokens_V, 0.0).to(tl.float32)
        for start in range(0, D, BLOCK_D):
            hidden = start + block
            at_last, inside_last = LAST + tile(value, hidden, D), (value < V)[:, None] & (hidden < D)[None, :]
            to_error -= _written_back(
                load_tokens(x, token, valid, hidden, D), at_last, inside_last, after, after_moving,
                mix_last, moved_last, True, MOMENTUM, OPERAND, PRECISION,
            )  # fmt: skip
            if DEPTH == 2:
                w = tl.trans(tl.load(point + at_last, inside_last, 0.0))
                to_error -= dot(-load_tokens(back_d, token, valid, hidden, D), w, OPERAND, PRECISION)
        u = load_tokens(outputs, token, valid, value, V)
        k_CV = u
        if RESIDUAL:
            k_CV = load_tokens(k, token, valid, value, V).to(tl.float32)
        v_CV = load_tokens(v, token, valid, value, V).to(tl.float32)
        normed, inverse, sent, error, off, each_loss = inner_error(
            u, k_CV, v_CV, real, V, OBJECTIVE, DELTA, NORM, RESIDUAL, DENOMINATOR, EPS
        )
        to_value, to_output, to_u = inner_error_back(
            normed, inverse, sent, error, off, to_error, real, V, OBJECTIVE, DELTA, NORM
        )
        tl.store(back_u + tile(token, value, V), (-to_u).to(OPERAND), tokens_V)
        tl.debug_barrier()
        tl.store(to_v + tile(token, value, V), to_value, tokens_V)
        if RESIDUAL:
            grad_k = to_output
            if DEPTH == 2:
                grad_k += load_tokens(to_k, token, valid, value, V).to(tl.float32)
            tl.debug_barrier()
            tl.store(to_k + tile(token, value, V), grad_k, tokens_V)
        if DEPTH == 2:
            for start in range(0, D, BLOCK_D):
                hidden = start + block
                at_token, tokens_D = tile(token, hidden, D), valid[:, None] & (hidden < D)[None, :]
                at_last, inside_last = LAST + tile(value, hidden, D), (value < V)[:, None] & (hidden < D)[None, :]
                w = tl.load(point + at_last, inside_last, 0.0)
                to_x = dot(load_tokens(back_u, token, valid, value, V), w, OPERAND, PRECISION)
                to_before = load_tokens(back_x, token, valid, hidden, D).to(tl.float32)
                to_before -= to_x * load_tokens(slopes, token, valid, hidden, D).to(tl.float32)
                tl.debug_barrier()
                tl.store(back_x + at_token, to_before.to(OPERAND), tokens_D)
            tl.debug_barrier()

        # Back to what the chunk found.
        beta_last, f_last, carry = (
            tl.load(ends + slot * ENDS), tl.load(ends + slot * ENDS + 2), tl.load(ends + slot * ENDS + 3)
        )  # fmt: skip
        last = tl.where(chunk == first + chunks - 1, 1, 0)  # whose anchor may have been handed on
        squares = 0.0
        for start in range(0, D, BLOCK_D):
            hidden = start + block
            at_last, inside_last = LAST + tile(value, hidden, D), (value < V)[:, None] & (hidden < D)[None, :]
            handed = inside_last & (tl.zeros_like(at_last) + last > 0)  # the interpreter wants masks of full shape
            grad = tl.load(to_last_anchor_now + at_last, handed, 0.0)
            grad -= dot(
                tl.trans(load_tokens(back_u, token, valid, value, V)), load_tokens(x, token, valid, hidden, D),
                OPERAND, PRECISION,
            )  # fmt: skip
            if DEPTH == 2:
                grad -= dot(
                    tl.trans(-load_tokens(errors, token, valid, value, V)),
                    load_tokens(back_d, token, valid, hidden, D), OPERAND, PRECISION,
                )  # fmt: skip
            squares += _move_back(
                grad, at_last, inside_last, anchored, after, after_moving, to_anchor_now, weights_after, momentum_after,
                beta_last, f_last, carry, MOMENTUM, OPERAND,
            )  # fmt: skip
            if DEPTH == 2:
                at, inside = tile(key, hidden, D), (key < K)[:, None] & (hidden < D)[None, :]
                handed = inside & (tl.zeros_like(at) + last > 0)
                grad = tl.load(to_last_anchor_now + at, handed, 0.0)
                grad -= dot(
                    tl.trans(-load_tokens(k, token, valid, key, K)), load_tokens(back_x, token, valid, hidden, D),
                    OPERAND, PRECISION,
                )  # fmt: skip
                squares += _move_back(
                    grad, at, inside, anchored, after, after_moving, to_anchor_now, weights_after, momentum_after,
                    beta_last, f_last, carry, MOMENTUM, OPERAND,
                )  # fmt: skip
        tl.debug_barrier()
        if squares > LIMIT * LIMIT:
            if LAST > 0:
                _shorten(to_weights, LAST, LIMIT)
            _shorten(to_weights + LAST, P - LAST, LIMIT)
            if MOMENTUM:
                if LAST > 0:
                    _shorten(to_momentum, LAST, LIMIT)
                _shorten(to_momentum + LAST, P - LAST, LIMIT)


# --- all chunks at once: back to what was written


@triton.jit
def ends_back(
    weights, momentum, target, to_weights, to_momentum, COUNT: tl.constexpr, TARGETS: tl.constexpr,
    MOMENTUM: tl.constexpr,
):  # fmt: skip
    """Derivatives of what COUNT numbers of a memory are weighed with at the end of a chunk: beta, pull, f and what is
    left of S."""
    place = tl.arange(0, SWEEP)
    to_beta = tl.zeros([SWEEP], tl.float32)
    to_pull, to_f, to_carry = to_beta, to_beta, to_beta
    for start in range(0, COUNT, SWEEP):
        at, inside = start + place, start + place < COUNT
        after = tl.load(to_weights + at, inside, 0.0).to(tl.float32)
        to_beta += tl.load(weights + at, inside, 0.0).to(tl.float32) * after
        if TARGETS:
            to_pull += tl.load(target + at, inside, 0.0).to(tl.float32) * after
        if MOMENTUM:
            moving = tl.load(momentum + at, inside, 0.0).to(tl.float32)
            to_f += moving * after
            to_carry += moving * tl.load(to_momentum + at, inside, 0.0).to(tl.float32)
    return tl.sum(to_beta, 0), tl.sum(to_pull, 0), tl.sum(to_f, 0), tl.sum(to_carry, 0)


@triton.jit
def store_writes_back(to_shares, to_ends, slot, row, to_mix, to_moved, to_last, BLOCK_C: tl.constexpr):
    """The derivatives of what weighs the writes of a chunk, and of what `ends_back` gives."""
    to_shares += slot * SHARES * BLOCK_C
    tl.store(to_shares + 3 * BLOCK_C + row, to_mix)
    tl.store(to_shares + 4 * BLOCK_C + row, to_moved)
    for i in tl.static_range(4):
        tl.store(to_ends + slot * ENDS + i, to_last[i])


@triton.jit
def writes_back_kernel(
    k, errors, shares, target, anchor, weights_at, momentum_at, seen, sent_first, back_x, back_u,
    to_weights_at, to_momentum_at, to_k, to_shares, to_ends, spans,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, V: tl.constexpr, P: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    DEPTH: tl.constexpr, RESIDUAL: tl.constexpr, MOMENTUM: tl.constexpr, TARGETS: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """To keys, and to what weighs the writes and what was there before."""
    chunk, head = tl.program_id(0) // H, tl.program_id(0) % H
    row, key, value = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    block = tl.arange(0, BLOCK_D)
    LAST: tl.constexpr = P - D * V
    slot = tl.program_id(0).to(tl.int64)
    token, valid, count = tokens_of(spans, chunk, head, row, H)
    weights, momentum = weights_at + slot * P, momentum_at + slot * P
    to_weights, to_momentum = to_weights_at + slot * P, to_momentum_at + slot * P
    target += head * P
    point = _point(spans, chunk, head, weights, anchor, H, P)
    mix_last = load_share(shares + slot * SHARES * BLOCK_C, 3, row, BLOCK_C)
    moved_last = load_share(shares + slot * SHARES * BLOCK_C, 4, row, BLOCK_C)
    tokens_K = valid[:, None] & (key < K)[None, :]
    grad_k = tl.zeros([BLOCK_C, BLOCK_K], tl.float32)
    if DEPTH == 2 or RESIDUAL:
        grad_k = load_tokens(to_k, token, valid, key, K).to(tl.float32)
    to_mix = tl.zeros([BLOCK_C], tl.float32)
    to_moved = to_mix
    for start in range(0, D, BLOCK_D):
        hidden = start + block
        at_last, inside_last = LAST + tile(value, hidden, D), (value < V)[:, None] & (hidden < D)[None, :]
        x = k
        if DEPTH == 2:
            x = seen
        to_x, m0, m1 = _weighed_back(
            load_tokens(errors, token, valid, value, V), load_tokens(x, token, valid, hidden, D),
            at_last, inside_last, to_weights, to_momentum, mix_last, moved_last, False, MOMENTUM, OPERAND, PRECISION,
        )  # fmt: skip
        to_mix -= m0
        to_moved -= m1
        if DEPTH == 2:
            at, inside = tile(key, hidden, D), (key < K)[:, None] & (hidden < D)[None, :]
            more_k, m0, m1 = _weighed_back(
                load_tokens(sent_first, token, valid, hidden, D), load_tokens(k, token, valid, key, K),
                at, inside, to_weights, to_momentum, mix_last, moved_last, True, MOMENTUM, OPERAND, PRECISION,
            )  # fmt: skip
            grad_k -= more_k
            w = tl.trans(tl.load(point + at, inside, 0.0))
            grad_k += dot(load_tokens(back_x, token, valid, hidden, D), w, OPERAND, PRECISION)
            to_mix -= m0
            to_moved -= m1
        else:
            w = tl.load(point + at_last, inside_last, 0.0)
            grad_k += load_tokens(back_x, token, valid, hidden, D).to(tl.float32) - to_x
            grad_k -= dot(load_tokens(back_u, token, valid, value, V), w, OPERAND, PRECISION)
    tl.debug_barrier()
    tl.store(to_k + tile(token, key, K), grad_k, tokens_K)
    to_last = ends_back(weights, momentum, target, to_weights, to_momentum, P, TARGETS, MOMENTUM)
    store_writes_back(to_shares, to_ends, slot, row, to_mix, to_moved, to_last, BLOCK_C)


@triton.jit
def _weighed_back(
    d, x, at, inside, to_weights, to_momentum, mix_last, moved_last, TRANSPOSED: tl.constexpr,
    MOMENTUM: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`_written_back` once more, and the derivatives of what weighs the write; all but for their sign."""
    x_CI = x.to(tl.float32)
    sent = dot(d, _part(to_weights, at, inside, TRANSPOSED), OPERAND, PRECISION)
    to_x = mix_last[:, None] * sent
    to_mix = tl.sum(sent * x_CI, 1)
    to_moved = tl.zeros_like(to_mix)
    if MOMENTUM:
        sent = dot(d, _part(to_momentum, at, inside, TRANSPOSED), OPERAND, PRECISION)
        to_x += moved_last[:, None] * sent
        to_moved = tl.sum(sent * x_CI, 1)
    return to_x, to_mix, to_moved


@triton.jit
def targets_back_kernel(
    z, r, shares, ends, to_weights_at, to_initial, spans, plan,
    H: tl.constexpr, D: tl.constexpr, P: tl.constexpr, OFFSET: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_D: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """To what memories are drawn to, of one matrix, which begins at OFFSET and has WIDTH rows: a sum over chunks."""
    sequence, head = tl.program_id(0) // H, tl.program_id(0) % H
    row, column = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_W)
    hidden = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    at, inside = OFFSET + tile(column, hidden, D), (column < WIDTH)[:, None] & (hidden < D)[None, :]
    first, chunks = tl.load(plan + sequence * 4), tl.load(plan + sequence * 4 + 1)
    grad = tl.zeros([BLOCK_W, BLOCK_D], tl.float32)
    for g in range(chunks):
        slot = (first + g).to(tl.int64) * H + head
        token, valid, count = tokens_of(spans, first + g, head, row, H)
        pull = load_share(shares + slot * SHARES * BLOCK_C, 1, row, BLOCK_C)
        z_CW = load_tokens(z, token, valid, column, WIDTH).to(tl.float32) * pull[:, None]
        after = tl.load(to_weights_at + slot * P + at, inside, 0.0).to(tl.float32)
        grad += tl.load(ends + slot * ENDS + 1) * after
        grad += dot(tl.trans(z_CW), load_tokens(r, token, valid, hidden, D), OPERAND, PRECISION)
    tl.store(to_initial + tl.program_id(0).to(tl.int64) * P + at, grad, inside)
