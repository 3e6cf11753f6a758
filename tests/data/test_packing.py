"""Rows hold every token of the corpus once an epoch, and a batch is a function of its arguments."""

import hashlib
import json
import pickle
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import MARKS, sample, trained

import mnemonist.data.packing
from mnemonist.data import IGNORED, Batch, ByteTokenizer, Document, PackedRows, SubwordTokenizer
from mnemonist.errors import UserError

BOS = ByteTokenizer.bos_id


def corpus(lengths: list[int]) -> list[Document]:
    """Documents whose bytes are all different from those of their neighbours."""
    text = bytes(range(256)) * (1 + sum(lengths) // 256)
    starts = np.cumsum([0, *lengths])
    return [Document(str(i), text[a : a + n]) for i, (a, n) in enumerate(zip(starts, lengths, strict=False))]


def epoch_of_rows(rows: PackedRows, epoch: int) -> Batch:
    return rows.batch(epoch, rows.rows_per_epoch)


def rows_of(batch: Batch) -> list[tuple[int, ...]]:
    return [tuple(row) for row in np.concatenate([batch.tokens, batch.targets[:, -1:]], axis=1).tolist()]


def equal(a: Batch, b: Batch) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("tokens", "targets", "starts"))


def streams(documents: list[Document]) -> set[tuple[int, ...]]:
    """The stream of every order of the documents."""
    return {tuple(token for d in order for token in (BOS, *d.text)) for order in permutations(documents)}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.integers(1, 17), st.integers(0, 5))
def test_an_epoch_is_some_order_of_the_documents_cut_into_rows(lengths: list[int], row_length: int, epoch: int) -> None:
    documents = corpus(lengths)
    total = sum(lengths) + len(lengths)
    if total <= row_length:
        with pytest.raises(UserError, match=f"{total} tokens"):
            PackedRows(documents, row_length, seed=1)
        return
    rows = PackedRows(documents, row_length, seed=1)
    batch = epoch_of_rows(rows, epoch)
    found = sorted(rows_of(batch))
    # The definition, by trying every order: rows overlap by one token, and the tail is dropped.
    possible = []
    for stream in streams(documents):
        starts = range(0, total - row_length, row_length)
        windows = [list(stream[start : start + row_length + 1]) for start in starts]
        possible.append(sorted((*w[:-1], IGNORED if w[-1] == BOS else w[-1]) for w in windows))
    assert found in possible
    assert rows.rows_per_epoch * row_length == rows.tokens_per_epoch == batch.tokens.size
    assert rows.tokens_per_epoch + rows.tail == total - 1 and 0 <= rows.tail < row_length


def test_targets_are_the_next_tokens_and_never_a_start() -> None:
    rows = PackedRows(corpus([5, 0, 9, 3, 30]), row_length=7, seed=0)
    batch = epoch_of_rows(rows, 0)
    assert batch.tokens.dtype == batch.targets.dtype == np.int64 and batch.starts.dtype == bool
    assert np.array_equal(batch.starts, batch.tokens == BOS) and batch.starts.any()
    following, targets = batch.tokens[:, 1:], batch.targets[:, :-1]
    assert np.array_equal(targets == IGNORED, following == BOS)
    assert np.array_equal(targets[following != BOS], following[following != BOS])
    assert (batch.targets != BOS).all()


