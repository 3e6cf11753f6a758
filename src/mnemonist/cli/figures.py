"""Figures for people."""

from __future__ import annotations


def amount(number: float) -> str:
    """``1234567 -> "1.23 M"``, for a unit to follow."""
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.3g} {prefix}"
    return f"{number:.3g} "


def duration(seconds: float) -> str:
    """In the unit that suits: ``"40 s"``, ``"12 min"``, ``"3.4 h"``, ``"2.1 days"``."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"
