"""The outer loop: models that learn from their own attempts.

A policy proposes attempts at problems, the attempts are weighed, and the policy is fitted to the weighed attempts;
distillation, journey learning, ReST-EM and GRPO differ in the proposer, the weight and the step. Nothing in here knows
what a memory is: it sees a `Sampler` that turns prompts into attempts, a `Task` that judges them, and a loss.
"""

from typing import TYPE_CHECKING

from mnemonist.lazy import attach

if TYPE_CHECKING:
    from mnemonist.reasoning.adapters import with_adapters
    from mnemonist.reasoning.arms import MATCHES, Arms, match_arms
    from mnemonist.reasoning.attempts import Attempt, Decoding, Sampler
    from mnemonist.reasoning.budget import Budget, BudgetForcing, LoopDetector, Thought
    from mnemonist.reasoning.doctor import Finding, examine, examine_folder, examine_targets
    from mnemonist.reasoning.formats import FORMATS, Format, Parsed, find_format
    from mnemonist.reasoning.growing import grow
    from mnemonist.reasoning.journey import JOURNEYS, Journey, JourneyRules, find_journey, walk
    from mnemonist.reasoning.journey_text import PHRASES, Phrases, Telling, Twin, find_phrases, make_twin, tell, twins
    from mnemonist.reasoning.learning import Learned, learn, learn_recipe
    from mnemonist.reasoning.ledger import Ledger
    from mnemonist.reasoning.objective import OBJECTIVES, PolicyObjective, find_objective
    from mnemonist.reasoning.process_reward import ProcessRewardModel, ProcessScorer, train_process_reward
    from mnemonist.reasoning.prompting import (
        Example,
        InContext,
        Prompting,
        in_context,
        instruction_for,
        solved_examples,
    )
    from mnemonist.reasoning.proposing import Material, Policy, Solver
    from mnemonist.reasoning.remembering import Remembering
    from mnemonist.reasoning.rewriting import rewrite
    from mnemonist.reasoning.rounds import RECIPES, ROUNDS, Round, find_recipe, find_round
    from mnemonist.reasoning.sampling import LocalSampler, SamplingFailed, ServerSampler
    from mnemonist.reasoning.search import METHODS, Method, find_method
    from mnemonist.reasoning.step_labels import (
        Labelled,
        attempt_labels,
        gold_labels,
        path_labels,
        random_path,
        rollout_labels,
        text_labels,
    )
    from mnemonist.reasoning.step_quality import step_quality
    from mnemonist.reasoning.tasks.task import Problem, StepLabel, StepTask, Task, Verdict
    from mnemonist.reasoning.tree import Node, Tree, load_trees, save_trees
    from mnemonist.reasoning.weighing import Judged, load_judged, save_judged, weigh

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
        "Finding": ".doctor",
        "Format": ".formats",
        "InContext": ".prompting",
        "JOURNEYS": ".journey",
        "Journey": ".journey",
        "JourneyRules": ".journey",
        "Judged": ".weighing",
        "Labelled": ".step_labels",
        "Learned": ".learning",
        "Ledger": ".ledger",
        "LocalSampler": ".sampling",
        "LoopDetector": ".budget",
        "MATCHES": ".arms",
        "METHODS": ".search",
        "Material": ".proposing",
        "Method": ".search",
        "Node": ".tree",
        "OBJECTIVES": ".objective",
        "PHRASES": ".journey_text",
        "Parsed": ".formats",
        "Phrases": ".journey_text",
        "Policy": ".proposing",
        "PolicyObjective": ".objective",
        "Problem": ".tasks.task",
        "ProcessRewardModel": ".process_reward",
        "ProcessScorer": ".process_reward",
        "Prompting": ".prompting",
        "RECIPES": ".rounds",
        "ROUNDS": ".rounds",
        "Remembering": ".remembering",
        "Round": ".rounds",
        "Sampler": ".attempts",
        "SamplingFailed": ".sampling",
        "ServerSampler": ".sampling",
        "Solver": ".proposing",
        "StepLabel": ".tasks.task",
        "StepTask": ".tasks.task",
        "Task": ".tasks.task",
        "Telling": ".journey_text",
        "Thought": ".budget",
        "Tree": ".tree",
        "Twin": ".journey_text",
        "Verdict": ".tasks.task",
        "attempt_labels": ".step_labels",
        "examine": ".doctor",
        "examine_folder": ".doctor",
        "examine_targets": ".doctor",
        "find_format": ".formats",
        "find_journey": ".journey",
        "find_method": ".search",
        "find_objective": ".objective",
        "find_phrases": ".journey_text",
        "find_recipe": ".rounds",
        "find_round": ".rounds",
        "gold_labels": ".step_labels",
        "grow": ".growing",
        "in_context": ".prompting",
        "instruction_for": ".prompting",
        "learn": ".learning",
        "learn_recipe": ".learning",
        "load_judged": ".weighing",
        "load_trees": ".tree",
        "make_twin": ".journey_text",
        "match_arms": ".arms",
        "path_labels": ".step_labels",
        "random_path": ".step_labels",
        "rewrite": ".rewriting",
        "rollout_labels": ".step_labels",
        "save_judged": ".weighing",
        "save_trees": ".tree",
        "solved_examples": ".prompting",
        "step_quality": ".step_quality",
        "tell": ".journey_text",
        "text_labels": ".step_labels",
        "train_process_reward": ".process_reward",
        "twins": ".journey_text",
        "walk": ".journey",
        "weigh": ".weighing",
        "with_adapters": ".adapters",
    },
)
