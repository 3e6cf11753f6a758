"""Linear memories, exact at every token, for NVIDIA GPUs, in Triton: the equations of `exact` and `gates`.

The errors of a chunk are ``e = X (base_t(K) - V)`` with ``X`` the inverse of a triangular matrix that no memory enters
into. So all but the state goes without waiting, as in `triton_deep_memory`, whose kernels read the answers:

    solve_kernel              all chunks at once   X, and what the errors are of the memory and by themselves
    linear_states_kernel      chunk after chunk    the errors, and the weights and momentum that each chunk starts from
    linear_states_back_kernel chunk after chunk    what the errors are sent, and what the writes of a chunk are sent
    linear_writes_back_kernel all chunks at once   back to keys and values
    met_gates_back_kernel     all chunks at once   back to the gates of the memory that each token met

A memory stands transposed, ``M^T [V, K]``. Columns of values know nothing of each other, so a memory wider than a block
of them is read by several programs, which keep it in registers from the first chunk to the last.

This module imports triton; only `triton_linear_reading` imports it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mnemonist.memory.kernels.triton_algebra import dot, exp, gates, gates_back, tile
from mnemonist.memory.kernels.triton_deep_memory import (
    ENDS,
    SHARES,
    ends_back,
    load_gates,
    load_share,
    load_tokens,
    store_writes_back,
    tokens_of,
)

SOLVED = tl.constexpr(16)  # tokens of a block on the diagonal of a triangular system


@triton.jit
def _met_gates(
    step_size, log_momentum, log_decay, token, valid, row, count, MOMENTUM: tl.constexpr, DECAY: tl.constexpr,
    DECAYED: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gates of the memory that each token meets, and what it has left of that; see `gates.before`."""
    theta, log_eta, log_left = load_gates(step_size, log_momentum, log_decay, token, valid, MOMENTUM, DECAY)
    found = gates(theta, log_eta, log_left, row, count, 1, MOMENTUM, OPERAND, PRECISION)
    own = tl.zeros_like(theta) + 1.0
    if DECAYED:
        own = exp(log_left)
    return theta, found, own