def test_a_batch_depends_on_its_arguments_alone() -> None:
    documents = corpus([50, 20, 70, 10])
    rows = PackedRows(documents, row_length=8, seed=3)
    expected = [rows.batch(step, 5) for step in range(30)]
    fresh = PackedRows(iter(documents), row_length=8, seed=3)
    for step in (29, 0, 11, 12, 11, 3):  # also backwards, across epochs
        assert equal(fresh.batch(step, 5), expected[step])
    expected[4].tokens[:] = 0  # a caller's own copy
    assert not equal(fresh.batch(4, 5), expected[4])
    assert equal(pickle.loads(pickle.dumps(fresh)).batch(7, 5), expected[7])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_the_batch_of_one(world: int) -> None:
    rows = PackedRows(corpus([50, 20, 70, 10]), row_length=8, seed=3)
    for step in range(12):
        parts = [rows.batch(step, 6 // world, rank, world) for rank in range(world)]
        assert [row for part in parts for row in rows_of(part)] == rows_of(rows.batch(step, 6))


def test_epochs_follow_without_a_gap() -> None:
    rows = PackedRows(corpus([50, 20, 70, 10]), row_length=8, seed=3)
    count = rows.rows_per_epoch
    one_by_one = [rows_of(rows.batch(step, 1))[0] for step in range(3 * count)]
    assert one_by_one == [row for epoch in range(3) for row in rows_of(epoch_of_rows(rows, epoch))]
    assert one_by_one == rows_of(rows.batch(0, 3 * count))  # a batch may be longer than an epoch
    assert rows.epoch(0, 4) == 0 and rows.epoch(count, 2, world=3) == 6
    assert rows.epoch(1, count // 2) == pytest.approx((count // 2) / count)


def test_seeds_and_epochs_shuffle_documents_and_rows() -> None:
    documents = corpus([31] * 8)
    epochs = [
        rows_of(epoch_of_rows(PackedRows(documents, row_length=8, seed=seed), epoch))
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len({tuple(epoch) for epoch in epochs}) == 4
    # 32 tokens a document and rows of 8: most rows are the same in every epoch, in another order.
    assert len(set(epochs[0]) & set(epochs[1])) >= 24


def test_the_order_is_frozen() -> None:
    """A resumed run must read what it would have read, on another version of numpy too."""
    batch = PackedRows(corpus([6, 5, 9]), row_length=4, seed=7).batch(0, 3)
    assert batch.tokens.tolist() == [[15, 16, 17, 18], [256, 0, 1, 2], [3, 4, 5, 256]]


def test_rows_of_bytes_are_frozen() -> None:
    """What any row holds, over several epochs."""
    documents = [Document(f"d{n}.txt", (f"line {n} żółw\n" * (n * 7 % 23 + 1)).encode()) for n in range(40)]
    rows = PackedRows(documents, row_length=48, seed=5)
    digest = hashlib.sha256()
    for step in range(0, 200, 7):
        batch = rows.batch(step, 3, rank=step % 2, world=2)
        for array in (batch.tokens, batch.targets, batch.starts):
            digest.update(np.ascontiguousarray(array).tobytes())
    assert (rows.rows_per_epoch, digest.hexdigest()[:16]) == (160, "0a78d872148ed87c")
    assert rows.bytes_per_token == 1


@pytest.mark.parametrize("kind", ["cl100k", "unigram"])
def test_rows_of_subwords(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The documents behind their start marks, encoded whole, however small the pieces they are encoded in."""
    tokenizer = SubwordTokenizer(json.loads(trained(kind)), MARKS[kind])
    documents = [Document(str(n), text.encode()) for n, text in enumerate(sample()[:3])]
    told: list[int] = []
    monkeypatch.setattr(mnemonist.data.packing, "PIECE", 777)
    rows = PackedRows(documents, 64, 0, tokenizer, told.append)
    texts = [tokenizer.encode(document.text, bos=True).tolist() for document in documents]
    total = sum(map(len, texts))
    assert rows.tokens_per_epoch + rows.tail == total - 1
    size = sum(len(document.text) for document in documents)
    assert told == sorted(told) and told[-1] == size
    assert rows.bytes_per_token == pytest.approx(size / (total - 3))
    batch = epoch_of_rows(rows, 0)
    assert np.array_equal(batch.starts, batch.tokens == tokenizer.bos_id) and batch.starts.any()
    assert (batch.targets != tokenizer.bos_id).all()
    laid_out = [[token for text in order for token in text] for order in permutations(texts)]
    possible = {tuple(stream[a : a + 65]) for stream in laid_out for a in range(0, len(stream), 64)}
    following = np.where(batch.targets == IGNORED, tokenizer.bos_id, batch.targets)
    assert {
        (*row, last) for row, last in zip(batch.tokens.tolist(), following[:, -1].tolist(), strict=True)
    } <= possible


def test_a_large_vocabulary_is_kept_whole() -> None:
    class Wide(ByteTokenizer):
        """Bytes, a hundred thousand further up."""

        vocab_size = 100_259
        bos_id = 100_256

        def stream(self, remainder: bytes = b"") -> "Wide":  # type: ignore[override]
            return self

        def feed(self, data: bytes) -> np.ndarray:
            return np.frombuffer(data, np.uint8).astype(np.int64) + 100_000

        def finish(self) -> np.ndarray:
            return np.empty(0, np.int64)

    documents = corpus([50, 20])
    wide, plain = PackedRows(documents, 8, 3, Wide()).batch(0, 8), PackedRows(documents, 8, 3).batch(0, 8)  # type: ignore[arg-type]
    assert np.array_equal(wide.tokens, plain.tokens + 100_000)
    assert np.array_equal(wide.targets, np.where(plain.targets == IGNORED, IGNORED, plain.targets + 100_000))


def test_real_text_reads_on() -> None:
    text = "It was the best of times, it was the worst of times. " * 8
    rows = PackedRows([Document("a", text.encode())], row_length=16, seed=0)
    decoded = [ByteTokenizer().decode(row) for row in epoch_of_rows(rows, 0).tokens]
    assert all(row in text for row in decoded) and sum(map(len, decoded)) == rows.tokens_per_epoch - 1


@pytest.mark.parametrize("arguments", [(-1, 2, 0, 1), (0, 0, 0, 1), (0, 2, 1, 1), (0, 2, -1, 2), (0, 2, 0, 0)])
def test_arguments_out_of_range_are_refused(arguments: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        PackedRows(corpus([40]), row_length=8, seed=0).batch(*arguments)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="row_length must be at least 1, not 0"):
        PackedRows(corpus([9]), row_length=0, seed=0)
    with pytest.raises(ValueError, match="seed must be 0 or more, not -1"):
        PackedRows(corpus([9]), row_length=4, seed=-1)
    with pytest.raises(UserError, match="0 tokens, and one row takes 5"):
        PackedRows([], row_length=4, seed=0)
