"""The memory as a network: what it answers, and the gradient of its inner loss.

For one token the gradient with respect to a weight matrix is an outer product ``x_i d_i^T`` of what the layer saw
and of the error sent back to it. Keeping these two factors apart is what makes learning while reading cheap: a
chunk's worth of gradients is two thin matrices, never ``T`` copies of the weights.

Matrices are applied as ``x @ W``. Shapes: inputs ``[..., C, D]``, weights ``[..., D_in, D_out]``; leading
dimensions broadcast as in `torch.matmul`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mnemonist.memory.feature_map_table import feature_dim, squared_norm
from mnemonist.memory.open_choices import ACTIVATIONS, OBJECTIVES
from mnemonist.memory.rule import MemoryRule

NORM_EPS = 1e-5

ACTIVATION_GAIN = {"silu": 1.68, "gelu": 1.53, "relu": 2**0.5, "tanh": 1.59}
"""``E[activation(z)^2]^-1/2`` for a standard normal ``z``."""


def activation_gain(rule: MemoryRule) -> float:
    """What brings the rule's activation of a standard normal number to variance 1."""
    own = ACTIVATIONS.get(rule.activation)
    return ACTIVATION_GAIN[rule.activation] if own is None else own.gain


@dataclass(frozen=True)
class InnerGradient:
    """Gradient of the inner loss as factors: for layer ``i`` and token ``t`` it is ``inputs[i][t] errors[i][t]^T``."""

    inputs: list[Tensor]
    """Per layer ``[..., C, D_in]``: what the layer saw of the key."""
    errors: list[Tensor]
    """Per layer ``[..., C, D_out]``: derivative of the loss with respect to the layer's output."""
    output: Tensor
    """``[..., C, V]``: the memory's answer to the key."""

    def norm(self) -> Tensor:
        """Norm of the whole gradient per token ``[..., C]``; costs one pass over the factors."""
        squares = [x.square().sum(-1) * d.square().sum(-1) for x, d in zip(self.inputs, self.errors, strict=True)]
        return torch.stack(squares).sum(0).sqrt()


def curvature(rule: MemoryRule, key_dim: int, value_dim: int) -> float:
    """How far one write at step size 1 moves the memory's answer to its own key, per unit of error.

    For keys of norm 1 and weights as `initial_weights` draws them: each layer contributes the squared norm of what it
    sees, which is 1 for the first (or what a feature map makes of it) and ``D_in / gain^2`` for the others. Widths are
    those before the feature map.
    """
    if rule.feature_map is not None:
        seen = squared_norm(rule.feature_map, key_dim, rule.scale)
        key_dim = feature_dim(
            rule.feature_map, key_dim, **({} if rule.features is None else {"features": rule.features})
        )
    else:
        seen = 1.0
    gain = activation_gain(rule)
    return seen + sum(d_in / gain**2 for d_in, _ in rule.layer_sizes(key_dim, value_dim)[1:])


def activate(rule: MemoryRule, x: Tensor) -> Tensor:
    """The rule's non-linearity."""
    if rule.activation == "silu":
        return F.silu(x)
    if rule.activation == "gelu":
        return F.gelu(x)
    if rule.activation == "relu":
        return F.relu(x)
    if rule.activation == "tanh":
        return torch.tanh(x)
    return ACTIVATIONS[rule.activation].function(x)


