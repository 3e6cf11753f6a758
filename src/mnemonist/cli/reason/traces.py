"""``mnemonist reason traces``, and the journeys that others learn from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from mnemonist.cli.eval import steps_bar
from mnemonist.cli.process import prepare_torch, say
from mnemonist.cli.reason.material import draw, step_task
from mnemonist.cli.reason.options import Telling, Traces
from mnemonist.cli.reason.pages import aligned, command, facts_of
from mnemonist.cli.reason.policies import server_sampler
from mnemonist.cli.text import choose_tokenizer
from mnemonist.errors import UserError
from mnemonist.files import require_writable
from mnemonist.reasoning.arms import MATCHES, Arms, CountTokens, match_arms
from mnemonist.reasoning.attempts import Decoding
from mnemonist.reasoning.completions import RowMaker
from mnemonist.reasoning.formats import Format, find_format
from mnemonist.reasoning.growing import PREFERENCES, with_truth
from mnemonist.reasoning.journey import find_journey, walk
from mnemonist.reasoning.journey_text import Telling as Draft
from mnemonist.reasoning.journey_text import Twin, find_phrases, goal_of, make_twin, state_of, tell, tellings
from mnemonist.reasoning.ledger import Ledger
from mnemonist.reasoning.remembering import Remembering
from mnemonist.reasoning.rewriting import REQUEST, STRAIGHT_REQUEST, rewrite
from mnemonist.reasoning.sampling import ServerSampler
from mnemonist.reasoning.search.lockstep import check_choice
from mnemonist.reasoning.tasks import Problem, StepTask, Task, build_task, save_rows
from mnemonist.reasoning.tree import Tree, load_trees
from mnemonist.report import JourneyView, ReasoningPage, write_reasoning

Pair = tuple[Draft, Draft]
"""A journey and its shortcut."""
SHOWN = 20
"""Journeys on a page."""


def run_traces(options: Traces) -> int:
    """Make journeys and shortcuts, write both arms, say how much of what is in them."""
    task, format = build_task(options.task), find_format(options.asked.format)
    check(options.telling)
    if options.trees is None:
        steps = step_task(task, "making journeys without --trees")
        problems = draw(task, options.split, options.asked.difficulty, options.count)
        drafts, count = drafts_of(steps, problems, options.telling, format, options.seed), len(problems)
    else:
        walked = walks_of(options.trees, task, options, format)
        drafts, count = iter(walked), len(walked)
    for path in (options.out, *([options.page] if options.page is not None else [])):
        require_writable(path)
    asked = options.rewriter
    prepare_torch()
    tokenizer = choose_tokenizer(options.tokenizer)
    if asked.server is None:
        pairs = beside_steps(drafts, format)
    else:
        server = server_sampler(asked.server, asked.server_model, asked.batch_size, asked.waiting, chat=asked.chat)
        pairs = rewritten(list(drafts), server, options)
    shown = list(islice(pairs, SHOWN))
    made = make_twins(chain(shown, pairs), count, task, format)
    arms = match_arms(made, options.telling.match, seed=options.seed, tokens=tokens_of(tokenizer))
    save_rows(options.out, (example.to_json() for arm in (arms.journey, arms.shortcut) for example in arm.examples))
    print(summary(arms, "bytes" if options.tokenizer is None else f"those of {options.tokenizer}"))
    if not arms.journey.mean_dead_ends:
        say(
            f"no journey goes astray: {task.name} has no wrong steps there, or the rules enter none; the arms are alike"
        )
    if options.page is not None:
        views = [JourneyView.of(*pair) for pair in shown]
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


def drafts_of(
    task: StepTask, problems: Sequence[Problem], telling: Telling, format: Format, seed: int
) -> Iterator[Draft]:
    """A journey for each problem, by the task's own moves.

    Raises:
        UserError: see `check`.
    """
    rules, phrases = find_journey(telling.journey), find_phrases(telling.phrases)
    return tellings(problems, task, rules, format, phrases, seed, prefer=PREFERENCES[telling.order])


def walks_of(path: Path, task: Task, options: Traces, format: Format) -> list[Draft]:
    """Journeys through the trees of a search; how many of these there are no journeys through is said in a line.

    Raises:
        UserError: the file cannot be read, its trees are of another task or format, or none of them can be told.
    """
    rules, phrases = find_journey(options.telling.journey), find_phrases(options.telling.phrases)
    drafts: list[Draft] = []
    left_out: Counter[str] = Counter()
    for tree in load_trees(path):
        require_fit(tree, path, task, format)
        if tree.problem.split != options.split:
            left_out[f"of split {tree.problem.split}"] += 1
        elif not any(node.right for node in tree.nodes):
            left_out["without a right answer"] += 1
        else:
            known = with_truth(tree, task, format)
            walked, state, goal = walk(known, rules, options.seed), state_of(task), goal_of(task, tree.problem)
            draft = tell(walked, format, phrases, state, goal)
            try:
                make_twin(draft, task, format)
            except UserError:  # a policy may have written what no text of the format can hold
                left_out[f"that format {format.name} cannot hold"] += 1
            else:
                drafts.append(draft)
    told = "; ".join(f"{count:,} {why}" for why, count in left_out.items())
    if not drafts:
        raise UserError(
            f"no tree in {path} can be told ({told or 'it is empty'}); search longer, solve problems of split "
            f"{options.split}, or name another one with --split"
        )
    if left_out:
        say(f"left out of {path}: trees {told}")
    return drafts


def require_fit(tree: Tree, path: Path, task: Task, format: Format) -> None:
    """Make sure that a tree is about the task, and that its texts have the marks of the format.

    Raises:
        UserError: they do not.
    """
    if tree.problem.task != task.name:
        raise UserError(f"the trees in {path} are of task {tree.problem.task}, not {task.name}; name theirs")
    written = str(tree.settings.get("format", format.name)).partition(" (")[0]
    if written != format.name and tree.settings.get("proposer") != "moves":  # which have no marks
        raise UserError(f"the trees in {path} are of format {written}, not {format.name}; take --format {written}")


def beside_steps(drafts: Iterable[Draft], format: Format) -> Iterator[Pair]:
    """Journeys, each with its shortcut told in the steps alone."""
    return ((draft, tell(draft.journey.shortcut(), format)) for draft in drafts)


def make_twins(pairs: Iterable[Pair], count: int, task: Task, format: Format) -> list[Twin]:
    """So many journeys and their shortcuts as texts, judged again."""
    made: list[Twin] = []
    with steps_bar("journeys") as (_, on_step):
        for journey, shortcut in pairs:
            made.append(make_twin(journey, task, format, shortcut))
            on_step(len(made), count)
    return made


def tokens_of(tokenizer: Any) -> CountTokens:
    """Counts what a model with this tokenizer is trained on: a completion with the end mark."""
    maker = RowMaker(tokenizer)
    return lambda prompt, completion: len(maker.of_text(prompt, completion).completion)


def journey_views(
    task: StepTask, problems: Sequence[Problem], telling: Telling, format: Format, seed: int
) -> list[JourneyView]:
    """The same for a page."""
    drafts = drafts_of(task, problems, telling, format, seed)
    return [JourneyView.of(*pair) for pair in beside_steps(drafts, format)]


def rewritten(drafts: Sequence[Draft], server: ServerSampler, options: Traces) -> Iterator[Pair]:
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
    return zip(*results, strict=True)


def summary(arms: Arms, tokens: str) -> str:
    """Both arms side by side, as a table that says what its tokens are."""
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
    return f"matched by {arms.match}; tokens are {tokens}\n\n{aligned(lines)}"
