"""What every measurement shares: sides timed in turn, ratios taken pair by pair, and the machine they ran on."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

Work = Callable[[], object]


@dataclass(frozen=True)
class Side:
    """Work to be timed, and what runs untimed before each time: the same, or less of it where it takes seconds."""

    work: Work
    warm: Work | None = None


def seconds(work: Work) -> float:
    """Of one run."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def alternate(sides: Sequence[Side], runs: int, clock: Callable[[Work], float] = seconds) -> list[list[float]]:
    """Seconds of each side, in turn, so that a machine whose speed drifts slows all of them.

    Each timed run follows an untimed one of its own side, so that none pays for the memory the others gave back.
    """
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(runs):
        for side, taken in zip(sides, times, strict=True):
            (side.warm or side.work)()
            taken.append(clock(side.work))
    return times


def spread(values: Sequence[float]) -> dict[str, float]:
    """What is reported of several runs."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """How many times less ours takes than theirs, of pairs that ran one after the other."""
    return spread([b / a for a, b in zip(ours, theirs, strict=True)])


def processor() -> str:
    """The model of the processor, as the system names it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Of Python and of packages; None for one that is not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
