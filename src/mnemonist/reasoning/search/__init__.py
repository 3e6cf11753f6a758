"""Ways to spend tokens on a problem, and what each costs: one tree, one sampler, one ledger for all of them.

find_method("beam:beams=8")    a method; `METHODS` lists what there is
method.solve(...)              a tree for each problem, all grown in lockstep
"""

from typing import TYPE_CHECKING

from mnemonist.lazy import attach

if TYPE_CHECKING:
    from mnemonist.reasoning.search.beam import Beam
    from mnemonist.reasoning.search.independent import Independent, coverage, elect, pass_at_k
    from mnemonist.reasoning.search.lockstep import Method, PathScorer, Place, Search
    from mnemonist.reasoning.search.methods import METHODS, MethodInfo, find_method
    from mnemonist.reasoning.search.monte_carlo import MonteCarlo
    from mnemonist.reasoning.search.scaling import Point, Run, compute_optimal, curves, difficulty_bins, group_runs
    from mnemonist.reasoning.search.tree_of_thought import BreadthFirst, DepthFirst

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Beam": ".beam",
        "BreadthFirst": ".tree_of_thought",
        "DepthFirst": ".tree_of_thought",
        "Independent": ".independent",
        "METHODS": ".methods",
        "Method": ".lockstep",
        "MethodInfo": ".methods",
        "MonteCarlo": ".monte_carlo",
        "PathScorer": ".lockstep",
        "Place": ".lockstep",
        "Point": ".scaling",
        "Run": ".scaling",
        "Search": ".lockstep",
        "compute_optimal": ".scaling",
        "coverage": ".independent",
        "curves": ".scaling",
        "difficulty_bins": ".scaling",
        "elect": ".independent",
        "find_method": ".methods",
        "group_runs": ".scaling",
        "pass_at_k": ".independent",
    },
)
