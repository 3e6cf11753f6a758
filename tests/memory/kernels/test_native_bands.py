"""Compiled attention to bands of keys equals softmax under a mask, derivatives included, and does without the rest."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from compiler import needs_compiler

from mnemonist.memory.kernels import native, native_bands
from mnemonist.memory.kernels.native_bands import Band, applies, attend_bands
from mnemonist.models import LanguageModel, find_preset
from mnemonist.models.attention import CausalAttention

pytestmark = needs_compiler

TYPES = [(torch.float64, 1e-11), (torch.float32, 5e-6)]


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_definition(q, bands, first):
    """Under one mask over the keys of all bands, in float64."""
    (N, T), masks = q.shape[:2], []
    for number, band in enumerate(bands):
        S = band.keys.shape[1]
        column, row = torch.arange(S), torch.arange(S - T, S)[:, None]
        seen = torch.ones(T, S, dtype=torch.bool)
        if band.window is not None:
            seen = (column <= row) & (column > row - band.window)
        seen = seen.expand(N, T, S)
        masks.append(seen & (column >= first[:, None, None]) if number == 0 else seen)
    keys, values = (torch.cat([getattr(band, name) for band in bands], 1) for name in ("keys", "values"))
    keys, values = (t.repeat_interleave(q.shape[2] // t.shape[2], 2) for t in (keys, values))
    q, keys, values = (t.double().transpose(1, 2) for t in (q, keys, values))
    scores = (q @ keys.mT / q.shape[3] ** 0.5).masked_fill(~torch.cat(masks, 2)[:, None], -torch.inf)
    return (scores.softmax(-1) @ values).transpose(1, 2)


@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
@pytest.mark.parametrize(("H", "G", "D"), [(3, 3, 2), (3, 3, 16), (3, 3, 20), (3, 3, 64), (4, 2, 16), (3, 1, 8)])
@pytest.mark.parametrize(
    ("N", "T", "kept", "window", "groups", "own"),
    [
        (1, 1, 0, 1, 1, 0),
        (2, 200, 0, 50, 1, 4),
        (3, 130, 49, 50, 1, 0),
        (1, 64, 255, 256, 1, 19),
        (2, 96, 0, 96, 2, 4),  # memory as context
        (2, 77, 5, 1000, 2, 40),
    ],
)
def test_equals_softmax_under_a_mask(N, T, kept, window, groups, own, H, G, D, dtype, tolerance):
    seeds = iter(range(1, 20))
    leaves = [normal(N, T, H, D, dtype=dtype).requires_grad_()]
    bands = []
    for places, seen in [(kept + T, window)] * groups + [(own, None)] * bool(own):
        pair = [normal(N, places, G, D, dtype=dtype, seed=next(seeds)).requires_grad_() for _ in range(2)]
        leaves += pair
        bands.append(Band(*pair, seen))
    first = torch.randint(0, kept + 1, (N,), generator=torch.Generator().manual_seed(3))
    expected, outer = by_definition(leaves[0], bands, first), normal(N, T, H, D, dtype=dtype, seed=30)
    expected_grads = torch.autograd.grad(expected, leaves, outer.double())
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            y = attend_bands(leaves[0], bands, first)
            grads = torch.autograd.grad(y, leaves, outer)
        finally:
            torch.set_num_threads(before)
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
        for grad, wanted in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(grad, wanted.to(dtype), rtol=10 * tolerance, atol=10 * tolerance)
        with torch.no_grad():
            assert torch.equal(attend_bands(leaves[0], bands, first), y)


def test_derivatives_are_those_of_finite_differences():
    q, k, v = (normal(1, 5, 2, 4, seed=n).requires_grad_() for n in (1, 2, 3))
    own = [normal(1, 2, 2, 4, seed=n).requires_grad_() for n in (4, 5)]
    assert torch.autograd.gradcheck(
        lambda *given: attend_bands(given[0], [Band(*given[1:3], 3), Band(*given[3:], None)]), (q, k, v, *own)
    )


def test_tensors_may_have_gaps():
    q, k, v = (normal(2, 90, 3, 8, seed=n) for n in (1, 2, 3))
    whole = attend_bands(q, [Band(k, v, 20)])
    packed = torch.stack([q, k, v], 2)  # [2, 90, 3, 3, 8]
    q, k, v = packed.unbind(2)
    assert torch.equal(attend_bands(q, [Band(k, v, 20)]), whole)
    q, k, v = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v))  # heads that do not lie side by side
    assert torch.equal(attend_bands(q, [Band(k, v, 20)]), whole)
    one = [normal(1, 4, 3, 8, seed=n).expand(2, 4, 3, 8) for n in (4, 5)]  # persistent tokens: the same in every row
    assert torch.equal(
        attend_bands(q, [Band(k, v, 20), Band(*one, None)]),
        attend_bands(q, [Band(k, v, 20), Band(*(t.contiguous() for t in one), None)]),
    )


def test_later_tokens_change_nothing_before_them():
    q, k, v = (normal(1, 200, 2, 16, dtype=torch.float32, seed=n) for n in (1, 2, 3))
    before = attend_bands(q, [Band(k, v, 70)])
    for t in (0, 63, 64, 130, 199):
        changed = [tensor.clone() for tensor in (q, k, v)]
        for tensor in changed:
            tensor[:, t:] += 1
        assert torch.equal(attend_bands(changed[0], [Band(*changed[1:], 70)])[:, :t], before[:, :t])


def test_a_row_does_not_depend_on_those_beside_it_nor_on_empty_places():
    q = normal(3, 100, 2, 16, dtype=torch.float32)
    k, v = (normal(3, 139, 2, 16, dtype=torch.float32, seed=n) for n in (1, 2))
    first = torch.tensor([0, 39, 12])
    for row, begin in enumerate(first.tolist()):
        k[row, :begin] = v[row, :begin] = torch.nan
    together = attend_bands(q, [Band(k, v, 40)], first)
    assert together.isfinite().all()
    for row in range(3):
        alone = (t[row : row + 1] for t in (q, k, v, first))
        one, keys, values, empty = alone
        assert torch.equal(attend_bands(one, [Band(keys, values, 40)], empty), together[row : row + 1])


def test_scores_of_any_size_are_weighed():
    eye = torch.eye(64)[None, :, None]
    y = attend_bands(1e6 * eye, [Band(eye, eye, 64)])
    torch.testing.assert_close(y[0, :, 0], torch.eye(64))
    assert not attend_bands(torch.full_like(eye, torch.nan), [Band(eye, eye, 64)]).isfinite().any()


def check_without_kernel(read, y, grads, monkeypatch):
    """What `read` gave with the kernel, and its derivatives, is what it gives through torch."""
    monkeypatch.setattr(native_bands, "applies", lambda *_, **__: False)
    slow, slow_grads = read()
    torch.testing.assert_close(y, slow)
    for fast, wanted in zip(grads, slow_grads, strict=True):
        torch.testing.assert_close(fast, wanted)


@pytest.mark.parametrize("window", [40, 300])
def test_it_is_what_windows_use_and_changes_nothing(monkeypatch, window):
    torch.manual_seed(0)
    layer = CausalAttention(32, 4, 8, window=window, persistent_tokens=3).double()
    x = torch.randn(2, 330, 32, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(2, 160, dtype=torch.bool)
    mask[1, 70:] = False

    def read():
        first, state = layer(x[:, :160], None, mask)
        rest, state = layer(x[:, 160:], state)
        y = torch.cat([first, rest], 1)
        return y, torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])

    calls = []
    true = native_bands.attend_bands
    monkeypatch.setattr(native_bands, "attend_bands", lambda *given: calls.append(1) or true(*given))
    y, grads = read()
    assert len(calls) == 2
    check_without_kernel(read, y, grads, monkeypatch)


def test_it_is_what_memory_as_context_uses_and_changes_nothing(monkeypatch):
    torch.manual_seed(0)
    config = find_preset("mag-tiny").replace(
        width=32, heads=2, head_dim=16, memory_heads=2, memory_head_dim=16, window=64, blocks=("mac",)
    )
    model = LanguageModel(config).double()
    ids = torch.randint(0, 256, (2, 230))

    def read():
        model.zero_grad()
        first = model(ids[:, :150])
        rest = model(ids[:, 150:], first.state)
        logits = torch.cat([first.logits, rest.logits], 1)
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        return logits, [p.grad.clone() for p in model.parameters()]

    check_without_kernel(read, *read(), monkeypatch)


def test_what_is_left_to_torch(monkeypatch):
    q = torch.randn(2, 512, 2, 8)
    assert applies(q, q, keys=64)
    assert not applies(q[:1, :100], q, keys=64)  # not worth a call
    assert not applies(q, q, keys=10_000)
    assert not applies(q, q.double(), keys=64)
    assert not applies(q.bfloat16(), q.bfloat16(), keys=64)
    assert not applies(q.to("meta"), q.to("meta"), keys=64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)  # threads without a head
    assert applies(q, q, keys=64)
    assert not applies(q, q[:, :, :1], keys=64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert not applies(q, q, keys=64)
    monkeypatch.undo()
    assert native_bands.bands_kernel() is not None
    monkeypatch.setattr(native, "kernel", lambda *_: None)
    assert not applies(q, q, keys=64)
