"""The chunk loop for NVIDIA GPUs, in Triton: the equations of `chunked` and `gates`, and their derivatives by hand.

One program reads one sequence for one head, chunk after chunk. Tokens of all sequences stand in a row,
``[total, H, D]``, and a plan says where each sequence is, so nothing is cut or padded outside. The weights of a memory
are one row of ``P`` numbers: ``W_1 [K, D]`` then ``W_2 [D, V]``, or ``W_1 [K, V]`` alone. Hidden columns ``D`` are
taken in blocks.

A memory's states stand in *slots*: the one before each chunk and the last one if the derivative is wanted, else two by
turns. The way back computes the rest of a chunk again. No ``[C, C]`` matrix leaves the chip, and every program owns
what it writes: what heads of several sequences share is summed up outside.

This module imports triton; only `triton_reading` imports it.
"""

from __future__ import annotations

import triton
import triton.language as tl

EXP_FLOOR = tl.constexpr(1.0842021724855044e-19)  # as `gates`: the square root of the smallest normal number
SWEEP = tl.constexpr(1024)  # numbers of a derivative measured at a time

# --- small things


@triton.jit
def _dot(a, b, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    return tl.dot(a.to(OPERAND), b.to(OPERAND), input_precision=PRECISION)


@triton.jit
def _exp(x):
    value = tl.exp(x)
    return tl.where(value > EXP_FLOOR, value, 0.0)


@triton.jit
def _one_minus_exp(x):
    """``1 - exp(x)``, with a series where the difference would cancel."""
    series = -x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6)))))
    return tl.where(x > -0.25, series, 1 - tl.exp(x))


@triton.jit
def _tile(row, column, width):
    """Offsets of a tile of a row-major matrix."""
    return row[:, None] * width + column[None, :]


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _activation(x, KIND: tl.constexpr):
    if KIND == "silu":
        return x * tl.sigmoid(x)
    elif KIND == "gelu":
        return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif KIND == "relu":
        return tl.maximum(x, 0.0)
    else:
        return _tanh(x)


@triton.jit
def _activation_back(x, KIND: tl.constexpr):
    """First and second derivative."""
    if KIND == "silu":
        gate = tl.sigmoid(x)
        rest = 1 - gate
        return gate * (1 + x * rest), gate * rest * (2 + x * (rest - gate))
    elif KIND == "gelu":
        density = tl.exp(-0.5 * x * x) * 0.3989422804014327
        return 0.5 * (1 + tl.erf(x * 0.7071067811865476)) + x * density, density * (2 - x * x)
    elif KIND == "relu":
        return tl.where(x > 0, 1.0, 0.0), tl.zeros_like(x)
    else:
        t = _tanh(x)
        return 1 - t * t, -2 * t * (1 - t * t)


@triton.jit
def _normalise(z, real, width, EPS: tl.constexpr):
    """Rows without their mean, of deviation 1; and one over what the deviation was. ``real`` marks the columns."""
    centred = tl.where(real, z - tl.sum(z, 1)[:, None] / width, 0.0)
    inverse = 1 / tl.sqrt(tl.sum(centred * centred, 1) / width + EPS)
    return centred * inverse[:, None], inverse


@triton.jit
def _normalise_back(normed, inverse, error, real, width):
    """Derivative of the normalisation, which is its own transpose."""
    along = tl.sum(error * normed, 1) / width
    rest = error - tl.sum(error, 1)[:, None] / width - normed * along[:, None]
    return tl.where(real, inverse[:, None] * rest, 0.0)


# --- gates: the algebra of `gates.chunk_gates`. BEFORE is 1 where a token reads the memory it meets, one row up.


