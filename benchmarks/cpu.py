"""Speed on a CPU: every measure with its target, in one call of less than five minutes on two cores.

    make bench                                  installs the peers, measures, prints the table and the verdict
    python benchmarks/cpu.py --only Layer       the measures whose names have this in them
    python benchmarks/cpu.py --list             their names
    python benchmarks/cpu.py --rehearse         the same at tiny sizes: the figures mean nothing

Both sides of a comparison run in this process, in turn, in float32 on the threads that torch takes by itself, with
denormals flushed to zero. The report is written anew after every measure; Ctrl-C keeps what is done. The verdict says
whether a ratio fell by more than 15% against the report that is committed; then the exit code is 1.

To record a run:  python benchmarks/cpu.py --out benchmarks/results/cpu.json && python benchmarks/page.py
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import check
import torch
from cpu_ideas import ideas
from cpu_layer import layer
from cpu_linear import linear
from cpu_measure import FULL, TINY, Group, Measure, PeerMissing, Sizes, empty_entry, filled_entry, limited
from cpu_models import models
from cpu_reference import products, reference_work, roofline
from cpu_streams import streams
from cpu_writing import writing
from table import key, line
from timing import Side, alternate, processor, spread, versions

from mnemonist.errors import UserError
from mnemonist.files import require_writable, write_atomically

RESULTS = Path(__file__).parent / "results"
LATEST = RESULTS / "latest.json"
COPIED = 2**28
"""Bytes: more than any cache holds."""


def groups(sizes: Sizes) -> tuple[Group, ...]:
    """All that is measured."""
    return tuple(make(sizes) for make in (reference_work, layer, linear, models, streams, writing, ideas, roofline))


def machine(sizes: Sizes, copied: int) -> dict[str, Any]:
    """What there is to run on, and its rates: of batched products, and of copying what is in no cache."""
    rates = {}
    for label, threads in (("1 thread", 1), ("all threads", None)):
        with limited(threads):
            multiply, made = products(sizes.reference, sizes.reference.flops * sizes.tokens)
            rates[label] = spread([made / s for s in alternate([Side(multiply)], sizes.runs)[0]])
    data = torch.ones(copied // 4)
    target = torch.empty_like(data)
    times = alternate([Side(lambda: target.copy_(data))], sizes.runs)[0]
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "matmul_flops_per_second": rates,
        "copy_bytes_per_second": spread([2 * copied / s for s in times]),
    }


def take(report: dict[str, Any], group: Group, measure: Measure) -> bool:
    """Add the results of a measure to the report; whether nothing of ours broke."""
    torch.manual_seed(0)
    sound = True
    try:
        found = measure.take()
        entries = [filled_entry(group, measure, *taken) for taken in zip(measure.rows, found, strict=True)]
    except Exception as error:  # the other measures go on
        sound = isinstance(error, PeerMissing)
        why = str(error) if sound else f"broke: {error!r}"[:600]
        entries = [empty_entry(group, measure, row) | {"note": why} for row in measure.rows]
    report["groups"][group.title] = group.text
    report["results"] += entries
    for entry in entries:
        print(f"  {line(entry)}", flush=True)
    gc.collect()
    return sound


def selected(every: tuple[Group, ...], wanted: list[str] | None) -> list[tuple[Group, Measure]]:
    """Measures with a row whose name has one of the texts in it; all, if none is given."""
    texts = [text.casefold() for text in wanted or [""]]

    def hit(group: Group, measure: Measure) -> bool:
        names = [f"{group.title}: {row.name}".casefold() for row in measure.rows]
        return any(text in name for text in texts for name in names)

    return [(group, measure) for group in every for measure in group.measures if hit(group, measure)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=LATEST, help="the report (default: %(default)s)")
    parser.add_argument("--against", type=Path, default=RESULTS / "cpu.json", help="the report to compare ratios with")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure what has one of these in its name")
    parser.add_argument("--runs", type=int, help="pairs of each row, instead of 9 (5 where they take seconds)")
    parser.add_argument("--list", action="store_true", help="print the names and measure nothing")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes; the figures mean nothing")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    sizes = TINY if options.rehearse else FULL
    if options.runs is not None:
        if options.runs < 1:
            parser.error(f"--runs is {options.runs}; it must be at least 1.")
        sizes = replace(sizes, runs=options.runs, long_runs=options.runs)
    chosen = selected(groups(sizes), options.only)
    if not chosen:
        print(f"Nothing has {' or '.join(options.only)} in its name; --list prints the names.", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(f"{group.title}: {row.name}" for group, measure in chosen for row in measure.rows))
        return 0
    old = None
    try:
        require_writable(options.out)
        if options.only and options.out != LATEST and options.out.exists() and "--only" not in options.out.read_text():
            print(f"{options.out} is a whole report; give --out another file for a part of one.", file=sys.stderr)
            return 2
        if not options.rehearse and options.against.exists():
            old = check.read(options.against)
    except (UserError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return run(options.out, sizes, chosen, old, partial=options.only is not None)


def run(out: Path, sizes: Sizes, chosen: list[tuple[Group, Measure]], old: dict[str, Any] | None, partial: bool) -> int:
    """Measure, and say what was found."""
    began = time.perf_counter()
    report: dict[str, Any] = {
        "what": "a rehearsal: its figures mean nothing" if sizes.rehearsal else "speed and memory on a CPU",
        "command": " ".join(["python", "benchmarks/cpu.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": machine(sizes, 2**16 if sizes.rehearsal else COPIED),
        "versions": versions(("mnemonist", "torch", "titans-pytorch")),
        "groups": {},
        "results": [],
    }
    print(f"{report['machine']['processor']}, {report['machine']['threads']} threads", flush=True)
    sound, stopped = True, False
    try:
        for number, (group, measure) in enumerate(chosen, 1):
            first = f"{group.title}: {measure.rows[0].name}"
            print(f"[{number}/{len(chosen)}, {time.perf_counter() - began:.0f} s] {first}", flush=True)
            sound = take(report, group, measure) and sound
            report["seconds"] = time.perf_counter() - began
            write_atomically(out, json.dumps(report, indent=2) + "\n")
    except KeyboardInterrupt:
        stopped = True
        print("\nStopped; what was done is kept.")
    results = report["results"]
    print(f"\n{'what':66s} {'ours':>9s}    {'theirs':>9s}   ratio (least to most)")
    print("\n".join(line(entry) for entry in results))
    missed = [key(entry) for entry in results if entry.get("met") is False]
    aimed = sum("met" in entry for entry in results)
    print(f"{aimed - len(missed)} of {aimed} targets met in {time.perf_counter() - began:.0f} s; written to {out}")
    if old is not None:
        print(check.verdict(report, old, partial=partial or stopped))
        sound = sound and not check.losses(report, old, partial=partial or stopped)
    return 130 if stopped else 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
