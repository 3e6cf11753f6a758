"""Whether this machine can compile kernels."""

import shutil

import pytest

from mnemonist.memory.kernels import native

COMPILER = next((path for path in map(shutil.which, native.COMPILERS) if path), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
