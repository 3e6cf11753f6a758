"""Attention of many queries, each to a band of keys, compiled (`native_bands.cpp`, see `native`).

Torch has attention to everything before a token, or under a mask. A window under a mask is twice the work it needs, and
its blocks must be cut, put beside each other and put together again, which costs as much once more. Second derivatives
need ``MNEMONIST_KERNELS=off``.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mnemonist.memory.kernels import native
from mnemonist.memory.kernels.native_elementwise import LEAST

MOST_GROUPS = 3
"""As in the source."""
MOST_KEYS = 8192
"""That a query may see: a block of queries meets all its keys at once, and their scores should stay in a cache."""


@dataclass(frozen=True)
class Band:
    """Keys and values, and which of them a query sees.

    With ``S`` of them and ``T`` queries, query ``t`` sees the last ``window`` of those up to ``t + S - T``; or all, if
    ``window`` is None.
    """

    keys: Tensor
    """``[N, S, G, D]``, with ``S`` at least ``T`` if there is a window; ``H / G`` heads of queries that follow each
    other share them, with one ``G`` for all bands."""
    values: Tensor
    """``[N, S, G, D]``."""
    window: int | None


class _Work(native.Structure):
    """As `Work` in the source."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("tokens", "q_row", "q_token")),
        *((name, ctypes.c_int64 * MOST_GROUPS) for name in ("places", "window")),
        *((name, ctypes.c_int64 * MOST_GROUPS) for name in ("key_row", "key_token", "value_row", "value_token")),
        *((name, ctypes.c_int32) for name in ("rows", "heads", "key_heads", "width", "groups", "threads")),
        ("double_precision", ctypes.c_int32),
        ("scale", ctypes.c_double),
        ("q", ctypes.c_void_p),
        *((name, ctypes.c_void_p * MOST_GROUPS) for name in ("keys", "values")),
        *((name, ctypes.c_void_p) for name in ("first", "y", "log_sum", "to_y", "to_q")),
        *((name, ctypes.c_void_p * MOST_GROUPS) for name in ("to_keys", "to_values")),
    ]


def bands_kernel() -> ctypes.CDLL | None:
    """The compiled kernel, or None if there is no way to have it."""
    return native.kernel("native_bands.cpp", ("read_bands", "go_back"), _Work)


def applies(q: Tensor, k: Tensor, *others: Tensor, keys: int) -> bool:
    """Whether the kernel can work with these tensors, with so many ``keys`` seen by a query, and is worth its call.

    A unit of its work is a head of keys of a row: where threads are more, torch has work for all of them.
    """
    return (
        native.fits(q, k, *others)
        and q.numel() >= LEAST
        and keys <= MOST_KEYS
        and k.shape[0] * k.shape[2] >= torch.get_num_threads()
        and bands_kernel() is not None
    )


def attend_bands(q: Tensor, bands: Sequence[Band], first: Tensor | None = None) -> Tensor:
    """Softmax attention ``[N, T, H, D]``, scaled by ``1 / sqrt(D)``, where `applies`.

    Args:
        q: ``[N, T, H, D]``.
        bands: at most `MOST_GROUPS`; every query must see a key.
        first: ``[N]`` int64 on the CPU: places of the first band that hold nothing; None: none.
    """
    first = torch.zeros(len(q), dtype=torch.int64) if first is None else first.contiguous()
    windows = tuple(band.window or 0 for band in bands)
    tensors = [tensor for band in bands for tensor in (band.keys, band.values)]
    return _Attend.apply(windows, first, q, *tensors)


def _heads_side_by_side(tensor: Tensor) -> Tensor:
    H, D = tensor.shape[2:]
    return tensor if tensor.stride()[2:] == (D, 1) or (1 in (H, D) and tensor.is_contiguous()) else tensor.contiguous()


def _work(
    windows: Sequence[int], first: Tensor, q: Tensor, pairs: Sequence[Tensor], y: Tensor, log_sum: Tensor
) -> _Work:
    N, T, H, D = q.shape
    keys, values = pairs[::2], pairs[1::2]
    work = _Work(
        tokens=T, q_row=q.stride(0), q_token=q.stride(1), rows=N, heads=H, key_heads=keys[0].shape[2], width=D,
        groups=len(keys), threads=torch.get_num_threads(), double_precision=q.dtype == torch.float64,
        scale=1 / math.sqrt(D), q=q.data_ptr(), first=first.data_ptr(), y=y.data_ptr(), log_sum=log_sum.data_ptr(),
    )  # fmt: skip
    for i, (window, k, v) in enumerate(zip(windows, keys, values, strict=True)):
        work.places[i], work.window[i] = k.shape[1], window
        work.key_row[i], work.key_token[i] = k.stride()[:2]
        work.value_row[i], work.value_token[i] = v.stride()[:2]
    native.point(work.keys, keys)
    native.point(work.values, values)
    return work


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, windows: tuple[int, ...], first: Tensor, q: Tensor, *pairs: Tensor) -> Tensor:
        kernel = bands_kernel()
        assert kernel is not None
        q, *pairs = [_heads_side_by_side(tensor) for tensor in (q, *pairs)]  # type: ignore[assignment]
        y = torch.empty(q.shape, dtype=q.dtype)
        N, T, H, _ = q.shape
        log_sum = torch.empty(N, H, T, dtype=q.dtype)
        kernel.read_bands(ctypes.byref(_work(windows, first, q, pairs, y, log_sum)))
        ctx.windows = windows
        ctx.save_for_backward(first, q, y, log_sum, *pairs)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_y: Tensor) -> tuple[Tensor | None, ...]:
        kernel = bands_kernel()
        assert kernel is not None
        first, q, y, log_sum, *pairs = ctx.saved_tensors
        to_y, to_q = to_y.contiguous(), torch.empty_like(y)
        to_pairs = [torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in pairs]
        work = _work(ctx.windows, first, q, pairs, y, log_sum)
        work.to_y, work.to_q = to_y.data_ptr(), to_q.data_ptr()
        native.point(work.to_keys, to_pairs[::2])
        native.point(work.to_values, to_pairs[1::2])
        kernel.go_back(ctypes.byref(work))
        return None, None, to_q, *to_pairs
