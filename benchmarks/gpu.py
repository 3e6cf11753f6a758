"""Everything that needs a GPU, in one call of some minutes: what must be right there, and how fast it is.

    python benchmarks/gpu.py                 writes benchmarks/results/gpu.json
    python benchmarks/gpu.py --rehearse      the same at tiny sizes on a CPU: no figures, but no typo waits for a GPU

It needs torch and, for the kernels, triton; flash-linear-attention and titans-pytorch are compared with where they are
installed. Every section has its time; what breaks or takes too long is recorded, and the others go on. The file is
written anew after every result. The exit code is 1 if a check failed or a section or timing of ours broke.

A result's `ratio` says how many times faster ours is than theirs (run by run, alternating), or, where `ratio_of` says
so, which part of the bfloat16 matmul rate of the same run ours reaches. `target` is what its median should be at least.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import gpu_checks
from gpu_targets import GPU_TARGETS
from gpu_timing import FULL, TINY, Bench, Sizes, free
from timing import Work, spread
from work import DeepWork

from mnemonist.memory import RULES, MemoryRule, initial_weights, memorize
from mnemonist.memory.kernels import triton_reading

SCANNED = {"WARPS": (4, 8), "HIDDEN_BLOCK": (64, 128)}


class OutOfTime(BaseException):
    """A section's time is up. No `Exception`, so that whatever expects failures lets it pass."""


# --- the machine


def environment(bench: Bench) -> None:
    machine, sizes = bench.report["machine"], bench.sizes
    machine["processor"] = platform.processor() or platform.machine()
    if bench.on_gpu:
        machine["gpu"] = torch.cuda.get_device_name()
        machine["gpu_memory_bytes"] = torch.cuda.get_device_properties(0).total_memory
        machine["cuda"] = torch.version.cuda
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
        machine["driver"] = subprocess.run(query, capture_output=True, text=True, timeout=30).stdout.strip()
    rates: dict[str, dict[str, float]] = {}
    N, C, D, X = sizes.matmul, sizes.chunk, sizes.dim, sizes.batches[0] * sizes.heads
    wide = int(sizes.expansion * D)
    tf32 = torch.backends.cuda.matmul.allow_tf32
    for kind, dtype in (("bfloat16", torch.bfloat16), ("tf32", torch.float32), ("float32", torch.float32)):
        torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
        for shape, (a, b) in {
            f"{N} x {N} x {N}": ((N, N), (N, N)),
            f"{X} x ({C} x {D} x {wide})": ((X, C, D), (X, D, wide)),
        }.items():
            left, right = (torch.randn(*s, device=bench.device, dtype=dtype) for s in (a, b))
            flops = 2 * math.prod(a) * b[-1]
            repeats = 4 if len(a) == 2 else 50
            times = bench.alternate(lambda x=left, y=right, n=repeats: [x @ y for _ in range(n)])[0]
            rates[f"{kind}, {shape}"] = spread([repeats * flops / s for s in times])
            if kind == "bfloat16" and len(a) == 2:
                bench.rate = rates[f"{kind}, {shape}"]["median"]
    torch.backends.cuda.matmul.allow_tf32 = tf32
    machine["matmul_flops_per_second"] = rates
    data = torch.empty(sizes.copied, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(data)
    times = bench.alternate(lambda: target.copy_(data))[0]
    machine["copy_bytes_per_second"] = spread([2 * sizes.copied / s for s in times])
    for name, rate in {**rates, "copy (bytes)": machine["copy_bytes_per_second"]}.items():
        print(f"  {name}: {rate['median'] / 1e12:.3f} T/s", flush=True)


# --- what must be right


def find_deep_kernels(bench: Bench) -> None:
    """Take the Triton kernels where they are; a GPU without them is a failed check, a CPU is none."""
    case = gpu_checks.Case("one", deep_rule(bench.sizes, bench.sizes.expansion), 20, bench.sizes.dim, torch.bfloat16)
    given = gpu_checks.inputs_of(case, bench.device, bench.sizes.heads)
    try:
        memorize(case.rule, **given, backend="triton")
        bench.deep_backend = "triton"
    except Exception as broken:
        bench.report["machine"]["deep_kernels"] = why = f"{type(broken).__name__}: {broken}"[:600]
        if bench.on_gpu:
            bench.check({"name": "the kernels of deep memories can be used", "passed": False, "broken": why})
        else:
            print(f"  without kernels of deep memories: {why}", flush=True)


def check(bench: Bench) -> None:
    """Our kernels first, those that take longest to compile before the others."""
    tiny = not bench.on_gpu

    def effort(case: gpu_checks.Case) -> tuple[bool, float]:
        return case.dtype == torch.float32, case.dim * case.rule.expansion

    deep = sorted(gpu_checks.deep_cases(tiny), key=effort, reverse=True)
    cases = [(case, "deep", bench.deep_backend) for case in deep]
    linear = list(gpu_checks.linear_cases(tiny))
    if bench.on_gpu:  # the rehearsal has no kernels
        solved = [c for c in linear if c.rule.solvable and c.rule.objective == "l2" and c.rule.retention != "channel"]
        cases += [(case, "linear, our kernels", "triton") for case in (*gpu_checks.momentum_cases(), *solved)]
        for found in gpu_checks.layer_checks(bench.device, bench.sizes.heads):
            bench.check(found)
    cases += [(case, "linear", "auto") for case in linear]
    workers = 1 if tiny else max(1, (os.cpu_count() or 1) - 2)
    for found in gpu_checks.run(cases, bench.device, bench.sizes.heads, workers):
        bench.check(found)


# --- how fast it is


def tokens(bench: Bench, rule: MemoryRule, batch: int, dim: int, length: int, graph: bool) -> dict[str, Any]:
    """Tokens in bfloat16 with gates in float32, as layers under mixed precision make them."""
    H, device = bench.sizes.heads, bench.device
    shape, written = (batch, length, H), (batch, rule.writes * length, H)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, device=device)

    given: dict[str, Any] = {
        "q": F.normalize(normal(*shape, dim), dim=-1).bfloat16(),
        "k": F.normalize(normal(*written, dim), dim=-1).bfloat16(),
        "v": normal(*written, dim).bfloat16(),
        "step_size": torch.rand(written, device=device) * 0.01,
    }
    if rule.momentum:
        given["log_momentum"] = F.logsigmoid(normal(*written) + 2)
    if rule.retention != "none":
        channels = (rule.decay_channels(dim, dim),) if rule.retention == "channel" else ()
        given["log_decay"] = F.logsigmoid(normal(*shape, *channels) + 4)
    for x in given.values():
        x.requires_grad_(graph)
    given["initial"] = [w.to(device).requires_grad_(graph) for w in initial_weights(rule, H, dim, dim)]
    return given


