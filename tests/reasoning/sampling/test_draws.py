"""Tokens come with the probabilities they should have, and each row's by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mnemonist.errors import UserError
from mnemonist.reasoning.attempts import Decoding
from mnemonist.reasoning.sampling import draws
from mnemonist.reasoning.sampling.draws import draw_tokens, uniform_numbers


def frequencies(logits, decoding, count=5000):
    """How often each token comes, over an even grid of numbers: exact to 1 in ``count``."""
    grid = (np.arange(count) + 0.5) / count
    tokens, log_probs = draw_tokens(logits.expand(count, -1), decoding, grid)
    return np.bincount(tokens.numpy(), minlength=logits.shape[-1]) / count, tokens, log_probs


def expected(logits, temperature=1.0, top_k=0, top_p=1.0):
    """Cut one after the other, token by token."""
    p = np.exp((logits.numpy() - logits.max().item()) / temperature)
    p /= p.sum()
    order = np.argsort(-p)[: top_k or None]
    mass, kept = 0.0, np.zeros_like(p)
    for token in order:
        if mass >= top_p * p[order].sum():
            break
        kept[token] = p[token]
        mass += p[token]
    return kept / kept.sum(), np.log(p)


CUTS = [{}, {"temperature": 0.5}, {"temperature": 3.0}, {"top_k": 3}, {"top_p": 0.7}, {"top_k": 5, "top_p": 0.6}]
CUTS += [{"top_p": 1e-9}, {"top_k": 1000}, {"top_k": 2, "temperature": 0.7, "top_p": 0.99}]


@pytest.mark.parametrize("vocabulary", [7, 255, 700])  # below and above a block of sums
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_frequencies(vocabulary, cut):
    logits = 2 * torch.randn(vocabulary, dtype=torch.float64, generator=torch.Generator().manual_seed(vocabulary))
    found, tokens, log_probs = frequencies(logits, Decoding(**cut))
    wanted, whole = expected(logits, **cut)
    np.testing.assert_allclose(found, wanted, atol=6e-4)
    np.testing.assert_allclose(log_probs, whole[tokens], atol=1e-12)  # before the cut


@pytest.mark.parametrize("few", [1, 4, 30, 64])
def test_looking_at_few_tokens_first_changes_nothing(monkeypatch, few):
    logits = torch.randn(40, 64, generator=torch.Generator().manual_seed(2)) * torch.linspace(0.1, 4, 40)[:, None]
    decoding, numbers = Decoding(top_p=0.8), uniform_numbers(0, 0, 40)
    whole, _ = draw_tokens(logits, decoding, numbers)
    monkeypatch.setattr(draws, "FEW", few)
    assert torch.equal(draw_tokens(logits, decoding, numbers)[0], whole)


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_a_row_does_not_see_the_others(cut):
    logits = 3 * torch.randn(9, 3000, generator=torch.Generator().manual_seed(1))
    numbers = uniform_numbers(1, 1, 9)
    tokens, log_probs = draw_tokens(logits, Decoding(**cut), numbers)
    for row in range(9):
        token, log_prob = draw_tokens(logits[row : row + 1], Decoding(**cut), numbers[row : row + 1])
        assert token == tokens[row] and torch.allclose(log_prob, log_probs[row])


@pytest.mark.parametrize("place", [0, 3, 700, 1023])
@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-53])
@pytest.mark.parametrize("cut", [{}, {"top_p": 0.9}, {"top_k": 4}], ids=str)
def test_what_has_no_probability_is_never_drawn(place, number, cut):
    logits = torch.full((1, 1024), -torch.inf)
    logits[0, place] = 1.0
    token, log_prob = draw_tokens(logits, Decoding(**cut), np.array([number]))
    assert token.item() == place and log_prob.item() == 0


def test_rounding_does_not_carry_a_draw_behind_the_last_token():
    for seed in range(60):
        logits = torch.randn(1, 512, generator=torch.Generator().manual_seed(seed))
        logits[0, 200:] = -torch.inf
        token, _ = draw_tokens(logits, Decoding(), np.array([1 - 2**-53]))
        assert token.item() < 200


def test_a_mass_that_is_just_reached_is_enough():
    tokens, _ = draw_tokens(torch.zeros(3, 2, dtype=torch.float64), Decoding(top_p=0.5), np.array([0.0, 0.6, 0.99]))
    assert len(set(tokens.tolist())) == 1


def test_greedy_and_the_coldest_temperature():
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(3))
    for temperature in (0.0, 5e-324, 1e-12):
        tokens, log_probs = draw_tokens(logits, Decoding(temperature=temperature), np.full(5, 0.999))
        assert torch.equal(tokens, logits.argmax(-1))
        wanted = logits.log_softmax(-1).max(-1).values if temperature == 0 else torch.zeros(5)
        torch.testing.assert_close(log_probs, wanted)


def test_half_precision_is_drawn_from_in_full():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(4)).bfloat16()
    _, log_probs = draw_tokens(logits, Decoding(), np.full(3, 0.3))
    assert log_probs.dtype == torch.float32


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("cut", [{}, {"temperature": 0.0}, {"top_p": 0.5}, {"top_k": 2}], ids=str)
def test_no_numbers(value, cut):
    logits = torch.zeros(2, 600)
    logits[1, 4] = value
    with pytest.raises(UserError, match="no numbers"):
        draw_tokens(logits, Decoding(**cut), np.array([0.1, 0.2]))


def test_numbers_of_a_prompt():
    numbers = uniform_numbers(5, 7, 1000)
    assert np.array_equal(numbers[:10], uniform_numbers(5, 7, 10))
    assert numbers.min() >= 0 and numbers.max() < 1 and abs(numbers.mean() - 0.5) < 0.05
    others = [uniform_numbers(seed, number, 10) for seed, number in ((5, 8), (6, 7), (7, 5), (2**40, 7))]
    assert all(not np.array_equal(numbers[:10], other) for other in others)
