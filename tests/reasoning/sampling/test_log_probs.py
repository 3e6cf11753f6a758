"""What a policy thinks of its attempts when it reads them again is what the sampler told of the draw."""

from __future__ import annotations

import pytest
import torch

from mnemonist.data import ByteTokenizer
from mnemonist.reasoning.attempts import Decoding
from mnemonist.reasoning.completions import RowMaker, read, stack
from mnemonist.reasoning.sampling import LocalSampler

PROMPTS = ["a", "hello there", "much longer than the others", "b"]
ENDS = frozenset(range(0, 256, 9))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_they_are_those_of_the_draw(model, temperature):
    decoding = Decoding(max_tokens=20, temperature=temperature, seed=1)
    attempts = LocalSampler(model, ByteTokenizer(), end_ids=ENDS).sample(PROMPTS, decoding)
    rows = [RowMaker(ByteTokenizer()).drawn(attempt) for attempt in attempts]
    opinion = read(model, stack(rows), temperature)
    assert opinion.log_probs_BT.requires_grad
    for row, asked, attempt in zip(opinion.log_probs_BT, opinion.mask_BT, attempts, strict=True):
        assert asked.sum() == attempt.tokens
        torch.testing.assert_close(row[asked > 0].detach(), torch.tensor(attempt.log_probs), rtol=0, atol=1e-5)
