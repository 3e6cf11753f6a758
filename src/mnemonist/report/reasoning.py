"""What a run of the outer loop did, as one page.

Accuracy alone does not say why. So the page shows what was thought: the trees that were searched, discarded
branches included; journeys beside their shortcut twins; what the policy wrote, round by round, to be filtered
by right and wrong and by the words that long thoughts are known by; and what all of it cost.

    write_reasoning(path, ReasoningPage("Countdown", trees=(...), rollouts=(...), ledgers=(...)))

Every part is optional. A page is never larger than a few megabytes: what does not fit is left out in the order
given, and the page says how much that was.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, TypeVar

from mnemonist.files import write_atomically
from mnemonist.reasoning.journey_text import Line, Telling
from mnemonist.reasoning.ledger import Ledger
from mnemonist.reasoning.tree import Tree

from .line_plot import HALF, WIDE, Plot, Size, draw_plot
from .page import hidden_unless, render_page
from .reasoning_data import (
    ROOM,
    pack_journey,
    pack_rollout,
    pack_tree,
    say_cut,
    shares_of_words,
    thin,
    within,
)
from .shading import LEVELS

WORDS = ("wait", "but", "alternatively", "no", "back")
"""That rollouts can be filtered by, unless the page names others."""

NONE = "\N{EN DASH}"
"""Stands in a table where there is no number."""

Packed = TypeVar("Packed")


@dataclass(frozen=True)
class JourneyView:
    """A journey beside its shortcut.

    Attributes:
        title: what it is called in the list of journeys.
        question: the problem.
        lines: of the journey.
        shortcut: of its twin, in order.
        answer: of both.
    """

    title: str
    question: str
    lines: tuple[Line, ...]
    shortcut: tuple[str, ...]
    answer: str

    @classmethod
    def of(cls, telling: Telling, shortcut: Telling) -> "JourneyView":
        """A telling beside that of its shortcut."""
        journey = telling.journey
        title = f"{telling.problem.id} · {journey.rules.spec} · seed {journey.seed}"
        return cls(title, telling.problem.question, telling.lines, tuple(shortcut.texts), journey.answer)


@dataclass(frozen=True)
class Rollout:
    """One text that a policy wrote.

    Attributes:
        text: what was written.
        right: whether its answer is right; None if nobody judged it.
        problem: name of the problem.
        question: what was asked.
        answer: as it was read from the text; None if there was none.
        expected: a right answer; empty if none is known.
        tokens: written.
        reward: that it got.
        group: what it belongs to, such as "round 3"; groups are compared.
    """

    text: str
    right: bool | None = None
    problem: str = ""
    question: str = ""
    answer: str | None = None
    expected: str = ""
    tokens: int = 0
    reward: float | None = None
    group: str = ""


@dataclass(frozen=True)
class ReasoningPage:
    """One page.

    Attributes:
        title: heading.
        figures: headline figures, as (label, value).
        scaling: accuracy against compute, a line for each method.
        ledgers: what each method spent, by its name.
        curves: what changed while training, a plot for each metric.
        trees: searches, each at most a few thousand nodes.
        journeys: journeys and their twins.
        rollouts: texts of the policy.
        words: that rollouts are counted and filtered by.
        facts: what was run, as (name, value).
        command: the command that repeats it; empty if there is none.
    """

    title: str
    figures: tuple[tuple[str, str], ...] = ()
    scaling: tuple[Plot, ...] = ()
    ledgers: Mapping[str, Ledger] = field(default_factory=dict)
    curves: tuple[Plot, ...] = ()
    trees: tuple[Tree, ...] = ()
    journeys: tuple[JourneyView, ...] = ()
    rollouts: tuple[Rollout, ...] = ()
    words: tuple[str, ...] = WORDS
    facts: tuple[tuple[str, str], ...] = ()
    command: str = ""


def write_reasoning(path: str | os.PathLike[str], page: ReasoningPage) -> None:
    """Write `page` to `path` as one HTML file, whole or not at all.

    Raises:
        FileError: when `path` cannot be written.
    """
    # A model of bytes may have written half a character: a title with one must not keep the page from disk.
    write_atomically(path, render_reasoning(page).encode("utf-8", "replace"))


def render_reasoning(page: ReasoningPage) -> str:
    """The page as HTML."""
    notes: dict[str, str] = {}
    data = {
        "levels": LEVELS,
        "words": list(page.words),
        "trees": _fitting("trees", page.trees, pack_tree, notes),
        "journeys": _fitting("journeys", page.journeys, pack_journey, notes),
        "rollouts": _fitting("rollouts", page.rollouts, pack_rollout, notes),
    }
    scaling, scaling_marks = _draw(page.scaling, dots=True)
    curves, curve_marks = _draw(page.curves, dots=False)
    parts = {
        "scaling": scaling,
        "curves": curves,
        "ledgers": _ledger_rows(page.ledgers),
        "groups": _group_table(page.rollouts, page.words),
        "trees_note": notes["trees"],
        "journeys_note": notes["journeys"],
        "rollouts_note": notes["rollouts"],
        "scaling_hidden": hidden_unless([*page.scaling, *page.ledgers]),
        "ledgers_hidden": hidden_unless(list(page.ledgers)),
        "curves_hidden": hidden_unless(page.curves),
        "trees_hidden": hidden_unless(page.trees),
        "journeys_hidden": hidden_unless(page.journeys),
        "rollouts_hidden": hidden_unless(page.rollouts),
    }
    return render_page(
        "reasoning",
        "reasoning",
        title=page.title,
        figures=page.figures,
        facts=page.facts,
        command=page.command,
        parts=parts,
        data={**data, "plots": [*scaling_marks, *curve_marks]},
    )


def _fitting(
    what: str, items: Sequence[Packed], pack: Callable[[Packed], dict[str, Any]], notes: dict[str, str]
) -> list[dict[str, Any]]:
    """As many as there is room for, and a note if that is not all."""
    kept = within(ROOM[what], (pack(item) for item in items))
    cut = sum(each["cut"] for each in kept)
    notes[what] = "".join(f'<p class="note">{escape(said)}</p>' for said in say_cut(what, len(items), len(kept), cut))
    return kept


def _draw(plots: Sequence[Plot], *, dots: bool) -> tuple[str, list[dict[str, Any]]]:
    """Drawings beside each other, or one across the page, and what the pointer needs of each."""
    size = WIDE if len(plots) == 1 else HALF
    drawn = [_figure(plot, size, dots) for plot in plots]
    return "\n".join(html for html, _ in drawn), [geometry for _, geometry in drawn]


def _figure(plot: Plot, size: Size, dots: bool) -> tuple[str, dict[str, Any]]:
    svg, geometry = draw_plot(thin(plot), size, dots=dots)
    banded = any(series.low is not None for series in plot.series)
    caption = " ".join(part for part in (plot.caption, "Bands are 95 % intervals." if banded else "") if part)
    return (
        f'<figure class="lines {"" if size == WIDE else "half"}"><h3>{escape(plot.title)}</h3>'
        f'<div class="plot-frame">{svg}<div class="tip" role="status" hidden></div></div>'
        f"<figcaption {hidden_unless(caption)}>{escape(caption)}</figcaption></figure>",
        geometry,
    )


def _ledger_rows(ledgers: Mapping[str, Ledger]) -> str:
    rows = []
    for name, ledger in ledgers.items():
        written = ledger.generated_tokens
        discarded = f"{100 * ledger.discarded_tokens / written:.0f} %" if written else NONE
        cells = (
            f"{ledger.prompt_tokens:,}",
            f"{written:,}",
            discarded,
            f"{ledger.reward_tokens:,}",
            f"{ledger.tokens:,}",
            f"{ledger.calls:,}",
            _power(ledger.flops) if ledger.flops else NONE,
            f"{ledger.seconds:,.1f}",
        )
        rows.append(_table_row(name, cells))
    return "\n".join(rows)


def _power(number: float) -> str:
    mantissa, _, exponent = f"{number:.2e}".partition("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa}·10{raised}"


def _group_table(rollouts: Sequence[Rollout], words: Sequence[str]) -> str:
    """What groups of rollouts have in common, side by side."""
    names = list(dict.fromkeys(rollout.group for rollout in rollouts))
    if not rollouts:
        return ""
    rows = []
    for name in names:
        group = [rollout for rollout in rollouts if rollout.group == name]
        judged = [rollout.right for rollout in group if rollout.right is not None]
        right = f"{100 * sum(judged) / len(judged):.1f} %" if judged else NONE
        tokens = f"{sum(rollout.tokens for rollout in group) / len(group):,.0f}"
        shares = (f"{100 * share:.0f} %" for share in shares_of_words([each.text for each in group], words))
        rows.append(_table_row(name or "all", (f"{len(group):,}", right, tokens, *shares)))
    columns = ("rollouts", "right", "mean tokens", *(f"with “{word}”" for word in words))
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    return (
        '<div class="scrolls"><table class="numbers"><caption>Groups</caption>'
        f'<thead><tr><th scope="col"></th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _table_row(name: str, cells: Iterable[str]) -> str:
    filled = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f'<tr><th scope="row">{escape(name)}</th>{filled}</tr>'
