"""What a language model is trained on: the mean over true targets, of rows that follow from the step alone."""

from __future__ import annotations

import dataclasses
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mnemonist.data import IGNORED, ByteTokenizer, Document
from mnemonist.errors import UserError
from mnemonist.models import LanguageModel, ModelConfig
from mnemonist.training import TrainingConfig
from mnemonist.training.language import Rows, next_token_loss, packed_batches

BOS = ByteTokenizer.bos_id
DOCUMENTS = [Document(str(n), bytes((17 * n + i) % 256 for i in range(50 + 30 * n))) for n in range(6)]
CONFIG = TrainingConfig(batch_size=8, row_length=12, seed=3)


class Told(nn.Module):
    """A model that says what it is told, whatever it reads."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.read: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, tokens: torch.Tensor, *, starts: torch.Tensor) -> SimpleNamespace:
        self.read.append((tokens, starts))
        return SimpleNamespace(logits=self.logits)


def rows(tokens: list[list[int]], targets: list[list[int]], starts: list[list[bool]]) -> Rows:
    return {"tokens": torch.tensor(tokens), "targets": torch.tensor(targets), "starts": torch.tensor(starts)}


def test_the_loss_by_hand():
    """Three symbols with weights 1, 2 and 5 everywhere: the target alone decides what is paid."""
    weights = [1.0, 2.0, 5.0]
    model = Told(torch.log(torch.tensor(weights)).repeat(2, 3, 1))
    batch = rows([[0, 1, 2], [2, 2, 2]], [[1, 2, IGNORED], [0, IGNORED, 2]], [[True, False, False], [False] * 3])
    part = next_token_loss(model, batch)
    expected = -sum(math.log(w / 8) for w in (2, 5, 1, 5))
    assert part.loss.item() == pytest.approx(expected, rel=1e-6)
    assert part.targets == 4
    part.loss.backward()
    gradient = model.logits.grad
    assert gradient is not None
    share = torch.tensor(weights) / 8  # softmax less one at the target; nothing where there is none
    assert torch.allclose(gradient[0, 0], share - torch.tensor([0.0, 1.0, 0.0]))
    assert torch.allclose(gradient[1, 0], share - torch.tensor([1.0, 0.0, 0.0]))
    assert torch.equal(gradient[0, 2], torch.zeros(3))
    assert torch.equal(gradient[1, 1], torch.zeros(3))
    ((tokens, starts),) = model.read
    assert torch.equal(tokens, batch["tokens"])
    assert torch.equal(starts, batch["starts"])


def test_a_batch_without_targets_costs_nothing():
    model = Told(torch.zeros(1, 2, 3))
    part = next_token_loss(model, rows([[0, 1]], [[IGNORED, IGNORED]], [[False, False]]))
    part.loss.backward()
    assert (part.loss.item(), part.targets) == (0.0, 0)
    assert torch.equal(model.logits.grad, torch.zeros(1, 2, 3))  # and not NaN, as a mean would be


def test_half_precision_logits_are_summed_in_full():
    """Four thousand bytes at a loss of two: bfloat16 would be off by dozens of nats."""
    torch.manual_seed(0)
    logits = torch.randn(1, 4096, 8).bfloat16()
    batch = rows([[0] * 4096], [[i % 8 for i in range(4096)]], [[False] * 4096])
    part = next_token_loss(Told(logits), batch)
    exact = next_token_loss(Told(logits.double()), batch)
    assert part.loss.dtype == torch.float32
    assert part.loss.item() == pytest.approx(exact.loss.item(), rel=1e-5)


def test_documents_packed_in_a_row_cost_what_they_cost_apart():
    """The loop sees packed rows; what it sums is what each piece of text costs read from its own beginning."""
    torch.manual_seed(0)
    sizes = {"width": 8, "heads": 2, "head_dim": 4, "memory_heads": 2, "memory_head_dim": 4, "mlp_width": 8}
    model = LanguageModel(ModelConfig(blocks=("mag", "window"), window=4, **sizes)).double()
    batch = packed_batches(DOCUMENTS, dataclasses.replace(CONFIG, row_length=90))(0, 0, 0, 1)
    assert batch["starts"][:, 1:].any()
    total = 0.0
    for tokens, targets, starts in zip(batch["tokens"], batch["targets"], batch["starts"], strict=True):
        edges = [0, *(t for t in range(1, 90) if starts[t]), 90]
        for a, b in itertools.pairwise(edges):
            log_p = torch.log_softmax(model(tokens[None, a:b]).logits[0].detach(), -1)
            total -= sum(float(log_p[i, targets[a + i]]) for i in range(b - a) if targets[a + i] != IGNORED)
    part = next_token_loss(model, batch)
    assert part.loss.item() == pytest.approx(total, rel=1e-5)
    assert part.targets == int((batch["targets"] != IGNORED).sum())


def test_targets_are_the_next_tokens_and_never_a_new_document():
    batch_of = packed_batches(DOCUMENTS, CONFIG)
    texts = {bytes(document.text) for document in DOCUMENTS}
    for step in range(12):
        batch = batch_of(step, 0, 0, 1)
        assert {name: (t.dtype, t.shape) for name, t in batch.items()} == {
            "tokens": (torch.int64, (8, 12)),
            "targets": (torch.int64, (8, 12)),
            "starts": (torch.bool, (8, 12)),
        }
        assert torch.equal(batch["starts"], batch["tokens"] == BOS)
        follows = batch["tokens"][:, 1:]
        expected = torch.where(follows == BOS, IGNORED, follows)
        assert torch.equal(batch["targets"][:, :-1], expected)
        for row in batch["tokens"].tolist():
            words = "".join(map(chr, row)).split(chr(BOS))
            assert all(any(word.encode("latin-1") in text for text in texts) for word in words)


def same(one: Rows, other: Rows) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_batch_follows_from_the_step_alone():
    """In any order, again, from a new start, and whatever was done with the tensors of earlier ones."""
    batch_of = packed_batches(DOCUMENTS, CONFIG)
    forwards = [batch_of(step, 0, 0, 1) for step in range(10)]
    kept = [{name: t.clone() for name, t in batch.items()} for batch in forwards]
    for batch in forwards:
        batch["tokens"].zero_()
        batch["targets"].fill_(-1)
    for again in (batch_of, packed_batches(iter(DOCUMENTS), CONFIG)):
        assert all(same(again(step, 0, 0, 1), kept[step]) for step in reversed(range(10)))
    torch.manual_seed(5)
    assert same(packed_batches(DOCUMENTS, CONFIG)(7, 0, 0, 1), kept[7])
    assert not same(kept[0], kept[1])
    other = packed_batches(DOCUMENTS, dataclasses.replace(CONFIG, seed=4))
    assert not same(other(0, 0, 0, 1), kept[0])


@pytest.mark.parametrize(("accumulation", "world"), [(1, 1), (2, 1), (8, 1), (1, 2), (2, 2), (4, 2), (1, 8)])
def test_however_a_step_is_shared_its_rows_are_the_same(accumulation, world):
    whole = packed_batches(DOCUMENTS, CONFIG)
    config = dataclasses.replace(CONFIG, accumulation=accumulation)
    shared = packed_batches(DOCUMENTS, config)
    for step in (0, 1, 5, 40):
        parts = [shared(step, micro, rank, world) for micro in range(accumulation) for rank in range(world)]
        assert {len(part["tokens"]) for part in parts} == {8 // (accumulation * world)}
        together = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        assert same(together, whole(step, 0, 0, 1))


def test_too_little_text_is_refused():
    with pytest.raises(UserError, match="the corpus has 6 tokens, and one row takes 13"):
        packed_batches([Document("short", b"hello")], CONFIG)
