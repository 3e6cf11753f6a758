"""``mnemonist eval``: what models can do, as a table, JSON and a plot."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mnemonist import __version__
from mnemonist.cli import INTERRUPTED
from mnemonist.cli.options import Eval
from mnemonist.cli.process import prepare_torch, say
from mnemonist.cli.task import TASK_FILE, read_tasks
from mnemonist.cli.train import MODEL_FILE, load_model, load_tokenizer
from mnemonist.errors import UserError
from mnemonist.evals.evaluation import evaluate, require_vocabulary
from mnemonist.evals.results import Result, Row, table
from mnemonist.evals.suites import Suite, build_suite, changes_of, reads_text
from mnemonist.files import plain_name, require_writable
from mnemonist.models.shipped import find_model, folder_of
from mnemonist.report.comparison import Line, draw_lines
from mnemonist.training.interruption import stop_on_signals


def run_eval(options: Eval) -> int:
    """Measure each model, print the table, write JSON and plot."""
    reads = reads_text(options.suite)
    paths = tuple(map(find_model, options.model))
    names = model_names(paths)
    prepare_torch()
    models, suites = {}, {}
    for name, path in zip(names, paths, strict=True):
        model, tokenizer = load_model(path), None
        if reads:
            tokenizer = load_tokenizer(path, model)
        models[name] = model
        suites[name] = build_suite(as_trained(options.suite, path), tokenizer, options.count, options.seed)
        require_vocabulary(model, suites[name])
    require_same_problems(suites, as_trained(options.suite, paths[0]))
    suite = suites[names[0]]
    stem = stem_of(suite)
    files = {name: options.out / f"{stem}-{name}.json" for name in names}
    plot = options.out / f"{stem}.svg"
    for path in (*files.values(), plot):
        require_writable(path)
    facts = {"command": shlex.join(["mnemonist", *sys.argv[1:]]), "mnemonist": __version__}
    results: list[Result] = []
    with stop_on_signals() as stop:
        for name, model in models.items():
            with steps_bar(name) as (advance, on_step):
                result = evaluate(
                    model, suites[name], files[name], name=name, facts=facts,
                    progress=advance, on_step=on_step, stop=lambda: stop.requested,
                )  # fmt: skip
            results.append(result)
            if stop.requested:
                break
    if options.json:
        print(json.dumps([json.loads(result.to_json()) for result in results]))
    else:
        print(table([*results, *references(suite, results[0])]))
    draw(plot, suite, results)
    left = [path.name for path in (*files.values(), plot) if path.exists()]
    say(f"in {options.out}: {'  '.join(left)}")
    if stop.requested:
        say("interrupted; the same command goes on with what is missing")
        return INTERRUPTED
    return 0


def stem_of(suite: Suite) -> str:
    """What the names of its files begin with: other settings have other files, so that neither is in the way."""
    changes = ",".join(f"{name}={value}" for name, value in changes_of(suite).items())
    return f"{suite.name}-{plain_name(changes)}" if changes else suite.name


def as_trained(spec: str, path: Path) -> str:
    """The suite with the changes that a model was trained with on it, if it was and the user names none.

    Raises:
        UserError: the file that says what it was trained on is damaged.
    """
    file = folder_of(path) / TASK_FILE
    if ":" in spec or not file.is_file():
        return spec
    return next((task for task in read_tasks(file) if task.partition(":")[0] == spec), spec)


def require_same_problems(suites: Mapping[str, Suite], example: str) -> None:
    """Make sure that the models are asked the same; each may have a tokenizer of its own.

    Args:
        suites: what each is asked, by its name.
        example: the suite of the first as text.

    Raises:
        UserError: they were trained on different variants of the suite, and the user names none.
    """
    asked = {name: _fields(suite.identity()) for name, suite in suites.items()}
    first = next(iter(asked.values()))
    differing = [field for field in first if any(fields[field] != first[field] for fields in asked.values())]
    if differing:
        found = [f"{field} ({', '.join(f'{name} {asked[name][field]}' for name in asked)})" for field in differing]
        if ":" not in example:
            example += ":" + ",".join(f"{field}={first[field]}" for field in differing)
        raise UserError(
            f"the models were trained on different problems of {first['suite']}, which differ in {', '.join(found)}: "
            f"say which all of them are to solve, such as {example}"
        )


def _fields(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What the problems follow from, in one level; whatever counts their tokens is the model's own."""
    flat = {**identity, **identity.get("task", {})}
    return {name: value for name, value in flat.items() if name not in ("task", "tokenizer")}


def model_names(paths: tuple[Path, ...]) -> list[str]:
    """A name for each model: the last part of its path, or of its folder's, as long as these differ.

    Raises:
        UserError: no model is named, or one twice.
    """
    if not paths:
        raise UserError("there is no model to evaluate; name one with --model")
    resolved = [path.resolve() for path in paths]
    resolved = [path.parent if path.name == MODEL_FILE else path for path in resolved]
    if len(set(resolved)) < len(resolved):
        raise UserError("a model is named twice; name each once")
    for parts in range(1, 1 + max(len(path.parts) for path in resolved)):
        names = ["-".join(path.parts[-parts:]).strip("/").removesuffix(".safetensors") for path in resolved]
        if len(set(names)) == len(names):
            break
    return names


@contextmanager
def steps_bar(name: str) -> Iterator[tuple[Callable[[int], None], Callable[[int, int], None]]]:
    """A bar of the steps done; what is yielded moves it by tokens read and by steps."""
    columns = (
        TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[read]}"),
        TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(name, total=None, read="")
        began, read = time.perf_counter(), 0

        def advance(tokens: int) -> None:
            nonlocal read
            read += tokens
            rate = read / max(1e-9, time.perf_counter() - began)
            bars.update(task, read=f"{read:,} tokens, {rate:,.0f}/s")

        def on_step(done: int, steps: int) -> None:
            bars.update(task, completed=done, total=steps)

        yield advance, on_step


def references(suite: Suite, like: Result) -> list[Result]:
    """What a suite compares models with, as results."""
    return [
        Result(like.identity, like.measure, like.x, tuple(rows), {"name": name})
        for name, rows in suite.references().items()
    ]


def draw(path: Path, suite: Suite, results: list[Result]) -> None:
    """The plot of all models; a panel for each of what differs besides the horizontal axis."""
    panels: dict[str, Sequence[Line]] = {}
    for result in results:
        for title, rows in result.lines().items():
            panels[title] = [*panels.get(title, ()), _line(result.name, rows, suite.x)]
    for beside in references(suite, results[0]) if results else ():
        for title, rows in beside.lines().items():
            if title in panels:
                panels[title] = [*panels[title], _line(beside.name, rows, suite.x, reference=True)]
    numeric = all(isinstance(row.setting[suite.x], int | float) for result in results for row in result.rows)
    if panels and numeric:
        draw_lines(path, panels, x=suite.x, y=suite.measure, bounds=results[0].bounds)


def _line(label: str, rows: list[Row], x: str, reference: bool = False) -> Line:
    rows = sorted(rows, key=lambda row: float(row.setting[x]))
    at = [float(row.setting[x]) for row in rows]
    return Line(label, at, [r.mean for r in rows], [r.low for r in rows], [r.high for r in rows], reference)
