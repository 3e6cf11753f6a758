"""Recomputed log-probabilities are those of the draw, and have the gradient of the whole forward."""

from __future__ import annotations

import pytest
import torch

from mnemonist.data import ByteTokenizer
from mnemonist.reasoning.attempts import Attempt, Decoding
from mnemonist.reasoning.sampling import LocalSampler, token_log_probs

PROMPTS = ["a", "hello there", "much longer than the others", "b"]
ENDS = frozenset(range(0, 256, 9))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_they_are_those_of_the_draw(model, temperature):
    decoding = Decoding(max_tokens=20, temperature=temperature, seed=1)
    attempts = LocalSampler(model, ByteTokenizer(), end_ids=ENDS).sample(PROMPTS, decoding)
    log_probs, mask = token_log_probs(model, attempts, temperature)
    assert mask.sum(1).tolist() == [attempt.tokens for attempt in attempts]
    assert log_probs.shape == mask.shape == (4, max(attempt.tokens for attempt in attempts))
    assert (log_probs[~mask] == 0).all() and log_probs.requires_grad
    for row, attempt in enumerate(attempts):
        wanted = torch.tensor(attempt.log_probs, dtype=torch.float64)
        torch.testing.assert_close(log_probs[row, mask[row]].detach(), wanted, rtol=0, atol=1e-9)


def test_their_gradient_is_that_of_each_text_alone(model):
    attempts = [
        Attempt(prompt, "", tuple(prompt.encode()), tuple(text.encode()))
        for prompt, text in (("abc", "de"), ("f", "ghijk"), ("much longer", "x"))
    ]
    weights = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    log_probs, _ = token_log_probs(model, attempts)
    together = torch.autograd.grad((log_probs.sum(1) * weights).sum(), parameters, allow_unused=True)
    whole = torch.zeros((), dtype=torch.float64)
    for attempt, weight in zip(attempts, weights, strict=True):
        ids = torch.tensor([attempt.prompt_ids + attempt.ids])
        every = model(ids, use_cache=False).logits[0].log_softmax(-1)
        for at in range(len(attempt.prompt_ids), ids.shape[1]):
            whole = whole + weight * every[at - 1, ids[0, at]]
    alone = torch.autograd.grad(whole, parameters, allow_unused=True)
    assert any(grad is not None and grad.abs().max() > 1e-3 for grad in alone)
    for ours, theirs in zip(together, alone, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


def test_bad_input(any_model):
    with pytest.raises(ValueError, match="give some"):
        token_log_probs(any_model, [])
    with pytest.raises(ValueError, match="above 0"):
        token_log_probs(any_model, [Attempt("a", "b", (1,), (2,))], 0.0)
    with pytest.raises(ValueError, match="no token ids"):
        token_log_probs(any_model, [Attempt("a", "b")])
