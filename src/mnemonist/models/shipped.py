"""Models that come with the package: small ones, to try things with before anything is trained.

`SHIPPED` lists them; each is a folder like any other model's, so whatever opens those opens these.
`shipped/README.md` is their card: data, recipe, figures, limits.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from mnemonist.errors import UserError, nearest

SHIPPED: Mapping[str, str] = {
    "shipped/memory": "MAL: a window of attention and a memory that learns while it reads",
    "shipped/window": "the window of attention alone, at the same size and after the same training",
    "shipped/countdown": "a transformer that searches for solutions of countdown problems, step by step, aloud",
    "shipped/countdown-journey": "the same, taught journeys that soon return from dead ends",
    "shipped/countdown-steps": "the same, taught right steps alone",
}
"""Names that stand for a path wherever a model is asked for."""


def find_model(path: str | os.PathLike[str]) -> Path:
    """The path itself, or the folder of a model that comes with the package, if the path is its name.

    A file or folder of that name in the present folder is taken first.

    Raises:
        UserError: the name begins like theirs, but there is none.
    """
    name = Path(path).as_posix()
    if not name.startswith("shipped/") or os.path.lexists(path):
        return Path(path)
    if name not in SHIPPED:
        raise UserError(f"there is no model {name}{nearest(name, SHIPPED)}; with the package come {', '.join(SHIPPED)}")
    return Path(__file__).parent / name


def folder_of(path: str | os.PathLike[str]) -> Path:
    """The folder that a model's path is in, and its tokenizer too: the path itself, or that of the file it names.

    Raises:
        UserError: as `find_model`.
    """
    place = find_model(path)
    return place if place.is_dir() else place.parent
