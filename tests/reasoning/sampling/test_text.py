"""Stop strings are found when a naive reader of the whole text finds them, at constant cost a token."""

from __future__ import annotations

import random

import pytest
from tiny_tokenizers import CHAT, chat_tokenizer

from mnemonist.data import ByteTokenizer
from mnemonist.reasoning.sampling.text import (
    StopFinder,
    end_of_message,
    first_stop,
    in_template,
    text_tokenizer,
    written_text,
)

PIECES = ["a", "b", "ab", " ", "é", "漢", "🐢", "\n", "Wait", "abab", "</think>", "</th"]
STOPS = [
    ("ab",),
    ("é",),
    ("🐢\n",),
    ("</think>", "Wait"),
    ("a", "b"),
    ("b a", "aab", "漢字"),
    ("nowhere at all, ever",),
]


class Pieces:
    """Tokens of several characters; SentencePiece-like, it drops the space that a text begins with."""

    end_ids: frozenset[int] = frozenset()

    def encode(self, text):
        raise NotImplementedError

    def decode(self, ids):
        return "".join(PIECES[i] for i in ids).removeprefix(" ")


def naive(tokenizer, prompt, ids, stop):
    """How many tokens it takes until the text behind the prompt has a stop string."""
    whole = len(tokenizer.decode(prompt))
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(prompt + ids[:count])[whole:]
        if any(mark in text for mark in stop):
            return count
    return None


@pytest.mark.parametrize("stop", STOPS, ids=repr)
@pytest.mark.parametrize("kind", ["pieces", "bytes"])
def test_found_with_the_same_token_as_by_a_naive_reader(kind, stop):
    draw = random.Random(repr((kind, stop)))
    found = 0
    for _ in range(60):
        numbers = [draw.randrange(len(PIECES)) for _ in range(draw.randrange(1, 80))]
        if kind == "pieces":
            tokenizer, ids = Pieces(), numbers
        else:
            tokenizer = text_tokenizer(ByteTokenizer())
            ids = list("".join(PIECES[i] for i in numbers).encode())
        cut = draw.randrange(min(6, len(ids)))
        if kind == "bytes":  # a prompt is text, so it ends with a whole character
            cut = len(ByteTokenizer().decode(ids[:cut]).replace("\N{REPLACEMENT CHARACTER}", "").encode())
        prompt, ids = ids[:cut], ids[cut:]
        finder = StopFinder(tokenizer, prompt, stop)
        count = next((n for n, token in enumerate(ids, 1) if finder.push(token)), None)
        assert count == naive(tokenizer, prompt, ids, stop)
        found += count is not None
        if count is not None:
            text = written_text(tokenizer, prompt, ids[:count])
            end = first_stop(text, stop)
            assert end is not None and text[:end].endswith(stop)
    assert found or stop == STOPS[-1]


def test_bytes_that_are_no_text_do_not_hold_it_up():
    tokenizer = text_tokenizer(ByteTokenizer())
    finder = StopFinder(tokenizer, [], ("\N{REPLACEMENT CHARACTER}x",))
    assert [finder.push(token) for token in [0xFF] * 9 + [ord("x")]] == [False] * 9 + [True]


def test_the_cost_of_a_token_does_not_grow():
    decoded = []

    class Counting(Pieces):
        def decode(self, ids):
            decoded.append(len(ids))
            return super().decode(ids)

    finder = StopFinder(Counting(), [0] * 500, STOPS[-1])
    for n in range(2000):
        finder.push(n % 4)
    assert max(decoded) < 20 and len(decoded) < 2 * 2000


def test_text_behind_a_prompt_keeps_its_first_space():
    space = PIECES.index(" ")
    assert Pieces().decode([space, 0]) == "a"
    assert written_text(Pieces(), [1, 1, 1, 1, 1, 1], [space, 0]) == " a"
    assert written_text(Pieces(), [space], [space, 0]) == " a"


def test_the_stop_string_that_is_complete_first():
    assert first_stop("one two", ("two", "ne")) == 3
    assert first_stop("aXbaX", ("aX",)) == 2
    assert first_stop("abcd", ("abcd", "bc")) == 3
    assert first_stop("", ("a",)) is None


def test_ours_begin_with_their_mark():
    tokenizer = text_tokenizer(ByteTokenizer())
    assert tokenizer.encode("hi") == [256, 104, 105]
    assert tokenizer.decode([104, 257, 300]) == "h"
    assert text_tokenizer(tokenizer) is tokenizer


@pytest.mark.parametrize(
    ("template", "mark"),
    [
        (CHAT, "<|im_end|>"),
        (CHAT.replace("<|im_end|>", " </s>"), "</s>"),
        (CHAT.replace("<|im_end|>", "<|im_end|></s>"), "<|im_end|>"),
        (CHAT.replace("<|im_end|>", "."), ""),
        (CHAT.replace("<|im_end|>", ""), ""),
        ("{{ raise_exception('no users here') }}", ""),
        (None, ""),
    ],
)
def test_the_mark_behind_a_message_is_told_by_the_template(template, mark):
    tokenizer = chat_tokenizer(template)
    assert end_of_message(tokenizer) == mark
    ends = text_tokenizer(tokenizer).end_ids
    assert [tokenizer.convert_ids_to_tokens(end) for end in ends] == ["</s>", *([mark] if mark == "<|im_end|>" else [])]


def test_a_template_that_names_the_day_names_one_day_for_all():
    named = "{{ strftime_now('%d %b %Y') }}, {{ strftime_now('%Y-%m-%d') }}\n"
    given = "{% if not day is defined %}{% set day = strftime_now('%A, %B %d') %}{% endif %}{{ day }}\n"
    said = [{"role": "user", "content": "7?"}]
    asked = "<|im_start|>user\n7?<|im_end|>\n<|im_start|>assistant\n"
    for before, told in ((named, "26 Jul 2024, 2024-07-26\n"), (given, "Friday, July 26\n"), ("", "")):
        tokenizer = chat_tokenizer(before + CHAT)
        assert in_template(tokenizer, said, answering=True) == told + asked
        assert end_of_message(tokenizer) == "<|im_end|>"
