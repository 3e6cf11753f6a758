"""Each named rule against the formula of its paper, written here once more; and the choices' own checks."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F

from mnemonist.evals.regression import recursive_least_squares
from mnemonist.memory import RULES, MemoryRule, find_rule, memorize

B, T, H, K, V = 2, 21, 2, 4, 3


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.fixture
def draw():
    gen = torch.Generator().manual_seed(5)
    return lambda *shape: torch.randn(*shape, generator=gen, dtype=torch.float64)


def unit(x):
    return F.normalize(x, dim=-1)


def tokens_of(draw, value_dim=V):
    return unit(draw(B, T, H, K)), unit(draw(B, T, H, K)), draw(B, T, H, value_dim)


def causal_form(weight_BHTT, v):
    """sum_s weight[t, s] v_s for s <= t."""
    return torch.einsum("bhts,bshv->bthv", weight_BHTT.tril(), v)


def scores(q, k):
    return torch.einsum("bthk,bshk->bhts", q, k)


# --- dot objective: linear attention and its decaying kin --------------------------------------------------


def test_linear_attention_is_the_normalised_quadratic_form(draw):
    q, k, v = draw(B, T, H, K), draw(B, T, H, K), draw(B, T, H, V)
    weight = scores(F.elu(q) + 1, F.elu(k) + 1).tril()
    expected = causal_form(weight / weight.sum(-1, keepdim=True), v)
    read = memorize("linear-attention", q, k, v)
    close(read.y, expected)
    before = torch.einsum("bhts,bshv->bthv", scores(F.elu(k) + 1, F.elu(k) + 1).tril(-1), v)
    close(read.surprise.loss, -(before * v).sum(-1))


def test_retnet_is_the_parallel_form_with_a_fixed_decay(draw):
    q, k, v = tokens_of(draw)
    gamma = 1 - 2.0 ** (-5 - torch.arange(H, dtype=torch.float64))  # the paper's schedule
    distance = torch.arange(T)[:, None] - torch.arange(T)
    weight = scores(q, k) * gamma[:, None, None] ** distance.clamp(min=0)
    read = memorize("retnet", q, k, v, log_decay=gamma.log().expand(B, T, H))
    close(read.y, causal_form(weight, v))


def test_mamba2_is_the_semiseparable_matrix(draw):
    C, B_, X = tokens_of(draw)  # the paper's names: q is C, k is B, v is X
    delta, a = F.softplus(draw(B, T, H)), torch.sigmoid(draw(B, T, H) + 1)
    semiseparable = torch.zeros(B, H, T, T, dtype=torch.float64)
    for t in range(T):
        for s in range(t + 1):
            decay = a[:, s + 1 : t + 1].prod(dim=1)
            semiseparable[:, :, t, s] = (C[:, t] * B_[:, s]).sum(-1) * decay * delta[:, s]
    read = memorize("mamba2", C, B_, X, step_size=delta, log_decay=a.log())
    close(read.y, causal_form(semiseparable, X))


def test_gla_is_the_recurrence_with_a_diagonal_decay(draw):
    q, k, v = tokens_of(draw)
    a = torch.sigmoid(draw(B, T, H, K) + 1)
    S = torch.zeros(B, H, K, V, dtype=torch.float64)
    answers = []
    for t in range(T):
        S = a[:, t, :, :, None] * S + k[:, t, :, :, None] * v[:, t, :, None, :]
        answers.append(torch.einsum("bhk,bhkv->bhv", q[:, t], S))
    read = memorize("gla", q, k, v, log_decay=a.log())
    close(read.y, torch.stack(answers, dim=1))
    close(read.state.weights[0], S)


# --- l2 objective on a matrix: the delta rule and its kin --------------------------------------------------


def householder_form(q, k, v, beta, a):
    """S_t = a S (I - beta k k^T) + beta v k^T with S [V, K], the convention of flash-linear-attention."""
    S = torch.zeros(B, H, V, K, dtype=torch.float64)
    eye = torch.eye(K, dtype=torch.float64)
    answers = []
    for t in range(T):
        key, value, b = k[:, t], v[:, t], beta[:, t, :, None, None]
        S = a[:, t, :, None, None] * S @ (eye - b * key[..., :, None] * key[..., None, :])
        S = S + b * value[..., :, None] * key[..., None, :]
        answers.append(torch.einsum("bhvk,bhk->bhv", S, q[:, t]))
    return torch.stack(answers, dim=1), S.mT


@pytest.mark.parametrize("backend", ["exact", "recurrent"])
def test_deltanet_replaces_the_value_of_a_key(draw, backend):
    q, k, v = tokens_of(draw)
    beta = torch.sigmoid(draw(B, T, H))
    y, S = householder_form(q, k, v, beta, torch.ones_like(beta))
    read = memorize("deltanet", q, k, v, step_size=beta, backend=backend)
    close(read.y, y)
    close(read.state.weights[0], S)
    at_once = memorize("deltanet", k, k, v, step_size=torch.ones_like(beta), backend=backend)
    close(at_once.y, v)  # with beta 1 and a key of norm 1 the value just written is read back whole


@pytest.mark.parametrize("backend", ["exact", "recurrent"])
def test_gated_deltanet_takes_the_delta_on_the_decayed_memory(draw, backend):
    q, k, v = tokens_of(draw)
    beta, a = torch.sigmoid(draw(B, T, H)), torch.sigmoid(draw(B, T, H) + 1)
    y, S = householder_form(q, k, v, beta, a)
    read = memorize("gated-deltanet", q, k, v, step_size=beta, log_decay=a.log(), backend=backend)
    close(read.y, y)
    close(read.state.weights[0], S)


def test_titans_linear_without_momentum_is_gated_deltanet_but_for_the_gradient_point(draw):
    q, k, v = tokens_of(draw)
    beta, a = torch.sigmoid(draw(B, T, H)), torch.sigmoid(draw(B, T, H) + 1)
    gates = {"step_size": beta, "log_decay": a.log()}
    gated = memorize("gated-deltanet", q, k, v, **gates).y
    plain = RULES["titans-linear"].replace(momentum=False)
    close(memorize(plain.replace(gradient_at="decayed"), q, k, v, **gates).y, gated)
    previous = memorize(plain, q, k, v, **gates).y
    assert (previous - gated).abs().max() > 0.01
    # The two conventions meet where nothing decays.
    still = gates | {"log_decay": torch.zeros_like(beta)}
    close(memorize(plain, q, k, v, **still).y, memorize("gated-deltanet", q, k, v, **still).y)


@pytest.mark.parametrize("backend", ["exact", "recurrent"])
def test_kda_is_the_delta_rule_behind_a_diagonal_decay(draw, backend):
    """S_t = S Diag(a) (I - beta k k^T) + beta v k^T with S [V, K]."""
    q, k, v = tokens_of(draw)
    beta, a = torch.sigmoid(draw(B, T, H)), torch.sigmoid(draw(B, T, H, K) + 1)
    S = torch.zeros(B, H, V, K, dtype=torch.float64)
    answers = []
    for t in range(T):
        key, b = k[:, t], beta[:, t, :, None, None]
        turned = torch.eye(K, dtype=torch.float64) - b * key[..., :, None] * key[..., None, :]
        S = S * a[:, t, :, None, :] @ turned + b * v[:, t, :, :, None] * key[..., None, :]
        answers.append(torch.einsum("bhvk,bhk->bhv", S, q[:, t]))
    read = memorize("kda", q, k, v, step_size=beta, log_decay=a.log(), backend=backend)
    close(read.y, torch.stack(answers, dim=1))
    close(read.state.weights[0], S.mT)


@pytest.mark.parametrize("backend", ["exact", "recurrent"])
@pytest.mark.parametrize("name, writes", [("deltaproduct", 2), ("gated-deltaproduct", 2), ("gated-deltaproduct", 3)])
def test_deltaproduct_multiplies_by_a_product_of_householder_matrices(draw, name, writes, backend):
    """S_t = a S A_1 ... A_n + sum_j beta_j v_j k_j^T A_{j+1} ... A_n with A_j = I - beta_j k_j k_j^T and S [V, K]."""
    q, k, v = draw(B, T, H, K), unit(draw(B, T, writes, H, K)), draw(B, T, writes, H, V)
    beta = 2 * torch.sigmoid(draw(B, T, writes, H))
    a = torch.sigmoid(draw(B, T, H) + 1) if name.startswith("gated") else torch.ones(B, T, H, dtype=torch.float64)
    eye = torch.eye(K, dtype=torch.float64)
    S = torch.zeros(B, H, V, K, dtype=torch.float64)
    answers = []
    for t in range(T):
        turn = [eye - b[..., None, None] * x[..., :, None] * x[..., None, :]
                for b, x in zip(beta[:, t].unbind(1), k[:, t].unbind(1), strict=True)]  # fmt: skip
        S = a[:, t, :, None, None] * S
        for step in turn:
            S = S @ step
        for j in range(writes):
            written = beta[:, t, j, :, None, None] * v[:, t, j, :, :, None] * k[:, t, j, :, None, :]
            for step in turn[j + 1 :]:
                written = written @ step
            S = S + written
        answers.append(torch.einsum("bhvk,bhk->bhv", S, q[:, t]))
    decay = {"log_decay": a.log()} if name.startswith("gated") else {}
    rule = RULES[name].replace(writes=writes)
    flat = (x.flatten(1, 2) for x in (k, v))
    read = memorize(rule, q, *flat, step_size=beta.flatten(1, 2), **decay, backend=backend)
    close(read.y, torch.stack(answers, dim=1))
    close(read.state.weights[0], S.mT)


def test_two_reflections_are_a_rotation_which_one_write_is_not():
    """Mirrors 60 degrees apart: a token turns what is held by 120 degrees, and after three it is as it was."""
    angles = torch.tensor([0.0, torch.pi / 3], dtype=torch.float64)
    k = torch.stack([angles.cos(), angles.sin()], dim=-1)[None, :, None]  # [1, 2, 1, 2]
    nothing, step = torch.zeros_like(k), torch.full((1, 2, 1), 2.0, dtype=torch.float64)
    held, state = [torch.eye(2, dtype=torch.float64)], None
    for _ in range(3):
        read = memorize("deltaproduct", k[:, :1], k, nothing, step_size=step, initial=[held[0][None]], state=state)
        state = read.state
        held.append(state.weights[0][0, 0])
        close(torch.linalg.det(held[-1]), torch.ones((), dtype=torch.float64))
    close(held[1].trace() / 2, -angles[1].cos())  # the cosine of 120 degrees
    close(held[3], held[0])
    once = memorize("deltanet", k[:, :1], k[:, :1], nothing[:, :1], step_size=step[:, :1], initial=[held[0][None]])
    close(torch.linalg.det(once.state.weights[0][0, 0]), -torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("backend", ["exact", "recurrent"])
def test_titans_linear_is_equations_13_and_14(draw, backend):
    q, k, v = tokens_of(draw)
    theta, eta, alpha = (torch.sigmoid(draw(B, T, H) - shift) for shift in (1, 0, 2))
    M = S = torch.zeros(B, H, V, K, dtype=torch.float64)
    answers = []
    for t in range(T):
        error = torch.einsum("bhvk,bhk->bhv", M, k[:, t]) - v[:, t]
        gradient = error[..., :, None] * k[:, t, :, None, :]
        S = eta[:, t, :, None, None] * S - theta[:, t, :, None, None] * gradient
        M = (1 - alpha[:, t, :, None, None]) * M + S
        answers.append(torch.einsum("bhvk,bhk->bhv", M, q[:, t]))
    gates = {"step_size": theta, "log_momentum": eta.log(), "log_decay": (1 - alpha).log()}
    read = memorize("titans-linear", q, k, v, **gates, backend=backend)
    close(read.y, torch.stack(answers, dim=1))
    close(read.state.weights[0], M.mT)
    close(read.state.momentum[0], S.mT)


# --- gradients at the chunk's start, by autograd -----------------------------------------------------------


def gradients_at(network, weights, k, v):
    """Gradient of 1/2 |f(k) - v|^2 for one token of one memory."""
    leaves = [w.detach().clone().requires_grad_() for w in weights]
    loss = 0.5 * (network(leaves, k) - v).square().sum()
    return torch.autograd.grad(loss, leaves)


def each_memory():
    return [(b, h) for b in range(B) for h in range(H)]


@pytest.mark.parametrize("name, depth", [("ttt-linear", 1), ("ttt-mlp", 2)])
def test_ttt_is_gradient_descent_by_mini_batches(draw, name, depth):
    rule = RULES[name]
    assert rule.chunk_size == 16
    q, k, v = tokens_of(draw, value_dim=K)
    step = torch.sigmoid(draw(B, T, H))
    sizes = [(K, K)] if depth == 1 else [(K, 4 * K), (4 * K, K)]
    initial = [draw(H, *size) * 0.3 for size in sizes]

    def network(weights, x):  # f(x) = x + LN(f_res(x)), section 2.7
        z = x @ weights[0]
        if depth == 2:
            z = F.gelu(z) @ weights[1]
        return x + F.layer_norm(z, (K,))

    read = memorize(rule, q, k, v, step_size=step, initial=initial)
    for b, h in each_memory():
        W = [w[h] for w in initial]
        for start in range(0, T, 16):
            batch = range(start, min(start + 16, T))
            gradients = [gradients_at(network, W, k[b, t, h], v[b, t, h]) for t in batch]
            for n, t in enumerate(batch):
                W_t = [
                    w - sum(step[b, s, h] * gradients[m][i] for m, s in enumerate(batch[: n + 1]))
                    for i, w in enumerate(W)
                ]
                close(read.y[b, t, h], network(W_t, q[b, t, h]))
            W = W_t
        close([w[b, h] for w in read.state.weights], W)


def mlp(rule):
    """The memory of the titans rule: an MLP of two layers, in a residual branch with a norm if the rule says so."""

    def network(weights, x):
        z = F.silu(x @ weights[0]) @ weights[1]
        if rule.norm:
            z = F.layer_norm(z, (K,))
        return x + z if rule.residual else z

    return network


def titans_inputs(draw, rule):
    q, k, v = tokens_of(draw, value_dim=K)
    theta, eta, alpha = (torch.sigmoid(draw(B, T, H) - shift) for shift in (1, 0, 2))
    initial = [draw(H, *size) * 0.3 for size in rule.layer_sizes(K, K)]
    return q, k, v, theta, eta, alpha, initial


@pytest.mark.parametrize("printed", [False, True], ids=["as-named", "as-printed"])
def test_titans_is_equations_13_and_14_with_the_gradients_of_equation_16(draw, printed):
    rule = RULES["titans"].replace(chunk_size=6)
    if printed:  # the paper decays to zero and shows a bare MLP
        rule = rule.replace(decay_to="zero", residual=False, norm=False)
    q, k, v, theta, eta, alpha, initial = titans_inputs(draw, rule)
    network = mlp(rule)
    read = memorize(
        rule, q, k, v, step_size=theta, log_momentum=eta.log(), log_decay=(1 - alpha).log(), initial=initial
    )
    for b, h in each_memory():
        home = [w[h] if rule.decay_to == "initial" else torch.zeros_like(w[h]) for w in initial]
        M = [w[h] for w in initial]
        S = [torch.zeros_like(w) for w in M]
        for t in range(T):
            if t % 6 == 0:  # t' = t - mod(t, b)
                chunk_start = M
            u = gradients_at(network, chunk_start, k[b, t, h], v[b, t, h])
            th, e, a = theta[b, t, h], eta[b, t, h], alpha[b, t, h]
            S = [e * s - th * g for s, g in zip(S, u, strict=True)]
            M = [(1 - a) * m + a * w + s for m, w, s in zip(M, home, S, strict=True)]
            close(read.y[b, t, h], network(M, q[b, t, h]))
        close([w[b, h] for w in read.state.weights], M)
        close([s[b, h] for s in read.state.momentum], S)


def test_yaad_steps_on_the_huber_loss_of_every_channel(draw):
    """W_t = a W_{t-1} + (1 - a) W_0 - eta g, where channels that are far off pull no harder than at delta."""
    rule = RULES["yaad"].replace(chunk_size=6, huber_delta=0.7)
    q, k, v, theta, _, alpha, initial = titans_inputs(draw, rule)

    def network(weights, x):
        return x + F.layer_norm(F.gelu(x @ weights[0]) @ weights[1], (K,))

    read = memorize(rule, q, k, v, step_size=theta, log_decay=(1 - alpha).log(), initial=initial)
    far = 0
    for b, h in each_memory():
        W_0 = W = [w[h] for w in initial]
        for t in range(T):
            if t % 6 == 0:
                anchor = [w.detach().requires_grad_() for w in W]
            error = network(anchor, k[b, t, h]) - v[b, t, h]
            far += int((error.abs() > 0.7).sum())
            small = error.abs() <= 0.7
            loss = torch.where(small, error.square() / 2, 0.7 * (error.abs() - 0.35)).sum()
            g = torch.autograd.grad(loss, anchor)
            a, th = 1 - alpha[b, t, h], theta[b, t, h]
            W = [a * w + (1 - a) * w_0 - th * x for w, w_0, x in zip(W, W_0, g, strict=True)]
            close(read.y[b, t, h], network(W, q[b, t, h]))
        close([w[b, h] for w in read.state.weights], W)
    assert B * H * T * K / 5 < far < B * H * T * K * 4 / 5  # both halves of the loss were met


def test_omeganet_goes_down_the_losses_of_a_window(draw):
    """M_t = a M_{t-1} + (1 - a) M_0 - sum of theta_i grad l(M; k_i, v_i), i = t-c+1 ... t, M at the chunk's start."""
    rule = RULES["omeganet"].replace(chunk_size=6, window=4)
    q, k, v, theta, _, alpha, initial = titans_inputs(draw, rule)
    theta = theta / 4
    network = mlp(rule)
    read = memorize(rule, q, k, v, step_size=theta, log_decay=(1 - alpha).log(), initial=initial)
    for b, h in each_memory():
        M = M_0 = [w[h] for w in initial]
        for t in range(T):
            if t % 6 == 0:
                chunk_start = M
            window = [
                (i, gradients_at(network, chunk_start, k[b, i, h], v[b, i, h])) for i in range(max(0, t - 3), t + 1)
            ]
            a = 1 - alpha[b, t, h]
            M = [
                a * m + (1 - a) * m_0 - sum(theta[b, i, h] * g[layer] for i, g in window)
                for layer, (m, m_0) in enumerate(zip(M, M_0, strict=True))
            ]
            close(read.y[b, t, h], network(M, q[b, t, h]))
        close([w[b, h] for w in read.state.weights], M)
    for met, token in zip(read.state.recent, (k, v, theta), strict=True):
        assert torch.equal(met, token[:, -3:])


