"""The two plots of the page: ratios beside their targets, and the roofline of the reference work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mnemonist.report.figure import ACCENT, FAINT, INK, LINE, SOFT, figure, name_ticks


def draw_ratios(results: list[dict[str, Any]], path: Path) -> None:
    """Every ratio with a target as a multiple of it: a dot at the median, a line from the least to the most."""
    aimed = [entry for entry in results if entry["ratio"] is not None and entry.get("target") is not None]
    with figure(path, 9.5, 0.9 + 0.26 * len(aimed)) as (_, (axes,)):
        for place, entry in enumerate(aimed):
            low, middle, high = (entry["ratio"][part] / entry["target"] for part in ("min", "median", "max"))
            colour = ACCENT if middle < 1 else INK
            axes.plot([low, high], [place, place], color=colour, linewidth=1.5, alpha=0.5, solid_capstyle="round")
            axes.plot([middle], [place], "o", color=colour, markersize=5)
        axes.axvline(1, color=FAINT, linewidth=1)
        axes.set_xscale("log")
        name_ticks(axes.xaxis)
        axes.set_yticks(range(len(aimed)), [f"{entry['group']}: {entry['name']}" for entry in aimed], fontsize=9)
        axes.set_ylim(len(aimed) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.set_xlabel("ratio over its target (log scale); right of 1 the target is met")


def draw_roofline(entries: list[dict[str, Any]], machine: dict[str, Any], path: Path) -> None:
    """What reading reaches at each chunk size, under what the machine can multiply and what it can move."""
    copied = machine["copy_bytes_per_second"]["median"]
    points = []
    for entry in entries:
        flops = entry["flops"]
        rates = [flops / entry[f"{side}_seconds"]["median"] for side in ("ours", "theirs")]
        points.append((entry["chunk"], flops / entry["bytes"], *rates))
    top = max(max(points, key=lambda point: point[3])[3], machine["matmul_flops_per_second"]["all threads"]["median"])
    first, last = min(point[1] for point in points) / 8, max(point[1] for point in points) * 3
    with figure(path, 7.5, 4.4) as (_, (axes,)):
        ridge = top / copied
        axes.plot([first, ridge, last], [first * copied / 1e9, top / 1e9, top / 1e9], color=FAINT, linewidth=1.5)
        for chunk, intensity, reached, roof in points:
            axes.plot([intensity, intensity], [reached / 1e9, roof / 1e9], color=LINE, linewidth=1.5, zorder=1)
            axes.plot([intensity], [roof / 1e9], "_", color=SOFT, markersize=14, markeredgewidth=1.5)
            axes.plot([intensity], [reached / 1e9], "o", color=ACCENT, markersize=6)
            below = {"textcoords": "offset points", "ha": "center", "xytext": (0, -15)}
            axes.annotate(f"{chunk}", (intensity, min(reached, roof) / 1e9), color=ACCENT, **below)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            name_ticks(axis)
        axes.grid()
        axes.set_axisbelow(True)
        axes.set_xlabel("operations per byte, if M and S are moved once a chunk (log scale)")
        axes.set_ylabel("GFLOP/s (log scale)")
        dots = axes.plot([], [], "o", color=ACCENT, markersize=6)[0]
        dashes = axes.plot([], [], "_", color=SOFT, markersize=14, markeredgewidth=1.5)[0]
        roof_line = axes.plot([], [], color=FAINT, linewidth=1.5)[0]
        labels = ["reading, by chunk size", "products of that shape", "what copying and multiplying allow"]
        axes.legend([dots, dashes, roof_line], labels, frameon=False, loc="lower right", fontsize=9)
