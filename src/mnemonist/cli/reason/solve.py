"""``mnemonist reason solve``: problems, several methods, what each gets right and what it costs."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from mnemonist.cli import INTERRUPTED
from mnemonist.cli.eval import steps_bar
from mnemonist.cli.figures import amount
from mnemonist.cli.process import prepare_torch, say
from mnemonist.cli.reason.material import claim, draw, put, warn_of_format
from mnemonist.cli.reason.options import Solve, Thinking
from mnemonist.cli.reason.pages import aligned, solve_page
from mnemonist.cli.reason.policies import Model, open_model, sampler_of, to_device
from mnemonist.cli.reason.reward import Scorer, open_scorer
from mnemonist.cli.reason.solving import Setting, Solved, solve_in_pieces
from mnemonist.errors import UserError
from mnemonist.files import plain_name, require_writable
from mnemonist.reasoning.budget import Budget, BudgetForcing, LoopDetector, performance, scaling
from mnemonist.reasoning.formats import Format
from mnemonist.reasoning.sampling import SamplingFailed
from mnemonist.reasoning.search import Method, find_method
from mnemonist.reasoning.search.proposers import require_steps
from mnemonist.reasoning.search.scaling import Run
from mnemonist.reasoning.search.values import VALUES
from mnemonist.reasoning.tasks import Task, build_task
from mnemonist.reasoning.tasks.task import Problem
from mnemonist.report import JourneyView, write_reasoning
from mnemonist.training.interruption import stop_on_signals

IDENTITY, PAGE = "solve.json", "solve.html"
FORMAT = "mnemonist-solve/1"
ASKING = ("self", "rollouts", "any-rollout")
"""Values for which the policy is asked."""
GOING_ON = ("rollouts", "any-rollout")
"""Those for which it goes on from the middle of a text."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one policy came to."""

    task: Task
    format: Format
    problems: Sequence[Problem]
    described: dict[str, str]
    """Facts for the page."""
    solved: Sequence[Solved]
    interrupted: bool


def run_solve(options: Solve) -> int:
    """Solve by each method, print the table, write trees and page."""
    try:
        outcome = solve(options)
    except SamplingFailed:
        say("the server has failed; the same command goes on with what is missing")
        raise
    if outcome.solved:
        tell(outcome.solved, outcome.problems, outcome.described, (), options.out, as_json=options.json)
    return exit_code(outcome.interrupted)


def solve(options: Solve) -> Outcome:
    """Solve by each method and write the trees, until all is done or a signal comes."""
    task = build_task(options.task)
    methods = choose_methods(options)
    for method in methods.values():
        require(method, options, task)
    problems = draw(task, options.split, options.asked.difficulty, options.count)
    prepare_torch()
    model = None if options.policy.model is None else open_model(options.policy.model)
    policy = options.policy
    tokenizer = None if model is None else model.tokenizer
    server = policy.server is not None
    format = put(options.asked, task, shots=policy.shots, chat=policy.chat, server=server, tokenizer=tokenizer)
    scorer = None if options.scorer is None else open_scorer(options.scorer, options.asked.format)
    if model is not None:
        warn_of_format(model.tokenizer, format, policy.model)
        to_device(model, policy.device)
    setting = Setting(task, format, sampler_of(policy, model), options.decoding, scorer, options.piece)
    budgets = choose_budgets(options)
    require_writable(options.out / PAGE)
    claim(options.out / IDENTITY, identity(setting, model, scorer), "solutions")

    solved: list[Solved] = []
    with stop_on_signals() as stop:
        for (spec, method), (budget_label, budget) in itertools.product(methods.items(), budgets.items()):
            label = spec + budget_label
            path = options.out / f"{plain_name(label)}.jsonl"
            own = (
                setting if budget is None else replace(setting, sampler=BudgetForcing(setting.sampler, format, budget))
            )
            with steps_bar(label) as (advance, on_step):
                trees = solve_in_pieces(
                    method, problems, own, path, on_step=on_step, advance=advance, stop=lambda: stop.requested
                )
            if trees:
                solved.append(
                    Solved(label, Run(method.name, trees[0].settings, {tree.problem.id: tree for tree in trees}))
                )
            if stop.requested:
                break
    return Outcome(task, format, problems, described(options, model), solved, stop.requested)


