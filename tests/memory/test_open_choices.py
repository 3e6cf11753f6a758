"""Objectives, activations and steps of one's own: equal to those that come along where they say the same."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from oracle import make_inputs
from pieces import assert_same_state, read_in_pieces

from mnemonist.errors import UserError
from mnemonist.memory import (
    RULES,
    MemoryRule,
    MemoryState,
    add_activation,
    add_objective,
    add_step,
    find_rule,
    initial_weights,
    memorize,
    open_choices,
)
from mnemonist.memory.kernels import native_chunks, native_one_token
from mnemonist.memory.steps import newton_schulz
from mnemonist.models import LanguageModel, NeuralMemory, find_preset


def plain(write, step_size=None):
    step = -(write.step_size if step_size is None else step_size) * write.gradient
    if write.momentum is None:
        return write.kept + step, None
    momentum = write.persistence * write.momentum + step
    return write.kept + momentum, momentum


@pytest.fixture(autouse=True)
def own(monkeypatch):
    """What comes with the package once more, in a user's words; afterwards there is nothing of it."""
    for table in ("OBJECTIVES", "ACTIVATIONS", "STEPS"):
        for name in list(getattr(open_choices, table)):
            monkeypatch.delitem(getattr(open_choices, table), name)
    add_objective("my-l2", lambda y, v: 0.5 * (y - v).square().sum(-1))
    add_objective("my-l2-told", lambda y, v: 0.5 * (y - v).square().sum(-1), lambda y, v: y - v)
    add_objective("my-dot", lambda y, v: -(y * v).sum(-1))
    add_objective("my-huber", lambda y, v: F.huber_loss(y, v, reduction="none", delta=0.7).sum(-1))
    add_activation("my-silu", lambda x: x * torch.sigmoid(x))
    add_step("plain", plain)
    add_step("plain-of-a-window", lambda write: plain(write, 1))  # whose gradients have their step sizes already
    yield
    for table in ("OBJECTIVES", "ACTIVATIONS", "STEPS"):
        getattr(open_choices, table).clear()


DEEP = RULES["titans"].replace(chunk_size=5)
SAME = [
    (DEEP, {"objective": "my-l2"}, "chunked"),
    (DEEP, {"objective": "my-l2-told"}, "chunked"),
    (DEEP.replace(objective="dot"), {"objective": "my-dot"}, "chunked"),
    (DEEP.replace(objective="huber", huber_delta=0.7), {"objective": "my-huber"}, "chunked"),
    (DEEP.replace(window=3), {"objective": "my-l2"}, "chunked"),
    (DEEP.replace(gradient_at="previous"), {"objective": "my-l2"}, "recurrent"),
    (RULES["gated-deltanet"], {"objective": "my-l2"}, "recurrent"),
    (RULES["mamba2"], {"objective": "my-dot"}, "recurrent"),
    (DEEP, {"activation": "my-silu"}, "chunked"),
    (DEEP.replace(depth=3, gradient_at="decayed"), {"activation": "my-silu"}, "recurrent"),
    (DEEP, {"step": "plain"}, "recurrent"),
    (DEEP.replace(window=3), {"step": "plain-of-a-window"}, "recurrent"),
    (RULES["kda"], {"step": "plain"}, "recurrent"),
    (RULES["deltaproduct"], {"step": "plain"}, "recurrent"),
    (DEEP, {"step": "plain", "objective": "my-l2", "activation": "my-silu"}, "recurrent"),
]
same = pytest.mark.parametrize(("rule", "change", "backend"), SAME, ids=lambda x: x if isinstance(x, str) else None)


def wanting(inputs):
    return {
        name: [w.clone().requires_grad_() for w in x] if isinstance(x, list) else x.clone().requires_grad_()
        for name, x in inputs.items()
    }


