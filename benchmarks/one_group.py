"""A report of a single group of measures, for what is not part of `cpu.py`: it would take too long there."""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from cpu_measure import Group, filled_entry
from table import Entry, line
from timing import processor, versions

from mnemonist.files import require_writable, write_atomically


def measured(group: Group, what: str, out: Path, packages: Iterable[str], only: str | None = None) -> list[Entry]:
    """Take all measures, print them, and write the report anew after each; the results.

    Args:
        group: of measures.
        what: the report is.
        out: its file.
        packages: whose versions it names.
        only: take the measures that have this in the name of a row; the others are kept as the file has them.

    Raises:
        FileError: the file cannot be written.
    """
    require_writable(out)
    torch.set_flush_denormal(True)
    results: list[Entry] = []
    if only is not None and out.exists():
        results += json.loads(out.read_text(encoding="utf-8"))["results"]
    report: dict[str, Any] = {
        "what": what,
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *([] if only else sys.argv[1:])]),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": versions(packages),
        "groups": {group.title: group.text},
        "results": results,
    }
    for measure in group.measures:
        if only is not None and not any(only in row.name for row in measure.rows):
            continue
        names = {row.name for row in measure.rows}
        results[:] = [entry for entry in results if entry["name"] not in names]
        for row, pairs in zip(measure.rows, measure.take(), strict=True):
            results.append(filled_entry(group, measure, row, pairs))
            print(line(results[-1]), flush=True)
        write_atomically(out, json.dumps(report, indent=2) + "\n")
    return results