def test_titans_without_momentum_is_the_closed_form_of_equation_16(draw):
    rule = RULES["titans"].replace(
        chunk_size=T, momentum=False, decay_to="zero", residual=False, norm=False
    )  # fmt: skip
    q, k, v, theta, _, alpha, initial = titans_inputs(draw, rule)
    network = mlp(rule)
    read = memorize(rule, q, k, v, step_size=theta, log_decay=(1 - alpha).log(), initial=initial)
    beta = (1 - alpha).cumprod(dim=1)
    for b, h in each_memory():
        M_0 = [w[h] for w in initial]
        u = [gradients_at(network, M_0, k[b, t, h], v[b, t, h]) for t in range(T)]
        for t in (0, 7, T - 1):
            left = beta[b, t, h]
            M_t = [
                left * w - sum(theta[b, s, h] * left / beta[b, s, h] * u[s][i] for s in range(t + 1))
                for i, w in enumerate(M_0)
            ]
            close(read.y[b, t, h], network(M_t, q[b, t, h]))


@pytest.mark.parametrize("backend", ["recurrent", "exact"])
def test_mesa_answers_by_the_least_squares_of_all_that_it_has_read(draw, backend):
    """o_t = G_t (H_t + Lambda)^-1 q_t with H_t = a H + b k k^T and G_t = a G + b v k^T, both from zero."""
    q, k, v = tokens_of(draw)
    beta, alpha = torch.sigmoid(draw(B, T, H)), torch.sigmoid(draw(B, T, H) + 2)
    read = memorize("mesa", q, k, v, step_size=beta, log_decay=alpha.log(), backend=backend)
    ridge = RULES["mesa"].ridge * torch.eye(K, dtype=torch.float64)
    for b, h in each_memory():
        gram, sums = torch.zeros(K, K, dtype=torch.float64), torch.zeros(V, K, dtype=torch.float64)
        for t in range(T):
            gram = alpha[b, t, h] * gram + beta[b, t, h] * torch.outer(k[b, t, h], k[b, t, h])
            sums = alpha[b, t, h] * sums + beta[b, t, h] * torch.outer(v[b, t, h], k[b, t, h])
            close(read.y[b, t, h], sums @ torch.linalg.inv(gram + ridge) @ q[b, t, h])


