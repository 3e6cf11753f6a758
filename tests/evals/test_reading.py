"""Bits are what the model's own probabilities say, and the statistics are those of the textbook."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from streams import small_model

from mnemonist.data import ByteTokenizer
from mnemonist.evals.reading import (
    bits_by_position,
    paired_difference,
    read_on,
    read_texts,
)
from mnemonist.models import LanguageModel
from mnemonist.models.session import Session

BOS = ByteTokenizer.bos_id
TEXTS = [bytes(range(40, 70)) + b"abcabcabcabc", "Wörter — żółw 🐢, mehr".encode().ljust(42, b"."), b"q" * 42]
T = 42


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return small_model(vocab_size=259)


def tokens_of(*texts: bytes) -> torch.Tensor:
    return torch.tensor([[BOS, *text] for text in texts])


def bits_of(logits_TV: torch.Tensor, text: bytes) -> list[float]:
    """From the definition: byte i is predicted by what was said after token i, the start mark being token 0."""
    probabilities = torch.softmax(logits_TV.double(), -1)
    return [-math.log2(probabilities[i, byte]) for i, byte in enumerate(text)]


def test_bits_are_what_the_models_probabilities_say(model):
    reading = read_texts(model, TEXTS)
    assert reading.bits.shape == (3, T)
    for row, text in zip(reading.bits, TEXTS, strict=True):
        with torch.no_grad():
            logits = model(tokens_of(text)).logits[0]
        assert row == pytest.approx(bits_of(logits, text), abs=1e-4)
    assert reading.memories == {}
    assert reading.seconds > 0


@pytest.mark.parametrize("piece", [1, 2, 5, 41, 42, 43, 44, 1000])
def test_the_size_of_the_pieces_changes_nothing(model, piece):
    whole = read_texts(model, TEXTS, surprise=True, piece=1024)
    reading = read_texts(model, TEXTS, surprise=True, piece=piece)
    assert reading.bits == pytest.approx(whole.bits, abs=1e-5)
    for block, memory in whole.memories.items():
        for name, expected in vars(memory).items():
            assert getattr(reading.memories[block], name) == pytest.approx(expected, abs=1e-9), name


def test_texts_read_side_by_side_know_nothing_of_each_other(model):
    together = read_texts(model, TEXTS, surprise=True)
    for row, text in enumerate(TEXTS):
        alone = read_texts(model, [text], surprise=True)
        assert together.bits[row] == pytest.approx(alone.bits[0], abs=1e-5)
        for block, memory in alone.memories.items():
            for name, expected in vars(memory).items():
                assert getattr(together.memories[block], name)[row] == pytest.approx(expected[0], abs=1e-9), name


def test_a_text_of_one_byte(model):
    reading = read_texts(model, [b"x"], surprise=True)
    with torch.no_grad():
        logits = model(tokens_of(b"x")).logits[0]
    assert reading.bits[0] == pytest.approx(bits_of(logits, b"x"), abs=1e-4)
    assert reading.memories[0].loss.shape == (1, 2, 1)


def test_a_memory_held_still(model):
    reading = read_texts(model, TEXTS, learn=False)
    with torch.no_grad():
        logits = model(tokens_of(TEXTS[0]), learn=False).logits[0]
    assert reading.bits[0] == pytest.approx(bits_of(logits, TEXTS[0]), abs=1e-4)
    assert np.abs(reading.bits - read_texts(model, TEXTS).bits).max() > 1e-3
    _, session = model.read(tokens_of(TEXTS[0]), learn=False)
    memory = session.state.blocks[1].memory
    assert memory is not None
    for weight, initial in zip(memory.memory.weights, model.blocks[1].mixer.memory.initial, strict=True):
        assert torch.equal(weight, initial.expand_as(weight))


def test_the_surprise_of_a_byte_is_that_of_its_own_token(model):
    """One entry for each byte, the start mark left out; the block's name is its place in the model."""
    reading = read_texts(model, TEXTS, surprise=True, piece=16)
    with torch.no_grad():
        reports = model(tokens_of(*TEXTS), surprise=True).surprise
    assert list(reading.memories) == list(reports) == [0, 1]  # mag and lmm; window and attention have none
    for block, memory in reading.memories.items():
        for field in dataclasses.fields(memory):
            found, report = getattr(memory, field.name), getattr(reports[block], field.name)
            assert found.shape == (3, 2, T)
            for n, h, i in ((0, 0, 0), (1, 1, 17), (2, 0, T - 1)):
                assert found[n, h, i] == pytest.approx(float(report[n, i + 1, h]), abs=1e-9), field.name


def test_gates_that_a_rule_lacks_are_left_out():
    model = small_model(vocab_size=259, blocks=("lmm",), rule="deltanet")
    memory = read_texts(model, TEXTS, surprise=True).memories[0]
    assert memory.momentum is None
    assert memory.decay is None
    assert memory.loss.shape == memory.gradient_norm.shape == memory.step_size.shape == (3, 2, T)


def test_documents_one_after_another(model):
    """Each text but the first stands behind a start mark of its own, after everything that was read before."""
    begin = Session.begin(model)
    whole = read_on(model, TEXTS, begin, surprise=True)
    with torch.no_grad():
        logits = model(torch.cat([tokens_of(text) for text in TEXTS], 1)).logits[0]
    expected = [bits_of(logits[n * (T + 1) :], text) for n, text in enumerate(TEXTS)]
    assert whole.text == b"".join(TEXTS)
    assert whole.bits[0] == pytest.approx(np.concatenate(expected), abs=1e-4)
    assert whole.session.position == 3 * (T + 1)
    first = read_on(model, TEXTS[:2], begin)
    for _ in range(2):  # a session is a value
        second = read_on(model, TEXTS[2:], first.session, new_document=True)
        assert np.array_equal(np.concatenate([first.bits, second.bits], 1), whole.bits)


