"""A pretrained transformer with a window in place of attention: what a sink is worth, and what a memory wins back.

python experiments/adoption/run.py            # what is missing, then the page
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from smollm2 import MODEL, prepare
from study import Arm, Study, bytes_of_state, differences, draw, main, mean_over, over_seeds, paired, seeds_of

from mnemonist.data import Tokenizer, find_tokenizer, standard_library
from mnemonist.evals.evaluation import model_facts
from mnemonist.evals.results import Result, Row
from mnemonist.models import LanguageModel, ModelConfig, adopt, with_blocks
from mnemonist.models.adoption import hold_all_but_memories
from mnemonist.training import TrainingConfig, train
from mnemonist.training.checkpoint import has_checkpoint
from mnemonist.training.gradients import LossSum
from mnemonist.training.language import Rows, next_token_loss, packed_batches

HERE = Path(__file__).parent
WINDOW, LENGTH = 128, 2048
EDGES = (WINDOW, 2 * WINDOW, 512, 1024, LENGTH)
BINS = ((0, WINDOW), (2 * WINDOW, 512), (512, 1024), (1024, LENGTH))
MEMORIES = ("window", "window", "mag:gate=add")
TRAINING = TrainingConfig(
    steps=24, batch_size=2, row_length=1024, learning_rate=2e-3, warmup_steps=4, weight_decay=0.0, save_every=8,
    device="cpu",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Way:
    """What is made of the pretrained model."""

    label: str
    blocks: tuple[str, ...] = ()
    sink: bool = True
    trained: bool = False
    learn: bool = True
    """Whether memories learn while they read, in training and when asked."""


WAYS = {
    "full": Way("full attention, as it is"),
    "window-bare": Way("windows", ("window",), sink=False),
    "window": Way("windows and the sink", ("window",)),
    "hybrid": Way("windows and the sink, every third block as it was", ("window", "window", "attention")),
    "memory": Way("windows, the sink and memories, trained", MEMORIES, trained=True),
    "held": Way("windows, the sink and memories held, trained", MEMORIES, trained=True, learn=False),
}
ARMS = {name: Arm(way.label, ModelConfig(), TRAINING, None, {"": None}) for name, way in WAYS.items()}


def run(study: Study, name: str, seed: int) -> None:
    """Adopt, train if the way is to, and read the texts of the seed."""
    torch.set_flush_denormal(True)
    prepare()
    way, tokenizer = WAYS[name], find_tokenizer(MODEL)
    model = adopt(MODEL, tokenizer.vocab_size)
    torch.manual_seed(seed)
    if way.blocks:
        sink = tokenizer.bos_id if way.sink else None
        model, _ = with_blocks(model, way.blocks, sink=sink, window=WINDOW, rule="titans-linear")
    began = time.perf_counter()
    trained = teach(study, name, seed, model, tokenizer) if way.trained else 0
    rows = read(model, way, tokenizer, seed)
    facts = {
        "seed": seed,
        "trained": trained,
        "seconds": round(time.perf_counter() - began),
        "training": dataclasses.asdict(TRAINING) if way.trained else None,
    }
    identity = {"experiment": HERE.name, "arm": name, "seed": seed, "model": "SmolLM2-135M-Instruct"}
    about = model_facts(model, way.label)
    Result(identity, "bits per byte", "position", tuple(rows), about, facts, complete=True).save(study.path(name, seed))


def teach(study: Study, name: str, seed: int, model: LanguageModel, tokenizer: Tokenizer) -> int:
    """Train what is new; how many numbers that is."""
    count = hold_all_but_memories(model)
    config = dataclasses.replace(TRAINING, seed=seed)
    folder = study.run_folder(name, seed)
    resume = has_checkpoint(folder / "checkpoint")
    batch_of = packed_batches(standard_library("train"), config, tokenizer)
    loss_of = next_token_loss if WAYS[name].learn else held_loss
    ended = train(model, batch_of, loss_of, config, folder, resume=resume, extra={"arm": name}, progress=False)
    if ended.interrupted:
        raise SystemExit(130)
    return count


def held_loss(model: torch.nn.Module, rows: Rows) -> LossSum:
    """As `next_token_loss`, with every memory as it is."""
    return next_token_loss(functools.partial(model, learn=False), rows)  # type: ignore[arg-type]


@torch.no_grad()
def read(model: LanguageModel, way: Way, tokenizer: Tokenizer, seed: int) -> list[Row]:
    """Bits per byte by position, of each text that falls to the seed."""
    model.eval()
    by_bin: list[list[float]] = []
    for ids in texts(tokenizer, seed):
        tokens = torch.from_numpy(ids)[None]
        logits = model(tokens, learn=way.learn).logits[0, :-1]
        bits = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none").numpy() / math.log(2)
        size = tokenizer.byte_counts(ids[1:])
        edges = itertools.pairwise((0, *EDGES))
        by_bin.append([bits[begin:end].sum() / size[begin:end].sum() for begin, end in edges])
    return [Row.of({"position": edge}, values) for edge, values in zip(EDGES, np.array(by_bin).T, strict=True)]


def texts(tokenizer: Tokenizer, seed: int) -> list[np.ndarray]:
    """The beginnings of held-out modules that are long enough, dealt out to the seeds in turn."""
    encoded = (tokenizer.encode(document.text, bos=True) for document in standard_library("heldout"))
    return [ids[: LENGTH + 1] for ids in encoded if len(ids) > LENGTH][seed::3]


def write_page(study: Study) -> str:
    """By way and position, and what each way saves."""
    heads = [f"{begin:,} to {end:,}" for begin, end in BINS]
    lines = ["| model | " + " | ".join(heads) + " | learned | state, bytes |", "|---|" + "--:|" * (len(BINS) + 2)]
    curves = []
    for name, arm in study.arms.items():
        results = study.results(name)
        if not results:
            continue
        cells = [paired([mean_over(result, *each) for result in results]) for each in BINS]
        state = bytes_of_state(results[0].model["state_bytes"], results[0].model["state_bytes_per_token"])
        lines.append(f"| {arm.label} | " + " | ".join(cells) + f" | {results[0].facts['trained']:,} | {state} |")
        curves.append(over_seeds(results, arm.label))
    pairs = (
        ("window-bare", "window"),
        ("window", "hybrid"),
        ("hybrid", "full"),
        ("window", "held"),
        ("held", "memory"),
    )
    saved = ["| what saves | against | " + " | ".join(heads) + " |", "|---|---|" + "--:|" * len(BINS)]
    for worse, better in pairs:
        more, less = study.results(worse), study.results(better)
        if more and less:
            cells = [paired(differences(more, less, lambda r, e=each: mean_over(r, *e)), signed=True) for each in BINS]
            saved.append(f"| {WAYS[better].label} | {WAYS[worse].label} | " + " | ".join(cells) + " |")
    if curves:
        draw(HERE / "positions.svg", curves)
    return "\n\n".join(
        [
            seeds_of(study),
            "### Bits per byte, by position in tokens",
            "\n".join(lines),
            "### What is saved",
            "Bits per byte, paired by seed; above zero the first is better.",
            "\n".join(saved),
            "![Bits per byte by position](positions.svg)" if curves else "",
        ]
    )


STUDY = Study(HERE, ARMS, write_page, run)

if __name__ == "__main__":
    main(STUDY)