def test_an_optimum_of_all_pairs_is_what_recursive_least_squares_comes_to(draw):
    x, w, noise = draw(1, T, 1, K), draw(K, 1), 0.3
    y = x @ w + noise * draw(1, T, 1, 1)
    rule = MemoryRule(step="optimum", ridge=noise**2, read_at="before")
    read = memorize(rule, x, x, y, step_size=torch.ones(1, T, 1, dtype=x.dtype))
    expected = recursive_least_squares(x[:, :, 0].numpy(), y[:, :, 0, 0].numpy(), noise)
    close(read.y[:, :, 0, 0], torch.from_numpy(expected))
    close(read.surprise.loss[:, :, 0], 0.5 * (read.y - y)[:, :, 0, 0].square())


def test_what_nobody_wrote_an_optimum_answers_as_it_was_born(draw):
    keys = F.one_hot(torch.zeros(B, T, H, dtype=torch.int64), K).double()
    asked = F.one_hot(torch.ones(B, T, H, dtype=torch.int64), K).double()
    born, step = draw(H, K, V), torch.ones(B, T, H, dtype=torch.float64)
    rule = RULES["mesa"].replace(retention="none", decay_to="zero")
    read = memorize(rule, asked, keys, draw(B, T, H, V), step_size=step, initial=[born])
    close(read.y, born[:, 1].expand(B, T, H, V))


