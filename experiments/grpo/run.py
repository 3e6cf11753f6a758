"""Policy gradients from a model that searches: accuracy, length, entropy, and what dynamic sampling is worth.

python experiments/grpo/run.py            # what is missing, then the page
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from countdown import FIT, FORMAT, JOURNEYING, LONGEST, NUMBERS, TASK, arm, ask, fact, keep, open_policy, problems
from study import Study, differences, draw, found, main, paired, seeds_of

from mnemonist.cli.reason.pages import metrics_of
from mnemonist.evals.results import Row
from mnemonist.reasoning.learning import learn
from mnemonist.reasoning.objective import find_objective
from mnemonist.reasoning.proposing import Material, Policy
from mnemonist.reasoning.rounds import find_round

HERE = Path(__file__).parent
MODEL = JOURNEYING
STEPS, PROBLEMS, ATTEMPTS, LEARNED, TESTED, ASKED = 100, 32, 8, 2000, 100, 8
WINDOW = 10
"""Steps that are a dot of the plot."""
ARMS = {
    "grpo": ("GRPO", "grpo", "grpo"),
    "dr-grpo": ("Dr. GRPO", "dr-grpo", "dr-grpo"),
    "dapo": ("DAPO", "dapo", "dapo"),
    "dapo-static": ("DAPO without dynamic sampling", "dapo", "dapo:dynamic=false"),
}
MEASURES = ("accuracy", "length", "entropy", "zero_variance", "attempts")
COUNTS = ("length", "attempts")
"""Those that are told without a fraction."""


def run(study: Study, name: str, seed: int) -> None:
    """Learn, with the test problems before and after."""
    _, row, objective = ARMS[name]
    choices = f"iterations={STEPS},problems={PROBLEMS},attempts={ATTEMPTS},max_tokens={LONGEST[MODEL]}"
    chosen = replace(find_round(f"{row}:{choices}"), objective=find_objective(objective))
    policy = open_policy(MODEL)
    before = tested(policy, seed)
    folder = study.run_folder(name, seed)
    config = replace(FIT, seed=seed, batch_size=16, learning_rate=2e-4, save_every=10)
    material = Material(TASK, FORMAT, problems("train", LEARNED, seed, NUMBERS[:1]))
    ended = learn(chosen, policy, material, folder, config, resume=folder.exists(), progress=False)
    if ended.interrupted:
        raise SystemExit(130)
    after = tested(policy, seed)
    metrics = metrics_of(folder)
    rows = []
    for end in range(WINDOW, STEPS + 1, WINDOW):
        part = metrics[end - WINDOW : end]
        means = {measure: float(np.mean([line[measure] for line in part])) for measure in MEASURES}
        rows.append(Row({"steps": end}, means["accuracy"], means["accuracy"], means["accuracy"], WINDOW, means))
    keep(
        study, name, seed, rows, "steps", "accuracy of the attempts it learns from",
        model=MODEL, objective=objective, before=before, after=after,
    )  # fmt: skip


def tested(policy: Policy, seed: int) -> dict[str, dict[str, float]]:
    """What the policy is worth at unseen problems, by how many numbers they have."""
    found = {}
    for n in NUMBERS:
        row = ask(policy, LONGEST[MODEL], {"numbers": n}, problems("test", TESTED, numbers=(n,)), ASKED, seed)
        found[str(n)] = {"accuracy": row.mean, **row.more}
    return found


def unseen(study: Study, numbers: int) -> str:
    """The test before and after."""
    lines = [
        f"| objective | before | after | gained | gained, pass@{ASKED} | tokens, before | after | against GRPO |",
        "|---|" + "--:|" * 7,
    ]
    for name, one in study.arms.items():
        results = study.results(name)
        if not results:
            continue
        before, after = fact("before", numbers), fact("after", numbers)
        cells = [paired([measure(result) for result in results]) for measure in (before, after)]
        cells.append(paired(differences(results, results, after, before), signed=True))
        wide = (fact(when, numbers, f"pass@{ASKED}") for when in ("after", "before"))
        cells.append(paired(differences(results, results, *wide), signed=True))
        written = (fact(when, numbers, "written") for when in ("before", "after"))
        cells += [f"{np.mean([measure(result) for result in results]):.0f}" for measure in written]
        against = differences(results, study.results("grpo"), after)
        cells.append("" if name == "grpo" else paired(against, signed=True))
        lines.append("| " + " | ".join([one.label, *cells]) + " |")
    return "\n".join(lines)


def write_page(study: Study) -> str:
    """The test before and after, and what the steps were like."""
    lines = [
        "| objective | steps | accuracy | tokens | entropy | groups that teach nothing | attempts a step |",
        "|---|---|" + "--:|" * len(MEASURES),
    ]
    for name, one in study.arms.items():
        results = study.results(name)
        if not results:
            continue
        for when, place in (("first", 0), ("last", -1)):
            values = {measure: [r.rows[place].more[measure] for r in results] for measure in MEASURES}
            cells = [f"{np.mean(v):.0f}" if m in COUNTS else paired(v) for m, v in values.items()]
            lines.append("| " + " | ".join([one.label, f"the {when} {WINDOW}", *cells]) + " |")
    means = list(found(study).values())
    if not means:
        return seeds_of(study)
    draw(HERE / "steps.svg", means)
    return "\n\n".join(
        [
            seeds_of(study),
            *(part for n in NUMBERS for part in (f"### Unseen problems of {n} numbers", unseen(study, n))),
            "### While learning",
            "\n".join(lines),
            "![Accuracy by step](steps.svg)",
        ]
    )


STUDY = Study(HERE, {name: arm(label, MODEL) for name, (label, *_) in ARMS.items()}, write_page, run)

if __name__ == "__main__":
    main(STUDY)