@triton.jit
def _inverse(lower, row, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr):
    """Of a matrix that has ones on its diagonal and ``lower`` below.

    Blocks of SOLVED tokens on the diagonal come first, row by row and all at once; then what stands between them:
    ``I + lower = (I + D) (I + D' O)`` with D' for the inverse of ``I + D``, and ``I + N`` with a nilpotent ``N`` has
    the inverse ``(I - N) (I + N^2) (I + N^4) ...``. Powers of a whole chunk would grow beyond what cancels again.
    """
    COUNT: tl.constexpr = BLOCK_C // SOLVED
    number, r, c = tl.arange(0, COUNT), tl.arange(0, SOLVED)[None, :, None], tl.arange(0, SOLVED)[None, None, :]
    own = number[:, None, None, None] == number[None, None, :, None]
    inner = tl.sum(tl.where(own, tl.reshape(lower, [COUNT, SOLVED, COUNT, SOLVED]), 0.0), 2)
    found = tl.where(r == c, 1.0, tl.zeros_like(inner))
    for i in range(1, SOLVED):
        weights = tl.sum(tl.where(r == i, inner, 0.0), 1)
        sent = tl.sum(weights[:, :, None] * found, 1)
        found = tl.where(r == i, found - sent[:, None, :], found)
    blocks = tl.reshape(tl.where(own, found[:, :, None, :], 0.0), [BLOCK_C, BLOCK_C])
    if COUNT > 1:
        t, s = row[:, None], row[None, :]
        power = dot(blocks, tl.where(t // SOLVED == s // SOLVED, 0.0, lower), tl.float32, PRECISION)
        between = tl.where(t == s, 1.0, 0.0) - power
        for doubling in tl.static_range(1, 3):
            if (1 << doubling) < COUNT:
                power = dot(power, power, tl.float32, PRECISION)
                between += dot(between, power, tl.float32, PRECISION)
        blocks = dot(between, blocks, tl.float32, PRECISION)
    return blocks


@triton.jit
def solve_kernel(
    k, v, step_size, log_momentum, log_decay, target, inverses, from_weights, from_momentum, from_target, alone, spans,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr, MOMENTUM: tl.constexpr, DECAY: tl.constexpr, DECAYED: tl.constexpr, TARGETS: tl.constexpr,
    KNOWN: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``errors = from_weights M + from_momentum S - alone``, where ``alone`` has the target's part. The inverses are
    found, or, if KNOWN, given; then `alone` is left as it is."""
    chunk, head = tl.program_id(0) // H, tl.program_id(0) % H
    row, key, value = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    token, valid, count = tokens_of(spans, chunk, head, row, H)
    theta, found, own = _met_gates(
        step_size, log_momentum, log_decay, token, valid, row, count, MOMENTUM, DECAY, DECAYED, OPERAND, PRECISION
    )
    A, E, G, beta, pull, f, m, left, moved, mix_last, moved_last, beta_last, pull_last, f_last, carry = found
    k_CK = load_tokens(k, token, valid, key, K)
    at = tl.program_id(0).to(tl.int64) * BLOCK_C * BLOCK_C + tile(row, row, BLOCK_C)
    if KNOWN:
        inverse = tl.load(inverses + at)
    else:
        scores = dot(k_CK, tl.trans(k_CK), OPERAND, PRECISION)
        lower = tl.where(row[:, None] > row[None, :], scores * G * own[:, None], 0.0)
        # It is rounded to the operands' type: nothing before that need be more exact than tf32 where they are half.
        INNER: tl.constexpr = "tf32" if OPERAND.primitive_bitwidth < 32 else PRECISION
        inverse = _inverse(lower, row, BLOCK_C, INNER).to(OPERAND)
        tl.store(inverses + at, inverse)
    tokens_K, tokens_V = valid[:, None] & (key < K)[None, :], valid[:, None] & (value < V)[None, :]
    k_CK = k_CK.to(tl.float32)
    met = dot(inverse, k_CK * (beta * own)[:, None], OPERAND, PRECISION)
    tl.store(from_weights + tile(token, key, K), met.to(OPERAND), tokens_K)
    v_CV = load_tokens(v, token, valid, value, V).to(tl.float32)
    if MOMENTUM:
        met = dot(inverse, k_CK * (f * own)[:, None], OPERAND, PRECISION)
        tl.store(from_momentum + tile(token, key, K), met.to(OPERAND), tokens_K)
    if TARGETS:
        share = pull * own + (1 - own)
        met = dot(inverse, k_CK * share[:, None], OPERAND, PRECISION)
        tl.store(from_target + tile(token, key, K), met.to(OPERAND), tokens_K)
        if not KNOWN:
            goal = tl.load(target + head * K * V + tile(value, key, K), (value < V)[:, None] & (key < K)[None, :], 0.0)
            v_CV -= dot(k_CK * share[:, None], tl.trans(goal), OPERAND, PRECISION)
    if not KNOWN:
        tl.store(alone + tile(token, value, V), dot(inverse, v_CV, OPERAND, PRECISION), tokens_V)


@triton.jit
def linear_states_kernel(
    k, shares, ends, target, from_weights, from_momentum, alone, weights, momentum, weights_at, momentum_at, errors,
    spans, plan,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr, MOMENTUM: tl.constexpr, TARGETS: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`weights` and `momentum` are what the first chunk meets, and in the end what the last one leaves."""
    sequence, head = tl.program_id(0) // H, tl.program_id(0) % H
    row, key = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K)
    value = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    at, inside = tile(value, key, K), (value < V)[:, None] & (key < K)[None, :]
    own = (sequence * H + head).to(tl.int64) * K * V
    M = tl.load(weights + own + at, inside, 0.0)
    S = tl.zeros_like(M)
    goal = S
    if MOMENTUM:
        S = tl.load(momentum + own + at, inside, 0.0)
    if TARGETS:
        goal = tl.load(target + head * K * V + at, inside, 0.0)
    first, chunks = tl.load(plan + sequence * 4), tl.load(plan + sequence * 4 + 1)
    for g in range(chunks):
        slot = (first + g).to(tl.int64) * H + head
        token, valid, count = tokens_of(spans, first + g, head, row, H)
        tl.store(weights_at + slot * K * V + at, M.to(OPERAND), inside)
        error = dot(load_tokens(from_weights, token, valid, key, K), tl.trans(M), OPERAND, PRECISION)
        if MOMENTUM:
            tl.store(momentum_at + slot * K * V + at, S.to(OPERAND), inside)
            error += dot(load_tokens(from_momentum, token, valid, key, K), tl.trans(S), OPERAND, PRECISION)
        error -= load_tokens(alone, token, valid, value, V)
        tl.store(errors + tile(token, value, V), error.to(OPERAND), valid[:, None] & (value < V)[None, :])
        k_CK = load_tokens(k, token, valid, key, K).to(tl.float32)
        mix_last = load_share(shares + slot * SHARES * BLOCK_C, 3, row, BLOCK_C)
        after = tl.load(ends + slot * ENDS) * M - dot(tl.trans(error), k_CK * mix_last[:, None], OPERAND, PRECISION)
        if TARGETS:
            after += tl.load(ends + slot * ENDS + 1) * goal
        if MOMENTUM:
            moved_last = load_share(shares + slot * SHARES * BLOCK_C, 4, row, BLOCK_C)
            after += tl.load(ends + slot * ENDS + 2) * S
            S = tl.load(ends + slot * ENDS + 3) * S
            S -= dot(tl.trans(error), k_CK * moved_last[:, None], OPERAND, PRECISION)
        M = after
    tl.store(weights + own + at, M, inside)
    if MOMENTUM:
        tl.store(momentum + own + at, S, inside)


@triton.jit
def linear_states_back_kernel(
    q, k, shares, ends, from_weights, from_momentum, from_target, back_error, back_r,
    to_errors, to_weights_at, to_momentum_at, to_initial, to_weights, to_momentum, spans, plan,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr, MOMENTUM: tl.constexpr, TARGETS: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`to_weights`, `to_momentum` hold the derivative with respect to what the last chunk left, and in the end that
    with respect to what the first one found. What each chunk's end is sent is left in `to_..._at`."""
    sequence, head = tl.program_id(0) // H, tl.program_id(0) % H
    row, key = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K)
    value = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    at, inside = tile(value, key, K), (value < V)[:, None] & (key < K)[None, :]
    own = (sequence * H + head).to(tl.int64) * K * V
    to_M = tl.load(to_weights + own + at, inside, 0.0)
    to_S, to_goal = tl.zeros_like(to_M), tl.zeros_like(to_M)
    if MOMENTUM:
        to_S = tl.load(to_momentum + own + at, inside, 0.0)
    first, chunks = tl.load(plan + sequence * 4), tl.load(plan + sequence * 4 + 1)
    for done in range(chunks):
        chunk = first + chunks - 1 - done
        slot = chunk.to(tl.int64) * H + head
        token, valid, count = tokens_of(spans, chunk, head, row, H)
        own_shares = shares + slot * SHARES * BLOCK_C
        tl.store(to_weights_at + slot * K * V + at, to_M.to(OPERAND), inside)
        k_CK = load_tokens(k, token, valid, key, K).to(tl.float32)
        to_error = load_tokens(back_error, token, valid, value, V).to(tl.float32)
        mix_last = load_share(own_shares, 3, row, BLOCK_C)
        to_error -= dot(k_CK * mix_last[:, None], tl.trans(to_M), OPERAND, PRECISION)
        if MOMENTUM:
            tl.store(to_momentum_at + slot * K * V + at, to_S.to(OPERAND), inside)
            moved_last = load_share(own_shares, 4, row, BLOCK_C)
            to_error -= dot(k_CK * moved_last[:, None], tl.trans(to_S), OPERAND, PRECISION)
        tl.store(to_errors + tile(token, value, V), to_error.to(OPERAND), valid[:, None] & (value < V)[None, :])
        r = tl.trans(load_tokens(back_r, token, valid, value, V))
        sent = tl.trans(to_error)
        q_CK = load_tokens(q, token, valid, key, K).to(tl.float32)
        after = to_M
        if TARGETS:
            to_goal += tl.load(ends + slot * ENDS + 1) * after
            to_goal += dot(r, q_CK * load_share(own_shares, 1, row, BLOCK_C)[:, None], OPERAND, PRECISION)
            to_goal += dot(sent, load_tokens(from_target, token, valid, key, K), OPERAND, PRECISION)
        to_M = tl.load(ends + slot * ENDS) * after
        to_M += dot(r, q_CK * load_share(own_shares, 0, row, BLOCK_C)[:, None], OPERAND, PRECISION)
        to_M += dot(sent, load_tokens(from_weights, token, valid, key, K), OPERAND, PRECISION)
        if MOMENTUM:
            to_S = tl.load(ends + slot * ENDS + 3) * to_S + tl.load(ends + slot * ENDS + 2) * after
            to_S += dot(r, q_CK * load_share(own_shares, 2, row, BLOCK_C)[:, None], OPERAND, PRECISION)
            to_S += dot(sent, load_tokens(from_momentum, token, valid, key, K), OPERAND, PRECISION)
    tl.store(to_weights + own + at, to_M, inside)
    if MOMENTUM:
        tl.store(to_momentum + own + at, to_S, inside)
    if TARGETS:
        tl.store(to_initial + own + at, to_goal, inside)


@triton.jit
def linear_writes_back_kernel(
    k, step_size, log_momentum, log_decay, target, inverses, errors, weights_at, momentum_at, shares,
    to_errors, to_weights_at, to_momentum_at, back_x,
    to_k, to_v, to_shares, to_ends, to_met_mixes, to_met_shares, spans,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr, MOMENTUM: tl.constexpr, DECAY: tl.constexpr, DECAYED: tl.constexpr, TARGETS: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What the gates of the memory that tokens met are sent is left in `to_met_...`, for `met_gates_back_kernel`."""
    chunk, head = tl.program_id(0) // H, tl.program_id(0) % H
    row, key, value = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    slot = tl.program_id(0).to(tl.int64)
    token, valid, count = tokens_of(spans, chunk, head, row, H)
    at, inside = slot * K * V + tile(value, key, K), (value < V)[:, None] & (key < K)[None, :]
    none = tl.zeros([BLOCK_C], tl.float32)

    # Through the triangular system: to_R = X^T to_e, and its matrix is sent -to_R e^T.
    square = slot * BLOCK_C * BLOCK_C + tile(row, row, BLOCK_C)
    inverse = tl.load(inverses + square)
    to_error = load_tokens(to_errors, token, valid, value, V)
    to_R = dot(tl.trans(inverse), to_error, OPERAND, PRECISION)
    tl.store(to_v + tile(token, value, V), -to_R, valid[:, None] & (value < V)[None, :])
    error = load_tokens(errors, token, valid, value, V)
    to_lower = -dot(to_R, tl.trans(error), OPERAND, PRECISION)
    to_lower = tl.where(row[:, None] > row[None, :], to_lower, 0.0)

    # What the errors were of the memory, and the writes.
    theta, found, own = _met_gates(
        step_size, log_momentum, log_decay, token, valid, row, count, MOMENTUM, DECAY, DECAYED, OPERAND, PRECISION
    )
    A, E, G, beta, pull, f, m, left, moved, mix_last, moved_last, beta_last, pull_last, f_last, carry = found
    k_CK = load_tokens(k, token, valid, key, K).to(tl.float32)
    M, to_M = tl.load(weights_at + at, inside, 0.0), tl.load(to_weights_at + at, inside, 0.0)
    sent = dot(to_R, M, OPERAND, PRECISION)
    to_beta = tl.sum(sent * k_CK, 1)
    grad_k = (beta * own)[:, None] * sent
    sent = dot(error, to_M, OPERAND, PRECISION)
    to_mix = -tl.sum(sent * k_CK, 1)
    grad_k -= load_share(shares + slot * SHARES * BLOCK_C, 3, row, BLOCK_C)[:, None] * sent
    to_pull, to_f, to_moved = none, none, none
    if TARGETS:
        goal = tl.load(target + head * K * V + tile(value, key, K), inside, 0.0)
        sent = dot(to_R, goal, OPERAND, PRECISION)
        to_pull = tl.sum(sent * k_CK, 1)
        grad_k += (pull * own + (1 - own))[:, None] * sent
    if MOMENTUM:
        S, to_S = tl.load(momentum_at + at, inside, 0.0), tl.load(to_momentum_at + at, inside, 0.0)
        sent = dot(to_R, S, OPERAND, PRECISION)
        to_f = tl.sum(sent * k_CK, 1)
        grad_k += (f * own)[:, None] * sent
        sent = dot(error, to_S, OPERAND, PRECISION)
        to_moved = -tl.sum(sent * k_CK, 1)
        grad_k -= load_share(shares + slot * SHARES * BLOCK_C, 4, row, BLOCK_C)[:, None] * sent
    scores = dot(k_CK, tl.trans(k_CK), OPERAND, PRECISION)
    tl.store(to_met_mixes + square, to_lower * scores)  # of G, but for what each token has left of it
    weighed = to_lower * G * own[:, None]
    grad_k += dot(weighed + tl.trans(weighed), k_CK, OPERAND, PRECISION)
    grad_k += load_tokens(back_x, token, valid, key, K).to(tl.float32)
    tl.store(to_k + tile(token, key, K), grad_k, valid[:, None] & (key < K)[None, :])
    own_state = slot * K * V
    to_last = ends_back(
        weights_at + own_state, momentum_at + own_state, target + head * K * V,
        to_weights_at + own_state, to_momentum_at + own_state, K * V, TARGETS, MOMENTUM,
    )  # fmt: skip
    store_writes_back(to_shares, to_ends, slot, row, to_mix, to_moved, to_last, BLOCK_C)
    to_met_shares += slot * SHARES * BLOCK_C
    tl.store(to_met_shares + row, to_beta)
    tl.store(to_met_shares + BLOCK_C + row, to_pull)
    tl.store(to_met_shares + 2 * BLOCK_C + row, to_f)


@triton.jit
def met_gates_back_kernel(
    step_size, log_momentum, log_decay, to_mixes, to_shares, to_step_size, to_log_momentum, to_log_decay, spans,
    H: tl.constexpr, BLOCK_C: tl.constexpr, MOMENTUM: tl.constexpr, DECAY: tl.constexpr, DECAYED: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """From what `linear_writes_back_kernel` left to the gates of the memory that tokens met: what comes from reads and
    writes is `gates_back_kernel`'s."""
    chunk, head = tl.program_id(0) // H, tl.program_id(0) % H
    row = tl.arange(0, BLOCK_C)
    token, valid, count = tokens_of(spans, chunk, head, row, H)
    theta, found, own = _met_gates(
        step_size, log_momentum, log_decay, token, valid, row, count, MOMENTUM, DECAY, DECAYED, OPERAND, PRECISION
    )
    A, E, G, beta, pull, f, m, left, moved, mix_last, moved_last, beta_last, pull_last, f_last, carry = found
    slot = tl.program_id(0).to(tl.int64)
    to_mixed = tl.load(to_mixes + slot * BLOCK_C * BLOCK_C + tile(row, row, BLOCK_C))
    to_shares += slot * SHARES * BLOCK_C
    to_beta, to_pull, to_f = (
        load_share(to_shares, 0, row, BLOCK_C), load_share(to_shares, 1, row, BLOCK_C),
        load_share(to_shares, 2, row, BLOCK_C),
    )  # fmt: skip
    none = tl.zeros([BLOCK_C], tl.float32)
    nothing = tl.sum(none, 0)
    to_own = tl.sum(to_mixed * G, 1) + to_beta * beta + to_pull * (pull - 1) + to_f * f
    to_theta, to_log_eta, to_log_left = gates_back(
        theta, row, A, E, beta, m, left, moved, beta_last, carry,
        to_mixed * own[:, None], to_beta * own, to_pull * own, to_f * own,
        nothing, nothing, nothing, none, none, nothing, 1, MOMENTUM, OPERAND, PRECISION,
    )  # fmt: skip
    if DECAYED:
        to_log_left += to_own * own
    tl.store(to_step_size + token, to_theta, valid)
    if MOMENTUM:
        tl.store(to_log_momentum + token, to_log_eta, valid)
    if DECAY:
        tl.store(to_log_decay + token, to_log_left, valid)
