"""How fast fits learn where nobody says so: by who learns, and from what.

A model of ours, or a new one, learns fast: it has little to lose. A pretrained model of transformers has all that it
was trained on, and at such a rate a few steps forget it. Its weights learn at the rate at which such models are usually
fitted to solutions (1e-5: s1, arXiv 2501.19393), adapters at ten times that, since they begin at no effect (1e-4 to
2e-4: QLoRA, arXiv 2305.14314). Where a policy learns from its own mistakes too, it must not move far at once: a tenth
of each, which for a pretrained model is what GRPO was published with (1e-6: arXiv 2402.03300).

Does not need torch, so that ``--help`` can show the rate.
"""

from __future__ import annotations

import json
from pathlib import Path

from mnemonist.errors import UserError
from mnemonist.models.configuration import CONFIG_FILE, MODEL_TYPE
from mnemonist.models.shipped import find_model
from mnemonist.reasoning.rounds import IDENTITY
from mnemonist.training.configuration import TrainingConfig

OURS = (TrainingConfig().learning_rate, 1e-4)
"""Of models of ours: usually, and where a policy learns from its own mistakes too."""
WEIGHTS, ADAPTERS = (1e-5, 1e-6), (1e-4, 1e-5)
"""The same of pretrained models: of all weights, and of adapters alone."""


def pretrained(path: Path | None) -> bool:
    """Whether a path is the folder of a model of transformers that is none of ours.

    Raises:
        UserError: its configuration cannot be read, or the path begins like the name of a model that is not there.
    """
    if path is None:
        return False
    file = find_model(path) / CONFIG_FILE
    if not file.is_file():
        return False
    try:
        return bool(json.loads(file.read_text(encoding="utf-8")).get("model_type") != MODEL_TYPE)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def usual_rate(model: Path | None, *, adapters: bool = False, cautious: bool = False) -> float:
    """The highest learning rate of a fit.

    Args:
        model: that learns; None for a new one.
        adapters: whether they alone learn.
        cautious: whether it learns from its own mistakes too.

    Raises:
        UserError: as `pretrained`.
    """
    rates = (ADAPTERS if adapters else WEIGHTS) if pretrained(model) else OURS
    return rates[cautious]


def rate_of_run(folder: Path) -> float | None:
    """The rate that the run in a folder has begun with; None if there is none, or it does not say so."""
    places = [folder / IDENTITY, *folder.glob(f"1-*/{IDENTITY}"), folder / "checkpoint" / "state.json"]
    for path in places:
        try:
            rate = json.loads(path.read_text(encoding="utf-8"))["config"]["learning_rate"]
        except (OSError, ValueError, LookupError, TypeError):
            continue
        if isinstance(rate, float):
            return rate
    return None


def note_of_rate(rate: float) -> str:
    """What to say before a pretrained model learns."""
    return f"note: this pretrained model learns at a rate of {rate:g}; --training.learning-rate sets another"
