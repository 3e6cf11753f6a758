"""A second reader, who knows nothing but the sentences, comes to the same answers."""

from __future__ import annotations

import collections

import numpy as np
import pytest
from worlds import solve

from mnemonist.evals.world import FACTS, ROOMS, tell


@pytest.mark.parametrize("task", [1, 2, 3])
def test_answers_follow_from_the_facts(task):
    answers = collections.Counter()
    for seed in range(300):
        random = np.random.default_rng([task, seed])
        count = int(random.integers(FACTS[task][0], FACTS[task][1] + 1))
        story = tell(random, task, count)
        assert len(story.facts) == count
        assert story.answer == solve(story.facts, story.question)
        answers[story.answer] += 1
        assert story.support and max(story.support) < count
    assert set(answers) == set(ROOMS) and max(answers.values()) < 90


@pytest.mark.parametrize("task", [1, 2])
def test_what_supports_an_answer_is_enough(task):
    for seed in range(200):
        story = tell(np.random.default_rng([task, seed]), task, 10)
        kept = [story.facts[i] for i in story.support]
        assert story.answer in " ".join(kept)
        if task == 1:
            assert solve(kept, story.question) == story.answer
        else:
            assert any(story.question.split()[-1].rstrip("?") in fact for fact in kept)


def test_the_least_facts_suffice():
    for task, (least, _) in FACTS.items():
        assert len(tell(np.random.default_rng(task), task, least).facts) == least
