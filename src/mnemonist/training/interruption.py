"""A polite stop: the first signal asks, the second insists.

Ctrl-C in the middle of a step would leave a half-updated model. So while training runs, a signal only notes
that someone wants it to stop, and the loop does so at the next step's end. A second signal raises
`KeyboardInterrupt` at once, for whoever cannot wait; what was saved before stays usable.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

WAIT = b"\nstopping as soon as the work at hand is done and saved; once more stops at once\n"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class StopRequest:
    """Whether someone has asked to stop; the signal handler sets it."""

    requested: bool = False


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request while the block runs; handlers are then as before.

    Signals that are ignored (a process started with nohup) stay so. Outside the main thread Python allows
    no handlers, and the request is never made.
    """
    request = StopRequest()

    def ask(number: int, frame: FrameType | None) -> None:
        if request.requested:
            raise KeyboardInterrupt
        request.requested = True
        if os.environ.get("RANK", "0") == "0":  # the first of several processes; `print` might be interrupted itself
            with suppress(OSError):
                os.write(2, WAIT)

    previous = {}
    if threading.current_thread() is threading.main_thread():
        current = {number: signal.getsignal(number) for number in _SIGNALS}
        # None is a handler that was not set from Python and could not be put back.
        previous = {n: handler for n, handler in current.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in previous:
            signal.signal(number, ask)
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
