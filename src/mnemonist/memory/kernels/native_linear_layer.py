"""A linear layer of few rows, compiled (`native_linear_layer.cpp`, see `native`): how models write.

It takes as long as its weights take to come from memory, and torch has them come at about half the rate there is. In
bfloat16 they are half as many bytes; they are widened in registers, so that nothing else is rounded than in float32.
"""

from __future__ import annotations

import ctypes
from struct import Struct

import torch
import torch.nn.functional as F
from torch import Tensor

from mnemonist.memory.kernels import native

MOST_ROWS = 16
"""Up to as many it was faster for every matrix beyond the caches, with one thread and two; within them as fast."""
LEAST_WEIGHTS = 2**15
"""With fewer, a call costs as much as the product."""

_WORK = Struct("6q4P")
"""As `Work` in the source."""


def linear_layer_kernel() -> ctypes.CDLL | None:
    """The compiled kernel, or None if there is no way to have it."""
    return native.kernel("native_linear_layer.cpp", ("linear",), _WORK)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``: `torch.nn.functional.linear`, but faster where few rows need no gradients.

    There a row's numbers do not depend on the rows beside it, nor on how many threads there are.

    Weights in bfloat16 beside ``x`` of float32 or float64 count as the wider numbers that they stand for: what comes of
    them is, bit for bit, what comes of ``weight.to(x.dtype)``. (Under autocast both are of its type.)

    Args:
        x: ``[..., I]``.
        weight: ``[O, I]``.
        bias: ``[O]`` of the type of ``x``, or None.

    Returns:
        ``[..., O]``.

    Raises:
        RuntimeError: the shapes or types do not fit.
    """
    given = (x, weight) if bias is None else (x, weight, bias)
    halves = weight.dtype == torch.bfloat16 and x.dtype != torch.bfloat16
    if (
        weight.numel() < LEAST_WEIGHTS
        or native.wants_derivatives(*given)
        or not _fits(given, halves)  # before x is looked at: what compiles would compile for every length
        or not 0 < x.numel() <= MOST_ROWS * weight.shape[-1]
        or not native.may_multiply()
        or weight.layout is not torch.strided
        or not (weight.is_contiguous() and (bias is None or bias.is_contiguous()))
        or (kernel := linear_layer_kernel()) is None
    ):
        return _through_torch(x, weight, bias, halves)
    *channels, width = weight.shape
    *rows, _ = shape = x.shape or (0,)
    if len(channels) != 1 or shape[-1] != width or not (bias is None or list(bias.shape) == channels):
        return _through_torch(x, weight, bias, halves)  # which says what is wrong
    x = x.contiguous()
    y = x.new_empty(*rows, *channels)
    to_bias = 0 if bias is None else bias.data_ptr()
    kernel.linear(
        _WORK.pack(
            x.numel() // width,
            width,
            channels[0],
            torch.get_num_threads(),
            x.dtype == torch.float64,
            halves,
            x.data_ptr(),
            weight.data_ptr(),
            to_bias,
            y.data_ptr(),
        )
    )
    return y


def _fits(given: tuple[Tensor, ...], halves: bool) -> bool:
    """Whether the kernel may be given ``x``, weights, which may be ``halves``, and a bias if there is one."""
    if not halves:
        return native.fits(*given)
    x, weight, *bias = given
    return native.fits(x, *bias, halves=weight)


def _through_torch(x: Tensor, weight: Tensor, bias: Tensor | None, halves: bool) -> Tensor:
    if halves and x.dtype in (torch.float32, torch.float64) and not _autocast(x.device.type):
        weight = _widened(weight, x)
    return F.linear(x, weight, bias)


def _autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _widened(weight: Tensor, like: Tensor) -> Tensor:
    """The weights in another type, whole: products of its parts may round differently."""
    if native.wants_derivatives(weight) or not native.fits(like, halves=weight):
        return weight.to(like.dtype)
    wide = torch.empty_like(weight, dtype=like.dtype)
    native.on_large_pages(wide)
    return wide.copy_(weight)
