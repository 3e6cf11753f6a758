"""Proposing: attempts, written to a file before anybody uses them.

Sampling is dear, and it cannot be repeated once the policy has changed. So attempts go to a file first, whole or not
at all, and are used as they stand there; a run that is resumed reads them and goes on as if it had never stopped.
Seeds follow from the place of the file in its run. Several processes share the work. What a server says is kept beside
the file until that is whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn

from mnemonist.errors import UserError
from mnemonist.reasoning.advantages import teaches
from mnemonist.reasoning.attempts import Attempt, Decoding, Sampler
from mnemonist.reasoning.formats import Format
from mnemonist.reasoning.remembering import remembering
from mnemonist.reasoning.shuffling import mix
from mnemonist.reasoning.tasks.rewards import Reward, common_facts, require_rewards
from mnemonist.reasoning.tasks.task import Problem, StepTask, Task
from mnemonist.reasoning.weighing import Judged, load_judged, save_judged, weigh
from mnemonist.training.randomness import capture_random_state, restore_random_state

Group = list[Judged]
"""Attempts at one problem."""

SHARD = 512
"""Attempts of a file, about; what an interruption loses is less than that."""


@dataclass(frozen=True)
class Policy:
    """Who learns."""

    model: nn.Module
    """Any causal language model with the interface of transformers, with LoRA or without; it is trained in place."""
    tokenizer: Any
    """One of ours or of transformers."""
    sampler: Sampler | None = None
    """Samples from that very model, as it is at the moment; needed by those who propose or are validated."""


@dataclass(frozen=True)
class Material:
    """What is learned from.

    Raises:
        UserError: a reward function needs what there is not.
    """

    task: Task
    """Judges answers."""
    format: Format
    """How problems are put and texts taken apart."""
    problems: Sequence[Problem] = ()
    validation: Sequence[Problem] = ()
    """Asked before the first fit and after every one, at a temperature of 0."""
    teacher: Sampler | None = None
    """Proposes where a round's proposer is "teacher", judges where its weight is."""
    pairs: Sequence[tuple[str, str]] = ()
    """Prompts and completions, where it is "given"."""
    rewards: Sequence[Reward] = ()
    """Added up; none means 1 for a right answer."""

    def __post_init__(self) -> None:
        require_rewards(self.rewards, common_facts(itertools.chain(self.problems, self.validation)))


class Solver:
    """A teacher that thinks by rule: the solutions that a task itself knows, as a `Sampler`.

    Raises:
        UserError: two problems have the same question and different answers.
    """

    name = "solver"

    def __init__(self, task: StepTask, problems: Sequence[Problem], format: Format) -> None:
        self._texts: dict[str, str] = {}
        for problem in problems:
            steps = task.solution(problem)
            text = format.write(steps, task.answer_of(problem, steps))
            if self._texts.setdefault(format.prompt(problem.question), text) != text:
                raise UserError(f"{problem.id} has the question of another problem and another solution")

    def sample(self, prompts: Sequence[str], decoding: Decoding, ledger: Any = None) -> list[Attempt]:
        """See `Sampler`; whatever the decoding, there is one solution.

        Raises:
            UserError: a prompt is not of one of the problems.
        """
        unknown = next((prompt for prompt in prompts if prompt not in self._texts), None)
        if unknown is not None:
            raise UserError(f"the solver knows no problem with the prompt {unknown!r}")
        return [Attempt(prompt, self._texts[prompt], finish="end") for prompt in prompts]


