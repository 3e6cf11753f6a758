"""Norms, gated activations and rotations, compiled (`native_elementwise.cpp`, see `native`).

They are little arithmetic on much data. In torch each is several passes over it, and twice as many back; here it is one
each way. On a device, traced by a compiler or transformed by `torch.func`, on machines without a compiler, and where
small tensors want derivatives, they are what torch makes of them. Second derivatives need ``MNEMONIST_KERNELS=off``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mnemonist.memory.kernels import native

LEAST = 4096
"""Numbers below which a call that keeps something for the way back costs more than it saves."""
BLOCK = 64
"""Rows of a unit of work, as in the source."""


class _Work(native.Structure):
    """As `Work` in the source."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "a_stride", "b_stride", "angles")),
        ("to_strides", ctypes.c_int64 * 9),
        *((name, ctypes.c_int32) for name in ("width", "heads", "key_heads", "tokens", "threads", "double_precision")),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("a", "b", "weight", "gate_weight", "cosine", "sine")),
        *((name, ctypes.c_void_p) for name in ("y", "scale", "gate_scale", "q", "k", "v")),
        *((name, ctypes.c_void_p) for name in ("to_y", "to_q", "to_k", "to_v")),
        *((name, ctypes.c_void_p) for name in ("to_a", "to_b", "weight_sum", "gate_weight_sum")),
    ]


def elementwise_kernel() -> ctypes.CDLL | None:
    """The compiled kernel, or None if there is no way to have it."""
    names = ("rms", "gated", "gated_norm", "turn")
    return native.kernel("native_elementwise.cpp", (*names, *(f"{name}_back" for name in names)), _Work)


def applies(*tensors: Tensor) -> bool:
    """Whether the kernel can work with these tensors, which are all that it would be given, and is worth its call."""
    # Sizes come last: a compiler would compile anew for each side of the limit.
    return (
        native.fits(*tensors)
        and (tensors[0].numel() >= LEAST or not native.wants_derivatives(*tensors))
        and elementwise_kernel() is not None
    )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension (Zhang & Sennrich 2019, eq. 4).

    Args:
        x: ``[..., E]``.
        weight: ``[E]``, of the same type.
        eps: keeps what is all zero finite.
    """
    if applies(x, weight):
        return _Rms.apply(x, weight, eps) if native.wants_derivatives(x, weight) else _rms(x, weight, eps)[0]
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def gated_halves(x: Tensor) -> Tensor:
    """``silu(a) * b`` for the halves of the last dimension: ``[..., 2 E] -> [..., E]`` (Shazeer 2020)."""
    if applies(x):
        return _GatedHalves.apply(x) if native.wants_derivatives(x) else _gated_halves(x)
    a, b = x.chunk(2, dim=-1)
    return F.silu(a) * b


def gated_norm(a: Tensor, b: Tensor, weight: Tensor, eps: float, gate_weight: Tensor | None = None) -> Tensor:
    """``silu(a) * rms_norm(b)`` for tensors of one shape; with a weight for the gate ``a`` is made normal as well.

    Args:
        a: ``[..., E]``.
        b: ``[..., E]``.
        weight: ``[E]``, of the same type.
        eps: of both norms.
        gate_weight: ``[E]``.
    """
    weights = (weight,) if gate_weight is None else (weight, gate_weight)
    if a.shape == b.shape and applies(a, b, *weights):
        if native.wants_derivatives(a, b, *weights):
            return _GatedNorm.apply(a, b, eps, *weights)
        return _gated_norm(a, b, eps, weights)[0]
    return F.silu(a if gate_weight is None else rms_norm(a, gate_weight, eps)) * rms_norm(b, weight, eps)


def turn_projections(x: Tensor, cosine: Tensor, sine: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Queries, keys and values of projections ``[B, T, (H + 2 G) D]``, queries and keys turned.

    Args:
        x: projections.
        cosine: ``[B or 1, T, 1, D]``.
        sine: likewise, with a minus in the first half.
        heads: ``H``, of queries.

    Returns:
        Queries ``[B, T, H, D]``, keys and values ``[B, T, G, D]``. None where the kernel does not apply; the caller
        then turns them in torch.
    """
    if not applies(x, cosine, sine):
        return None
    return (_Turn.apply if native.wants_derivatives(x) else _turn)(x, cosine, sine, heads)


def _run(name: str, x: Tensor, rows: int, width: int, **given: Any) -> None:
    """Call a function of the kernel; tensors stand for where their numbers are."""
    kernel = elementwise_kernel()
    assert kernel is not None
    values = {key: value.data_ptr() if isinstance(value, Tensor) else value for key, value in given.items()}
    work = _Work(
        rows=rows, width=width, threads=torch.get_num_threads(), double_precision=x.dtype == torch.float64, **values
    )
    call: Callable[..., None] = getattr(kernel, name)
    call(ctypes.byref(work))


def _new(*shape: int, like: Tensor) -> Tensor:
    made = like.new_empty(shape)
    native.on_large_pages(made)
    return made


