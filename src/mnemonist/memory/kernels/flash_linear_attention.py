"""Linear memories on a GPU, through the kernels of flash-linear-attention where it is installed.

Its kernels compute one step of one of these two forms, read after the write, from a state ``[N, H, K, V]``:

    M_t = a_t M_{t-1} + k_t^T v_t                               simple_gla (a per head), gla (a per channel)
    M_t = a_t M_{t-1} - beta_t k_t^T (k_t a_t M_{t-1} - v_t)    delta_rule (a = 1), gated_delta_rule (a per head), kda
                                                                (a per channel)

A dot rule is the first with ``theta v`` as values (a denominator is one more value channel, prepared by `memorize`);
an l2 rule that takes its gradient at the decayed memory is the second with ``beta = theta``. A memory that decays to
``M_0`` is one that decays to zero, seen from there: ``M - M_0`` obeys the same equations with ``v - k M_0`` as values.

What has no such form keeps our own path, and `supports` says why. The momentum of a linear Titans memory is one case:
`momentum_delta_rule` of version 0.6.0 is the same recurrence (with its ``p = k``, ``beta = 1``, ``eta = theta`` and
``use_p_times_alpha=False``), but it is no kernel. It runs a loop in torch, takes no float32, adds 1e-6 to its beta,
and goes through the tokens one by one for the last state of a length that its chunks do not divide.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module

import torch
from torch import Tensor

from mnemonist.memory.rule import MemoryRule
from mnemonist.memory.state import MemoryState
from mnemonist.memory.stream import Gates

DEVICES = ("cuda",)
MAX_KEY_DIM = 256
"""Of their chunked delta rules."""
SHORT = 64
"""Up to here, and without a graph, their token-by-token kernels read: exact in float32, and faster than a chunk."""
LOG_FORGOTTEN = -40.0
"""Their products of gates are differences of sums of logs, in which -inf would be NaN; exp(-40) leaves no bit."""

Kernel = Callable[..., tuple[Tensor, Tensor]]


def supports(rule: MemoryRule) -> str | None:
    """Why these kernels cannot read with a rule, or None if they can, exactly as the rule says."""
    if not rule.linear:
        return "they know memories of one bare matrix only"
    if not rule.per_token:
        return "they take no gradients at a chunk's start"
    if not rule.built_in or rule.objective == "huber":
        return "they know the dot and l2 objectives only"
    if rule.step == "optimum":
        return "they take steps, and this memory is at its optimum"
    if rule.momentum:
        return "none of them carries momentum"
    if rule.window > 1:
        return "their steps go down the loss of one token"
    if rule.read_at == "before":
        return "they read after the write only"
    if rule.objective == "l2" and rule.retention != "none" and rule.gradient_at == "previous":
        return "they take the gradient of a forgetting memory after it has forgotten"
    return None


def obstacle(rule: MemoryRule, q_BTHK: Tensor, dtype: torch.dtype, trace: bool) -> str | None:
    """Why these kernels cannot read these tokens here, or None if they can.

    Args:
        rule: the choices.
        q_BTHK: queries, after the feature map.
        dtype: of the tokens as the caller gave them; the kernels multiply in it.
        trace: whether the surprise of every token is asked for.
    """
    reason = supports(rule)
    if reason is not None:
        return reason
    if q_BTHK.device.type not in DEVICES:
        return f"its kernels run on a GPU, and the tokens are on {q_BTHK.device.type}"
    if trace:
        return "its kernels report no surprise (surprise=False does without)"
    if dtype == torch.float64:
        return "its kernels do not compute in float64"
    if q_BTHK.shape[-1] > MAX_KEY_DIM:
        return f"its kernels take keys of at most {MAX_KEY_DIM} channels"
    if dtype == torch.float32 and not _short(q_BTHK):
        if _operation(rule) in ("delta_rule", "kda"):  # the first refuses; the second is only tested in half precision
            return f"its {_operation(rule)} does not compute in float32"
        if torch.get_float32_matmul_precision() == "highest":
            return "its kernels multiply float32 as TF32 (torch.set_float32_matmul_precision('high') allows it)"
    return missing(_operation(rule))


@lru_cache
def missing(operation: str) -> str | None:
    """Why the kernels of an operation cannot be had, or None if they can."""
    try:
        kernel(operation, short=False)
        kernel(operation, short=True)
    except (ImportError, AttributeError) as error:
        return f"flash-linear-attention cannot be imported ({error})"
    return None


def kernel(operation: str, short: bool) -> Kernel:
    """The function of flash-linear-attention that computes an operation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of its own optional parts as it is imported
        module = import_module(f"fla.ops.{operation}")
    function: Kernel = getattr(module, f"{'fused_recurrent' if short else 'chunk'}_{operation}")
    return function


def read_fla(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    gates: Gates,
    initial: list[Tensor],
    state: MemoryState,
    mask_BT: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, MemoryState]:
    """Read a piece of a stream. Arguments as prepared by `memorize`; ``dtype`` as for `obstacle`, which allowed it.

    Padding needs no packing: its gates are neutral (theta 0, log decay 0), so nothing is written or forgotten.
    """
    rule, wide = state.rule, v_BTHV.dtype
    base = initial[0].to(wide) if rule.decay_to == "initial" else None
    start, values = state.weights[0], v_BTHV
    if base is not None:
        start = start - base
        if rule.objective == "l2":
            values = values - torch.einsum("bthk,hkv->bthv", k_BTHK, base)
    operation, short = _operation(rule), _short(q_BTHK)
    given: dict[str, Tensor | None] = {}
    if rule.objective == "l2":
        given["beta"] = gates.step_size.contiguous()
    else:
        values = values * gates.step_size.unsqueeze(-1)
    if operation != "delta_rule":
        decay = None if gates.log_decay is None else gates.log_decay.clamp(min=LOG_FORGOTTEN).contiguous()
        given["gk" if operation == "gla" and short else "g"] = decay
    y, last = kernel(operation, short)(
        q=q_BTHK.to(dtype).contiguous(),
        k=k_BTHK.to(dtype).contiguous(),
        v=values.to(dtype).contiguous(),
        **given,
        scale=1.0,  # theirs is K^(-1/2) if none is given
        initial_state=start.contiguous(),
        output_final_state=True,
    )
    y, last = y.to(wide), last.to(wide)
    if base is not None:
        y, last = y + torch.einsum("bthk,hkv->bthv", q_BTHK, base), last + base
    if mask_BT is not None:
        y = y * mask_BT[..., None, None]
    return y, MemoryState(rule, (last,))


def _operation(rule: MemoryRule) -> str:
    if rule.objective == "l2":
        return {"none": "delta_rule", "head": "gated_delta_rule", "channel": "kda"}[rule.retention]
    return "gla" if rule.retention == "channel" else "simple_gla"


def _short(q_BTHK: Tensor) -> bool:
    return q_BTHK.shape[1] <= SHORT and not torch.is_grad_enabled()
