"""Whether speed was lost: the ratios of a new report beside those of an old one.

    python benchmarks/check.py NEW OLD          fails if a median ratio fell by more than 15%

Ratios are compared, not seconds: both sides ran in one process, so a slower machine slows both.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from table import key

TOLERANCE = 0.15


def read(path: Path) -> dict[str, Any]:
    """A report.

    Raises:
        ValueError: there is none, or it is not one.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(report["results"], list):
            return report
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as a report of measurements: {error!r}.") from error
    raise ValueError(f"{path} cannot be read as a report of measurements: its results are no list.")


def losses(new: dict[str, Any], old: dict[str, Any], tolerance: float = TOLERANCE, partial: bool = False) -> list[str]:
    """What got worse, one sentence each.

    Args:
        new, old: reports.
        tolerance: part of the old median ratio that may be lost.
        partial: whether results may be missing from the new report.
    """
    now = {key(entry): entry["ratio"] for entry in new["results"]}
    said = []
    for entry in old["results"]:
        name, before = key(entry), entry["ratio"]
        if before is None:
            continue
        after = now.get(name)
        if after is None:
            if not partial or name in now:
                said.append(f"{name}: was {before['median']:.3g}, and is not measured now.")
        elif after["median"] < (1 - tolerance) * before["median"]:
            lost = 1 - after["median"] / before["median"]
            said.append(f"{name}: {after['median']:.3g}, {lost:.0%} less than {before['median']:.3g}.")
    return said


def verdict(new: dict[str, Any], old: dict[str, Any], tolerance: float = TOLERANCE, partial: bool = False) -> str:
    """All of it, for a person to read."""
    said = losses(new, old, tolerance, partial)
    before = {key(entry) for entry in old["results"] if entry["ratio"] is not None}
    both = [entry for entry in new["results"] if entry["ratio"] is not None and key(entry) in before]
    told = f"{len(both)} ratios compared with those of {old.get('date', 'an earlier run')}: "
    if said:
        return told + f"{len(said)} lost more than {tolerance:.0%} or are gone\n" + "\n".join(f"  {s}" for s in said)
    return told + f"none lost more than {tolerance:.0%}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("new", type=Path)
    parser.add_argument("old", type=Path)
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="part of a ratio that may be lost")
    parser.add_argument("--partial", action="store_true", help="results may be missing from NEW")
    options = parser.parse_args()
    try:
        new, old = read(options.new), read(options.old)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(verdict(new, old, options.tolerance, options.partial))
    return 1 if losses(new, old, options.tolerance, options.partial) else 0


if __name__ == "__main__":
    sys.exit(main())