def reading(bench: Bench, rule: MemoryRule, dim: int, back: bool, backend: str) -> Callable[[int], Work]:
    """Reading a whole stream with a bare memory, forward or both ways, for a number of rows."""

    def make(batch: int) -> Work:
        given = tokens(bench, rule, batch, dim, bench.sizes.tokens, back)
        leaves = [x for x in [*given.values(), *given["initial"]] if isinstance(x, torch.Tensor)]
        outer = torch.randn_like(given["q"])  # as many as answers, and as wide

        def work() -> None:
            with torch.set_grad_enabled(back):
                read = memorize(rule, **given, surprise=False, backend=backend)  # type: ignore[arg-type]
                if back:
                    torch.autograd.grad(read.y, leaves, outer, allow_unused=True)

        return work

    return make


WAYS = (("forward", False), ("forward and backward", True))


def deep_rule(sizes: Sizes, expansion: float) -> MemoryRule:
    return RULES["titans"].replace(expansion=expansion, chunk_size=sizes.chunk)


def deep_fraction(bench: Bench, name: str, dim: int, expansion: float, back: bool) -> None:
    """Time of the bare deep memory, as a part of the matmul rate."""
    sizes, target = bench.sizes, GPU_TARGETS.get(name)
    rule = deep_rule(sizes, expansion)
    bench.compare(name, reading(bench, rule, dim, back, bench.deep_backend), None, target=target)
    entry = bench.report["results"][-1]
    if entry["ours_seconds"] is None or bench.rate is None:
        return
    each = DeepWork(sizes.heads, dim, expansion, sizes.chunk).flops
    work = (3 if back else 1) * each * entry["batch"] * sizes.tokens
    rate = spread([work / s for s in entry["ours_seconds"].values()])
    entry |= {"flops_per_second": rate, "ratio_of": "bfloat16 matmul rate"}
    entry["ratio"] = {n: r / bench.rate for n, r in rate.items()}
    if target is not None:
        entry["met"] = entry["ratio"]["median"] >= target
    print(f"    {rate['median'] / 1e12:.2f} TFLOP/s, {entry['ratio']['median']:.3f} of the matmul rate", flush=True)
    bench.save()


