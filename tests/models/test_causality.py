"""No token knows what comes after it: bit for bit, and by exact zeros in the gradient."""

from __future__ import annotations

import pytest
import torch
from streams import WIDTH, read, readers, small_model

from mnemonist.models import BLOCKS


@pytest.mark.parametrize("name", list(readers()))
@pytest.mark.parametrize("t", [0, 1, 4, 5, 11, 22])
def test_a_changed_token_changes_nothing_before_it(name, t):
    reader = readers(torch.float32)[name]
    x = torch.randn(2, 23, WIDTH, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, t] += 1
    before, after = read(reader, x)[0], read(reader, changed)[0]
    assert torch.equal(before[:, :t], after[:, :t])
    assert not torch.equal(before[:, t:], after[:, t:])


@pytest.mark.parametrize("kind", list(BLOCKS))
@pytest.mark.parametrize("t", [0, 4, 5, 13])
def test_gradients_do_not_come_from_the_future(kind, t):
    model = small_model(blocks=(kind, kind))
    seen = {}
    model.embedding.register_forward_hook(lambda *a: seen.__setitem__("x", a[2].requires_grad_()) or a[2].retain_grad())
    tokens = torch.randint(0, 17, (1, 20), generator=torch.Generator().manual_seed(0))
    model(tokens).logits[:, t].square().sum().backward()
    gradient = seen["x"].grad[0]
    assert torch.equal(gradient[t + 1 :], torch.zeros_like(gradient[t + 1 :]))
    first = max(0, t - 2 * (model.config.window - 1)) if kind == "window" else 0  # two layers see two windows
    assert bool((gradient[first : t + 1] != 0).any(-1).all())


def test_what_a_memory_read_long_ago_still_matters():
    """Far behind the window and the convolution, only the memory can carry it."""
    model = small_model(blocks=("mag",))
    tokens = torch.randint(0, 17, (1, 40), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 2] = (tokens[0, 2] + 1) % 17
    assert not torch.equal(model(tokens).logits[:, 30:], model(changed).logits[:, 30:])
    assert torch.equal(model(tokens, learn=False).logits[:, 30:], model(changed, learn=False).logits[:, 30:])
