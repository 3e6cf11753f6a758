"""The compiled attention of the newest token equals softmax over the keys of each row, and does without the rest."""

from __future__ import annotations

import pytest
import torch
from compiler import needs_compiler

from mnemonist.memory.kernels import native, native_attention
from mnemonist.memory.kernels.native_attention import attend_newest
from mnemonist.models.attention import CausalAttention

pytestmark = needs_compiler

TYPES = [(torch.float64, 1e-12), (torch.float32, 2e-6)]


def normal(*shape, dtype, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_definition(q, keys, values, first, persistent):
    """Row by row, head by head, in float64."""
    y = torch.empty(q.shape, dtype=torch.float64)
    for b, begin in enumerate(first.tolist()):
        for h in range(q.shape[2]):
            g = h * keys.shape[2] // q.shape[2]
            k, v = keys[b, begin:, g].double(), values[b, begin:, g].double()
            if persistent is not None:
                k, v = (torch.cat([own[:, g].double(), t]) for own, t in zip(persistent, (k, v), strict=True))
            y[b, 0, h] = (k @ q[b, 0, h].double() / q.shape[3] ** 0.5).softmax(0) @ v
    return y


@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
@pytest.mark.parametrize(("H", "G"), [(3, 3), (4, 2), (3, 1)])
@pytest.mark.parametrize("D", [2, 8, 16, 24, 32, 64, 80, 130])
@pytest.mark.parametrize(("B", "S", "P"), [(1, 1, 0), (1, 300, 2), (5, 37, 0), (3, 130, 19)])
@torch.no_grad()
def test_equals_softmax_over_the_keys_of_each_row(B, S, P, H, G, D, dtype, tolerance):
    q = 3 * normal(B, 1, H, D, dtype=dtype)
    keys, values = (normal(B + 2, S + 7, G, D, dtype=dtype, seed=n)[1 : B + 1, 4 : 4 + S] for n in (1, 2))
    first = torch.randint(0, S, (B,), generator=torch.Generator().manual_seed(3))
    first[0] = 0
    persistent = tuple(normal(P, 3 * G, D, dtype=dtype, seed=n)[:, G : 2 * G] for n in (4, 5)) if P else None
    expected = by_definition(q, keys, values, first, persistent)
    for row, begin in enumerate(first.tolist()):  # what a row has not read is not looked at
        keys[row, :begin] = values[row, :begin] = torch.nan
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            y = attend_newest(q, keys, values, first, persistent)
        finally:
            torch.set_num_threads(before)
        assert y is not None and y.dtype == dtype
        torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_a_row_does_not_depend_on_those_beside_it():
    q, keys, values = (normal(4, S, 2, 16, dtype=torch.float32, seed=S) for S in (1, 90, 91))
    first = torch.tensor([0, 89, 40, 7])
    together = attend_newest(q, keys, values[:, :90], first, None)
    for row in range(4):
        alone = attend_newest(*(t[row : row + 1] for t in (q, keys, values[:, :90], first)), None)
        assert torch.equal(alone, together[row : row + 1])


@torch.no_grad()
def test_scores_of_any_size_are_weighed():
    keys = values = torch.eye(16)[None, :, None]
    first = torch.zeros(1, dtype=torch.int64)
    y = attend_newest(1e6 * torch.eye(16)[None, 3:4, None], keys, values, first, None)
    torch.testing.assert_close(y[0, 0, 0], torch.eye(16)[3])
    assert not attend_newest(torch.full((1, 1, 1, 16), torch.nan), keys, values, first, None).isfinite().any()


def test_it_is_what_layers_use_and_changes_nothing(monkeypatch):
    torch.manual_seed(0)
    x = torch.randn(3, 14, 12, dtype=torch.float64)
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[1, 4:] = False
    for window in (None, 4):
        layer = CausalAttention(12, 2, 4, window=window, persistent_tokens=2).double()

        def read(layer=layer):
            _, state = layer(x[:, :9], None, mask)
            answers = []
            for t in range(9, 14):
                y, state = layer(x[:, t : t + 1], state)
                answers.append(y)
            return torch.cat(answers, 1)

        with torch.no_grad():
            fast = read()
            with monkeypatch.context() as patched:
                patched.setattr("mnemonist.models.attention.attend_newest", lambda *_: None)
                slow = read()
        torch.testing.assert_close(fast, slow)
        torch.testing.assert_close(read().detach(), slow)  # with gradients, through torch


def test_what_is_left_to_torch(monkeypatch):
    q = keys = torch.randn(1, 1, 2, 8)
    first = torch.zeros(1, dtype=torch.int64)

    def left(q, keys, first=first):
        return attend_newest(q, keys, keys, first, None) is None

    assert left(q, keys)  # gradients might be wanted
    with torch.no_grad():
        assert not left(q, keys)
        assert left(torch.randn(1, 2, 2, 8), keys)
        assert left(q.bfloat16(), keys.bfloat16())
        assert left(q, keys.double())
        assert left(q.to("meta"), keys.to("meta"))
        assert left(q, torch.randn(1, 2, 3, 8).transpose(1, 2))  # heads that do not lie side by side
        assert native_attention.attention_kernel() is not None
        monkeypatch.setattr(native, "kernel", lambda *_: None)
        assert left(q, keys)