@triton.jit
def _gates(theta, log_momentum, log_decay, row, length, BEFORE: tl.constexpr, MOMENTUM: tl.constexpr):
    t, s = row[:, None], row[None, :]
    met = log_decay
    if BEFORE:
        met = tl.sum(tl.where(s == t - 1, log_decay[None, :], 0.0), 1)
    A = tl.where(t - BEFORE >= s, _exp(tl.cumsum(tl.where(t - BEFORE > s, met[:, None], 0.0), 0)), 0.0)
    so_far = tl.cumsum(met, 0)
    beta, pull = _exp(so_far), _one_minus_exp(so_far)
    total = tl.sum(log_decay, 0)
    # What is left of each token's S in the last M; a padded token takes no part.
    left = tl.where(row < length, _exp(tl.sum(tl.where(t > s, log_decay[:, None], 0.0), 0)), 0.0)
    if MOMENTUM:
        E = tl.where(t >= s, _exp(tl.cumsum(tl.where(t > s, log_momentum[:, None], 0.0), 0)), 0.0)
        m = _exp(tl.cumsum(log_momentum, 0))
        moved = _exp(tl.sum(tl.where(t > s, log_momentum[:, None], 0.0), 0))
        writes = E * theta[None, :]
        G = tl.dot(A, writes, input_precision="ieee")
        f = tl.sum(A * m[None, :], 1)
        mix_last = tl.sum(left[:, None] * writes, 0)
        f_last = tl.sum(left * m, 0)
        carry = _exp(tl.sum(log_momentum, 0))
    else:
        E, m, moved, f, f_last, carry = A, beta, left, beta, 0.0, 0.0
        G = A * theta[None, :]
        mix_last = left * theta
    beta_last, pull_last = _exp(total), _one_minus_exp(total)
    return (
        A, E, G, beta, pull, f, m, left, moved, mix_last, moved * theta, beta_last, pull_last, f_last, carry,
    )  # fmt: skip


@triton.jit
def _between_back(to_log, t, s, SHIFT: tl.constexpr):
    """From the derivative of ``log prod_{s<l<=t-SHIFT}`` to that of each token's log."""
    return tl.sum(tl.where(t - SHIFT > s, tl.cumsum(to_log, 0, reverse=True), 0.0), 1)


@triton.jit
def _gates_back(
    theta, row, A, E, beta, m, left, moved, beta_last, carry,
    to_G, to_beta, to_pull, to_f, to_beta_last, to_pull_last, to_f_last, to_mix_last, to_moved, to_carry,
    BEFORE: tl.constexpr, MOMENTUM: tl.constexpr,
):  # fmt: skip
    t, s = row[:, None], row[None, :]
    to_log_momentum = tl.zeros_like(theta)
    if MOMENTUM:
        writes = E * theta[None, :]
        to_A = tl.dot(to_G, tl.trans(writes), input_precision="ieee") + to_f[:, None] * m[None, :]
        to_writes = tl.dot(tl.trans(A), to_G, input_precision="ieee") + left[:, None] * to_mix_last[None, :]
        to_left = tl.sum(writes * to_mix_last[None, :], 1) + to_f_last * m
        to_m = tl.sum(A * to_f[:, None], 0) + to_f_last * left
        to_theta = tl.sum(to_writes * E, 0) + to_moved * moved
        to_log_momentum = _between_back(to_writes * writes, t, s, 0) + to_carry * carry
        to_log_momentum += tl.sum(tl.where(s < t, (to_moved * theta * moved)[None, :], 0.0), 1)
        to_log_momentum += tl.sum(tl.where(s >= t, (to_m * m)[None, :], 0.0), 1)
    else:
        to_A = to_G * theta[None, :]
        to_left = to_mix_last * theta
        to_theta = tl.sum(to_G * A, 0) + to_mix_last * left
    to_met = _between_back(to_A * A, t, s, BEFORE)
    to_met += tl.sum(tl.where(s >= t, ((to_beta - to_pull) * beta)[None, :], 0.0), 1)
    if BEFORE:
        to_met = tl.sum(tl.where(s == t + 1, to_met[None, :], 0.0), 1)
    to_log_decay = to_met + (to_beta_last - to_pull_last) * beta_last
    to_log_decay += tl.sum(tl.where(s < t, (to_left * left)[None, :], 0.0), 1)
    return to_theta, to_log_momentum, to_log_decay


# --- one tile of one matrix: ``W[I, O]``, met by queries ``z [C, I]``, written by ``x [C, I]`` and ``d [C, O]``