def test_only_the_chunk_gradient_depends_on_the_chunk_size(draw):
    q, k, v = tokens_of(draw)
    gates = {"step_size": torch.sigmoid(draw(B, T, H)), "log_momentum": F.logsigmoid(draw(B, T, H))}
    gates["log_decay"] = F.logsigmoid(draw(B, T, H) + 1)
    for point in ("previous", "decayed", "chunk"):
        rule = RULES["titans-linear"].replace(gradient_at=point)
        one, other, each = (memorize(rule.replace(chunk_size=c), q, k, v, **gates).y for c in (4, 64, 1))
        assert torch.allclose(one, other, rtol=0, atol=1e-10) == (point != "chunk")
        if point == "chunk":  # chunks of one token are the equations of the paper again
            close(each, memorize("titans-linear", q, k, v, **gates).y)


# --- the choices themselves --------------------------------------------------------------------------------


def test_every_row_names_itself_and_its_source():
    assert len(RULES) >= 10
    for name, rule in RULES.items():
        assert rule.name == name
        assert "arXiv" in rule.source or "et al." in rule.source, name
    choices = [dataclasses.replace(rule, name="", source="") for rule in RULES.values()]
    twins = {rule.name for rule, c in zip(RULES.values(), choices, strict=True) if choices.count(c) > 1}
    assert not twins


