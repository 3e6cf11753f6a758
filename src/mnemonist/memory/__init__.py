"""The inner loop: memories that learn while they read.

One rule (`MemoryRule`), one state (`MemoryState`), one door (`memorize`). Nothing in here knows what a language
model is; see `rule.py` for the idea, `open_choices.py` for ideas of your own, `recurrent.py` for the definition,
`chunked.py` and `exact.py` for the speed.
"""

from typing import TYPE_CHECKING

from mnemonist.lazy import attach

if TYPE_CHECKING:
    from mnemonist.memory.feature_maps import build_feature_map
    from mnemonist.memory.open_choices import Write, add_activation, add_objective, add_step
    from mnemonist.memory.reading import MemoryRead, Surprise, memorize, recall
    from mnemonist.memory.rule import RULES, MemoryRule, find_rule
    from mnemonist.memory.state import MemoryState, initial_weights

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "MemoryRead": ".reading",
        "MemoryRule": ".rule",
        "MemoryState": ".state",
        "RULES": ".rule",
        "Surprise": ".reading",
        "Write": ".open_choices",
        "add_activation": ".open_choices",
        "add_objective": ".open_choices",
        "add_step": ".open_choices",
        "build_feature_map": ".feature_maps",
        "find_rule": ".rule",
        "initial_weights": ".state",
        "memorize": ".reading",
        "recall": ".reading",
    },
)
