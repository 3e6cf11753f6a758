"""Models of source code that several experiments ask: one size, one training, equal parameters.

Their runs are kept in `length/`, whichever experiment asked for them first.
"""

from __future__ import annotations

from pathlib import Path

from study import Arm, source_code

from mnemonist.evals.candidates import CANDIDATES, configure
from mnemonist.evals.positions import Positions
from mnemonist.models import ModelConfig
from mnemonist.models.cost import matched, model_cost
from mnemonist.training import TrainingConfig

HOME = Path(__file__).parent / "length"
TRAINING = TrainingConfig(
    steps=500, batch_size=2, row_length=1024, learning_rate=4e-3, warmup_steps=50, save_every=250, device="cpu"
)
LONGEST = 64 * TRAINING.row_length
SIZE = ModelConfig(
    blocks=("attention",) * 2,
    width=96,
    heads=3,
    head_dim=32,
    memory_heads=3,
    memory_head_dim=32,
    window=32,
    persistent_tokens=4,
    mlp_width=352,
)
PARAMETERS = model_cost(SIZE).parameters
SUITES = {
    "live": Positions(length=LONGEST, count=4),
    "frozen": Positions(length=LONGEST, count=4, memory="frozen"),
    "reset": Positions(length=LONGEST, count=4, reset_every=TRAINING.row_length),
}
TITANS = "expansion=2,chunk_size=32"


def arm(name: str) -> Arm:
    """A candidate that reads source code; memories are asked live, frozen and reset, others live alone."""
    rule = CANDIDATES[name].rule
    config = configure(name, SIZE, TITANS if rule.startswith("titans") and rule != "titans-linear" else "", PARAMETERS)
    return of(CANDIDATES[name].label, config)


def of(label: str, config: ModelConfig, folder: Path | None = HOME) -> Arm:
    """Any configuration, brought to the same number of parameters; those that several experiments ask, reset too."""
    asked = ["live"] + ["frozen"] * config.has_memory + ["reset"] * (folder == HOME)
    suites = {name: SUITES[name] for name in asked}
    return Arm(label, matched(config, PARAMETERS), TRAINING, source_code(), suites, folder)
