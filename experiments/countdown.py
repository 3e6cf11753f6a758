"""Countdown, and the small models that come with the package and know it: what several experiments begin with.

All seeds of an experiment begin with the same model, so their intervals say how much the problems drawn, the attempts
and the fits vary, and not how much another model would.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from study import Arm, Study

from mnemonist.data import find_tokenizer
from mnemonist.evals.evaluation import model_facts
from mnemonist.evals.problems import Setting
from mnemonist.evals.results import Result, Row
from mnemonist.models import LanguageModel, MnemonistForCausalLM, ModelConfig
from mnemonist.models.cost import model_cost
from mnemonist.models.shipped import find_model
from mnemonist.reasoning import Decoding, LocalSampler, find_format, find_method
from mnemonist.reasoning.proposing import Policy
from mnemonist.reasoning.search.independent import coverage
from mnemonist.reasoning.tasks import build_task
from mnemonist.reasoning.tasks.task import Problem, StepTask
from mnemonist.training import TrainingConfig

SEARCHING, JOURNEYING, STEPPING = (f"shipped/countdown{what}" for what in ("", "-journey", "-steps"))
"""Models that were taught whole searches, short journeys, and right steps alone."""
TASK = build_task("countdown:largest=12,ceiling=100")
assert isinstance(TASK, StepTask)
FORMAT = find_format("plain")
NUMBERS = (3, 4)
LONGEST = {SEARCHING: 3000, JOURNEYING: 512, STEPPING: 128}
"""Tokens of an attempt."""
TAUGHT = 20_000
"""Problems of each size that taught the models, the first of their split."""
BATCH = 128
"""Attempts that are written at a time."""
FIT = TrainingConfig(batch_size=32, learning_rate=5e-4, warmup_steps=10, save_every=200, device="cpu")


@cache
def size(model: str) -> ModelConfig:
    """Of a model."""
    return LanguageModel.load(find_model(model)).config


def open_policy(name: str) -> Policy:
    """A model as it came, with its tokenizer and a sampler of it."""
    torch.set_flush_denormal(True)
    model = MnemonistForCausalLM.from_language_model(LanguageModel.load(find_model(name)))
    tokenizer = find_tokenizer(find_model(name))
    flops = model_cost(model.model.config).flops_forward
    return Policy(model, tokenizer, LocalSampler(model, tokenizer, BATCH, flops_per_token=flops))


def problems(split: str, count: int, seed: int = 0, numbers: Sequence[int] = NUMBERS) -> list[Problem]:
    """So many, of all numbers of numbers in turn; other ones for every seed."""
    first = seed * count
    pairs = itertools.islice(itertools.product(range(first, first + count), numbers), count)
    return [TASK.problem(split, n, index) for index, n in pairs]


def fresh(count: int, seed: int) -> list[Problem]:
    """So many of four numbers to learn from that the models have not been taught; other ones for every seed.

    Of three numbers none are left: there are 2,255 that may be learned from, and the models have met them all.
    """
    taught = _taught()
    later = (TASK.problem("train", NUMBERS[-1], TAUGHT + index) for index in itertools.count())
    new = (problem for problem in later if _game(problem) not in taught)
    return list(itertools.islice(new, seed * count, (seed + 1) * count))


@cache
def _taught() -> frozenset[tuple[int, ...]]:
    return frozenset(_game(TASK.problem("train", NUMBERS[-1], index)) for index in range(TAUGHT))


def _game(problem: Problem) -> tuple[int, ...]:
    """The same for all orders of the numbers."""
    return problem.facts["target"], *sorted(problem.facts["numbers"])


def ask(policy: Policy, longest: int, setting: Setting, asked: Sequence[Problem], attempts: int, seed: int) -> Row:
    """The accuracy of attempts at a temperature of 0.7, and how many problems some of them solve."""
    assert policy.sampler is not None
    decoding = Decoding(max_tokens=longest, temperature=0.7, seed=1000 + seed)
    method = find_method(f"self-consistency:attempts={attempts}")
    trees = method.solve(asked, TASK, FORMAT, policy.sampler, decoding)
    found: dict[str, float] = {f"pass@{k}": float(np.mean([coverage(t, k) for t in trees])) for k in (4, attempts)}
    found["vote"] = float(np.mean([tree.right is True for tree in trees]))
    found["written"] = float(np.mean([node.tokens for tree in trees for node in tree.nodes[1:]]))
    return Row.of_shares(setting, np.array([coverage(tree, 1) for tree in trees]), **found)


def arm(label: str, model: str) -> Arm:
    """One that the study's own run deals with."""
    return Arm(label, size(model), FIT, None, {"": None})


def keep(
    study: Study, name: str, seed: int, rows: Sequence[Row], x: str, measure: str, *, model: str, **facts: object
) -> None:
    """Save what a run has found."""
    identity = {"experiment": study.folder.name, "arm": name, "seed": seed, "model": model, "task": TASK.name}
    about = model_facts(LanguageModel.load(find_model(model)), study.arms[name].label)
    result = Result(identity, measure, x, tuple(rows), about, {"seed": seed, **facts}, complete=True)
    result.save(study.path(name, seed))


def fact(when: str, numbers: int, which: str = "accuracy") -> Callable[[Result], float]:
    """What a result has kept of a test ``when`` it was asked, at problems of so many numbers."""
    return lambda result: float(result.facts[when][str(numbers)][which])
