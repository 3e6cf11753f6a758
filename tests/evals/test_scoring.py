"""A model is right where its own logits say so, in pieces or at once."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from mnemonist.data import IGNORED
from mnemonist.evals import scoring
from mnemonist.evals.associative_recall import AssociativeRecall
from mnemonist.evals.lessons import answer_loss, lesson_batches, take_turns
from mnemonist.evals.problems import Problems, draw
from mnemonist.evals.scoring import score
from mnemonist.models import LanguageModel, ModelConfig
from mnemonist.training import LossSum, TrainingConfig

TASK = AssociativeRecall(vocabulary=32, longest=64, trained=64)
CONFIG = ModelConfig(
    blocks=("lmm", "attention"), rule="deltanet", vocab_size=32, width=16, heads=2, head_dim=8, memory_heads=2,
    memory_head_dim=8, mlp_width=16,
)  # fmt: skip


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LanguageModel(CONFIG).eval()


def by_hand(model, problems):
    right, bits = [], []
    for tokens, targets in zip(problems.tokens, problems.targets, strict=True):
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens)[None]).logits[0].double()
        asked = np.flatnonzero(targets != IGNORED)
        right.append(sum(int(logits[t].argmax()) == targets[t] for t in asked))
        bits.append(sum(-float(logits[t].log_softmax(-1)[targets[t]]) / np.log(2) for t in asked))
    return right, bits


@pytest.mark.parametrize(("piece", "tokens"), [(4096, 32768), (7, 32768), (16, 40), (1, 1)])
def test_scores_are_those_of_the_whole_forward_however_it_is_cut(model, piece, tokens, monkeypatch):
    monkeypatch.setattr(scoring, "PIECE", piece)
    monkeypatch.setattr(scoring, "TOKENS", tokens)
    problems = draw(TASK, {"length": 40, "pairs": 6}, 5)
    # Some answers are made right, so that the count is not of chance alone.
    with torch.no_grad():
        likely = model(torch.from_numpy(problems.tokens)).logits.argmax(-1).numpy()
    asked = problems.targets != IGNORED
    problems.targets[:3][asked[:3]] = likely[:3][asked[:3]]
    read = []
    scores = score(model, problems, read.append)
    right, bits = by_hand(model, problems)
    assert scores.right.tolist() == right and scores.asked.tolist() == [6] * 5
    assert scores.problems.tolist()[:3] == [True] * 3
    assert scores.tokens == pytest.approx(np.array(right) / 6)
    np.testing.assert_allclose(scores.bits, bits, rtol=1e-5)
    assert sum(read) <= problems.tokens.size


def test_what_stands_behind_the_last_question_is_not_read(model):
    problems = draw(TASK, {"length": 40, "pairs": 6}, 2)
    longer = Problems(
        np.concatenate([problems.tokens, np.full((2, 500), 3)], 1),
        np.concatenate([problems.targets, np.full((2, 500), IGNORED)], 1),
    )
    read = []
    assert score(model, longer, read.append).bits == pytest.approx(score(model, problems).bits)
    assert sum(read) <= problems.tokens.size


def test_the_loss_is_the_mean_of_the_bits_that_scoring_finds(model):
    config = TrainingConfig(steps=4, warmup_steps=0, batch_size=4, row_length=64)
    batch = lesson_batches(TASK, config)(2, 0, 0, 1)
    loss = answer_loss(model, batch)
    scores = score(model, Problems(batch["tokens"].numpy(), batch["targets"].numpy()))
    assert loss.targets == scores.asked.sum()
    assert float(loss.loss.detach()) / np.log(2) == pytest.approx(scores.bits.sum(), rel=1e-5)


def test_lessons_take_turns_and_processes_share_a_batch():
    config = TrainingConfig(steps=9, warmup_steps=0, batch_size=4, row_length=64)
    task = AssociativeRecall(vocabulary=256, longest=128, trained=128, lessons_from="grid")
    batch_of = lesson_batches(task, config)
    lengths = [batch_of(step, 0, 0, 1)["tokens"].shape[1] for step in range(8)]
    assert sorted(lengths[:4]) == sorted(lengths[4:]) == [64, 64, 64, 128]
    again = lesson_batches(task, config)(3, 0, 0, 1)["tokens"]
    assert torch.equal(again, batch_of(3, 0, 0, 1)["tokens"])
    halves = [batch_of(3, 0, rank, 2)["tokens"] for rank in range(2)]
    assert torch.equal(torch.cat(halves), again)
    steps = torch.cat([batch_of(step, 0, 0, 1)["tokens"][:, :64] for step in range(8)])
    assert len({row.numpy().tobytes() for row in steps}) == 32  # nothing is seen twice


def test_parts_take_turns_and_each_goes_on_where_it_was(model):
    config = TrainingConfig(steps=9, warmup_steps=0, batch_size=4, row_length=64)
    one, other = lesson_batches(TASK, config), lesson_batches(TASK, dataclasses.replace(config, seed=5))
    batch_of, loss_of = take_turns([(one, answer_loss), (other, lambda model, rows: LossSum(torch.tensor(2.0), 1))])
    for step in range(6):
        turn, rows = batch_of(step, 0, 0, 1)
        assert turn == step % 2
        assert torch.equal(rows["tokens"], (one, other)[turn](step // 2, 0, 0, 1)["tokens"])
        loss = loss_of(model, (turn, rows))
        assert (loss.targets == 1) == (turn == 1)
    with pytest.raises(ValueError, match="at least one part"):
        take_turns([])
