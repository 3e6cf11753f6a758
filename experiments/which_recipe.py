"""The answer page of the outer loop, docs/which-recipe.md: what each way to spend tokens brought, side by side.

python experiments/which_recipe.py            # from the results that are there; runs nothing
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from countdown import NUMBERS, fact
from study import Study, differences, fill, paired, study_of

from mnemonist.evals.results import Result
from mnemonist.intervals import interval

PAGE = Path(__file__).parent.parent / "docs" / "which-recipe.md"
JOURNEY, SCALING, REST_EM, GRPO, CHAT, TAUGHT = (
    study_of(name) for name in ("journey", "scaling", "rest_em", "grpo", "small_chat", "on_policy_distil")
)
ABOUT = (
    "Means and 95% intervals of the seeds (Student's t); differences are paired by seed, and bold where the interval "
    "holds no 0. Tokens are those of a problem, in writing it and, for methods with a judge, in reading it."
)
Measure = Callable[[Result], float]


def at(which: str = "", **setting: object) -> Measure:
    """Of the last row with this setting: its mean, or another figure."""

    def measure(result: Result) -> float:
        row = [row for row in result.rows if setting.items() <= row.setting.items()][-1]
        return row.more[which] if which else row.mean

    return measure


@dataclass(frozen=True)
class Side:
    """What is compared: figures of an arm."""

    arm: str
    solved: Measure
    tokens: Measure | None = None
    """Of an attempt or, where several are made, of all at a problem."""


@dataclass(frozen=True)
class Comparison:
    """What was done in place of what."""

    what: str
    instead: str
    problems: str
    study: Study
    after: Side
    before: Side

    def line(self) -> str | None:
        """Of the table; None without results."""
        sides = (self.before, self.after)
        results = [self.study.results(side.arm) for side in sides]
        if not all(results):
            return None
        cells = [paired([side.solved(one) for one in own]) for side, own in zip(sides, results, strict=True)]
        gained = differences(results[1], results[0], self.after.solved, self.before.solved)
        found = interval(np.array(gained))
        clear = found.half_width is not None and abs(found.mean) > found.half_width
        mark = "**" if clear else ""
        tokens = [
            "" if side.tokens is None else f"{np.mean([side.tokens(one) for one in own]):,.0f}"
            for side, own in zip(sides, results, strict=True)
        ]
        names = (self.what, self.instead, self.problems)
        return "| " + " | ".join([*names, *cells, f"{mark}{paired(gained, signed=True)}{mark}", *tokens]) + " |"


def numbers(n: int) -> str:
    """A size of countdown."""
    return f"countdown, {n} numbers"


def taught(arm: str, n: int) -> Side:
    """Of the models that learned from texts."""
    return Side(arm, at(numbers=n), at("written", numbers=n))


def drawn(method: str, budget: int, n: int) -> Side:
    """Of the methods around a model that was taught right steps."""
    setting = {"method": method, "budget": budget, "numbers": n}
    return Side("methods", at(**setting), at("tokens", **setting))


def forced(most: int, extensions: int) -> Side:
    """Of thoughts under a budget."""
    setting = {"thinking": most, "extensions": extensions}
    return Side("forcing", at(**setting), at("tokens", **setting))


def iterated(arm: str, iteration: int, which: str = "") -> Side:
    """Of ReST-EM, at an iteration."""
    return Side(arm, at(which, iteration=iteration), at("written", iteration=iteration))


def stepped(arm: str, when: str, n: int, which: str = "accuracy") -> Side:
    """Of policy gradients, before them or after."""
    return Side(arm, fact(when, n, which), fact(when, n, "written"))


def said(way: str, terms: int) -> Side:
    """Of the pretrained chat model."""
    return Side("smollm2", at(way=way, terms=terms))


THREE, FOUR = NUMBERS
BOTH = "countdown, 3 and 4 numbers"
COMPARISONS = (
    *(
        Comparison(f"taught {what}", "right steps", numbers(n), JOURNEY, taught(arm, n), taught("shortcut", n))
        for arm, what in (("depth-first", "whole searches"), ("o1-journey", "short journeys"))
        for n in (THREE, FOUR)
    ),
    *(
        Comparison(what, "one attempt", numbers(FOUR), SCALING, drawn(method, budget, FOUR), drawn("vote", 1, FOUR))
        for what, method, budget in (
            ("32 attempts, each checked", "best by checking", 32),
            ("32 attempts, the commonest answer", "vote", 32),
            ("8 beams under a trained judge of steps", "beam, judge of steps", 8),
            ("8 beams under the truth (no method)", "beam, truth", 8),
        )
    ),
    Comparison("thoughts of 2,048 tokens", "of 64", BOTH, SCALING, forced(2048, 0), forced(64, 0)),
    Comparison("kept from ending by “Wait”", "free to end", BOTH, SCALING, forced(2048, 1), forced(2048, 0)),
    Comparison("ReST-EM", "before it", numbers(FOUR), REST_EM, iterated("paper", 3), iterated("paper", 0)),
    Comparison(
        "ReST-EM, some of 8 right", "before it", numbers(FOUR), REST_EM,
        iterated("paper", 3, "pass@8"), iterated("paper", 0, "pass@8"),
    ),
    *(
        Comparison(
            f"ReST-EM, {what}", "as in the paper", numbers(FOUR), REST_EM, iterated(arm, 3), iterated("paper", 3)
        )
        for arm, what in (("continued", "each fit goes on from the last"), ("uncapped", "all right attempts kept"))
    ),
    *(
        Comparison(what, "before it", numbers(n), GRPO, stepped(arm, "after", n), stepped(arm, "before", n))
        for arm, what in (("grpo", "100 steps of GRPO"), ("dapo", "100 steps of DAPO"))
        for n in (THREE, FOUR)
    ),
    Comparison(
        "GRPO, some of 8 right", "before it", numbers(THREE), GRPO,
        stepped("grpo", "after", THREE, "pass@8"), stepped("grpo", "before", THREE, "pass@8"),
    ),
    Comparison(
        "DAPO, groups that teach nothing replaced", "kept", numbers(THREE), GRPO,
        stepped("dapo", "after", THREE), stepped("dapo-static", "after", THREE),
    ),
    Comparison(
        "96 solutions behind `Question:`", "with nothing before", "sums of 2 terms", CHAT,
        said("distilled", 2), said("question first", 2),
    ),
    Comparison("ReST-EM after them", "before it", "sums of 4 terms", CHAT, said("ReST-EM", 4), said("distilled", 4)),
    Comparison(
        "a teacher's right texts at 192 problems", "24 solutions before", "sums of 4 terms", TAUGHT,
        said("texts", 4), said("student", 4),
    ),
    Comparison(
        "own attempts, tokens judged by the teacher", "its texts", "sums of 4 terms", TAUGHT,
        said("own, reverse", 4), said("texts", 4),
    ),
)  # fmt: skip


def table() -> str:
    """A line for each comparison that has results."""
    lines = [
        "| what | instead of | problems | without | with | difference | tokens without | with |",
        "|---|---|---|" + "--:|" * 5,
    ]
    lines += [line for one in COMPARISONS if (line := one.line()) is not None]
    return "\n".join(lines)


if __name__ == "__main__":
    fill(PAGE, f"{ABOUT}\n\n{table()}")
