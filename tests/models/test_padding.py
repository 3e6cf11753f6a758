"""What stands at padding is never looked at: not by the outputs, not by the state, not by a layer's gradients."""

from __future__ import annotations

import math

import pytest
import torch
from streams import WIDTH, read, readers, shaken, state_tensors

from mnemonist.models import CausalAttention


def all_readers() -> dict[str, torch.nn.Module]:
    attentions = {
        f"layer-attention-{window}": CausalAttention(WIDTH, 2, 4, window=window) for window in (None, 1, 4, 9)
    }
    return readers() | {name: shaken(layer) for name, layer in attentions.items()}


NAMES = list(all_readers())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30])
def test_what_stands_at_padding_reaches_nothing(name, poison):
    reader = all_readers()[name]
    x = torch.randn(2, 9, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.rand(2, 9, generator=torch.Generator().manual_seed(2)) < 0.6
    mask[0] = True
    assert not mask[1].all()
    seen = {}
    for value in (0.0, poison):
        reader.zero_grad()
        y, state = read(reader, x.masked_fill(~mask[..., None], value), None, mask)
        y[mask].square().sum().backward()
        # A block's MLP looks at padding too, and its answers there are not used.
        gradients = [] if name.startswith("block") else [p.grad for p in reader.parameters()]
        seen[value] = [y[mask], *state_tensors(state), *gradients]
    for clean, found in zip(*seen.values(), strict=True):
        assert torch.equal(found, clean)


@pytest.mark.parametrize("name", [name for name in NAMES if "-attention" not in name or name[-1].isdigit()])
def test_a_state_keeps_no_piece_of_text_in_memory(name):
    """As small as it says, also in what its tensors are views of."""
    reader = all_readers()[name]
    with torch.no_grad():
        _, state = read(reader, torch.randn(1, 3000, WIDTH, dtype=torch.float64))
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in state_tensors(state)}
    assert sum(held.values()) < 2 * state.nbytes + 1000
