"""A transformer whose attention becomes memories of constant size: what is worth learning of it on the way.

python experiments/conversion/run.py            # what is missing, then the page
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from study import (
    Arm,
    Study,
    bytes_of_state,
    differences,
    draw,
    main,
    mean_over,
    over_seeds,
    paired,
    run_one,
    seeds_of,
    source_code,
)

from mnemonist.data import ByteTokenizer, PackedRows, standard_library
from mnemonist.evals.evaluation import evaluate
from mnemonist.evals.positions import Positions, long_texts
from mnemonist.evals.problems import Setting
from mnemonist.evals.reading import read_texts
from mnemonist.evals.results import Result, Row
from mnemonist.evals.scoring import Progress
from mnemonist.models import LanguageModel, ModelConfig, with_blocks
from mnemonist.models.alignment import AlignedMixers, MixerTeacher, differing_mixers
from mnemonist.training import HeldOut, HeldOutConfig, TrainingConfig, train
from mnemonist.training.accelerator import start_accelerator
from mnemonist.training.checkpoint import has_checkpoint, load_checkpoint, restore_model
from mnemonist.training.distillation import distillation_loss, mixer_loss, mixer_weights
from mnemonist.training.held_out import read_held_out
from mnemonist.training.language import held_out_batches, next_token_loss, packed_batches

HERE = Path(__file__).parent
TEACHER = ModelConfig(
    blocks=("attention",) * 4, width=128, heads=4, head_dim=32, memory_heads=4, memory_head_dim=32, window=64,
    persistent_tokens=0, mlp_width=352,
)  # fmt: skip
TRAINING = TrainingConfig(
    steps=1000, batch_size=2, row_length=1024, learning_rate=3e-3, warmup_steps=50, save_every=250, device="cpu"
)
STEPS = 200
"""Of a student, over all of its stages."""
MEMORIES = {"blocks": ("lmm",), "rule": "gated-deltanet"}
HYBRID = {"blocks": ("window", "mag:gate=add"), "rule": "gated-deltanet", "window": 16}
DRAWN = ("teacher", "scratch", "text", "logits", "mixers-text", "hybrid-text")
"""Arms of the figure."""
BINS = ((0, 256), (256, 512), (512, 1024), (1024, 2048), (4096, 8192))


@dataclass(frozen=True)
class Stage:
    """A part of a student's training."""

    match: str
    """``mixers``, ``logits``, or ``text``: cross entropy."""
    steps: int
    learning_rate: float


@dataclass(frozen=True)
class Student:
    """What is made of the teacher, and how it learns."""

    label: str
    changes: Mapping[str, Any]
    stages: tuple[Stage, ...] = ()
    converted: bool = True
    """Whether it begins with the weights of the teacher."""


