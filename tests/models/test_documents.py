"""Packed documents know nothing of each other, in whatever pieces their rows are read."""

from __future__ import annotations

import pytest
import torch
from streams import small_model

TOKENS = torch.randint(0, 17, (3, 40), generator=torch.Generator().manual_seed(0))
STARTS = torch.zeros(3, 40, dtype=torch.bool)
for row, columns in enumerate(([0, 11, 12, 30], [0], [25])):
    STARTS[row, columns] = True


@pytest.mark.parametrize("lengths", [[40], [13, 27], [11, 1, 18, 10], [1] * 40, [25, 15]])
def test_rows_of_documents_may_be_cut_anywhere(lengths):
    """The text before the first start of a piece goes on from the state; the rest begins afresh."""
    model = small_model()
    whole = model(TOKENS, starts=STARTS)
    state, logits = None, []
    for tokens, starts in zip(TOKENS.split(lengths, 1), STARTS.split(lengths, 1), strict=True):
        output = model(tokens, state, starts=starts)
        state = output.state
        logits.append(output.logits)
    assert torch.allclose(torch.cat(logits, 1), whole.logits, rtol=0, atol=1e-10)
    more = torch.randint(0, 17, (3, 9), generator=torch.Generator().manual_seed(1))
    expected = model(more, whole.state).logits
    assert torch.allclose(model(more, state).logits, expected, rtol=0, atol=1e-10)


def test_gradients_stop_at_the_border():
    model = small_model()
    model.embedding.weight.requires_grad_(True)
    logits = model(TOKENS, starts=STARTS).logits
    (gradient,) = torch.autograd.grad(logits[0, 12:30].sum(), model.embedding.weight)
    alone = model(TOKENS[:1, 12:30]).logits
    (expected,) = torch.autograd.grad(alone.sum(), model.embedding.weight)
    assert torch.allclose(gradient, expected, rtol=0, atol=1e-9)


def test_a_state_for_other_rows_is_refused():
    model = small_model()
    with pytest.raises(ValueError, match="3 rows but the batch has 2"):
        model(TOKENS[:2], model(TOKENS).state, starts=STARTS[:2])
