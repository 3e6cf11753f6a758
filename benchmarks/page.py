"""The page of the results: README.md, its plots, the figures of limits.md, and those of the project's README.md.

    python benchmarks/page.py           reads benchmarks/results/cpu.json and, where they are, candidates.json,
                                        sampling.json and gpu.json; cpu-NAME.json is cpu.json of another processor

Nothing in them is written by hand but the words around the figures of limits.md and of the project's README.md.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from check import read
from gpu_targets import GPU_TARGETS
from plots import draw_ratios, draw_roofline
from table import Entry, figure, in_seconds, key, met, ratio, target

from mnemonist.files import write_atomically

Report = dict[str, Any]
FOLDER = Path(__file__).parent
BEGIN, END = "<!-- figures: written by page.py -->", "<!-- end of figures -->"


def page(cpu: Report, gpu: Report | None, others: Sequence[Report] = (), elsewhere: Sequence[Report] = ()) -> str:
    """README.md; the others are reports of one group each, and those from elsewhere of another processor."""
    results = cpu["results"]
    parts = [
        "# Speed and memory, side by side",
        "This page is written by `python benchmarks/page.py` from [results/cpu.json](results/cpu.json)"
        + (" and [results/gpu.json](results/gpu.json)" if gpu else "")
        + ". How it is measured, and how to measure it again, is at its end; where the time goes is in "
        "[limits.md](limits.md).",
        "A ratio says how many times less ours takes than what it is compared with: a median over pairs of runs, "
        "one side right after the other, and in brackets the least and the most. The median should be at least the "
        f"target. On the CPU {targets_met(cpu)} targets are met"
        + "".join(f", on {report['machine']['processor']} {targets_met(report)}" for report in elsewhere)
        + ".",
        "![Every ratio over its target](results/ratios.svg)",
        f"## CPU: {cpu['machine']['processor']}, {cpu['machine']['threads']} threads",
        machine_words(cpu),
    ]
    for title, text in cpu["groups"].items():
        parts += [f"### {title}", text, rows([entry for entry in results if entry["group"] == title])]
    for report in elsewhere:  # what the first has not got yet
        for title, text in report["groups"].items():
            if title not in cpu["groups"]:
                found = rows([entry for entry in report["results"] if entry["group"] == title])
                parts += [f"### {title}", f"{text} {measured_on(report)}", found]
    parts += [part for other in others for part in one_group_parts(other)]
    if elsewhere:
        parts += ["### Other processors", processors(cpu, elsewhere)]
    parts += [gpu_part(gpu), HOW]
    return "\n\n".join(parts) + "\n"


HOW = """## How it is measured
`make bench` runs every measure on the CPU, prints this table and writes `results/latest.json`; `--only Layer` runs a
part, `--list` names them all. Both sides run in one process, in turn: each timed run follows an untimed one of its own
side, so neither pays for memory that the other gave back, and a machine whose speed drifts slows both. Float32,
denormals flushed to zero, as many threads as torch takes by itself.

It ends with a verdict: whether a median ratio fell by more than 15% against the report that is committed
(`python benchmarks/check.py NEW OLD` compares any two). Ratios are compared, not seconds.

To record a run, on a machine that does nothing else:

    python benchmarks/cpu.py --out benchmarks/results/cpu.json && python benchmarks/page.py

A report called `cpu-NAME.json` stands beside it as that of another processor.

