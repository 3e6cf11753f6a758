"""Rows come and go, and each sees its own keys and values, in their order, at the end of the columns."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace

import pytest
import torch
from toy_policies import Told
from transformers.cache_utils import DynamicLayer

from mnemonist.errors import UserError
from mnemonist.reasoning.sampling.cache_rows import KeyValueRows, StateRows, rows_like

LAYERS, HEADS, KEY, VALUE = 2, 3, 4, 5


def states(rows, layer, what):
    """``[B, H, T, D]`` of token numbers ``[B][T]``; every entry tells where it belongs."""
    width = {"keys": KEY, "values": VALUE}[what]
    numbers = torch.tensor(rows, dtype=torch.float64)[:, None, :, None]
    head, channel = torch.arange(HEADS)[:, None, None], torch.arange(width)
    return numbers * 1000 + layer * 100 + head * 10 + channel + (0.5 if what == "values" else 0)


def fresh_cache(texts):
    """As a model leaves it after reading prompts that are padded on the left, here with what is no number."""
    width = max(map(len, texts))
    layers = []
    for n in range(LAYERS):
        layer = DynamicLayer()
        padded = [[float("nan")] * (width - len(text)) + text for text in texts]
        layer.keys, layer.values = states(padded, n, "keys"), states(padded, n, "values")
        layers.append(layer)
    return SimpleNamespace(layers=layers)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_every_row_sees_what_it_has_read(seed):
    draw = random.Random(seed)
    count = iter(range(10**6))
    most = draw.choice([1, 3, 6])
    rows = KeyValueRows(most, True, torch.device("cpu"))
    texts: list[list[int]] = []
    for _ in range(250):
        if len(texts) < most or draw.random() < 0.2:  # some rows are filled, or others replaced
            picked = [[next(count) for _ in range(draw.choice([1, 2, 9, 40]))] for _ in range(2)]
            targets = sorted(draw.sample(range(len(texts)), min(len(texts), draw.randrange(2))))
            targets += [len(texts)] if len(texts) < most else []
            if targets:
                picks = [draw.randrange(2) for _ in targets]
                rows.put(targets, fresh_cache(picked), picks, [len(picked[pick]) for pick in picks])
                for row, pick in zip(targets, picks, strict=True):
                    texts[row : row + 1] = [list(picked[pick])]
        elif len(texts) > 1 and draw.random() < 0.1:  # one is gone, the last takes its place
            gone = draw.randrange(len(texts))
            rows.keep([row if row != gone else len(texts) - 1 for row in range(len(texts) - 1)])
            last = texts.pop()
            if gone < len(texts):
                texts[gone] = last
        inputs = rows.inputs()
        lengths = [len(text) for text in texts]
        width = max(lengths)
        assert inputs["position_ids"].tolist() == [[length] for length in lengths]
        mask = inputs.get("attention_mask", torch.ones(len(texts), width + 1, dtype=torch.int64))
        assert mask.tolist() == [[0] * (width - n) + [1] * (n + 1) for n in lengths]
        cache = inputs["past_key_values"]
        assert cache.get_seq_length() == width and cache.get_mask_sizes(1, 0) == (width + 1, 0)
        new = [[next(count)] for _ in texts]
        for text, token in zip(texts, new, strict=True):
            text += token
        for n in range(LAYERS):
            keys, values = cache.update(states(new, n, "keys"), states(new, n, "values"), n)
            assert keys.shape[2] == width + 1
            for row, text in enumerate(texts):
                assert torch.equal(keys[row, :, -len(text) :], states([text], n, "keys")[0])
                assert torch.equal(values[row, :, -len(text) :], states([text], n, "values")[0])
            assert keys.isfinite().all() and values.isfinite().all()
        rows.advance()


def test_what_a_broken_row_has_left_is_seen_by_nobody():
    """What is masked still enters products, and 0 times NaN is NaN."""
    nan = float("nan")
    rows = KeyValueRows(2, False, torch.device("cpu"))

    def step():
        cache = rows.inputs()["past_key_values"]
        keys, values = cache.update(states([[1], [1]], 0, "keys"), states([[1], [1]], 0, "values"), 0)
        rows.advance()
        return bool(keys.isfinite().all() and values.isfinite().all())

    rows.put([0, 1], fresh_cache([[nan] * 40, [1] * 20]), [0, 1], [40, 20])
    assert not step()
    rows.put([0], fresh_cache([[2] * 10]), [0], [10])  # before it, row 0 has what is left of the broken one
    assert step()
    rows.put([1], fresh_cache([[3] * 35]), [0], [35])  # and now more of that comes into sight
    assert step()


def test_buffers_are_used_again():
    """Rows of constant length need constant memory, and columns are moved rarely."""
    rows = KeyValueRows(2, False, torch.device("cpu"))
    rows.put([0, 1], fresh_cache([[1] * 20]), [0, 0], [20, 20])
    capacities, ends = set(), []
    for step in range(600):
        if step % 10 == 9:
            rows.put([step // 10 % 2], fresh_cache([[2] * 20]), [0], [20])
        cache = rows.inputs()["past_key_values"]
        for n in range(LAYERS):
            cache.update(states([[3], [4]], n, "keys"), states([[3], [4]], n, "values"), n)
        rows.advance()
        capacities.add(rows.capacity)
        ends.append(rows.end)
    assert len(capacities) <= 2 and max(capacities) <= 2 * 42 + 32
    assert sum(b < a for a, b in itertools.pairwise(ends)) < 600 / 20


def test_states_are_joined_and_selected():
    first = Told(["a", "b"])
    rows = rows_like(first, 4, False, torch.device("cpu"))
    assert isinstance(rows, StateRows)
    rows.put([0, 1, 2], first, [1, 0, 1], [3, 3, 3])
    assert rows.inputs()["past_key_values"].rows == ["b", "a", "b"] and first.rows == ["a", "b"]
    rows.put([1, 3], Told(["c", "d"]), [1, 0], [3, 3])
    assert rows.inputs()["past_key_values"].rows == ["b", "d", "b", "c"]
    rows.keep([0, 3])
    assert rows.inputs()["past_key_values"].rows == ["b", "c"]


def test_other_caches_are_refused():
    for odd in (None, SimpleNamespace(layers=[]), SimpleNamespace(layers=[object()])):
        with pytest.raises(UserError, match="cannot be exchanged"):
            rows_like(odd, 1, False, torch.device("cpu"))
