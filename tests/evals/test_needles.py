"""Each question's answer stands in its text, which is RULER's to the letter and as long as asked for."""

from __future__ import annotations

import re
import uuid

import numpy as np
import pytest

from mnemonist.data import IGNORED, ByteTokenizer
from mnemonist.errors import UserError
from mnemonist.evals.needles import NOISE, VARIANTS, NeedleInHaystack, word_lists, words_of
from mnemonist.evals.problems import draw

NEEDLE = re.compile(r"One of the special magic (numbers|uuids) for (\S+) is: (\S+)\.")


def texts(task, length, count=1, seed=0):
    """Prompts and answers as text."""
    problems = draw(task, {"length": length}, count, seed)
    for tokens, targets in zip(problems.tokens, problems.targets, strict=True):
        asked = np.flatnonzero(targets != IGNORED)
        assert (np.diff(asked) == 1).all() and tokens[0] == ByteTokenizer.bos_id
        yield bytes(tokens[1 : asked[0] + 1].astype(np.uint8)).decode(), bytes(targets[asked].astype(np.uint8)).decode()


def test_the_easiest_one_in_full():
    ((text, answer),) = texts(NeedleInHaystack(), 512)
    needle = NEEDLE.search(text)
    key, value = needle[2], needle[3]
    context = "\n".join([needle[0], NOISE])
    assert text == (
        "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about "
        f"the number afterwards.\n{context}\nWhat is the special magic number for {key} mentioned in the provided "
        f"text? The special magic number for {key} mentioned in the provided text is"
    )
    assert answer == f" {value}"
    assert (key, value) == ("noiseless-pick", "5068073")


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_a_reader_who_searches_finds_every_answer(variant):
    task, spec = NeedleInHaystack(variant=variant), VARIANTS[variant]
    for text, answer in texts(task, 3000, 4):
        context, question = text.rsplit("\nWhat ", 1)
        found = NEEDLE.findall(context)
        assert {kind for kind, _, _ in found} == {spec.kind}
        several = spec.values * spec.queries > 1
        asked = re.search(r"for (.*) mentioned in the provided text\?", question)[1]
        keys = asked.replace(", and ", ", ").split(", ")
        assert len(keys) == len(set(keys)) == spec.queries
        expected = [value for key in keys for _, name, value in found if name == key]
        assert answer == " " + ", ".join(expected) and len(expected) == spec.queries * spec.values
        assert question.startswith("are all" if several else "is the") and question.endswith(
            " are" if several else " is"
        )
        assert text.startswith("Some special" if several else "A special")
        if spec.haystack == "needles":
            assert len(found) > 15
        else:
            assert len(found) == spec.needles * spec.values
            assert (NOISE in context) == (spec.haystack == "noise")
        for _, name, value in found:
            if spec.kind == "numbers":
                assert 10**6 <= int(value) < 10**7
            else:
                assert uuid.UUID(value).version == 4
            if spec.keys == "words":
                assert any(name.startswith(adjective + "-") for adjective in word_lists()[0])


@pytest.mark.parametrize("variant", ["single-1", "single-2-like", "multikey-2", "multiquery-like"])
@pytest.mark.parametrize("length", [1024, 5000, 40_000])
def test_texts_are_as_long_as_asked_for_and_not_longer(variant, length):
    for text, answer in texts(NeedleInHaystack(variant=variant), length, 2):
        total = 1 + len(text) + len(answer)
        assert length - 250 < total <= length


def test_needles_stand_everywhere_or_where_they_are_told_to():
    def depths(**fields):
        found = [(text.index("One of the"), len(text)) for text, _ in texts(NeedleInHaystack(**fields), 4096, 40)]
        return np.array([at / length for at, length in found])

    drawn = depths()
    assert drawn.min() < 0.2 and drawn.max() > 0.7 and drawn.std() > 0.15
    middle = depths(depth=50)
    assert abs(middle - 0.5).max() < 0.1
    assert depths(depth=100).min() > 0.85


def test_settings():
    task = NeedleInHaystack(shortest=1000, longest=5000, trained=700)
    assert [s["length"] for s in task.grid] == [1000, 2000, 4000, 5000]
    assert [s["length"] for s in task.lessons] == [512, 700]
    assert NeedleInHaystack(trained=300).lessons == [{"length": 300}]
    with pytest.raises(UserError, match="without any haystack; 100 are too few"):
        draw(task, {"length": 100}, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variant": "single-one"}, r"did you mean 'single-1'"),
        ({"shortest": 9, "longest": 8}, "the first at most the second"),
        ({"depth": 101}, "must be a percentage"),
        ({"variant": "multikey-1-like", "depth": 5}, "has several needles"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        NeedleInHaystack(**fields)


def test_words_for_a_tokenizer_are_those_of_the_problems():
    texts = list(words_of("single-1", 2))
    assert len(texts) == 4 and texts == list(words_of("single-1", 2))
    assert texts[0].endswith("mentioned in the provided text is") and texts[1].strip().isdigit()
