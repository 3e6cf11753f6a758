"""Recall: how many pairs can a state hold? Multi-query associative recall, all candidates, equal parameters.

python experiments/recall/run.py            # what is missing, then the page
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from study import Arm, Study, draw, found, main, markdown, seeds_of, small, task

from mnemonist.evals.associative_recall import AssociativeRecall
from mnemonist.evals.candidates import CANDIDATES, configure
from mnemonist.evals.suites import TaskSuite
from mnemonist.models.cost import model_cost
from mnemonist.report.comparison import Line, draw_lines
from mnemonist.training import TrainingConfig

HERE = Path(__file__).parent
TASK = AssociativeRecall(vocabulary=128, longest=128, lessons_from="grid")
SUITE = TaskSuite(TASK, count=500)
TRAINING = TrainingConfig(
    steps=2000, batch_size=64, learning_rate=1e-2, warmup_steps=200, row_length=128, save_every=500, device="cpu"
)


PARAMETERS = model_cost(small(TASK.vocab_size)).parameters


def arms() -> dict[str, Arm]:
    """Every candidate with heads of 16; of some rules also others, to vary the state."""
    rules = ("linear-attention", "mamba2", "deltanet", "gated-deltanet", "titans-linear")
    others = {name: (8, 32) for name in rules} | {"lmm-2": (8,)}
    base = {name: arm(name, 16) for name in CANDIDATES}
    return base | {f"{name}-{dim}": arm(name, dim) for name, dims in others.items() for dim in dims}


def arm(name: str, dim: int) -> Arm:
    """A candidate with heads of this width; all have the parameters of the transformer with heads of 16."""
    rule = CANDIDATES[name].rule
    changes = "chunk_size=16" if rule.startswith("titans") else ""
    label = CANDIDATES[name].label + ("" if dim == 16 else f", heads of {dim}")
    return Arm(
        label, configure(name, small(TASK.vocab_size, dim), changes, PARAMETERS), TRAINING, task(TASK), {"": SUITE}
    )


def write_page(study: Study) -> str:
    """Tables and plots: by pairs, and by bytes of state."""
    means = found(study)
    same = [means[name] for name in CANDIDATES if name in means]
    draw(HERE / "pairs.svg", same)
    lines = []
    for name in CANDIDATES:
        sizes = sorted((r for arm, r in means.items() if RULE_OF[arm] == name), key=lambda r: r.model["state_bytes"])
        if name != "attention" and sizes:  # whose state has no size
            most = [max(r.rows, key=lambda row: row.setting["pairs"]) for r in sizes]
            at = [float(r.model["state_bytes"]) for r in sizes]
            lines.append(
                Line(CANDIDATES[name].label, at, *([getattr(m, p) for m in most] for p in ("mean", "low", "high")))
            )
    draw_lines(HERE / "state.svg", {"": lines}, x="bytes of state", y="accuracy at 32 pairs", bounds=(0, 1))
    return (
        f"{seeds_of(study)}\n\n{markdown(list(means.values()))}\n\n"
        "![Accuracy by pairs, heads of 16](pairs.svg)\n\n![Accuracy at 32 pairs by bytes of state](state.svg)"
    )


STUDY = Study(HERE, arms(), write_page)
RULE_OF = {name: name if name in CANDIDATES else name.rpartition("-")[0] for name in STUDY.arms}

if __name__ == "__main__":
    main(STUDY)
