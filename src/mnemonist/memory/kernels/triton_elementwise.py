"""What a layer does around its memory, for NVIDIA GPUs, in Triton: little arithmetic on much data, one pass each way.

    send_kernel        convolve, bend, and bring queries and keys to norm 1
    send_back_kernel   back to what the convolution gave, and to its weights
    taps_back_kernel   back through the convolution to what it was given
    gated_norm_kernel  answers of a memory, normalised and gated
    gated_norm_back_kernel

All compute in float32, whatever they are given. This module imports triton; only `triton_layers` imports it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mnemonist.memory.kernels.triton_algebra import activation, activation_back


@triton.jit
def _tap(x, tail, place, column, T, C: tl.constexpr, KEPT: tl.constexpr, inside):
    """Inputs of the convolution at places of a sequence; those before its first token stand in the tail."""
    at = place[:, None].to(tl.int64) * C + column[None, :]
    here = tl.load(x + at, inside[None, :] & (place >= 0)[:, None] & (place < T)[:, None], 0.0).to(tl.float32)
    if KEPT > 0:
        before = inside[None, :] & (place < 0)[:, None]
        here += tl.load(tail + at + KEPT * C, before, 0.0).to(tl.float32)
    return here


@triton.jit
def _convolved(x, tail, conv, token, column, T, C: tl.constexpr, KEPT: tl.constexpr, inside):
    y = tl.load(conv + KEPT * C + column, inside, 0.0).to(tl.float32)[None, :]
    y = y * _tap(x, tail, token, column, T, C, KEPT, inside)
    for i in tl.static_range(KEPT):
        weight = tl.load(conv + i * C + column, inside, 0.0).to(tl.float32)
        y += weight[None, :] * _tap(x, tail, token - KEPT + i, column, T, C, KEPT, inside)
    return y


@triton.jit
def send_kernel(
    x, tail, conv, q, k, v, T, blocks,
    H: tl.constexpr, D: tl.constexpr, KEPT: tl.constexpr, UNIT: tl.constexpr, SHORTEST: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A block of tokens of a head. ``x [B, T, 3 H D]``, ``tail [B, KEPT, 3 H D]``, ``q [B, T, H, D]``."""
    C: tl.constexpr = 3 * H * D
    sequence, head = tl.program_id(0) // blocks, tl.program_id(1)
    token, channel = tl.program_id(0) % blocks * BLOCK_T + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_D)
    inside = channel < D
    x += sequence.to(tl.int64) * T * C
    tail += sequence.to(tl.int64) * KEPT * C
    at = (sequence.to(tl.int64) * T + token[:, None]) * (H * D) + head * D + channel[None, :]
    for part in tl.static_range(3):
        column = part * H * D + head * D + channel
        y = activation(_convolved(x, tail, conv, token, column, T, C, KEPT, inside), "silu")
        if UNIT and part < 2:
            y = y / tl.maximum(tl.sqrt(tl.sum(y * y, 1)), SHORTEST)[:, None]
        out = q if part == 0 else k if part == 1 else v
        tl.store(out + at, y, inside[None, :] & (token < T)[:, None])