MIXERS = Stage("mixers", STEPS // 2, 2e-2)
STUDENTS = {
    "scratch": Student("memories, from scratch", MEMORIES, (Stage("text", STEPS, 6e-3),), converted=False),
    "text": Student("memories, converted; text", MEMORIES, (Stage("text", STEPS, 6e-3),)),
    "logits": Student("memories, converted; logits", MEMORIES, (Stage("logits", STEPS, 6e-3),)),
    "mixers": Student("memories, converted; mixers", MEMORIES, (replace(MIXERS, steps=STEPS),)),
    "mixers-text": Student(
        "memories, converted; mixers, then text", MEMORIES, (MIXERS, Stage("text", STEPS // 2, 1e-3))
    ),
    "mixers-logits": Student(
        "memories, converted; mixers, then logits", MEMORIES, (MIXERS, Stage("logits", STEPS // 2, 1e-3))
    ),
    "hybrid": Student("windows of 16 and memories, converted; untrained", HYBRID),
    "hybrid-text": Student("windows of 16 and memories, converted; text", HYBRID, (Stage("text", STEPS, 1e-3),)),
    "hybrid-mixers-logits": Student(
        "windows of 16 and memories, converted; mixers, then logits", HYBRID,
        (MIXERS, Stage("logits", STEPS // 2, 1e-3)),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Again:
    """What a passage costs when it is read a second time, right after the first: who can copy pays little."""

    length: int = 512
    """Bytes of a passage; both readings lie within the length of training."""
    count: int = 16

    name = "again"
    measure = "bits per byte"
    x = "reading"
    vocab_size = ByteTokenizer.vocab_size

    @property
    def steps(self) -> list[list[Setting]]:
        """Both readings are of one text."""
        return [[{"reading": 1}, {"reading": 2}]]

    def identity(self) -> dict[str, Any]:
        """The fields."""
        return {"suite": self.name, **asdict(self)}

    def references(self) -> dict[str, list[Row]]:
        """None."""
        return {}

    def run(self, model: LanguageModel, settings: Sequence[Setting], progress: Progress) -> Iterator[Row]:
        """See `Suite.run`."""
        passages = [text.text for text in long_texts(standard_library("heldout"), self.count, self.length)]
        bits = read_texts(model, [2 * passage for passage in passages]).bits
        for setting in settings:
            end = self.length * int(setting["reading"])
            yield Row.of(setting, bits[:, end - self.length : end].mean(1).astype(np.float64))


SUITES = {"": Positions(length=8 * TRAINING.row_length, count=8), "again": Again()}


def changed(teacher: LanguageModel, student: Student) -> LanguageModel:
    """The teacher with other blocks."""
    return with_blocks(teacher, **student.changes)[0]


ARMS = {"teacher": Arm("full attention, the teacher", TEACHER, TRAINING, source_code(), SUITES)} | {
    name: Arm(student.label, TEACHER, TRAINING, None, SUITES) for name, student in STUDENTS.items()
}


def run(study: Study, name: str, seed: int) -> None:
    """Convert the seed's teacher, train it in stages, and ask it."""
    if name == "teacher":
        run_one(study, name, seed)
        return
    torch.set_flush_denormal(True)
    teacher = LanguageModel(TEACHER)
    restore_model(teacher, load_checkpoint(study.run_folder("teacher", seed) / "checkpoint"))
    teacher.eval()
    student = STUDENTS[name]
    torch.manual_seed(seed)
    model = changed(teacher, student)
    if not student.converted:
        torch.manual_seed(seed)
        model = LanguageModel(model.config)
    stages = [asdict(stage) for stage in student.stages]
    facts: dict[str, Any] = {"seed": seed, "stages": stages, "unexplained": [unexplained(model, teacher, seed)]}
    facts["seconds_a_step"] = []
    for number, stage in enumerate(student.stages):
        folder = study.run_folder(name, seed) / str(number)
        facts["seconds_a_step"].append(teach(model, teacher, stage, folder, 100 * (number + 1) + seed))
        facts["unexplained"].append(unexplained(model, teacher, seed))
    for suite, asked in SUITES.items():
        evaluate(model, asked, study.path(name, seed, suite), name=student.label, facts=facts)


def teach(model: LanguageModel, teacher: LanguageModel, stage: Stage, folder: Path, seed: int) -> float:
    """Train a model through one stage, or go on; seconds a step."""
    config = replace(TRAINING, warmup_steps=20, learning_rate=stage.learning_rate, seed=seed).for_steps(stage.steps)
    batch_of = packed_batches(standard_library("train"), config)
    how: dict[str, Any] = {"resume": has_checkpoint(folder / "checkpoint"), "extra": asdict(stage), "progress": False}
    if stage.match == "mixers":
        blocks = differing_mixers(model, teacher)
        shows = MixerTeacher(teacher, blocks)
        loss_of = mixer_loss(shows, mixer_weights(shows, batch_of(0, 0, 0, config.batch_size)))
        ended = train(AlignedMixers(model, blocks), batch_of, loss_of, config, folder, unit="unexplained share", **how)
    else:
        loss_of = next_token_loss if stage.match == "text" else distillation_loss(teacher)
        ended = train(model, batch_of, loss_of, config, folder, **how)
    if ended.interrupted:
        raise SystemExit(130)
    model.eval()
    return round(ended.seconds / stage.steps, 3)


def unexplained(model: LanguageModel, teacher: LanguageModel, seed: int) -> float:
    """The share that the mixers leave unexplained of the teacher's, on 16 rows of held-out text."""
    blocks = differing_mixers(model, teacher)
    config = replace(TRAINING, seed=seed)
    rows = PackedRows(standard_library("heldout"), config.row_length, 0)
    held_out: HeldOut = held_out_batches(rows, config, HeldOutConfig(rows=16))
    shows = MixerTeacher(teacher, blocks)
    weights = mixer_weights(shows, packed_batches(standard_library("train"), config)(0, 0, 0, config.batch_size))
    accelerator = start_accelerator(config.device)
    return read_held_out(accelerator, AlignedMixers(model, blocks), mixer_loss(shows, weights), held_out).loss


def write_page(study: Study) -> str:
    """By arm and position, what each way of learning saves, and what mixers take over."""
    heads = [f"{begin:,} to {end:,}" for begin, end in BINS]
    lines = [
        "| model | " + " | ".join(heads) + " | second reading saves | state, bytes |",
        "|---|" + "--:|" * (len(BINS) + 2),
    ]
    curves = []
    for name, arm in study.arms.items():
        results, again = study.results(name), study.results(name, "again")
        if not results:
            continue
        cells = [paired([mean_over(result, *each) for result in results]) for each in BINS]
        cells.append(paired([copied(result) for result in again], signed=True))
        state = bytes_of_state(results[0].model["state_bytes"], results[0].model["state_bytes_per_token"])
        lines.append(f"| {arm.label} | " + " | ".join(cells) + f" | {state} |")
        if name in DRAWN:
            curves.append(over_seeds(results, arm.label))
    if curves:
        draw(HERE / "positions.svg", curves)
    pairs = (
        ("scratch", "text"),
        ("text", "logits"),
        ("logits", "mixers"),
        ("mixers", "mixers-text"),
        ("text", "mixers-text"),
        ("logits", "mixers-logits"),
        ("mixers-text", "mixers-logits"),
        ("mixers-logits", "teacher"),
        ("hybrid", "hybrid-text"),
        ("hybrid-text", "hybrid-mixers-logits"),
        ("hybrid-text", "teacher"),
    )
    saved = ["| what saves | against | " + " | ".join(heads) + " |"]
    saved.append("|---|---|" + "--:|" * len(BINS))
    for worse, better in pairs:
        more, less = study.results(worse), study.results(better)
        if more and less:
            cells = [paired(differences(more, less, lambda r, e=each: mean_over(r, *e)), signed=True) for each in BINS]
            saved.append(f"| {study.arms[better].label} | {study.arms[worse].label} | " + " | ".join(cells) + " |")
    return "\n\n".join(
        [
            seeds_of(study),
            "### Bits per byte, by position",
            "\n".join(lines),
            "### What is saved",
            "Bits per byte, paired by seed; above zero the first is better.",
            "\n".join(saved),
            "### What the mixers leave unexplained",
            "Of what the teacher's answer on held-out text, each given what the teacher's was given.",
            "\n".join(shares(study)),
            "![Bits per byte by position](positions.svg)" if curves else "",
        ]
    )


def copied(result: Result) -> float:
    """What the second reading of a passage saves against the first."""
    return result.rows[0].mean - result.rows[1].mean


def shares(study: Study) -> list[str]:
    """A line for each student: before, and after each stage; and what a step of each takes."""
    lines = ["| model | before | after the first stage | after the second | seconds a step |", "|---|--:|--:|--:|--:|"]
    for name in STUDENTS:
        results = study.results(name)
        if not results:
            continue
        each = zip(*(result.facts["unexplained"] for result in results), strict=True)
        cells = [paired(list(values)) for values in each]
        seconds = zip(*(result.facts["seconds_a_step"] for result in results), strict=True)
        cells += [""] * (3 - len(cells)) + [", ".join(f"{np.mean(values):.2f}" for values in seconds)]
        lines.append(f"| {study.arms[name].label} | " + " | ".join(cells) + " |")
    return lines


STUDY = Study(HERE, ARMS, write_page, run)

if __name__ == "__main__":
    main(STUDY)
