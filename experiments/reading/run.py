"""Learning while reading: does it pay, for how long, and what surprises a memory?

python experiments/reading/run.py            # what is missing, then the page
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import source_code
from passages import passages
from study import Study, differences, draw, main, mean_over, over_seeds, paired, seeds_of

from mnemonist.evals.results import Result

HERE = Path(__file__).parent
NAMES = ("mag", "mal", "mac", "lmm-2", "gated-deltanet", "titans-linear", "window")
ARMS = {f"text-{name}": source_code.arm(name) for name in NAMES}
WAYS = {"live": "learning", "frozen": "frozen", "reset": "reset every 1,024 bytes"}
BINS = ((0, 1024), (1024, 8192), (8192, 32768), (32768, 65536))


def write_page(study: Study) -> str:
    """By model and way of reading, and what learning saves, paired by seed."""
    heads = [f"{begin:,} to {end:,}" for begin, end in BINS]
    lines = ["| model | memory | " + " | ".join(heads) + " |", "|---|---|" + "--:|" * len(BINS)]
    saved = ["| model | against | " + " | ".join(heads) + " |", "|---|---|" + "--:|" * len(BINS)]
    curves = []
    window = study.results("text-window", "live")
    for name, arm in study.arms.items():
        live = study.results(name, "live")
        for way, label in WAYS.items():
            results = study.results(name, way) if way in arm.suites else []
            if not results:
                continue
            cells = [paired([mean_over(result, *each) for result in results]) for each in BINS]
            told = label if arm.config.has_memory or way == "reset" else ""
            lines.append(f"| {arm.label} | {told} | " + " | ".join(cells) + " |")
            if name in ("text-mag", "text-window"):
                curves.append(over_seeds(results, arm.label + (f", {label}" if arm.config.has_memory else "")))
            if way != "live":
                saved.append(f"| {arm.label} | {label} | " + " | ".join(savings(live, results)) + " |")
        if arm.config.has_memory and live and window:
            saved.append(f"| {arm.label} | window alone | " + " | ".join(savings(live, window)) + " |")
    if curves:
        draw(HERE / "positions.svg", curves)
    return "\n\n".join(
        [
            seeds_of(study),
            "### Bits per byte, by position",
            "\n".join(lines),
            "### What learning while reading saves",
            "Bits per byte, paired by seed; above zero the live memory is better.",
            "\n".join(saved),
            "![Bits per byte by position](positions.svg)" if curves else "",
            "### Three passages",
            "`shipped/memory` and `shipped/window` on modules that neither has met, each read from its beginning.",
            passages(HERE),
        ]
    )


def savings(live: list[Result], other: list[Result]) -> list[str]:
    """What the live memory pays less, by position."""
    return [paired(differences(other, live, lambda r, each=each: mean_over(r, *each)), signed=True) for each in BINS]


STUDY = Study(HERE, ARMS, write_page)

if __name__ == "__main__":
    main(STUDY)
