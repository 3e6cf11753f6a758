"""What is checked on a GPU: every way of reading there, against the token-by-token definition on the same tokens.

Both sides get the same numbers. With bfloat16 tokens the definition computes in float32 from them, so what is measured
is what the kernels round. Errors are relative, in norm: the worst over answers, states, surprise and every gradient.
"""

from __future__ import annotations

import functools
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from mnemonist.memory import RULES, MemoryRead, MemoryRule, initial_weights, memorize
from mnemonist.memory.kernels import triton_layers
from mnemonist.models import NeuralMemory

PER_TOKEN = ("q", "k", "v", "step_size", "log_momentum", "log_decay")
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.05}
ROWS = 2
DEEP = RULES["titans"].replace(expansion=2.0, chunk_size=64)


@dataclass(frozen=True)
class Case:
    """One thing to check."""

    name: str
    rule: MemoryRule
    tokens: int
    dim: int
    dtype: torch.dtype = torch.float32
    cuts: tuple[int, ...] = ()
    """Where the stream is cut into calls."""
    padded: bool = False
    forgets: bool = False
    """Whether some gates are exactly 0."""
    decodes: bool = False
    """Whether the tokens after the last cut are read one by one, and nothing keeps a graph."""
    options: dict[str, Any] = field(default_factory=dict)


