"""Methods by name: every way to spend tokens on a problem, with its source.

Choices are changed in the name: ``beam:beams=8,width=4,value=self``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from mnemonist.choices import parse_choices
from mnemonist.errors import UserError, nearest
from mnemonist.reasoning.search.beam import Beam
from mnemonist.reasoning.search.independent import Independent
from mnemonist.reasoning.search.lockstep import Method
from mnemonist.reasoning.search.monte_carlo import MonteCarlo
from mnemonist.reasoning.search.tree_of_thought import BreadthFirst, DepthFirst


@dataclass(frozen=True)
class MethodInfo:
    """One row of `METHODS`."""

    summary: str
    source: str
    method: Method


METHODS: Mapping[str, MethodInfo] = {
    "chain-of-thought": MethodInfo(
        "one attempt",
        "Wei et al. 2022 (arXiv 2201.11903)",
        Independent("chain-of-thought"),
    ),
    "self-consistency": MethodInfo(
        "several attempts; the answer that most of them give",
        "Wang et al. 2022 (arXiv 2203.11171)",
        Independent("self-consistency", attempts=16),
    ),
    "best-of-n": MethodInfo(
        "several attempts; the one with the highest value",
        "Cobbe et al. 2021 (arXiv 2110.14168)",
        Independent("best-of-n", attempts=16, choice="best"),
    ),
    "weighted-best-of-n": MethodInfo(
        "several attempts; the answer with the highest sum of values",
        "Li et al. 2022 (arXiv 2206.02336)",
        Independent("weighted-best-of-n", attempts=16, choice="weighted"),
    ),
    "tree-of-thought": MethodInfo(
        "level by level, the best five paths kept, valued by the policy itself",
        "Yao et al. 2023 (arXiv 2305.10601), as for the game of 24",
        BreadthFirst("tree-of-thought", value="self", samples=3),
    ),
    "depth-first": MethodInfo(
        "the best step first, back where a path looks hopeless",
        "Yao et al. 2023 (arXiv 2305.10601), as for crosswords",
        DepthFirst("depth-first", value="self", samples=3),
    ),
    "beam": MethodInfo(
        "the best paths of each level, as many tokens as n attempts",
        "Snell et al. 2024 (arXiv 2408.03314)",
        Beam("beam"),
    ),
    "dvts": MethodInfo(
        "several small beams that do not compete",
        "Beeching et al. 2024, Scaling test-time compute with open models",
        Beam("dvts", diverse=True, choice="weighted"),
    ),
    "mcts": MethodInfo(
        "simulations where it was good, likely by the policy, or seldom tried",
        "Silver et al. 2017 (AlphaGo Zero), with steps of text as moves",
        MonteCarlo("mcts"),
    ),
    "uct": MethodInfo(
        "simulations where it was good or seldom tried, valued by the policy's own rollouts",
        "Kocsis and Szepesvari 2006",
        MonteCarlo("uct", bonus="uct", exploration=1.414, value="rollouts", samples=1),
    ),
}
"""Named methods, each with its source."""


def find_method(method: str | Method) -> Method:
    """The method itself; or a row of `METHODS` by name, with changes if wanted: ``"beam:beams=8,width=4"``.

    Raises:
        UserError: no method has this name (the message suggests the nearest one), or a value is out of range.
        ValueError: no choice has this name, or a value does not fit.
    """
    if isinstance(method, Method):
        return method
    name, _, changes = method.partition(":")
    if name not in METHODS:
        raise UserError(f"there is no method {name!r}{nearest(name, METHODS)}; known methods: {', '.join(METHODS)}")
    found = METHODS[name].method
    if not changes:
        return found
    allowed = tuple(field.name for field in dataclasses.fields(found) if field.name != "name")
    return dataclasses.replace(found, **parse_choices(type(found), changes, f"the method {name}", allowed))
