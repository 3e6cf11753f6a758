"""A second reader, who knows the sentences and nothing else, finds the same worlds and the same deductions."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter

import pytest

from mnemonist.reasoning.tasks.knights import Knights
from mnemonist.reasoning.tasks.task import Problem

TASK = Knights()


def true(sentence: str, world: dict[str, bool]) -> bool:
    """Whether a sentence holds where these people are knights (True) and knaves (False)."""
    if found := re.fullmatch(r"(\w) is a (\w+) (and|or) (\w) is a (\w+)", sentence):
        halves = [world[found[1]] == (found[2] == "knight"), world[found[4]] == (found[5] == "knight")]
        return all(halves) if found[3] == "and" else any(halves)
    if found := re.fullmatch(r"(\w) is a (\w+)", sentence):
        return world[found[1]] == (found[2] == "knight")
    if found := re.fullmatch(r"(\w) and (\w) are (the same|different)", sentence):
        return (world[found[1]] == world[found[2]]) == (found[3] == "the same")
    found = re.fullmatch(r"there (?:is|are) (\d) knights?", sentence)
    assert found, sentence
    return sum(world.values()) == int(found[1])


def read(problem: Problem) -> tuple[dict[str, str], list[dict[str, bool]]]:
    """Who says what, and all worlds there could be."""
    assert problem.question.endswith(" Who is what?")
    said = dict(re.findall(r"(\w) says ([^.]+)\.", problem.question))
    names = list(said)
    worlds = [dict(zip(names, kinds, strict=True)) for kinds in itertools.product([True, False], repeat=len(names))]
    return said, worlds


def fits(said: dict[str, str], world: dict[str, bool], speaker: str) -> bool:
    return true(said[speaker], world) == world[speaker]


def written(world: dict[str, bool]) -> str:
    return ", ".join(f"{name} {'knight' if kind else 'knave'}" for name, kind in world.items())


@pytest.mark.parametrize("difficulty", TASK.difficulties)
def test_each_puzzle_has_one_solution(difficulty):
    for index in range(30 if difficulty < 6 else 5):
        problem = TASK.problem("test", difficulty, index)
        said, worlds = read(problem)
        assert len(said) == difficulty
        solutions = [world for world in worlds if all(fits(said, world, speaker) for speaker in said)]
        assert [written(world) for world in solutions] == [problem.answer]
        for world in worlds:
            assert TASK.judge(problem, written(world)).right == (world in solutions)


def test_labels_are_those_of_one_sentence_at_a_time():
    """Every line anyone could write, after random allowed ones, against the definition of what is allowed."""
    source, counts = random.Random(0), Counter()
    for index in range(60):
        problem = TASK.problem("train", source.choice([2, 3, 4]), index)
        said, worlds = read(problem)
        (solution,) = [world for world in worlds if all(fits(said, world, speaker) for speaker in said)]
        steps: list[str] = []
        known = worlds
        while True:
            over = any(not any(fits(said, world, speaker) for world in known) for speaker in said)
            is_open = {name for name in said if len({world[name] for world in known}) == 2}
            allowed = {}
            for name, kind in itertools.product(said, [True, False]):
                claim = f"{name} is a {'knight' if kind else 'knave'}"
                after = [world for world in known if world[name] == kind]
                for line, premises in [(f"suppose {claim}", None), *((f"from {who}: {claim}", who) for who in said)]:
                    told = premises is None or (
                        {world[name] for world in known if fits(said, world, premises)} == {kind}
                    )
                    valid = not over and name in is_open and told
                    label = TASK.label(problem, [*steps, line])
                    assert label.valid == valid, (problem, steps, line)
                    counts["valid" if valid else "invalid"] += 1
                    if valid:
                        allowed[line] = after
                        dead = any(not any(fits(said, world, speaker) for world in after) for speaker in said)
                        assert label.hopeful == (solution in after)
                        assert label.finished == (dead or len(after) == 1)
                        assert label.right == (after == [solution])
                        counts["dead" if dead else "hopeless" if solution not in after else "hopeful"] += 1
            assert set(TASK.moves(problem, steps)) == set(allowed)
            if not allowed:
                break
            steps.append(source.choice(sorted(allowed)))
            known = allowed[steps[-1]]
    assert min(counts[kind] for kind in ("valid", "invalid", "dead", "hopeless", "hopeful")) > 50, counts


def test_dead_ends_are_told_in_words():
    says = [["is", 1, 1], ["is", 2, 1], ["count", 1]]  # all are knaves
    problem = Problem("knights", "train", 3, 0, "", "A knave, B knave, C knave", {"says": says})
    steps = ["suppose A is a knight", "from A: B is a knight", "from B: C is a knight"]
    for taken in (1, 2):
        label = TASK.label(problem, steps[:taken])
        assert label.valid and not label.hopeful and not label.finished and label.reason == "A cannot be a knight"
        assert TASK.answer_of(problem, steps[:taken]) is None
    label = TASK.label(problem, steps)
    assert label.finished and not label.right and label.reason == "then C, a knight, said what is false"
    assert TASK.answer_of(problem, steps) == "A knight, B knight, C knight"
    for lines, reason in (
        (["from B: A is a knight"], "B's statement does not tell that"),
        (["suppose D is a knight"], "nobody has that name"),
        (["from D: A is a knight"], "nobody has that name"),
        (["suppose A is a knave", "suppose A is a knight"], "what A is was said before"),
        ([*steps, "suppose B is a knave"], "contradict each other"),
        (["A is a knight"], "no line of the form"),
    ):
        assert reason in TASK.label(problem, lines).reason
    alone = Problem("knights", "train", 2, 0, "", "", {"says": [["and", 0, 0, 1, 1], ["is", 0, 1]]})
    label = TASK.label(alone, ["suppose B is a knight"])  # A would have called themself a knave, and truly
    assert label.finished and label.reason == "then A can be neither"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("B knave, A knight", ""),
        ("A knight, B knight", "B is a knave"),
        ("A knave, B knave", "A is a knight"),
        ("A knight", "not of the form"),
        ("A knight, B knave, C knave", "not of the form"),
        ("A knight, A knight", "somebody is named twice"),
        ("A knight, A knave", "somebody is named twice"),
        ("a knight, b knave", "not of the form"),
        ("A Knight and B knave", "not of the form"),
    ],
)
def test_answers(answer, reason):
    says = [["is", 1, 0], ["count", 2]]
    problem = Problem("knights", "train", 2, 0, "", "A knight, B knave", {"says": says})
    verdict = TASK.judge(problem, answer)
    assert verdict.right == (reason == "") and verdict.reason.startswith(reason)
    assert verdict.parsed == (reason[:1] not in ("n", "s"))


def test_all_solutions_are_equally_frequent():
    answers = Counter(TASK.problem("train", 3, index).answer for index in range(800))
    assert len(answers) == 8 and min(answers.values()) > 60 and max(answers.values()) < 140
