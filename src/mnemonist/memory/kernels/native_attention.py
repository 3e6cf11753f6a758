"""Attention of one query a row to the keys that the row has read, compiled (`native_attention.cpp`, see `native`).

Torch would read the places of the longest row for every row, and copy keys that persistent tokens must stand before.
"""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from mnemonist.memory.kernels import native


class _Work(native.Structure):
    """As `Work` in the source."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("tokens", "key_row", "key_token", "value_row", "value_token")),
        *((name, ctypes.c_int32) for name in ("rows", "heads", "key_heads", "width", "persistent", "threads")),
        ("double_precision", ctypes.c_int32),
        ("scale", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("q", "keys", "values", "persistent_keys", "persistent_values")),
        *((name, ctypes.c_void_p) for name in ("first", "y")),
    ]


def attention_kernel() -> ctypes.CDLL | None:
    """The compiled kernel, or None if there is no way to have it."""
    return native.kernel("native_attention.cpp", ("newest",), _Work)


def attend_newest(
    q: Tensor, keys: Tensor, values: Tensor, first: Tensor, persistent: tuple[Tensor, Tensor] | None
) -> Tensor | None:
    """Softmax attention ``[B, 1, H, D]``, scaled by ``1 / sqrt(D)``, of the newest token of each row.

    Args:
        q: ``[B, 1, H, D]``.
        keys: ``[B, S, G, D]``, the newest last; ``H / G`` heads of queries that follow each other share them.
        values: likewise.
        first: ``[B]`` int64 on the CPU: places of each row that hold nothing; fewer than ``S``.
        persistent: keys and values ``[P, G, D]`` that every row sees besides.

    Returns:
        None where the kernel does not apply: where gradients may be asked for, other devices or types.
    """
    B, T, H, D = q.shape
    G = keys.shape[2]
    own = persistent or (q.new_empty(0, G, D),) * 2
    given = (q, keys, values, *own)
    if (
        T != 1
        or torch.is_grad_enabled()
        or not native.fits(*given)
        or any(t.stride()[2:] != (D, 1) for t in (keys, values))
        or (kernel := attention_kernel()) is None
    ):
        return None
    q, own_keys, own_values, first = (t.contiguous() for t in (q, *own, first))
    y = torch.empty_like(q)
    work = _Work(
        tokens=keys.shape[1],
        key_row=keys.stride(0),
        key_token=keys.stride(1),
        value_row=values.stride(0),
        value_token=values.stride(1),
        rows=B,
        heads=H,
        key_heads=G,
        width=D,
        persistent=len(own_keys),
        threads=torch.get_num_threads(),
        double_precision=q.dtype == torch.float64,
        scale=1 / math.sqrt(D),
        q=q.data_ptr(),
        keys=keys.data_ptr(),
        values=values.data_ptr(),
        persistent_keys=own_keys.data_ptr(),
        persistent_values=own_values.data_ptr(),
        first=first.data_ptr(),
        y=y.data_ptr(),
    )
    kernel.newest(ctypes.byref(work))
    return y
