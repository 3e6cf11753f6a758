"""What a run of the outer loop shows: tables for the terminal, and HTML pages."""

from __future__ import annotations

import itertools
import json
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mnemonist import __version__
from mnemonist.cli.reason.solving import Solved
from mnemonist.reasoning.doctor import kept_iterations, validation_of
from mnemonist.reasoning.rounds import BASE
from mnemonist.reasoning.search.scaling import Point, curves
from mnemonist.reasoning.step_quality import JudgedPaths
from mnemonist.reasoning.tasks.task import Problem
from mnemonist.reasoning.tree import ROOT, Tree
from mnemonist.reasoning.weighing import Judged, load_judged
from mnemonist.report import JourneyView, Plot, ReasoningPage, Rollout, Series
from mnemonist.training.metrics import read_metrics

SHOWN = 12
"""Problems whose trees are on the page, by every method."""
MEASURES: Mapping[str, str] = {
    "accuracy": "share of attempts that are right",
    "validation": "accuracy in validation",
    "reward": "mean reward of attempts",
    "solved": "share of problems with a right attempt",
    "zero_variance": "share of groups that teach nothing",
    "length": "tokens of an attempt",
    "truncated": "share of attempts that were cut off",
    "entropy": "entropy, nats a token",
    "kl": "divergence from the reference or the teacher, nats a token",
}
"""What is drawn of the metrics of a round."""


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first line is its head."""
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    text = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


def command() -> str:
    """What the person has typed."""
    return shlex.join(["mnemonist", *sys.argv[1:]])


def facts_of(facts: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Facts with the versions of what computed."""
    versions = (
        f"mnemonist {__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    return (*facts.items(), ("versions", versions))


def share(right: float, low: float, high: float) -> str:
    """An accuracy with its interval."""
    return f"{100 * right:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


# Solving.


def solve_page(
    solved: Sequence[Solved],
    problems: Sequence[Problem],
    facts: Mapping[str, str],
    journeys: Sequence[JourneyView] = (),
) -> ReasoningPage:
    """Methods side by side: what is right, what it costs, and the trees of some problems."""
    shown = [problem.id for problem in problems[:SHOWN]]
    return ReasoningPage(
        title=f"Solving {problems[0].task}",
        figures=tuple((one.label, share(one.point.accuracy, *one.point.interval)) for one in solved),
        scaling=scaling_plots(solved),
        ledgers={one.label: one.ledger for one in solved},
        trees=tuple(one.run.trees[name] for name in shown for one in solved if name in one.run.trees),
        journeys=tuple(journeys),
        rollouts=tuple(itertools.chain.from_iterable(rollouts_of(one) for one in solved)),
        facts=facts_of(facts),
        command=command(),
    )


def scaling_plots(solved: Sequence[Solved]) -> tuple[Plot, ...]:
    """Accuracy against tokens and, where they are known, operations; a line for each method."""
    plots = []
    for cost, axis in (("tokens", "tokens of a problem"), ("flops", "operations of a problem")):
        lines = curves([one.run for one in solved], cost)
        if any(point.cost for points in lines.values() for point in points):
            plots.append(_scaling(lines, cost, axis))
    return tuple(plots)


def _scaling(lines: Mapping[str, Sequence[Point]], cost: str, axis: str) -> Plot:
    series = []
    for label, points in lines.items():
        rising = list({point.cost: point for point in points}.values())
        ends = [point.interval for point in rising]
        series.append(
            Series(
                label,
                np.array([point.cost for point in rising]),
                np.array([point.accuracy for point in rising]),
                np.array([low for low, _ in ends]),
                np.array([high for _, high in ends]),
            )
        )
    positive = all(point.cost > 0 for points in lines.values() for point in points)
    return Plot(f"accuracy by {cost}", axis, "share of problems solved", tuple(series), log_x=positive, bounds=(0, 1))


def rollouts_of(solved: Solved) -> list[Rollout]:
    """Whole texts, of methods that write such."""
    return [
        Rollout(
            node.text,
            node.right,
            tree.problem.id,
            tree.problem.question,
            node.answer,
            tree.problem.answer,
            node.tokens,
            group=solved.label,
        )
        for tree in solved.trees
        if _writes_whole_texts(tree)
        for node in tree.children(ROOT)
    ]


def _writes_whole_texts(tree: Tree) -> bool:
    return "attempts" in tree.settings


# Learning.


def learn_page(
    title: str,
    folders: Mapping[str, Path],
    figures: Sequence[tuple[str, str]],
    journeys: Sequence[JourneyView],
    facts: Mapping[str, str],
) -> ReasoningPage:
    """What changed while learning, and what was written at the beginning and at the end.

    Args:
        title: heading.
        folders: of the rounds, by name.
        figures: headline figures.
        journeys: of what was learned from.
        facts: what was run.
    """
    rollouts: list[Rollout] = []
    for name, folder in folders.items():
        for when, path in _ends_of(folder).items():
            rollouts += [_rollout(one, f"{name}, {when}") for one in load_judged(path)]
    return ReasoningPage(
        title=title,
        figures=tuple(figures),
        curves=curves_of(folders),
        journeys=tuple(journeys),
        rollouts=tuple(rollouts),
        facts=facts_of(facts),
        command=command(),
    )


def judge_page(title: str, judged: Mapping[str, JudgedPaths], folder: Path, facts: Mapping[str, str]) -> ReasoningPage:
    """How good a judge of steps is, how sure it is when it is right, and some of the paths that it was asked about.

    Args:
        title: heading.
        judged: by where the paths come from.
        folder: of its training.
        facts: what was run.
    """
    figures, lines = [], [Series("as sure as it is right", np.array([0.0, 1.0]), np.array([0.0, 1.0]))]
    for name, one in judged.items():
        quality = one.quality
        ranks = "" if quality.auc is None else f"AUC {quality.auc:.3f}, "
        figures.append((name, f"{ranks}calibration error {quality.calibration_error:.3f}"))
        scores, shares = (np.array([getattr(bin, part) for bin in quality.bins]) for part in ("score", "share"))
        lines.insert(0, Series(name, scores, shares))
    calibration = Plot(
        "calibration", "score of the judge", "share of steps that are right", tuple(lines), bounds=(0, 1)
    )
    loss = _curve("loss of a step", "loss", {"judge": [vars(step) for step in read_metrics(folder / "metrics.jsonl")]})
    return ReasoningPage(
        title=title,
        figures=tuple(figures),
        curves=(calibration, loss) if loss is not None else (calibration,),
        trees=tuple(itertools.chain.from_iterable(_judged_trees(name, one) for name, one in judged.items())),
        facts=facts_of(facts),
        command=command(),
    )


def _judged_trees(name: str, judged: JudgedPaths) -> Iterator[Tree]:
    """Some of the paths, each as a tree of one branch with the truth and the judge's opinion of every step."""
    for path, scores in itertools.islice(zip(judged.paths, judged.scores, strict=True), SHOWN):
        tree = Tree(path.problem, name)
        for step, label, score in zip(path.steps, path.labels, scores, strict=True):
            tree.add(len(tree.nodes) - 1, step, hopeful=label > 0.5, value=score)
        yield tree


def curves_of(folders: Mapping[str, Path]) -> tuple[Plot, ...]:
    """A plot for each thing that was measured more than once, a line for each round; and the loss of the last fits."""
    rows = {name: metrics_of(folder) for name, folder in folders.items()}
    asked = {name: _validations(folder, rows[name]) for name, folder in folders.items()}
    plots = [_curve(label, name, asked if name == "validation" else rows) for name, label in MEASURES.items()]
    fits = {name: [vars(step) for step in _fit_of(folder)] for name, folder in folders.items()}
    return tuple(plot for plot in (*plots, _curve("loss of the last fit", "loss", fits)) if plot is not None)


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """Lines of a round's metrics file; none if it came to none."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _validations(folder: Path, lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Lines of metrics with the validation before them and, where steps are no fits of their own, that at the end."""
    if not lines:
        return []
    by_steps = "step" in lines[0]
    first, last = ({"step": 0}, {"step": lines[-1].get("step")}) if by_steps else ({"iteration": -1}, {})
    before, after = (_accuracy_in(place / "validation.jsonl") for place in (folder / BASE, folder))
    return [{**first, "validation": before}, *lines, *([{**last, "validation": after}] if by_steps else [])]


def _accuracy_in(path: Path) -> float | None:
    """The share of right attempts in a file; None if it is not there."""
    return float(np.mean([one.right for one in load_judged(path)])) if path.exists() else None


def _curve(label: str, measure: str, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Plot | None:
    series, unit = [], "iteration"
    for name, lines in rows.items():
        known = [line for line in lines if line.get(measure) is not None]
        if len(known) > 1:
            unit = "step" if "step" in known[0] else "iteration"
            at = np.array([line.get("step", line.get("iteration", 0) + 1) for line in known])
            series.append(Series(name, at, np.array([line[measure] for line in known])))
    return Plot(label, unit, label, tuple(series)) if series else None


def _fit_of(folder: Path) -> list[Any]:
    """Metrics of the last fit of a round that has several, of those that are kept."""
    fits = (place / "fit" / "metrics.jsonl" for place in kept_iterations(folder))
    last = next((path for path in fits if path.exists()), None)
    return [] if last is None else read_metrics(last)


def _ends_of(folder: Path) -> dict[str, Path]:
    """Files of attempts that say most: the first and the last ones, and validation before and with what is left."""
    attempts = sorted(folder.glob("attempts/[0-9]*.jsonl"))  # of policy gradients
    places = sorted((p for p in folder.glob("[0-9]*") if p.name.isdecimal()), key=lambda p: int(p.name))
    attempts += [first for place in places for first in sorted(place.glob("attempts/[0-9]*.jsonl"))[:1]]
    ends = {"attempts at first": attempts[:1], "attempts at last": attempts[1:][-1:]}
    found = {when: paths[0] for when, paths in ends.items() if paths}
    before, asked = folder / BASE / "validation.jsonl", validation_of(folder)
    found |= {"validation before": before} if before.exists() else {}
    return found | ({"validation": asked} if asked is not None and asked != before else {})


def _rollout(one: Judged, group: str) -> Rollout:
    return Rollout(
        one.attempt.text,
        one.right,
        one.problem.id,
        one.problem.question,
        one.answer,
        one.problem.answer,
        one.attempt.tokens,
        one.reward,
        group,
    )
