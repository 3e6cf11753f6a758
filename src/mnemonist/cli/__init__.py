"""The command line: one module per command, each a dataclass of options and a function that runs it.

Options are typed by the dataclasses of the Python API, and nothing here imports torch before a command needs it, so
``--help`` answers at once.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

BAD_INPUT, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``mnemonist ARGUMENTS`` and return its exit code; bad input ends in one sentence on stderr."""
    with _noting_interrupts() as presses:
        try:
            from mnemonist.cli.options import parse  # here, since Ctrl-C may come while it imports

            options = parse(list(sys.argv[1:] if arguments is None else arguments))
            return options.run()
        except ValueError as error:
            print(f"mnemonist: {error}", file=sys.stderr)
            return BAD_INPUT
        except OSError as error:
            print(f"mnemonist: {error.filename or ''} {error.strerror or error}".replace("  ", " "), file=sys.stderr)
            return BAD_INPUT
        except KeyboardInterrupt:
            return _interrupted()
        except Exception:
            if not presses:
                raise
            return _interrupted()  # a library that was interrupted in its import may swallow that, and then fail


def _interrupted() -> int:
    print("mnemonist: interrupted; nothing half-written was left behind", file=sys.stderr)
    return INTERRUPTED


@contextmanager
def _noting_interrupts() -> Iterator[list[int]]:
    """A list that gets an entry whenever Ctrl-C is pressed, which raises `KeyboardInterrupt` as it did before."""
    presses: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        presses.append(number)
        signal.default_int_handler(number, frame)

    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not ours or threading.current_thread() is not threading.main_thread():  # ignored, or someone else's
        yield presses
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield presses
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
