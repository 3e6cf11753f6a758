"""The benchmark of the candidates measures every one of them, at one number of parameters."""

from __future__ import annotations

import importlib

import pytest

from mnemonist.evals.candidates import CANDIDATES
from mnemonist.models.cost import model_cost


@pytest.fixture
def candidates(benchmarks):
    return importlib.import_module("candidates")


def test_candidates_are_equals(candidates):
    configs = candidates.configurations(candidates.Sizes())
    assert set(configs) == set(CANDIDATES) and list(configs)[-1] == candidates.PEER
    parameters = [model_cost(config).parameters for config in configs.values()]
    assert max(parameters) - min(parameters) <= 0.01 * max(parameters)


def test_a_rehearsal_measures_all(candidates):
    sizes = candidates.TINY
    for measure in candidates.group(sizes).measures:
        pairs = measure.take()
        assert len(pairs) == len(measure.rows) == len(CANDIDATES) - 1
        assert [pair.facts["candidate"] for pair in pairs] == [name for name in CANDIDATES if name != candidates.PEER]
        assert all(min(*pair.ours, *pair.theirs) > 0 for pair in pairs)
