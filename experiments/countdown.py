"""Countdown, and the small model that comes with the package and knows it: what several experiments begin with.

All seeds begin with the same model, so their intervals say how much the problems drawn, the attempts and the fits vary,
and not how much another model would.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
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

MODEL = "shipped/countdown"
TASK = build_task("countdown:largest=12,ceiling=100")
assert isinstance(TASK, StepTask)
FORMAT = find_format("plain")
NUMBERS = (3, 4)
LONGEST = 512
"""Tokens of an attempt."""
BATCH = 128
"""Attempts that are written at a time."""
FIT = TrainingConfig(batch_size=32, learning_rate=5e-4, warmup_steps=10, save_every=200, device="cpu")


@cache
def size() -> ModelConfig:
    """Of the model."""
    return LanguageModel.load(find_model(MODEL)).config


def open_policy() -> Policy:
    """The model as it came, with its tokenizer and a sampler of it."""
    torch.set_flush_denormal(True)
    model = MnemonistForCausalLM.from_language_model(LanguageModel.load(find_model(MODEL)))
    tokenizer = find_tokenizer(find_model(MODEL))
    flops = model_cost(model.model.config).flops_forward
    return Policy(model, tokenizer, LocalSampler(model, tokenizer, BATCH, flops_per_token=flops))


def problems(split: str, count: int, seed: int = 0) -> list[Problem]:
    """So many, of all numbers of numbers in turn; other ones for every seed."""
    first = seed * count
    pairs = itertools.islice(itertools.product(range(first, first + count), NUMBERS), count)
    return [TASK.problem(split, numbers, index) for index, numbers in pairs]


def ask(policy: Policy, setting: Setting, asked: Sequence[Problem], attempts: int, seed: int) -> Row:
    """The accuracy of attempts at a temperature of 0.7, and how many problems some of them solve."""
    assert policy.sampler is not None
    decoding = Decoding(max_tokens=LONGEST, temperature=0.7, seed=1000 + seed)
    method = find_method(f"self-consistency:attempts={attempts}")
    trees = method.solve(asked, TASK, FORMAT, policy.sampler, decoding)
    found: dict[str, float] = {f"pass@{k}": float(np.mean([coverage(t, k) for t in trees])) for k in (4, attempts)}
    found["vote"] = float(np.mean([tree.right is True for tree in trees]))
    found["written"] = float(np.mean([node.tokens for tree in trees for node in tree.nodes[1:]]))
    return Row.of(setting, np.array([coverage(tree, 1) for tree in trees]), **found)


def arm(label: str) -> Arm:
    """One that the study's own run deals with."""
    return Arm(label, size(), FIT, None, {"": None})


def keep(study: Study, name: str, seed: int, rows: Sequence[Row], x: str, measure: str, **facts: object) -> None:
    """Save what a run has found."""
    identity = {"experiment": study.folder.name, "arm": name, "seed": seed, "model": MODEL, "task": TASK.name}
    model = model_facts(LanguageModel.load(find_model(MODEL)), study.arms[name].label)
    result = Result(identity, measure, x, tuple(rows), model, {"seed": seed, **facts}, complete=True)
    result.save(study.path(name, seed))
