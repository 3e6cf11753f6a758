"""Rewards in TRL's form: ``reward(prompts, completions, **columns)`` gives a number for each completion, or None.

`accuracy_reward` pays for a right answer, `format_reward` for a text of the right form; there is no partial credit to
be farmed. Rows come from `prompt_row`, whose column ``problem`` says what was asked:

    GRPOTrainer(..., reward_funcs=[accuracy_reward(None, format), format_reward(format)], train_dataset=...)

Rewards that were written for TRL work here: `ask` gives them what TRL's trainers do, and waits for those that are
coroutines. The facts of problems are columns by their names. Prompts and completions are texts or, where the policy is
a chat, lists of messages. There is no `trainer_state` and there are no `environments`, and what they log is not kept.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from mnemonist.errors import UserError
from mnemonist.reasoning.formats import Format
from mnemonist.reasoning.tasks.rows import problem_of
from mnemonist.reasoning.tasks.table import build_task
from mnemonist.reasoning.tasks.task import Problem, Task

Rewards = list[float | None]
Reward = Callable[..., Rewards | Awaitable[Rewards]]
"""What TRL calls, with keyword arguments: see the top of this file."""

GIVEN = (
    *("prompts", "completions", "completion_ids"),
    *("answer", "difficulty", "problem"),  # columns of `prompt_row`
    *("log_extra", "log_metric"),
)
"""Keyword arguments of rewards, besides the facts of problems."""
FOREIGN = ("trainer_state", "environments")
"""Those that only TRL has."""
TAKEN = frozenset((*GIVEN, *FOREIGN, "prompt", "completion", "self"))
"""Names that no fact has as a column: they mean something else, to TRL's rewards too."""
_ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def accuracy_reward(task: Task | None, format: Format) -> Reward:
    """1 for a right answer, 0 for a wrong or missing one, None for rows that have no problem.

    Args:
        task: judges; None takes for each problem the task that it names, so that one reward serves a mixture.
        format: how completions are written.
    """
    return _Accuracy(task, format)


def format_reward(format: Format, worth: float = 1.0) -> Reward:
    """``worth`` for a completion that is a closed thought, then a closed answer, and nothing else; 0 for any other."""
    return _WellFormed(format, worth)


# Values rather than closures, so that a run that is resumed can tell whether it has the same rewards.


@dataclass(frozen=True)
class _Accuracy:
    task: Task | None
    format: Format
    __name__ = "accuracy"  # by which TRL logs it

    def __call__(
        self, prompts: Sequence[Any] = (), completions: Sequence[Any] = (), problem: Any = None, **columns: Any
    ) -> list[float | None]:
        if problem is None:
            raise UserError("there is no column 'problem' to judge by; make the rows with prompt_row")
        rewards: list[float | None] = []
        for completion, told in zip(completions, problem, strict=True):
            if told is None:
                rewards.append(None)
                continue
            asked = problem_of({"problem": told})
            answer = self.format.parse(said(completion, self.format)).answer
            judge = self.task or _task(asked.task)
            rewards.append(float(answer is not None and judge.judge(asked, answer).right))
        return rewards


@dataclass(frozen=True)
class _WellFormed:
    format: Format
    worth: float
    __name__ = "well_formed"

    def __call__(
        self, prompts: Sequence[Any] = (), completions: Sequence[Any] = (), **columns: Any
    ) -> list[float | None]:
        return [self.worth * self.format.parse(said(completion, self.format)).well_formed for completion in completions]


def said(completion: Any, format: Format) -> str:
    """The text of a completion, which is a text or a list of messages; of these the assistant's last counts."""
    if isinstance(completion, str):
        return completion
    contents = [message["content"] for message in completion if message.get("role") == "assistant"]
    return str(contents[-1]).removeprefix(format.opening) if contents else ""


