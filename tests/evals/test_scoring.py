"""A model is right where its own logits say so, in pieces or at once."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from mnemonist.data import IGNORED
from mnemonist.evals import scoring
from mnemonist.evals.associative_recall import AssociativeRecall
from mnemonist.evals.copying import Copying
from mnemonist.evals.lessons import answer_loss, answer_scores, held_out_problems, lesson_batches, take_turns
from mnemonist.evals.problems import Problems, draw
from mnemonist.evals.regression import Regression
from mnemonist.evals.scoring import score
from mnemonist.models import LanguageModel, ModelConfig
from mnemonist.training import HeldOutConfig, LossSum, TrainingConfig
from mnemonist.training.accelerator import start_accelerator
from mnemonist.training.held_out import read_held_out

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


def test_a_part_with_several_turns_reads_nothing_twice():
    learned = (lambda step, *_: f"text {step}", answer_loss), (lambda step, *_: f"needle {step}", answer_loss)
    batch_of, _ = take_turns([learned[0], learned[0], learned[1]])
    read = [batch_of(step, 0, 0, 1)[1] for step in range(6)]
    assert read == ["text 0", "text 1", "needle 0", "text 2", "text 3", "needle 1"]


# Problems that are not trained on.

TRAINING = TrainingConfig(steps=4, warmup_steps=0, batch_size=8, accumulation=2, row_length=64)


def rows_of(held_out, world=1):
    """All rows, each as long as it is, whoever reads them."""
    batches = [held_out.batch_of(number, rank, world) for number in range(held_out.batches) for rank in range(world)]
    return [(tokens, targets) for one in batches for tokens, targets in zip(one["tokens"], one["targets"], strict=True)]


@pytest.mark.parametrize("rows", [None, 10, 3])
def test_held_out_problems_are_of_all_lessons_and_of_no_other_stream(rows):
    """In whole micro-batches, whatever the seed of training and however many processes read them."""
    held_out = held_out_problems(TASK, TRAINING, HeldOutConfig(rows=rows, every=7, seed=2))
    count = {None: 32, 10: 12, 3: 4}[rows]
    assert (held_out.batches, held_out.every, held_out.name) == (count // 4, 7, "mqar")
    found = rows_of(held_out)
    assert len(found) == count and len({tokens.numpy().tobytes() for tokens, _ in found}) == count
    pairs = [int((targets != IGNORED).sum()) for _, targets in found]
    taught = [lesson["pairs"] for lesson in TASK.lessons]
    assert pairs == [taught[n * len(taught) // count] for n in range(count)]
    for n, ((tokens, _), each) in enumerate(zip(found, pairs, strict=True)):
        setting = next(lesson for lesson in TASK.lessons if lesson["pairs"] == each)
        for split in ("held-out", "train", "test"):
            one = draw(TASK, setting, 1, 2, split, n).tokens[0]
            assert np.array_equal(tokens[: len(one)].numpy(), one) == (split == "held-out")
    other = dataclasses.replace(TRAINING, seed=5)
    again = held_out_problems(TASK, other, HeldOutConfig(rows=rows, every=7, seed=2))
    for (a, b), (c, d) in zip(found, rows_of(again, world=2), strict=True):
        assert torch.equal(a[: len(c)], c[: len(a)]) and torch.equal(b[: len(d)], d[: len(b)])
    assert not torch.equal(found[0][0], rows_of(held_out_problems(TASK, TRAINING, HeldOutConfig(seed=3)))[0][0])


@pytest.mark.parametrize("task", [TASK, Copying(letters=3, trained=4)])
def test_held_out_accuracy_and_loss_are_those_of_an_evaluation(task):
    torch.manual_seed(0)
    model = LanguageModel(CONFIG.replace(vocab_size=task.vocab_size)).eval()
    held_out = held_out_problems(task, TRAINING, HeldOutConfig())
    batches = [held_out.batch_of(number, 0, 1) for number in range(held_out.batches)]
    for batch in batches:  # of some problems the model is right about all, of some about a part
        with torch.no_grad():
            likely = model(batch["tokens"]).logits.argmax(-1)
        for row, targets in enumerate(batch["targets"]):
            places = (targets != IGNORED).nonzero()[: 3 * row, 0]
            targets[places] = likely[row, places]
    given = dataclasses.replace(held_out, batch_of=lambda number, rank, world: batches[number])
    reading = read_held_out(start_accelerator("cpu"), model, answer_loss, given)
    scores = [score(model, Problems(batch["tokens"].numpy(), batch["targets"].numpy())) for batch in batches]
    shares = np.concatenate([one.tokens if task.metric == "token" else one.problems for one in scores])
    assert 0 < shares.mean() < 1 and reading.accuracy == pytest.approx(shares.mean(), rel=1e-6)
    bits = sum(one.bits.sum() for one in scores) / sum(one.asked.sum() for one in scores)
    assert reading.loss == pytest.approx(bits * np.log(2), rel=1e-5)


def test_a_problem_is_right_as_its_task_counts(model):
    """Three problems of two answers each, of which none, one and both are right."""
    model.requires_grad_(False)
    tokens = torch.arange(12).reshape(3, 4)
    targets = torch.full((3, 4), IGNORED)
    targets[:, 1:3] = model(tokens).logits.argmax(-1)[:, 1:3]
    targets[0, 1:3] += 1
    targets[1, 2] += 1
    rows = {"tokens": tokens, "targets": torch.where(targets == IGNORED, targets, targets % 32)}
    for metric, right in (("token", 1.5), ("problem", 1)):
        found = answer_scores(model, rows, metric)
        assert (found.answers, float(found.right), found.targets) == (3, right, 6)
        assert float(found.loss) == pytest.approx(float(answer_loss(model, rows).loss))


def test_held_out_vectors_have_an_error_and_no_accuracy():
    task = Regression(dim=2)
    torch.manual_seed(0)
    model = LanguageModel(CONFIG.replace(vocab_size=task.vocab_size))
    held_out = held_out_problems(task, TRAINING, HeldOutConfig(rows=8))
    reading = read_held_out(start_accelerator("cpu"), model, answer_loss, held_out)
    with torch.no_grad():
        loss = task.loss(model.eval(), task.batch(8, 0, "held-out", 0))
    assert reading.accuracy is None
    assert reading.loss == pytest.approx(float(loss.loss) / loss.targets, rel=1e-5)
    assert not torch.equal(task.batch(1, 0, "held-out", 0)["x"], task.batch(1, 0, "train", 0)["x"])
