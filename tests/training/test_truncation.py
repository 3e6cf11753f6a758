"""Rows longer than memory allows: the forward pass is that of the whole row, the graph is that of a piece."""

from __future__ import annotations

import dataclasses
import gc
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnemonist.data import Document
from mnemonist.errors import UserError
from mnemonist.models import BLOCKS, LanguageModel, ModelConfig
from mnemonist.training import TrainingConfig, train
from mnemonist.training.gradients import LossSum, loss_parts
from mnemonist.training.language import Rows, next_token_loss, packed_batches, truncated_next_token_loss

DOCUMENTS = [Document(str(n), bytes((17 * n + i * i) % 256 for i in range(20 + 41 * n))) for n in range(6)]
SMALL = ModelConfig(
    rule="titans:chunk_size=5,expansion=1", width=8, heads=2, head_dim=4, memory_heads=2, memory_head_dim=4,
    mlp_width=8, window=4,
)  # fmt: skip
CONFIG = TrainingConfig(batch_size=2, row_length=64, seed=3, device="cpu")


def model_of(*blocks: str, dtype: torch.dtype = torch.float64) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(SMALL.replace(blocks=blocks)).to(dtype)


def batch(length: int = 64) -> Rows:
    rows = packed_batches(DOCUMENTS, dataclasses.replace(CONFIG, row_length=length))(0, 0, 0, 1)
    assert rows["starts"][:, 1:].any(), "documents must begin within the rows"
    return rows


def differentiated(model: nn.Module, truncation: int | None, rows: Rows) -> tuple[float, int, list[Tensor]]:
    model.zero_grad()
    loss = targets = 0
    for part in loss_parts(truncated_next_token_loss(truncation), model, rows):
        part.loss.backward()
        loss, targets = loss + part.loss.item(), targets + part.targets
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    return loss, targets, gradients


@pytest.mark.parametrize("truncation", [1, 7, 16, 50])
@pytest.mark.parametrize("kind", list(BLOCKS))
def test_the_loss_is_that_of_the_whole_row(kind, truncation):
    model, rows = model_of(kind, kind), batch()
    whole = next_token_loss(model, rows)
    loss, targets, _ = differentiated(model, truncation, rows)
    assert loss == pytest.approx(whole.loss.item(), rel=1e-6)  # losses are summed in float32
    assert targets == whole.targets


@pytest.mark.parametrize("kind", ["mag", "mac"])
def test_gradients_are_those_of_each_piece(kind):
    """By hand: logits of a piece, from a state whose history is forgotten."""
    model, rows = model_of(kind, "lmm"), batch()
    _, _, found = differentiated(model, 24, rows)
    model.zero_grad()
    state = None
    for begin in (0, 24, 48):
        piece = slice(begin, begin + 24)
        output = model(rows["tokens"][:, piece], state, starts=rows["starts"][:, piece])
        F.cross_entropy(
            output.logits.flatten(0, 1).float(), rows["targets"][:, piece].flatten(), reduction="sum"
        ).backward()
        tensors = {name: tensor.detach() for name, tensor in output.state.to_tensors().items()}
        state = output.state.rebuilt(tensors)
    expected = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    whole = differentiated(model, None, rows)[2]
    assert max((a - b).abs().max() for a, b in zip(found, whole, strict=True)) > 1e-4, "the cut must be felt"


def test_one_piece_is_no_truncation():
    model, rows = model_of("mag", "mac"), batch()
    for truncation in (64, None):
        loss, _, gradients = differentiated(model, truncation, rows)
        whole = next_token_loss(model, rows)
        model.zero_grad()
        whole.loss.backward()
        assert loss == whole.loss.item()
        assert all(torch.equal(a, p.grad) for a, p in zip(gradients, model.parameters(), strict=True))


class Living:
    """Bytes that autograd holds at the same time, at most."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def pack(self, tensor: Tensor) -> SimpleNamespace:
        held = SimpleNamespace(tensor=tensor, watch=_Watch(self, tensor.nbytes))
        self.now += tensor.nbytes
        self.most = max(self.most, self.now)
        return held


class _Watch:
    def __init__(self, living: Living, size: int) -> None:
        self.living, self.size = living, size

    def __del__(self) -> None:
        self.living.now -= self.size


@pytest.mark.parametrize("kind", ["lmm", "mag", "mac", "mal"])
def test_what_is_held_does_not_grow_with_the_row(kind):
    model = model_of(kind, dtype=torch.float32)
    most = {}
    for length in (64, 256):
        for truncation in (32, None):
            living = Living()
            with torch.autograd.graph.saved_tensors_hooks(living.pack, lambda held: held.tensor):
                differentiated(model, truncation, batch(length))
            gc.collect()
            most[length, truncation] = living.most
    assert most[256, None] > 2.5 * most[64, None]
    assert most[256, 32] < 1.5 * most[64, 32]


def test_a_run_is_cut_and_resumed_alike(tmp_path):
    """Three ways to one run: at once, interrupted, and in more micro-batches."""
    config = dataclasses.replace(CONFIG, steps=4, warmup_steps=1, truncation=24, log_every=1, save_every=2)

    def run(name: str, config: TrainingConfig, **more: object) -> list[Tensor]:
        model = model_of("mag", "mac", dtype=torch.float64)
        loss_of = truncated_next_token_loss(config.truncation)
        train(model, packed_batches(DOCUMENTS, config), loss_of, config, tmp_path / name, progress=False, **more)
        return [parameter.detach() for parameter in model.parameters()]

    whole = run("whole", config)
    with pytest.raises(ZeroDivisionError):
        run("cut", config, on_step=lambda metrics: 1 / (2 - metrics.step))  # fails at the second, before it is saved
    with pytest.raises(ZeroDivisionError):
        run("cut again", config, on_step=lambda metrics: 1 / (3 - metrics.step))  # and here behind a checkpoint
    again = run("cut again", config, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(again, whole, strict=True))
    smaller = run("smaller", dataclasses.replace(config, accumulation=2))
    torch.testing.assert_close(smaller, whole, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("truncation", "sentence"), [(0, "truncation is 0"), (65, "a row has only 64 tokens")])
def test_impossible_truncations(truncation, sentence):
    with pytest.raises(UserError, match=sentence):
        dataclasses.replace(CONFIG, truncation=truncation)


def test_a_loss_of_other_pieces_is_refused(tmp_path):
    config = dataclasses.replace(CONFIG, steps=1, warmup_steps=0, truncation=32)
    for loss_of in (next_token_loss, truncated_next_token_loss(16)):
        with pytest.raises(UserError, match="must give 2 part"):
            train(
                model_of("lmm"), packed_batches(DOCUMENTS, config), loss_of, config, tmp_path / str(loss_of)[-6:-1],
                progress=False,
            )  # fmt: skip


def test_a_model_without_a_state_is_refused():
    class Forgetful(nn.Module):
        def forward(self, tokens: Tensor, *, starts: Tensor, state: object = None) -> SimpleNamespace:
            return SimpleNamespace(logits=torch.zeros(*tokens.shape, 259, requires_grad=True))

    parts = loss_parts(truncated_next_token_loss(16), Forgetful(), batch())
    assert isinstance(next(parts), LossSum)
    with pytest.raises(UserError, match="needs a model that goes on from a state"):
        next(parts)
