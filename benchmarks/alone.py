"""What is measured in a process of its own, since one that has done other work keeps memory of it.

    python benchmarks/alone.py peak ours        bytes that one reading both ways adds to the process
    python benchmarks/alone.py peak theirs      the same of titans-pytorch
    python benchmarks/alone.py stream           a model reads a long stream: its memory, and decoding early and late

Prints JSON. The other measures call it through `alone`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
from cpu_measure import FULL, TINY, PeerMissing, Sizes
from timing import Side, alternate

STATUS = Path("/proc/self/status")
MISSING = 3
"""Exit code if the peer is not installed."""


def alone(task: str, sizes: Sizes, *arguments: str) -> Any:
    """What a task finds in a fresh process.

    Raises:
        PeerMissing: it needs what is not installed.
        RuntimeError: it broke.
    """
    command = [sys.executable, __file__, task, *arguments, "--runs", str(sizes.runs)]
    command += ["--rehearse"] if sizes.rehearsal else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == MISSING:
        raise PeerMissing(done.stderr.strip())
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} broke: {done.stderr.strip()[-400:]}")
    return json.loads(done.stdout)


def resident(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at its highest."""
    if not STATUS.exists():
        raise OSError("Resident memory is read from /proc, which only Linux has.")
    found = re.search(rf"^{field}:\s+(\d+) kB$", STATUS.read_text(), flags=re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def peak(sizes: Sizes, side: str) -> dict[str, int]:
    """Bytes that the first call adds."""
    from cpu_layer import our_layer, reading, their_layer

    layer = our_layer(sizes.reference) if side == "ours" else their_layer(sizes.reference, sizes.reference.chunk)
    work = reading(layer, sizes.reference, sizes.tokens, back=True)
    before = resident("VmRSS")
    # The mark so far is of importing: 5 sets it back to what is there now.
    Path("/proc/self/clear_refs").write_text("5")
    work()
    return {"bytes": resident("VmHWM") - before}


def stream(sizes: Sizes) -> dict[str, Any]:
    """Resident bytes at the most, early and in all, and seconds a token of decoding, early and late."""
    from cpu_streams import streaming_model

    model = streaming_model(sizes)
    ids = torch.randint(0, model.config.vocab_size, (1, sizes.piece))
    with torch.inference_mode():
        early = late = model(ids[:, : sizes.early], positions=slice(-1, None)).state
        read, seen = sizes.early, []
        while read < sizes.streamed:
            piece = ids[:, : sizes.streamed - read]
            late = model(piece, late, positions=slice(-1, None)).state
            read += piece.shape[1]
            seen.append(resident("VmRSS"))

        def decoding(state: Any) -> Side:
            def work() -> None:
                after = state
                for t in range(sizes.decoded):
                    after = model(ids[:, t : t + 1], after).state

            return Side(work)

        times = alternate([decoding(late), decoding(early)], sizes.runs)
    late_seconds, early_seconds = ([s / sizes.decoded for s in side] for side in times)
    early_most = max(seen[: sizes.settled])
    return {"start": early_most, "most": max(seen), "late": late_seconds, "early": early_seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["peak", "stream"])
    parser.add_argument("side", nargs="?", choices=["ours", "theirs"], default="ours")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes; the figures mean nothing")
    parser.add_argument("--runs", type=int, default=FULL.runs, help="of decoding")
    options = parser.parse_args()
    sizes = replace(TINY if options.rehearse else FULL, runs=options.runs)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    try:
        print(json.dumps(peak(sizes, options.side) if options.task == "peak" else stream(sizes)))
    except PeerMissing as absent:
        print(absent, file=sys.stderr)
        return MISSING
    return 0


if __name__ == "__main__":
    sys.exit(main())
