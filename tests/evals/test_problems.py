"""Problems are a function of their number; questions ask for exactly their answers."""

from __future__ import annotations

import numpy as np
import pytest

from mnemonist.data import IGNORED, ByteTokenizer
from mnemonist.errors import UserError
from mnemonist.evals.associative_recall import AssociativeRecall
from mnemonist.evals.problems import Problem, Problems, Question, draw

TASK = AssociativeRecall(vocabulary=32)
EASY = {"length": 64, "pairs": 4}


def test_a_problem_follows_from_its_number_alone():
    whole = draw(TASK, EASY, 6)
    again = draw(TASK, {"pairs": 4, "length": 64}, 2, first=3)  # the order of names does not matter
    assert np.array_equal(whole.tokens[3:5], again.tokens)
    assert len({row.tobytes() for row in whole.tokens}) == 6
    others = [draw(TASK, EASY, 6, seed=1), draw(TASK, EASY, 6, split="train"), draw(TASK, {**EASY, "pairs": 5}, 6)]
    for other in others:
        assert not {row.tobytes() for row in whole.tokens} & {row.tobytes() for row in other.tokens}


def test_shorter_problems_are_padded_with_nothing_asked():
    one = Problem(np.array([5, 6]), np.array([IGNORED, 7]))
    two = Problem(np.array([1, 2, 3]), np.array([2, IGNORED, 4]))
    stacked = Problems.stack([one, two])
    assert stacked.targets.tolist() == [[IGNORED, 7, IGNORED], [2, IGNORED, 4]]
    assert stacked.tokens[0, :2].tolist() == [5, 6] and len(stacked) == 2


def test_a_question_asks_for_its_answer():
    problem = Question("2 + 2 =", " 4.").problem(ByteTokenizer())
    assert problem.tokens[0] == ByteTokenizer.bos_id
    assert bytes(problem.tokens[1:].astype(np.uint8)) == b"2 + 2 = 4"  # the last token is asked for, not read
    asked = problem.targets != IGNORED
    assert bytes(problem.targets[asked].astype(np.uint8)) == b" 4."
    assert bytes(problem.tokens[asked].astype(np.uint8)) == b"= 4"


def test_what_is_no_problem():
    with pytest.raises(ValueError, match=r"both must be \[T\]"):
        Problem(np.array([1, 2]), np.array([1]))
    with pytest.raises(ValueError, match="at least one token"):
        Problem(np.array([1]), np.array([IGNORED]))
    with pytest.raises(ValueError, match="no problems to stack"):
        Problems.stack([])
    with pytest.raises(UserError, match="no tokens for the answer ''"):
        Question("x", "").problem(ByteTokenizer())
