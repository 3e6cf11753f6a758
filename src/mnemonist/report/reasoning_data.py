"""What a page about reasoning carries for its script: JSON values of bounded size.

A search may leave millions of nodes behind, and a policy may write for ever. Each text is cut after some
thousand characters, each tree after some thousand nodes (never on the path of its answer), and each part of the
page after its share of megabytes. Everything that is cut is counted, so that the page can say so.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mnemonist.reasoning.journey_text import Line
from mnemonist.reasoning.tree import ROOT, Tree

from .line_plot import Plot, Series

if TYPE_CHECKING:
    from .reasoning import JourneyView, Rollout

ROOM: Mapping[str, int] = {"trees": 2_400_000, "journeys": 900_000, "rollouts": 2_400_000}
"""Characters that a part of the page may take."""

MOST_NODES = 2_000
"""Of one tree."""
MOST_LINES = 2_000
"""Of one journey."""
LONGEST_TEXT = 16_000
"""Characters of a rollout, or of all that belongs to one node or line."""
MOST_POINTS = 600
"""Of one line of a plot."""


def pack_tree(tree: Tree) -> dict[str, Any]:
    """A tree as columns, one entry a node; the nodes are numbered anew if some are left out."""
    numbers = _kept_nodes(tree)
    place = {number: index for index, number in enumerate(numbers)}
    nodes = [tree.nodes[number] for number in numbers]
    texts = [_cut(node.text, LONGEST_TEXT) for node in nodes]
    return {
        "title": _cut(f"{tree.problem.id} · {tree.method}", 200)[0],
        "question": _cut(tree.problem.question, LONGEST_TEXT)[0],
        "right": tree.right,
        "answer": _cut(tree.answer, 400)[0] if tree.answer is not None else None,
        "chosen": place.get(tree.chosen) if tree.chosen is not None else None,
        "parent": [None if node.parent is None else place[node.parent] for node in nodes],
        "text": [text for text, _ in texts],
        "tokens": [node.tokens for node in nodes],
        "log_prob": [_number(node.log_prob) for node in nodes],
        "value": [_number(node.value) for node in nodes],
        "visits": [node.visits for node in nodes],
        "hopeful": [node.hopeful for node in nodes],
        "reason": [_cut(node.reason, 400)[0] for node in nodes],
        "finished": [node.finished for node in nodes],
        "node_answer": [None if node.answer is None else _cut(node.answer, 400)[0] for node in nodes],
        "node_right": [node.right for node in nodes],
        "discarded": [node.discarded for node in nodes],
        "cut": len(tree.nodes) - len(nodes) + sum(cut for _, cut in texts),
    }


def _kept_nodes(tree: Tree) -> list[int]:
    """The first nodes, and the path of the answer; parents are always among them."""
    kept = set(range(min(MOST_NODES, len(tree.nodes))))
    if tree.chosen is not None and 0 <= tree.chosen < len(tree.nodes):
        kept |= {ROOT, *(node.number for node in tree.path(tree.chosen))}
    return sorted(kept)


def pack_journey(journey: JourneyView) -> dict[str, Any]:
    """A journey and its twin; each line with how deep it is astray, and whether an excursion has ended before it."""
    shown = journey.lines[:MOST_LINES]
    path = {ROOT, *(line.node for line in shown if not line.astray)}
    depths = _depths_astray(journey.lines, path)
    returned = [False, *(line.kind == "back" and line.node in path for line in shown)]
    texts = [_cut(line.text, LONGEST_TEXT) for line in shown]
    return {
        "title": _cut(journey.title, 200)[0],
        "question": _cut(journey.question, LONGEST_TEXT)[0],
        "answer": _cut(journey.answer, 400)[0],
        "lines": [
            [text, line.kind, depth, line.astray and after]
            for (text, _), line, depth, after in zip(texts, shown, depths, returned, strict=False)
        ],
        "shortcut": [_cut(text, LONGEST_TEXT)[0] for text in journey.shortcut[:MOST_LINES]],
        "cut": len(journey.lines) - len(shown) + sum(cut for _, cut in texts),
    }


def _depths_astray(lines: Sequence[Line], path: set[int]) -> list[int]:
    """How many steps from the right path each line is; 0 on it. What is said on the way back stands with the step."""
    depth_of = dict.fromkeys(path, 0)
    here, depths = ROOT, []
    for line in lines:
        if line.kind == "step" and line.node != here:
            depth_of.setdefault(line.node, depth_of.get(here, 0) + 1)
        depths.append(0 if not line.astray else depth_of.get(here if line.kind == "back" else line.node, 1))
        here = line.node
    return depths


def pack_rollout(rollout: Rollout) -> dict[str, Any]:
    """A rollout; its text is cut in the middle, for answers stand at the end."""
    text, cut = rollout.text, 0
    if len(text) > LONGEST_TEXT:
        half, cut = LONGEST_TEXT // 2, 1
        text = f"{text[:half]}\n… {len(text) - 2 * half:,} characters are left out here …\n{text[-half:]}"
    return {
        "text": text,
        "right": rollout.right,
        "problem": _cut(rollout.problem, 200)[0],
        "question": _cut(rollout.question, LONGEST_TEXT)[0],
        "answer": None if rollout.answer is None else _cut(rollout.answer, 400)[0],
        "expected": _cut(rollout.expected, 400)[0],
        "tokens": rollout.tokens,
        "reward": _number(rollout.reward),
        "group": _cut(rollout.group, 200)[0],
        "cut": cut,
    }


def within(room: int, packed: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first of these that together take no more room; one that would need most of it is passed over."""
    kept = []
    left = room
    for each in packed:
        size = len(json.dumps(each))
        if size <= left:
            kept.append(each)
            left -= size
        elif size <= room / 2:
            break  # full: whoever has a million rollouts does not want to wait for those that cannot be shown
    return kept


def say_cut(what: str, given: int, kept: int, cut: int) -> list[str]:
    """Sentences about what is not shown."""
    said = []
    if kept < given:
        said.append(f"Shown are {kept:,} of {given:,} {what}: more of them would make this page too large.")
    if cut:
        parts = {"trees": "nodes or parts of texts", "journeys": "lines or parts of lines", "rollouts": "texts"}[what]
        said.append(f"Within what is shown, {cut:,} {parts} were cut.")
    return said


def shares_of_words(texts: Sequence[str], words: Sequence[str]) -> list[float]:
    """Which share of the texts has each word, in whatever case, not as a part of a longer one."""
    shares = []
    for word in words:
        pattern = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)
        shares.append(sum(pattern.search(text) is not None for text in texts) / max(1, len(texts)))
    return shares


def thin(plot: Plot) -> Plot:
    """The plot with no more points than can be seen: of longer lines every second, third ... and the last."""
    return replace(plot, series=tuple(_thin(series) for series in plot.series))


def _thin(series: Series) -> Series:
    count = len(series.x)
    if count <= MOST_POINTS:
        return series
    step = math.ceil(count / (MOST_POINTS - 1))
    keep = sorted({*range(0, count, step), count - 1})
    low, high = (None if ends is None else ends[keep] for ends in (series.low, series.high))
    return Series(series.label, series.x[keep], series.y[keep], low, high)


def _cut(text: str, longest: int) -> tuple[str, int]:
    """The text, shortened if it is longer; and whether it was."""
    if len(text) <= longest:
        return text, 0
    return f"{text[:longest]} … {len(text) - longest:,} more characters", 1


def _number(value: float | None) -> float | None:
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None
