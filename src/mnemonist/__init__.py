"""mnemonist: small models that remember and reason.

Learning happens twice. While reading, a memory changes its weights with every token it sees (`memory`,
`models`); between readings, a model is fitted to text and to its own best attempts (`training`,
`reasoning`). This module imports nothing heavy: take what you need from the subpackages.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("mnemonist")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0+uninstalled"

__all__ = ["__version__"]
