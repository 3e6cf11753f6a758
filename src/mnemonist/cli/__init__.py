"""The command line: one module per command, each a dataclass of options and a function that runs it.

Options are typed by the dataclasses of the Python API, and nothing here imports torch before a command needs it, so
``--help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

BAD_INPUT, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``mnemonist ARGUMENTS`` and return its exit code; bad input ends in one sentence on stderr."""
    from mnemonist.cli.options import parse

    try:
        options = parse(list(sys.argv[1:] if arguments is None else arguments))
        return options.run()
    except ValueError as error:
        print(f"mnemonist: {error}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        print(f"mnemonist: {error.filename or ''} {error.strerror or error}".replace("  ", " "), file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("mnemonist: interrupted; nothing half-written was left behind", file=sys.stderr)
        return INTERRUPTED