def test_rules_survive_json():
    custom = MemoryRule(name="é", depth=3, expansion=1.5, momentum=True, retention="channel", gradient_at="chunk")
    since = {"window"}  # left out where it is 1: files from before are of the same rule
    for rule in (*RULES.values(), custom):
        again = MemoryRule.from_json(rule.to_json())
        assert again == rule
        assert hash(again) == hash(rule)
        told = {f.name for f in dataclasses.fields(MemoryRule)} - (since if rule.window == 1 else set())
        assert set(json.loads(rule.to_json())) == told


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        '{"colour": "red"}',
        '{"depth": 9}',
        '{"depth": "two"}',
        '{"depth": 2.0}',
        '{"chunk_size": 2.5}',
        '{"expansion": NaN}',
        '{"expansion": null}',
        '{"feature_map": []}',
        '{"objective": ["l2"]}',
        '{"momentum": "yes"}',
    ],
)
def test_json_of_something_else_is_refused(text):
    with pytest.raises(ValueError):
        MemoryRule.from_json(text)


@pytest.mark.parametrize(
    "choices, sentence",
    [
        ({"activation": "silo"}, "activation is 'silo'.*did you mean 'silu'"),
        ({"objective": "l3"}, "objective is 'l3'.*one of dot, l2, huber"),
        ({"retention": "heads"}, "did you mean 'head'"),
        ({"decay_to": "initially"}, "did you mean 'initial'"),
        ({"gradient_at": "chunks"}, "did you mean 'chunk'"),
        ({"gradient_at": None}, "gradient_at is None"),
        ({"read_at": "befor"}, "did you mean 'before'"),
        ({"objective": "dot", "denominator": True, "read_at": "before"}, "denominator needs read_at after"),
        ({"momentum": "no"}, "momentum is 'no'; it must be True or False"),
        ({"norm": 1}, "norm is 1; it must be True or False"),
        ({"depth": 0}, "depth is 0; a memory has 1 to 4 layers"),
        ({"depth": 5}, "depth is 5"),
        ({"depth": 1.5}, "depth is 1.5"),
        ({"expansion": 0}, "expansion .0. and huber_delta .1.0. must be positive"),
        ({"expansion": float("nan")}, "must be positive"),
        ({"expansion": float("inf")}, "must be positive"),
        ({"huber_delta": -1.0}, "must be positive"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"chunk_size": 2.5}, "chunk_size is 2.5"),
        ({"writes": 0}, "writes is 0"),
        ({"writes": 1.5}, "writes is 1.5"),
        ({"writes": 2, "gates": "chunk", "gradient_at": "chunk"}, "gates is chunk but writes is 2"),
        ({"features": 16}, "features is 16 but there is no feature_map"),
        ({"feature_map": "elu", "features": 16}, "the feature map elu lets nobody choose its features"),
        ({"scale": 2.0}, "scale is 2.0 but there is no feature_map"),
        ({"feature_map": "elu", "scale": 2.0}, "the feature map elu lets nobody choose its scale"),
        ({"feature_map": "favor", "scale": 0.0}, "scale is 0.0; it must be a positive number"),
        ({"feature_map": "favor", "features": 0}, "features is 0"),
        ({"gates": "constant", "momentum": True}, "gates is constant but momentum is on"),
        ({"gates": "chunk"}, "gates is chunk but gradient_at is previous"),
        ({"gates": "tokn"}, "gates is 'tokn'.*did you mean 'token'"),
        ({"keys": "any"}, "keys is 'any'; it must be one of unit, free"),
        ({"feature_map": "elo"}, "feature_map is 'elo'.*did you mean 'elu'"),
        ({"feature_map": "elu", "residual": True}, "residual and feature_map exclude each other"),
        ({"denominator": True}, "denominator needs a linear memory with the dot objective"),
        ({"denominator": True, "objective": "dot", "depth": 2}, "denominator needs a linear memory"),
        ({"decay_to": "initial"}, "nothing decays; choose head or channel"),
        ({"step": "best"}, "step is 'best'; it must be one of gradient, optimum"),
        ({"ridge": 0.0}, "ridge is 0.0; it must be a positive number"),
        ({"step": "optimum", "depth": 2}, "step is optimum, which needs a linear memory with the l2 objective"),
        ({"step": "optimum", "objective": "huber"}, "needs a linear memory with the l2 objective"),
        ({"step": "optimum", "momentum": True}, "needs momentum off"),
        ({"step": "optimum", "gradient_at": "chunk"}, "needs gradient_at previous, not chunk"),
        ({"step": "optimum", "retention": "channel"}, "needs retention none or head"),
        ({"step": "optimum", "retention": "head"}, "needs decay_to initial"),
    ],
)
def test_contradictory_choices_are_refused(choices, sentence):
    with pytest.raises(ValueError, match=sentence):
        MemoryRule(**choices)
    with pytest.raises(ValueError, match=sentence):
        MemoryRule().replace(**choices)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"no rule named 'titan'.*did you mean 'titans'.*known rules: .*gla"):
        find_rule("titan")
    with pytest.raises(ValueError, match="no rule named 'qqq'; known"):
        find_rule("qqq")
    assert find_rule("gla") is RULES["gla"]
    assert find_rule(RULES["gla"]) is RULES["gla"]