def inputs_of(case: Case, device: torch.device, heads: int) -> dict[str, Any]:
    """Random tokens, gates and initial weights: keyword arguments of `memorize`."""
    generator = torch.Generator().manual_seed(0)
    rule, B, T, H, D = case.rule, ROWS, case.tokens, heads, case.dim

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    written = rule.writes * T
    given: dict[str, Any] = {
        "q": F.normalize(normal(B, T, H, D), dim=-1).to(case.dtype),
        "k": F.normalize(normal(B, written, H, D), dim=-1).to(case.dtype),
        "v": normal(B, written, H, D).to(case.dtype),
        "step_size": torch.sigmoid(normal(B, written, H)) * (0.5 if rule.linear else 0.05),
    }
    if rule.momentum:
        given["log_momentum"] = F.logsigmoid(normal(B, written, H))
    if rule.retention != "none":
        channels = (rule.decay_channels(D, D),) if rule.retention == "channel" else ()
        given["log_decay"] = F.logsigmoid(normal(B, T, H, *channels) + 3)
        if case.forgets:
            given["log_decay"][:, T // 2] = -torch.inf
            if rule.momentum:
                given["log_momentum"][:, T // 3] = -torch.inf
    torch.manual_seed(0)
    given["initial"] = [0.3 * normal(H, D, D)] if rule.linear else initial_weights(rule, H, D, D)
    return {n: [w.to(device) for w in x] if n == "initial" else x.to(device) for n, x in given.items()}


def read(case: Case, given: dict[str, Any], backend: str, whole: bool = False) -> list[MemoryRead]:
    """Read the stream of a case in the pieces it asks for, or as a whole."""
    T = case.tokens
    cuts = () if whole else case.cuts
    if case.decodes and not whole:
        cuts = (*cuts, *range(cuts[-1] + 1, T))
    # Every row has padding of its own, at the front, in the middle and at the end.
    mask = None
    if case.padded:
        mask = torch.rand(ROWS, T, generator=torch.Generator().manual_seed(1)) < 0.8
        mask[0, :5], mask[1, -7:] = False, False
        mask = mask.to(given["q"].device)
    state, reads = None, []
    for start, stop in zip((0, *cuts), (*cuts, T), strict=True):
        piece = {n: _of_tokens(x, T, start, stop) if n in PER_TOKEN else x for n, x in given.items()}
        part = None if mask is None else mask[:, start:stop]
        options: dict[str, Any] = {"state": state, "mask": part, "backend": backend, **case.options}
        reads.append(memorize(case.rule, **piece, **options))
        state = reads[-1].state
    return reads


def _of_tokens(x: Tensor, T: int, start: int, stop: int) -> Tensor:
    """What some of T tokens have: once each, or once for each of their writes."""
    return x.unflatten(1, (T, -1))[:, start:stop].flatten(1, 2)


def errors_of(case: Case, device: torch.device, backend: str, heads: int) -> tuple[dict[str, float], str]:
    """Relative errors of a backend by what they are errors of, and which backend it was that read.

    Where nothing keeps a graph, the definition reads the stream whole: cuts must not matter.
    """
    given = inputs_of(case, device, heads)
    sides: list[dict[str, Tensor]] = []
    for name in ("recurrent", backend):
        leaves = {
            n: [w.clone().requires_grad_() for w in x] if n == "initial" else x.clone().requires_grad_()
            for n, x in given.items()
        }
        with torch.set_grad_enabled(not case.decodes):
            reads = read(case, leaves, name, whole=name == "recurrent")
            last = reads[-1].state
            found = {"y": torch.cat([r.y for r in reads], 1)}
            found |= {f"M{i}": w for i, w in enumerate(last.weights)}
            found |= {f"S{i}": w for i, w in enumerate(last.momentum)}
            if reads[0].surprise is not None and not case.padded:
                for part in ("loss", "gradient_norm"):
                    found[part] = torch.cat([getattr(r.surprise, part) for r in reads if r.surprise is not None], 1)
        if not case.decodes:
            # At random: with weights that follow a pattern most of a derivative cancels, and what is left is rounding.
            generator = torch.Generator().manual_seed(2)
            weighed = [x.float() for x in found.values() if x.requires_grad]
            total = sum((x * torch.randn(x.shape, generator=generator).to(device)).sum() for x in weighed)
            assert isinstance(total, Tensor)
            total.backward()
            for n, x in leaves.items():
                for i, leaf in enumerate(x if isinstance(x, list) else [x]):
                    found[f"d {n}{i if n == 'initial' else ''}"] = leaf.grad
        sides.append({n: x.detach().float() for n, x in found.items()})
    slow, fast = sides
    return {n: _relative(fast[n], x) for n, x in slow.items() if n in fast}, reads[-1].backend


def _relative(one: Tensor, other: Tensor) -> float:
    error = (one - other).norm() / other.norm().clamp(min=1e-6)
    return float(error) if error.isfinite() else float("inf")


def deep_cases(tiny: bool) -> Iterator[Case]:
    """Everything the kernels of deep memories are said to do."""
    T, dim = (11, 4) if tiny else (150, 64)
    base = DEEP.replace(chunk_size=4) if tiny else DEEP
    both = (torch.float32, torch.bfloat16)
    for D in (4,) if tiny else (32, 64, 128):
        for expansion in (1.0, 2.0, 4.0):
            for dtype in both:
                kind = "float32" if dtype == torch.float32 else "bfloat16"
                yield Case(f"dim {D}, expansion {expansion:g}, {kind}", base.replace(expansion=expansion), T, D, dtype)
    changes: list[dict[str, Any]] = [
        {"decay_to": "zero"},
        {"norm": False},
        {"residual": False},
        {"norm": False, "residual": False},
        {"momentum": False},
        {"retention": "none", "decay_to": "zero"},
        {"read_at": "before"},
        {"objective": "dot"},
        {"objective": "huber"},
        {"depth": 1},
        {"chunk_size": 2 if tiny else 16},
        *({"activation": name} for name in ("gelu", "relu", "tanh")),
    ]
    for change in changes:
        name = ", ".join(f"{field} {value}" for field, value in change.items())
        yield Case(name, base.replace(**change), T, dim)
    for name in ("ttt-linear", "ttt-mlp"):
        yield Case(name, RULES[name].replace(chunk_size=4) if tiny else RULES[name], T, dim)
    third = T // 3
    yield Case("padding", base, T, dim, padded=True)
    yield Case("cut in the middle of chunks", base, T, dim, cuts=(third - 1, 2 * third + 1))
    yield Case("cut and padded", base, T, dim, cuts=(third,), padded=True)
    yield Case("gates of 0", base, T, dim, forgets=True)
    yield Case("token by token", base, T, dim, cuts=(third + 2,), decodes=True)
    yield Case("token by token, bfloat16", base, T, dim, torch.bfloat16, cuts=(third + 2,), decodes=True)


def linear_cases(tiny: bool) -> Iterator[Case]:
    """Linear rules, as they are read on a GPU by default."""
    T, dim = (11, 4) if tiny else (150, 64)
    low = torch.bfloat16
    rules = [rule for rule in RULES.values() if rule.linear]
    rules.append(RULES["gated-deltanet"].replace(name="gated-deltanet to initial", decay_to="initial"))
    rules.append(RULES["mamba2"].replace(name="mamba2 to initial", decay_to="initial"))
    quiet = {"surprise": False}
    for rule in rules:
        yield Case(rule.name, rule, T, dim, low, options=quiet)
        yield Case(f"{rule.name}, cut and padded", rule, T, dim, low, cuts=(T // 3,), padded=True, options=quiet)
        if rule.retention != "none":
            yield Case(f"{rule.name}, gates of 0", rule, T, dim, low, forgets=True, options=quiet)
        yield Case(f"{rule.name}, token by token", rule, T, dim, cuts=(T // 2,), decodes=True, options=quiet)


def momentum_cases() -> Iterator[Case]:
    """Linear rules that only our own kernels know: exact at every token, with momentum."""
    rule = RULES["titans-linear"].replace(chunk_size=64)
    for dim in (32, 64, 128):
        for dtype in (torch.float32, torch.bfloat16):
            kind = "float32" if dtype == torch.float32 else "bfloat16"
            yield Case(f"titans-linear, dim {dim}, {kind}", rule, 150, dim, dtype)
    for change in ({"decay_to": "initial"}, {"read_at": "before"}, {"gradient_at": "decayed"}):
        name = ", ".join(f"{field} {value}" for field, value in change.items())
        yield Case(f"titans-linear, {name}", rule.replace(**change), 150, 64)
        yield Case(f"titans-linear, {name}, bfloat16", rule.replace(**change), 150, 64, torch.bfloat16)
    yield Case("titans-linear, cut and padded", rule, 150, 64, torch.bfloat16, cuts=(50,), padded=True)
    yield Case("titans-linear, gates of 0", rule, 150, 64, forgets=True)
    yield Case("titans-linear, token by token", rule, 150, 64, torch.bfloat16, cuts=(52,), decodes=True)


def checked(case: Case, prefix: str, device: torch.device, backend: str, heads: int) -> dict[str, Any]:
    """What came of a case. One that breaks does not keep the others from being checked.

    Use as many heads as what is timed afterwards has: kernels are compiled for their number.
    """
    check: dict[str, Any] = {"name": f"{prefix}: {case.name}", "backend": backend}

    def errors() -> dict[str, float]:
        found, check["backend"] = errors_of(case, device, backend, heads)
        return found

    return check | verdict(errors, TOLERANCES[case.dtype])


def verdict(errors_by_name: Callable[[], dict[str, float]], tolerance: float) -> dict[str, Any]:
    """Whether the worst of some errors is tolerable, or what broke before they were known; and how long it took."""
    began = time.perf_counter()
    try:
        errors = errors_by_name()
        worst = max(errors, key=lambda n: errors[n])
        found = {"passed": errors[worst] <= tolerance, "error": errors[worst], "of": worst, "tolerance": tolerance}
    except Exception as broken:
        found = {"passed": False, "broken": f"{type(broken).__name__}: {broken}"[:600]}
    return found | {"seconds": round(time.perf_counter() - began, 1)}


def layer_checks(device: torch.device, heads: int) -> Iterator[dict[str, Any]]:
    """What a layer does around its memory, by our kernels and in torch: outputs, and derivatives of all that it has."""

    def errors(dtype: torch.dtype) -> dict[str, float]:
        torch.manual_seed(0)
        layer = NeuralMemory(64 * heads, heads, 64, DEEP).to(device)
        x, outer = torch.randn(2, ROWS, 150, 64 * heads, device=device)
        sides = []
        for applies in (triton_layers.applies, lambda *_: False):
            with (
                patch.object(triton_layers, "applies", applies),
                torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16),
            ):
                leaves = [x.clone().requires_grad_(), *layer.parameters()]
                y = layer(leaves[0])[0].float()
                sides.append([y.detach(), *torch.autograd.grad(y, leaves, outer)])
        names = ["y", "d x", *(f"d {name}" for name, _ in layer.named_parameters())]
        return {n: _relative(one, other) for n, one, other in zip(names, *sides, strict=True)}

    for name, dtype in (("float32", torch.float32), ("mixed precision", torch.bfloat16)):
        yield {"name": f"layer, {name}"} | verdict(functools.partial(errors, dtype), TOLERANCES[dtype])


def _work(link: Connection, device: str, heads: int) -> None:
    """Check what comes, until nothing does. After what broke nothing that this process does on a GPU can be trusted."""
    while (job := link.recv()) is not None:
        case, prefix, backend = job
        found = checked(case, prefix, torch.device(device), backend, heads)
        link.send(found)
        if "broken" in found:
            return


def run(cases: list[tuple[Case, str, str]], device: torch.device, heads: int, workers: int) -> Iterator[dict[str, Any]]:
    """Check cases, each with a prefix of its name and a backend, as they come.

    Nearly all of the time goes into compiling kernels, so that several processes check at once, one case after the
    other; one in which a case broke is replaced.
    """
    if workers == 1:
        for case, prefix, backend in cases:
            yield checked(case, prefix, device, backend, heads)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gpu_checks"])
    waiting, running = list(reversed(cases)), {}

    def start() -> None:
        link, other = context.Pipe()
        process = context.Process(target=_work, args=(other, str(device), heads))
        process.start()
        other.close()
        give(link, process)

    def give(link: Connection, process: Any) -> None:
        running[link] = (process, waiting[-1])
        link.send(waiting.pop())

    try:
        while waiting or running:
            while waiting and len(running) < workers:
                start()
            for link in wait(list(running)):
                process, (case, prefix, backend) = running.pop(link)
                try:
                    found = link.recv()
                except EOFError:
                    found = {"name": f"{prefix}: {case.name}", "backend": backend, "passed": False}
                    found["broken"] = "its process died"
                yield found
                if waiting and "broken" not in found:
                    give(link, process)
                    continue
                if "broken" not in found:
                    link.send(None)
                link.close()
                process.join()
    finally:  # whoever still compiles would be timed beside what comes next
        for process, _ in running.values():
            process.kill()
