"""The answer page, docs/which-memory.md: what the experiments found and what the benchmarks measured, side by side.

python experiments/which_memory.py            # from the results that are there; runs nothing
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import source_code
from study import Study, differences, fill, mean_over, paired, study_of

from mnemonist.evals.candidates import CANDIDATES
from mnemonist.evals.results import Result
from mnemonist.intervals import Interval, interval
from mnemonist.report.comparison import COLOURS
from mnemonist.report.figure import SOFT, figure

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
PEER = "attention"
ENOUGH = 0.9
"""Of the answers right: what counts as remembering, where the page asks how large a state must be."""


RECALL, LENGTH, TRACKING = (study_of(name) for name in ("recall", "length", "state_tracking"))


def at(name: str, value: int) -> Callable[[Result], float]:
    """The mean where a setting has a value."""

    def measure(result: Result) -> float:
        return next(row.mean for row in result.rows if row.setting[name] == value)

    return measure


@dataclass(frozen=True)
class Question:
    """What a memory may be needed for, and which figure tells."""

    text: str
    study: Study
    prefix: str
    measure: Callable[[Result], float]
    suite: str = ""
    less: bool = False
    """Whether a small figure is a good one."""

    def results(self, name: str) -> list[Result]:
        """Those of a candidate, one a seed."""
        arm = self.prefix + name
        return self.study.results(arm, self.suite) if arm in self.study.arms else []

    def better(self, a: str, b: str) -> Interval | None:
        """By how much the first is better, paired by seed; None if they have no seed in common."""
        found = differences(self.results(a), self.results(b), self.measure)
        return interval(np.array(found) * (-1 if self.less else 1)) if found else None


TRAINED = source_code.TRAINING.row_length
QUESTIONS = (
    Question("recall 4 pairs", RECALL, "", at("pairs", 4)),
    Question("recall 32 pairs", RECALL, "", at("pairs", 32)),
    Question("a needle in 192 tokens, the trained length", LENGTH, "niah-", at("length", 192)),
    Question("a needle in 768 tokens, 4 times that", LENGTH, "niah-", at("length", 768)),
    Question("a needle in 12,288 tokens, 64 times that", LENGTH, "niah-", at("length", 12288)),
    Question("parity of 40 elements, the trained length", TRACKING, "parity-", at("elements", 40)),
    Question("parity of 256 elements", TRACKING, "parity-", at("elements", 256)),
    Question("32 swaps of 5 things, the trained length", TRACKING, "swaps-", at("elements", 32)),
    Question("128 swaps of 5 things", TRACKING, "swaps-", at("elements", 128)),
    Question("32 moves of up to 3 of 5 things, the trained length", TRACKING, "cycles-", at("elements", 32)),
    Question("128 moves of up to 3 of 5 things", TRACKING, "cycles-", at("elements", 128)),
    Question(
        "bits per byte of code, first 1,024 bytes", LENGTH, "text-", lambda r: mean_over(r, 0, TRAINED), "live", True
    ),
    Question(
        "bits per byte of code, from byte 32,768 on",
        LENGTH,
        "text-",
        lambda r: mean_over(r, source_code.LONGEST // 2, source_code.LONGEST),
        "live",
        True,
    ),
)
TURNING = {
    name.removeprefix("parity-"): arm.label
    for name, arm in TRACKING.arms.items()
    if name.startswith("parity-") and name.endswith("-turning")
}
LABELS = {name: candidate.label for name, candidate in CANDIDATES.items()} | TURNING


def verdict(found: Interval | None) -> str:
    """Whether a paired difference has a side."""
    if found is None or found.half_width is None:
        return "one seed"
    if abs(found.mean) <= found.half_width:
        return f"not told apart ({found.mean:+.3f} ± {found.half_width:.3f})"
    return f"{'memory' if found.mean > 0 else 'attention'} better ({found.mean:+.3f} ± {found.half_width:.3f})"


def best_of(question: Question) -> tuple[str, list[str]] | None:
    """The best of constant state, and those whose difference from it has no side."""
    means = {
        name: float(np.mean([question.measure(result) for result in results]))
        for name in LABELS
        if name != PEER and (results := question.results(name))
    }
    if not means:
        return None
    best = (min if question.less else max)(means, key=means.__getitem__)
    alike = []
    for name in means:
        found = question.better(best, name) if name != best else None
        if found is not None and found.half_width is not None and found.mean <= found.half_width:
            alike.append(name)
    return best, alike


def answers() -> str:
    """For each question the best memory, those like it, and attention."""
    lines = ["| for | best of constant state | not told apart from it | full attention | against attention |"]
    lines.append("|---|---|---|--:|---|")
    for question in QUESTIONS:
        if (found := best_of(question)) is None:
            continue
        best, alike = found
        value = paired([question.measure(result) for result in question.results(best)])
        others = "; ".join(LABELS[name] for name in alike) or "none"
        attention = paired([question.measure(result) for result in question.results(PEER)])
        against = verdict(question.better(best, PEER))
        lines.append(f"| {question.text} | {LABELS[best]}: {value} | {others} | {attention} | {against} |")
    return "\n".join(lines)


def sizes() -> str:
    """The smallest states of the recall experiment that remember so many pairs."""
    lines = [f"| pairs | smallest state with at least {ENOUGH:.0%} right in every seed | bytes | bytes a pair |"]
    lines.append("|--:|---|--:|--:|")
    settings = next((r[0].rows for arm in RECALL.arms if (r := RECALL.results(arm))), ())
    for pairs in (int(row.setting["pairs"]) for row in settings):
        enough = []
        for arm, one in RECALL.arms.items():
            results = RECALL.results(arm) if arm != PEER else []
            if results and min(at("pairs", pairs)(result) for result in results) >= ENOUGH:
                enough.append((int(results[0].model["state_bytes"]), one.label))
        state, label = min(enough, default=(0, "none"))
        cells = (label, f"{state:,}", f"{state / pairs:,.0f}") if enough else (label, "", "")
        lines.append(f"| {pairs} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def abilities() -> str:
    """Every candidate, every question."""
    asked = [question for question in QUESTIONS if any(question.results(name) for name in LABELS)]
    lines = ["| model | " + " | ".join(question.text for question in asked) + " |", "|---|" + "--:|" * len(asked)]
    for name, label in LABELS.items():
        cells = [paired([question.measure(r) for r in question.results(name)]) for question in asked]
        if any(cells):
            lines.append("| " + " | ".join([label, *cells]) + " |")
    return "\n".join(lines)


def measured_costs() -> dict[tuple[str, str, int], dict[str, Any]]:
    """What the benchmark of candidates has measured, by candidate, what, and length."""
    path = HERE.parent / "benchmarks" / "results" / "candidates.json"
    entries = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else []
    return {(entry["candidate"], entry["what"], entry["length"]): entry for entry in entries}


def costs(measured: dict[tuple[str, str, int], dict[str, Any]]) -> str:
    """Time against the transformer's, and bytes of state."""
    columns = list(dict.fromkeys((what, length) for _, what, length in measured))
    lengths = sorted({length for _, length in columns})
    heads = [f"{what}, {length:,} bytes" for what, length in columns]
    heads += [f"state after {length:,} bytes" for length in lengths]
    lines = ["| model | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    peers = {length: entry["peer_state_bytes"] for (_, _, length), entry in measured.items()}
    states = [f"{peers[length]:,}" for length in lengths]
    lines.append("| " + " | ".join([LABELS[PEER], *["1"] * len(columns), *states]) + " |")
    for name in dict.fromkeys(candidate for candidate, _, _ in measured):
        cells = [f"{measured[(name, *column)]['ratio']['median']:.2f}" for column in columns]
        cells += [f"{measured[(name, 'decoding', length)]['state_bytes']:,}" for length in lengths]
        lines.append("| " + " | ".join([LABELS[name], *cells]) + " |")
    return "\n".join(lines)


def scatter(path: Path, question: Question, x: str, places: Mapping[str, float]) -> None:
    """A dot with its interval for each candidate that has a place and an answer."""
    with figure(path, 7.5, 4.6) as (_, (axes,)):
        for number, name in enumerate(CANDIDATES):
            results = question.results(name)
            if not results or name not in places:
                continue
            found = interval(np.array([question.measure(result) for result in results]))
            colour = SOFT if name == PEER else COLOURS[number % len(COLOURS)]
            half = found.half_width or 0.0
            low, high = np.clip([found.mean - half, found.mean + half], *results[0].bounds)
            spread = [[found.mean - low], [high - found.mean]]
            axes.errorbar([places[name]], [found.mean], yerr=spread, fmt="o", color=colour, markersize=5)
            beside = {"textcoords": "offset points", "xytext": (6, 3), "fontsize": 8, "color": colour}
            axes.annotate(LABELS[name], (places[name], found.mean), **beside)
        axes.set_xscale("log")
        axes.grid()
        axes.set_axisbelow(True)
        axes.set_xlabel(x)
        axes.set_ylabel(question.text)


def main() -> None:
    """Write the page and its plots."""
    recall, text = DOCS / "which-memory-recall.svg", DOCS / "which-memory-text.svg"
    states = {
        name: float(results[0].model["state_bytes"])
        for name in CANDIDATES
        if name != PEER and (results := RECALL.results(name))
    }
    scatter(recall, QUESTIONS[1], "bytes of state", states)
    parts = [
        "## For each question",
        answers(),
        "## How large a state",
        "Multi-query recall with equal parameters ([recall](../experiments/recall/README.md)).",
        sizes(),
        f"![Recall of 32 pairs by bytes of state]({recall.name})",
        "## What each can do",
        abilities(),
        "## What each costs",
    ]
    if measured := measured_costs():
        times = {
            name: 1 / entry["ratio"]["median"]
            for (name, what, length), entry in measured.items()
            if (what, length) == ("training", 8192)
        } | {PEER: 1.0}
        scatter(text, QUESTIONS[-1], "time of a training step on 8,192 bytes; the transformer's is 1", times)
        parts += [
            "How many times less time than a transformer of as many parameters takes, side by side on two CPU cores "
            "([benchmarks](../benchmarks/README.md)); above 1 is faster. Bytes of state are those of these models.",
            costs(measured),
            f"![Bits per byte by time of training]({text.name})",
        ]
    else:
        parts.append("Not measured yet.")
    fill(DOCS / "which-memory.md", "\n\n".join(parts))


if __name__ == "__main__":
    main()
