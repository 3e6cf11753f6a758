"""``python -m mnemonist`` is the command line."""

import sys

from mnemonist.cli import main

if __name__ == "__main__":
    sys.exit(main())