@pytest.mark.parametrize("cut", [1, 20, 30, 41])
def test_reading_on_gives_the_very_bits_of_reading_at_once(model, cut):
    """Only an unfinished piece, when it was the last, was another call of the model: equal up to rounding."""
    text = TEXTS[1]
    begin = Session.begin(model, piece=16)
    whole = read_on(model, [text], begin, surprise=True)
    first = read_on(model, [text[:cut]], begin, surprise=True)
    second = read_on(model, [text[cut:]], first.session, surprise=True)
    assert np.array_equal(second.bits, whole.bits[:, cut:])
    assert first.bits == pytest.approx(whole.bits[:, :cut], abs=1e-5)
    for block, memory in whole.memories.items():
        for name, expected in vars(memory).items():
            one, two = (getattr(reading.memories[block], name) for reading in (first, second))
            assert np.array_equal(two, expected[..., cut:]), name
            assert one == pytest.approx(expected[..., :cut], abs=1e-9), name
    assert second.session.to_tensors().keys() == whole.session.to_tensors().keys()
    for name, tensor in whole.session.to_tensors().items():
        assert torch.equal(second.session.to_tensors()[name], tensor), name


def test_progress_counts_bytes_up_to_the_last(model):
    told: list[tuple[int, int]] = []
    read_texts(model, TEXTS, piece=16, progress=lambda done, total: told.append((done, total)))
    assert told == [(15, T), (31, T), (T, T)]  # the first token is a mark


def test_the_model_is_left_as_it_was(model):
    for training in (True, False):
        model.train(training)
        read_texts(model, TEXTS[:1])
        assert model.training is training
        assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("texts", [[], [b""], [b"ab", b"abc"], [b"", b""]])
def test_texts_that_cannot_be_read_together(model, texts):
    with pytest.raises(ValueError, match="at least one text, none empty, all equally long"):
        read_texts(model, texts)


@pytest.mark.parametrize("piece", [0, -1])
def test_pieces_of_nothing(model, piece):
    with pytest.raises(ValueError, match=f"piece {piece}; both must be at least 1"):
        read_texts(model, TEXTS, piece=piece)


def test_a_model_of_other_tokens():
    with pytest.raises(ValueError, match="vocabulary has ids 0 to 16"):
        read_texts(small_model(), TEXTS)


def test_a_paired_difference_by_hand():
    a = np.array([[9.0, 1.0, 2.0], [0.0, 5.0, 6.0]])
    b = np.array([[0.0, 2.0, 4.0], [0.0, 5.0, 7.0]])
    # From byte 1 on, b pays 1.5 and 0.5 bits more.
    found = paired_difference(a, b, start=1)
    assert found.mean == pytest.approx(1.0)
    assert found.half_width == pytest.approx(12.706 * math.sqrt(0.5 / 2))
    assert paired_difference(a, b).mean == pytest.approx(((0 + 2 + 4) / 3 - 12 / 3 + 12 / 3 - 11 / 3) / 2)
    # Pairing is the point: texts differ by much more than the two readings do.
    hard = np.array([[1.0], [100.0]])
    assert paired_difference(hard, hard + 1).half_width == pytest.approx(0.0)


@pytest.mark.parametrize(("shape", "start"), [((2, 4), 0), ((1, 3), 0), ((2, 3), 3), ((2, 3), -1)])
def test_what_cannot_be_paired(shape, start):
    with pytest.raises(ValueError, match="the shapes must be the same"):
        paired_difference(np.zeros((2, 3)), np.zeros(shape), start)


def test_bins_cover_every_byte_once():
    bits = np.random.default_rng(0).random((3, 5000))
    found = bits_by_position(bits, bins=8, first=100)
    edges = [0]
    for _ in range(8):  # each bin ends where its centre says
        edges.append(round(found.positions[len(edges) - 1] ** 2 / (edges[-1] + 1)))
    assert (edges[1], edges[-1]) == (100, 5000)
    sizes = np.diff(edges)
    assert (sizes * found.mean).sum() == pytest.approx(bits.mean(0).sum())
    ratios = np.array(edges[2:]) / np.array(edges[1:-1])
    assert ratios == pytest.approx(50 ** (1 / 7), rel=0.02)


def test_bins_by_hand():
    bits = np.array([[4.0, 2.0, 1.0, 1.0, 3.0, 5.0, 0.0, 0.0], [6.0, 2.0, 1.0, 1.0, 3.0, 5.0, 0.0, 2.0]])
    found = bits_by_position(bits, bins=3, first=2)  # edges 0, 2, 4, 8
    assert found.positions == pytest.approx([math.sqrt(1 * 2), math.sqrt(3 * 4), math.sqrt(5 * 8)])
    assert found.mean == pytest.approx([3.5, 1.0, 2.25])
    half = [12.706 * math.sqrt(v / 2) for v in (0.5, 0.0, 0.125)]
    assert found.low == pytest.approx(found.mean - half)
    assert found.high == pytest.approx(found.mean + half)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65])
def test_short_texts_have_few_bins(length):
    found = bits_by_position(np.ones((1, length)))
    assert found.mean == pytest.approx([1.0] * len(found.mean))
    assert len(found.mean) <= max(1, length - 63)
    assert (found.low, found.high) == (None, None)
    assert found.positions[-1] == pytest.approx(math.sqrt(length) if length <= 64 else math.sqrt(65 * 65))
