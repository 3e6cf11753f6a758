"""What is held out is no part of what is left, is as large as was asked for, and follows from texts and seed alone."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnemonist.data import Document, hold_out
from mnemonist.errors import UserError

MANY = tuple(Document(f"{n}.txt", bytes(random.Random(n).choices(b"abcdefgh ", k=50 + n % 7))) for n in range(200))


def size(documents: tuple[Document, ...]) -> int:
    return sum(len(document.text) for document in documents)


@pytest.mark.parametrize("share", [0.02, 0.05, 0.3, 0.9])
def test_whole_documents_are_held_out(share: float) -> None:
    learned, held = hold_out(MANY, share)
    assert sorted((*learned, *held), key=MANY.index) == list(MANY)
    assert [d for d in MANY if d in held] == list(held) and [d for d in MANY if d in learned] == list(learned)
    assert share * size(MANY) - 57 <= size(held) <= share * size(MANY)


def test_another_seed_draws_others_and_the_order_does_not_matter() -> None:
    held = set(hold_out(MANY, 0.1)[1])
    assert held == set(hold_out(MANY[::-1], 0.1)[1])
    others = [set(hold_out(MANY, 0.1, seed)[1]) for seed in (1, 2, 3)]
    assert all(len(held & other) < len(held) / 2 for other in others)


def test_the_draw_does_not_prefer_short_documents() -> None:
    """The room that is left at the end is not filled with the shortest of the rest."""
    texts = tuple(Document(str(n), random.Random(n).randbytes(10 if n % 2 else 1000)) for n in range(400))
    shares = [
        sum(len(d.text) == 10 for d in held) / len(held) for held in (hold_out(texts, 0.2, s)[1] for s in range(9))
    ]
    assert 0.35 < sum(shares) / len(shares) < 0.65


def test_copies_of_a_text_are_on_one_side() -> None:
    twins = tuple(Document(f"copy of {d.name}", d.text) for d in MANY)
    learned, held = hold_out((*MANY, *twins), 0.2)
    assert held and not {d.text for d in learned} & {d.text for d in held}


def test_of_a_single_document_the_end_is_held_out() -> None:
    text = ("żółw 🐢 " * 50).encode()
    for share in (0.05, 0.11, 0.4):
        (learned,), (held,) = hold_out([Document("one", text)], share)
        assert learned.text + held.text == text and (learned.name, held.name) == ("one", "one")
        assert learned.text.decode() and share * len(text) - 4 < len(held.text) <= share * len(text)
        assert held.text.decode()


def test_of_few_long_documents_the_end_of_the_longest() -> None:
    books = [Document("a", b"a" * 1000), Document("b", b"b" * 1200), Document("note", b"n" * 10)]
    learned, held = hold_out(books, 0.1)
    assert [(d.name, len(d.text)) for d in learned] == [("a", 1000), ("b", 1200 - 211)]
    assert [(d.name, len(d.text)) for d in held] == [("note", 10), ("b", 211)]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.floats(0.001, 0.999), st.integers(0, 3))
def test_whatever_the_corpus(lengths: list[int], share: float, seed: int) -> None:
    documents = [Document(str(n), bytes((97 + n + i) % 120 for i in range(length))) for n, length in enumerate(lengths)]
    learned, held = hold_out(documents, share, seed)
    assert size(learned) + size(held) == sum(lengths)
    assert learned and all(document.text for document in (*learned, *held))
    assert size(held) <= share * sum(lengths)


@pytest.mark.parametrize("share", [0, 1, -0.1, float("nan")])
def test_a_share_that_is_none(share: float) -> None:
    with pytest.raises(UserError, match="it must be above 0 and below 1"):
        hold_out(MANY, share)
