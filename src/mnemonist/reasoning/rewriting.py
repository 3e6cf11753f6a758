"""Rewriting: drafts of journeys that a larger model makes read like one train of thought.

O1 Replication Journey part 1 found raw drafts hard to learn from and had each rewritten, "keeping every step". Here
that is checked: a rewritten text counts only if every step of its draft, right or astray, still stands in it as it was
and in the same order; otherwise the draft is kept and counted. The answer is never left to the rewriter. Whoever
compares journeys with shortcuts rewrites both, or the difference may be the rewriter's.

Rewriting takes long or costs money, so `Remembering` writes down what a rewriter says as soon as it has said it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mnemonist.errors import UserError
from mnemonist.files import append_lines, cut_unfinished_line
from mnemonist.reasoning.attempts import Attempt, Decoding, Finish, Sampler
from mnemonist.reasoning.formats import Format
from mnemonist.reasoning.journey_text import Line, Telling
from mnemonist.reasoning.ledger import Ledger
from mnemonist.reasoning.sampling.server import SamplingFailed

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


class Remembering:
    """A sampler that asks another one for what its file does not say yet, and adds to the file what it is told.

    The file has a line of JSON for each attempt: a digest of what was asked, and how; the text, and how it ended.

    Args:
        sampler: who is asked.
        path: the file; it need not be there.
        piece: prompts that are asked at a time, and lost together if the process dies.
        on_attempts: called with how many of how many prompts have their attempts.

    Raises:
        UserError: the file cannot be read, or is another kind of file.
    """

    def __init__(
        self, sampler: Sampler, path: Path, piece: int = 32, on_attempts: Callable[[int, int], None] | None = None
    ) -> None:
        self.sampler, self.path, self.piece, self.on_attempts = sampler, path, piece, on_attempts
        self.known: dict[str, tuple[str, Finish]] = {}
        try:
            if path.exists():
                cut_unfinished_line(path)
                for line in path.read_text(encoding="utf-8").splitlines():
                    row = json.loads(line)
                    self.known[row["asked"]] = (row["text"], row["finish"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is no file of rewritten drafts ({type(error).__name__}: {error}); move it away"
            ) from error

    @property
    def name(self) -> str:
        """That of the sampler."""
        return self.sampler.name

    def sample(self, prompts: Sequence[str], decoding: Decoding, ledger: Ledger | None = None) -> list[Attempt]:
        """One attempt for each prompt, see `Sampler`; equal prompts have the same one. Only new ones are charged."""
        how = [self.name, *map(repr, dataclasses.astuple(decoding))]
        keys = [hashlib.sha256(json.dumps([*how, prompt]).encode()).hexdigest()[:24] for prompt in prompts]
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self.known}
        done = len(prompts) - len(missing)
        waiting = iter(missing.items())
        if self.on_attempts is not None:
            self.on_attempts(done, len(prompts))
        while piece := list(itertools.islice(waiting, self.piece)):
            asked = [prompt for _, prompt in piece]
            try:
                self._keep(zip((key for key, _ in piece), self.sampler.sample(asked, decoding, ledger), strict=True))
            except SamplingFailed as failed:
                self._keep((piece[number][0], attempt) for number, attempt in failed.attempts.items())
                raise
            done += len(piece)
            if self.on_attempts is not None:
                self.on_attempts(done, len(prompts))
        return [
            Attempt(prompt, self.known[key][0], finish=self.known[key][1])
            for key, prompt in zip(keys, prompts, strict=True)
        ]

    def _keep(self, told: Iterable[tuple[str, Attempt]]) -> None:
        new = {key: (attempt.text, attempt.finish) for key, attempt in told}
        self.known |= new
        append_lines(
            self.path,
            (json.dumps({"asked": key, "text": text, "finish": finish}) for key, (text, finish) in new.items()),
        )


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
