"""Lazy packages: a name is imported when it is first used, not when its package is.

Importing torch takes seconds, and the command line must answer `--help` at once. So a package whose
names need torch lists where they live and imports nothing itself (PEP 562):

    from typing import TYPE_CHECKING

    from mnemonist.lazy import attach

    if TYPE_CHECKING:
        from .rule import RULES, MemoryRule

    __getattr__, __dir__, __all__ = attach(__name__, {"MemoryRule": ".rule", "RULES": ".rule"})

Type checkers read the first list and the interpreter the second.
"""

import importlib
import sys
from collections.abc import Callable, Mapping


def attach(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Make `__getattr__`, `__dir__` and `__all__` for a package that imports its names on first use.

    Args:
        package: the package's `__name__`.
        homes: each public name and the module of the same package that defines it, as `".module"`.

    Returns:
        The three module attributes, in that order.

    Raises:
        ValueError: when a module is not written as `".module"`; a package offers only its own names.
    """
    for name, module in homes.items():
        if not module.startswith(".") or module.startswith("..") or module == ".":
            raise ValueError(f"{package}.{name} must come from a module written as '.module', not {module!r}")
    names = sorted(homes)

    def __getattr__(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes[name], package), name)
        # Kept, so that the next use is an ordinary attribute, and so that a name spelt like its own
        # module (`memorize` in memorize.py) stays the name: the import has just bound the module there.
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*names, *vars(sys.modules[package])})

    return __getattr__, __dir__, names
