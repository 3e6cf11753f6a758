"""Inference-time scaling: what a token more buys, by method, by difficulty, and under budget forcing.

python experiments/scaling/run.py            # what is missing, then the page
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from countdown import FIT, FORMAT, LONGEST, NUMBERS, SEARCHING, STEPPING, TASK, arm, fresh, keep, open_policy, problems
from study import Study, found, main, paired, seeds_of

from mnemonist.evals.results import Result, Row
from mnemonist.reasoning import Decoding, find_method
from mnemonist.reasoning.budget import Budget, BudgetForcing, control, performance, scaling
from mnemonist.reasoning.process_reward import ProcessRewardModel, ProcessScorer, train_process_reward
from mnemonist.reasoning.search.scaling import Run, compute_optimal, difficulty_bins
from mnemonist.reasoning.step_labels import attempt_labels, path_labels
from mnemonist.report.comparison import Line, draw_lines

HERE = Path(__file__).parent
TESTED = 100
LEARNED = 1500
"""Problems of each size that a judge of steps learns from."""
THINKING = (64, 128, 256, 512, 1024, 2048)
EXTENSIONS = (0, 1, 2)
BUDGETS = (1, 2, 4, 8, 16, 32)
METHODS = {
    "vote": "self-consistency:attempts={0}",
    "best by checking": "best-of-n:attempts={0},value=outcome",
    "beam, judge of steps": "beam:beams={0},width={1},proposer=policy,value=model",
    "DVTS, judge of steps": "dvts:beams={0},width={1},proposer=policy,value=model",
    "MCTS, judge of steps": "mcts:simulations={0},proposer=policy,value=model",
    "beam, truth": "beam:beams={0},width={1},proposer=policy,value=gold",
}
"""With places for the budget, and for a width that divides it."""
WIDTH = 4
BINS, UNAIDED = 3, 16
OPTIMA = (100, 250, 500, 1000)
"""Tokens of a problem that the best choice by difficulty may cost."""


def forcing(study: Study, name: str, seed: int) -> None:
    """Accuracy against the tokens of a thought."""
    policy, tests = open_policy(SEARCHING), problems("test", TESTED, seed)
    assert policy.sampler is not None
    prompts = [FORMAT.prompt(problem.question) for problem in tests]
    rows = []
    for extensions in EXTENSIONS:
        for most in THINKING:
            sampler = BudgetForcing(policy.sampler, FORMAT, Budget(most=most, extensions=extensions, answer=48))
            thoughts = sampler.think(prompts, Decoding(temperature=0, seed=seed))
            answers = [FORMAT.parse(thought.attempt.text).answer for thought in thoughts]
            right = [a is not None and TASK.judge(p, a).right for p, a in zip(tests, answers, strict=True)]
            tokens = [thought.thinking_tokens for thought in thoughts]
            setting = {"thinking": most, "extensions": extensions}
            rows.append(
                Row.of(setting, np.array(right), tokens=float(np.mean(tokens)), control=control(tokens, 0, most))
            )
    keep(study, name, seed, rows, "thinking", "problems solved", model=SEARCHING)


def judge(folder: Path, seed: int) -> ProcessScorer:
    """A process reward model that learns from paths astray and the policy's own attempts, from the policy's weights."""
    policy = open_policy(STEPPING)
    assert policy.sampler is not None
    # Of four numbers those that the policy was not taught, where it goes wrong as it does in the test.
    learned = [*problems("train", LEARNED, seed, NUMBERS[:1]), *fresh(LEARNED, seed)]
    decoding = Decoding(max_tokens=LONGEST[STEPPING], seed=900 + seed)
    examples = path_labels(TASK, FORMAT, learned, seed)
    examples += attempt_labels(policy.sampler, TASK, FORMAT, learned, decoding, count=4)
    model = ProcessRewardModel(policy.model)
    train_process_reward(
        model, examples, policy.tokenizer, FORMAT, replace(FIT, seed=seed), folder, epochs=3,
        resume=folder.exists(), progress=False,
    )  # fmt: skip
    model.eval()
    return ProcessScorer(model, policy.tokenizer, FORMAT)


def methods(study: Study, name: str, seed: int) -> None:
    """Every method at every budget, and the choice by difficulty."""
    policy, tests = open_policy(STEPPING), problems("test", TESTED, seed)
    assert policy.sampler is not None
    scorer = judge(study.run_folder(name, seed), seed)
    decoding = Decoding(max_tokens=LONGEST[STEPPING], temperature=0.7, seed=seed)
    rows, runs = [], []
    for label, form in METHODS.items():
        for budget in BUDGETS:
            method = find_method(form.format(budget, min(budget, WIDTH)))
            trees = method.solve(tests, TASK, FORMAT, policy.sampler, decoding, scorer)
            run = Run(method.name, trees[0].settings, {tree.problem.id: tree for tree in trees})
            if "gold" not in form and "outcome" not in form:  # they know the truth, so they are no choice
                runs.append(run)
            for numbers in NUMBERS:
                own = [tree.problem.id for tree in trees if tree.problem.difficulty == numbers]
                point, flops = run.point("tokens", own), run.point("flops", own).cost
                right = np.array([run.trees[one].right is True for one in own])
                setting = {"method": label, "budget": budget, "numbers": numbers}
                rows.append(Row.of(setting, right, tokens=point.cost, flops=flops))
    unaided = find_method(f"self-consistency:attempts={UNAIDED}")
    known = unaided.solve(tests, TASK, FORMAT, policy.sampler, replace(decoding, seed=500 + seed))
    bins = difficulty_bins(known, BINS)
    optima = {str(most): dataclasses.asdict(compute_optimal(runs, bins, most)) for most in OPTIMA}
    keep(study, name, seed, rows, "budget", "problems solved", model=STEPPING, optima=optima)


def run(study: Study, name: str, seed: int) -> None:
    """One of the two."""
    {"forcing": forcing, "methods": methods}[name](study, name, seed)


def mean(results: Sequence[Result], setting: dict[str, object], which: str | None = None) -> list[float]:
    """Of each seed, at a setting; or another figure of the row."""
    rows = [row for result in results if (row := result.row(setting)) is not None]
    return [row.mean if which is None else row.more[which] for row in rows]


def write_page(study: Study) -> str:
    """Both tables and plots."""
    parts = [seeds_of(study)]
    if forced := study.results("forcing"):
        lines = ["| tokens of a thought, at most | " + " | ".join(f"{n} extensions" for n in EXTENSIONS) + " |"]
        lines.append("|--:|" + "--:|" * len(EXTENSIONS))
        for most in THINKING:
            cells = [paired(mean(forced, {"thinking": most, "extensions": n})) for n in EXTENSIONS]
            lines.append("| " + " | ".join([str(most), *cells]) + " |")
        parts += ["### Budget forcing, greedy", "\n".join(lines)]
        lines = ["| extensions | control | scaling, for 1,000 tokens | performance |", "|--:|--:|--:|--:|"]
        for n in EXTENSIONS:
            curves = [[row for row in result.rows if row.setting["extensions"] == n] for result in forced]
            points = [[(row.more["tokens"], row.mean) for row in rows] for rows in curves]
            kept = [float(np.mean([row.more["control"] for row in rows])) for rows in curves]
            rises, bests = [1000 * scaling(own) for own in points], [performance(own) for own in points]
            lines.append(f"| {n} | {paired(kept)} | {paired(rises, signed=True)} | {paired(bests)} |")
        parts += ["As s1 measures it (its section 3.2), over all budgets:", "\n".join(lines)]
        means = found(study, ["forcing"])["forcing"].lines()
        plot = [
            Line(label, *([row.setting["thinking"] if part == "x" else getattr(row, part) for row in rows]
                          for part in ("x", "mean", "low", "high")))
            for label, rows in means.items()
        ]  # fmt: skip
        bounds, measure = forced[0].bounds, forced[0].measure
        draw_lines(HERE / "forcing.svg", {"": plot}, x="tokens of a thought, at most", y=measure, bounds=bounds)
        parts.append("![Accuracy by budget](forcing.svg)")
    if solved := study.results("methods"):
        panels: dict[str, list[Line]] = {}
        lines = ["| method | numbers | " + " | ".join(f"budget {budget}" for budget in BUDGETS) + " |"]
        lines.append("|---|--:|" + "--:|" * len(BUDGETS))
        for label in METHODS:
            for numbers in NUMBERS:
                settings = [{"method": label, "budget": budget, "numbers": numbers} for budget in BUDGETS]
                cells = [
                    f"{paired(mean(solved, setting))} ({np.mean(mean(solved, setting, 'tokens')):,.0f})"
                    for setting in settings
                ]
                lines.append("| " + " | ".join([label, str(numbers), *cells]) + " |")
                rows = [Row.of(setting, np.array(mean(solved, setting))) for setting in settings]
                at = [float(np.mean(mean(solved, setting, "tokens"))) for setting in settings]
                line = Line(label, at, *([getattr(row, part) for row in rows] for part in ("mean", "low", "high")))
                panels.setdefault(f"{numbers} numbers", []).append(line)
        bounds, measure = solved[0].bounds, solved[0].measure
        draw_lines(HERE / "methods.svg", panels, x="tokens of a problem", y=measure, bounds=bounds)
        parts += ["### Methods: problems solved, and tokens of a problem", "\n".join(lines)]
        parts += ["![Accuracy by tokens](methods.svg)", "### The best choice by difficulty", optima(solved)]
    return "\n\n".join(parts)


def optima(results: Sequence[Result]) -> str:
    """What choosing the method by difficulty comes to, on problems that had no say in the choice."""
    bins = [f"bin {number + 1} of {BINS}" for number in range(BINS)]
    lines = ["| tokens of a problem, at most | solved | " + " | ".join(bins) + " |", "|--:|--:|" + "---|" * BINS]
    for most in OPTIMA:
        each = [result.facts["optima"][str(most)] for result in results]
        solved = paired([one["point"]["right"] / one["point"]["count"] for one in each])
        cells = []
        for number in range(BINS):
            picks = [pick for one in each for pick in one["chosen"].get(str(number), ())]
            cells.append("; ".join(f"{pick} ({picks.count(pick)})" for pick in sorted(set(picks))))
        lines.append("| " + " | ".join([f"{most:,}", solved, *cells]) + " |")
    return "\n".join(lines)


ARMS = {"forcing": arm("budget forcing", SEARCHING), "methods": arm("methods", STEPPING)}
STUDY = Study(HERE, ARMS, write_page, run)

if __name__ == "__main__":
    main(STUDY)
