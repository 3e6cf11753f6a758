"""Background text is varied, the same by seed, and silent about what others ask."""

from __future__ import annotations

import itertools
import re
import string

import numpy as np

from mnemonist.evals.background import PATTERNS, WORDS, sentences

ASKED = "kitchen|bathroom|hallway|garden|office|bedroom|football|milk|apple|mary|john|daniel|sandra|magic|number|uuid"


def first(count, seed=0):
    return list(itertools.islice(sentences(np.random.default_rng(seed)), count))


def test_sentences_are_sentences_and_seldom_twice_the_same():
    made = first(2000)
    assert all(sentence[0].isupper() and sentence.endswith(".") and "{" not in sentence for sentence in made)
    assert len(set(made)) > 1500
    assert made[:300] == first(300) != first(300, seed=1)


def test_nothing_that_is_asked_about_is_in_it():
    every = " ".join([*WORDS.values(), *PATTERNS]).lower()
    words = set(re.findall(r"[a-z']+", every))
    assert not [word for word in words if re.fullmatch(f"({ASKED})s?", word)]
    assert not set(every) & set(string.digits)
    names = {field for _, field, _, _ in (part for p in PATTERNS for part in string.Formatter().parse(p)) if field}
    assert {name.lower() for name in names} == set(WORDS)


def test_the_stream_is_pinned():
    assert first(2) == [
        "The mayor thought of the town hall, for the work was nearly done.",
        "Between the town hall and the church the widow examined a vase against all advice.",
    ]
