"""``mnemonist reason learn``: a round or a recipe, from what is learned to the model that is left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mnemonist.cli import INTERRUPTED
from mnemonist.cli.begun import OPTIONS_FILE, keep_options
from mnemonist.cli.figures import duration
from mnemonist.cli.process import first_process, prepare_torch, say
from mnemonist.cli.reason.doctor import findings_of
from mnemonist.cli.reason.material import draw, put, step_task, warn_of_format
from mnemonist.cli.reason.options import Asked, Learn
from mnemonist.cli.reason.pages import learn_page, share
from mnemonist.cli.reason.policies import Model, learner_of, open_model, server_sampler, to_device
from mnemonist.cli.reason.rates import note_of_rate, pretrained
from mnemonist.cli.reason.traces import SHOWN, beside_steps, check, drafts_of, journey_views, make_twins, tokens_of
from mnemonist.cli.train import MODEL_FILE
from mnemonist.errors import CannotGoOn, UserError
from mnemonist.files import require_writable
from mnemonist.intervals import proportion
from mnemonist.reasoning.arms import match_arms
from mnemonist.reasoning.attempts import Sampler
from mnemonist.reasoning.doctor import rounds_in
from mnemonist.reasoning.formats import Format, find_format
from mnemonist.reasoning.learning import Learned, learn, learn_recipe
from mnemonist.reasoning.objective import find_objective
from mnemonist.reasoning.prompting import InContext
from mnemonist.reasoning.proposing import Material, Policy, Solver
from mnemonist.reasoning.round_folder import Weights, weights_of
from mnemonist.reasoning.rounds import FORMAT_REWARDS, IDENTITY, RECIPES, ROUNDS, Round, find_recipe, find_round
from mnemonist.reasoning.sampling import SamplingFailed
from mnemonist.reasoning.search.proposers import require_steps
from mnemonist.reasoning.tasks import Problem, Task, accuracy_reward, build_task, format_reward, load_rows
from mnemonist.reasoning.tasks.rows import pair_of
from mnemonist.report import JourneyView, write_reasoning
from mnemonist.training import TrainingConfig
from mnemonist.training.loop import CHECKPOINT

PAGE = "learn.html"


@dataclass(frozen=True)
class Lesson:
    """What a run learns from, and journeys of it to show."""

    material: Material
    journeys: Sequence[JourneyView] = ()
    base: Weights | None = None
    """What fits from the base begin with, if not with the learner."""


def run_learn(options: Learn) -> int:
    """Run the round or recipe, save the model, say what came of it and what the doctor thinks, write the page."""
    began = time.perf_counter()
    rounds = rounds_of(options)
    task = build_task(options.task)
    require(options, rounds, task)
    problems = draw(task, "train", options.asked.difficulty, options.count)
    prepare_torch()
    model = learner_of(options.learner, options.training.seed, options.lora)
    format = put(options.asked, task, shots=0, chat=options.chat, server=False, tokenizer=model.tokenizer)
    lesson = lesson_of(options, rounds, task, format, problems, model)
    require_writable(options.out / PAGE)
    policy = Policy(model.learner, model.tokenizer, model.sampler(options.batch_size))
    warn_of_format(model.tokenizer, format, options.learner.model)
    counted = model.counted  # before adapters are merged
    say(f"{options.round}: {counted} learn {task.name}; the run is in {options.out}")
    if pretrained(options.learner.model):
        say(note_of_rate(options.training.learning_rate))
    if not options.resume and first_process():
        keep_options(options)
    try:
        learned = run_rounds(options, rounds, policy, lesson)
    except KeyboardInterrupt:
        what = "what was attempted"
        if _has_learned(options.out):
            keep(options, model)
            what = "the model so far"
        if _has_run(options.out):
            report(options, {}, lesson, counted, time.perf_counter() - began)
        say(f"interrupted; {what} is in {options.out}: --resume goes on")
        return INTERRUPTED
    except SamplingFailed:
        say(f"the server has failed; what it said is in {options.out}: --resume goes on")
        raise
    except CannotGoOn:
        if _has_learned(options.out):
            keep(options, model)
            say(f"model so far in {options.out}; ask it: {asking(options)}")
        report(options, {}, lesson, counted, time.perf_counter() - began)
        raise
    except UserError:
        if first_process() and not _has_run(options.out):  # it was refused before anything came of it
            (options.out / OPTIONS_FILE).unlink(missing_ok=True)
        raise
    keep(options, model)
    report(options, learned, lesson, counted, time.perf_counter() - began)
    if any(one.interrupted for one in learned.values()):
        say(f"interrupted; the model so far is in {options.out}: --resume goes on")
        return INTERRUPTED
    say(f"model in {options.out}; ask it: {asking(options)}")
    return 0


def asking(options: Learn) -> str:
    """The command that asks the model as it has learned to be asked."""
    asked = options.asked
    words = [f"--difficulty {' '.join(map(str, asked.difficulty))}"] if asked.difficulty else []
    words += [f"--format {asked.format}"] if asked.format != Asked().format else []
    words += ["--chat"] if options.chat else []
    return " ".join([f"mnemonist reason solve {options.task} --model {options.out}", *words])


def keep(options: Learn, model: Model) -> None:
    """Save the model as it is."""
    model.learner.eval()
    if first_process():
        model.save(options.out)


def rounds_of(options: Learn) -> tuple[Round, ...]:
    """The rounds that are named, with the objective that is.

    Raises:
        UserError: there is none of this name, it has no objective to replace, or a change does not fit.
    """
    name = options.round.partition(":")[0]
    objective = None if options.objective is None else find_objective(options.objective)
    if name not in RECIPES or name in ROUNDS:
        return (find_round(options.round, objective),)
    rounds = find_recipe(options.round)
    if objective is None:
        return rounds
    return tuple(replace(row, objective=objective) if row.objective else row for row in rounds)


def require(options: Learn, rounds: Sequence[Round], task: Task) -> None:
    """Complain about options that contradict each other or the round, before anything is read or written.

    Raises:
        UserError: they do.
    """
    given = any(row.proposer == "given" for row in rounds)
    teacher = any(row.asks_teacher for row in rounds)
    judged = any(row.weight == "teacher" for row in rounds)
    check(options.telling)
    if options.data is not None and not given:
        raise UserError(f"round {options.round} learns from attempts; leave out --data, or take round journey")
    if (options.teacher is not None or options.server is not None) and not teacher:
        raise UserError(f"round {options.round} has no teacher; leave out --teacher and --server")
    if options.teacher is not None and options.server is not None:
        raise UserError("there are two teachers; give either --teacher or --server")
    if (options.teacher_chat or options.teacher_shots) and options.teacher is None and options.server is None:
        raise UserError(
            "there is no teacher to be shown anything; name one, or leave out --teacher-chat and --teacher-shots"
        )
    if judged and options.server is not None:
        raise UserError(
            f"round {options.round} asks its teacher about every token, which no server tells; give a model with "
            "--teacher, or take round distil"
        )
    if judged and options.teacher is None:
        raise UserError(f"round {options.round} has no teacher; give the folder of a model with --teacher")
    if given and options.data is None:
        require_steps(task, f"round {options.round} without --data")
    if teacher and options.teacher is None and options.server is None:
        require_steps(task, f"round {options.round} without --teacher or --server")
    if options.base is not None and (len(rounds) > 1 or not rounds[0].from_base):
        raise UserError(f"round {options.round} takes no base of its own; leave out --base")
    if options.base is not None and options.lora is not None:
        raise UserError("adapters are trained above the learner, not above another base; leave out --lora or --base")
    if options.validation < 0 or (options.format_reward or 0) < 0:
        raise UserError(
            f"validation is {options.validation} and format_reward {options.format_reward}; both are numbers from 0"
        )
    same = options.learner.model is not None and options.learner.model.resolve() == options.out.resolve()
    if same or ((options.out / MODEL_FILE).exists() and not _has_run(options.out)):
        raise UserError(f"{options.out} has a model that is not of this run; take another folder with --out")
    if options.resume and not _has_run(options.out):
        raise UserError(f"there is no round in {options.out} to resume; start without --resume")
    if _has_run(options.out) and not options.resume:
        raise UserError(f"{options.out} already has a run: go on with --resume, or take another folder")


def _has_run(folder: Path) -> bool:
    return any(folder.glob(IDENTITY)) or any(folder.glob(f"*/{IDENTITY}"))


def _has_learned(folder: Path) -> bool:
    """Whether any step of any fit was saved."""
    return any(folder.rglob(f"fit/{CHECKPOINT}"))


def lesson_of(
    options: Learn, rounds: Sequence[Round], task: Task, format: Format, problems: Sequence[Problem], model: Model
) -> Lesson:
    """What the rounds learn from.

    Raises:
        UserError: a teacher, data or the task cannot give it.
    """
    written = find_format(options.asked.format)
    material = Material(task, format, problems)
    if options.validation:
        asked = draw(task, "validation", options.asked.difficulty, options.validation, "validation")
        material = replace(material, validation=asked)
    worth = FORMAT_REWARDS.get(options.round.partition(":")[0], 0.0)
    if options.format_reward is not None:
        worth = options.format_reward
    if worth:
        material = replace(material, rewards=(accuracy_reward(task, format), format_reward(format, worth)))
    if any(row.asks_teacher for row in rounds):
        material = replace(material, teacher=teacher_of(options, material))
    if not any(row.proposer == "given" for row in rounds):
        return Lesson(material, base=None if options.base is None else base_of(options.base, model))
    if options.data is not None:
        pairs = read_pairs(options.data, options.arm, written)
        if format != written:
            pairs = [(format.prompt(written.question_in(prompt)), completion) for prompt, completion in pairs]
        return Lesson(replace(material, pairs=pairs))
    steps = step_task(task, "making journeys")
    seed, telling = options.training.seed, options.telling
    drafts = drafts_of(steps, problems, telling, format, seed)
    twins = make_twins(beside_steps(drafts, format), len(problems), steps, format)
    arms = match_arms(twins, telling.match, seed=seed, tokens=tokens_of(model.tokenizer))
    arm = arms.journey if options.arm == "journey" else arms.shortcut
    return Lesson(replace(material, pairs=arm.pairs), journey_views(steps, problems[:SHOWN], telling, format, seed))


def teacher_of(options: Learn, material: Material) -> Sampler:
    """Who is distilled, shown what it needs to see.

    Raises:
        UserError: there is no such model, the task has no solutions of its own, or these cannot be shown.
    """
    sampler: Sampler
    tokenizer = None
    if options.server is not None:
        sampler = server_sampler(
            options.server, options.server_model, options.batch_size, options.waiting, chat=options.teacher_chat
        )
    elif options.teacher is not None:
        teacher = open_model(options.teacher)
        to_device(teacher, options.training.device)
        sampler, tokenizer = teacher.sampler(options.batch_size), teacher.tokenizer
    else:
        return Solver(step_task(material.task, "distilling"), material.problems, material.format)
    shown = put(
        options.asked,
        material.task,
        shots=options.teacher_shots,
        chat=options.teacher_chat,
        server=options.server is not None,
        tokenizer=tokenizer,
        first=options.count,  # none of those that it is asked
    )
    return sampler if shown == material.format else InContext(sampler, material.format, shown)


def base_of(path: Path, model: Model) -> Weights:
    """The weights of a model that fits begin with.

    Raises:
        UserError: there is none, or its weights do not fit into the learner.
    """
    base, own = weights_of(open_model(path).module.float()), weights_of(model.module)
    if {name: value.shape for name, value in base.items()} != {name: value.shape for name, value in own.items()}:
        raise UserError(f"the model in {path} has another shape than the learner; take the one that it was made from")
    return base


def read_pairs(path: Path, arm: str, format: Format) -> list[tuple[str, str]]:
    """Prompts and completions in a file of rows; of a file with two arms those of one.

    Raises:
        UserError: it cannot be read, has no such texts, or is of another format.
    """
    rows = [row for row in load_rows(path) if row.get("arm", arm) == arm]
    if not rows:
        raise UserError(f"{path} has no text of the arm {arm}")
    pairs = [pair_of(row, format) for row in rows]
    if not any(format.parse(completion).answer for _, completion in pairs):
        raise UserError(
            f"no text in {path} has an answer as format {format.name} marks it ({format.open_answer.strip()}); name "
            "its format with --format"
        )
    return pairs


def run_rounds(options: Learn, rounds: Sequence[Round], policy: Policy, lesson: Lesson) -> dict[str, Learned]:
    """Run them, and say how each has ended.

    Raises:
        CannotGoOn, UserError: see `learning.learn`.
    """
    if len(rounds) == 1:
        (row,) = rounds
        ended = learn(
            row, policy, lesson.material, options.out, options.training, resume=options.resume, base=lesson.base
        )
        return {row.name: ended}
    configs = [config_of(options.training, row) for row in rounds]
    ends = learn_recipe(rounds, policy, lesson.material, options.out, configs, resume=options.resume)
    return {row.name: one for row, one in zip(rounds, ends, strict=False)}


def config_of(training: TrainingConfig, row: Round) -> TrainingConfig:
    """Of a round in a recipe: policy gradients learn at a tenth of the rate of fits to texts."""
    return replace(training, learning_rate=0.1 * training.learning_rate) if row.on_policy else training


def report(options: Learn, learned: dict[str, Learned], lesson: Lesson, counted: str, seconds: float) -> None:
    """Print what came of it and what the doctor thinks, and write the page.

    Args:
        options: what was asked for.
        learned: how rounds ended, by name; empty if the run did not come to its end.
        lesson: what was learned from.
        counted: how many parameters learned; see `Model.counted`.
        seconds: how long it took.
    """
    if not first_process():
        return
    asked = len(lesson.material.validation)
    figures = []
    for name, one in learned.items():
        if one.before is not None:
            figures.append((f"{name}, right in validation before", _share_of(one.before, asked)))
        done = f"{one.iterations} iterations" if one.iterations != 1 else "1 iteration"
        when = f" after {done}"
        if one.iterations and one.best is None:
            when = f" after {done}, none of them better than the policy before, which is kept"
        elif one.best is not None and one.best + 1 < one.iterations:
            when = f", iteration {one.best + 1} of {one.iterations} kept (folder {one.best})"
        if one.validation is None:
            figures.append((name, when.removeprefix(" after ").removeprefix(", ")))
            continue
        figures.append((f"{name}, right in validation", _share_of(one.validation, asked) + when))
    for label, value in figures:
        print(f"{label}: {value}")
    findings = findings_of(options.out)
    for finding in findings:
        print(f"the doctor says: {finding}")
    facts = {
        "round": options.round,
        "task": f"{lesson.material.task.name}, {len(lesson.material.problems):,} problems",
        "texts": f"{len(lesson.material.pairs):,} of the arm {options.arm}" if lesson.material.pairs else "attempts",
        "model": f"{options.learner.model or options.learner.preset}, {counted}",
        "time": duration(seconds),
        **{f"the doctor says ({number})": finding for number, finding in enumerate(findings, 1)},
    }
    page = learn_page(f"Learning {lesson.material.task.name}", rounds_in(options.out), figures, lesson.journeys, facts)
    write_reasoning(options.out / PAGE, page)
    print(f"page: {options.out / PAGE} (open it in a browser)")


def _share_of(accuracy: float, asked: int) -> str:
    low, high = proportion(round(accuracy * asked), asked)
    return share(accuracy, low, high)
