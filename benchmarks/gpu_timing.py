"""How work on a GPU is timed and compared, and the report that is filled with what was found."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timing import Side, Work, alternate, ratios, seconds, spread, versions

from mnemonist.files import write_atomically

PACKAGES = ("torch", "triton", "flash-linear-attention", "fla-core", "titans-pytorch")


@dataclass(frozen=True)
class Sizes:
    """Of the work that is timed."""

    batches: tuple[int, ...]
    """Rows: the first that fits into the memory of both sides."""
    heads: int
    tokens: int
    dim: int
    expansion: float
    chunk: int
    dims: tuple[int, ...]
    expansions: tuple[float, ...]
    matmul: int
    copied: int
    """Bytes."""
    decoded: int
    """Tokens read one by one."""
    preset: str
    runs: int


FULL = Sizes((11, 4, 1), 12, 8192, 64, 2.0, 64, (32, 64, 128), (1.0, 2.0, 4.0), 8192, 2**30, 128, "mag-170m", 5)
TINY = Sizes((2, 1), 2, 24, 4, 2.0, 8, (4, 8), (1.0, 2.0), 64, 2**16, 4, "mag-tiny", 2)


class Bench:
    """Where the work runs, how it is timed, and the report that it fills."""

    def __init__(self, sizes: Sizes, device: torch.device, out: Path) -> None:
        self.sizes, self.device, self.out = sizes, device, out
        self.on_gpu = device.type == "cuda"
        self.rate: float | None = None
        """bfloat16 matmul, FLOP/s."""
        self.deep_backend = "auto"
        self.report: dict[str, Any] = {
            "what": "correctness and speed on a GPU" if self.on_gpu else "a rehearsal: its figures mean nothing",
            "command": " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
            "machine": {},
            "versions": versions(PACKAGES),
            "sections": {},
            "checks": [],
            "results": [],
        }

    def save(self) -> None:
        write_atomically(self.out, json.dumps(self.report, indent=2, default=str) + "\n")

    def check(self, check: dict[str, Any]) -> None:
        self.report["checks"].append(check)
        how = f"{check['error']:.1e} ({check['of']})" if "error" in check else check.get("broken", "")
        print(f"  {'right' if check['passed'] else 'WRONG'}  {check['name']}: {how}", flush=True)
        self.save()

    def result(self, name: str, **fields: Any) -> None:
        entry = {"name": name, "ours_seconds": None, "theirs_seconds": None, "ratio": None, "target": None} | fields
        if entry["ratio"] is not None and entry["target"] is not None:
            entry["met"] = entry["ratio"]["median"] >= entry["target"]
        self.report["results"].append(entry)
        times = [
            "-" if t is None else f"{t['median'] * 1e3:.3f} ms"
            for t in (entry["ours_seconds"], entry["theirs_seconds"])
        ]
        ratio = "" if entry["ratio"] is None else f", ratio {entry['ratio']['median']:.3f}"
        note = f" ({entry['note']})" if "note" in entry else ""
        print(f"  {name}: ours {times[0]}, theirs {times[1]}{ratio}{note}", flush=True)
        self.save()

    def seconds(self, work: Work) -> float:
        """Of one run."""
        if not self.on_gpu:
            return seconds(work)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3

    def alternate(self, *works: Work) -> list[list[float]]:
        """Seconds of each side, in turn, after warm-up (which also tunes what tunes itself)."""
        for work in works:
            for _ in range(2):
                work()
        # Memory stays with torch here, so no run need be repeated untimed.
        return alternate([Side(work, lambda: None) for work in works], self.sizes.runs, self.seconds)

    def peak(self, work: Work) -> int | None:
        """Bytes that a run needs beyond what is there before it."""
        if not self.on_gpu:
            work()
            return None
        free(self)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before

    def compare(
        self, name: str, ours: Callable[[int], Work], theirs: Callable[[int], Work] | None, **fields: Any
    ) -> None:
        """Time ours (against theirs) with as many rows as both have memory for. Failures are recorded, not raised."""
        notes: list[str] = []
        done = False
        for batch in (*self.sizes.batches, *self.sizes.batches):
            if not done:  # when no number of rows fits both, ours is timed alone, from the most rows on
                done, theirs = self._compare_once(batch, ours, theirs, fields, notes)
        if notes:
            fields["note"] = "; ".join(dict.fromkeys([*filter(None, [fields.get("note")]), *notes]))
        self.result(name, **fields)

    def _compare_once(
        self,
        batch: int,
        ours: Callable[[int], Work],
        theirs: Callable[[int], Work] | None,
        fields: dict[str, Any],
        notes: list[str],
    ) -> tuple[bool, Callable[[int], Work] | None]:
        """Whether that was all, and the other side if it is still to be compared with."""
        works: list[Work] = []
        side = "ours"
        try:
            works.append(ours(batch))
            works[0]()
            if theirs is not None:
                side = "theirs"
                works.append(theirs(batch))
                works[1]()
            times = self.alternate(*works)
            fields |= {"batch": batch, "ours_seconds": spread(times[0]), "ours_peak_bytes": self.peak(works[0])}
            if theirs is not None:
                fields |= {"theirs_seconds": spread(times[1]), "theirs_peak_bytes": self.peak(works[1])}
                fields["ratio"] = ratios(*times)
            return True, theirs
        except torch.cuda.OutOfMemoryError:
            notes.append(f"{side} ran out of memory with {batch} rows")
            return False, None if side == "theirs" and batch == self.sizes.batches[-1] else theirs
        except Exception as broken:
            notes.append(f"{side} broke with {type(broken).__name__}: {broken}"[:600])
            return side == "ours", None
        finally:
            works.clear()
            free(self)


def free(bench: Bench) -> None:
    gc.collect()
    if bench.on_gpu:
        torch.cuda.empty_cache()
