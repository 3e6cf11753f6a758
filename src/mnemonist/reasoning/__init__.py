"""The outer loop: models that learn from their own attempts.

A policy proposes attempts at problems, the attempts are weighed, and the policy is fitted to the weighed attempts;
distillation, journey learning, ReST-EM and GRPO differ in the proposer, the weight and the step. Nothing in here knows
what a memory is: it sees a `Sampler` that turns prompts into attempts, a `Task` that judges them, and a loss.
"""

from typing import TYPE_CHECKING

from mnemonist.lazy import attach

if TYPE_CHECKING:
    from mnemonist.reasoning.attempts import Attempt, Decoding, Sampler
    from mnemonist.reasoning.formats import FORMATS, Format, Parsed, find_format
    from mnemonist.reasoning.ledger import Ledger
    from mnemonist.reasoning.tasks.task import Problem, StepLabel, StepTask, Task, Verdict
    from mnemonist.reasoning.tree import Node, Tree, load_trees, save_trees

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Attempt": ".attempts",
        "Decoding": ".attempts",
        "FORMATS": ".formats",
        "Format": ".formats",
        "Ledger": ".ledger",
        "Node": ".tree",
        "Parsed": ".formats",
        "Problem": ".tasks.task",
        "Sampler": ".attempts",
        "StepLabel": ".tasks.task",
        "StepTask": ".tasks.task",
        "Task": ".tasks.task",
        "Tree": ".tree",
        "Verdict": ".tasks.task",
        "find_format": ".formats",
        "load_trees": ".tree",
        "save_trees": ".tree",
    },
)