def deep_speed(bench: Bench) -> None:
    sizes = bench.sizes
    rule = deep_rule(sizes, sizes.expansion)
    for way, back in WAYS:
        deep_fraction(bench, f"deep memory, {way}", sizes.dim, sizes.expansion, back)
    for way, back in WAYS:
        bench.compare(
            f"deep memory, {way}, kernels against torch",
            reading(bench, rule, sizes.dim, back, bench.deep_backend),
            reading(bench, rule, sizes.dim, back, "chunked"),
        )
    kernel_times(bench, "deep memory, forward and backward", reading(bench, rule, sizes.dim, True, bench.deep_backend))
    against_titans_pytorch(bench)


def kernel_times(bench: Bench, name: str, make: Callable[[int], Work]) -> None:
    """Where the time of a piece of work goes: seconds of each kernel, in one run."""
    if not bench.on_gpu:
        return
    from torch.profiler import ProfilerActivity, profile

    work = make(bench.sizes.batches[0])
    work()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        work()
        torch.cuda.synchronize()
    spent: Counter[str] = Counter()
    for event in seen.key_averages():
        spent[event.key.partition("<")[0].removeprefix("void ")] += event.self_device_time_total / 1e6
    longest = spent.most_common(12)
    bench.report.setdefault("kernels", {})[name] = dict(longest)
    for kernel, seconds in longest:
        print(f"    {seconds * 1e3:8.3f} ms  {kernel[:80]}", flush=True)
    bench.save()


def against_titans_pytorch(bench: Bench) -> None:
    """The layers, under mixed precision. Theirs has one step size, momentum and decay a chunk; ours one a token."""
    sizes = bench.sizes
    width = sizes.heads * sizes.dim

    def layer_work(layer: torch.nn.Module, batch: int, back: bool) -> Work:
        layer.to(bench.device)
        x = torch.randn(batch, sizes.tokens, width, device=bench.device)

        def work() -> None:
            layer.zero_grad(set_to_none=True)
            with torch.set_grad_enabled(back), torch.autocast(bench.device.type, torch.bfloat16):
                y = layer(x)[0]
                if back:
                    y.float().square().mean().backward()

        return work

    def ours(back: bool) -> Callable[[int], Work]:
        from mnemonist.models import NeuralMemory

        rule = deep_rule(sizes, sizes.expansion)
        return lambda batch: layer_work(NeuralMemory(width, sizes.heads, sizes.dim, rule), batch, back)

    def theirs(back: bool) -> Callable[[int], Work]:
        from titans_pytorch import MemoryMLP, NeuralMemory

        def make(batch: int) -> Work:
            memory = MemoryMLP(dim=sizes.dim, depth=2, expansion_factor=sizes.expansion)
            layer = NeuralMemory(dim=width, chunk_size=sizes.chunk, heads=sizes.heads, dim_head=sizes.dim, model=memory)
            return layer_work(layer, batch, back)

        return make

    for way, back in WAYS:
        name = f"layer of deep memory, {way}, against titans-pytorch with chunks of {sizes.chunk}"
        try:
            peer: Callable[[int], Work] | None = theirs(back)
            fields: dict[str, Any] = {"target": GPU_TARGETS.get(name)}
        except ImportError as absent:
            peer, fields = None, {"note": f"no titans-pytorch: {absent}"}
        bench.compare(name, ours(back), peer, **fields)
    kernel_times(bench, "layer of deep memory, forward and backward", ours(True))


