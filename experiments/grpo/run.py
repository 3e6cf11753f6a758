"""Policy gradients from a model that searches: accuracy, length, entropy, and what dynamic sampling is worth.

python experiments/grpo/run.py            # what is missing, then the page
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from countdown import FIT, FORMAT, JOURNEYING, LONGEST, NUMBERS, TASK, arm, ask, fresh, keep, open_policy, problems
from study import Study, differences, draw, found, main, paired, seeds_of

from mnemonist.cli.reason.pages import metrics_of
from mnemonist.evals.results import Result, Row
from mnemonist.reasoning.learning import learn
from mnemonist.reasoning.objective import find_objective
from mnemonist.reasoning.proposing import Material
from mnemonist.reasoning.rounds import find_round

HERE = Path(__file__).parent
MODEL = JOURNEYING
STEPS, PROBLEMS, ATTEMPTS, LEARNED, TESTED, ASKED = 80, 16, 8, 400, 100, 8
WINDOW = 10
"""Steps that are a dot of the plot."""
ARMS = {
    "grpo": ("GRPO", "grpo", "grpo"),
    "dr-grpo": ("Dr. GRPO", "dr-grpo", "dr-grpo"),
    "dapo": ("DAPO", "dapo", "dapo"),
    "dapo-static": ("DAPO without dynamic sampling", "dapo", "dapo:dynamic=false"),
}
MEASURES = ("accuracy", "length", "entropy", "zero_variance")


def run(study: Study, name: str, seed: int) -> None:
    """Learn, with the test problems before and after."""
    _, row, objective = ARMS[name]
    choices = f"iterations={STEPS},problems={PROBLEMS},attempts={ATTEMPTS},max_tokens={LONGEST[MODEL]}"
    chosen = replace(find_round(f"{row}:{choices}"), objective=find_objective(objective))
    policy, tests = open_policy(MODEL), problems("test", TESTED, numbers=NUMBERS[-1:])
    before = ask(policy, LONGEST[MODEL], {"steps": 0}, tests, ASKED, seed)
    folder = study.run_folder(name, seed)
    config = replace(FIT, seed=seed, learning_rate=1e-4, save_every=10, accumulation=PROBLEMS)
    material = Material(TASK, FORMAT, fresh(LEARNED, seed))
    ended = learn(chosen, policy, material, folder, config, resume=folder.exists(), progress=False)
    if ended.interrupted:
        raise SystemExit(130)
    after = ask(policy, LONGEST[MODEL], {"steps": STEPS}, tests, ASKED, seed)
    metrics = metrics_of(folder)
    rows = []
    for end in range(WINDOW, STEPS + 1, WINDOW):
        part = metrics[end - WINDOW : end]
        means = {measure: float(np.mean([line[measure] for line in part])) for measure in MEASURES}
        rows.append(Row({"steps": end}, means["accuracy"], means["accuracy"], means["accuracy"], WINDOW, means))
    ends = {"before": {"accuracy": before.mean, **before.more}, "after": {"accuracy": after.mean, **after.more}}
    keep(
        study,
        name,
        seed,
        rows,
        "steps",
        "accuracy of the attempts it learns from",
        model=MODEL,
        objective=objective,
        **ends,
    )


def after(result: Result) -> float:
    """Accuracy of an attempt at test problems, in the end."""
    return float(result.facts["after"]["accuracy"])


def gained(measure: str):
    """In the test, by a measure."""
    return lambda result: result.facts["after"][measure] - result.facts["before"][measure]


def write_page(study: Study) -> str:
    """The test before and after, and what the steps were like."""
    tested = [
        f"| objective | before | after | gained | gained, pass@{ASKED} | tokens, before | after | against GRPO |",
        "|---|" + "--:|" * 7,
    ]
    lines = [
        "| objective | steps | accuracy | tokens | entropy | groups that teach nothing |",
        "|---|---|" + "--:|" * 4,
    ]
    for name, one in study.arms.items():
        results = study.results(name)
        if not results:
            continue
        cells = [paired([r.facts[when]["accuracy"] for r in results]) for when in ("before", "after")]
        cells += [paired([gained(m)(r) for r in results], signed=True) for m in ("accuracy", f"pass@{ASKED}")]
        cells += [paired([r.facts[when]["written"] for r in results]) for when in ("before", "after")]
        against = differences(results, study.results("grpo"), after)
        cells.append("" if name == "grpo" else paired(against, signed=True))
        tested.append("| " + " | ".join([one.label, *cells]) + " |")
        for when, place in (("first", 0), ("last", -1)):
            cells = [paired([r.rows[place].more[measure] for r in results]) for measure in MEASURES]
            lines.append("| " + " | ".join([one.label, f"the {when} {WINDOW}", *cells]) + " |")
    means = list(found(study).values())
    if not means:
        return seeds_of(study)
    draw(HERE / "steps.svg", means)
    return "\n\n".join(
        [
            seeds_of(study),
            "### Test problems",
            "\n".join(tested),
            "### While learning",
            "\n".join(lines),
            "![Accuracy by step](steps.svg)",
        ]
    )


STUDY = Study(HERE, {name: arm(label, MODEL) for name, (label, *_) in ARMS.items()}, write_page, run)

if __name__ == "__main__":
    main(STUDY)
