"""State tracking: who can count to two, who can follow permutations of five things, and for how long?

python experiments/state_tracking/run.py            # what is missing, then the page
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from study import Arm, Study, draw, found, main, markdown, seeds_of, small, task

from mnemonist.evals.candidates import CANDIDATES, configure
from mnemonist.evals.state_tracking import StateTracking
from mnemonist.evals.suites import TaskSuite
from mnemonist.training import TrainingConfig

HERE = Path(__file__).parent
TASKS = {
    "parity": StateTracking("parity"),
    "swaps": StateTracking("s5", trained=32, longest=128, moved=2),
    "cycles": StateTracking("s5", trained=32, longest=128, moved=3),
}
STEPS = {"parity": 800, "swaps": 2000, "cycles": 2000}
TURNING = ("deltanet", "gated-deltanet", "kda", "deltaproduct", "gated-deltaproduct", "titans-linear")
"""Rules that are also tried with eigenvalues down to -1."""
FEW = ("attention", "mamba2", *TURNING, "lmm-2")
"""Candidates for the permutations, which are made of swaps, or of cycles of up to three things."""


def arms() -> dict[str, Arm]:
    """For parity every candidate, for permutations some; and the turning rules twice (for cycles only so)."""
    made = {}
    for group in TASKS:
        for name in CANDIDATES if group == "parity" else FEW:
            if group != "cycles" or name not in TURNING:
                made[f"{group}-{name}"] = arm(group, name)
            if name in TURNING:
                made[f"{group}-{name}-turning"] = arm(group, name, turning=True)
    return made


def arm(group: str, name: str, turning: bool = False) -> Arm:
    """A candidate that learns the products of a group."""
    words = TASKS[group]
    rule = CANDIDATES[name].rule
    config = configure(name, small(words.vocab_size), "chunk_size=16" if rule.startswith("titans") else "")
    label = CANDIDATES[name].label
    if turning:
        config, label = config.replace(step_bound=2.0), f"{label}, steps up to 2"
    steps = STEPS[group]
    training = TrainingConfig(
        steps=steps, batch_size=64, learning_rate=3e-3, warmup_steps=steps // 10,
        row_length=int(words.grid[0]["elements"]) + 1, save_every=500, device="cpu",
    )  # fmt: skip
    return Arm(label, config, training, task(words), {"": TaskSuite(words, count=200)})


def write_page(study: Study) -> str:
    """A table and a plot for each group."""
    parts = [seeds_of(study)]
    for group, words in TASKS.items():
        means = list(found(study, [name for name in study.arms if name.startswith(f"{group}-")]).values())
        if means:
            draw(HERE / f"{group}.svg", means)
            parts += [f"### {group}: chance is {words.chance:.3f}", markdown(means), f"![{group}]({group}.svg)"]
    return "\n\n".join(parts)


STUDY = Study(HERE, arms(), write_page)

if __name__ == "__main__":
    main(STUDY)
