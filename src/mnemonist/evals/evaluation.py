"""Running a suite: row by row, saved after each, to be interrupted and taken up again."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mnemonist.errors import UserError
from mnemonist.evals.problems import Setting
from mnemonist.evals.results import Result
from mnemonist.evals.scoring import Progress
from mnemonist.evals.suites import Suite
from mnemonist.evaluating import evaluating
from mnemonist.models.cost import model_cost
from mnemonist.models.modeling import LanguageModel


def evaluate(
    model: LanguageModel,
    suite: Suite,
    path: Path | None = None,
    *,
    name: str = "model",
    facts: Mapping[str, Any] | None = None,
    progress: Progress = lambda tokens: None,
    on_step: Callable[[int, int], None] = lambda done, steps: None,
    stop: Callable[[], bool] = lambda: False,
) -> Result:
    """Measure every setting of a suite that was not measured before.

    Args:
        model: read in evaluation mode, whatever its mode.
        suite: what to measure.
        path: JSON file of the result, written after every row; rows that it has already are kept. None writes nothing.
        name: what tables call the model.
        facts: what else the result should say of how it came about.
        progress: called with the number of tokens read since the last call.
        on_step: called before the first step and after each with the number of steps done and of all.
        stop: asked after each row; once it says True, the result is returned as far as it is.

    Raises:
        UserError: the model has another vocabulary than the suite; the file is damaged, or of another model or suite.
    """
    require_vocabulary(model, suite)
    identity = suite.identity() | {"model": model.fingerprint()}
    result = Result(identity, suite.measure, suite.x, model=model_facts(model, name))
    if path is not None and path.exists():
        result = replace(taken_up(path, identity), model=result.model)
    before = float(result.facts.get("seconds", 0.0))
    began = time.perf_counter()
    steps = suite.steps
    on_step(0, len(steps))
    for number, settings in enumerate(steps, 1):
        missing = [setting for setting in settings if result.row(setting) is None]
        with evaluating(model):
            for row in suite.run(model, missing, progress) if missing else ():
                seconds = round(before + time.perf_counter() - began, 3)
                told = {**dict(facts or {}), **_versions(), "seconds": seconds}
                result = replace(result, rows=(*result.rows, row), facts=told)
                result = replace(result, complete=_measured(result, steps))
                if path is not None:
                    result.save(path)
                if stop():
                    return result
        on_step(number, len(steps))
    return result


def _measured(result: Result, steps: Sequence[Sequence[Setting]]) -> bool:
    return all(result.row(setting) is not None for settings in steps for setting in settings)


def taken_up(path: Path, identity: Mapping[str, Any]) -> Result:
    """What a file has of an evaluation that is to go on.

    Raises:
        UserError: it is damaged, or of another evaluation.
    """
    result = Result.load(path)
    if dict(result.identity) != dict(identity):
        names = sorted(identity.keys() | result.identity.keys())
        other = [name for name in names if result.identity.get(name) != identity.get(name)]
        whose = "of another model" if other == ["model"] else f"of another evaluation ({', '.join(other)} differ)"
        raise UserError(f"{path} is {whose}; move it away, or keep these results in another folder")
    return result


def require_vocabulary(model: LanguageModel, suite: Suite) -> None:
    """Make sure that a model can read what a suite gives it.

    Raises:
        UserError: they have different numbers of tokens.
    """
    has, needs = model.config.vocab_size, suite.vocab_size
    if has != needs:
        raise UserError(
            f"the model has {has:,} tokens but {suite.name} is made of {needs:,}: evaluate a model that was trained "
            f"for it (mnemonist train --task {suite.name}), or change the suite's vocabulary if it has one"
        )


def model_facts(model: LanguageModel, name: str) -> dict[str, Any]:
    """What tables say of a model."""
    config = model.config
    cost = model_cost(config)
    return {
        "name": name,
        "blocks": list(config.blocks),
        "rule": config.rule if config.has_memory else None,
        "parameters": cost.parameters,
        "state_bytes": cost.state_bytes,
        "state_bytes_per_token": cost.state_bytes_per_token,
    }


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "python": platform.python_version()}
