"""Every generator goes on where it stopped, and a damaged state is refused."""

import copy
import json
import random

import numpy as np
import pytest
import torch

from mnemonist.errors import UserError
from mnemonist.training.randomness import capture_random_state, restore_random_state, seed_generators

CPU = torch.device("cpu")


def draw() -> list[float]:
    # gauss and standard_normal make two numbers and keep one back: the state has a part that is easily lost.
    return [random.gauss(0, 1), float(np.random.standard_normal()), *torch.randn(3).tolist()]


def test_a_captured_state_travels_as_json() -> None:
    seed_generators(5, 0)
    draw()
    text = json.dumps(capture_random_state(CPU))
    expected = [draw() for _ in range(3)]
    seed_generators(6, 0)
    restore_random_state(json.loads(text), CPU)
    assert [draw() for _ in range(3)] == expected


def test_seeds_and_processes_draw_different_numbers() -> None:
    drawn = set()
    for seed, rank in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        seed_generators(seed, rank)
        drawn |= set(draw())
    assert len(drawn) == 4 * 5
    seed_generators(0, 0)
    assert set(draw()) < drawn


@pytest.mark.parametrize(
    ("generator", "value"),
    [
        ("python", None),
        ("python", [3, [1, 2], None]),
        ("numpy", {"key": [0] * 624, "pos": 10**6, "has_gauss": 0, "gauss": 0.0}),
        ("numpy", {"key": [0] * 623, "pos": 0, "has_gauss": 0, "gauss": 0.0}),
        ("numpy", {"key": [-1] * 624, "pos": 0, "has_gauss": 0, "gauss": 0.0}),
        ("numpy", {}),
        ("torch", "AAAA"),
        ("torch", "not base64"),
        ("torch", 7),
    ],
)
def test_a_damaged_state_is_refused(generator: str, value: object) -> None:
    state = copy.deepcopy(capture_random_state(CPU))
    state[generator] = value
    with pytest.raises(UserError, match="random state is damaged"):
        restore_random_state(state, CPU)


def test_a_state_without_cuda_does_not_fit_a_cuda_device() -> None:
    with pytest.raises(UserError, match="none for a CUDA device"):
        restore_random_state(capture_random_state(CPU), torch.device("cuda", 0))
