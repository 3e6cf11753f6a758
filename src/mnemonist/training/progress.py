"""How far a run has come, for whoever watches it.

On a terminal a bar; elsewhere (a log file) a plain line now and then. Everything goes to stderr, so that
stdout stays free for results.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mnemonist.training.metrics import StepMetrics

Report = Callable[[StepMetrics], None]

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def training_progress(shown: bool, start: int, steps: int) -> Iterator[Report]:
    """Yield a function that is told every step from `start + 1` to `steps`."""
    console = Console(stderr=True)
    if not shown:
        yield lambda metrics: None
    elif console.is_terminal:
        with _bar(console) as bar:
            task = bar.add_task("", total=steps, completed=start, loss=float("nan"), held_out="", rate=0.0)

            def report(metrics: StepMetrics) -> None:
                bar.update(task, completed=metrics.step, loss=metrics.loss, rate=metrics.tokens_per_second)
                if held_out := _held_out(metrics):
                    bar.update(task, held_out=held_out)

            yield report
    else:
        yield _line_printer(steps)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("step {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.4f}{task.fields[held_out]}"),
        TextColumn("{task.fields[rate]:,.0f} tok/s"),
        TimeRemainingColumn(),
        console=console,
        redirect_stdout=sys.stdout.isatty(),  # else results written to a pipe would end up in the bar
    )


def _line_printer(steps: int) -> Report:
    printed = -_SECONDS_BETWEEN_LINES  # the first step is reported at once
    held_out = ""

    def report(metrics: StepMetrics) -> None:
        nonlocal printed, held_out
        held_out = _held_out(metrics) or held_out
        now = time.monotonic()
        if now - printed < _SECONDS_BETWEEN_LINES and metrics.step < steps:
            return
        printed = now
        print(
            f"step {metrics.step}/{steps}  loss {metrics.loss:.4f}{held_out}  {metrics.tokens_per_second:,.0f} tok/s",
            file=sys.stderr,
            flush=True,
        )

    return report


def _held_out(metrics: StepMetrics) -> str:
    """What was read of text and problems that are not trained on; it stands until they are read again."""
    bits, share, problems = (
        metrics.held_out_bits_per_byte,
        metrics.held_out_unexplained_share,
        metrics.held_out_problems or {},
    )
    parts = [] if bits is None else [f"{bits:.3f} bits/byte"]
    parts += [] if share is None else [f"{share:.3f} unexplained"]
    for name, found in problems.items():
        parts.append(f"{name} " + (f"{found['accuracy']:.3f} right" if "accuracy" in found else f"{found['loss']:.4f}"))
    return f"  held out {', '.join(parts)}" if parts else ""
