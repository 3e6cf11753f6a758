"""The streaming contract, through the layer, every block and the whole model."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import WIDTH, read, read_in_pieces, readers, small_model, state_tensors

few = settings(max_examples=8, deadline=None, derandomize=True, database=None)
lengths = st.lists(st.sampled_from([1, 1, 2, 3, 4, 5, 7, 12]), min_size=2, max_size=6)
seeds = st.integers(0, 1000)

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
NAMES = list(readers())
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def embeddings(B: int, T: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(B, T, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def ragged_mask(B: int, T: int, seed: int) -> torch.Tensor:
    """Padding anywhere, and one row that is nothing else."""
    mask = torch.rand(B, T, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[0] = True
    mask[-1] = False
    return mask


def close(one, other, dtype) -> None:
    if isinstance(other, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            close(a, b, dtype)
        return
    assert one.shape == other.shape
    if one.numel() == 0:  # the tail of a layer without convolution
        return
    error, size = float((one - other).detach().abs().max()), float(other.detach().abs().max())
    assert error <= TOLERANCE[dtype] * max(1.0, size), f"{error:.2g} apart, at a size of {size:.2g}"


@dtypes
@pytest.mark.parametrize("name", NAMES)
@few
@given(cuts=lengths, seed=seeds)
def test_any_split_equals_the_whole(name, dtype, cuts, seed):
    reader = readers(dtype)[name]
    x = embeddings(2, sum(cuts), seed, dtype)
    whole, state = read(reader, x)
    with torch.set_grad_enabled(seed % 2 == 0):  # without gradients tokens are added in place
        pieces, last = read_in_pieces(reader, x, cuts)
    close(pieces, whole, dtype)
    if "attention" not in name:  # full attention keeps everything, however it was cut
        close(state_tensors(last), state_tensors(state), dtype)


@pytest.mark.parametrize("name", NAMES)
@few
@given(cuts=lengths, seed=seeds)
def test_padding_is_a_no_op(name, cuts, seed):
    reader = readers()[name]
    T = sum(cuts)
    x, mask = embeddings(4, T, seed, torch.float64), ragged_mask(4, T, seed)
    with torch.set_grad_enabled(seed % 2 == 0):  # without gradients tokens are added in place
        padded, last = read_in_pieces(reader, x, cuts, mask)
    for b in range(3):
        real = mask[b]
        if not real.any():
            continue
        alone, state = read(reader, x[b : b + 1, real])
        close(padded[b : b + 1, real], alone, torch.float64)
        more = embeddings(1, 7, seed + 1, torch.float64)
        close(
            read(reader, more, last.select(torch.tensor([b])))[0], read(reader, more, state)[0], torch.float64
        )  # and both go on alike


@dtypes
@few
@given(cuts=lengths, seed=seeds)
def test_a_model_may_be_cut_and_padded_anywhere(dtype, cuts, seed):
    model = small_model(dtype)
    T = sum(cuts)
    tokens = torch.randint(0, 17, (3, T), generator=torch.Generator().manual_seed(seed))
    mask = ragged_mask(3, T, seed)
    with torch.set_grad_enabled(seed % 2 == 0):  # without gradients tokens are added in place
        padded, _ = read_in_pieces(model, tokens, cuts, mask)
    for b in range(2):
        if mask[b].any():
            close(padded[b : b + 1, mask[b]], read(model, tokens[b : b + 1, mask[b]])[0], dtype)


@few
@given(seed=seeds, borders=st.sets(st.integers(1, 22), max_size=5))
def test_packed_documents_know_nothing_of_each_other(seed, borders):
    model = small_model()
    tokens = torch.randint(0, 17, (2, 23), generator=torch.Generator().manual_seed(seed))
    starts = torch.zeros(2, 23, dtype=torch.bool)
    starts[0, list(borders)] = True
    starts[1, 5] = True
    packed = model(tokens, starts=starts, surprise=True)
    for b, cuts in ((0, sorted(borders)), (1, [5])):
        edges = [0, *cuts, 23]
        for a, z in itertools.pairwise(edges):
            alone = model(tokens[b : b + 1, a:z], surprise=True)
            close(packed.logits[b : b + 1, a:z], alone.logits, torch.float64)
            for block, report in alone.surprise.items():
                close(packed.surprise[block].gradient_norm[b : b + 1, a:z], report.gradient_norm, torch.float64)
    more = torch.randint(0, 17, (1, 6), generator=torch.Generator().manual_seed(seed + 1))
    after = model(more, state=packed.state.select(torch.tensor([1]))).logits
    close(after, model(more, state=model(tokens[1:, 5:]).state).logits, torch.float64)


def test_a_state_is_a_value():
    """Going on twice from one state gives the same twice: nothing is changed in place."""
    model = small_model()
    tokens = torch.randint(0, 17, (2, 9), generator=torch.Generator().manual_seed(0))
    state = model(tokens).state
    before = [t.clone() for t in state_tensors(state)]
    once = model(tokens, state=state).logits
    assert torch.equal(model(tokens, state=state).logits, once)
    assert all(torch.equal(a, b) for a, b in zip(before, state_tensors(state), strict=True))


@pytest.mark.parametrize("name", NAMES)
@few
@given(seed=seeds)
def test_rows_come_and_go(name, seed):
    """A batch whose rows are taken over by other streams, or leave, reads each stream as it reads alone."""
    reader, random = readers()[name], np.random.default_rng(seed)
    streams: list[torch.Tensor] = []
    state: object = None

    def begun(count: int) -> tuple[list[int], object]:
        """New streams of different lengths, read in one call."""
        lengths = random.integers(1, 9, count)
        x = embeddings(count, int(lengths.max()), int(random.integers(1000)), torch.float64)
        mask = torch.arange(x.shape[1]) < torch.from_numpy(lengths)[:, None]
        streams.extend(row[:length] for row, length in zip(x, lengths, strict=True))
        return list(range(len(streams) - count, len(streams))), read(reader, x, None, mask)[1]

    with torch.inference_mode():
        rows, state = begun(5)
        for _ in range(25):
            event = random.integers(6)
            if event == 0 and len(rows) > 1:  # two rows, or one, go over to streams that have just begun
                new, other = begun(3)
                kept = [t.clone() for t in state_tensors(other)]
                at = [int(row) for row in random.permutation(len(rows))[: random.integers(1, 3)]]
                picks = [int(pick) for pick in random.integers(0, 3, len(at))]
                state = state.overwrite(at, other, picks)
                assert all(torch.equal(a, b) for a, b in zip(kept, state_tensors(other), strict=True))
                for row, pick in zip(at, picks, strict=True):
                    streams.append(streams[new[pick]])  # perhaps more than one goes on with it
                    rows[row] = len(streams) - 1
            elif event == 1 and len(rows) > 2:  # a row leaves, and the last one takes its place
                gone = int(random.integers(len(rows) - 1))
                state = state.shrink([*range(gone), len(rows) - 1, *range(gone + 1, len(rows) - 1)])
                rows[gone] = rows.pop()
            else:
                x = embeddings(len(rows), int(random.choice([1, 1, 1, 4])), int(random.integers(1000)), torch.float64)
                y, state = read(reader, x, state)
                for row, piece in zip(rows, x, strict=True):
                    streams[row] = torch.cat([streams[row], piece])
                for at, row in enumerate(rows):
                    close(y[at], read(reader, streams[row][None])[0][0, -x.shape[1] :], torch.float64)


def test_reading_from_the_initial_state_is_reading_from_the_beginning():
    model = small_model()
    tokens = torch.randint(0, 17, (2, 23), generator=torch.Generator().manual_seed(0))
    state = model.initial_state(2)
    assert torch.equal(model(tokens, state=state).logits, model(tokens).logits)
    constant = small_model(blocks=("mag", "mac", "lmm"))
    assert constant.initial_state(2).nbytes == constant(tokens).state.nbytes


def test_no_grad_and_inference_mode_change_nothing():
    model = small_model()
    tokens = torch.randint(0, 17, (2, 23), generator=torch.Generator().manual_seed(0))
    expected = model(tokens).logits
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            first = model(tokens[:, :10])
            second = model(tokens[:, 10:], state=first.state)
        close(torch.cat([first.logits, second.logits], 1), expected, torch.float64)
    assert torch.equal(model.train()(tokens).logits, expected)  # there is no dropout


def test_state_size_does_not_grow():
    model = small_model(blocks=("mag", "lmm", "window"))
    tokens = torch.randint(0, 17, (1, 1000), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        state = model(tokens).state
        size = state.nbytes
        assert size == sum(t.numel() * t.element_size() for t in state_tensors(state)) + 8 * 4  # and four counters
        for _ in range(20):
            state = model(tokens, state=state).state
    assert state.nbytes == size


def test_frozen_memories_stay_what_they_are():
    model = small_model(blocks=("mag", "lmm"))
    tokens = torch.randint(0, 17, (1, 30), generator=torch.Generator().manual_seed(0))
    first, second = model(tokens[:, :7], learn=False), model(tokens, learn=False)
    for a, b, block in zip(first.state.blocks, second.state.blocks, model.blocks, strict=True):
        for w, v, initial in zip(
            a.memory.memory.weights, b.memory.memory.weights, block.mixer.memory.initial, strict=True
        ):
            assert torch.equal(w, v)
            assert torch.equal(w[0], initial)
    assert not torch.allclose(model(tokens).logits, second.logits)
