"""``mnemonist reason reward``: a judge of steps, trained on the truth; and the folder that it lives in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mnemonist.cli import INTERRUPTED
from mnemonist.cli.reason.material import claim, draw, step_task
from mnemonist.cli.reason.options import Reward
from mnemonist.cli.reason.pages import aligned
from mnemonist.cli.reason.policies import learner_of, open_model
from mnemonist.cli.train import first_process, prepare_torch, say
from mnemonist.errors import UserError
from mnemonist.reasoning.formats import find_format
from mnemonist.reasoning.process_reward import ProcessRewardModel, ProcessScorer, train_process_reward
from mnemonist.reasoning.step_labels import Labelled, gold_labels, random_path
from mnemonist.reasoning.step_quality import StepQuality, step_quality
from mnemonist.reasoning.tasks import Problem, StepTask, build_task
from mnemonist.tensors import content_hash
from mnemonist.training.checkpoint import has_checkpoint
from mnemonist.training.loop import CHECKPOINT

IDENTITY, WEIGHTS = "reward.json", "process_reward.safetensors"
FORMAT = "mnemonist-reward/1"


@dataclass(frozen=True)
class Scorer(ProcessScorer):
    """A trained judge, and what its scores follow from."""

    fingerprint: str = ""


def run_reward(options: Reward) -> int:
    """Label paths, train, save, and say how good it is on problems that it has not seen."""
    task = step_task(build_task(options.task), "learning to judge steps")
    format = find_format(options.asked.format)
    if options.epochs < 1:
        raise UserError(f"epochs is {options.epochs}; read every path at least once")
    levels, training = options.asked.difficulty, options.training
    problems = draw(task, "train", levels, options.count)
    asked = draw(task, "validation", levels, options.validation, "validation")
    if options.learner.model is not None and options.learner.model.resolve() == options.out.resolve():
        raise UserError(f"{options.out} has the model to begin with; take another folder with --out")
    prepare_torch()
    base = learner_of(options.learner, training.seed)
    identity = {
        "format": FORMAT,
        "task": task.name,
        "text format": format.name,
        "problems": [list(levels), len(problems)],
        "epochs": options.epochs,
        "weights": base.fingerprint,
    }
    begun = has_checkpoint(options.out / CHECKPOINT)
    if begun and not options.resume:
        raise UserError(f"{options.out} already has a run: go on with --resume, or take another folder")
    claim(options.out / IDENTITY, identity, "model")
    examples = labelled(task, problems, training.seed)
    model = ProcessRewardModel(base.module)
    result = train_process_reward(
        model, examples, base.tokenizer, format, training, options.out, epochs=options.epochs, resume=begun
    )
    model.eval()
    if first_process():
        base.save(options.out)
        model.save(options.out / WEIGHTS)
        judged = labelled(task, asked, training.seed)
        scorer = ProcessScorer(model, base.tokenizer, format)
        scores = scorer.score_steps([(one.problem, one.steps) for one in judged])
        told = [score for path in scores for score in path]
        print(summary(step_quality(told, [label for one in judged for label in one.labels])))
    say(f"judge in {options.out}; ask it: mnemonist reason solve {options.task} --method beam --scorer {options.out}")
    return INTERRUPTED if result.interrupted else 0


def labelled(task: StepTask, problems: Sequence[Problem], seed: int) -> list[Labelled]:
    """A path of each problem, right up to some step and astray from there, with the truth about every step."""
    paths = [(problem, random_path(task, problem, seed)) for problem in problems]
    return [gold_labels(task, problem, steps) for problem, steps in paths if steps]


def summary(quality: StepQuality) -> str:
    """How good a judge is, as a table."""
    auc = "-" if quality.auc is None else f"{quality.auc:.3f}"
    head = ("steps", "of them right", "accuracy", "F1 right", "F1 wrong", "AUC", "calibration error")
    shares = (quality.right, quality.accuracy, quality.f1_right, quality.f1_wrong)
    return aligned(
        [head, (f"{quality.steps:,}", *(f"{one:.3f}" for one in shares), auc, f"{quality.calibration_error:.3f}")]
    )


def open_scorer(folder: Path, format: str) -> Scorer:
    """The judge in a folder.

    Args:
        folder: that `run_reward` wrote.
        format: name of the one that it is to read.

    Raises:
        UserError: there is none, it is damaged or of another version, or it reads texts of another format.
    """
    path = folder / IDENTITY
    if not path.is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(f"there is no process reward model in {folder}; train one with `mnemonist reason reward`")
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        version, taught = told["format"], told["text format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); train the model again") from error
    if version != FORMAT:
        raise UserError(f"{path} is of format {version!r}, not {FORMAT!r}; train the model again")
    if taught != format:
        raise UserError(f"the judge in {folder} reads texts of format {taught}, not {format}; take --format {taught}")
    base = open_model(folder)
    model = ProcessRewardModel(base.module)
    model.load(folder / WEIGHTS)
    fingerprint = content_hash("", model.state_dict())
    return Scorer(model.eval(), base.tokenizer, find_format(taught), fingerprint=fingerprint)
