"""The doctor: looks at what a round has sampled and measured, and says what is wrong and what to change.

Most rounds that fail do so in one of a few ways, and each leaves a trace in the attempts long before anyone plots a
curve: nothing to compare (every group all right or all wrong), answers that cannot be read, texts that never end,
a policy that has lost its choice, and rewards earned without doing what they were meant for. The checks are pure
functions of plain rows, as the files of a round have them; limits are rules of thumb, and named. Nothing here needs
torch.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnemonist.errors import UserError
from mnemonist.reasoning.rounds import BASE, IDENTITY

Row = Mapping[str, Any]
"""A line of a file of attempts (`weighing.Judged.to_json`), or of metrics."""

FEW = 8
"""Attempts, or steps, of which nothing can be said yet."""
MANY_EQUAL = 0.5
"""Share of groups whose rewards are all equal."""
MANY_UNREADABLE = 0.2
"""Share of attempts without an answer that can be read."""
MANY_CUT = 0.2
"""Share of attempts that were cut off."""
MANY_HACKED = 0.5
"""Share of right attempts without a thought."""
MORE_THAN_TRUE = 0.3
"""By how much an answer is commoner than it should be."""
MANY_LOOPS, TIMES = 0.2, 4
"""Share of attempts that write one line so many times."""
LITTLE_CHOICE = 0.25
"""What is left of the entropy that a run began with."""
NO_RISE = 0.02
"""Rewards that rise by less have not risen."""
STILL_APART = 0.9
"""Divergences from a teacher that keep more than this share have not fallen."""
MUCH_CLIPPED = 0.3
"""Share of tokens whose gradient was cut off."""

_MORE = "take more problems (--count) or epochs"
_DYNAMIC = ", or turn dynamic sampling on (dynamic=true)"


@dataclass(frozen=True)
class Finding:
    """Something that is wrong."""

    name: str
    """The same for the same trouble, for those who filter."""
    what: str
    """What was seen, in numbers."""
    advice: str
    """What to change."""

    def __str__(self) -> str:
        return f"{self.name}: {self.what}; {self.advice}"


def examine(
    attempts: Sequence[Row] = (),
    metrics: Sequence[Row] = (),
    *,
    static: bool = False,
    taught: bool = False,
    fitted: bool = False,
) -> list[Finding]:
    """All findings about attempts of one moment, and about the metrics of all moments so far.

    Args:
        attempts: weighed ones, groups side by side.
        metrics: lines in the order of steps.
        static: whether they are of a policy gradient without dynamic sampling, which may be turned on.
        taught: whether a teacher judges every token, so that rewards teach nothing and entropies go where it has them.
        fitted: whether texts are fitted to by their likelihood, so that rewards teach nothing.
    """
    paid = not (taught or fitted)
    found: list[Finding | None] = []
    if len(attempts) >= FEW:
        found += [
            None if taught else _no_comparison(attempts, static),
            *(check(attempts, paid) for check in _OF_ATTEMPTS),
        ]
    if len(metrics) >= FEW and taught:
        found += [_no_approach(metrics)]
    elif len(metrics) >= FEW:
        found += [_collapse(metrics), _no_rise(metrics, static), *(check(metrics) for check in _OF_METRICS)]
    return [one for one in found if one is not None]


def examine_folder(folder: str | Path) -> list[Finding]:
    """All findings about a round: its metrics, and the attempts of its latest iteration.

    Raises:
        UserError: there is no round, or a file of it cannot be read.
    """
    folder = Path(folder)
    round_ = _round(folder)
    objective = round_.get("objective") or {}
    files = sorted((folder / "attempts").glob("[0-9]*.jsonl"))[-1:]  # of a policy gradient
    if not files:
        files = next((own for p in _iterations(folder) if (own := sorted((p / "attempts").glob("*.jsonl")))), [])
    attempts = [row for path in files for row in _lines(path)]
    metrics = folder / "metrics.jsonl"
    static = not objective.get("dynamic", True)
    return examine(attempts, _lines(metrics) if metrics.exists() else [], static=static, **_teaches_by(round_))


def examine_validation(folder: str | Path) -> list[Finding]:
    """All findings about what was answered in validation with the weights that a round has left.

    Raises:
        UserError: a file of it cannot be read.
    """
    path = validation_of(folder)
    if path is None:
        return []
    round_ = _round(Path(folder)) if (Path(folder) / IDENTITY).exists() else {}
    return examine(_lines(path), (), **_teaches_by(round_))


def _teaches_by(round_: Row) -> dict[str, bool]:
    """What `examine` has to know of how a round is taught."""
    return {"taught": round_.get("weight") == "teacher", "fitted": round_.get("weight") in ("one", "right")}


def validation_of(folder: str | Path) -> Path | None:
    """The file of what was answered in validation with the weights that a round has left; None if there is none.

    Raises:
        UserError: the metrics cannot be read.
    """
    folder = Path(folder)
    iterations = kept_iterations(folder)
    places = [folder, *iterations]
    if not iterations and _iterations(folder):  # none was better than the policy before
        places.append(folder / BASE)
    return next((own for place in places if (own := place / "validation.jsonl").exists()), None)


def kept_iterations(folder: str | Path) -> list[Path]:
    """Folders of the iterations of a round with long fits that validation has not turned down, the latest first.

    Raises:
        UserError: the metrics cannot be read.
    """
    metrics = Path(folder) / "metrics.jsonl"
    lines = _lines(metrics) if metrics.exists() else []
    discarded = {line.get("iteration") for line in lines if line.get("kept") is False}
    return [path for path in _iterations(Path(folder)) if int(path.name) not in discarded]


def rounds_in(folder: str | Path) -> dict[str, Path]:
    """Folders of the rounds of a run, by name and in their order: the folder itself, or those in that of a recipe.

    Raises:
        UserError: there is no round, or a file of it cannot be read.
    """
    folder = Path(folder)
    files = [*folder.glob(IDENTITY), *sorted(folder.glob(f"[0-9]-*/{IDENTITY}"))]
    if not files:
        raise UserError(f"there is no round in {folder}; give the folder of a run")
    return {_round(path.parent).get("name", path.parent.name): path.parent for path in files}


def _round(folder: Path) -> Row:
    """The choices of a round."""
    path = folder / IDENTITY
    if not path.exists():
        raise UserError(f"there is no round in {folder}; give the folder of a run")
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("round", {})
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error


def _iterations(folder: Path) -> list[Path]:
    """Folders of the iterations of a round with long fits, the latest first."""
    return sorted((p for p in folder.glob("[0-9]*") if p.name.isdecimal()), key=lambda p: -int(p.name))


def _lines(path: Path) -> list[Row]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} cannot be read (a line is no object)")
    return rows


def examine_targets(targets: Iterable[Sequence[int]], end: int) -> list[Finding]:
    """Whether what is fitted to teaches a policy to stop.

    Args:
        targets: of each completion, the tokens that the loss asks for.
        end: the end mark.
    """
    rows = list(targets)
    without = sum(end not in row for row in rows)
    if not rows or without < len(rows):
        return []
    return [
        Finding(
            "no-end-mark",
            f"none of {len(rows)} completions has the end mark {end} among its targets",
            "a policy fitted to them never stops: put the mark behind every completion, and mask padding by place, not "
            "by its token, which may be the end mark as well",
        )
    ]


# Of attempts; `paid` says whether rewards teach, so that there is something to change about them.


def _no_comparison(attempts: Sequence[Row], static: bool) -> Finding | None:
    groups = [list(group) for _, group in itertools.groupby(attempts, key=lambda row: row["problem"])]
    groups = [group for group in groups if len(group) > 1]
    equal = [group for group in groups if len({round(row["reward"], 6) for row in group}) == 1]
    if not groups or len(equal) <= MANY_EQUAL * len(groups):
        return None
    wrong = sum(not group[0]["right"] for group in equal)
    advice = (
        "take easier problems, distil first, raise the temperature, or give more attempts to each"
        if 2 * wrong >= len(equal)
        else "take harder problems, or raise the temperature"
    )
    return Finding(
        "no-comparison",
        f"in {len(equal)} of {len(groups)} groups all rewards are equal ({wrong} of them all wrong), so they teach "
        "nothing",
        f"{advice}{_DYNAMIC if static else ''}",
    )


def _unreadable(attempts: Sequence[Row], paid: bool) -> Finding | None:
    share = _share(attempts, lambda row: not row["parsed"])
    if share <= MANY_UNREADABLE:
        return None
    return Finding(
        "unreadable",
        f"{share:.0%} of attempts have no answer that can be read",
        ("distil texts of the format first, or reward it (format_reward)" if paid else _MORE)
        + "; check that the format is the one that the policy was taught",
    )


def _cut_off(attempts: Sequence[Row], paid: bool) -> Finding | None:
    share = _share(attempts, lambda row: row["finish"] == "length")
    if share <= MANY_CUT or share == 1:
        return None
    return Finding(
        "cut-off",
        f"{share:.0%} of attempts were cut off at {max(row['tokens'] for row in attempts)} tokens",
        "raise max_tokens, punish length near the limit (overlong_share=0.2), or leave such attempts out of the loss "
        "(skip_overlong=true)"
        if paid
        else "raise max_tokens, or learn from shorter texts",
    )


def _never_ends(attempts: Sequence[Row], paid: bool) -> Finding | None:
    if any(row["finish"] != "length" for row in attempts):
        return None
    return Finding(
        "never-ends",
        f"not one of {len(attempts)} attempts ended by itself",
        "raise max_tokens; if that is long enough, the policy was never taught the end mark: see whether its training "
        "had it among the targets (examine_targets), as it has not where padding is the end mark and was masked by it",
    )


def _loops(attempts: Sequence[Row], paid: bool) -> Finding | None:
    def loops(row: Row) -> bool:
        lines = Counter(line.strip() for line in row["completion"].splitlines() if line.strip())
        return max(lines.values(), default=0) >= TIMES

    share = _share(attempts, loops)
    if share <= MANY_LOOPS:
        return None
    return Finding(
        "loops",
        f"{share:.0%} of attempts write one line {TIMES} times or more",
        "raise the temperature, lower the learning rate, or distil texts that end",
    )


def _no_thought(attempts: Sequence[Row], paid: bool) -> Finding | None:
    right = [row for row in attempts if row["right"]]
    share = _share(right, lambda row: not row["thought"])
    if len(right) < FEW or share <= MANY_HACKED:
        return None
    return Finding(
        "no-thought",
        f"{share:.0%} of right attempts have no thought before the answer",
        "the problems can be guessed, or need none: take harder ones, or "
        + ("reward the format (format_reward)" if paid else "learn from texts that have them")
        + " if thoughts are wanted",
    )


def _copied(attempts: Sequence[Row], paid: bool) -> Finding | None:
    given = [row for row in attempts if row["answer"]]
    copied = _share(given, lambda row: _stands_in(row["answer"], row["prompt"]))
    true = _share(given, lambda row: _stands_in(row["problem"]["answer"], row["prompt"]))
    if len(given) < FEW or copied <= true + MORE_THAN_TRUE:
        return None
    return Finding(
        "copied",
        f"{copied:.0%} of answers stand in their prompt, where {true:.0%} of right answers do",
        "the policy copies: "
        + ("see whether the reward pays for that, and take" if paid else "take more epochs, or")
        + " problems whose questions hold no answers",
    )


def _constant(attempts: Sequence[Row], paid: bool) -> Finding | None:
    given = [row for row in attempts if row["answer"]]
    problems = {json.dumps(row["problem"], sort_keys=True): row for row in given}
    if len(given) < FEW or len(problems) < 4:
        return None
    answer, count = Counter(row["answer"] for row in given).most_common(1)[0]
    true = Counter(row["problem"]["answer"] for row in problems.values()).most_common(1)[0][1] / len(problems)
    if count / len(given) <= true + MORE_THAN_TRUE:
        return None
    return Finding(
        "constant",
        f"{count / len(given):.0%} of answers to {len(problems)} problems are {answer!r}",
        "the policy does not read the question: "
        + (
            "lower the learning rate, raise beta, or go back to an earlier checkpoint; see whether the reward pays for "
            "one answer everywhere"
            if paid
            else _MORE
        ),
    )


def _stands_in(answer: str, prompt: str) -> bool:
    """As a whole word: the 1 of 12 is no 1."""
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", prompt) is not None


# Of metrics.


def _collapse(metrics: Sequence[Row]) -> Finding | None:
    values = [row["entropy"] for row in metrics if row.get("entropy") is not None]
    if len(values) < FEW:
        return None
    first, last = _ends(values)
    if last >= LITTLE_CHOICE * first:
        return None
    return Finding(
        "collapse",
        f"the entropy has fallen from {first:.3g} to {last:.3g} nats a token, so that all attempts become alike",
        "raise clip_high (0.28, as DAPO), lower the learning rate, raise beta or the temperature",
    )


def _no_rise(metrics: Sequence[Row], static: bool) -> Finding | None:
    rewards = [row["reward"] for row in metrics if "reward" in row]
    if len(rewards) < 2 * FEW:
        return None
    first, last = _ends(rewards)
    if last > first + NO_RISE or min(row.get("accuracy", 0) for row in metrics[-FEW:]) > 0.9:
        return None
    idle = _mean([row.get("zero_variance", 0) for row in metrics]) > MANY_EQUAL
    return Finding(
        "no-rise",
        f"the reward was {first:.3g} at first and is {last:.3g} after {len(rewards)} steps",
        "most groups teach nothing: take easier problems or a policy that was distilled first"
        + (_DYNAMIC if static else "")
        if idle
        else "raise the learning rate, draw more attempts at each problem, or begin with a policy that was distilled",
    )


def _no_approach(metrics: Sequence[Row]) -> Finding | None:
    apart = [row["kl"] for row in metrics if row.get("kl") is not None]
    if len(apart) < 2 * FEW:
        return None
    first, last = _ends(apart)
    if last < STILL_APART * first:
        return None
    return Finding(
        "no-approach",
        f"the divergence from the teacher was {first:.3g} nats a token at first and is {last:.3g} after {len(apart)} "
        "steps",
        "raise the learning rate, take divergence=0 (a policy that is certain of what it writes learns next to nothing "
        "from the reverse divergence), or begin with a policy that was distilled from the teacher's texts",
    )


def _hacked(metrics: Sequence[Row]) -> Finding | None:
    rows = [row for row in metrics if "reward" in row and "accuracy" in row]
    if len(rows) < 2 * FEW:
        return None
    reward, accuracy = (_ends([row[name] for row in rows]) for name in ("reward", "accuracy"))
    if reward[1] - reward[0] <= 0.1 or accuracy[1] - accuracy[0] > NO_RISE:
        return None
    return Finding(
        "hacked",
        f"the reward has risen from {reward[0]:.3g} to {reward[1]:.3g} and the share of right answers has not "
        f"({accuracy[0]:.3g} to {accuracy[1]:.3g})",
        "something else than right answers is paid for: read the attempts of the highest rewards, and pay less for it",
    )


def _clipped(metrics: Sequence[Row]) -> Finding | None:
    values = [row["clipped"] for row in metrics if row.get("clipped") is not None]
    share = _mean(values)
    if len(values) < FEW or share <= MUCH_CLIPPED:
        return None
    return Finding(
        "clipped",
        f"the gradient of {share:.0%} of tokens was cut off",
        "the policy moves too far on the same attempts: lower the learning rate, or take fewer minibatches and epochs",
    )


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Means of the first and of the last quarter."""
    part = max(1, len(values) // 4)
    return _mean(values[:part]), _mean(values[-part:])


def _share(rows: Sequence[Row], holds: Callable[[Row], bool]) -> float:
    return _mean([holds(row) for row in rows])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


_OF_ATTEMPTS = (_unreadable, _cut_off, _never_ends, _loops, _no_thought, _copied, _constant)
_OF_METRICS = (_hacked, _clipped)
