"""What every experiment shares: arms that are equals, seeds, results that are kept, and the page made of them.

An experiment is a folder with a `run.py` that names its arms and calls `main`. Each arm and seed is a process of its
own, so that as many run as there are cores; each writes one file into `results/` when it is done, and goes on from its
checkpoint when it was stopped. The page is made of these files alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mnemonist.data import standard_library
from mnemonist.evals.evaluation import evaluate
from mnemonist.evals.lessons import Curriculum, curriculum
from mnemonist.evals.problems import Task
from mnemonist.evals.results import Result, Row
from mnemonist.evals.suites import Suite
from mnemonist.files import write_atomically
from mnemonist.intervals import interval
from mnemonist.models import LanguageModel, ModelConfig
from mnemonist.report.comparison import Line, draw_lines
from mnemonist.training import TrainingConfig, train
from mnemonist.training.checkpoint import has_checkpoint
from mnemonist.training.language import next_token_loss, packed_batches

SEEDS = 3
BEGIN, END = "<!-- results: written by run.py -->", "<!-- end of results -->"


@dataclass(frozen=True)
class Arm:
    """One of the equals."""

    label: str
    config: ModelConfig
    training: TrainingConfig
    """Its seed is replaced by that of the run."""
    learns: Callable[[TrainingConfig], Curriculum] | None
    """What it is trained on; None if the study's own `Study.run` knows."""
    suites: Mapping[str, Suite | None]
    """What it is then asked, by name; the name is part of the results' file, and may be empty."""
    home: Path | None = None
    """The experiment that keeps its results, if several ask it; None: the one it is an arm of."""


def small(vocab_size: int, head_dim: int = 16) -> ModelConfig:
    """The transformer of two blocks that sets the size of candidates for problems made by seed."""
    return ModelConfig(
        blocks=("attention",) * 2, vocab_size=vocab_size, width=64, heads=2, head_dim=head_dim, memory_heads=2,
        memory_head_dim=head_dim, window=16, persistent_tokens=0, mlp_width=160,
    )  # fmt: skip


def task(which: Task) -> Callable[[TrainingConfig], Curriculum]:
    """The lessons of a task."""
    return lambda training: curriculum(which, training)


def source_code() -> Callable[[TrainingConfig], Curriculum]:
    """Python's standard library, but for the modules that are held out."""

    def learns(training: TrainingConfig) -> Curriculum:
        return packed_batches(standard_library("train"), training), next_token_loss

    return learns


@dataclass(frozen=True)
class Study:
    """An experiment."""

    folder: Path
    """With `run.py`; results and the page go here."""
    arms: Mapping[str, Arm]
    write_page: Callable[[Study], str]
    """What to put between the marks of the folder's README.md; draws plots beside it."""
    run: Callable[[Study, str, int], None] | None = None
    """Trains and asks an arm with a seed; None: `run_one`."""

    def path(self, arm: str, seed: int, suite: str = "") -> Path:
        """Of the result of one run."""
        return self.home(arm) / "results" / f"{arm}{suite and '-'}{suite}-seed{seed}.json"

    def home(self, arm: str) -> Path:
        """The folder of the experiment that keeps an arm's results."""
        return self.arms[arm].home or self.folder

    def run_folder(self, arm: str, seed: int) -> Path:
        """Where a run keeps what it may go on from."""
        return Path("runs") / "experiments" / self.home(arm).name / f"{arm}-seed{seed}"

    def missing(self, arm: str, seed: int) -> bool:
        """Whether a run has still something to do."""
        paths = [self.path(arm, seed, suite) for suite in self.arms[arm].suites]
        return not all(path.exists() and Result.load(path).complete for path in paths)

    def results(self, arm: str, suite: str = "", seeds: int = SEEDS) -> list[Result]:
        """Those of an arm that are there and complete."""
        paths = [self.path(arm, seed, suite) for seed in range(seeds)]
        found = [Result.load(path) for path in paths if path.exists()]
        return [result for result in found if result.complete]