@triton.jit
def _read(
    z, at, inside, weights, target, momentum, beta, pull, f,
    TARGETS: tl.constexpr, MOMENTUM: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What the queries meet of the chunk's start."""
    answer = beta[:, None] * _dot(z, tl.load(weights + at, inside, 0.0), OPERAND, PRECISION)
    if TARGETS:
        answer += pull[:, None] * _dot(z, tl.load(target + at, inside, 0.0).to(tl.float32), OPERAND, PRECISION)
    if MOMENTUM:
        answer += f[:, None] * _dot(z, tl.load(momentum + at, inside, 0.0), OPERAND, PRECISION)
    return answer


@triton.jit
def _write(
    x, d, at, inside, weights, target, momentum, next_weights, next_momentum,
    mix_last, moved_last, beta_last, pull_last, f_last, carry,
    TARGETS: tl.constexpr, MOMENTUM: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    after = beta_last * tl.load(weights + at, inside, 0.0)
    if TARGETS:
        after += pull_last * tl.load(target + at, inside, 0.0).to(tl.float32)
    if MOMENTUM:
        moving = tl.load(momentum + at, inside, 0.0)
        after += f_last * moving
        kept = carry * moving - _dot(tl.trans(x * moved_last[:, None]), d, OPERAND, PRECISION)
        tl.store(next_momentum + at, kept, inside)
    tl.store(next_weights + at, after - _dot(tl.trans(x * mix_last[:, None]), d, OPERAND, PRECISION), inside)


@triton.jit
def _matrix_back(
    z, x, d, r, at, inside, weights, target, momentum, to_weights, to_target, to_momentum,
    beta, pull, f, mix_last, moved_last, beta_last, pull_last, f_last, carry,
    TARGETS: tl.constexpr, MOMENTUM: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Back through `_read` (``r`` is the derivative of the answer) and `_write` (that of what it left is stored).

    Returns derivatives of z, x, d and of the gates that weigh reads and writes; stores those of weights and momentum
    as the chunk met them, and adds that of the target.
    """
    w, after = tl.load(weights + at, inside, 0.0), tl.load(to_weights + at, inside, 0.0)
    met = _dot(r, tl.trans(w), OPERAND, PRECISION)
    to_z = beta[:, None] * met
    to_beta, to_beta_last = tl.sum(met * z, 1), tl.sum(w * after)
    to_pull, to_pull_last = tl.zeros_like(to_beta), tl.zeros_like(to_beta_last)
    to_f, to_f_last = tl.zeros_like(to_beta), tl.zeros_like(to_beta_last)
    to_moved, to_carry = tl.zeros_like(to_beta), tl.zeros_like(to_beta_last)

    sent = _dot(d, tl.trans(after), OPERAND, PRECISION)
    to_mix_last = -tl.sum(sent * x, 1)
    to_x = -mix_last[:, None] * sent
    to_d = -mix_last[:, None] * _dot(x, after, OPERAND, PRECISION)
    new = beta_last * after + _dot(tl.trans(beta[:, None] * z), r, OPERAND, PRECISION)
    if TARGETS:
        goal = tl.load(target + at, inside, 0.0).to(tl.float32)
        met = _dot(r, tl.trans(goal), OPERAND, PRECISION)
        to_z += pull[:, None] * met
        to_pull, to_pull_last = tl.sum(met * z, 1), tl.sum(goal * after)
        so_far = tl.load(to_target + at, inside, 0.0)
        so_far += pull_last * after + _dot(tl.trans(pull[:, None] * z), r, OPERAND, PRECISION)
        tl.debug_barrier()
        tl.store(to_target + at, so_far, inside)
    if MOMENTUM:
        moving, after_moving = tl.load(momentum + at, inside, 0.0), tl.load(to_momentum + at, inside, 0.0)
        met = _dot(r, tl.trans(moving), OPERAND, PRECISION)
        to_z += f[:, None] * met
        to_f, to_f_last = tl.sum(met * z, 1), tl.sum(moving * after)
        to_carry = tl.sum(moving * after_moving)
        sent = _dot(d, tl.trans(after_moving), OPERAND, PRECISION)
        to_moved = -tl.sum(sent * x, 1)
        to_x -= moved_last[:, None] * sent
        to_d -= moved_last[:, None] * _dot(x, after_moving, OPERAND, PRECISION)
        new_moving = carry * after_moving + f_last * after + _dot(tl.trans(f[:, None] * z), r, OPERAND, PRECISION)
        tl.debug_barrier()
        tl.store(to_momentum + at, new_moving, inside)
    tl.debug_barrier()  # all of the tile has been read before any of it is replaced
    tl.store(to_weights + at, new, inside)
    return (
        to_z, to_x, to_d, to_beta, to_pull, to_f, to_beta_last, to_pull_last, to_f_last,
        to_mix_last, to_moved, to_carry,
    )  # fmt: skip


@triton.jit
def _add(pointer, value, inside):
    tl.debug_barrier()
    value += tl.load(pointer, inside, 0.0)
    tl.debug_barrier()
    tl.store(pointer, value, inside)


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


# --- the inner loss at the anchor


@triton.jit
def _inner_error(
    u, k_V, v, real, V: tl.constexpr, OBJECTIVE: tl.constexpr, DELTA: tl.constexpr, NORM: tl.constexpr,
    RESIDUAL: tl.constexpr, DENOMINATOR: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """From what the last layer gave for the keys: its norm, the derivative of the loss with respect to the answer, the
    error that the last layer is sent, how far the answer is off, and the loss."""
    normed, inverse = u, tl.sum(u, 1)
    if NORM:
        normed, inverse = _normalise(u, real, V, EPS)
    output = normed
    if RESIDUAL:
        output += k_V
    off = tl.where(real, output - v, 0.0)
    if OBJECTIVE == "dot":
        sent = -v
        each = -output * v
    elif OBJECTIVE == "l2":
        sent = off
        each = 0.5 * off * off
    else:
        sent = tl.minimum(tl.maximum(off, -DELTA), DELTA)
        far = tl.abs(off)
        each = tl.where(far <= DELTA, 0.5 * off * off, DELTA * (far - 0.5 * DELTA))
    if DENOMINATOR:  # its count is bookkeeping, nothing to get right
        each = tl.where(tl.arange(0, u.shape[1])[None, :] < V - 1, each, 0.0)
    error = sent
    if NORM:
        error = _normalise_back(normed, inverse, sent, real, V)
    return normed, inverse, sent, error, off, tl.sum(each, 1)


@triton.jit
def _inner_error_back(
    normed, inverse, sent, error, off, to_error, real, V: tl.constexpr, OBJECTIVE: tl.constexpr, DELTA: tl.constexpr,
    NORM: tl.constexpr,
):  # fmt: skip
    """From the derivative of ``error`` to those of the value, of the answer and of what the last layer gave."""
    to_sent = to_error
    if NORM:
        to_sent = _normalise_back(normed, inverse, to_error, real, V)
    if OBJECTIVE == "huber":
        to_sent = tl.where(tl.abs(off) < DELTA, to_sent, 0.0)
    to_output = to_sent
    if OBJECTIVE == "dot":
        to_output = tl.zeros_like(to_sent)
    to_u = to_output
    if NORM:
        straight, along = tl.sum(sent * normed, 1) / V, tl.sum(to_error * normed, 1) / V
        scaled = tl.sum(to_error * error, 1) / V
        bent = to_output - inverse[:, None] * (to_error * straight[:, None] + sent * along[:, None])
        to_u = _normalise_back(normed, inverse, bent, real, V) - (inverse * scaled)[:, None] * normed
    return -to_sent, to_output, to_u


@triton.jit
def _span(plan, sequence, g, CHUNK: tl.constexpr):
    """First token and length of chunk ``g`` of a sequence that begins in the middle of one."""
    start, end = tl.load(plan + sequence * 4), tl.load(plan + sequence * 4 + 1)
    phase = tl.load(plan + sequence * 4 + 2)
    begin = start + tl.maximum(g * CHUNK - phase, 0)
    return begin, tl.minimum(end, start + (g + 1) * CHUNK - phase) - begin


@triton.jit
def read_kernel(
    q, k, v, step_size, log_momentum, log_decay, initial, anchor, weights_at, momentum_at, plan, y, loss, gradient_norm,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, V: tl.constexpr, P: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    DEPTH: tl.constexpr, ACTIVATION: tl.constexpr, OBJECTIVE: tl.constexpr, DELTA: tl.constexpr, NORM: tl.constexpr,
    RESIDUAL: tl.constexpr, DENOMINATOR: tl.constexpr, EPS: tl.constexpr, MOMENTUM: tl.constexpr, DECAY: tl.constexpr,
    TARGETS: tl.constexpr, BEFORE: tl.constexpr, TRACE: tl.constexpr, KEEP: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    sequence, head = tl.program_id(0) // H, tl.program_id(0) % H
    row, key, value = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    real = (value < V)[None, :]
    LAST: tl.constexpr = P - D * V  # where the last matrix begins
    target = initial + head * P
    given = anchor + (sequence * H + head).to(tl.int64) * P
    length, phase = tl.load(plan + sequence * 4 + 1) - tl.load(plan + sequence * 4), tl.load(plan + sequence * 4 + 2)
    first = tl.load(plan + sequence * 4 + 3).to(tl.int64)
    chunks = tl.where(length > 0, (phase + length + CHUNK - 1) // CHUNK, 0)

    for g in range(chunks):
        begin, count = _span(plan, sequence, g, CHUNK)
        token = (begin + row).to(tl.int64) * H + head
        valid = row < count
        now, then = g, g + 1
        if not KEEP:
            now, then = g % 2, (g + 1) % 2
        now = ((first + now) * H + head) * P
        then = ((first + then) * H + head) * P
        weights, momentum = weights_at + now, momentum_at + now
        point = weights
        if (g == 0) & (phase > 0):
            point = given

        tokens_K, tokens_V = valid[:, None] & (key < K)[None, :], valid[:, None] & real
        q_CK = tl.load(q + _tile(token, key, K), tokens_K, 0.0).to(tl.float32)
        k_CK = tl.load(k + _tile(token, key, K), tokens_K, 0.0).to(tl.float32)
        v_CV = tl.load(v + _tile(token, value, V), tokens_V, 0.0).to(tl.float32)
        theta = tl.load(step_size + token, valid, 0.0)
        log_eta, log_left = tl.zeros_like(theta), tl.zeros_like(theta)
        if MOMENTUM:
            log_eta = tl.load(log_momentum + token, valid, 0.0)
        if DECAY:
            log_left = tl.load(log_decay + token, valid, 0.0)
        A, E, G, beta, pull, f, m, left, moved, mix_last, moved_last, beta_last, pull_last, f_last, carry = _gates(
            theta, log_eta, log_left, row, count, BEFORE, MOMENTUM
        )

        # The error at the anchor.
        u = tl.zeros([BLOCK_C, BLOCK_V], tl.float32)
        for start in range(0, D, BLOCK_D):
            hidden = start + tl.arange(0, BLOCK_D)
            x = k_CK
            if DEPTH == 2:
                inside = (key < K)[:, None] & (hidden < D)[None, :]
                x = _activation(
                    _dot(k_CK, tl.load(point + _tile(key, hidden, D), inside, 0.0), OPERAND, PRECISION), ACTIVATION
                )
            w = tl.load(point + LAST + _tile(hidden, value, V), (hidden < D)[:, None] & real, 0.0)
            u += _dot(x, w, OPERAND, PRECISION)
        normed, inverse, sent, error, off, each_loss = _inner_error(
            u, k_CK, v_CV, real, V, OBJECTIVE, DELTA, NORM, RESIDUAL, DENOMINATOR, EPS
        )

        # What the queries read, and what is written.
        first_scores = _dot(q_CK, tl.trans(k_CK), OPERAND, PRECISION)
        last_scores = tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
        r = tl.zeros([BLOCK_C, BLOCK_V], tl.float32)
        seen, sent_back = tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32)
        for start in range(0, D, BLOCK_D):
            hidden = start + tl.arange(0, BLOCK_D)
            x, z = k_CK, q_CK
            if DEPTH == 2:
                at, inside = _tile(key, hidden, D), (key < K)[:, None] & (hidden < D)[None, :]
                before = _dot(k_CK, tl.load(point + at, inside, 0.0), OPERAND, PRECISION)
                slope, unused = _activation_back(before, ACTIVATION)
                x = _activation(before, ACTIVATION)
                w = tl.load(point + LAST + _tile(hidden, value, V), (hidden < D)[:, None] & real, 0.0)
                d = _dot(error, tl.trans(w), OPERAND, PRECISION) * slope
                asked = _read(q_CK, at, inside, weights, target, momentum, beta, pull, f,
                              TARGETS, MOMENTUM, OPERAND, PRECISION)  # fmt: skip
                asked -= _dot(first_scores * G, d, OPERAND, PRECISION)
                z = _activation(asked, ACTIVATION)
                last_scores += _dot(z, tl.trans(x), OPERAND, PRECISION)
                _write(k_CK, d, at, inside, weights, target, momentum, weights_at + then, momentum_at + then,
                       mix_last, moved_last, beta_last, pull_last, f_last, carry,
                       TARGETS, MOMENTUM, OPERAND, PRECISION)  # fmt: skip
                sent_back += tl.sum(d * d, 1)
            seen += tl.sum(x * x, 1)
            at, inside = LAST + _tile(hidden, value, V), (hidden < D)[:, None] & real
            r += _read(z, at, inside, weights, target, momentum, beta, pull, f, TARGETS, MOMENTUM, OPERAND, PRECISION)
            _write(x, error, at, inside, weights, target, momentum, weights_at + then, momentum_at + then,
                   mix_last, moved_last, beta_last, pull_last, f_last, carry,
                   TARGETS, MOMENTUM, OPERAND, PRECISION)  # fmt: skip
        if DEPTH == 1:
            last_scores = first_scores
        r -= _dot(last_scores * G, error, OPERAND, PRECISION)
        if NORM:
            r, deviation = _normalise(r, real, V, EPS)
        if RESIDUAL:
            r += q_CK
        tl.store(y + _tile(token, value, V), r, tokens_V)
        if TRACE:
            tl.store(loss + token, each_loss, valid)
            squares = seen * tl.sum(error * error, 1)
            if DEPTH == 2:
                squares += tl.sum(k_CK * k_CK, 1) * sent_back
            tl.store(gradient_norm + token, tl.sqrt(squares), valid)
        tl.debug_barrier()  # the next chunk starts from what all threads have written


@triton.jit
def read_back_kernel(
    q, k, v, step_size, log_momentum, log_decay, initial, anchor, weights_at, momentum_at, plan,
    to_y, to_last_anchor, to_q, to_k, to_v, to_step_size, to_log_momentum, to_log_decay,
    to_initial, to_weights, to_momentum, to_anchor,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, V: tl.constexpr, P: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    DEPTH: tl.constexpr, ACTIVATION: tl.constexpr, OBJECTIVE: tl.constexpr, DELTA: tl.constexpr, NORM: tl.constexpr,
    RESIDUAL: tl.constexpr, DENOMINATOR: tl.constexpr, EPS: tl.constexpr, MOMENTUM: tl.constexpr, DECAY: tl.constexpr,
    TARGETS: tl.constexpr, BEFORE: tl.constexpr, LIMIT: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`to_weights`, `to_momentum` hold the derivative with respect to what the last chunk left, and in the end that
    with respect to what the first one found; `to_initial` and `to_anchor` are added to."""
    sequence, head = tl.program_id(0) // H, tl.program_id(0) % H
    row, key, value = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    real = (value < V)[None, :]
    LAST: tl.constexpr = P - D * V
    target = initial + head * P
    own = (sequence * H + head).to(tl.int64) * P
    to_weights += own
    to_momentum += own
    to_anchor += own
    to_initial += own
    to_last_anchor += own
    length, phase = tl.load(plan + sequence * 4 + 1) - tl.load(plan + sequence * 4), tl.load(plan + sequence * 4 + 2)
    first = tl.load(plan + sequence * 4 + 3).to(tl.int64)
    chunks = tl.where(length > 0, (phase + length + CHUNK - 1) // CHUNK, 0)

    for done in range(chunks):
        g = chunks - 1 - done
        begin, count = _span(plan, sequence, g, CHUNK)
        token = (begin + row).to(tl.int64) * H + head
        valid = row < count
        now = ((first + g) * H + head) * P
        weights, momentum = weights_at + now, momentum_at + now
        point, to_point = weights, to_weights
        if (g == 0) & (phase > 0):
            point, to_point = anchor + own, to_anchor

        # The chunk once more, as in `read_kernel`.
        tokens_K, tokens_V = valid[:, None] & (key < K)[None, :], valid[:, None] & real
        q_CK = tl.load(q + _tile(token, key, K), tokens_K, 0.0).to(tl.float32)
        k_CK = tl.load(k + _tile(token, key, K), tokens_K, 0.0).to(tl.float32)
        v_CV = tl.load(v + _tile(token, value, V), tokens_V, 0.0).to(tl.float32)
        theta = tl.load(step_size + token, valid, 0.0)
        log_eta, log_left = tl.zeros_like(theta), tl.zeros_like(theta)
        if MOMENTUM:
            log_eta = tl.load(log_momentum + token, valid, 0.0)
        if DECAY:
            log_left = tl.load(log_decay + token, valid, 0.0)
        A, E, G, beta, pull, f, m, left, moved, mix_last, moved_last, beta_last, pull_last, f_last, carry = _gates(
            theta, log_eta, log_left, row, count, BEFORE, MOMENTUM
        )
        u = tl.zeros([BLOCK_C, BLOCK_V], tl.float32)
        for start in range(0, D, BLOCK_D):
            hidden = start + tl.arange(0, BLOCK_D)
            x = k_CK
            if DEPTH == 2:
                inside = (key < K)[:, None] & (hidden < D)[None, :]
                x = _activation(
                    _dot(k_CK, tl.load(point + _tile(key, hidden, D), inside, 0.0), OPERAND, PRECISION), ACTIVATION
                )
            w = tl.load(point + LAST + _tile(hidden, value, V), (hidden < D)[:, None] & real, 0.0)
            u += _dot(x, w, OPERAND, PRECISION)
        normed, inverse, sent, error, off, each_loss = _inner_error(
            u, k_CK, v_CV, real, V, OBJECTIVE, DELTA, NORM, RESIDUAL, DENOMINATOR, EPS
        )
        first_scores = _dot(q_CK, tl.trans(k_CK), OPERAND, PRECISION)
        last_scores = first_scores
        r = tl.zeros([BLOCK_C, BLOCK_V], tl.float32)
        if DEPTH == 2:
            last_scores = tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
        for start in range(0, D, BLOCK_D):
            hidden = start + tl.arange(0, BLOCK_D)
            at_last, inside_last = LAST + _tile(hidden, value, V), (hidden < D)[:, None] & real
            z = q_CK
            if DEPTH == 2:
                at, inside = _tile(key, hidden, D), (key < K)[:, None] & (hidden < D)[None, :]
                before = _dot(k_CK, tl.load(point + at, inside, 0.0), OPERAND, PRECISION)
                slope, unused = _activation_back(before, ACTIVATION)
                d = _dot(error, tl.trans(tl.load(point + at_last, inside_last, 0.0)), OPERAND, PRECISION) * slope
                asked = _read(q_CK, at, inside, weights, target, momentum, beta, pull, f,
                              TARGETS, MOMENTUM, OPERAND, PRECISION)  # fmt: skip
                z = _activation(asked - _dot(first_scores * G, d, OPERAND, PRECISION), ACTIVATION)
                x = _activation(before, ACTIVATION)
                last_scores += _dot(z, tl.trans(x), OPERAND, PRECISION)
            if NORM:
                r += _read(z, at_last, inside_last, weights, target, momentum, beta, pull, f,
                           TARGETS, MOMENTUM, OPERAND, PRECISION)  # fmt: skip

        # Back from the answers, block by block through what was read and written.
        grad_y = tl.load(to_y + _tile(token, value, V), tokens_V, 0.0).to(tl.float32)
        to_r = grad_y
        if NORM:
            r -= _dot(last_scores * G, error, OPERAND, PRECISION)
            r_normed, r_inverse = _normalise(r, real, V, EPS)
            to_r = _normalise_back(r_normed, r_inverse, grad_y, real, V)
        grad_q, grad_k = tl.zeros([BLOCK_C, BLOCK_K], tl.float32), tl.zeros([BLOCK_C, BLOCK_K], tl.float32)
        to_scores = _dot(to_r, tl.trans(error), OPERAND, PRECISION)  # of the last layer, but for its sign and G
        to_G = -last_scores * to_scores
        to_error = -_dot(tl.trans(last_scores * G), to_r, OPERAND, PRECISION)
        to_first_scores = tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
        none = tl.zeros([BLOCK_C], tl.float32)
        nothing = tl.sum(none, 0)
        to_beta, to_pull, to_f, to_mix_last, to_moved = none, none, none, none, none
        to_beta_last, to_pull_last, to_f_last, to_carry = nothing, nothing, nothing, nothing
        for start in range(0, D, BLOCK_D):
            hidden = start + tl.arange(0, BLOCK_D)
            at_last, inside_last = LAST + _tile(hidden, value, V), (hidden < D)[:, None] & real
            x, z = k_CK, q_CK
            if DEPTH == 2:
                at, inside = _tile(key, hidden, D), (key < K)[:, None] & (hidden < D)[None, :]
                before = _dot(k_CK, tl.load(point + at, inside, 0.0), OPERAND, PRECISION)
                slope, curve = _activation_back(before, ACTIVATION)
                w_last = tl.load(point + at_last, inside_last, 0.0)
                sent_back = _dot(error, tl.trans(w_last), OPERAND, PRECISION)
                d = sent_back * slope
                asked = _read(q_CK, at, inside, weights, target, momentum, beta, pull, f,
                              TARGETS, MOMENTUM, OPERAND, PRECISION)  # fmt: skip
                asked -= _dot(first_scores * G, d, OPERAND, PRECISION)
                x, z = _activation(before, ACTIVATION), _activation(asked, ACTIVATION)
            to_z, to_x, to_d, b0, b1, b2, l0, l1, l2, l3, l4, l5 = _matrix_back(
                z, x, error, to_r, at_last, inside_last, weights, target, momentum, to_weights, to_initial, to_momentum,
                beta, pull, f, mix_last, moved_last, beta_last, pull_last, f_last, carry,
                TARGETS, MOMENTUM, OPERAND, PRECISION,
            )  # fmt: skip
            to_beta += b0
            to_pull += b1
            to_f += b2
            to_beta_last += l0
            to_pull_last += l1
            to_f_last += l2
            to_mix_last += l3
            to_moved += l4
            to_carry += l5
            to_error += to_d
            mixed = to_scores * G
            to_z -= _dot(mixed, x, OPERAND, PRECISION)
            to_x -= _dot(tl.trans(mixed), z, OPERAND, PRECISION)
            if DEPTH == 1:
                grad_q += to_z
                grad_k += to_x
            else:
                asked_slope, unused = _activation_back(asked, ACTIVATION)
                to_asked = to_z * asked_slope
                to_z, sent_k, to_d, b0, b1, b2, l0, l1, l2, l3, l4, l5 = _matrix_back(
                    q_CK, k_CK, d, to_asked, at, inside, weights, target, momentum, to_weights, to_initial, to_momentum,
                    beta, pull, f, mix_last, moved_last, beta_last, pull_last, f_last, carry,
                    TARGETS, MOMENTUM, OPERAND, PRECISION,
                )  # fmt: skip
                to_beta += b0
                to_pull += b1
                to_f += b2
                to_beta_last += l0
                to_pull_last += l1
                to_f_last += l2
                to_mix_last += l3
                to_moved += l4
                to_carry += l5
                grad_q += to_z
                grad_k += sent_k
                to_first_scores += _dot(to_asked, tl.trans(d), OPERAND, PRECISION)
                to_d -= _dot(tl.trans(first_scores * G), to_asked, OPERAND, PRECISION)
                # The inner gradient: d = (error W_2^T) * act'(before), x = act(before).
                to_before = to_x * slope + to_d * sent_back * curve
                to_sent_back = to_d * slope
                to_error += _dot(to_sent_back, w_last, OPERAND, PRECISION)
                grad_k += _dot(to_before, tl.trans(tl.load(point + at, inside, 0.0)), OPERAND, PRECISION)
                _add(to_point + at, _dot(tl.trans(k_CK), to_before, OPERAND, PRECISION), inside)
                _add(to_point + at_last, _dot(tl.trans(to_sent_back), error, OPERAND, PRECISION), inside_last)
        if DEPTH == 2:
            to_G -= first_scores * to_first_scores
            mixed = to_first_scores * G
            grad_q -= _dot(mixed, k_CK, OPERAND, PRECISION)
            grad_k -= _dot(tl.trans(mixed), q_CK, OPERAND, PRECISION)

        # Back through the error at the anchor, and what the anchor made of the keys.
        to_value, to_output, to_u = _inner_error_back(
            normed, inverse, sent, error, off, to_error, real, V, OBJECTIVE, DELTA, NORM
        )
        if RESIDUAL:
            grad_q += grad_y
            grad_k += to_output
        last = g == chunks - 1  # whose anchor may have been handed on
        for start in range(0, D, BLOCK_D):
            hidden = start + tl.arange(0, BLOCK_D)
            at_last, inside_last = LAST + _tile(hidden, value, V), (hidden < D)[:, None] & real
            x = k_CK
            to_x = _dot(to_u, tl.trans(tl.load(point + at_last, inside_last, 0.0)), OPERAND, PRECISION)
            if DEPTH == 1:
                grad_k += to_x
            else:
                at, inside = _tile(key, hidden, D), (key < K)[:, None] & (hidden < D)[None, :]
                w = tl.load(point + at, inside, 0.0)
                before = _dot(k_CK, w, OPERAND, PRECISION)
                slope, unused = _activation_back(before, ACTIVATION)
                x = _activation(before, ACTIVATION)
                to_before = to_x * slope
                grad_k += _dot(to_before, tl.trans(w), OPERAND, PRECISION)
                handed = tl.where(last, tl.load(to_last_anchor + at, inside, 0.0), 0.0)
                _add(to_point + at, _dot(tl.trans(k_CK), to_before, OPERAND, PRECISION) + handed, inside)
            handed = tl.where(last, tl.load(to_last_anchor + at_last, inside_last, 0.0), 0.0)
            _add(to_point + at_last, _dot(tl.trans(x), to_u, OPERAND, PRECISION) + handed, inside_last)

        to_theta, to_log_eta, to_log_left = _gates_back(
            theta, row, A, E, beta, m, left, moved, beta_last, carry,
            to_G, to_beta, to_pull, to_f, to_beta_last, to_pull_last, to_f_last, to_mix_last, to_moved, to_carry,
            BEFORE, MOMENTUM,
        )  # fmt: skip
        tl.store(to_q + _tile(token, key, K), grad_q, tokens_K)
        tl.store(to_k + _tile(token, key, K), grad_k, tokens_K)
        tl.store(to_v + _tile(token, value, V), to_value, tokens_V)
        tl.store(to_step_size + token, to_theta, valid)
        if MOMENTUM:
            tl.store(to_log_momentum + token, to_log_eta, valid)
        if DECAY:
            tl.store(to_log_decay + token, to_log_left, valid)
        tl.debug_barrier()
        if LAST > 0:
            _shorten(to_weights, LAST, LIMIT)
        _shorten(to_weights + LAST, P - LAST, LIMIT)
        if MOMENTUM:
            if LAST > 0:
                _shorten(to_momentum, LAST, LIMIT)
            _shorten(to_momentum + LAST, P - LAST, LIMIT)
