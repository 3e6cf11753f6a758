"""What a layer does around its memory on an NVIDIA GPU: what stands around the kernels of `triton_elementwise`.

In torch the short convolution, the non-linearity, the norms and the gate are some thirty passes over what a layer has
in memory, and twice as many back: on an H100 they took longer than the memory itself. The operations are known to torch
(``mnemonist::send_streams``, ``mnemonist::gated_norm``) and their kernels run in Triton's interpreter, as those of
`triton_reading`. Second derivatives need tensors on a CPU, and there ``MNEMONIST_KERNELS=off``.

Importing this module does not import triton.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from mnemonist.memory.kernels.native_streams import SHORTEST
from mnemonist.memory.kernels.triton_reading import interpreted, padded

TRITON = importlib.util.find_spec("triton") is not None  # looked up here, for a compiler traces `applies`
WIDEST = 256
"""Numbers of a head."""
TOKENS = 32
"""Of a block, and rows of one."""
COLUMNS = 128
WARPS = 4


def applies(width: int, *tensors: Tensor) -> bool:
    """Whether the kernels can work with these tensors, on heads of ``width`` numbers."""
    return (
        all(t.is_cuda or interpreted() for t in tensors)
        and all(t.dtype in (torch.float32, torch.bfloat16, torch.float16) for t in tensors)
        and width <= WIDEST
        and TRITON
    )


def send(
    x: Tensor, tail: Tensor, conv: Tensor, heads: int, unit_keys: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Convolve, bend, and bring queries and keys to norm 1; arguments and results as of `native_streams.send`."""
    q, k, v, next_tail = torch.ops.mnemonist.send_streams(x, tail.to(x.dtype), conv, heads, unit_keys)
    return q, k, v, next_tail