def tell(
    solved: Sequence[Solved],
    problems: Sequence[Problem],
    facts: dict[str, str],
    journeys: Sequence[JourneyView],
    out: Path,
    *,
    as_json: bool = False,
) -> None:
    """Print the table and write the page."""
    print(json.dumps([figures(one) for one in solved]) if as_json else table(solved) + "".join(budget_lines(solved)))
    write_reasoning(out / PAGE, solve_page(solved, problems, facts, journeys))
    say(f"trees and page in {out}; open {out / PAGE} in a browser")


def exit_code(interrupted: bool) -> int:
    """Which says so if it was."""
    if interrupted:
        say("interrupted; the same command goes on with what is missing")
    return INTERRUPTED if interrupted else 0


def choose_methods(options: Solve) -> dict[str, Method]:
    """Methods by how they were asked for, with what is said for all of them.

    Raises:
        ValueError: one is named twice, or there is no such method or choice.
    """
    if not options.method:
        raise UserError("there is no method to solve by; name one with --method")
    if options.value is not None and options.value not in VALUES:
        raise UserError(f"value is {options.value!r}; it must be one of {', '.join(VALUES)}")
    methods: dict[str, Method] = {}
    files: set[str] = set()
    for spec in options.method:
        method = find_method(spec)
        own = {name for name in ("proposer", "value") if hasattr(method, name) and f"{name}=" not in spec}
        given: dict[str, Any] = {"proposer": options.proposer, "value": options.value}
        changes = {name: given[name] for name in own if given[name] is not None}
        if plain_name(spec) in files:
            raise UserError(f"method {spec} is named twice; name each once")
        files.add(plain_name(spec))
        methods[spec] = dataclasses.replace(method, **changes)
    return methods


def require(method: Method, options: Solve, task: Task) -> None:
    """Complain about what a method needs and is not given, before anything is spent.

    Raises:
        UserError: it needs something.
    """
    chooses = getattr(method, "choice", "best") != "majority" or hasattr(method, "proposer")
    value = getattr(method, "value", "") if chooses else ""
    moves = getattr(method, "proposer", "policy") == "moves"
    if moves or value == "gold":
        require_steps(task, "proposer=moves" if moves else "value=gold")
    if options.policy.model is None and options.policy.server is None and (not moves or value in ASKING):
        raise UserError(
            f"method {method.name} asks a policy; name one with --model or --server, or let the task propose and judge "
            f"steps: {method.name if hasattr(method, 'proposer') else 'beam'}:proposer=moves,value=gold"
        )
    if options.policy.model is not None and options.policy.server is not None:
        raise UserError("there are two policies; give either --model or --server")
    stepwise = hasattr(method, "proposer") and not moves
    if options.policy.server is not None and options.policy.chat and (stepwise or value in GOING_ON):
        raise UserError(
            f"method {method.name} goes on from texts that are begun, which a chat server cannot do; leave out --chat, "
            "or take a method of whole attempts, without rollouts"
        )
    if value == "model" and options.scorer is None:
        raise UserError(
            f"method {method.name} needs values: name a process reward model with --scorer (`mnemonist reason reward` "
            "trains one), or take --value self, or one that knows the truth: --value gold"
        )
    if options.budget.thinking and stepwise:
        raise UserError(
            f"a budget is for whole thoughts, and {method.name} grows them step by step: leave out --thinking"
        )
    if options.piece < 1:
        raise UserError(f"piece is {options.piece}; solve at least 1 problem at a time")