def main(study: Study) -> None:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=f"The experiment {study.folder.name}.")
    parser.add_argument("--only", nargs="+", choices=list(study.arms), default=list(study.arms), help="arms to run")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 1)), help="processes side by side")
    parser.add_argument("--page", action="store_true", help="run nothing; write the page from the results")
    parser.add_argument("--one", nargs=2, metavar=("ARM", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        (study.run or run_one)(study, options.one[0], int(options.one[1]))
        return
    if not options.page:
        wanted = [(arm, seed) for seed in range(options.seeds) for arm in options.only]
        missing = [(arm, seed) for arm, seed in wanted if study.missing(arm, seed)]
        try:
            run_all(study, missing, options.workers)
        except KeyboardInterrupt:
            raise SystemExit("interrupted; run the same command to go on") from None
    fill(study.folder / "README.md", study.write_page(study))


def run_all(study: Study, runs: Sequence[tuple[str, int]], workers: int) -> None:
    """Each run in a process of its own, one thread each; Ctrl-C lets those that run save where they are."""
    script = study.folder / "run.py"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    waiting, running = list(runs), {}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a shell's kill is as polite as its Ctrl-C
    began, done, failed = time.perf_counter(), 0, []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                arm, seed = waiting.pop(0)
                command = [sys.executable, "-W", "ignore", str(script), "--one", arm, str(seed)]
                running[subprocess.Popen(command, env=environment)] = (arm, seed)
            time.sleep(0.5)
            for process in [process for process in running if process.poll() is not None]:
                arm, seed = running.pop(process)
                done += 1
                minutes = (time.perf_counter() - began) / 60
                how = f" failed ({process.returncode})" if process.returncode else ""
                print(f"{done} of {len(runs)} after {minutes:.1f} minutes: {arm}, seed {seed}{how}", flush=True)
                failed += [f"{arm}, seed {seed}"] * bool(process.returncode)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
    if failed:  # a run that diverges is a result too: the page says which there are
        print(f"no result: {'; '.join(failed)}", file=sys.stderr)


def run_one(study: Study, name: str, seed: int) -> None:
    """Train an arm, or go on training it, and ask it."""
    torch.set_flush_denormal(True)
    arm = study.arms[name]
    training = dataclasses.replace(arm.training, seed=seed)
    folder = study.run_folder(name, seed)
    torch.manual_seed(seed)
    model = LanguageModel(arm.config)
    assert arm.learns is not None
    batch_of, loss_of = arm.learns(training)
    trained = train(
        model, batch_of, loss_of, training, folder,
        resume=has_checkpoint(folder / "checkpoint"), extra={"model": arm.config.to_json()}, progress=False,
    )  # fmt: skip
    if trained.interrupted:
        raise SystemExit(130)
    facts = {"seed": seed, "training_seconds": round(trained.seconds, 1), "training": dataclasses.asdict(training)}
    for suite, asked in arm.suites.items():
        assert asked is not None
        evaluate(model, asked, study.path(name, seed, suite), name=arm.label, facts=facts)


def study_of(name: str) -> Study:
    """That of an experiment, by its folder."""
    spec = importlib.util.spec_from_file_location(f"{name}_run", Path(__file__).parent / name / "run.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.STUDY
    assert isinstance(made, Study)
    return made


def over_seeds(results: Sequence[Result], label: str) -> Result:
    """Means over runs of one arm, with the interval over seeds (Student's t).

    Raises:
        ValueError: there is none.
    """
    if not results:
        raise ValueError(f"{label} has no complete run; run the experiment first.")
    first = results[0]
    rows = []
    for row in first.rows:
        each = [found.mean for result in results if (found := result.row(row.setting)) is not None]
        rows.append(Row.of(row.setting, np.array(each)))
    return dataclasses.replace(first, rows=tuple(rows), model={**first.model, "name": label})


def paired(values: Sequence[float], signed: bool = False) -> str:
    """A mean over seeds with its half interval; of differences, with its sign."""
    if not values:
        return ""
    found = interval(np.array(values))
    spread = "" if found.half_width is None else f" ± {found.half_width:.3f}"
    return f"{found.mean:{'+' if signed else ''}.3f}{spread}"


def mean_over(result: Result, begin: int, end: int) -> float:
    """The mean by position of the bins from one place to another, each at its width."""
    edges = [0, *(int(row.setting["position"]) for row in result.rows)]
    bins = zip(itertools.pairwise(edges), result.rows, strict=True)
    inside = [(b - a, row.mean) for (a, b), row in bins if begin <= a and b <= end]
    return sum(width * mean for width, mean in inside) / sum(width for width, _ in inside)


def differences(
    a: Sequence[Result],
    b: Sequence[Result],
    measure: Callable[[Result], float],
    of_b: Callable[[Result], float] | None = None,
) -> list[float]:
    """What ``a`` has more than ``b``, for each seed that both have; perhaps by another measure of ``b``."""
    others = {result.facts["seed"]: (of_b or measure)(result) for result in b}
    return [measure(result) - others[seed] for result in a if (seed := result.facts["seed"]) in others]


def found(study: Study, arms: Sequence[str] | None = None, suite: str = "") -> dict[str, Result]:
    """The means over seeds of those arms that have any complete run."""
    means = {}
    for arm in arms or list(study.arms):
        if results := study.results(arm, suite):
            means[arm] = over_seeds(results, study.arms[arm].label)
    return means


def seeds_of(study: Study) -> str:
    """How many seeds there are of how many arms, as a sentence."""
    counts = Counter(len(study.results(arm, next(iter(one.suites)))) for arm, one in study.arms.items())
    parts = [f"{number} of {len(study.arms)} arms with {seeds} seeds" for seeds, number in sorted(counts.items())]
    return ", ".join(parts) + "; intervals are of the seeds (Student's t, 95%)."


def draw(path: Path, results: Sequence[Result]) -> None:
    """A line for each arm over its settings."""
    panels: dict[str, list[Line]] = {}
    for result in results:
        for title, rows in result.lines().items():
            at = [float(row.setting[result.x]) for row in rows]
            line = Line(result.name, at, *([getattr(row, part) for row in rows] for part in ("mean", "low", "high")))
            panels.setdefault(title, []).append(line)
    draw_lines(path, panels, x=results[0].x, y=results[0].measure, bounds=results[0].bounds)


def markdown(results: Sequence[Result]) -> str:
    """A line for each arm, a column for each setting; means over seeds with their half intervals."""
    settings = [row.setting for row in results[0].rows]
    heads = ["model", *(", ".join(f"{value} {name}" for name, value in s.items()) for s in settings)]
    lines = [[*heads, "parameters", "state, bytes"], ["---", *["--:"] * (len(settings) + 2)]]
    for result in results:
        cells = []
        for setting in settings:
            row = result.row(setting)
            spread = "" if row is None or row.count < 2 else f" ± {row.high - row.mean:.3f}"
            cells.append("" if row is None else f"{row.mean:.3f}{spread}")
        state = bytes_of_state(result.model["state_bytes"], result.model["state_bytes_per_token"])
        lines.append([result.name, *cells, f"{result.model['parameters']:,}", state])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def bytes_of_state(constant: int, per_token: int) -> str:
    """For a cell: what a state takes, and what it grows by."""
    return f"{constant:,}" + (f" + {per_token:,} a token" if per_token else "")


def fill(path: Path, text: str) -> None:
    """Put a generated text between the marks of a page."""
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{path} has no marks {BEGIN} and {END}")
    write_atomically(path, f"{before}{begin}\n{text}\n{end}{after}")
