"""A second reader, who knows nothing but the sentences, comes to the same answers."""

from __future__ import annotations

import collections

import numpy as np
import pytest
from worlds import solve

from mnemonist.evals.world import FACTS, ROOMS, TAKES, tell


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


def test_what_supports_an_answer_is_the_last_act_on_the_thing_and_the_walk_before():
    for seed in range(300):
        story = tell(np.random.default_rng(seed), 2, 12)
        thing = story.question.split()[-1].rstrip("?")
        act = max(i for i, fact in enumerate(story.facts) if fact.endswith(f" {thing}."))
        person, verb = story.facts[act].split(" ", 1)
        until = len(story.facts) if verb.startswith(TAKES) else act  # what is held goes on moving
        walks = [i for i in range(until) if story.facts[i].startswith(person) and story.facts[i][:-1].endswith(ROOMS)]
        assert story.support == tuple(sorted((act, walks[-1])))
    for seed in range(300):
        story = tell(np.random.default_rng(seed), 3, 12)
        rooms = {story.answer, story.question.split()[-1].rstrip("?")}
        told = " ".join(story.facts[i] for i in story.support)
        assert all(room in told for room in rooms)
        assert solve(story.facts[: max(story.support) + 1], story.question) == story.answer


def test_the_least_facts_suffice():
    for task, (least, _) in FACTS.items():
        assert len(tell(np.random.default_rng(task), task, least).facts) == least
