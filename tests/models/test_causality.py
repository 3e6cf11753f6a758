"""No token knows what comes after it: bit for bit, and by exact zeros in the gradient."""

from __future__ import annotations

import pytest
import torch
from streams import WIDTH, read, read_in_pieces, readers, small_model

from mnemonist.memory import RULES
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


MASK = torch.ones(2, 23, dtype=torch.bool)
MASK[0, :3] = False  # padding on the left,
MASK[1, 8:12] = False  # and in the middle
PLACES = {"whole": ([23], None), "cut": ([7, 1, 6, 9], None), "cut and padded": ([7, 1, 6, 9], MASK)}


@pytest.mark.parametrize("place", list(PLACES))
@pytest.mark.parametrize(
    ("kind", "rule"),
    [(kind, rule) for kind in BLOCKS for rule in RULES if BLOCKS[kind].memory or rule == "titans"],
)
def test_no_leak_in_any_variant_under_any_rule(kind, rule, place):
    """Logits before a changed token, to the bit; and what a loss owes to later embeddings, exactly nothing."""
    lengths, mask = PLACES[place]
    change = rule if rule not in ("titans", "ttt-mlp") else f"{rule}:expansion=2,chunk_size=5"
    model = small_model(torch.float32, blocks=(kind, kind), rule=change)
    tokens = torch.randint(0, 17, (2, 23), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        clean = read_in_pieces(model, tokens, lengths, mask)[0]
        for t in (5, 13, 22):
            changed = tokens.clone()
            changed[:, t] = (tokens[:, t] + 1) % 17
            found = read_in_pieces(model, changed, lengths, mask)[0]
            assert torch.equal(found[:, :t], clean[:, :t])
            assert not torch.equal(found[:, t:], clean[:, t:])
    seen: list[torch.Tensor] = []
    model.embedding.register_forward_hook(lambda *a: seen.append(a[2].requires_grad_()) or a[2].retain_grad())
    t = 13
    read_in_pieces(model, tokens, lengths, mask)[0][:, t].square().sum().backward()
    gradient = torch.cat([x.grad if x.grad is not None else torch.zeros_like(x) for x in seen], 1)
    assert not gradient[:, t + 1 :].any()
    assert gradient[:, t].any(-1).all()
