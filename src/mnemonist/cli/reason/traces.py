"""``mnemonist reason traces``, and the journeys that others learn from."""

from __future__ import annotations

from collections.abc import Sequence

from mnemonist.cli.eval import steps_bar
from mnemonist.cli.reason.material import draw, step_task
from mnemonist.cli.reason.options import Telling, Traces
from mnemonist.cli.reason.pages import aligned, command, facts_of
from mnemonist.cli.reason.policies import server_sampler
from mnemonist.cli.train import prepare_torch, say
from mnemonist.files import require_writable
from mnemonist.reasoning.arms import MATCHES, Arms, match_arms
from mnemonist.reasoning.attempts import Decoding
from mnemonist.reasoning.formats import Format, find_format
from mnemonist.reasoning.growing import PREFERENCES
from mnemonist.reasoning.journey import find_journey
from mnemonist.reasoning.journey_text import Telling as Draft
from mnemonist.reasoning.journey_text import Twin, find_phrases, make_twin, tell, tellings, twins
from mnemonist.reasoning.ledger import Ledger
from mnemonist.reasoning.remembering import Remembering
from mnemonist.reasoning.rewriting import REQUEST, STRAIGHT_REQUEST, rewrite
from mnemonist.reasoning.sampling import ServerSampler
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
    asked = options.rewriter
    server = None
    if asked.server is not None:
        server = server_sampler(asked.server, asked.server_model, asked.batch_size, asked.waiting, chat=asked.chat)
    prepare_torch()
    shown: Sequence[Draft] = ()
    if server is not None:
        shown, straight = rewritten(drafts_of(task, problems, options.telling, format, options.seed), server, options)
        made = [make_twin(journey, task, format, short) for journey, short in zip(shown, straight, strict=True)]
    else:
        made = make_twins(task, problems, options.telling, format, options.seed)
        if options.page is not None:
            shown = drafts_of(task, problems[:SHOWN], options.telling, format, options.seed)
    arms = match_arms(made, options.telling.match, seed=options.seed)
    save_rows(options.out, (example.to_json() for arm in (arms.journey, arms.shortcut) for example in arm.examples))
    print(summary(arms))
    if not arms.journey.mean_dead_ends:
        say(
            f"no journey goes astray: {task.name} has no wrong steps there, or the rules enter none; the arms are alike"
        )
    if options.page is not None:
        views = [JourneyView.of(telling, format) for telling in shown[:SHOWN]]
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
    check_choice("order", telling.order, PREFERENCES)
    check_choice("match", telling.match, MATCHES)


def make_twins(task: StepTask, problems: Sequence[Problem], telling: Telling, format: Format, seed: int) -> list[Twin]:
    """A journey and its shortcut for each problem, by the task's own moves.

    Raises:
        UserError: see `check`.
    """
    rules, phrases = find_journey(telling.journey), find_phrases(telling.phrases)
    made: list[Twin] = []
    with steps_bar("journeys") as (_, on_step):
        for twin in twins(problems, task, rules, format, phrases, seed, prefer=PREFERENCES[telling.order]):
            made.append(twin)
            on_step(len(made), len(problems))
    return made


def drafts_of(task: StepTask, problems: Sequence[Problem], telling: Telling, format: Format, seed: int) -> list[Draft]:
    """The journeys that `make_twins` makes of these problems, line by line."""
    rules, phrases = find_journey(telling.journey), find_phrases(telling.phrases)
    return list(tellings(problems, task, rules, format, phrases, seed, prefer=PREFERENCES[telling.order]))


def journey_views(
    task: StepTask, problems: Sequence[Problem], telling: Telling, format: Format, seed: int
) -> list[JourneyView]:
    """The same for a page."""
    return [JourneyView.of(told, format) for told in drafts_of(task, problems, telling, format, seed)]


def rewritten(drafts: Sequence[Draft], server: ServerSampler, options: Traces) -> tuple[list[Draft], list[Draft]]:
    """Journeys and their shortcuts as a server's model puts them.

    What it says is kept beside the file of the traces: the same command goes on where it was stopped.

    Raises:
        UserError: the server fails, or the file beside is of another kind.
    """
    asked, format = options.rewriter, find_format(options.asked.format)
    decoding = Decoding(max_tokens=asked.rewritten_tokens, temperature=asked.temperature, seed=options.seed)
    kept = options.out.with_name(f"{options.out.stem}.rewritten.jsonl")
    remembering, ledger, results = Remembering(server, kept), Ledger(), []
    straight = [tell(draft.journey.shortcut(), format) for draft in drafts]
    for name, texts, request in (("journeys", drafts, REQUEST), ("shortcuts", straight, STRAIGHT_REQUEST)):
        with steps_bar(f"rewriting {name}") as (_, remembering.on_attempts):
            result = rewrite(texts, remembering, format, decoding, ledger, request)
        damaged = "; ".join(f"{count:,} because {why}" for why, count in result.kept.items())
        say(
            f"{result.rewritten:,} of {len(texts):,} {name} rewritten"
            + (f"; kept as they were: {damaged}" * bool(damaged))
        )
        results.append(list(result.tellings))
    say(f"{ledger.generated_tokens:,} tokens written by {server.name}, kept in {kept}")
    return results[0], results[1]


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
