"""In-context regression: who learns a line from examples as well as least squares does, and who knows noise from truth?

python experiments/regression/run.py            # what is missing, then the page
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from study import Arm, Study, draw, found, main, markdown, seeds_of, small, task

from mnemonist.evals.candidates import CANDIDATES, configure
from mnemonist.evals.regression import Regression
from mnemonist.evals.results import Result
from mnemonist.memory import add_objective
from mnemonist.training import TrainingConfig

HERE = Path(__file__).parent
DIM = 4
TASKS = {
    "exact": Regression(dim=DIM, points=13),
    "noisy": Regression(dim=DIM, points=13, noise=0.5),
    "outliers": Regression(dim=DIM, points=13, outliers=0.1),
}
SHOWN = (1, 2, 4, 6, 8, 12)
"""Pairs seen that have a column in the table."""
COMPARED = {
    "exact": (
        "attention",
        "linear-attention",
        "mamba2",
        "deltanet",
        "gated-deltanet",
        "mesa",
        "titans-linear",
        "lmm-2",
    ),
    "noisy": ("attention", "deltanet", "gated-deltanet", "mesa", "titans-linear"),
    "outliers": ("gated-deltanet", "attention", "mesa"),
}
ROBUST = {"huber": ", Huber loss", "welsch": ", Welsch loss"}
"""What Gated DeltaNet is asked instead of squares, where some of what it is shown is wrong."""
add_objective(
    "welsch",
    lambda y, v: (1 - torch.exp(-((y - v) ** 2) / 2)).sum(-1),
    lambda y, v: (y - v) * torch.exp(-((y - v) ** 2) / 2),  # its derivative: sooner than torch finds it
)


WINDOWS = (8, 26)
"""Tokens, two to a pair, whose losses Gated DeltaNet's steps go down together (the Omega rule): a few, and all."""


def arms() -> dict[str, Arm]:
    """Candidates learn from examples without noise, and the better ones from others with it."""
    made = {f"{group}-{name}": arm(group, name) for group, names in COMPARED.items() for name in names}
    for objective, label in ROBUST.items():
        robust = arm("outliers", "gated-deltanet", changes=f"objective={objective}")
        made[f"outliers-{objective}"] = dataclasses.replace(robust, label=robust.label + label)
    for group in ("exact", "noisy"):
        made |= {f"{group}-window-{window}": arm(group, "gated-deltanet", window) for window in WINDOWS}
        made[f"{group}-window-8-bound-1"] = arm(group, "gated-deltanet", 8, step_bound=1.0)
    return made


def arm(group: str, name: str, window: int = 1, step_bound: float | None = None, changes: str = "") -> Arm:
    """A candidate, with ``changes`` to its rule, that learns to foretell y from the pairs before it.

    A window of tokens may go as far as one of them, unless there is another bound: then each may.
    """
    problems = TASKS[group]
    changes = "chunk_size=16" if CANDIDATES[name].rule.startswith("titans") else changes
    changes, label = (f"window={window}", f", windows of {window}") if window > 1 else (changes, "")
    config = configure(name, small(problems.vocab_size), changes)
    if step_bound is not None:
        config, label = config.replace(step_bound=step_bound), f"{label}, steps up to {step_bound:g}"
    training = TrainingConfig(
        steps=2000, batch_size=64, learning_rate=3e-3, warmup_steps=200, row_length=2 * problems.length,
        save_every=1000, device="cpu",
    )  # fmt: skip
    suite = dataclasses.replace(problems, count=2000)
    return Arm(CANDIDATES[name].label + label, config, training, task(problems), {"": suite})


def write_page(study: Study) -> str:
    """A table and a plot for each kind of examples."""
    parts = [seeds_of(study)]
    for group in TASKS:
        means = list(found(study, [name for name in study.arms if name.startswith(f"{group}-")]).values())
        if means:
            draw(HERE / f"{group}.svg", means)
            parts += [f"### {group}", markdown([shown(result) for result in means]), f"![{group}]({group}.svg)"]
    return "\n\n".join(parts)


def shown(result: Result) -> Result:
    """The rows of it that have a column."""
    return dataclasses.replace(result, rows=tuple(row for row in result.rows if row.setting["seen"] in SHOWN))


STUDY = Study(HERE, arms(), write_page)

if __name__ == "__main__":
    main(STUDY)