@triton.jit
def send_back_kernel(
    x, tail, conv, to_q, to_k, to_v, back, to_conv, T, blocks,
    H: tl.constexpr, D: tl.constexpr, KEPT: tl.constexpr, UNIT: tl.constexpr, SHORTEST: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``back [B, T, 3 H D]`` is for the derivative of what the convolution gave, ``to_conv`` for what a block sends to
    the weights, ``[B blocks, KEPT + 1, 3 H D]``."""
    C: tl.constexpr = 3 * H * D
    sequence, head = tl.program_id(0) // blocks, tl.program_id(1)
    token, channel = tl.program_id(0) % blocks * BLOCK_T + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_D)
    inside = channel < D
    valid = inside[None, :] & (token < T)[:, None]
    x += sequence.to(tl.int64) * T * C
    tail += sequence.to(tl.int64) * KEPT * C
    back += sequence.to(tl.int64) * T * C
    to_conv += tl.program_id(0).to(tl.int64) * (KEPT + 1) * C
    at = (sequence.to(tl.int64) * T + token[:, None]) * (H * D) + head * D + channel[None, :]
    for part in tl.static_range(3):
        column = part * H * D + head * D + channel
        before = _convolved(x, tail, conv, token, column, T, C, KEPT, inside)
        slope, curve = activation_back(before, "silu")
        given = to_q if part == 0 else to_k if part == 1 else to_v
        sent = tl.load(given + at, valid, 0.0).to(tl.float32)
        if UNIT and part < 2:
            y = activation(before, "silu")
            length = tl.sqrt(tl.sum(y * y, 1))
            one_over = 1 / tl.maximum(length, SHORTEST)
            y *= one_over[:, None]
            along = tl.where(length > SHORTEST, tl.sum(sent * y, 1), 0.0)
            sent = (sent - along[:, None] * y) * one_over[:, None]
        sent = tl.where(valid, sent * slope, 0.0)
        tl.store(back + token[:, None].to(tl.int64) * C + column[None, :], sent, valid)
        for i in tl.static_range(KEPT + 1):
            seen = _tap(x, tail, token - KEPT + i, column, T, C, KEPT, inside)
            tl.store(to_conv + i * C + column, tl.sum(sent * seen, 0), inside)


@triton.jit
def taps_back_kernel(
    back, conv, to_next_tail, to_x, to_tail, T, blocks,
    C: tl.constexpr, KEPT: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A block of the tail and the tokens, which stand in a row; the last of them are the next tail."""
    sequence = (tl.program_id(0) // blocks).to(tl.int64)
    place = tl.program_id(0) % blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = column < C
    back += sequence * T * C
    sent = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    for i in tl.static_range(KEPT + 1):
        token = place - i
        valid = inside[None, :] & (token >= 0)[:, None] & (token < T)[:, None]
        weight = tl.load(conv + i * C + column, inside, 0.0).to(tl.float32)
        one = tl.load(back + token[:, None].to(tl.int64) * C + column[None, :], valid, 0.0)
        sent += weight[None, :] * one.to(tl.float32)
    at, all_of = place[:, None].to(tl.int64) * C + column[None, :], inside[None, :]
    if KEPT > 0:
        handed = all_of & (place >= T)[:, None] & (place < T + KEPT)[:, None]
        sent += tl.load(to_next_tail + (sequence * KEPT - T) * C + at, handed, 0.0).to(tl.float32)
        tl.store(to_tail + sequence * KEPT * C + at, sent, all_of & (place < KEPT)[:, None])
    own = all_of & (place >= KEPT)[:, None] & (place < T + KEPT)[:, None]
    tl.store(to_x + (sequence * T - KEPT) * C + at, sent, own)


@triton.jit
def _normed(y, D: tl.constexpr, EPS: tl.constexpr):
    one_over = 1 / tl.sqrt(tl.sum(y * y, 1) / D + EPS)
    return y * one_over[:, None], one_over


@triton.jit
def gated_norm_kernel(
    a, y, weight, out, rows, D: tl.constexpr, EPS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr
):
    """``silu(a) * rms_norm(y) * weight`` for rows of D numbers."""
    row, channel = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_D)
    at, inside = row[:, None].to(tl.int64) * D + channel[None, :], (row < rows)[:, None] & (channel < D)[None, :]
    normed, one_over = _normed(tl.load(y + at, inside, 0.0).to(tl.float32), D, EPS)
    gate = activation(tl.load(a + at, inside, 0.0).to(tl.float32), "silu")
    tl.store(out + at, gate * normed * tl.load(weight + channel, channel < D, 0.0).to(tl.float32)[None, :], inside)


@triton.jit
def gated_norm_back_kernel(
    a, y, weight, to_out, to_a, to_y, to_weight, rows,
    D: tl.constexpr, EPS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``to_weight [programs, D]`` is for what a block of rows sends."""
    row, channel = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_D)
    at, inside = row[:, None].to(tl.int64) * D + channel[None, :], (row < rows)[:, None] & (channel < D)[None, :]
    normed, one_over = _normed(tl.load(y + at, inside, 0.0).to(tl.float32), D, EPS)
    scale = tl.load(weight + channel, channel < D, 0.0).to(tl.float32)[None, :]
    before = tl.load(a + at, inside, 0.0).to(tl.float32)
    sent = tl.load(to_out + at, inside, 0.0).to(tl.float32)
    slope, curve = activation_back(before, "silu")
    tl.store(to_a + at, sent * normed * scale * slope, inside)
    sent *= activation(before, "silu")
    tl.store(to_weight + tl.program_id(0) * D + channel, tl.sum(sent * normed, 0), channel < D)
    sent *= scale
    along = tl.sum(sent * normed, 1) / D
    tl.store(to_y + at, one_over[:, None] * (sent - along[:, None] * normed), inside)