@same
def test_equals_what_comes_along_with_derivatives(rule, change, backend):
    inputs = make_inputs(rule, T=13)
    found = []
    for which in (rule, rule.replace(**change)):
        given = wanting(inputs)
        read = memorize(which, **given)
        leaves = [x for value in given.values() for x in (value if isinstance(value, list) else [value])]
        scalar = sum((x * torch.linspace(-1, 1, x.numel()).view(x.shape)).sum() for x in (read.y, *read.state.weights))
        found.append((read, torch.autograd.grad(scalar, leaves)))
    (known, known_grads), (read, grads) = found
    assert read.backend == backend
    torch.testing.assert_close(read.y, known.y, rtol=0, atol=1e-11)
    torch.testing.assert_close(read.state.weights, known.state.weights, rtol=0, atol=1e-11)
    torch.testing.assert_close(read.state.momentum, known.state.momentum, rtol=0, atol=1e-11)
    torch.testing.assert_close(read.surprise.loss, known.surprise.loss, rtol=0, atol=1e-11)
    torch.testing.assert_close(read.surprise.gradient_norm, known.surprise.gradient_norm, rtol=0, atol=1e-11)
    for one, other in zip(grads, known_grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@same
def test_any_cut_is_the_whole_and_padding_is_a_no_op(rule, change, backend):
    rule = rule.replace(**change)
    inputs = make_inputs(rule, T=12)
    whole = memorize(rule, **inputs)
    y, state, _ = read_in_pieces(rule, inputs, [1, 6, 1, 4])
    torch.testing.assert_close(y, whole.y, rtol=1e-11, atol=1e-11)
    assert_same_state(state, whole.state, 1e-11)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[0, 3:5], mask[1, :7] = False, False
    padded = memorize(rule, **inputs, mask=mask)
    assert not padded.y[~mask].any()
    for b in range(2):
        alone = {n: x if isinstance(x, list) else x[b : b + 1] for n, x in inputs.items()}
        kept = {
            n: x if isinstance(x, list) else x.unflatten(1, (12, -1))[:, mask[b]].flatten(1, 2)
            for n, x in alone.items()
        }
        torch.testing.assert_close(padded.y[b, mask[b]], memorize(rule, **kept).y[0], rtol=1e-11, atol=1e-11)


@same
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_reads_the_same_without_derivatives(rule, change, backend, mode):
    rule = rule.replace(**change)
    inputs = make_inputs(rule, T=7)
    wanted = memorize(rule, **wanting(inputs))
    with mode():
        read = memorize(rule, **{n: x if isinstance(x, list) else x * 1 for n, x in inputs.items()})
        assert not read.y.requires_grad and not read.y.grad_fn
    torch.testing.assert_close(read.y, wanted.y.detach(), rtol=0, atol=0)


def test_kernels_leave_them_to_torch():
    for change in ({"objective": "my-l2"}, {"activation": "my-silu"}):
        rule = DEEP.replace(**change)
        assert not rule.built_in
        x = torch.randn(1, 1, 2, 4)
        assert not native_chunks.applies(rule, [x])
        weights = initial_weights(rule, 2, 4, 4)
        read = memorize(rule, x, x, x, step_size=x[..., 0].abs(), **gates(x), initial=weights)
        assert not native_one_token.applies(x, x, x, None, weights, read.state)


def gates(x):
    return {"log_momentum": -x[..., 0].abs(), "log_decay": -x[..., 0].abs()}


def test_a_step_is_given_what_it_is_told_of():
    """By the entropic step of Memora (arXiv 2504.13173): columns stay distributions, and forgetting bends them."""

    def entropic(write):
        assert write.retention.shape == (2, 2, 5, 1) and write.step_size.shape == (2, 2, 1, 1)
        assert write.gradient.shape == write.weights.shape == (2, 2, 5, 5)
        torch.testing.assert_close(write.kept, write.retention * write.weights)
        assert write.momentum is None and write.persistence is None
        return (write.retention * write.weights.log() - write.step_size * write.gradient).softmax(-2), None

    add_step("entropic", entropic)
    rule = MemoryRule(step="entropic", retention="channel")
    inputs = make_inputs(rule, T=6) | {"initial": [torch.full((2, 5, 5), 0.2, dtype=torch.float64)]}
    read = memorize(rule, **inputs)
    M = inputs["initial"][0].expand(2, 2, 5, 5)
    for t in range(6):
        k, v = inputs["k"][:, t, :, None], inputs["v"][:, t, :, None]
        gradient = k.mT @ (k @ M - v)
        a = inputs["log_decay"][:, t].exp()[..., None]
        M = F.softmax(a * M.log() - inputs["step_size"][:, t, :, None, None] * gradient, dim=-2)
    torch.testing.assert_close(read.state.weights[0], M, rtol=0, atol=1e-12)
    torch.testing.assert_close(M.sum(-2), torch.ones(2, 2, 5, dtype=torch.float64))


def test_fresh_weights_of_an_own_activation_have_variance_one():
    add_activation("cube", lambda x: x**3)
    rule = MemoryRule(name="cubes", depth=2, activation="cube", gradient_at="chunk")
    first, second = initial_weights(rule, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    keys = F.normalize(torch.randn(4, 500, 64, generator=torch.Generator().manual_seed(1)), dim=-1)
    hidden = (keys @ first) ** 3
    assert 0.9 < float((hidden @ second).var()) < 1.1
    assert open_choices.ACTIVATIONS["cube"].gain == pytest.approx(15**-0.5, rel=1e-6)  # E z^6 = 15


def test_an_objective_that_ignores_what_is_far_off():
    """A memory that disbelieves outliers ends nearer to the truth."""
    add_objective("welsch", lambda y, v: (1 - torch.exp(-0.5 * (y - v) ** 2)).sum(-1))
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(8, 8, generator=generator)
    k = F.normalize(torch.randn(1, 400, 1, 8, generator=generator), dim=-1)
    v = k @ truth
    outliers = torch.rand(1, 400, 1, 1, generator=generator) < 0.1
    v = torch.where(outliers, 10 * torch.randn(v.shape, generator=generator), v)
    far = {}
    for objective in ("l2", "huber", "welsch"):
        rule = MemoryRule(objective=objective)
        read = memorize(rule, k, k, v, step_size=torch.full((1, 400, 1), 0.5))
        far[objective] = float((read.state.weights[0][0, 0] - truth).norm() / truth.norm())
    assert far["welsch"] < 0.5 * far["huber"] < 0.5 * far["l2"]


def test_a_layer_and_a_model_learn_with_them_and_are_saved_by_name(tmp_path):
    torch.manual_seed(0)
    rule = "titans:objective=my-huber,activation=my-silu,chunk_size=8"
    model = LanguageModel(find_preset("mag-tiny").replace(rule=rule, width=16, heads=2, head_dim=8, memory_heads=2))
    ids = torch.randint(0, 256, (2, 40))
    loss = F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.save(tmp_path)
    again = LanguageModel.load(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    layer = NeuralMemory(16, 2, 8, "titans:step=plain")
    y, state, _ = layer(torch.randn(1, 9, 16))
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters() if p.grad is not None)
    state.save(tmp_path / "layer.safetensors")
    assert_same_state(layer.load_state(tmp_path / "layer.safetensors").memory, state.memory, 0)


def test_whoever_loads_what_was_saved_must_have_added_it(tmp_path):
    rule = DEEP.replace(objective="my-l2")
    memorize(rule, **make_inputs(rule, T=3)).state.save(tmp_path / "state.safetensors")
    open_choices.OBJECTIVES.clear()
    with pytest.raises(UserError, match=r"objective is 'my-l2'.*add one of your own first, with add_objective"):
        MemoryState.load(tmp_path / "state.safetensors")


def test_the_command_line_knows_what_a_script_adds(tmp_path):
    script = tmp_path / "ideas.py"
    script.write_text(
        textwrap.dedent("""
        import sys
        import torch
        from mnemonist.cli import main
        from mnemonist.memory import add_objective

        add_objective("welsch", lambda y, v: (1 - torch.exp(-0.5 * (y - v) ** 2)).sum(-1))
        sys.exit(main())
        """)
    )
    (tmp_path / "text.txt").write_text("abcdefgh " * 400)
    sizes = "--model.rule titans:objective=welsch,chunk_size=8 --training.steps 2 --training.row-length 32"
    run = f"train --data {tmp_path / 'text.txt'} --out {tmp_path / 'run'} --training.batch-size 2 {sizes}"
    done = subprocess.run([sys.executable, script, *run.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    without = subprocess.run(
        [sys.executable, "-m", "mnemonist", "read", tmp_path / "text.txt", "--model", tmp_path / "run"],
        capture_output=True,
        text=True,
    )
    assert without.returncode and "Traceback" not in without.stderr
    assert "add_objective" in without.stderr


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: add_objective("l2", torch.sub), "objective 'l2' comes with the package; take another name"),
        (lambda: add_step("orthogonal", plain), "step 'orthogonal' comes with the package"),
        (lambda: add_activation("a b", torch.relu), "'a b' cannot be the name of an activation"),
        (lambda: add_activation("nothing", lambda x: 0 * x), "'nothing' gives zeros alone"),
        (lambda: add_activation("wild", lambda x: 1 / (x - x)), "or numbers that are not finite"),
        (lambda: MemoryRule(objective="welch"), "add one of your own first, with add_objective of mnemonist.memory"),
        (lambda: find_rule("titans:step=plane"), "did you mean 'plain'"),
        (lambda: RULES["linear-attention"].replace(step="plain"), "step plain and a denominator exclude each other"),
    ],
)
def test_mistakes_are_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_loss_of_another_shape_is_told():
    add_objective("unsummed", lambda y, v: (y - v) ** 2)
    rule = DEEP.replace(objective="unsummed")
    with pytest.raises(ValueError, match=r"must be\s+summed over the last dimension alone"):
        memorize(rule, **make_inputs(rule, T=3))


def test_what_is_added_again_is_replaced():
    add_objective("my-l2", lambda y, v: 0 * (y - v).sum(-1))
    rule = DEEP.replace(objective="my-l2")
    assert not memorize(rule, **make_inputs(rule, T=3)).surprise.gradient_norm.any()


@pytest.mark.parametrize("shape", [(4, 4), (8, 32), (32, 8), (2, 3, 5, 7)])
def test_orthogonal_steps_go_as_far_in_every_direction(shape):
    gradient = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = newton_schulz(gradient)
    U, s, V = torch.linalg.svd(gradient, full_matrices=False)
    inside = U.mT @ step @ V.mT
    levels = inside.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(inside, torch.diag_embed(levels))  # directions stay
    assert (levels[s > 0.02 * s.amax(-1, keepdim=True)] > 0.6).all() and (levels < 1.25).all()
    torch.testing.assert_close(newton_schulz(100 * gradient), step)
    nothing = torch.zeros(3, 2, requires_grad=True)
    newton_schulz(nothing).sum().backward()
    assert not newton_schulz(nothing).any() and nothing.grad.isfinite().all()
