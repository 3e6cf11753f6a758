"""Asking reasoning-gym's scorers, at arm's length.

Some of them evaluate what a model wrote, so none ever runs in the process that asks. There is one *worker*, which
imports the package once (that takes seconds), and forks a child for every answer. The child has little of everything,
and is killed with all it started when its time is over; what it did to itself is gone with it, so that no answer can
change how the next one is scored. It is not a sandbox: it runs as the user, and can do what the user can within its
time. Whoever wants more runs the whole program in a container.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from mnemonist.errors import UserError

WORKER = "mnemonist.reasoning.tasks.reasoning_gym_scorer"
START_SECONDS = 120.0
"""For importing the package, on a slow disk."""
GRACE_SECONDS = 5.0
"""Beyond a child's time, before the worker itself is given up."""
MEMORY = 4 << 30
"""Bytes of address space that a child has, the package included."""
LONGEST_LINE = 1 << 20


class Worker:
    """The process that is asked; started when it is first needed, and again after it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._lock = threading.Lock()

    def ask(self, request: dict[str, Any], seconds: float) -> float | str:
        """A score from 0 to 1, or in a few words why there is none.

        Raises:
            UserError: the worker cannot be started.
        """
        if not hasattr(os, "fork"):
            raise UserError("reasoning-gym's own scorers need a system that can fork; take families judged here")
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            try:
                self._send({**request, "seconds": seconds})
                told = self._line(seconds + GRACE_SECONDS)
            except OSError:
                told = None
            if told is None:
                self.close()
                return "its scorer did not answer"
            return told["score"] if "score" in told else str(told["error"])

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def _start(self) -> None:
        self.close()
        self._unread = b""
        # Neither the environment nor the folder is handed on: a scorer needs none of it.
        environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd=tempfile.gettempdir(),
            start_new_session=True,
        )
        if self._line(START_SECONDS) is None:
            self.close()
            raise UserError('reasoning-gym cannot be started: pip install "mnemonist[reasoning]"')

    def _send(self, values: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(json.dumps(values).encode() + b"\n")
        self._process.stdin.flush()

    def _line(self, seconds: float) -> dict[str, Any] | None:
        """What the worker says next; None if it says nothing in time or is gone."""
        assert self._process is not None and self._process.stdout is not None
        until = time.monotonic() + seconds
        while b"\n" not in self._unread and len(self._unread) < LONGEST_LINE:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, until - time.monotonic()))
            read = os.read(self._process.stdout.fileno(), 1 << 16) if ready else b""
            if not read:
                return None
            self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        told = json.loads(line)
        return told if isinstance(told, dict) else None


_worker = Worker()
atexit.register(_worker.close)


def score(request: dict[str, Any], seconds: float) -> float | str:
    """What reasoning-gym thinks of an answer, from 0 to 1, or in a few words why that is not known.

    Args:
        request: family, config and seed of the problem, its question, and the answer.
        seconds: after which the scorer is killed.

    Raises:
        UserError: the package is missing, or the system cannot fork.
    """
    return _worker.ask(request, seconds)


# --- the other side: `python -m`


def main() -> None:
    """Answer requests, one a line, until there are no more."""
    import reasoning_gym  # noqa: F401  (children have it then)

    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    # Whatever the package prints must not look like an answer.
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    answers.write(b"{}\n")
    answers.flush()
    for line in requests:
        answers.write(json.dumps(_scored(json.loads(line), (requests.fileno(), answers.fileno()))).encode() + b"\n")
        answers.flush()


def _scored(request: dict[str, Any], ours: tuple[int, ...]) -> dict[str, Any]:
    """The answer to one request, found by a child that does not outlive its time."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()  # whatever it starts can be killed with it
        for descriptor in (*ours, reader):
            os.close(descriptor)
        _child(request, writer)
    os.close(writer)
    ready, _, _ = select.select([reader], [], [], request["seconds"])
    told = os.read(reader, 4096) if ready else b""
    os.close(reader)
    for kill, whom in ((os.killpg, child), (os.kill, child)):  # the group is not there yet if the child is very young
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(whom, signal.SIGKILL)
    os.waitpid(child, 0)
    if not ready:
        return {"error": f"its scorer took more than {request['seconds']:g} seconds"}
    try:
        return {"score": min(1.0, max(0.0, float(told)))}
    except ValueError:
        return {"error": told.decode(errors="replace") or "its scorer died"}


def _child(request: dict[str, Any], writer: int) -> None:
    """Score one answer under limits, and end."""
    import resource

    from mnemonist.reasoning.tasks.reasoning_gym import make_entry

    told = "its scorer died"
    try:
        soon = math.ceil(request["seconds"]) + 1
        for kind, limit in (
            (resource.RLIMIT_CPU, soon),
            (resource.RLIMIT_AS, MEMORY),
            (resource.RLIMIT_FSIZE, 0),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(kind, (limit, limit))
        import reasoning_gym

        entry = make_entry(request["family"], request["config"], request["seed"])
        if entry["question"].strip() != request["question"]:
            told = "this version of reasoning-gym makes another problem of its seed"
        else:
            dataset = reasoning_gym.create_dataset(request["family"], size=1, seed=request["seed"], **request["config"])
            told = repr(float(dataset.score_answer(request["answer"], entry)))
    except BaseException as error:  # exit() as well: it is the model's text that runs here
        told = f"its scorer failed ({type(error).__name__})"
    finally:
        os.write(writer, told.encode())
        os._exit(0)


if __name__ == "__main__":
    main()
