"""How a result is told in one line, on a page or in a terminal."""

from __future__ import annotations

from typing import Any

Entry = dict[str, Any]


def key(entry: Entry) -> str:
    """What a result is called in its report."""
    return f"{entry['group']}: {entry['name']}" if "group" in entry else entry["name"]


def figure(entry: Entry, side: str) -> str:
    """The median of one side: ``ours`` or ``theirs``."""
    if (taken := entry.get(f"{side}_seconds")) is not None:
        return in_seconds(taken["median"])
    if (taken := entry.get(f"{side}_bytes")) is not None:
        return f"{taken['median'] / 2**20:,.0f} MiB"
    return "-"


def in_seconds(seconds: float) -> str:
    """With three digits, in the unit that suits."""
    unit, name = next(((u, n) for u, n in ((1.0, "s"), (1e-3, "ms")) if seconds >= u), (1e-6, "µs"))
    return f"{_three(seconds / unit)} {name}"


def ratio(entry: Entry) -> str:
    """Its median, and the least and the most of the runs."""
    found = entry["ratio"]
    if found is None:
        return "-"
    return f"{_three(found['median'])} ({_three(found['min'])} to {_three(found['max'])})"


def target(entry: Entry) -> str:
    """The least that the median should be, if there is one."""
    return "-" if entry.get("target") is None else f"{entry['target']:.3g}"


def met(entry: Entry) -> str:
    """Whether it is."""
    if entry.get("target") is None:
        return "-"
    if entry["ratio"] is None:
        return "not measured"
    return "yes" if entry["ratio"]["median"] >= entry["target"] else "no"


def line(entry: Entry) -> str:
    """For a terminal."""
    if entry["ratio"] is None:
        return f"{key(entry)}: {entry.get('note', 'not measured')}"
    goal = "" if entry.get("target") is None else f", target {target(entry)}: {met(entry)}"
    return f"{key(entry):66s} {figure(entry, 'ours'):>9s} to {figure(entry, 'theirs'):>9s}   {ratio(entry)}{goal}"


def _three(number: float) -> str:
    """Three digits, no exponent."""
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.{2 if number < 10 else 1}f}"
