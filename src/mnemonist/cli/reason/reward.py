"""``mnemonist reason reward``: a judge of steps, trained on the truth; and the folder that it lives in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mnemonist.cli import INTERRUPTED
from mnemonist.cli.begun import OPTIONS_FILE, keep_options
from mnemonist.cli.process import first_process, prepare_torch, say
from mnemonist.cli.reason.material import claim, draw, put, step_task
from mnemonist.cli.reason.options import Asked, Reward
from mnemonist.cli.reason.pages import aligned, judge_page
from mnemonist.cli.reason.policies import Model, learner_of, open_model, to_device
from mnemonist.cli.reason.rates import note_of_rate, pretrained
from mnemonist.errors import UserError
from mnemonist.files import require_writable
from mnemonist.reasoning.formats import Format, find_format
from mnemonist.reasoning.process_reward import ProcessRewardModel, ProcessScorer, train_process_reward
from mnemonist.reasoning.step_labels import Labelled, attempt_labels, path_labels
from mnemonist.reasoning.step_quality import JudgedPaths, StepQuality
from mnemonist.reasoning.tasks import Problem, StepTask, build_task
from mnemonist.report import write_reasoning
from mnemonist.tensors import content_hash
from mnemonist.training.checkpoint import has_checkpoint
from mnemonist.training.loop import CHECKPOINT

IDENTITY, WEIGHTS, PAGE = "reward.json", "process_reward.safetensors", "reward.html"
FORMAT = "mnemonist-reward/2"


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
    if options.attempts < 0:
        raise UserError(f"attempts is {options.attempts}; a model makes so many at each problem, or 0")
    levels, training = options.asked.difficulty, options.training
    problems = draw(task, "train", levels, options.count)
    asked = draw(task, "validation", levels, options.validation, "validation")
    if options.learner.model is not None and options.learner.model.resolve() == options.out.resolve():
        raise UserError(f"{options.out} has the model to begin with; take another folder with --out")
    prepare_torch()
    base = learner_of(options.learner, training.seed)
    shown = put(options.asked, task, shots=0, chat=options.chat, server=False, tokenizer=base.tokenizer)
    identity = {
        "format": FORMAT,
        "task": task.name,
        "text format": format.name,
        "problems": [list(levels), len(problems)],
        "attempts": [options.attempts, asdict(options.decoding)] if options.learner.model else [],
        "chat": options.chat,
        "epochs": options.epochs,
        "weights": base.fingerprint,
    }
    begun = has_checkpoint(options.out / CHECKPOINT)
    if begun and not options.resume:
        raise UserError(f"{options.out} already has a run: go on with --resume, or take another folder")
    require_writable(options.out / PAGE)
    claims = [options.out / name for name in (IDENTITY, OPTIONS_FILE) if not (options.out / name).exists()]
    claim(options.out / IDENTITY, identity, "model")
    if not begun and first_process():
        keep_options(options)
    if pretrained(options.learner.model):
        say(note_of_rate(training.learning_rate))
    examples, judged = (_labelled(options, task, base, shown, part) for part in (problems, asked))
    model = ProcessRewardModel(base.module)
    try:
        result = train_process_reward(
            model,
            [one for part in examples.values() for one in part],
            base.tokenizer,
            format,
            training,
            options.out,
            epochs=options.epochs,
            resume=begun,
        )
    except UserError:
        if first_process() and not has_checkpoint(options.out / CHECKPOINT):  # nothing came of it
            for path in claims:
                path.unlink(missing_ok=True)
        raise
    model.eval()
    if first_process():
        base.save(options.out)
        model.save(options.out / WEIGHTS)
        scorer = ProcessScorer(model, base.tokenizer, format)
        found = {name: _judged(scorer, part) for name, part in judged.items() if part}
        print(summary({name: one.quality for name, one in found.items()}))
        facts = {
            "task": f"{options.task}, difficulty {', '.join(map(str, levels)) or 'the easiest'}",
            "learned from": ", ".join(f"{len(part):,} {name}" for name, part in examples.items()),
            "model": f"{base.name}, {base.parameters:,} parameters",
        }
        write_reasoning(options.out / PAGE, judge_page(f"Judging {task.name}", found, options.out, facts))
        print(f"page: {options.out / PAGE} (open it in a browser)")
    say(f"judge in {options.out}; ask it: {asking(options)}")
    return INTERRUPTED if result.interrupted else 0


def asking(options: Reward) -> str:
    """The command that searches with the judge: steps of the model that it began with, or those that the task knows."""
    asked, model = options.asked, options.learner.model
    words = [f"--model {model}"] if model is not None else ["--proposer moves"]
    words += [f"--difficulty {' '.join(map(str, asked.difficulty))}"] if asked.difficulty else []
    words += [f"--format {asked.format}"] if asked.format != Asked().format else []
    words += ["--chat"] if options.chat and model is not None else []
    return " ".join([f"mnemonist reason solve {options.task} --method beam --scorer {options.out}", *words])


def _labelled(
    options: Reward, task: StepTask, base: Model, shown: Format, problems: Sequence[Problem]
) -> dict[str, list[Labelled]]:
    """Paths with the truth about them, by where they come from; attempts are asked in the format that is shown."""
    found = {"paths astray": path_labels(task, shown, problems, options.training.seed)}
    if options.learner.model is not None and options.attempts:
        to_device(base, options.training.device)
        sampler = base.sampler(options.batch_size)
        found["attempts"] = attempt_labels(sampler, task, shown, problems, options.decoding, count=options.attempts)
    return found


def _judged(scorer: ProcessScorer, paths: Sequence[Labelled]) -> JudgedPaths:
    return JudgedPaths(paths, scorer.score_steps([(one.problem, one.steps) for one in paths]))


def summary(qualities: Mapping[str, StepQuality]) -> str:
    """How good a judge is about steps, and ends, of some kinds of paths, as a table."""
    rows: list[Sequence[str]] = [
        ("judged", "steps", "of them right", "accuracy", "F1 right", "F1 wrong", "AUC", "calibration error")
    ]
    for name, one in qualities.items():
        auc = "-" if one.auc is None else f"{one.auc:.3f}"
        shares = (one.right, one.accuracy, one.f1_right, one.f1_wrong)
        rows.append(
            (name, f"{one.steps:,}", *(f"{share:.3f}" for share in shares), auc, f"{one.calibration_error:.3f}")
        )
    return aligned(rows)


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
