"""A model as it is used: what follows from weights alone is made once, and never outlives the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mnemonist.evaluating import at_rest, evaluating, made_once
from mnemonist.models import LanguageModel, ModelConfig


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))
        self.made = 0

    def double(self) -> torch.Tensor:
        def make() -> torch.Tensor:
            self.made += 1
            return 2 * self.weight

        return made_once(self, "double", make)


@torch.no_grad()
def test_it_is_made_once_for_each_layer_and_each_while():
    one, other = Layer(), Layer()
    one.double(), one.double()
    assert one.made == 2  # nobody said that weights stay
    for while_ in (at_rest(), evaluating(one)):
        one.made = other.made = 0
        with while_:
            assert one.double() is one.double() is not other.double()
        assert (one.made, other.made) == (1, 1)


@torch.no_grad()
def test_weights_that_changed_between_two_whiles_are_met():
    layer = Layer()
    with at_rest():
        assert layer.double() == 2
        layer.weight.data.fill_(5)
        with at_rest():  # one within another begins with nothing too
            assert layer.double() == 10
        assert layer.double() == 2  # what the outer one was told not to look at
    with at_rest():
        assert layer.double() == 10


def test_where_derivatives_are_wanted_nothing_is_kept():
    layer = Layer()
    with at_rest():
        layer.double().backward()
        layer.double().backward()
    assert layer.weight.grad == 4


@pytest.mark.parametrize("raised", [None, KeyboardInterrupt])
def test_the_mode_comes_back(raised):
    model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2)).train()
    model[1].eval()
    try:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            if raised:
                raise raised
    except KeyboardInterrupt:
        pass
    assert [module.training for module in model.modules()] == [True, True, False]


@pytest.mark.parametrize("kind", ["mag", "mac", "window", "attention"])
def test_a_model_at_rest_writes_what_it_wrote(kind):
    torch.manual_seed(0)
    config = ModelConfig(blocks=(kind,), width=16, heads=2, head_dim=8, memory_heads=2, memory_head_dim=8, window=4)
    model = LanguageModel(config).double().eval()
    ids = torch.randint(0, 259, (2, 9))

    @torch.inference_mode()
    def written() -> torch.Tensor:
        state, logits = None, []
        for t in range(9):
            read = model(ids[:, t : t + 1], state)
            state = read.state
            logits.append(read.logits)
        return torch.cat(logits, 1)

    plain = written()
    with at_rest():
        assert torch.equal(written(), plain)
