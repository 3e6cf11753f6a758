"""The benchmark of sampling counts on both sides what is part of an attempt, and nothing else."""

from __future__ import annotations

import importlib

import pytest
import torch


@pytest.fixture
def sampling(benchmarks):
    return importlib.import_module("sampling")


def test_tokens_are_counted_alike(sampling):
    sizes = sampling.Sizes(layers=1, vocabulary=64)
    model = sampling.smollm_shaped(sizes)
    prompts = torch.randint(32, 63, (5, 4))
    for make in (sampling.ours, sampling.adopted, sampling.adopted_halves, sampling.theirs, sampling.their_halves):
        assert make(model, prompts, 6, [], 2)() == 5 * 6
        # If every token ends an attempt, each has one; both sides count it.
        assert make(model, prompts, 6, list(range(64)), 2)() == 5


def test_a_rehearsal(sampling):
    sizes = sampling.Sizes(layers=1, vocabulary=64, batch=2, prompt=3, equal=4, longest=5, mean=2, ragged=4, runs=2)
    for measure in sampling.sampling(sizes).measures:
        (pairs,) = measure.take()
        assert len(pairs.ours) == len(pairs.theirs) == 2 and min(*pairs.ours, *pairs.theirs) > 0