class _SiluBackward(torch.autograd.Function):
    """``error * silu'(x)`` in one pass, with the derivative that torch's own operation lacks."""

    @staticmethod
    def forward(ctx: Any, error: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(error, x)
        return torch.ops.aten.silu_backward(error, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        error, x = ctx.saved_tensors
        gate = torch.sigmoid(x)
        rest = 1 - gate
        slope = gate * (1 + x * rest)
        curve = gate * rest * (2 + x * (rest - gate))
        return grad * slope, grad * error * curve


def activation_backward(rule: MemoryRule, error: Tensor, x: Tensor) -> Tensor:
    """``error * activation'(x)``, itself differentiable."""
    if rule.activation == "silu":
        return _SiluBackward.apply(error, x)
    if rule.activation == "gelu":
        return torch.ops.aten.gelu_backward(error, x)
    if rule.activation == "relu":
        return error * (x > 0)
    if rule.activation == "tanh":
        return error * (1 - torch.tanh(x).square())
    return _derivative(ACTIVATIONS[rule.activation].function, x, error)


def answer(rule: MemoryRule, apply_layer: Callable[[int, Tensor], Tensor], x: Tensor) -> Tensor:
    """``M(x)``, where ``apply_layer(i, x)`` multiplies by the weights of layer ``i``, whatever holds them."""
    z = x
    for i in range(rule.depth):
        z = apply_layer(i, z)
        if i < rule.depth - 1:
            z = activate(rule, z)
    return finish(rule, x, z)


def finish(rule: MemoryRule, x: Tensor, last: Tensor) -> Tensor:
    """``M(x)`` from what the last layer gives for ``x``."""
    if rule.norm:
        last = F.layer_norm(last, last.shape[-1:], eps=NORM_EPS)
    return x + last if rule.residual else last


def inner_gradient(rule: MemoryRule, weights: Sequence[Tensor], k: Tensor, v: Tensor) -> InnerGradient:
    """Gradient of the inner loss ``l(M; k, v)`` at ``weights``, one per token (tokens do not see each other)."""
    inputs, before = [k], []
    z = k
    for i, weight in enumerate(weights):
        z = z @ weight
        if i < rule.depth - 1:
            before.append(z)
            z = activate(rule, z)
            inputs.append(z)
    normed, inverse_std = _normalise(z) if rule.norm else (z, z)
    output = k + normed if rule.residual else normed
    error = output_error(rule, output, v)
    if rule.norm:
        error = _layer_norm_backward(normed, inverse_std, error)
    errors = [error]
    for weight, x in zip(reversed(weights[1:]), reversed(before), strict=True):
        error = activation_backward(rule, error @ weight.mT, x)
        errors.append(error)
    return InnerGradient(inputs, errors[::-1], output)


def output_error(rule: MemoryRule, output: Tensor, v: Tensor) -> Tensor:
    """Derivative of the inner loss with respect to the memory's answer."""
    if rule.objective == "dot":
        return -v.expand_as(output)
    if rule.objective in ("l2", "huber"):
        error = output - v
        return error if rule.objective == "l2" else error.clamp(-rule.huber_delta, rule.huber_delta)
    own = OBJECTIVES[rule.objective]
    v = v.expand_as(output)
    if own.error is not None:
        return own.error(output, v)
    return _derivative(lambda y, v: _own_loss(rule, y, v), output, None, v)


def inner_loss(rule: MemoryRule, output: Tensor, v: Tensor) -> Tensor:
    """The inner loss per token, summed over value channels: ``[..., C]``."""
    if rule.denominator:  # the channel that counts keys is bookkeeping, nothing to get right
        output, v = output[..., :-1], v[..., :-1]
    if rule.objective == "dot":
        return -(output * v).sum(-1)
    if rule.objective == "l2":
        return 0.5 * (output - v).square().sum(-1)
    v = v.expand_as(output)
    if rule.objective == "huber":
        return F.huber_loss(output, v, reduction="none", delta=rule.huber_delta).sum(-1)
    return _own_loss(rule, output, v)


def _own_loss(rule: MemoryRule, output: Tensor, v: Tensor) -> Tensor:
    loss = OBJECTIVES[rule.objective].loss(output, v)
    if loss.shape != output.shape[:-1]:
        raise ValueError(
            f"objective {rule.objective!r} gave a loss {list(loss.shape)} for answers {list(output.shape)}; it must be "
            f"summed over the last dimension alone: {list(output.shape[:-1])}."
        )
    return loss


def _derivative(function: Callable[..., Tensor], x: Tensor, grad: Tensor | None, *others: Tensor) -> Tensor:
    """What torch finds to be the derivative of ``function(x, *others)``, times ``grad`` (None: of its sum).

    It is itself differentiable where that is wanted, and is found in all modes, those without derivatives too.
    """
    given = (x, *others) if grad is None else (x, *others, grad)
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in given)

    def usable(t: Tensor) -> Tensor:  # a copy, for nothing that was made in inference mode can be differentiated
        return t if wanted else t.detach().clone()

    with torch.inference_mode(False), torch.enable_grad():
        at = usable(x)
        if not at.requires_grad:
            at = at.detach().requires_grad_()
        y = function(at, *map(usable, others))
        if not y.requires_grad:  # it does not depend on x
            return torch.zeros_like(x)
        along = torch.ones_like(y) if grad is None else usable(grad)
        (found,) = torch.autograd.grad(y, at, along, create_graph=wanted, materialize_grads=True)
    return found


def _normalise(z: Tensor) -> tuple[Tensor, Tensor]:
    """Layer normalisation that also returns the inverse standard deviation its derivative needs."""
    centred = z - z.mean(-1, keepdim=True)
    inverse_std = (centred.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()
    return centred * inverse_std, inverse_std


def _layer_norm_backward(normed: Tensor, inverse_std: Tensor, error: Tensor) -> Tensor:
    centred = error - error.mean(-1, keepdim=True)
    return inverse_std * (centred - normed * (error * normed).mean(-1, keepdim=True))
