"""The kernel trick backwards: which feature map, and how many features, make linear attention remember?

python experiments/feature_maps/run.py            # what is missing, then the page
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from study import Arm, Study, bytes_of_state, found, main, mean_over, paired, seeds_of, source_code, task

from mnemonist.evals.associative_recall import AssociativeRecall
from mnemonist.evals.positions import Positions
from mnemonist.evals.results import Result
from mnemonist.evals.suites import TaskSuite
from mnemonist.memory import build_feature_map
from mnemonist.models import ModelConfig
from mnemonist.models.cost import matched, model_cost
from mnemonist.report.comparison import Line, draw_lines
from mnemonist.training import TrainingConfig

HERE = Path(__file__).parent
TEXT = Positions(length=8192, count=16)
RECALL = AssociativeRecall(vocabulary=128, longest=128, lessons_from="grid")
DIM = 16
MAPS = {
    "attention": "softmax attention",
    "elu": "ELU + 1",
    "relu": "ReLU, learned",
    "relu:features=153": "ReLU, learned, 153",
    "hedgehog": "Hedgehog, learned",
    "dpfp": "DPFP-3",
    "taylor": "Taylor",
    "taylor:keys=unit,scale=2": "Taylor, unit keys, scale 2",
    "favor:features=32": "FAVOR+, 32",
    "favor:features=153": "FAVOR+, 153",
    "favor:features=153,keys=unit": "FAVOR+, 153, unit keys",
    "favor:features=153,keys=unit,scale=2": "FAVOR+, 153, unit keys, scale 2",
    "maclaurin:features=153": "random Maclaurin, 153",
    "maclaurin:features=153,keys=unit": "random Maclaurin, 153, unit keys",
    "maclaurin:features=153,keys=unit,scale=2": "random Maclaurin, 153, unit keys, scale 2",
    "maclaurin:features=153,keys=unit,denominator=false": "random Maclaurin, 153, unit keys, no denominator",
}
"""Maps with changes to the rule; the learned and random ones also with as many features as Taylor has. Logits of unit
keys are at most the scale: 1/4, if nothing is said."""
RECALL_TRAINING = TrainingConfig(
    steps=1000, batch_size=64, learning_rate=1e-2, warmup_steps=100, row_length=128, save_every=500, device="cpu"
)
TEXT_TRAINING = TrainingConfig(
    steps=400, batch_size=4, row_length=512, learning_rate=4e-3, warmup_steps=40, save_every=200, device="cpu"
)


def size(vocabulary: int) -> ModelConfig:
    """Two blocks of width 64, two heads of 16."""
    return ModelConfig(
        blocks=("attention",) * 2,
        vocab_size=vocabulary,
        width=64,
        heads=2,
        head_dim=DIM,
        memory_heads=2,
        memory_head_dim=DIM,
        persistent_tokens=0,
        mlp_width=176,
    )


def arm(which: str, text: bool) -> Arm:
    """Linear attention with a map, at the parameters of the transformer."""
    plain = size(259 if text else RECALL.vocab_size)
    name, _, changes = which.partition(":")
    config = plain
    if name != "attention":
        rule = f"linear-attention:feature_map={name}" + (f",{changes}" if changes else "")
        config = matched(plain.replace(blocks=("lmm",) * 2, rule=rule), model_cost(plain).parameters)
    if text:
        return Arm(MAPS[which], config, TEXT_TRAINING, source_code(), {"": TEXT})
    return Arm(MAPS[which], config, RECALL_TRAINING, task(RECALL), {"": TaskSuite(RECALL, count=300)})


def slug(which: str) -> str:
    """A file name."""
    which = which.replace(":", ",").replace("features=", "").replace("keys=", "").replace("scale=", "")
    return which.replace("denominator=false", "sum").replace(",", "-")


ARMS = {f"{kind}-{slug(which)}": arm(which, kind == "text") for kind in ("recall", "text") for which in MAPS}


def distances(name: str, options: dict[str, int], spread: float, unit: bool, seed: int, length: int = 256) -> float:
    """Mean L1 distance between the rows of causal attention and those of its features: 0 equal, 2 disjoint.

    Args:
        name: of the map; ``uniform`` weighs all alike.
        options: of the map.
        spread: standard deviation of the logits; for unit keys, the factor before the cosine.
        unit: whether queries and keys have norm 1.
        seed: of queries, keys and the map.
        length: tokens.
    """
    random = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(length, 1, DIM, generator=random, dtype=torch.float64) for _ in range(2))
    if unit:
        q, k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
        scale = spread
    else:
        scale = spread / math.sqrt(DIM)
    # Maps that stand for exp(scale q.k) are told the scale; for the others it goes into the keys.
    logits = scale * (q[:, 0] @ k[:, 0].T)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    exact = logits.masked_fill(~causal, -math.inf).softmax(-1)
    if name == "uniform":
        weights = causal.double()
    else:
        scaled = {"scale": 1.0} if name in ("favor", "taylor", "maclaurin") else {}
        seeded = {"seed": seed} if name in ("favor", "maclaurin") else {}
        phi = build_feature_map(name, 1, DIM, **options, **scaled, **seeded).double()
        with torch.no_grad():
            weights = (phi(q * math.sqrt(scale))[:, 0] @ phi(k * math.sqrt(scale))[:, 0].T).masked_fill(~causal, 0)
    return float((weights / weights.sum(-1, keepdim=True) - exact).abs().sum(-1).mean())


CURVES: dict[str, tuple[str, dict[str, int]]] = {
    "uniform attention": ("uniform", {}),
    "ELU + 1": ("elu", {}),
    "DPFP-3": ("dpfp", {}),
    "Taylor": ("taylor", {}),
    "FAVOR+, 153": ("favor", {"features": 153}),
    "FAVOR+, 1024": ("favor", {"features": 1024}),
    "random Maclaurin, 153": ("maclaurin", {"features": 153}),
    "random Maclaurin, 1024": ("maclaurin", {"features": 1024}),
}
SPREADS = (0.25, 0.5, 1.0, 2.0, 4.0)


def draw_distances() -> str:
    """The plot of how far untrained maps are from softmax, and its table."""
    panels: dict[str, list[Line]] = {}
    rows = ["| map | keys | " + " | ".join(str(spread) for spread in SPREADS) + " |"]
    rows.append("|---|---|" + "--:|" * len(SPREADS))
    for unit, title in ((False, "free keys: deviation of logits"), (True, "unit keys: factor of the cosine")):
        for label, (name, options) in CURVES.items():
            each = np.array([[distances(name, options, s, unit, seed) for seed in range(8)] for s in SPREADS])
            middle = np.median(each, 1)
            ends = np.quantile(each, (0.1, 0.9), 1)
            line = Line(label, SPREADS, middle, *ends, reference=name == "uniform")
            panels.setdefault(title, []).append(line)
            cells = " | ".join(f"{value:.2f}" for value in middle)
            rows.append(f"| {label} | {'unit' if unit else 'free'} | {cells} |")
    # What is further than disjoint is drawn at the top; the table has the figures.
    label = "L1 distance to softmax (0 to 2)"
    draw_lines(HERE / "distances.svg", panels, x="spread", y=label, bounds=(0, 2.5))
    return "\n".join(rows)


def last(result: Result) -> float:
    """Of the hardest setting: most pairs; for text, all of it."""
    if "pairs" in result.rows[0].setting:
        return max(result.rows, key=lambda row: int(row.setting["pairs"])).mean
    return mean_over(result, 0, TEXT.length)


def write_page(study: Study) -> str:
    """One table of both tasks, and the distances of untrained maps."""
    lines = ["| map | features | accuracy at 32 pairs | bits per byte | state, bytes |", "|---|--:|--:|--:|--:|"]
    means = found(study)
    for which, label in MAPS.items():
        recall, text = (f"{kind}-{slug(which)}" for kind in ("recall", "text"))
        if recall not in means and text not in means:
            continue
        config = study.arms[recall].config
        features = "" if which == "attention" else str(features_of(config))
        cells = [paired([last(result) for result in study.results(name)]) for name in (recall, text)]
        cost = model_cost(config)
        state = bytes_of_state(cost.state_bytes, cost.state_bytes_per_token)
        lines.append(f"| {label} | {features} | {cells[0]} | {cells[1]} | {state} |")
    return (
        f"{seeds_of(study)}\n\n" + "\n".join(lines) + "\n\n### Untrained maps against softmax\n\n"
        "Mean L1 distance between rows of attention over 256 tokens, medians of 8 draws; the band of the plot is from "
        "the first to the last tenth.\n\n" + draw_distances() + "\n\n![Distance to softmax](distances.svg)"
    )


def features_of(config: ModelConfig) -> int:
    """Width of the mapped keys."""
    rule = config.memory_rule
    assert rule.feature_map is not None
    return build_feature_map(rule.feature_map, 1, DIM, **rule.feature_options).feature_dim


STUDY = Study(HERE, ARMS, write_page)

if __name__ == "__main__":
    main(STUDY)
