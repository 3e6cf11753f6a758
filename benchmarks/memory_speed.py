"""Speed of a deep memory that learns at every token, side by side with titans-pytorch, in one process.

The reference work: an MLP memory of depth 2 and expansion 4, 4 heads of width 64 (layer width 256), one row of 2048
tokens, float32, gates at every token, decay to zero as in the paper. Our default decays to the initial weights, which
costs two of thirteen matrix products more; it is measured as well. titans-pytorch is measured in both of its modes:
`chunk_size=1` has the same per-token semantics; `chunk_size=64` is coarser than ours (one step size, momentum and decay
per chunk, and reads of what the chunks before have left).

Runs alternate between the two sides, so that a machine whose speed drifts slows both; the ratios are taken pair by
pair. The matmul rate of the machine, at the shapes of the work, is measured in the same run.

    make bench            or   python benchmarks/memory_speed.py --out result.json
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mnemonist.files import write_atomically
from mnemonist.memory import RULES, initial_weights, memorize
from mnemonist.models import NeuralMemory

B, T, H, D, EXPANSION, CHUNK = 1, 2048, 4, 64, 4, 64
# Multiplications and additions of one token in one head: with P weights 11 P to learn and read, and the products
# inside the chunk (two triangles of scores and of mixing per layer).
WEIGHTS = 2 * EXPANSION * D * D
FLOPS_PER_TOKEN = H * (11 * WEIGHTS + 4 * CHUNK * D * (1 + EXPANSION) + 2 * CHUNK**2)

Work = Callable[[], object]


def seconds(work: Work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def alternate(ours: Work, theirs: Work, runs: int) -> tuple[list[float], list[float]]:
    """Seconds of both sides, in turn.

    Each timed run follows an untimed one of its own side, so that neither pays for the memory the other gave back.
    """

    def warm(work: Work) -> float:
        work()
        return seconds(work)

    pairs = [(warm(ours), warm(theirs)) for _ in range(runs)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def matmul_rate(runs: int) -> float:
    """GFLOP/s of the batched matrix product that the work consists of."""
    a, b = torch.randn(H, CHUNK, D), torch.randn(H, D, EXPANSION * D)
    times = [seconds(lambda: [torch.bmm(a, b) for _ in range(100)]) for _ in range(runs)]
    return 100 * 2 * H * CHUNK * D * EXPANSION * D / statistics.median(times) / 1e9


PAPER = RULES["titans"].replace(expansion=EXPANSION, chunk_size=CHUNK, decay_to="zero")


def our_memory() -> Work:
    """The bare memory, without the layer around it."""
    rule = PAPER
    q, k = (torch.nn.functional.normalize(torch.randn(B, T, H, D), dim=-1) for _ in range(2))
    v, initial = torch.randn(B, T, H, D), initial_weights(rule, H, D, D)
    gates = {
        "step_size": torch.rand(B, T, H) * 0.01,
        "log_momentum": torch.nn.functional.logsigmoid(torch.randn(B, T, H) + 2),
        "log_decay": torch.nn.functional.logsigmoid(torch.randn(B, T, H) + 4),
    }
    return lambda: memorize(rule, q, k, v, initial=initial, surprise=False, **gates)


def our_layer(decay_to: str) -> torch.nn.Module:
    return NeuralMemory(H * D, H, D, PAPER.replace(decay_to=decay_to))


def their_layer(chunk_size: int) -> torch.nn.Module:
    from titans_pytorch import MemoryMLP, NeuralMemory

    memory = MemoryMLP(dim=D, depth=2, expansion_factor=float(EXPANSION))
    return NeuralMemory(dim=H * D, chunk_size=chunk_size, heads=H, dim_head=D, model=memory)


def forward(layer: torch.nn.Module, x: torch.Tensor) -> Work:
    def work() -> None:
        with torch.no_grad():
            layer(x)

    return work


def forward_backward(layer: torch.nn.Module, x: torch.Tensor) -> Work:
    def work() -> None:
        layer.zero_grad(set_to_none=True)
        layer(x)[0].square().mean().backward()

    return work


WORKS = (("forward", forward), ("forward and backward", forward_backward))


def compare(name: str, ours: Work, theirs: Work, runs: int, target: float) -> dict[str, object]:
    a, b = alternate(ours, theirs, runs)
    result = {
        "name": name,
        "ours_tokens_per_second": spread([B * T / s for s in a]),
        "theirs_tokens_per_second": spread([B * T / s for s in b]),
        "ratio": spread([y / x for x, y in zip(a, b, strict=True)]),
        "target_ratio": target,
        "runs": runs,
    }
    ratio, ours_median = result["ratio"], result["ours_tokens_per_second"]
    theirs_median = result["theirs_tokens_per_second"]
    print(
        f"{name:60s} {ours_median['median']:9,.0f} against {theirs_median['median']:9,.0f} tokens/s: "  # type: ignore[index]
        f"{ratio['median']:6.2f}x ({ratio['min']:.2f} to {ratio['max']:.2f}), target {target:g}x",  # type: ignore[index]
        flush=True,
    )
    gc.collect()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/memory_speed.json"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--skip-per-token", action="store_true", help="leave out chunk_size=1: minutes and 16 GB")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    x, layer = torch.randn(B, T, H * D), our_layer("zero")
    rate = matmul_rate(20)
    print(f"{torch.get_num_threads()} threads; batched matmul {rate:.0f} GFLOP/s", flush=True)

    memory = our_memory()
    memory()
    bare = [seconds(memory) for _ in range(options.runs)]
    achieved = FLOPS_PER_TOKEN * B * T / statistics.median(bare) / 1e9 / rate
    print(
        f"bare memory forward: {T / statistics.median(bare):,.0f} tokens/s, {achieved:.2f} of the matmul rate",
        flush=True,
    )

    coarse = their_layer(CHUNK)
    results = [
        compare(f"{name}, against chunk_size=64", work(layer, x), work(coarse, x), options.runs, 1.0)
        for name, work in WORKS
    ]
    default = our_layer("initial")
    for name, work in WORKS:
        name = f"default decay, {name}, against chunk_size=64"
        results.append(compare(name, work(default, x), work(coarse, x), options.runs, 1.0))
    if not options.skip_per_token:
        fine = their_layer(1)
        results.append(compare("forward, against chunk_size=1", forward(layer, x), forward(fine, x), 3, 100.0))
    report = {
        "what": "deep memory, depth 2, expansion 4, 4 heads of 64, chunk 64, B 1, T 2048, float32, and titans-pytorch",
        "command": "python benchmarks/memory_speed.py",
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "matmul_gflops": rate,
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "titans-pytorch": _version()},
        "bare_memory_forward": {
            "tokens_per_second": spread([T / s for s in bare]),
            "fraction_of_matmul_rate": achieved,
        },
        "results": results,
    }
    write_atomically(options.out, json.dumps(report, indent=2) + "\n")
    print(f"written to {options.out}")


def _version() -> str:
    from importlib.metadata import version

    return version("titans-pytorch")


if __name__ == "__main__":
    main()
