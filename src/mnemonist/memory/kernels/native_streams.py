"""What a token sends to a memory, compiled (`native_streams.cpp`, see `native`).

The short convolution, the non-linearity and the norms of a memory's layer are little arithmetic on much data: in torch
some twenty passes over it forward and three times as many back, here one each way. Second derivatives need
``MNEMONIST_KERNELS=off``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mnemonist.memory.kernels import native

BLOCK = 64
"""Tokens of a unit of work, as in the source."""
SHORTEST = 1e-12
"""Norms below it are taken as this, as `torch.nn.functional.normalize` does."""


class _Work(native.Structure):
    """As `Work` in the source."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("B", "T", "H", "D", "writes", "taps", "threads", "double_precision")),
        ("unit_keys", ctypes.c_int32),
        ("shortest", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("x", "tail", "conv", "q", "k", "v", "next_tail")),
        *((name, ctypes.c_void_p) for name in ("to_q", "to_k", "to_v", "to_next_tail", "to_x", "to_tail", "to_conv")),
    ]


def stream_kernel() -> ctypes.CDLL | None:
    """The compiled kernel, or None if there is no way to have it."""
    return native.kernel("native_streams.cpp", ("send", "go_back"), _Work)


def applies(tensors: Sequence[Tensor]) -> bool:
    """Whether the kernel can work with these tensors, which are all that it would be given."""
    return native.fits(*tensors) and stream_kernel() is not None


def send(
    x: Tensor, tail: Tensor, conv: Tensor, heads: int, unit_keys: bool = True, writes: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Convolve, bend, and bring queries and keys to norm 1 (unless ``unit_keys`` is false).

    Args:
        x: ``[B, T, (1 + 2 W) H D]``: projections of T tokens to a query, W keys and W values.
        tail: ``[B, taps - 1, (1 + 2 W) H D]``: those of the tokens before.
        conv: ``[taps, (1 + 2 W) H D]``, the last for the present token.
        heads: ``H``.
        unit_keys: whether queries and keys are divided by their norms.
        writes: ``W``, keys and values of a token.

    Returns:
        Queries ``[B, T, H, D]``, keys and values ``[B, T * W, H, D]``, and the tail for the tokens that follow.
    """
    if native.wants_derivatives(x, tail, conv):
        return _Send.apply(x, tail, conv, heads, unit_keys, writes)
    return _send(x.contiguous(), tail.contiguous(), conv.contiguous(), heads, unit_keys, writes)


def _work(x: Tensor, tail: Tensor, conv: Tensor, heads: int, unit_keys: bool, writes: int) -> _Work:
    B, T, channels = x.shape
    return _Work(
        B=B, T=T, H=heads, D=channels // ((1 + 2 * writes) * heads), writes=writes, taps=conv.shape[0],
        threads=torch.get_num_threads(), double_precision=x.dtype == torch.float64, shortest=SHORTEST, x=x.data_ptr(),
        tail=tail.data_ptr(), conv=conv.data_ptr(), unit_keys=unit_keys,
    )  # fmt: skip


def _point(work: _Work, names: Sequence[str], tensors: Sequence[Tensor]) -> None:
    for name, tensor in zip(names, tensors, strict=True):
        setattr(work, name, tensor.data_ptr())


def _send(
    x: Tensor, tail: Tensor, conv: Tensor, heads: int, unit_keys: bool, writes: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kernel = stream_kernel()
    assert kernel is not None
    work = _work(x, tail, conv, heads, unit_keys, writes)
    q, k, v = (x.new_empty(work.B, work.T * many, heads, work.D) for many in (1, writes, writes))
    out = (q, k, v, torch.empty_like(tail))
    native.on_large_pages(*out)
    _point(work, ("q", "k", "v", "next_tail"), out)
    kernel.send(ctypes.byref(work))
    return out


class _Send(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, tail: Tensor, conv: Tensor, heads: int, unit_keys: bool, writes: int
    ) -> tuple[Tensor, ...]:
        inputs = (x.contiguous(), tail.contiguous(), conv.contiguous())
        ctx.choices = heads, unit_keys, writes
        ctx.save_for_backward(*inputs)
        return _send(*inputs, heads, unit_keys, writes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kernel = stream_kernel()
        assert kernel is not None
        inputs: tuple[Tensor, Tensor, Tensor] = ctx.saved_tensors
        x, tail, conv = inputs
        to_conv = conv.new_empty(x.shape[0] * -(-x.shape[1] // BLOCK), *conv.shape)
        given, out = [grad.contiguous() for grad in grads], [torch.empty_like(x), torch.empty_like(tail), to_conv]
        native.on_large_pages(*out)
        work = _work(*inputs, *ctx.choices)
        _point(work, ("to_q", "to_k", "to_v", "to_next_tail"), given)
        _point(work, ("to_x", "to_tail", "to_conv"), out)
        kernel.go_back(ctypes.byref(work))
        return *out[:2], to_conv.sum(0), None, None, None
