"""``mnemonist reason demo``: one small model, several ways to spend tokens, what each solves and costs."""

from __future__ import annotations

import math

from mnemonist.cli.reason.options import Asked, Demo, Policy, Solve, Telling
from mnemonist.cli.reason.solve import run_solve
from mnemonist.reasoning.attempts import Decoding

TASK = "countdown:largest=12"
"""What the model that comes with the package was taught."""
LONGEST = 512
"""Bytes of an attempt; few journeys it was taught are longer."""


def run_demo(options: Demo) -> int:
    """Solve the same problems by each method; the page shows trees, ledgers, and journeys of the same problems."""
    solve = Solve(
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
        out=options.out,
        decoding=Decoding(max_tokens=LONGEST, temperature=options.temperature, seed=options.seed),
    )
    return run_solve(solve, journeys=Telling())
