"""Problems of the package reasoning-gym (Stojanovski et al. 2025, arXiv 2505.24760), about a hundred families of them.

Its generators are used, and its scorers are not: several of them run what the model wrote as Python. Answers are judged
here by comparison where a problem has one right answer, and by the grammar of `expressions` where it has many. For the
other families there is `scorer=theirs`, a choice to be made with open eyes: their scorer then runs in a process of its
own that can be killed, but that is no sandbox.

    build_task("reasoning-gym:family=chain_sum,config=min_terms:2;max_terms:3")
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mnemonist.errors import UserError, nearest
from mnemonist.reasoning.tasks.countdown import Countdown
from mnemonist.reasoning.tasks.drawn import DrawnTask, Facts, judge_integer
from mnemonist.reasoning.tasks.expressions import Rejected, read_integer
from mnemonist.reasoning.tasks.game24 import TARGET
from mnemonist.reasoning.tasks.task import Problem, Split, Verdict

# fmt: off
COMPARED = frozenset((
    "ab", "acre", "aiw", "arc_1d", "base_conversion", "basic_arithmetic", "bf", "binary_alternation",
    "bitwise_arithmetic", "caesar_cipher", "calendar_arithmetic", "chain_sum", "circuit_logic", "color_cube_rotation",
    "count_bits", "count_primes", "course_schedule", "family_relationships", "game_of_life_halting", "gcd",
    "gsm_symbolic", "largest_island", "lcm", "leg_counting", "letter_counting", "manipulate_matrix", "maze",
    "mini_sudoku", "needle_haystack", "number_sequence", "products", "rectangle_count", "rotate_matrix",
    "rotten_oranges", "self_reference", "simple_equations", "simple_geometry", "spell_backward", "spiral_matrix",
    "string_manipulation", "sudoku", "syllogism", "word_sequence_reversal", "word_sorting", "zebra_puzzles",
))
# fmt: on
"""Families whose problems have one right answer, so that comparing is judging."""
EXPRESSIONS = frozenset(("countdown", "puzzle24"))
"""Families whose answers are expressions."""
# fmt: off
UNREPEATABLE = frozenset((
    "codeio", "isomorphic_strings", "knight_swap", "list_functions", "polynomial_multiplication", "ransom_note",
    "word_ladder",
))
# fmt: on
"""Families of 0.1.25 that make other problems of one seed in another process, since they walk through sets."""
LONGEST_ANSWER = 10_000
"""Characters of an answer that is looked at."""


@dataclass(frozen=True)
class ReasoningGym(DrawnTask):
    """A family of reasoning-gym.

    Raises:
        UserError: the configuration cannot be read, the family's problems do not follow from their seeds, or there is
            no verifier of ours for it and theirs was not asked for.
    """

    key: ClassVar[str] = "reasoning-gym"

    family: str = "chain_sum"
    """What the package calls it."""
    config: str = ""
    """Changes to the family's configuration: ``name:value;name:value``, values as in JSON."""
    scorer: str = "ours"
    """ours, or theirs: the package's own, which may run what a model wrote."""
    seconds: float = 5.0
    """After which their scorer is killed."""

    def __post_init__(self) -> None:
        if self.scorer not in ("ours", "theirs") or not 0 < self.seconds <= 600:
            raise UserError(
                f"scorer is {self.scorer!r} and seconds {self.seconds}; the first is ours or theirs, the second above "
                "0 and at most 600"
            )
        if self.family in UNREPEATABLE:
            raise UserError(
                f"reasoning-gym makes other problems of the family {self.family!r} in every process, so that none of "
                "them has a number; take another family"
            )
        if self.scorer == "ours" and self.family not in COMPARED | EXPRESSIONS:
            raise UserError(
                f"no verifier here can judge the family {self.family!r}{nearest(self.family, COMPARED | EXPRESSIONS)}; "
                "scorer=theirs takes the package's own, which may run what a model wrote"
            )
        self._changes()

    @property
    def difficulties(self) -> tuple[int]:
        """One; the configuration says how hard problems are."""
        return (0,)

    def problem(self, split: Split, difficulty: int, index: int) -> Problem:
        """See `Task.problem`.

        Raises:
            UserError: also if the package is missing or does not know the family or its configuration, or gives no
                answer to problems of this family.
        """
        problem = super().problem(split, difficulty, index)
        kept = {name: value for name, value in problem.facts.items() if name not in ("question", "answer")}
        return dataclasses.replace(problem, facts=kept)

    def draw(self, random: np.random.Generator, difficulty: int) -> Facts:
        """The problem that the package makes of a seed."""
        seed = int(random.integers(2**31))
        entry = make_entry(self.family, self._changes(), seed)
        question, answer, metadata = entry["question"], entry["answer"], entry["metadata"]
        if not isinstance(answer, str) or not answer:
            raise UserError(f"reasoning-gym gives no answer to problems of the family {self.family!r}; take another")
        facts = {"seed": seed, "question": question.strip(), "answer": answer}
        if self.family in EXPRESSIONS:
            numbers = [int(number) for number in metadata["numbers"]]
            facts |= {"numbers": numbers, "target": int(metadata.get("target", TARGET))}
        return facts

    def content(self, facts: Facts) -> str:
        """The same question is the same problem."""
        return str(facts["question"])

    def ask(self, facts: Facts) -> str:
        """As the package puts it."""
        return str(facts["question"])

    def answer(self, facts: Facts) -> str:
        """As the package gives it."""
        return str(facts["answer"])

    def judge(self, problem: Problem, answer: str) -> Verdict:
        """See `Task.judge`. Answers are compared as whole numbers if they are such, or else as words.

        Raises:
            UserError: their scorer was asked for and cannot be started; what was written raises nothing.
        """
        if len(answer) > LONGEST_ANSWER:
            return Verdict(False, parsed=False, reason=f"more than {LONGEST_ANSWER} characters")
        if self.scorer == "theirs":
            return self._ask_their_scorer(problem, answer)
        if self.family in EXPRESSIONS:
            return Countdown(all_used=True).judge(problem, answer)
        try:
            return judge_integer(answer.strip(), read_integer(problem.answer))
        except Rejected:
            right = answer.split() == problem.answer.split()
            return Verdict(right, reason="" if right else "it is another text")

    def _ask_their_scorer(self, problem: Problem, answer: str) -> Verdict:
        from mnemonist.reasoning.tasks.reasoning_gym_scorer import score

        asked = {"family": self.family, "config": self._changes(), "seed": problem.facts["seed"]}
        told = score({**asked, "question": problem.question, "answer": answer}, self.seconds)
        if isinstance(told, str):
            return Verdict(False, reason=told)
        return Verdict(told >= 1, reason="" if told >= 1 else f"reasoning-gym scores it {told:.3g}")

    def _changes(self) -> dict[str, Any]:
        """The configuration that `config` says."""
        changes = {}
        for change in filter(None, self.config.split(";")):
            name, colon, value = (part.strip() for part in change.partition(":"))
            if not name or not colon:
                raise UserError(f"{change!r} is no change to a configuration; write name:value;name:value")
            try:
                changes[name] = json.loads(value)
            except ValueError:
                changes[name] = value
        return changes


def make_entry(family: str, config: dict[str, Any], seed: int) -> dict[str, Any]:
    """What the package makes of a seed: a question, an answer, and what it knows of them.

    Raises:
        UserError: the package is missing, or does not know the family or its configuration.
    """
    try:
        import reasoning_gym
    except ImportError:
        raise UserError('problems of reasoning-gym need the package: pip install "mnemonist[reasoning]"') from None
    try:
        dataset = reasoning_gym.create_dataset(family, size=1, seed=seed, **config)
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"reasoning-gym does not make {family!r} with {config}: {error}") from error
    entry: dict[str, Any] = dataset[0]
    return entry