def deep_scan(bench: Bench) -> None:
    """Other sizes, then other choices for the kernels."""
    sizes = bench.sizes
    for dim in sizes.dims:
        for expansion in sizes.expansions:
            for way, back in WAYS:
                deep_fraction(bench, f"scan: dim {dim}, expansion {expansion:g}, {way}", dim, expansion, back)
    for constant, choices in SCANNED.items():
        usual = getattr(triton_reading, constant)
        for choice in choices:
            setattr(triton_reading, constant, choice)
            try:
                for way, back in WAYS:
                    name = f"scan: {constant} {choice} (usually {usual}), {way}"
                    deep_fraction(bench, name, sizes.dim, sizes.expansion, back)
            finally:
                setattr(triton_reading, constant, usual)


def linear_speed(bench: Bench) -> None:
    """Linear rules as they are read by default, against the gated delta rule and against our own path in torch."""
    sizes = bench.sizes
    try:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    except Exception as absent:
        chunk_gated_delta_rule, why = None, f"no flash-linear-attention: {absent}"

    def theirs(back: bool) -> Callable[[int], Work]:
        def make(batch: int) -> Work:
            given = tokens(bench, RULES["gated-deltanet"], batch, sizes.dim, sizes.tokens, back)
            start = given.pop("initial")[0].detach().expand(batch, -1, -1, -1).contiguous()
            outer = torch.randn_like(given["q"])  # as many as answers, and as wide
            named = {"g": given.pop("log_decay"), "beta": given.pop("step_size"), **given}

            def work() -> None:
                with torch.set_grad_enabled(back):
                    y, _ = chunk_gated_delta_rule(**named, scale=1.0, initial_state=start, output_final_state=True)
                    if back:
                        torch.autograd.grad(y, list(named.values()), outer)

            return work

        return make

    linear = RULES["titans-linear"].replace(chunk_size=sizes.chunk)
    kernels = "triton" if bench.on_gpu else "auto"
    for way, back in WAYS:
        name = f"titans-linear, {way}, against the gated delta rule of flash-linear-attention"
        peer = None if chunk_gated_delta_rule is None else theirs(back)
        fields = {"note": why} if peer is None else {"target": GPU_TARGETS[name]}
        bench.compare(name, reading(bench, linear, sizes.dim, back, kernels), peer, **fields)
    for way, back in WAYS:
        ours, torch_path = (reading(bench, linear, sizes.dim, back, backend) for backend in (kernels, "exact"))
        bench.compare(f"titans-linear, {way}, kernels against torch", ours, torch_path)
    kernel_times(bench, "titans-linear, forward and backward", reading(bench, linear, sizes.dim, True, kernels))
    for rule in (rule for rule in RULES.values() if rule.solvable and rule is not RULES["titans-linear"]):
        for way, back in WAYS:
            ours, torch_path = (reading(bench, rule, sizes.dim, back, backend) for backend in ("auto", "exact"))
            bench.compare(f"{rule.name}, {way}, as chosen against torch", ours, torch_path)


def decoding(bench: Bench) -> None:
    """One token at a time: a deep memory alone, then a whole model."""
    how: dict[str, Any] = {"surprise": False, "backend": bench.deep_backend}
    sizes = bench.sizes
    rule = deep_rule(sizes, sizes.expansion)
    for batch in (1, 64) if bench.on_gpu else (1, 2):
        given = tokens(bench, rule, batch, sizes.dim, sizes.decoded, graph=False)
        initial = given.pop("initial")
        pieces = [{n: x[:, t : t + 1].contiguous() for n, x in given.items()} for t in range(sizes.decoded)]

        def work(pieces: list[dict[str, Any]] = pieces, initial: list[torch.Tensor] = initial) -> None:
            state = None
            with torch.no_grad():
                for piece in pieces:
                    read = memorize(rule, **piece, initial=initial, state=state, **how)
                    state = read.state

        bench.peak(work)
        per_token = [s / sizes.decoded for s in bench.alternate(work)[0]]
        bench.result(
            f"decoding, deep memory, {batch} rows, per token",
            ours_seconds=spread(per_token),
            batch=batch,
            ours_peak_bytes=bench.peak(work),
        )
    whole_model(bench)


