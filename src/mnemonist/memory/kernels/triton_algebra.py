"""The algebra of one chunk in Triton: activations, norms, gates and the inner loss, and their derivatives by hand.

This module imports triton; only the kernels do import it.
"""

from __future__ import annotations

import triton
import triton.language as tl

EXP_FLOOR = tl.constexpr(1.0842021724855044e-19)  # as `gates`: the square root of the smallest normal number
LEAST_LOG = tl.constexpr(-64.0)  # of a gate: its exponential is below that

# --- small things


@triton.jit
def dot(a, b, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    return tl.dot(a.to(OPERAND), b.to(OPERAND), input_precision=PRECISION)


@triton.jit
def exp(x):
    value = tl.exp(x)
    return tl.where(value <= EXP_FLOOR, 0.0, value)  # NaN stays NaN


@triton.jit
def bounded_log(log):
    """Logs of gates that can be subtracted from each other. NaN stays NaN: nothing else would tell of it."""
    return tl.where(log < LEAST_LOG, LEAST_LOG, log)


@triton.jit
def one_minus_exp(x):
    """``1 - exp(x)``, with a series where the difference would cancel."""
    series = -x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6)))))
    return tl.where(x > -0.25, series, 1 - tl.exp(x))


@triton.jit
def tile(row, column, width):
    """Offsets of a tile of a row-major matrix."""
    return row[:, None] * width + column[None, :]


@triton.jit
def tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def activation(x, KIND: tl.constexpr):
    if KIND == "silu":
        return x * tl.sigmoid(x)
    elif KIND == "gelu":
        return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif KIND == "relu":
        return tl.maximum(x, 0.0)
    else:
        return tanh(x)


@triton.jit
def activation_back(x, KIND: tl.constexpr):
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
        t = tanh(x)
        return 1 - t * t, -2 * t * (1 - t * t)


@triton.jit
def normalise(z, real, width, EPS: tl.constexpr):
    """Rows without their mean, of deviation 1; and one over what the deviation was. ``real`` marks the columns."""
    centred = tl.where(real, z - tl.sum(z, 1)[:, None] / width, 0.0)
    inverse = 1 / tl.sqrt(tl.sum(centred * centred, 1) / width + EPS)
    return centred * inverse[:, None], inverse


@triton.jit
def normalise_back(normed, inverse, error, real, width):
    """Derivative of the normalisation, which is its own transpose."""
    along = tl.sum(error * normed, 1) / width
    rest = error - tl.sum(error, 1)[:, None] / width - normed * along[:, None]
    return tl.where(real, inverse[:, None] * rest, 0.0)


# --- gates: the algebra of `gates.chunk_gates`. BEFORE is 1 where a token reads the memory it meets, one row up.
# Logs of gates are at least LEAST_LOG and a chunk has at most 128 tokens, so differences of sums of them are sound.


@triton.jit
def _one_up(x, row):
    return tl.sum(tl.where(row[None, :] == row[:, None] - 1, x[None, :], 0.0), 1)