def gated_norm(a: Tensor, y: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``silu(a) * rms_norm(y) * weight``, with norms over heads.

    Args:
        a: ``[B, T, H D]``.
        y: ``[B, T, H, D]``.
        weight: ``[D]``.
        eps: keeps what is all zero finite.

    Returns:
        ``[B, T, H D]``, in the type of a.
    """
    return torch.ops.mnemonist.gated_norm(a, y, weight, eps)


def _sizes(x: Tensor, conv: Tensor, heads: int, unit_keys: bool) -> dict[str, Any]:
    D = x.shape[-1] // (3 * heads)
    return {
        "H": heads, "D": D, "KEPT": conv.shape[0] - 1, "UNIT": unit_keys, "SHORTEST": SHORTEST, "BLOCK_T": TOKENS,
        "BLOCK_D": padded(D), "num_warps": WARPS,
    }  # fmt: skip


@torch.library.custom_op("mnemonist::send_streams", mutates_args=())
def send_streams(
    x: Tensor, tail: Tensor, conv: Tensor, heads: int, unit_keys: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `send`."""
    from mnemonist.memory.kernels.triton_elementwise import send_kernel

    x, tail = x.contiguous(), tail.contiguous()
    B, T, _ = x.shape
    q, k, v, next_tail = _sent(x, tail, conv, heads, unit_keys)
    kept, blocks = tail.shape[1], -(-T // TOKENS)
    if T and B:
        with torch.cuda.device_of(x):
            send_kernel[(B * blocks, heads)](
                x, tail, conv.contiguous(), q, k, v, T, blocks, **_sizes(x, conv, heads, unit_keys)
            )
    next_tail.copy_(x[:, T - kept :] if kept <= T else torch.cat([tail, x], 1)[:, T:])
    return q, k, v, next_tail


@send_streams.register_fake
def _sent(x: Tensor, tail: Tensor, conv: Tensor, heads: int, unit_keys: bool) -> tuple[Tensor, ...]:
    B, T, channels = x.shape
    return *(x.new_empty(B, T, heads, channels // (3 * heads)) for _ in range(3)), tail.new_empty(tail.shape)


@torch.library.custom_op("mnemonist::send_streams_backward", mutates_args=())
def send_streams_backward(
    to_q: Tensor, to_k: Tensor, to_v: Tensor, to_next_tail: Tensor, x: Tensor, tail: Tensor, conv: Tensor, heads: int,
    unit_keys: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Derivatives of x, tail and conv."""
    from mnemonist.memory.kernels.triton_elementwise import send_back_kernel, taps_back_kernel

    x, tail, conv = x.contiguous(), tail.contiguous(), conv.contiguous()
    B, T, C = x.shape
    kept, blocks = tail.shape[1], -(-T // TOKENS)
    back, to_x, to_tail = torch.empty_like(x), torch.empty_like(x), torch.empty_like(tail)
    to_conv = x.new_zeros(B * blocks, *conv.shape, dtype=torch.float32)
    if B and T + kept:
        given = [g.contiguous() for g in (to_q, to_k, to_v)]
        around = -(-(T + kept) // TOKENS)
        with torch.cuda.device_of(x):
            if T:
                send_back_kernel[(B * blocks, heads)](
                    x, tail, conv, *given, back, to_conv, T, blocks, **_sizes(x, conv, heads, unit_keys)
                )
            taps_back_kernel[(B * around, -(-C // COLUMNS))](
                back, conv, to_next_tail.contiguous(), to_x, to_tail, T, around,
                C=C, KEPT=kept, BLOCK_T=TOKENS, BLOCK_C=COLUMNS, num_warps=WARPS,
            )  # fmt: skip
    return to_x, to_tail, to_conv.sum(0).to(conv.dtype)


@send_streams_backward.register_fake
def _sent_back(
    to_q: Tensor, to_k: Tensor, to_v: Tensor, to_next_tail: Tensor, x: Tensor, tail: Tensor, conv: Tensor, heads: int,
    unit_keys: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return x.new_empty(x.shape), tail.new_empty(tail.shape), conv.new_empty(conv.shape)


def _remember_streams(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.heads, ctx.unit_keys = inputs
    ctx.save_for_backward(*tensors)


def _send_back(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    back = torch.ops.mnemonist.send_streams_backward(*grads, *ctx.saved_tensors, ctx.heads, ctx.unit_keys)
    return *back, None, None


send_streams.register_autograd(_send_back, setup_context=_remember_streams)


@torch.library.custom_op("mnemonist::gated_norm", mutates_args=())
def gated_norm_op(a: Tensor, y: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `gated_norm`."""
    from mnemonist.memory.kernels.triton_elementwise import gated_norm_kernel

    a, y = a.contiguous(), y.contiguous()
    out, D = torch.empty_like(a), y.shape[-1]
    rows = y.numel() // D
    if rows:
        with torch.cuda.device_of(a):
            gated_norm_kernel[(-(-rows // TOKENS),)](
                a, y, weight, out, rows, D=D, EPS=eps, BLOCK_R=TOKENS, BLOCK_D=padded(D), num_warps=WARPS
            )
    return out


@gated_norm_op.register_fake
def _gated(a: Tensor, y: Tensor, weight: Tensor, eps: float) -> Tensor:
    return a.new_empty(a.shape)


@torch.library.custom_op("mnemonist::gated_norm_backward", mutates_args=())
def gated_norm_backward(
    to_out: Tensor, a: Tensor, y: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of a, y and weight."""
    from mnemonist.memory.kernels.triton_elementwise import gated_norm_back_kernel

    a, y = a.contiguous(), y.contiguous()
    to_a, to_y, D = torch.empty_like(a), torch.empty_like(y), y.shape[-1]
    rows = y.numel() // D
    programs = -(-rows // TOKENS)
    to_weight = a.new_empty(programs, D, dtype=torch.float32)
    if rows:
        with torch.cuda.device_of(a):
            gated_norm_back_kernel[(programs,)](
                a, y, weight, to_out.contiguous(), to_a, to_y, to_weight, rows,
                D=D, EPS=eps, BLOCK_R=TOKENS, BLOCK_D=padded(D), num_warps=WARPS,
            )  # fmt: skip
    return to_a, to_y, to_weight.sum(0).to(weight.dtype)


@gated_norm_backward.register_fake
def _gated_back(to_out: Tensor, a: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return a.new_empty(a.shape), y.new_empty(y.shape), weight.new_empty(weight.shape)


def _remember_gate(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _gate_back(ctx: Any, to_out: Tensor) -> tuple[Tensor | None, ...]:
    return *torch.ops.mnemonist.gated_norm_backward(to_out, *ctx.saved_tensors, ctx.eps), None


gated_norm_op.register_autograd(_gate_back, setup_context=_remember_gate)
