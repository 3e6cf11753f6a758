"""``mnemonist reason demo``: search around a small model and search within one, what each solves and costs."""

from __future__ import annotations

import dataclasses
import math

from mnemonist.cli.reason.options import Asked, Demo, Policy, Solve, Telling
from mnemonist.cli.reason.pages import SHOWN
from mnemonist.cli.reason.solve import Outcome, exit_code, solve, tell
from mnemonist.cli.reason.solving import Solved
from mnemonist.cli.reason.traces import journey_views
from mnemonist.reasoning.attempts import Decoding
from mnemonist.reasoning.tasks.task import StepTask

TASK = "countdown:largest=12,ceiling=100"
"""What the models that come with the package were taught."""
STEPS, SEARCH = 128, 3000
"""Tokens of an attempt: enough for right steps alone, and for three of four searches told in full."""
TAUGHT = Telling(journey="depth-first", order="listed", phrases="checked")
"""The journeys that the model learned from which searches within its thought."""


def run_demo(options: Demo) -> int:
    """Solve the same problems by each method of either model; the page shows trees, ledgers, and journeys."""
    around = Solve(
        task=TASK,
        method=(
            "chain-of-thought",
            f"self-consistency:attempts={options.attempts}",
            f"best-of-n:attempts={options.attempts},value=outcome",
            f"beam:beams={options.attempts},width={math.gcd(options.attempts, 4)},proposer=policy,value=gold",
        ),
        policy=Policy(model=options.model, batch_size=options.batch_size),
        asked=Asked(difficulty=options.difficulty),
        count=options.count,
        out=options.out / "around",
        decoding=Decoding(max_tokens=STEPS, temperature=options.temperature, seed=options.seed),
    )
    within = dataclasses.replace(
        around,
        method=("chain-of-thought",),
        policy=dataclasses.replace(around.policy, model=options.searching),
        out=options.out / "within",
        decoding=Decoding(max_tokens=SEARCH, temperature=0),
    )
    outcomes: list[Outcome] = []
    for asked in (around, within):
        outcomes.append(solve(asked))
        if outcomes[-1].interrupted:
            break
    solved = [
        of_model(one, path.name)
        for outcome, path in zip(outcomes, (options.model, options.searching), strict=False)
        for one in outcome.solved
    ]
    if solved:
        first = outcomes[0]
        assert isinstance(first.task, StepTask)
        views = journey_views(first.task, first.problems[:SHOWN], TAUGHT, first.format, options.seed)
        facts = {
            name: "; ".join(dict.fromkeys(outcome.described[name] for outcome in outcomes)) for name in first.described
        }
        tell(solved, first.problems, facts, views, options.out)
    return exit_code(outcomes[-1].interrupted)


def of_model(solved: Solved, model: str) -> Solved:
    """The same, under a name that says who solved it."""
    label = f"{solved.label} ({model})"
    return Solved(label, dataclasses.replace(solved.run, method=f"{solved.run.method} ({model})"))
