"""The scripts of benchmarks/ import each other by their bare names, as scripts do."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


@pytest.fixture(scope="session", autouse=True)
def benchmarks():
    """Their folder, which modules can be imported from."""
    sys.path.append(str(BENCHMARKS))
    yield BENCHMARKS
    sys.path.remove(str(BENCHMARKS))
