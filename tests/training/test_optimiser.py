"""AdamW steps by its formula, shrinks matrices only, and its state survives a journey by name."""

import math

import pytest
import torch
from torch import nn

from mnemonist.errors import UserError
from mnemonist.training.configuration import TrainingConfig
from mnemonist.training.optimiser import decays, load_optimiser_tensors, make_optimiser, optimiser_tensors

CONFIG = TrainingConfig(learning_rate=0.1, weight_decay=0.5, betas=(0.8, 0.9))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(4, 3)
        self.norm = nn.LayerNorm(3)
        self.head = nn.Linear(3, 4)
        self.first_state = nn.Parameter(torch.randn(2, 3))
        self.first_state._no_weight_decay = True  # type: ignore[attr-defined]
        self.frozen = nn.Parameter(torch.randn(3, 3), requires_grad=False)
        self.unused = nn.Parameter(torch.randn(3, 3))


def take_steps(model: Model, optimiser: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimiser.zero_grad()
        x = model.norm(model.embedding(torch.tensor([step % 4, 1]))) + model.first_state
        model.head(x).square().sum().backward()
        optimiser.step()


def test_only_matrices_that_do_not_opt_out_decay() -> None:
    names = {name for name, parameter in Model().named_parameters() if decays(parameter)}
    assert names == {"embedding.weight", "head.weight", "frozen", "unused"}


def test_groups_hold_what_is_trained_once() -> None:
    model = Model()
    optimiser = make_optimiser(model, CONFIG)
    shrinking, free = optimiser.param_groups
    assert (shrinking["weight_decay"], free["weight_decay"]) == (0.5, 0.0)
    assert [id(p) for p in shrinking["params"]] == [
        id(p) for p in (model.unused, model.embedding.weight, model.head.weight)
    ]
    assert len(free["params"]) == 4  # scale and bias of the norm, bias of the head, first state


def test_one_step_by_hand() -> None:
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 2.0)
    nn.init.constant_(model.bias, 2.0)
    optimiser = make_optimiser(model, CONFIG)
    (3 * model.weight.sum() + 3 * model.bias.sum()).backward()
    optimiser.step()
    # After the first step both bias-corrected moments are the gradient itself: a step of one learning rate.
    assert model.weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1)
    assert model.bias.item() == pytest.approx(2.0 - 0.1)
    moments = optimiser_tensors(optimiser, model)
    assert moments["weight.exp_avg"].item() == pytest.approx(0.2 * 3)
    assert moments["bias.exp_avg_sq"].item() == pytest.approx(0.1 * 9)
    assert moments["bias.step"].item() == 1


def test_state_goes_round_exactly() -> None:
    straight, broken = Model(), Model()
    first = make_optimiser(straight, CONFIG)
    take_steps(straight, first, range(6))

    before = make_optimiser(broken, CONFIG)
    take_steps(broken, before, range(3))
    tensors = {name: tensor.clone() for name, tensor in optimiser_tensors(before, broken).items()}
    assert not any(name.startswith(("frozen", "unused")) for name in tensors)
    after = make_optimiser(broken, CONFIG)
    load_optimiser_tensors(after, broken, tensors)
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    take_steps(broken, after, range(3, 6))

    for name, parameter in straight.named_parameters():
        assert torch.equal(parameter, broken.get_parameter(name)), name
    assert all(torch.equal(tensors[name], kept[name]) for name in kept), "loading must copy"
    left, right = optimiser_tensors(first, straight), optimiser_tensors(after, broken)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_state_of_another_model_is_refused_and_nothing_changes() -> None:
    model = Model()
    optimiser = make_optimiser(model, CONFIG)
    take_steps(model, optimiser, range(1))
    tensors = {name: tensor.clone() for name, tensor in optimiser_tensors(optimiser, model).items()}
    cases = [
        ({**tensors, "tail.weight.exp_avg": torch.zeros(1)}, "has 'tail.weight.exp_avg'"),
        ({**tensors, "head.bias.exp_avg": torch.zeros(5)}, "'head.bias'"),
        ({k: v for k, v in tensors.items() if k != "head.bias.step"}, "'head.bias' lacks step"),
    ]
    for wrong, message in cases:
        with pytest.raises(UserError, match=message):
            load_optimiser_tensors(optimiser, model, wrong)
    assert all(torch.equal(t, tensors[name]) for name, t in optimiser_tensors(optimiser, model).items())


def test_foreign_parameters_and_nothing_to_train_are_refused() -> None:
    with pytest.raises(ValueError, match="not the model's"):
        optimiser_tensors(make_optimiser(Model(), CONFIG), Model())
    with pytest.raises(UserError, match="nothing to train"):
        make_optimiser(Model().requires_grad_(False), CONFIG)


def test_a_model_of_vectors_alone_has_one_group() -> None:
    optimiser = make_optimiser(nn.LayerNorm(2), CONFIG)
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.0]
    assert math.isclose(optimiser.param_groups[0]["lr"], 0.1)
