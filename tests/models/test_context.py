"""Memory as context against its equations, written token by token; and each way the printed ones leak the future."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from streams import read_in_pieces, shaken

from mnemonist.memory import recall
from mnemonist.models import CausalAttention, NeuralMemory
from mnemonist.models.blocks import Mixed
from mnemonist.models.context import MemoryContext

WIDTH, HEADS, HEAD_DIM = 6, 2, 4


def layer(segment: int = 5, rule: str = "titans:chunk_size=3,expansion=2", skip: bool = True) -> MemoryContext:
    torch.manual_seed(0)
    attention = CausalAttention(WIDTH, HEADS, HEAD_DIM, persistent_tokens=2)
    made = shaken(MemoryContext(attention, NeuralMemory(WIDTH, HEADS, HEAD_DIM, rule), segment, skip=skip))
    assert isinstance(made, MemoryContext)
    return made


def text(T: int, B: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(B, T, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotated(x_HD: torch.Tensor, slot: int) -> torch.Tensor:
    half = HEAD_DIM // 2
    pairs = torch.complex(x_HD[:, :half], x_HD[:, half:])
    angles = torch.tensor([slot * 10000.0 ** (-2 * i / HEAD_DIM) for i in range(half)], dtype=torch.float64)
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], -1)


def definition(made: MemoryContext, x_TE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eq. 21-25 for one row, each token after the other; the memory is read through its layer, one token at a time."""
    memory_layer, state = made.memory, None
    weights = made.memory.initial_state(x_TE[None]).memory.weights
    near, far, context = [], [], []

    def heads(vector: torch.Tensor, part: int) -> torch.Tensor:
        return made.attention.in_proj.weight.view(3, HEADS, HEAD_DIM, WIDTH)[part] @ vector

    for t, x in enumerate(x_TE):
        slot = t % made.segment
        if slot == 0:  # the memory that the segment before left; nothing of that segment is seen
            begin = weights
            context = [(heads(p, 1), heads(p, 2)) for p in made.attention.persistent]
        question = F.normalize(F.silu(made.question_proj(x)).view(HEADS, HEAD_DIM), dim=-1)
        answer = recall(memory_layer.rule, question[None, None], begin)[0, 0]
        h = made.recalled_proj(made.recalled_norm(answer).flatten())
        for token in (h, x):
            context.append((rotated(heads(token, 1), slot), heads(token, 2)))
        query = rotated(heads(x, 0), slot)
        scores = torch.stack([(query * key).sum(-1) for key, _ in context]) / math.sqrt(HEAD_DIM)
        mixed = (torch.softmax(scores, 0)[..., None] * torch.stack([value for _, value in context])).sum(0)
        y = made.attention.out_proj(mixed.flatten())
        z, state, _ = memory_layer(made.norm(x + y if made.skip else y)[None, None], state)
        weights = state.memory.weights
        near.append(y)
        far.append(z[0, 0])
    return torch.stack(near), torch.stack(far)


@pytest.mark.parametrize("rule", ["titans:chunk_size=3,expansion=2", "gated-deltanet", "linear-attention"])
@pytest.mark.parametrize(("segment", "T"), [(5, 1), (5, 5), (5, 17), (1, 4), (32, 9)])
@pytest.mark.parametrize("skip", [True, False], ids=["added", "printed"])
def test_it_is_its_equations(skip, rule, segment, T):
    made, x = layer(segment, rule, skip), text(T)
    near, far, _, _ = made(x)
    expected_near, expected_far = definition(made, x[0])
    torch.testing.assert_close(near[0], expected_near, rtol=0, atol=1e-10)
    torch.testing.assert_close(far[0], expected_far, rtol=0, atol=1e-10)


class Reader(torch.nn.Module):
    """Gives both answers as one, like a block."""

    def __init__(self, made: MemoryContext) -> None:
        super().__init__()
        self.made = made

    def forward(self, x, state=None, mask=None):
        near, far, after, _ = self.made(x, state, mask)
        return Mixed(near + far, after)


@pytest.mark.parametrize("pieces", [[12], [1] * 12], ids=["whole", "token by token"])
def test_so_are_its_gradients(pieces):
    """Through segments, what was recalled, and every write."""
    made, x = layer(), text(12).requires_grad_()
    weights = text(12, seed=1)[0]
    wanted = [x, *made.parameters()]
    found = torch.autograd.grad((read_in_pieces(Reader(made), x, pieces)[0][0] * weights).sum(), wanted)
    expected = definition(made, x[0])
    exact = torch.autograd.grad(((expected[0] + expected[1]) * weights).sum(), wanted)
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize("part", ["near", "far"])
def test_the_segment_is_not_an_open_book(part):
    """Hole A (what a later token asks for) and hole B (what it wrote): a segment of 8, every token changed in turn."""
    made, x = layer(8), text(16).float()
    made = made.float()
    clean = dict(zip(("near", "far"), made(x)[:2], strict=True))[part]
    for t in range(16):
        changed = x.clone()
        changed[:, t] += 1
        found = dict(zip(("near", "far"), made(changed)[:2], strict=True))[part]
        assert torch.equal(found[:, :t], clean[:, :t])
        assert not torch.equal(found[:, t], clean[:, t])


def test_beyond_the_segment_only_the_memory_remembers():
    made, x = layer(4), text(20)
    changed = x.clone()
    changed[:, 1] += 1
    assert not torch.equal(made(x)[0][:, 8:], made(changed)[0][:, 8:])
    held = made(x, learn=False)[0]
    assert torch.equal(held[:, 8:], made(changed, learn=False)[0][:, 8:])


def test_recall_of_a_segment_is_from_before_it():
    """Within a segment the recalled weights stand still; at its end they become the memory's."""
    made, x = layer(4), text(10)
    states = [made(x[:, :n])[2] for n in (4, 5, 7, 8)]
    for state in states:
        now = all(torch.equal(a, b) for a, b in zip(state.recalled, state.memory.memory.weights, strict=True))
        assert now == (int(state.phase[0]) == 0)
    for a, b in zip(states[0].recalled, states[2].recalled, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pieces", [[7, 1, 1, 9, 5], [1] * 23], ids=["pieces", "token by token"])
def test_rows_at_different_places_of_their_segments(pieces):
    """Two streams, three tokens apart, read side by side."""
    made, x = layer(4), text(23, B=2)
    mask = torch.ones(2, 23, dtype=torch.bool)
    mask[1, 2:5] = False
    y, _ = read_in_pieces(Reader(made), x, pieces, mask)
    assert not y[~mask].any()
    for row in range(2):
        near, far, _, _ = made(x[row : row + 1, mask[row]])
        torch.testing.assert_close(y[row, mask[row]], (near + far)[0], rtol=0, atol=1e-10)


def test_bad_input():
    made = layer(4)
    state = made(text(3, B=2))[2]
    with pytest.raises(ValueError, match="2 rows and segments of 4 tokens, but 1 rows are given"):
        made(text(1), state)
    with pytest.raises(ValueError, match="given to segments of 5"):
        layer(5)(text(1, B=2), state)
    with pytest.raises(ValueError, match="segment is 0"):
        layer(0)
    with pytest.raises(ValueError, match="no window"):
        MemoryContext(CausalAttention(6, 2, 4, window=3), NeuralMemory(6, 2, 4), 4)