def whole_model(bench: Bench) -> None:
    from mnemonist.models import LanguageModel, find_preset

    sizes = bench.sizes
    model = LanguageModel(find_preset(sizes.preset)).to(bench.device).eval()
    ids = torch.randint(0, model.config.vocab_size, (1, sizes.decoded), device=bench.device)

    def decode() -> None:
        state = None
        for t in range(sizes.decoded):
            state = model(ids[:, t : t + 1], state).state

    def prefill() -> None:
        model(ids.repeat(1, 16), positions=slice(-1, None))

    for name, work, count in (("decoding", decode, sizes.decoded), ("prefill", prefill, 16 * sizes.decoded)):
        with torch.inference_mode(), torch.autocast(bench.device.type, torch.bfloat16):
            times = [s / count for s in bench.alternate(work)[0]]
            peak = bench.peak(work)
        bench.result(
            f"{name}, model {sizes.preset}, 1 row, per token",
            ours_seconds=spread(times),
            tokens_per_second=1 / statistics.median(times),
            ours_peak_bytes=peak,
        )


# --- all of it


def run(bench: Bench, name: str, section: Callable[[Bench], None], seconds: float) -> bool:
    """Run a section within its time; whether it came to its end."""
    print(f"{name} (at most {seconds:.0f} s)", flush=True)

    def late(*_: object) -> None:
        raise OutOfTime

    entry: dict[str, Any] = {"limit_seconds": seconds}
    bench.report["sections"][name] = entry
    began = time.perf_counter()
    timed = hasattr(signal, "SIGALRM")
    if timed:
        signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        section(bench)
        entry["finished"] = True
    except OutOfTime:
        entry |= {"finished": False, "error": "its time was up; what it found until then is recorded"}
    except Exception:
        entry |= {"finished": False, "error": traceback.format_exc()}
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_REAL, 0)
    entry["seconds"] = time.perf_counter() - began
    if not entry["finished"]:
        print(f"  not finished: {entry['error']}", flush=True)
    bench.save()
    try:
        free(bench)
    except RuntimeError as broken:  # a kernel that broke the GPU's context breaks everything after it
        print(f"  {broken}", flush=True)
    return bool(entry["finished"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU; the figures mean nothing")
    parser.add_argument("--only", nargs="+", metavar="SECTION", help="the sections to run; environment always runs")
    parser.add_argument("--within", type=float, default=480, metavar="SECONDS", help="time for all sections")
    options = parser.parse_args()
    if not options.rehearse and not torch.cuda.is_available():
        print("There is no GPU here; --rehearse runs the same at tiny sizes on the CPU.", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    device = torch.device("cpu" if options.rehearse else "cuda")
    bench = Bench(TINY if options.rehearse else FULL, device, options.out)
    # Seconds; of all of them each has its share. Checks are mostly waiting for kernels to be compiled.
    sections: dict[str, tuple[Callable[[Bench], None], float]] = {
        "environment": (environment, 15),
        "kernels": (find_deep_kernels, 25),
        "checks": (check, 160),
        "deep-speed": (deep_speed, 85),
        "linear-speed": (linear_speed, 135),
        "decoding": (decoding, 35),
        "deep-scan": (deep_scan, 25),
    }
    share = options.within / sum(seconds for _, seconds in sections.values())
    wanted = {"environment", "kernels", *(options.only or sections)}
    if unknown := wanted - set(sections):
        print(f"There is no section {', '.join(sorted(unknown))}; known: {', '.join(sections)}.", file=sys.stderr)
        return 2
    finished = [
        run(bench, name, section, share * seconds) for name, (section, seconds) in sections.items() if name in wanted
    ]
    wrong = [check["name"] for check in bench.report["checks"] if not check["passed"]]
    missed = [r["name"] for r in bench.report["results"] if r.get("met") is False] if bench.on_gpu else []
    broken = [r["name"] for r in bench.report["results"] if r["ours_seconds"] is None]
    count = len(bench.report["checks"])
    bench.report["summary"] = {"checks": count, "wrong": wrong, "broken": broken, "targets_missed": missed}
    bench.save()
    print(f"{count} checks, {len(wrong)} wrong; {len(broken)} timings broken")
    print(f"targets missed: {', '.join(missed) or 'none'}")
    print(f"written to {bench.out}")
    return 0 if all(finished) and not wrong and not broken else 1


if __name__ == "__main__":
    sys.exit(main())
