"""``mnemonist reason doctor``: what looks wrong in the folder of a run, and what to change."""

from __future__ import annotations

from pathlib import Path

from mnemonist.cli.reason.options import Doctor
from mnemonist.reasoning.doctor import examine_folder, examine_validation, rounds_in


def run_doctor(options: Doctor) -> int:
    """Print all findings, or that there is none."""
    findings = findings_of(options.folder)
    print("\n".join(findings) or "nothing looks wrong in the latest attempts and in the metrics")
    return 0


def findings_of(folder: Path) -> list[str]:
    """What is wrong with the attempts and metrics of each round of a run, and with what was answered in validation.

    Raises:
        UserError: there is no round, or a file of it cannot be read.
    """
    rounds = rounds_in(folder)
    found = []
    for name, place in rounds.items():
        prefix = f"{name}, " if len(rounds) > 1 else ""
        found += [f"{prefix}{finding}" for finding in examine_folder(place)]
        found += [f"{prefix}in validation, {finding}" for finding in examine_validation(place)]
    return found