`python benchmarks/candidates.py` and `python benchmarks/sampling.py` take longer and have reports of their own. On an
NVIDIA GPU `python benchmarks/gpu.py` first checks that what is timed is right, and writes `results/gpu.json`."""


def machine_words(cpu: Report) -> str:
    machine, used = cpu["machine"], cpu["versions"]
    rates = machine["matmul_flops_per_second"]
    products = " and ".join(f"{rate['median'] / 1e9:.0f} GFLOP/s on {label}" for label, rate in rates.items())
    installed = ", ".join(f"{name} {version}" for name, version in used.items() if version is not None)
    return (
        f"{cpu['date']}, `{cpu['command']}`, {cpu['seconds'] / 60:.1f} minutes. {machine['cores']} cores; batched "
        f"products of the reference work's shape at {products}; copying at "
        f"{machine['copy_bytes_per_second']['median'] / 1e9:.1f} GB/s, read and written. {installed}."
    )


def rows(entries: list[Entry]) -> str:
    """A table."""
    lines = [
        "| what | ours | compared with | theirs | ratio (least to most) | runs | target | met |",
        "|---|--:|---|--:|--:|--:|--:|---|",
    ]
    for entry in entries:
        note = f"; {entry['note']}" if entry.get("note") else ""
        peer = entry.get("peer") or entry.get("ratio_of") or "-"
        cells = [entry["name"] + note, figure(entry, "ours"), peer, figure(entry, "theirs"), ratio(entry)]
        cells += [entry.get("runs", "-"), target(entry), met(entry)]
        lines.append("| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines)


def aimed(report: Report) -> dict[str, Entry]:
    """What has a target, by name."""
    return {key(entry): entry for entry in report["results"] if entry.get("target") is not None}


def targets_met(report: Report) -> str:
    """How many of how many."""
    entries = aimed(report).values()
    return f"{sum(met(entry) == 'yes' for entry in entries)} of {len(entries)}"


def told(entry: Entry) -> str:
    """Its ratio, and whether that is too little."""
    return {"yes": ratio(entry), "no": f"{ratio(entry)}, missed"}.get(met(entry), met(entry))


def processors(cpu: Report, elsewhere: Sequence[Report]) -> str:
    """What has a target on each processor, and what the others are."""
    reports = [cpu, *elsewhere]
    found = [aimed(report) for report in reports]
    heads = [f"{report['machine']['processor']}, {report['date']}" for report in reports]
    lines = ["| what | target | " + " | ".join(heads) + " |", "|---|--:|" + "--:|" * len(reports)]
    for name, entry in (found[0] | {name: entry for own in found[1:] for name, entry in own.items()}).items():
        cells = [told(own[name]) if name in own else "not measured" for own in found]
        lines.append("| " + " | ".join([name, target(entry), *cells]) + " |")
    return "\n\n".join(["\n".join(lines), *map(machine_words, elsewhere)])


def gpu_part(gpu: Report | None) -> str:
    """Measured or not."""
    if gpu is None:
        lines = ["| what | ratio | target |", "|---|---|--:|"]
        lines += [f"| {name} | not yet measured | {least:.3g} |" for name, least in GPU_TARGETS.items()]
        text = (
            "Not yet measured. Deep memories have 132 memories or more at once (rows times heads), 8,192 tokens, heads "
            "of width 64, expansion 2, chunks of 64; their ratio is the fraction of the rate of bfloat16 products. The "
            "last two targets say: at most 1.3 times the time."
        )
        return "\n\n".join(["## GPU", text, "\n".join(lines)])
    checks, versions = gpu["checks"], gpu["versions"]
    right = sum(bool(check["passed"]) for check in checks)
    installed = ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)
    text = f"`{gpu['command']}`: {right} of {len(checks)} checks of correctness passed. {installed}."
    late = [name for name, section in gpu["sections"].items() if not section["finished"]]
    if late:
        text += f" Not finished, so that some of it is missing: {', '.join(late)}."
    if "since" in gpu:
        text += f" {gpu['since']}"
    wanted = [entry for entry in gpu["results"] if entry["target"] is not None or entry["name"] in GPU_TARGETS]
    compared = [entry for entry in gpu["results"] if entry not in wanted and entry["theirs_seconds"] is not None]
    found = rows(wanted + compared)
    waiting = [name for name in GPU_TARGETS if name not in {entry["name"] for entry in wanted}]
    if waiting:
        found += "\n\nNot yet measured: " + "; ".join(waiting) + "."
    for name, spent in gpu.get("kernels", {}).items():
        found += f"\n\nWhere the time goes, {name}: "
        found += ", ".join(f"`{kernel}` {in_seconds(seconds)}" for kernel, seconds in spent.items()) + "."
    return "\n\n".join([f"## GPU: {gpu['machine'].get('gpu', 'none')}", text, found])


def other_reports(results: Path) -> list[Report]:
    """Those of one group each that are there."""
    paths = [results / f"{name}.json" for name in ("candidates", "sampling")]
    return [read(path) for path in paths if path.exists()]


def reports_elsewhere(results: Path) -> list[Report]:
    """As cpu.json, of other processors."""
    return [read(path) for path in sorted(results.glob("cpu-*.json"))]


def one_group_parts(report: Report) -> Iterator[str]:
    """Its title, what it is of, and its rows; candidates have a line each, whatever is measured of them."""
    results = report["results"]
    for title, text in report["groups"].items():
        yield f"### {title}"
        yield f"{text} {measured_on(report)}"
        yield pivot(results) if "candidate" in results[0] else rows(results)


def measured_on(report: Report) -> str:
    """When, how and on what."""
    machine = report["machine"]
    return f"{report['date']}, `{report['command']}`; {machine['processor']}, {machine['threads']} threads."


FRONT = {
    "Reference work: forward, all threads": "a deep memory reads, a step for every token",
    "Reference work: forward and backward, all threads": "the same with the way back",
    "Layer: forward, learning at every token": "its layer reads",
    "Layer: forward": "its layer reads",
    "Layer: forward and backward": "the same with the way back",
    "Layer: peak memory, forward and backward": "memory that this takes",
    "Linear memories: gated-deltanet, forward, 2,048 tokens": "Gated DeltaNet reads 2,048 tokens",
    "Linear memories: gated-deltanet, forward, 16,384 tokens": "16,384 tokens",
    "Training: lmm, 4,096 tokens": "LMM, a step of training on 4,096 tokens",
    "Training: mag, 4,096 tokens": "MAG",
    "Training: mac, 4,096 tokens": "MAC",
    "Training: lmm, 16,384 tokens": "LMM, on 16,384 tokens",
    "Training: mag, 16,384 tokens": "MAG",
    "Training: mac, 16,384 tokens": "MAC",
    "Streams: decoding after 1,000,000 tokens": "a token after 1,000,000 others",
    "Sampling: one attempt of 64 tokens, the model adopted": "an adopted transformer of 135M writes one attempt",
    "Sampling: 16 attempts of 128 tokens, the model adopted": "16 attempts at a time",
    "Sampling: one attempt of 64 tokens, the model adopted, weights in bfloat16": "one attempt, weights in bfloat16",
}
"""What the project's README.md tells, and in which words."""
PEERS = {
    "batched products of as many operations": "the machine's own products of matrices",
    "titans-pytorch, chunk_size=1": "titans-pytorch, a step for every token",
    "titans-pytorch, chunk_size=64": "titans-pytorch, a step for 64 tokens",
    "scaled_dot_product_attention, causal": "causal attention of PyTorch",
    "transformer with full attention": "a transformer of as many parameters",
    "the same after 1,000": "a token after 1,000",
    "generate of transformers": "`generate` of transformers",
    "generate of transformers in bfloat16": "`generate` of transformers in bfloat16",
}


