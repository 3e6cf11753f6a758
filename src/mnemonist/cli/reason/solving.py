"""Solving piece by piece: trees go to a file as they come, and what is there already is not solved again.

Each piece of problems is solved in lockstep and saved before the next one begins. Which problems make a piece follows
from their number, and what is drawn for it from its first problem, so a run that was stopped and goes on has the trees
of one that never stopped. What a server says is kept until its piece is saved, so a piece that it fails in goes on too.

Trees may be large, so pieces are appended instead of writing the file anew. A line is whole if it has its end: what a
program that was killed has left without one is cut off before anything is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mnemonist.errors import UserError
from mnemonist.files import FileError, append_lines, cut_unfinished_line
from mnemonist.reasoning.attempts import Decoding, Sampler
from mnemonist.reasoning.budget import control
from mnemonist.reasoning.formats import Format
from mnemonist.reasoning.ledger import Ledger
from mnemonist.reasoning.remembering import remembering
from mnemonist.reasoning.search.lockstep import Method, PathScorer
from mnemonist.reasoning.search.scaling import Point, Run
from mnemonist.reasoning.shuffling import mix
from mnemonist.reasoning.tasks.task import Problem, Task
from mnemonist.reasoning.tree import Tree, load_trees


@dataclass(frozen=True)
class Setting:
    """What methods are compared under: all the same for all of them."""

    task: Task
    format: Format
    sampler: Sampler
    decoding: Decoding
    scorer: PathScorer | None
    piece: int


@dataclass(frozen=True)
class Solved:
    """What a method has done so far."""

    label: str
    """The method as it was asked for."""
    run: Run

    @property
    def trees(self) -> list[Tree]:
        """In the order of their problems."""
        return list(self.run.trees.values())

    @property
    def point(self) -> Point:
        """Accuracy and tokens."""
        return self.run.point()

    @property
    def ledger(self) -> Ledger:
        """Of all problems together."""
        return sum((tree.ledger for tree in self.trees), Ledger())

    @property
    def thinking(self) -> list[int]:
        """Tokens of each thought under a budget; empty if there was none."""
        counts = (node.thinking_tokens for tree in self.trees for node in tree.nodes)
        return [count for count in counts if count is not None]

    @property
    def control(self) -> float:
        """The share of these that kept to their budget; there must be some."""
        return control(self.thinking, self.run.settings["least"], self.run.settings["thinking"])


def solve_in_pieces(
    method: Method,
    problems: Sequence[Problem],
    setting: Setting,
    path: Path,
    *,
    on_step: Callable[[int, int], None],
    advance: Callable[[int], None],
    stop: Callable[[], bool],
) -> list[Tree]:
    """The trees of the problems, in their order; those that were not solved before are added to the file.

    Args:
        method: solves them.
        problems: which.
        setting: under which it does.
        path: file of trees; may have some of other problems, which stay.
        on_step: told after each piece how many problems are done, and of how many.
        advance: told the tokens that each piece took.
        stop: asked before each piece; True ends the work, and what is done is returned.

    Raises:
        UserError: the file is damaged or has trees of other choices, or the policy cannot answer.
    """
    part = path.with_name(f".{path.stem}.part")
    kept = {tree.problem.id: tree for tree in _load(path, method)}
    for problem in problems:
        if problem.id in kept and kept[problem.id].problem.question != problem.question:
            raise UserError(
                f"{path} has another problem as {problem.id}: the file of the task has changed; take another folder "
                "with --out"
            )
    for first in range(0, len(problems), setting.piece):
        piece = problems[first : first + setting.piece]
        on_step(first, len(problems))
        if all(problem.id in kept for problem in piece):
            continue
        if stop():
            break
        # All of the piece, though a part may be there: what is drawn for a problem depends on those beside it.
        asking = replace(setting, sampler=remembering(setting.sampler, part))
        made = [tree for tree in _solve(method, piece, asking) if tree.problem.id not in kept]
        append_trees(path, made)
        part.unlink(missing_ok=True)
        for tree in made:
            kept[tree.problem.id] = tree
            advance(tree.ledger.tokens)
    done = [kept[problem.id] for problem in problems if problem.id in kept]
    on_step(len(done), len(problems))
    return done


def append_trees(path: Path, trees: Sequence[Tree]) -> None:
    """Add trees to the end of a file.

    Raises:
        FileError: it cannot be written.
    """
    append_lines(path, (json.dumps(tree.to_json()) for tree in trees))


def _solve(method: Method, problems: Sequence[Problem], setting: Setting) -> list[Tree]:
    # Another seed for each piece: with the same one, problems of the same place would get the same draws.
    own = replace(setting.decoding, seed=mix(setting.decoding.seed, problems[0].id))
    trees = method.solve(problems, setting.task, setting.format, setting.sampler, own, setting.scorer)
    for tree in trees:
        tree.settings["decoding"]["seed"] = setting.decoding.seed  # so that all pieces are known to be of one run
    return trees


def _load(path: Path, method: Method) -> list[Tree]:
    """Trees of an earlier call.

    Raises:
        UserError: they are damaged, or the method had other choices.
    """
    if not path.exists():
        return []
    try:
        cut_unfinished_line(path)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from error
    choices = {name: value for name, value in asdict(method).items() if name != "name"}
    trees = list(load_trees(path))
    for tree in trees:
        differing = [name for name, value in choices.items() if tree.settings.get(name) != value]
        if tree.method != method.name or differing:
            what = ", ".join(differing) or "method"
            raise UserError(
                f"the trees in {path} are of another method: {what} differs; take another folder with --out"
            )
    return trees