def fact_columns(problems: Sequence[Problem]) -> dict[str, list[Any]]:
    """The facts of problems by their names, None where a problem has no such fact; those in `TAKEN` are left out."""
    names = dict.fromkeys(name for problem in problems for name in problem.facts if name not in TAKEN)
    return {name: [problem.facts.get(name) for problem in problems] for name in names}


def common_facts(problems: Iterable[Problem]) -> list[str]:
    """The names of `fact_columns` that all of the problems have: those that a reward may rely on."""
    kept: dict[str, None] | None = None
    for problem in problems:
        names = problem.facts if kept is None else kept
        kept = {name: None for name in names if name in problem.facts and name not in TAKEN}
    return list(kept or {})


def require_rewards(rewards: Sequence[Reward], facts: Collection[str] = ()) -> None:
    """Make sure that reward functions can be asked, before there is anything to ask about.

    Args:
        rewards: the functions.
        facts: columns that there are besides `GIVEN`.

    Raises:
        UserError: one is no function, or needs what there is not.
    """
    for function in rewards:
        if not callable(function):
            raise UserError(f"{function!r} is no reward function; give a function that takes prompts and completions")
        try:
            parameters = inspect.signature(function).parameters.values()
        except ValueError:  # of those written in C
            continue
        needed = [one.name for one in parameters if one.default is one.empty and one.kind not in _ANY]
        if missing := [name for name in needed if name not in GIVEN and name not in facts]:
            raise _lacking(function, missing, facts)


def ask(rewards: Sequence[Reward], columns: Mapping[str, Any]) -> list[Rewards]:
    """What each reward function says; coroutines run at the same time, to their end.

    Args:
        rewards: asked one after the other.
        columns: what rows and attempts have, one entry for each attempt.

    Raises:
        UserError: as `require_rewards`; or a function gives another number of rewards than there are attempts.
    """
    facts = [name for name in columns if name not in GIVEN]
    require_rewards(rewards, facts)
    given = {**columns, "log_extra": _unheard, "log_metric": _unheard}
    found: dict[int, Rewards] = {}
    waiting: dict[int, Awaitable[Rewards]] = {}
    for place, function in enumerate(rewards):
        with _explaining(function, facts):
            told = function(**given)
        if isinstance(told, Awaitable):
            waiting[place] = _ended(function, told, facts)
        else:
            found[place] = list(told)
    if waiting:
        ended = asyncio.run_coroutine_threadsafe(_together(waiting.values()), _loop()).result()
        found.update(zip(waiting, ended, strict=True))
    count = len(columns["completions"])
    for place, function in enumerate(rewards):
        if len(found[place]) != count:
            raise UserError(f"reward function {_name(function)} gave {len(found[place])} rewards for {count} attempts")
    return [found[place] for place in range(len(rewards))]


@contextmanager
def _explaining(function: Reward, facts: Collection[str]) -> Iterator[None]:
    """Say in a sentence if a function looks for what only TRL has."""
    try:
        yield
    except KeyError as error:
        if any(name in FOREIGN for name in error.args):
            raise _lacking(function, error.args, facts) from error
        raise


async def _ended(function: Reward, told: Awaitable[Rewards], facts: Collection[str]) -> Rewards:
    with _explaining(function, facts):
        return list(await told)


async def _together(waiting: Iterable[Awaitable[Rewards]]) -> list[Rewards]:
    return list(await asyncio.gather(*waiting))


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """In a thread of its own, so that it runs beside a notebook's; one for good, since connections belong to a loop."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


def _unheard(name: str, value: Any) -> None:
    """Takes what a reward function logs."""


def _lacking(function: Reward, names: Sequence[Any], facts: Collection[str]) -> UserError:
    known = f", and of the problems' facts {', '.join(facts)}" if facts else ""
    return UserError(
        f"reward function {_name(function)} needs {', '.join(names)}, which there is not here; it is given "
        f"{', '.join(GIVEN)}{known}, so let it do without the rest"
    )


def _name(function: Reward) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


@lru_cache(64)
def _task(name: str) -> Task:
    return build_task(name)