def test_a_row_can_be_named_with_changes():
    rule = find_rule("titans: depth=3, momentum=False,expansion=1.5,objective=huber,decay_to=zero")
    changes = {"depth": 3, "momentum": False, "expansion": 1.5, "objective": "huber", "decay_to": "zero"}
    assert rule == RULES["titans"].replace(**changes, name=rule.name)
    assert rule.name.startswith("titans:")
    assert MemoryRule.from_json(rule.to_json()) == rule
    bare = find_rule("linear-attention:feature_map=none,denominator=false")
    assert (bare.feature_map, bare.denominator) == (None, False)


def test_a_rule_can_choose_the_scale_of_logits(draw):
    """Taylor's map reads with weights 1 + s + s^2 / 2, s = scale q . k, whatever the scale."""
    q, k, v = tokens_of(draw)
    logits = 1.7 * torch.einsum("bthk,bshk->bhts", q, k)
    weights = 1 + logits + logits**2 / 2
    read = memorize("linear-attention:feature_map=taylor,scale=1.7", q, k, v)
    close(read.y, causal_form(weights / weights.tril().sum(-1, keepdim=True), v))


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("titan:depth=3", "no rule named 'titan'.*did you mean 'titans'"),
        ("titans:dept=3", "'dept=3' is not a change to a rule.*did you mean 'depth'"),
        ("titans:depth", "'depth' is not a change to a rule.*write choice=value"),
        ("titans:depth=3,", "'' is not a change to a rule"),
        ("titans:depth=three", "depth is 'three'; it must be of type int"),
        ("titans:depth=3.0", "depth is '3.0'; it must be of type int"),
        ("titans:momentum=maybe", "momentum is 'maybe'; it must be true or false"),
        ("titans:expansion=wide", "expansion is 'wide'; it must be of type float"),
        ("titans:expansion=nan", "must be positive"),
        ("titans:depth=5", "a memory has 1 to 4 layers"),
        ("titans:objective=none", "objective is 'none'; it must be one of"),
        ("titans:retention=none", "nothing decays"),
    ],
)
def test_changes_that_do_not_fit_are_refused(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        find_rule(name)


def test_layer_sizes_and_decay_channels():
    rule = MemoryRule(depth=3, expansion=1.5, retention="channel")
    assert rule.layer_sizes(4, 5) == ((4, 6), (6, 6), (6, 5))
    assert rule.decay_channels(4, 5) == 16
    assert MemoryRule().layer_sizes(4, 5) == ((4, 5),)
    assert MemoryRule(depth=2, expansion=0.1).layer_sizes(2, 2) == ((2, 1), (1, 2))
    with pytest.raises(ValueError, match=r"residual memory, so keys \(4\) and values \(5\)"):
        RULES["ttt-linear"].layer_sizes(4, 5)
