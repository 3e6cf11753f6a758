"""Beam search over steps, and its diverse form (Snell et al. 2024, arXiv 2408.03314; Beeching et al. 2024).

N first steps are drawn and the best N / M kept; each of these gets M next steps, of all N again the best N / M are
kept, and so on. So a search costs about as much as N independent attempts, but what looks bad is given up early. In
*diverse verifier tree search* (DVTS) the N first steps are dealt to N / M subtrees that do not compete: each keeps its
own best path, so that one early mistake of the judge cannot take them all.

Paths end at different lengths. A finished path holds its place as long as nothing is better, and only paths that have
come to an answer are ever candidates for the method's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mnemonist.errors import UserError
from mnemonist.reasoning.search.independent import CHOICES, elect
from mnemonist.reasoning.search.lockstep import Search, check_choice
from mnemonist.reasoning.search.stepwise import Pruned
from mnemonist.reasoning.search.tree_of_thought import Front, advance
from mnemonist.reasoning.tree import Tree


@dataclass(frozen=True)
class Beam(Pruned):
    """N beams of width M.

    Raises:
        UserError: a field is out of range, or the width does not divide the beams.
    """

    name: str = "beam"
    beams: int = 16
    """N: steps proposed at each level, over all paths."""
    diverse: bool = False
    """Subtrees that do not compete, instead of one beam."""
    choice: str = "best"
    """How finished paths settle on an answer: majority, best or weighted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("choice", self.choice, CHOICES)
        if self.width < 1 or self.beams < 1 or self.beams % self.width:
            raise UserError(f"beams is {self.beams} and width {self.width}; beams must be a multiple of the width")

    def run(self, search: Search, trees: Sequence[Tree]) -> None:
        """See `Method.run`."""
        kept = self.beams // self.width
        fronts = [Front(tree, 1 if self.diverse else kept) for tree in trees]
        advance(self, search, fronts, first=self.beams, groups=kept if self.diverse else 1)
        for front in fronts:
            search.conclude(front.tree, *elect(front.finished, self.choice))
