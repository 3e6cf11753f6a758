"""Recall: how many pairs can a state hold? Multi-query associative recall, all candidates, equal parameters.

python experiments/recall/run.py            # what is missing, then the page
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from study import Arm, Study, main

from mnemonist.evals.associative_recall import AssociativeRecall
from mnemonist.evals.candidates import CANDIDATES, configure
from mnemonist.evals.suites import TaskSuite
from mnemonist.models import ModelConfig
from mnemonist.models.cost import model_cost
from mnemonist.training import TrainingConfig

HERE = Path(__file__).parent
TASK = AssociativeRecall(vocabulary=128, longest=128, lessons_from="grid")
SUITE = TaskSuite(TASK, count=500)
TRAINING = TrainingConfig(
    steps=2000, batch_size=64, learning_rate=1e-2, warmup_steps=200, row_length=128, save_every=500, device="cpu"
)


def size(dim: int) -> ModelConfig:
    """What the candidates have in common; heads of this width."""
    return ModelConfig(
        blocks=("attention",) * 2,
        vocab_size=TASK.vocab_size,
        width=64,
        heads=2,
        head_dim=dim,
        memory_heads=2,
        memory_head_dim=dim,
        window=16,
        persistent_tokens=0,
        mlp_width=160,
    )


PARAMETERS = model_cost(size(16)).parameters


def arms() -> dict[str, Arm]:
    """Every candidate with heads of 16; of some rules also others, to vary the state."""
    rules = ("linear-attention", "mamba2", "deltanet", "gated-deltanet", "titans-linear")
    others = {name: (8, 32) for name in rules} | {"lmm-2": (8,)}
    found = {name: arm(name, 16) for name in CANDIDATES}
    return found | {f"{name}-{dim}": arm(name, dim) for name, dims in others.items() for dim in dims}


def arm(name: str, dim: int) -> Arm:
    """A candidate with heads of this width; all have the parameters of the transformer with heads of 16."""
    rule = CANDIDATES[name].rule
    changes = "chunk_size=16" if rule.startswith("titans") else ""
    label = CANDIDATES[name].label + ("" if dim == 16 else f", heads of {dim}")
    return Arm(label, configure(name, size(dim), changes, PARAMETERS), TRAINING, TASK, SUITE)


def write_page(study: Study) -> None:
    """The table and the plot."""
    from page import write

    write(study)


STUDY = Study(HERE, arms(), write_page)

if __name__ == "__main__":
    main(STUDY)
