"""The outer loop: models that learn from their own attempts.

A policy proposes attempts at problems, the attempts are weighed, and the policy is fitted to the weighed attempts;
distillation, journey learning, ReST-EM and GRPO differ in the proposer, the weight and the step. Nothing in here knows
what a memory is: it sees a `Sampler` that turns prompts into attempts, a `Task` that judges them, and a loss.
"""

from typing import TYPE_CHECKING

from mnemonist.lazy import attach

if TYPE_CHECKING:
    from mnemonist.reasoning.arms import MATCHES, Arms, match_arms
    from mnemonist.reasoning.attempts import Attempt, Decoding, Sampler
    from mnemonist.reasoning.budget import Budget, BudgetForcing, LoopDetector, Thought
    from mnemonist.reasoning.formats import FORMATS, Format, Parsed, find_format
    from mnemonist.reasoning.growing import grow
    from mnemonist.reasoning.journey import JOURNEYS, Journey, JourneyRules, find_journey, walk
    from mnemonist.reasoning.journey_text import PHRASES, Phrases, Telling, Twin, find_phrases, make_twin, tell, twins
    from mnemonist.reasoning.ledger import Ledger
    from mnemonist.reasoning.prompting import Example, Prompting, instruction_for, solved_examples
    from mnemonist.reasoning.rewriting import rewrite
    from mnemonist.reasoning.sampling import LocalSampler, SamplingFailed, ServerSampler
    from mnemonist.reasoning.search import METHODS, Method, find_method
    from mnemonist.reasoning.tasks.task import Problem, StepLabel, StepTask, Task, Verdict
    from mnemonist.reasoning.tree import Node, Tree, load_trees, save_trees

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Arms": ".arms",
        "Attempt": ".attempts",
        "Budget": ".budget",
        "BudgetForcing": ".budget",
        "Decoding": ".attempts",
        "Example": ".prompting",
        "FORMATS": ".formats",
        "Format": ".formats",
        "JOURNEYS": ".journey",
        "Journey": ".journey",
        "JourneyRules": ".journey",
        "Ledger": ".ledger",
        "LocalSampler": ".sampling",
        "LoopDetector": ".budget",
        "MATCHES": ".arms",
        "METHODS": ".search",
        "Method": ".search",
        "Node": ".tree",
        "PHRASES": ".journey_text",
        "Parsed": ".formats",
        "Phrases": ".journey_text",
        "Problem": ".tasks.task",
        "Prompting": ".prompting",
        "Sampler": ".attempts",
        "SamplingFailed": ".sampling",
        "ServerSampler": ".sampling",
        "StepLabel": ".tasks.task",
        "StepTask": ".tasks.task",
        "Task": ".tasks.task",
        "Telling": ".journey_text",
        "Thought": ".budget",
        "Tree": ".tree",
        "Twin": ".journey_text",
        "Verdict": ".tasks.task",
        "find_format": ".formats",
        "find_journey": ".journey",
        "find_method": ".search",
        "find_phrases": ".journey_text",
        "grow": ".growing",
        "instruction_for": ".prompting",
        "load_trees": ".tree",
        "make_twin": ".journey_text",
        "match_arms": ".arms",
        "rewrite": ".rewriting",
        "save_trees": ".tree",
        "solved_examples": ".prompting",
        "tell": ".journey_text",
        "twins": ".journey_text",
        "walk": ".journey",
    },
)
