"""A linear layer of few rows, compiled (`native_linear_layer.cpp`, see `native`): how models write.

It takes as long as its weights take to come from memory, and torch has them come at about half the rate there is.
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

_WORK = Struct("5q4P")
"""As `Work` in the source."""


def linear_layer_kernel() -> ctypes.CDLL | None:
    """The compiled kernel, or None if there is no way to have it."""
    return native.kernel("native_linear_layer.cpp", ("linear",), _WORK)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``: `torch.nn.functional.linear`, but faster where few rows need no gradients.

    There a row's numbers do not depend on the rows beside it, nor on how many threads there are.

    Args:
        x: ``[..., I]``.
        weight: ``[O, I]``.
        bias: ``[O]``, or None.

    Returns:
        ``[..., O]``.

    Raises:
        RuntimeError: the shapes or types do not fit.
    """
    given = (x, weight) if bias is None else (x, weight, bias)
    if (
        weight.numel() < LEAST_WEIGHTS
        or native.wants_derivatives(*given)
        or not native.fits(*given)  # before x is looked at: what compiles would compile for every length
        or not 0 < x.numel() <= MOST_ROWS * weight.shape[-1]
        or torch.is_autocast_enabled("cpu")
        or torch._C._len_torch_dispatch_stack()  # who counts operations, say, is to see this one
        or weight.layout is not torch.strided
        or not (weight.is_contiguous() and (bias is None or bias.is_contiguous()))
        or (kernel := linear_layer_kernel()) is None
    ):
        return F.linear(x, weight, bias)
    *channels, width = weight.shape
    *rows, _ = shape = x.shape or (0,)
    if len(channels) != 1 or shape[-1] != width or not (bias is None or list(bias.shape) == channels):
        return F.linear(x, weight, bias)  # which says what is wrong
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
            x.data_ptr(),
            weight.data_ptr(),
            to_bias,
            y.data_ptr(),
        )
    )
    return y
