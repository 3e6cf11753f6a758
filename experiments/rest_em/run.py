"""ReST-EM: from the base or onwards, with a cap or without; does it teach, or only sharpen?

python experiments/rest_em/run.py            # what is missing, then the page
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from countdown import FIT, FORMAT, LONGEST, NUMBERS, STEPPING, TASK, arm, ask, fresh, keep, open_policy, problems
from study import Study, differences, draw, found, main, paired, seeds_of

from mnemonist.cli.reason.pages import metrics_of
from mnemonist.evals.results import Result
from mnemonist.files import write_atomically
from mnemonist.reasoning.learning import learn
from mnemonist.reasoning.proposing import Material
from mnemonist.reasoning.round_folder import IDENTITY
from mnemonist.reasoning.rounds import find_round
from mnemonist.training import load_checkpoint, restore_model

HERE = Path(__file__).parent
MODEL = STEPPING
FIRST = Path("0", "attempts")
ITERATIONS, ATTEMPTS, LEARNED, TESTED, ASKED = 3, 8, 4000, 200, 8
BASE = f"rest-em:iterations={ITERATIONS},attempts={ATTEMPTS},epochs=1,until_worse=false,max_tokens={LONGEST[MODEL]}"
ARMS = {
    "paper": ("from the base, at most 4 of a problem", f"{BASE},keep=4"),
    "continued": ("onwards, at most 4 of a problem", f"{BASE},keep=4,from_base=false"),
    "uncapped": ("from the base, all of a problem", f"{BASE},keep={ATTEMPTS}"),
    "continued-uncapped": ("onwards, all of a problem", f"{BASE},keep={ATTEMPTS},from_base=false"),
}


def run(study: Study, name: str, seed: int) -> None:
    """Learn, and ask the policy of every iteration for the same test problems."""
    policy, tests = open_policy(MODEL), problems("test", TESTED, numbers=NUMBERS[-1:])
    rows = [ask(policy, LONGEST[MODEL], {"iteration": 0}, tests, ASKED, seed)]
    material = Material(TASK, FORMAT, fresh(LEARNED, seed), problems("validation", 50, numbers=NUMBERS[-1:]))
    folder = study.run_folder(name, seed)
    config = replace(FIT, seed=seed, learning_rate=2e-4)
    begun = (folder / IDENTITY).exists()
    take_first(study, seed, folder)
    ended = learn(find_round(ARMS[name][1]), policy, material, folder, config, resume=begun, progress=False)
    if ended.interrupted:
        raise SystemExit(130)
    proposed = [line["accuracy"] for line in metrics_of(folder)]
    for number in range(ITERATIONS):
        restore_model(policy.model, load_checkpoint(folder / str(number) / "fit" / "checkpoint"))
        rows.append(ask(policy, LONGEST[MODEL], {"iteration": number + 1}, tests, ASKED, seed))
    for number, seen in enumerate(proposed):
        rows[number] = dataclasses.replace(rows[number], more={**rows[number].more, "train": seen})
    keep(study, name, seed, rows, "iteration", "accuracy of an attempt", model=MODEL, round=ARMS[name][1])


def take_first(study: Study, seed: int, folder: Path) -> None:
    """The first attempts are those of the base at the same problems: an arm that has none takes another arm's."""
    for other in ARMS:
        for path in (study.run_folder(other, seed) / FIRST).glob("[0-9]*.jsonl"):
            own = folder / FIRST / path.name
            if not own.exists():
                write_atomically(own, path.read_bytes())


def last(result: Result) -> float:
    """Accuracy of an attempt in the end."""
    return result.rows[-1].mean


def gain(result: Result) -> float:
    """Against the model that it began with."""
    return result.rows[-1].mean - result.rows[0].mean


def wide_gain(result: Result) -> float:
    """Likewise, of the problems that some of the attempts solve."""
    return result.rows[-1].more[f"pass@{ASKED}"] - result.rows[0].more[f"pass@{ASKED}"]


def write_page(study: Study) -> str:
    """By iteration, and what was gained."""
    heads = [f"iteration {number}" for number in range(ITERATIONS + 1)]
    lines = [
        "| fits | " + " | ".join(heads) + f" | gained, one attempt | gained, pass@{ASKED} | against the paper's |",
        "|---|" + "--:|" * (len(heads) + 3),
    ]
    seen = ["| fits | " + " | ".join(heads[:-1]) + " |", "|---|" + "--:|" * ITERATIONS]
    for name, one in study.arms.items():
        results = study.results(name)
        if not results:
            continue
        cells = [paired([result.rows[number].mean for result in results]) for number in range(ITERATIONS + 1)]
        cells += [paired([measure(result) for result in results], signed=True) for measure in (gain, wide_gain)]
        against = differences(results, study.results("paper"), last)
        cells.append("" if name == "paper" else paired(against, signed=True))
        lines.append("| " + " | ".join([one.label, *cells]) + " |")
        cells = [paired([result.rows[number].more["train"] for result in results]) for number in range(ITERATIONS)]
        seen.append("| " + " | ".join([one.label, *cells]) + " |")
    means = list(found(study).values())
    if not means:
        return seeds_of(study)
    draw(HERE / "iterations.svg", means)
    return "\n\n".join(
        [
            seeds_of(study),
            "### Test problems: accuracy of an attempt",
            "\n".join(lines),
            "### Problems that it learns from: accuracy of the attempts it fits to, before each fit",
            "\n".join(seen),
            "![Accuracy by iteration](iterations.svg)",
        ]
    )


STUDY = Study(HERE, {name: arm(label, MODEL) for name, (label, _) in ARMS.items()}, write_page, run)

if __name__ == "__main__":
    main(STUDY)
