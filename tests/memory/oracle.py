"""The equations once more, independently: the inner gradient by autograd, masks and chunks by plain Python."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mnemonist.memory import MemoryRule


def network(rule: MemoryRule, weights: list[Tensor], x: Tensor) -> Tensor:
    """M(x) for x [H, D] and weights [H, D_in, D_out]."""
    act = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu, "tanh": torch.tanh}[rule.activation]
    z = x
    for i, w in enumerate(weights):
        z = torch.einsum("hd,hde->he", z, w)
        if i < len(weights) - 1:
            z = act(z)
    if rule.norm:
        z = (z - z.mean(-1, keepdim=True)) / (z.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    return x + z if rule.residual else z


def loss_of(rule: MemoryRule, weights: list[Tensor], k: Tensor, v: Tensor) -> Tensor:
    """Inner loss per head [H]."""
    out = network(rule, weights, k)
    if rule.objective == "dot":
        return -(out * v).sum(-1)
    if rule.objective == "l2":
        return ((out - v) ** 2).sum(-1) / 2
    return F.huber_loss(out, v, reduction="none", delta=rule.huber_delta).sum(-1)


def per_layer(gate: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """A gate of one token, [H] or [H, D], as a factor for each weight matrix."""
    if gate.dim() == 1:
        return [gate[:, None, None]] * len(weights)
    return [g[:, :, None] for g in gate.split([w.shape[1] for w in weights], dim=-1)]


def levelled(G: Tensor) -> Tensor:
    """Five times the quintic 3.4445 s - 4.775 s^3 + 2.0315 s^5 of the singular values s of ``G / |G|``."""
    X = G / G.norm().clamp_min(1e-4)
    for _ in range(5):
        cube = X @ X.T @ X
        X = 3.4445 * X - 4.775 * cube + 2.0315 * (X @ X.T @ cube)
    return X


def read_one_row(rule, q, k, v, step_size, log_momentum, log_decay, initial):
    """Read one row of T tokens without padding; returns y, M, S, losses, gradient norms."""
    if rule.step == "optimum":
        return fit_one_row(rule, q, k, v, step_size, log_decay, initial[0])
    M = [w.clone() for w in initial]
    S = [torch.zeros_like(w) for w in initial]
    ys, losses, norms = [], [], []
    anchor = M
    for t in range(q.shape[0]):
        if rule.read_at == "before":
            ys.append(network(rule, M, q[t]))
        of_token, squares = 0, 0
        for s in range(t * rule.writes, (t + 1) * rule.writes):
            if s % rule.chunk_size == 0:
                anchor = M
            kept = M
            if log_decay is not None and s == t * rule.writes:
                a = per_layer(log_decay[t].exp(), M)
                target = initial if rule.decay_to == "initial" else [torch.zeros_like(w) for w in initial]
                kept = [a_i * m + (1 - a_i) * w for a_i, m, w in zip(a, M, target, strict=True)]
            point = {"previous": M, "decayed": kept, "chunk": anchor}[rule.gradient_at]
            steps = [torch.zeros_like(w) for w in M]
            for met in range(max(0, s - rule.window + 1), s + 1):  # the token itself comes last
                with torch.enable_grad():
                    at = [p if p.requires_grad else p.clone().requires_grad_() for p in point]
                    inner = loss_of(rule, at, k[met], v[met])
                    gradient = torch.autograd.grad(inner.sum(), at, create_graph=True)
                weigh = step_size[met][:, None, None]
                if rule.step == "orthogonal" and rule.window == 1:  # the step size stands before the step alone
                    weigh = torch.ones_like(weigh)
                steps = [step - weigh * g for step, g in zip(steps, gradient, strict=True)]
            if rule.step == "orthogonal":
                gone_down = [-step for step in steps]
                if log_momentum is not None:
                    eta = log_momentum[s].exp()[:, None, None]
                    gone_down = S = [eta * m + g for m, g in zip(S, gone_down, strict=True)]
                steps = [
                    -step_size[s][:, None, None] * torch.stack([levelled(g) for g in heads]) for heads in gone_down
                ]
            elif log_momentum is not None:
                steps = S = [log_momentum[s].exp()[:, None, None] * m + w for m, w in zip(S, steps, strict=True)]
            M = [m + w for m, w in zip(kept, steps, strict=True)]
            of_token = of_token + inner
            squares = squares + sum((g.detach() ** 2).sum((-1, -2)) for g in gradient)
        if rule.read_at == "after":
            ys.append(network(rule, M, q[t]))
        losses.append(of_token)
        norms.append(squares.sqrt())
    return torch.stack(ys), M, S, torch.stack(losses), torch.stack(norms)


def fit_one_row(rule, q, k, v, step_size, log_decay, initial):
    """The same of a memory at its optimum: before and after every token, a least squares fit to all that was read."""

    def fit(weights):  # of the writes so far, [W, H]; the ridge is K more rows of ones on a diagonal
        H, K, _ = initial.shape
        eye = rule.ridge**0.5 * torch.eye(K, dtype=initial.dtype).expand(H, K, K)
        keys = torch.cat([weights.T.sqrt()[..., None] * k[: len(weights)].transpose(0, 1), eye], dim=1)
        values = torch.cat([weights.T.sqrt()[..., None] * v[: len(weights)].transpose(0, 1), eye @ initial], dim=1)
        return torch.linalg.lstsq(keys, values).solution

    weights = step_size[:0]
    M, ys, losses, norms = fit(weights), [], [], []
    for t in range(q.shape[0]):
        met, of_token, squares = M, 0, 0
        for s in range(t * rule.writes, (t + 1) * rule.writes):
            error = torch.einsum("hk,hkv->hv", k[s], M) - v[s]
            of_token = of_token + (error**2).sum(-1) / 2
            squares = squares + (error**2).sum(-1) * (k[s] ** 2).sum(-1)
            if log_decay is not None and s == t * rule.writes:
                weights = weights * log_decay[t].exp()
            weights = torch.cat([weights, step_size[s : s + 1]])
            M = fit(weights)
        ys.append(torch.einsum("hk,hkv->hv", q[t], M if rule.read_at == "after" else met))
        losses.append(of_token)
        norms.append(squares.sqrt())
    return torch.stack(ys), [M], [], torch.stack(losses), torch.stack(norms)


def make_inputs(rule, *, B=2, T=21, H=2, K=5, V=5, seed=0, dtype=torch.float64, scale=1.0):
    """Random tokens, gates and initial weights fit for the rule: keyword arguments of `memorize`."""
    gen = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=gen, dtype=dtype)

    unit, written = torch.nn.functional.normalize, rule.writes * T
    inputs = {
        "q": unit(normal(B, T, H, K), dim=-1) * scale,
        "k": unit(normal(B, written, H, K), dim=-1) * scale,
        "v": normal(B, written, H, V),
        "step_size": torch.sigmoid(normal(B, written, H)) * 0.5 / (rule.writes * rule.window),
    }
    if rule.momentum:
        inputs["log_momentum"] = F.logsigmoid(normal(B, written, H))
    if rule.retention != "none":
        channels = (rule.decay_channels(K, V),) if rule.retention == "channel" else ()
        inputs["log_decay"] = F.logsigmoid(normal(B, T, H, *channels) + 2)
    if rule.linear:
        inputs["initial"] = [normal(H, K, V) * 0.3]
    else:
        # Gentler than `initial_weights`: without a norm those diverge at these step sizes, and nothing can be compared.
        inputs["initial"] = [normal(H, d_in, d_out) / d_in**0.5 for d_in, d_out in rule.layer_sizes(K, V)]
    return inputs
