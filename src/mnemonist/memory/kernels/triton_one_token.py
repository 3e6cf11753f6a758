"""One token for each memory, in Triton: the equations of `recurrent`, as they are printed.

A chunk of one token has nothing to multiply with tensor cores: each weight is loaded, moved and asked once, and the
time goes into fetching it. So all products are elementwise, in float32, and what a tile of weights needs is loaded
before any of it is waited for.

    the error at the anchor                            blocks of hidden columns, one after the other
    back to the first layer, the writes, the answer    the same blocks once more

Weights stand as in `MemoryState`: ``W_1 [K, D]`` and the last matrix ``[D, V]``; a memory of one layer has the last one
alone, and its hidden columns are the keys.

This module imports triton; only `triton_decoding` imports it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mnemonist.memory.kernels.triton_algebra import (
    activation,
    activation_back,
    bounded_log,
    inner_error,
    normalise,
    one_minus_exp,
    tile,
)


@triton.jit
def _load_row(pointer, column, width):
    return tl.load(pointer + column, column < width, 0.0).to(tl.float32)


@triton.jit
def _load_tile(pointer, row, column, rows, columns):
    return tl.load(pointer + tile(row, column, columns), (row < rows)[:, None] & (column < columns)[None, :], 0.0)


@triton.jit
def _store_tile(pointer, values, row, column, rows, columns):
    tl.store(pointer + tile(row, column, columns), values, (row < rows)[:, None] & (column < columns)[None, :])


@triton.jit
def _load_gate(pointer, own, USED: tl.constexpr):
    """A gate and its log, of which NaN is NaN: nothing else would tell of it. Without a gate everything is kept."""
    log = 0.0
    if USED:
        log = tl.load(pointer + own)
    return tl.exp(log), log


@triton.jit
def _load_state(
    weights, momentum, target, row, column, rows, columns, MOMENTUM: tl.constexpr, TARGETS: tl.constexpr
):  # fmt: skip
    met = _load_tile(weights, row, column, rows, columns)
    moving, drawn_to = met, met
    if MOMENTUM:
        moving = _load_tile(momentum, row, column, rows, columns)
    if TARGETS:
        drawn_to = _load_tile(target, row, column, rows, columns)
    return met, moving, drawn_to


@triton.jit
def _write(
    x, d, met, moving, drawn_to, weights, momentum, row, column, rows, columns, theta, eta, left, pull,
    MOMENTUM: tl.constexpr, DECAY: tl.constexpr, TARGETS: tl.constexpr,
):  # fmt: skip
    """Write the token into a tile, and give what it has become."""
    step = -theta * (x[:, None] * d[None, :])
    if MOMENTUM:
        step += eta * moving
        _store_tile(momentum, step, row, column, rows, columns)
    after = met
    if DECAY:
        after *= left
    if TARGETS:
        after += pull * drawn_to
    after += step
    _store_tile(weights, after, row, column, rows, columns)
    return after


@triton.jit
def one_token_kernel(
    q, k, v, step_size, log_momentum, log_decay, target_1, target, anchor_1, anchor, weights_1, weights, momentum_1,
    momentum, new_weights_1, new_weights, new_momentum_1, new_momentum, y, loss, gradient_norm,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, V: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, BLOCKS: tl.constexpr, HELD: tl.constexpr,
    DEPTH: tl.constexpr, ACTIVATION: tl.constexpr, OBJECTIVE: tl.constexpr, DELTA: tl.constexpr, NORM: tl.constexpr,
    RESIDUAL: tl.constexpr, DENOMINATOR: tl.constexpr, EPS: tl.constexpr, MOMENTUM: tl.constexpr, DECAY: tl.constexpr,
    TARGETS: tl.constexpr, BEFORE: tl.constexpr, TRACE: tl.constexpr,
):  # fmt: skip
    """The memory of one head of a row. Names that end in ``_1`` are of the first of two layers. HELD is a power of two
    of at least BLOCKS, which blocks of hidden columns there are."""
    own, head = tl.program_id(0).to(tl.int64), tl.program_id(0) % H
    key, value, block, which = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_D), tl.arange(0, HELD)
    real = (value < V)[None, :]
    q += own * K
    k += own * K
    v += own * V
    anchor += own * D * V
    weights += own * D * V
    new_weights += own * D * V
    if MOMENTUM:
        momentum += own * D * V
        new_momentum += own * D * V
    if TARGETS:
        target += head * D * V
    if DEPTH == 2:
        anchor_1 += own * K * D
        weights_1 += own * K * D
        new_weights_1 += own * K * D
        if MOMENTUM:
            momentum_1 += own * K * D
            new_momentum_1 += own * K * D
        if TARGETS:
            target_1 += head * K * D
    q_K, k_K = _load_row(q, key, K), _load_row(k, key, K)
    theta = tl.load(step_size + own)
    eta, _ = _load_gate(log_momentum, own, MOMENTUM)
    left, log_left = _load_gate(log_decay, own, DECAY)
    pull = one_minus_exp(bounded_log(log_left))

    # The error at the anchor. What the first layer gives for the key is held for all blocks.
    u = tl.zeros([BLOCK_V], tl.float32)
    before_all = tl.zeros([HELD, BLOCK_D], tl.float32)
    squares_seen = 0.0
    for i in range(BLOCKS):
        hidden = i * BLOCK_D + block
        w = _load_tile(anchor, hidden, value, D, V)
        if DEPTH == 2:
            before = tl.sum(k_K[:, None] * _load_tile(anchor_1, key, hidden, K, D), 0)
            before_all = tl.where(which[:, None] == i, before[None, :], before_all)
            x = activation(before, ACTIVATION)
        else:
            x = _load_row(k, hidden, D)
        u += tl.sum(x[:, None] * w, 0)
        if TRACE:
            squares_seen += tl.sum(x * x, 0)
    u_1V, v_1V = u[None, :], _load_row(v, value, V)[None, :]
    k_1V = u_1V
    if RESIDUAL:
        k_1V = _load_row(k, value, V)[None, :]
    normed, inverse, sent, error_1V, off, each_loss = inner_error(
        u_1V, k_1V, v_1V, real, V, OBJECTIVE, DELTA, NORM, RESIDUAL, DENOMINATOR, EPS
    )
    error = tl.sum(error_1V, 0)

    # What is written, and what is answered.
    r = tl.zeros([BLOCK_V], tl.float32)
    squares_sent = 0.0
    for i in range(BLOCKS):
        hidden = i * BLOCK_D + block
        met, moving, drawn_to = _load_state(weights, momentum, target, hidden, value, D, V, MOMENTUM, TARGETS)
        if DEPTH == 2:
            w = _load_tile(anchor, hidden, value, D, V)
            met_1, moving_1, drawn_to_1 = _load_state(
                weights_1, momentum_1, target_1, key, hidden, K, D, MOMENTUM, TARGETS
            )
            before = tl.sum(tl.where(which[:, None] == i, before_all, 0.0), 0)
            x = activation(before, ACTIVATION)
            slope, curve = activation_back(before, ACTIVATION)
            d = tl.sum(w * error[None, :], 1) * slope
            after_1 = _write(
                k_K, d, met_1, moving_1, drawn_to_1, new_weights_1, new_momentum_1, key, hidden, K, D,
                theta, eta, left, pull, MOMENTUM, DECAY, TARGETS,
            )  # fmt: skip
            if BEFORE:
                after_1 = met_1
            z = activation(tl.sum(q_K[:, None] * after_1, 0), ACTIVATION)
            if TRACE:
                squares_sent += tl.sum(d * d, 0)
        else:
            x, z = _load_row(k, hidden, D), _load_row(q, hidden, D)
        after = _write(
            x, error, met, moving, drawn_to, new_weights, new_momentum, hidden, value, D, V,
            theta, eta, left, pull, MOMENTUM, DECAY, TARGETS,
        )  # fmt: skip
        if BEFORE:
            after = met
        r += tl.sum(z[:, None] * after, 0)
    r_1V = r[None, :]
    if NORM:
        r_1V, inverse = normalise(r_1V, real, V, EPS)
    if RESIDUAL:
        r_1V += _load_row(q, value, V)[None, :]
    tl.store(y + own * V + value[None, :], r_1V, real)
    if TRACE:
        squares = squares_seen * tl.sum(error * error, 0)
        if DEPTH == 2:
            squares += squares_sent * tl.sum(k_K * k_K, 0)
        tl.store(loss + own, tl.sum(each_loss, 0))
        tl.store(gradient_norm + own, tl.sqrt(squares))