@triton.jit
def gates(
    theta, log_momentum, log_decay, row, length, BEFORE: tl.constexpr, MOMENTUM: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    t, s = row[:, None], row[None, :]
    so_far, total = tl.cumsum(log_decay, 0), tl.sum(log_decay, 0)
    met = so_far
    if BEFORE:
        met = _one_up(so_far, row)
    A = tl.where(t - BEFORE >= s, exp(tl.minimum(met[:, None] - so_far[None, :], 0.0)), 0.0)
    beta, pull = exp(met), one_minus_exp(met)
    # What is left of each token's S in the last M; a padded token takes no part.
    left = tl.where(row < length, exp(total - so_far), 0.0)
    if MOMENTUM:
        moving, moved_in_all = tl.cumsum(log_momentum, 0), tl.sum(log_momentum, 0)
        E = tl.where(t >= s, exp(tl.minimum(moving[:, None] - moving[None, :], 0.0)), 0.0)
        m, moved, carry = exp(moving), exp(moved_in_all - moving), exp(moved_in_all)
        writes = E * theta[None, :]
        G = dot(A, writes, OPERAND, PRECISION)
        f = tl.sum(A * m[None, :], 1)
        mix_last = tl.sum(left[:, None] * writes, 0)
        f_last = tl.sum(left * m, 0)
    else:
        E, m, moved, f, f_last, carry = A, beta, left, beta, 0.0, 0.0
        G = A * theta[None, :]
        mix_last = left * theta
    return (
        A, E, G, beta, pull, f, m, left, moved, mix_last, moved * theta,
        exp(total), one_minus_exp(total), f_last, carry,
    )  # fmt: skip


@triton.jit
def gates_back(
    theta, row, A, E, beta, m, left, moved, beta_last, carry,
    to_G, to_beta, to_pull, to_f, to_beta_last, to_pull_last, to_f_last, to_mix_last, to_moved, to_carry,
    BEFORE: tl.constexpr, MOMENTUM: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    t, s = row[:, None], row[None, :]
    to_log_momentum = tl.zeros_like(theta)
    if MOMENTUM:
        writes = E * theta[None, :]
        to_A = dot(to_G, tl.trans(writes), OPERAND, PRECISION) + to_f[:, None] * m[None, :]
        to_writes = dot(tl.trans(A), to_G, OPERAND, PRECISION) + left[:, None] * to_mix_last[None, :]
        to_left = tl.sum(writes * to_mix_last[None, :], 1) + to_f_last * m
        to_m = tl.sum(A * to_f[:, None], 0) + to_f_last * left
        to_theta = tl.sum(to_writes * E, 0) + to_moved * moved
        between, last = tl.where(t > s, to_writes * writes, 0.0), to_moved * theta * moved
        to_moving = tl.sum(between, 1) - tl.sum(between, 0) + to_m * m - last
        to_log_momentum = tl.cumsum(to_moving, 0, reverse=True) + tl.sum(last, 0) + to_carry * carry
    else:
        to_A = to_G * theta[None, :]
        to_left = to_mix_last * theta
        to_theta = tl.sum(to_G * A, 0) + to_mix_last * left
    between, last = tl.where(t - BEFORE > s, to_A * A, 0.0), to_left * left
    to_met = tl.sum(between, 1) + (to_beta - to_pull) * beta
    if BEFORE:
        to_met = tl.sum(tl.where(s == t + 1, to_met[None, :], 0.0), 1)
    to_so_far = to_met - tl.sum(between, 0) - last
    to_total = tl.sum(last, 0) + (to_beta_last - to_pull_last) * beta_last
    return to_theta, to_log_momentum, tl.cumsum(to_so_far, 0, reverse=True) + to_total


# --- the inner loss at the anchor


@triton.jit
def inner_error(
    u, k_V, v, real, V: tl.constexpr, OBJECTIVE: tl.constexpr, DELTA: tl.constexpr, NORM: tl.constexpr,
    RESIDUAL: tl.constexpr, DENOMINATOR: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """From what the last layer gave for the keys: its norm, the derivative of the loss with respect to the answer, the
    error that the last layer is sent, how far the answer is off, and the loss."""
    normed, inverse = u, tl.sum(u, 1)
    if NORM:
        normed, inverse = normalise(u, real, V, EPS)
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
        error = normalise_back(normed, inverse, sent, real, V)
    return normed, inverse, sent, error, off, tl.sum(each, 1)


@triton.jit
def inner_error_back(
    normed, inverse, sent, error, off, to_error, real, V: tl.constexpr, OBJECTIVE: tl.constexpr, DELTA: tl.constexpr,
    NORM: tl.constexpr,
):  # fmt: skip
    """From the derivative of ``error`` to those of the value, of the answer and of what the last layer gave."""
    to_sent = to_error
    if NORM:
        to_sent = normalise_back(normed, inverse, to_error, real, V)
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
        to_u = normalise_back(normed, inverse, bent, real, V) - (inverse * scaled)[:, None] * normed
    return -to_sent, to_output, to_u
