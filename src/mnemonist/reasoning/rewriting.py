"""Rewriting: drafts of journeys that a larger model makes read like one train of thought.

O1 Replication Journey part 1 found raw drafts hard to learn from and had each rewritten, "keeping every step". Here
that is checked: a rewritten text counts only if every step of its draft, right or astray, still stands in it as it was
and in the same order; otherwise the draft is kept and counted. The answer is never left to the rewriter. Whoever
compares journeys with shortcuts rewrites both, or the difference may be the rewriter's.

Rewriting takes long or costs money: `Remembering` around the rewriter writes down what it says.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mnemonist.errors import UserError
from mnemonist.reasoning.attempts import Decoding, Sampler
from mnemonist.reasoning.formats import Format
from mnemonist.reasoning.journey_text import Line, Telling
from mnemonist.reasoning.ledger import Ledger

_REQUEST = """\
Below is the draft of a solution.{about}
Make it read like the thoughts of one person. Keep every step of the list exactly as it is written{which},
each once and in the same order; put what you add on lines between them. Do not give the answer.

Problem:
{{question}}

Draft:
{{draft}}

Steps to keep:
{{steps}}

Rewritten:
"""
REQUEST = _REQUEST.format(
    about=" It tries things, finds out that some of them cannot work, and goes back.", which=", the wrong ones too"
)
"""What a rewriter is asked: ``{question}``, ``{draft}`` and ``{steps}`` are filled in."""
STRAIGHT_REQUEST = _REQUEST.format(about="", which="")
"""The same for shortcuts."""


@dataclass(frozen=True)
class Rewriting:
    """What became of the drafts."""

    tellings: tuple[Telling, ...]
    """One for each draft, in their order: rewritten, or the draft itself."""
    rewritten: int
    kept: Mapping[str, int]
    """How many drafts were kept, by why."""


def rewrite(
    drafts: Sequence[Telling],
    sampler: Sampler,
    format: Format,
    decoding: Decoding | None = None,
    ledger: Ledger | None = None,
    request: str = REQUEST,
) -> Rewriting:
    """Have drafts rewritten, and keep those that come back damaged.

    Args:
        drafts: tellings of journeys or of shortcuts.
        sampler: asked once for each draft.
        format: the texts will be written in; a rewriter must not use its marks.
        decoding: of the rewriter.
        ledger: charged with what it costs.
        request: what is asked, see `REQUEST`.

    Raises:
        UserError: the request has no place for the draft, or the sampler fails.
    """
    if "{draft}" not in request:
        raise UserError("the request to the rewriter has no {draft} in it, so it would not see what to rewrite")
    prompts = [_fill(request, draft) for draft in drafts]
    attempts = sampler.sample(prompts, decoding or Decoding(max_tokens=2048), ledger) if prompts else []
    tellings: list[Telling] = []
    kept: Counter[str] = Counter()
    for draft, attempt in zip(drafts, attempts, strict=True):
        found = "it was cut off" if attempt.finish == "length" else _read(draft, attempt.text, format)
        if isinstance(found, str):
            kept[found] += 1
        tellings.append(draft if isinstance(found, str) else replace(draft, lines=found))
    return Rewriting(tuple(tellings), len(drafts) - kept.total(), dict(kept))


def _fill(request: str, draft: Telling) -> str:
    parts = {
        "question": draft.problem.question,
        "draft": "\n".join(draft.texts),
        "steps": "\n".join(line.text for line in draft.lines if line.kind == "step"),
    }
    return re.sub(r"\{(question|draft|steps)\}", lambda found: parts[found[1]], request)


def _read(draft: Telling, text: str, format: Format) -> tuple[Line, ...] | str:
    """The lines of a rewritten draft; or why they cannot be used."""
    steps = [line for line in draft.lines if line.kind == "step"]
    lines: list[Line] = []
    at = 0
    last = Line("", "said", 0, False)
    for said in (" ".join(line.split()) for line in text.splitlines()):
        if not said:
            continue
        position, kind = 0, "said"
        while at < len(steps) and (found := _whole(steps[at].text).search(said, position)):
            last, position, kind = steps[at], found.end(), "step"
            at += 1
        lines.append(Line(said, "step" if kind == "step" else "said", last.node, last.astray))
    if at < len(steps):
        return "a step is missing"
    try:
        whole = format.write([line.text for line in lines], draft.journey.answer)
    except ValueError:
        return "it has marks of the format"
    parsed = format.parse(whole)
    if not parsed.well_formed or list(parsed.steps) != [line.text for line in lines]:
        return "it has marks of the format"
    return tuple(lines)


def _whole(step: str) -> re.Pattern[str]:
    """The step as it stands, not as a part of longer numbers or words."""
    words = r"\s+".join(re.escape(word) for word in step.split())
    return re.compile(rf"(?<!\w){words}(?!\w)")