def _rms(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The answer, and what rows were multiplied by."""
    x, weight = x.contiguous(), weight.contiguous()
    width, rows = x.shape[-1], x.shape[:-1].numel()
    y, scale = _new(*x.shape, like=x), x.new_empty(rows)
    _run("rms", x, rows, width, a=x, weight=weight, y=y, scale=scale, eps=eps)
    return y, scale


class _Rms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        y, scale = _rms(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        width, rows = x.shape[-1], len(scale)
        to_x, sums = _new(*x.shape, like=x), x.new_empty(-(-rows // BLOCK), width)
        given = {"a": x, "weight": weight, "scale": scale, "to_y": to_y.contiguous()}
        _run("rms_back", x, rows, width, **given, to_a=to_x, weight_sum=sums)
        return to_x, sums.sum(0), None


def _gated_halves(x: Tensor) -> Tensor:
    x = x.contiguous()
    width = x.shape[-1] // 2
    y = _new(*x.shape[:-1], width, like=x)
    strides = {"a_stride": 2 * width, "b_stride": 2 * width}
    _run("gated", x, x.shape[:-1].numel(), width, a=x, b=x[..., width:], y=y, **strides)
    return y


class _GatedHalves(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        return _gated_halves(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_y: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        width, to_x = x.shape[-1] // 2, _new(*x.shape, like=x)
        given = {"a": x, "b": x[..., width:], "to_y": to_y.contiguous(), "to_a": to_x, "to_b": to_x[..., width:]}
        strides = {"a_stride": 2 * width, "b_stride": 2 * width}
        _run("gated_back", x, x.shape[:-1].numel(), width, **given, **strides)
        return to_x


def _of_one_or_both(name: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """What belongs to one norm, or to that of the gate too."""
    return dict(zip((name, f"gate_{name}"), tensors, strict=False))


def _gated_norm(a: Tensor, b: Tensor, eps: float, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The answer, and what rows of ``b``, and of ``a`` if it has a weight, were multiplied by."""
    a, b, *weights = (x.contiguous() for x in (a, b, *weights))
    width, rows = a.shape[-1], a.shape[:-1].numel()
    y, scales = _new(*a.shape, like=a), [a.new_empty(rows) for _ in weights]
    given = _of_one_or_both("weight", weights) | _of_one_or_both("scale", scales)
    _run("gated_norm", a, rows, width, **given, a=a, b=b, y=y, eps=eps)
    return y, scales


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, eps: float, *weights: Tensor) -> Tensor:
        a, b, *weights = (x.contiguous() for x in (a, b, *weights))  # type: ignore[assignment]
        y, scales = _gated_norm(a, b, eps, weights)
        ctx.save_for_backward(a, b, *weights, *scales)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_y: Tensor) -> tuple[Tensor | None, ...]:
        a, b, *others = ctx.saved_tensors
        count = len(others) // 2
        weights, scales = others[:count], others[count:]
        width, rows = a.shape[-1], len(scales[0])
        to_a, to_b = _new(*a.shape, like=a), _new(*a.shape, like=a)
        sums = [a.new_empty(-(-rows // BLOCK), width) for _ in weights]
        given = _of_one_or_both("weight", weights) | _of_one_or_both("scale", scales)
        given |= _of_one_or_both("weight_sum", sums)
        _run("gated_norm_back", a, rows, width, **given, a=a, b=b, to_y=to_y.contiguous(), to_a=to_a, to_b=to_b)
        return to_a, to_b, None, *(each.sum(0) for each in sums)


def _turn(x: Tensor, cosine: Tensor, sine: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    x, cosine, sine = x.contiguous(), cosine.contiguous(), sine.contiguous()
    (B, T, channels), D = x.shape, cosine.shape[-1]
    key_heads = (channels // D - heads) // 2
    q, k, v = (_new(B, T, many, D, like=x) for many in (heads, key_heads, key_heads))
    given = {"cosine": cosine, "sine": sine, "angles": cosine.shape[0] * T, "tokens": T}
    _run("turn", x, B * T, D, a=x, q=q, k=k, v=v, heads=heads, key_heads=key_heads, **given)
    return q, k, v


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
        cosine, sine = cosine.contiguous(), sine.contiguous()
        q, k, v = _turn(x, cosine, sine, heads)
        ctx.save_for_backward(cosine, sine)
        ctx.heads = {"heads": heads, "key_heads": k.shape[2]}
        return q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cosine, sine = ctx.saved_tensors
        B, T, _, D = grads[0].shape
        # Attention gives them head by head; only within a head must they be side by side.
        grads = tuple(grad if grad.stride(-1) == 1 or D == 1 else grad.contiguous() for grad in grads)
        to_x = _new(B, T, (ctx.heads["heads"] + 2 * ctx.heads["key_heads"]) * D, like=grads[0])
        strides = (ctypes.c_int64 * 9)(*(stride for grad in grads for stride in grad.stride()[:3]))
        given = {"cosine": cosine, "sine": sine, "angles": cosine.shape[0] * T, "tokens": T, **ctx.heads}
        pointers = dict(zip(("to_q", "to_k", "to_v"), grads, strict=True))
        _run("turn_back", to_x, B * T, D, **given, **pointers, to_a=to_x, to_strides=strides)
        return to_x, None, None, None
