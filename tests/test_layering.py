"""Imports point down, and the command line starts without torch.

The table is the architecture: what each top-level name may import from this package. Imports inside
functions, under TYPE_CHECKING, by `import_module` and in the lists of lazy packages count like any other:
a cycle hidden in a function is still a cycle in the reader's head.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "mnemonist"

BOTTOM = {"choices", "errors", "evaluating", "files", "intervals", "lazy", "tensors"}
ALLOWED = {
    "": set(),  # mnemonist/__init__.py
    "errors": set(),
    "evaluating": set(),
    "lazy": set(),
    "choices": {"errors"},
    "files": {"errors"},
    "intervals": set(),
    "tensors": {"errors", "files"},
    "data": BOTTOM - {"evaluating", "intervals", "tensors"},
    "memory": BOTTOM,
    "models": BOTTOM | {"data", "memory"},
    "training": BOTTOM | {"data"},  # it trains any module
    "reasoning": BOTTOM | {"data", "training"},  # it sees a sampler, a loss, and the loop that fits any module
    "evals": BOTTOM | {"data", "memory", "models", "training", "reasoning"},
    "report": BOTTOM | {"data", "memory", "models", "training", "reasoning"},
    "cli": BOTTOM | {"data", "memory", "models", "training", "reasoning", "evals", "report"},
    "__main__": {"cli"},
}
# What else some may import, besides Python's standard library; the others are free.
THIRD_PARTY = {
    "": set(),
    "errors": set(),
    "evaluating": {"torch"},
    "lazy": set(),
    "choices": set(),
    "files": set(),
    "intervals": {"numpy"},
    "tensors": {"torch", "safetensors"},
    "data": {"numpy", "pyarrow", "tokenizers", "transformers"},
    "memory": {"torch"},
    "__main__": set(),
}


def imported(tree: ast.Module, package: list[str]) -> Iterator[tuple[int, str]]:
    """Line and absolute name of all that a module of `package` imports, wherever and however it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = [*base, node.module] if node.module else base
            yield from ((node.lineno, ".".join([*origin, alias.name])) for alias in node.names)
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__", "attach"}:
                for leaf in ast.walk(node):
                    if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str):
                        name = leaf.value.lstrip(".")
                        if name != leaf.value:
                            up = len(leaf.value) - len(name)
                            yield leaf.lineno, ".".join([*package[: len(package) - up + 1], name])
                        elif name.split(".")[0] == "mnemonist":
                            yield leaf.lineno, name


def violations(root: Path) -> list[str]:
    """Every import below `root`, the folder of the package, that the table does not allow."""
    found = []
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        own = place.parts[0].removesuffix(".py").replace("__init__", "")
        if own not in ALLOWED:
            found.append(f"{place}: {own!r} has no place in the table of test_layering.py")
            continue
        package = ["mnemonist", *place.parts[:-1]]
        for line, name in imported(ast.parse(path.read_text(encoding="utf-8")), package):
            top, *inner = name.split(".")
            if top != "mnemonist":
                kernel = place.match("memory/kernels/triton_*.py") and top == "triton"
                free = kernel or top in sys.stdlib_module_names or top in THIRD_PARTY.get(own, {top})
            else:
                target = inner[0] if inner else "mnemonist"
                is_attribute = target not in ALLOWED and inner[1:] == []  # mnemonist.__version__
                free = target == own or target in ALLOWED[own] or (is_attribute and own in {"report", "cli"})
            if not free:
                found.append(f"{place}:{line}: {own or 'mnemonist'} must not import {name}")
    return found


def test_imports_point_down() -> None:
    assert violations(PACKAGE) == []


def test_the_table_has_no_cycle() -> None:
    placed: set[str] = set()
    while layer := {name for name, below in ALLOWED.items() if below <= placed} - placed:
        placed |= layer
    assert placed == set(ALLOWED)


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("memory/rule.py", "from ..models import block"),
        ("memory/rule.py", "from mnemonist import models"),
        ("memory/rule.py", "import mnemonist.models.block as block"),
        ("memory/rule.py", "import numpy as np"),
        ("memory/deep/rule.py", "from ... import cli"),
        ("memory/rule.py", "def f():\n    from ..training import loop"),
        ("models/__init__.py", "if TYPE_CHECKING:\n    from ..report import page"),
        ("models/block.py", "import importlib\nimportlib.import_module('mnemonist.training.loop')"),
        (
            "models/block.py",
            "from importlib import import_module\nimport_module('..cli', 'mnemonist.models')",
        ),
        ("training/loop.py", "from ..models import block"),
        ("training/loop.py", "from ..reasoning import ledger"),
        ("reasoning/rounds.py", "from mnemonist.memory import RULES"),
        ("reasoning/sampling.py", "from ..models import LanguageModel"),
        ("data/corpus.py", "import torch"),
        ("data/corpus.py", "from ..training import loop"),
        ("files.py", "import numpy"),
        ("errors.py", "from .files import atomic_path"),
        ("report/page.py", "from .. import cli"),
        ("novelty.py", ""),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, place: str, line: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line)
    assert len(violations(tmp_path)) == 1


@pytest.mark.parametrize(
    ("place", "line"),
    [
        (
            "memory/rule.py",
            "import math\nimport torch\nfrom ..errors import UserError\nfrom .state import State",
        ),
        ("memory/__init__.py", "attach(__name__, {'RULES': '.rule'})"),
        ("models/block.py", "from ..memory import RULES\nimport numpy\nimport transformers"),
        ("cli.py", "from . import __version__\nfrom .report import page\nfrom .training.loop import train"),
        ("data/corpus.py", "import numpy as np\nfrom ..files import FileError"),
    ],
)
def test_a_right_import_passes(tmp_path: Path, place: str, line: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line)
    assert violations(tmp_path) == []


@pytest.mark.parametrize(
    "module",
    [
        "",
        "errors",
        "files",
        "lazy",
        "data",
        "memory",
        "memory.rule",
        "models",
        "training",
        "reasoning",
        "report",
        "cli",
    ],
)
def test_starts_without_torch(module: str) -> None:
    path = PACKAGE.joinpath(*module.split(".")) if module else PACKAGE
    if not (path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()):
        pytest.skip(f"{module} is not written yet")
    name = f"mnemonist.{module}".rstrip(".")
    code = f"import sys, {name}; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, cwd=PACKAGE.parent, timeout=120, capture_output=True, text=True)
    assert told.stdout == "False\n", told.stderr


def test_models_do_without_triton_where_nothing_could_run_it() -> None:
    """It costs 70 MB of every process."""
    told = "torch.backends.cuda.is_built(), 'triton' in sys.modules"
    code = f"import sys, torch; from mnemonist.models import LanguageModel; print({told})"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    built, imported = done.stdout.split()
    assert built == "True" or imported == "False"
