"""The systems of a memory at its optimum, compiled (`native_systems.cpp`, see `native`): `least_squares` on a CPU."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from mnemonist.memory.kernels import native


class _Work(native.Structure):
    """As `Work` in the source."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("X", "C", "K", "most", "threads", "double_precision")),
        ("enough", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("q", "keys", "start", "base", "fixed", "mix", "x")),
    ]


def systems_kernel() -> ctypes.CDLL | None:
    """The compiled kernel, or None if there is no way to have it."""
    return native.kernel("native_systems.cpp", ("solve",), _Work)


def solve(
    q: Tensor, keys: Tensor, start: Tensor, base: Tensor, fixed: Tensor, mix: Tensor, most: int, enough: float
) -> Tensor | None:
    """``x`` with ``x_t H_t = q_t`` for the tokens of all chunks, ``[X, C, K]``, cut from the graph.

    Args:
        q: ``[X, C, K]``; this and what follows: see `least_squares.Systems`.
        keys: ``[X, C, K]``.
        start: ``[X, K, K]``.
        base: ``[X, C, 1]``.
        fixed: ``[X, C, 1]``.
        mix: ``[X, C, C]``.
        most: steps that a search takes at most.
        enough: residual at which a token stops, relative to its query.

    Returns:
        None where the kernel does not apply: on other devices, in other types, or where it could not be compiled.
    """
    given = {"q": q, "keys": keys, "start": start, "base": base, "fixed": fixed, "mix": mix}
    if not native.fits(*given.values()) or (kernel := systems_kernel()) is None:
        return None
    given = {name: tensor.detach().contiguous() for name, tensor in given.items()}
    x = torch.empty_like(given["q"])
    X, C, K = q.shape
    work = _Work(
        X=X, C=C, K=K, most=most, threads=torch.get_num_threads(), double_precision=q.dtype == torch.float64,
        enough=enough**2, x=x.data_ptr(), **{name: tensor.data_ptr() for name, tensor in given.items()},
    )  # fmt: skip
    kernel.solve(ctypes.byref(work))
    return x