def choose_budgets(options: Solve) -> dict[str, Budget | None]:
    """Budgets that each method is tried with, by what they add to its label; if none is given, one that is none.

    Raises:
        UserError: a budget is none or there twice, or the policy is a chat.
    """
    given = options.budget
    if not given.thinking:
        if given != Thinking():
            raise UserError("extensions and the like belong to a budget; give one with --thinking")
        return {"": None}
    if options.policy.chat and options.policy.server is not None:
        raise UserError("a thought cannot be begun for a chat server, which a budget needs; leave out --chat")
    if len(set(given.thinking)) < len(given.thinking):
        raise UserError(f"thinking is {', '.join(map(str, given.thinking))}; name each number of tokens once")
    loops = LoopDetector() if given.close_loops else None
    return {
        f",thinking={most}": Budget(
            most, given.least_thinking, given.extensions, given.wait, given.answer_tokens, loops
        )
        for most in given.thinking
    }


def identity(setting: Setting, model: Model | None, scorer: Scorer | None) -> dict[str, Any]:
    """What trees of a folder have in common: all they follow from but method and problem."""
    return {
        "format": FORMAT,
        "task": setting.task.name,
        "text format": dataclasses.asdict(setting.format),
        "policy": setting.sampler.name,
        "weights": None if model is None else model.fingerprint,
        "scorer": None if scorer is None else scorer.fingerprint,
        "decoding": dataclasses.asdict(setting.decoding),
        "piece": setting.piece,
    }


def described(options: Solve, model: Model | None) -> dict[str, str]:
    """Facts for the page."""
    policy = options.policy
    if model is not None:
        who = f"{policy.model}, {model.parameters:,} parameters"
    else:
        who = "none" if policy.server is None else f"{policy.server_model} at {policy.server}"
    levels = ", ".join(map(str, options.asked.difficulty)) or "the easiest"
    return {
        "task": f"{options.task}, split {options.split}, difficulty {levels}",
        "policy": who,
        "drawing": f"temperature {options.decoding.temperature:g}, top-p {options.decoding.top_p:g}, top-k "
        f"{options.decoding.top_k}, at most {options.decoding.max_tokens} tokens, seed {options.decoding.seed}",
    }


def figures(solved: Solved) -> dict[str, Any]:
    """Of one method, unrounded; means are of a problem, of thinking tokens and control of a thought."""
    point, ledger, thinking = solved.point, solved.ledger, solved.thinking
    return {
        "method": solved.label,
        "problems": point.count,
        "right": point.right,
        "accuracy": point.accuracy,
        "interval": list(point.interval),
        "mean_tokens": point.cost,
        **({"mean_thinking_tokens": mean(thinking), "control": solved.control} if thinking else {}),
        **ledger.to_json(),
    }


def table(solved: Sequence[Solved]) -> str:
    """A table in Markdown, a line for each method; costs are means of a problem."""
    lines = [("method", "right", "accuracy (95% interval)", "tokens", "discarded", "judges'", "FLOPs", "seconds")]
    for one in solved:
        point, ledger = one.point, one.ledger
        low, high = point.interval
        n = point.count
        lines.append(
            (
                one.label,
                f"{point.right} of {n}",
                f"{point.accuracy:.3f} ({low:.3f} to {high:.3f})",
                f"{point.cost:,.0f}",
                f"{ledger.discarded_tokens / n:,.0f}",
                f"{ledger.reward_tokens / n:,.0f}",
                amount(ledger.flops / n).strip() if ledger.flops else "-",
                f"{ledger.seconds / n:.2f}",
            )
        )
    return "costs are means of a problem\n\n" + aligned(lines)


def budget_lines(solved: Sequence[Solved]) -> list[str]:
    """Of methods that were tried with several budgets: what these are good for, as s1 measures it (section 3.2)."""
    tried: dict[str, list[Solved]] = {}
    for one in solved:
        spec, budget, _ = one.label.rpartition(",thinking=")
        if budget and one.thinking:
            tried.setdefault(spec, []).append(one)
    lines = []
    for spec, own in tried.items():
        points = [(mean(one.thinking), one.point.accuracy) for one in own]
        if len({tokens for tokens, _ in points}) > 1:
            kept = mean(one.control for one in own)
            lines.append(
                f"\n{spec}: {1000 * scaling(points):+.3f} for 1,000 thinking tokens more (scaling), "
                f"{performance(points):.3f} at best (performance), {kept:.3f} of the thoughts within their budget "
                "(control)"
            )
    return lines