def propose(
    path: Path,
    problems: Sequence[Problem],
    count: int,
    sampler: Sampler,
    material: Material,
    decoding: Decoding,
    policy: Policy,
) -> list[Group]:
    """``count`` attempts at each problem, weighed, in one file; read from it if it is there.

    Raises:
        UserError: the file is damaged or has attempts at other problems; the sampler fails. What a server said before
            it failed is not asked again.
    """
    # The first process looks, and all do what it says: to read, or to sample together.
    if not agreed(path.exists()):
        asked = [problem for problem in problems for _ in range(count)]
        prompts = [material.format.prompt(problem.question) for problem in asked]
        state = PartialState()
        part = path.with_name(f".{path.stem}.{state.process_index}.part")
        with undisturbed(policy.model):
            attempts = sample_together(remembering(sampler, part), prompts, decoding)
        judged = weigh(asked, attempts, material.task, material.format, material.rewards)
        if state.is_main_process:
            save_judged(path, judged)
        state.wait_for_everyone()
        part.unlink(missing_ok=True)
    return groups_of(path, count, problems)


def propose_all(
    folder: Path,
    problems: Sequence[Problem],
    count: int,
    sampler: Sampler,
    material: Material,
    decoding: Decoding,
    policy: Policy,
) -> Iterator[list[Group]]:
    """As `propose`, in as many files as it takes, one after the other."""
    size = max(1, SHARD // count)
    for number, first in enumerate(range(0, len(problems), size)):
        own = replace(decoding, seed=mix(decoding.seed, number))
        part = problems[first : first + size]
        yield propose(folder / f"{number:05}.jsonl", part, count, sampler, material, own, policy)


def groups_of(path: Path, count: int, problems: Sequence[Problem]) -> list[Group]:
    """The groups in a file.

    Raises:
        UserError: it is damaged, or has attempts at other problems.
    """
    judged = load_judged(path)
    groups = [judged[first : first + count] for first in range(0, len(judged), count)]
    expected = [problem.id for problem in problems for _ in range(count)]
    if [one.problem.id for one in judged] != expected:
        raise UserError(
            f"{path} has not the attempts at the {len(problems)} problems of this run, {count} at each; delete it to "
            "sample again"
        )
    return groups


def sample_together(sampler: Sampler, prompts: Sequence[str], decoding: Decoding) -> list[Attempt]:
    """One attempt for each prompt, every process taking its share; all have all of them then."""
    state = PartialState()
    rank, world = state.process_index, state.num_processes
    if world == 1:
        return sampler.sample(prompts, decoding)
    own = prompts[rank::world]
    share = sampler.sample(own, replace(decoding, seed=mix(decoding.seed, "rank", rank))) if own else []
    shares = gather_object([share])
    return [shares[i % world][i // world] for i in range(len(prompts))]


def agreed(value: bool) -> bool:
    """What the first process says; all must ask."""
    return bool(gather_object([value])[0]) if PartialState().num_processes > 1 else value


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Whatever a sampler does to random generators and to the mode of the model, training goes on as before.

    A run that reads attempts where another sampled them must meet the same random numbers.
    """
    device = next(model.parameters()).device
    before, training = capture_random_state(device), model.training
    try:
        yield
    finally:
        model.train(training)
        restore_random_state(before, device)


def measure(groups: Sequence[Group]) -> dict[str, float]:
    """What there is to know about attempts, as means.

    ``zero_variance`` is the share of groups whose rewards are all equal; a group of one has no say in it.
    """
    judged = list(itertools.chain.from_iterable(groups))
    several = [group for group in groups if len(group) > 1]
    equal = [not teaches(rewards_of(group)) for group in several]
    return {
        "problems": len(groups),
        "attempts": len(judged),
        "reward": _mean([one.reward for one in judged]),
        "accuracy": _mean([one.right for one in judged]),
        "solved": _mean([any(one.right for one in group) for group in groups]),
        "parsed": _mean([one.parsed for one in judged]),
        "well_formed": _mean([one.well_formed for one in judged]),
        "truncated": _mean([one.attempt.finish == "length" for one in judged]),
        "length": _mean([one.attempt.tokens for one in judged]),
        "zero_variance": _mean(equal),
    }


def rewards_of(group: Group) -> list[float]:
    """Of each attempt."""
    return [one.reward for one in group]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