def front_figures(cpu: Report, others: Sequence[Report], elsewhere: Sequence[Report]) -> str:
    """The figures of the project's README.md: medians, by processor."""
    columns: dict[str, dict[str, Entry]] = {}
    for report in (cpu, *elsewhere, *others):
        own = columns.setdefault(report["machine"]["processor"], {})
        own |= {key(entry): entry for entry in report["results"] if entry.get("ratio") and "candidate" not in entry}
    lines = ["| what | how many times as fast (or as small) as | " + " | ".join(columns) + " |"]
    lines.append("|---|---|" + "--:|" * len(columns))
    for name, words in FRONT.items():
        found = [own.get(name) for own in columns.values()]
        entry = next((entry for entry in found if entry is not None), None)
        if entry is None:
            continue
        medians = ["" if one is None else ratio(one).partition(" (")[0] for one in found]
        cells = [
            f"{median}, missed" if one is not None and met(one) == "no" else median
            for one, median in zip(found, medians, strict=True)
        ]
        lines.append("| " + " | ".join([words, PEERS.get(entry["peer"], entry["peer"]), *cells]) + " |")
    return "\n".join(lines)


def pivot(entries: list[Entry]) -> str:
    """Ratios: a line for each candidate, a column for each of what is measured."""
    columns = list(dict.fromkeys((entry["what"], entry["length"]) for entry in entries))
    found = {(entry["candidate"], entry["what"], entry["length"]): entry for entry in entries}
    lines = ["| candidate | " + " | ".join(f"{what}, {length:,} bytes" for what, length in columns) + " |"]
    lines.append("|---|" + "--:|" * len(columns))
    for candidate in dict.fromkeys(entry["candidate"] for entry in entries):
        cells = [ratio(found[(candidate, *column)]) for column in columns]
        lines.append(f"| {candidate} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def limit_figures(cpu: Report) -> str:
    """The figures of limits.md."""
    entries = roofline(cpu)
    copied = cpu["machine"]["copy_bytes_per_second"]["median"]
    parts = next(entry["parts"] for entry in cpu["results"] if "parts" in entry)
    whole = sum(parts.values())
    lines = ["| operations per token | thousands | share |", "|---|--:|--:|"]
    lines += [f"| {name} | {flops / 1e3:,.0f} | {flops / whole:.0%} |" for name, flops in parts.items()]
    lines += ["", "| chunk | GFLOP/s reached | of products of that shape | copying alone would allow | at most |"]
    lines += ["|--:|--:|--:|--:|---|"]
    for entry in entries:
        reached, shape = (entry["flops"] / entry[f"{side}_seconds"]["median"] for side in ("ours", "theirs"))
        moved = entry["flops"] / entry["bytes"] * copied
        bound = "multiplying" if shape < moved else "copying"
        cells = [
            entry["chunk"],
            f"{reached / 1e9:.0f}",
            f"{entry['ratio']['median']:.2f}",
            f"{moved / 1e9:,.0f}",
            bound,
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "![The roofline of the reference work](results/roofline.svg)"]
    return "\n".join([*lines, *arithmetic_alone(cpu)])


def arithmetic_alone(cpu: Report) -> list[str]:
    """What would be left of the time of layers and models if every operation ran at the rate of batched products."""
    rate = cpu["machine"]["matmul_flops_per_second"]["all threads"]["median"]
    counted = [entry for entry in cpu["results"] if entry.get("flops") and entry.get("target") and entry["ratio"]]
    lines = []
    for entry in counted:
        if entry["group"] not in ("Layer", "Training"):  # the reference work is compared with this rate anyway
            continue
        alone = entry["flops"] / rate
        ours, theirs = (entry[f"{side}_seconds"]["median"] for side in ("ours", "theirs"))
        cells = [f"{entry['group'].lower()}: {entry['name']}", f"{entry['flops'] / 1e9:.1f}", in_seconds(alone)]
        cells += [in_seconds(ours), f"{alone / ours:.2f}", f"{entry['ratio']['median']:.2f}"]
        lines.append("| " + " | ".join([*cells, f"{theirs / alone:.2f}", target(entry)]) + " |")
    if not lines:
        return []
    head = "| what | GFLOP | at the rate of products | ours | of that rate | ratio | ratio at that rate | target |"
    return ["", head, "|---|--:|--:|--:|--:|--:|--:|--:|", *lines]


def roofline(cpu: Report) -> list[Entry]:
    return [entry for entry in cpu["results"] if entry["group"] == "Roofline" and entry["ratio"] is not None]


def put_figures(path: Path, figures: str) -> None:
    """Replace what stands between the marks of a file.

    Raises:
        ValueError: there are none.
    """
    text = path.read_text(encoding="utf-8")
    marked = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", flags=re.DOTALL)
    if not marked.search(text):
        raise ValueError(f"{path.name} has lost the marks {BEGIN} and {END}; put them back.")
    write_atomically(path, marked.sub(lambda _: f"{BEGIN}\n{figures}\n{END}", text))


def write(folder: Path) -> list[Path]:
    """Everything that comes from the reports in ``folder/results``; what was written."""
    results = folder / "results"
    cpu = read(results / "cpu.json")
    on_gpu = results / "gpu.json"
    gpu = read(on_gpu) if on_gpu.exists() else None
    written = [folder / "README.md", results / "ratios.svg"]
    write_atomically(written[0], page(cpu, gpu, other_reports(results), reports_elsewhere(results)))
    draw_ratios(cpu["results"], written[1])
    if roofline(cpu):
        limits = folder / "limits.md"
        put_figures(limits, limit_figures(cpu))
        draw_roofline(roofline(cpu), cpu["machine"], results / "roofline.svg")
        written += [limits, results / "roofline.svg"]
    front = folder.parent / "README.md"
    if front.exists():
        put_figures(front, front_figures(cpu, other_reports(results), reports_elsewhere(results)))
        written.append(front)
    return written


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where results/ and limits.md are")
    options = parser.parse_args()
    try:
        for path in write(options.folder):
            print(path)
    except (OSError, ValueError) as error:
        print(f"The page cannot be written: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
