"""``mnemonist reason traces``, and the journeys that others learn from."""

from __future__ import annotations

from collections.abc import Sequence

from mnemonist.cli.eval import steps_bar
from mnemonist.cli.reason.material import draw, step_task
from mnemonist.cli.reason.options import Telling, Traces
from mnemonist.cli.reason.pages import aligned, command, facts_of
from mnemonist.cli.train import prepare_torch, say
from mnemonist.files import require_writable
from mnemonist.reasoning.arms import MATCHES, Arms, match_arms
from mnemonist.reasoning.formats import Format, find_format
from mnemonist.reasoning.growing import grow
from mnemonist.reasoning.journey import find_journey, walk
from mnemonist.reasoning.journey_text import Twin, find_phrases, state_of, tell, twins
from mnemonist.reasoning.search.lockstep import check_choice
from mnemonist.reasoning.tasks import Problem, StepTask, build_task, save_rows
from mnemonist.report import JourneyView, ReasoningPage, write_reasoning

SHOWN = 20
"""Journeys on a page."""


def run_traces(options: Traces) -> int:
    """Make journeys and shortcuts, write both arms, say how much of what is in them."""
    task = step_task(build_task(options.task), "making journeys")
    format = find_format(options.asked.format)
    check(options.telling)
    problems = draw(task, options.split, options.asked.difficulty, options.count)
    for path in (options.out, *([options.page] if options.page is not None else [])):
        require_writable(path)
    prepare_torch()
    made = make_twins(task, problems, options.telling, format, options.seed)
    arms = match_arms(made, options.telling.match, seed=options.seed)
    save_rows(options.out, (example.to_json() for arm in (arms.journey, arms.shortcut) for example in arm.examples))
    print(summary(arms))
    if not arms.journey.mean_dead_ends:
        say(
            f"no journey goes astray: {task.name} has no wrong steps there, or the rules enter none; the arms are alike"
        )
    if options.page is not None:
        views = journey_views(task, problems[:SHOWN], options.telling, format, options.seed)
        facts = {"task": task.name, "journeys": options.telling.journey, "phrases": options.telling.phrases}
        title = f"Journeys of {task.name}"
        page = ReasoningPage(title, journeys=tuple(views), facts=facts_of(facts), command=command())
        write_reasoning(options.page, page)
    say(f"{len(arms.journey.examples) + len(arms.shortcut.examples):,} texts in {options.out}")
    say(f"learn from them: mnemonist reason journey {options.task} --data {options.out} --arm journey")
    return 0


def check(telling: Telling) -> None:
    """Refuse what there is not.

    Raises:
        UserError: no journey, phrases or match has such a name, or a change does not fit.
    """
    find_journey(telling.journey)
    find_phrases(telling.phrases)
    check_choice("match", telling.match, MATCHES)


def make_twins(task: StepTask, problems: Sequence[Problem], telling: Telling, format: Format, seed: int) -> list[Twin]:
    """A journey and its shortcut for each problem, by the task's own moves.

    Raises:
        UserError: see `check`.
    """
    rules, phrases = find_journey(telling.journey), find_phrases(telling.phrases)
    made: list[Twin] = []
    with steps_bar("journeys") as (_, on_step):
        for twin in twins(problems, task, rules, format, phrases, seed):
            made.append(twin)
            on_step(len(made), len(problems))
    return made


def journey_views(
    task: StepTask, problems: Sequence[Problem], telling: Telling, format: Format, seed: int
) -> list[JourneyView]:
    """The journeys that `make_twins` makes of these problems, for a page."""
    rules, phrases, state = find_journey(telling.journey), find_phrases(telling.phrases), state_of(task)
    trees = [grow(problem, task, rules, seed) for problem in problems]
    return [JourneyView.of(tell(walk(tree, rules, seed), format, phrases, state), format) for tree in trees]


def summary(arms: Arms) -> str:
    """Both arms side by side, as a table."""
    lines = [("arm", "texts", "problems", "passes", "tokens", "tokens of a text", "dead ends of a text")]
    for arm in (arms.journey, arms.shortcut):
        told = arm.summary
        lines.append(
            (
                arm.name,
                f"{told['examples']:,}",
                f"{told['problems']:,}",
                f"{told['passes']}",
                f"{told['tokens']:,}",
                f"{told['mean_tokens']:,.1f}",
                f"{told['mean_dead_ends']:.2f}",
            )
        )
    return f"matched by {arms.match}; tokens are bytes\n\n{aligned(lines)}"
