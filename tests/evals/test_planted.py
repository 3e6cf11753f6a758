"""Facts stand in the text once, questions come after them, and the text between is unseen source code."""

from __future__ import annotations

import re

import numpy as np
import pytest

from mnemonist.data import IGNORED, ByteTokenizer, standard_library
from mnemonist.errors import UserError
from mnemonist.evals.planted import BEFORE, Planted
from mnemonist.evals.problems import draw

BYTES = ByteTokenizer()


def source(split):
    return b"\n\n".join(document.text for document in standard_library(split)).decode("utf-8", "replace")


@pytest.mark.parametrize("distance", [256, 4096])
def test_a_question_is_answered_by_the_one_fact_of_its_name(distance):
    problems = draw(Planted(), {"distance": distance}, 10)
    held_out = source("heldout")
    for tokens, targets in zip(problems.tokens, problems.targets, strict=True):
        asked = np.flatnonzero(targets != IGNORED)
        text = BYTES.decode(tokens[: asked[0] + 1])
        name = re.search(r"\n# recall: (.*) =\Z", text)[1]
        [(place, value)] = [(m.start(), m[1]) for m in re.finditer(rf"# remember: {re.escape(name)} = (\d+)\n", text)]
        assert BYTES.decode(targets[asked]) == f" {value}" and len(value) == 4
        behind = len(text[place:].encode())
        assert distance - 100 < behind < distance + BEFORE + 100
        before, _, between = text.partition(f"# remember: {name} = {value}\n")
        assert before[before.find("\n") + 1 :] + between.rpartition("# recall")[0] in held_out


def test_lessons_are_of_training_text_and_ask_for_everything_or_for_answers():
    train = source("train")
    for setting in Planted(trained=2048).lessons:
        problems = draw(Planted(trained=2048), setting, 6, split="train")
        for tokens, targets in zip(problems.tokens, problems.targets, strict=True):
            text = BYTES.decode(tokens) + "\n" * int(tokens[-1] != ord("\n"))
            assert tokens[0] == BYTES.bos_id and len(tokens) == 2048
            facts = dict(re.findall(r"# remember: (\S+) = (\d{4})\n", text))
            asked = [m for m in re.finditer(r"# recall: (\S+) = (\d{4})\n", text)]
            assert len(facts) == setting["facts"] and 0.6 * setting["questions"] < len(asked) <= setting["questions"]
            assert {question[1] for question in asked} == set(facts)
            for question in asked:
                assert question[2] == facts[question[1]]
                assert text.index(f"# remember: {question[1]} ") < question.start()
            wanted = targets != IGNORED
            assert (targets[:-1][wanted[:-1]] == tokens[1:][wanted[:-1]]).all()
            if setting["questions"] == 16:
                assert wanted.all()
            else:
                answers = [question[2] for question in asked]
                assert BYTES.decode(targets[wanted]) == "".join(f" {answer}" for answer in answers)
            plain = re.sub(r"# (remember|recall): [^\n]*(\n|\Z)", "", text)
            assert len(plain) >= 256 and plain.rstrip("\n") in train


def test_few_facts_and_many():
    lessons = [(lesson["facts"], lesson["questions"]) for lesson in Planted(trained=1024).lessons]
    assert lessons == [(facts, questions) for questions in (8, 32, 32) for facts in (1, 2, 4, 8)]
    assert [setting["distance"] for setting in Planted(longest=2000).grid] == [256, 512, 1024, 2000]


def test_too_much_is_asked_for():
    with pytest.raises(UserError, match=r"100,000,256 bytes of source code are asked for, but there are"):
        draw(Planted(), {"distance": 10**8}, 1)
    with pytest.raises(ValueError, match=r"trained is 100, .* at least 1024"):
        Planted(trained=100)
