"""``mnemonist reason tasks``: the tables."""

from __future__ import annotations

from mnemonist.cli.models import print_sections
from mnemonist.reasoning.arms import MATCHES
from mnemonist.reasoning.formats import FORMATS, Format
from mnemonist.reasoning.journey import JOURNEYS, JourneyRules
from mnemonist.reasoning.objective import OBJECTIVES, PolicyObjective
from mnemonist.reasoning.rounds import RECIPES, ROUNDS, Round
from mnemonist.reasoning.search import METHODS
from mnemonist.reasoning.tasks import TASKS, build_task


def run_tasks() -> int:
    """Print every named task, format, method, journey, round, recipe and objective, with its source."""
    print_sections(
        {
            "Tasks: what there is to reason about": {
                name: (f"{info.summary}; {_levels(name)}" + ("" if info.steps else "; no steps"), info.source)
                for name, info in TASKS.items()
            },
            "Formats: how a problem is put, and where its answer is": {
                format.name: (_texts(format), format.source) for format in FORMATS.values()
            },
            "Methods: ways to spend tokens on a problem": {
                name: (info.summary, info.source) for name, info in METHODS.items()
            },
            "Journeys: how far a walk through a tree goes astray": {
                rules.name: (_walk(rules), rules.source) for rules in JOURNEYS.values()
            },
            "Matches: what journeys and shortcuts have in common": {
                name: (summary,) for name, summary in MATCHES.items()
            },
            "Rounds: propose, weigh, fit": {row.name: (_round(row), row.source) for row in ROUNDS.values()},
            "Recipes: several rounds": {
                name: (", then ".join(row.name for row in rows), *(f"{row.name}: {row.source}" for row in rows))
                for name, rows in RECIPES.items()
                if len(rows) > 1
            },
            "Objectives: clipped policy gradients": {
                row.name: (_objective(row), row.source) for row in OBJECTIVES.values()
            },
        },
        "All of them can be changed choice by choice: countdown:largest=50, beam:beams=8,width=2,\n"
        "o1-journey:trials=2, rest-em:iterations=2,temperature=1, dapo:dynamic=false (formats cannot; of\n"
        "recipes, what their rounds share: r1:max_tokens=512,iterations=50,attempts=8,problems=4).\n"
        "hinted+ before the name of a task gives its problems false hints: hinted+countdown.",
    )
    return 0


def _levels(name: str) -> str:
    try:
        levels = build_task(name).difficulties
    except ValueError:  # one that needs a choice, or a package that is not there
        return "difficulties depend on its choices"
    if len(levels) > 2 and list(levels) == list(range(levels[0], levels[-1] + 1)):
        return f"difficulties {levels[0]} to {levels[-1]}"
    return f"difficulty {', '.join(map(str, levels))}"


def _texts(format: Format) -> str:
    prompt = format.prompt("QUESTION")
    answer = f"STEPS\n{format.close_thought}{format.open_answer}ANSWER{format.close_answer}"
    return (prompt + answer).replace("\n", "\\n")


def _walk(rules: JourneyRules) -> str:
    dead_ends = f"up to {rules.trials - 1} dead ends at a node" if rules.trials else "all dead ends at a node"
    chance = f" with chance {rules.chance:g}" if rules.chance < 1 else ""
    order = "any of them" if rules.entering == "dead ends first" else "those tried before the right step"
    return f"{dead_ends}{chance}, {order}; back {rules.returning}"


def _round(row: Round) -> str:
    attempts = f"{row.attempts} attempts a problem, " if row.attempts > 1 else ""
    objective = f", objective {row.objective.name}" if row.objective else ""
    times = f"{row.iterations} iterations" if row.iterations > 1 else "one iteration"
    return f"proposer {row.proposer}, weight {row.weight}{objective}; {attempts}{times}"


def _objective(row: PolicyObjective) -> str:
    told = [f"advantage by {row.advantage}", f"ratio by {row.ratio}", f"clipped {row.clip_low:g} and {row.clip_high:g}"]
    told += [f"length by {row.length}"]
    told += [f"beta {row.beta:g}"] if row.beta else []
    told += ["overlong punished"] if row.overlong_share else []
    told += ["dynamic sampling"] if row.dynamic else []
    return ", ".join(told)
