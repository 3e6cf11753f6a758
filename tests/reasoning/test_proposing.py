"""Proposing: written before used, read instead of sampled again, and no trace left on training."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from shaky_server import Shaky
from toy_policies import FORMAT, TOKENIZER, SumTask, ToySampler, make_policy, problems_of

from mnemonist.errors import UserError
from mnemonist.reasoning import proposing
from mnemonist.reasoning.attempts import Attempt, Decoding
from mnemonist.reasoning.proposing import Material, Policy, Solver, measure, propose, propose_all, undisturbed
from mnemonist.reasoning.sampling import SamplingFailed
from mnemonist.reasoning.shuffling import endless, mix, share
from mnemonist.reasoning.weighing import load_judged, weigh

TASK = SumTask()
PROBLEMS = problems_of(TASK, 3)
MATERIAL = Material(TASK, FORMAT, PROBLEMS)
SHORT = Decoding(max_tokens=4)


def make() -> tuple[Policy, ToySampler]:
    model = make_policy()
    sampler = ToySampler(model)
    return Policy(model, TOKENIZER, sampler), sampler


def test_attempts_are_sampled_once_and_then_read(tmp_path: Path) -> None:
    policy, sampler = make()
    path = tmp_path / "a.jsonl"
    groups = propose(path, PROBLEMS, 2, sampler, MATERIAL, SHORT, policy)
    assert [[one.problem.id for one in group] for group in groups] == [[p.id] * 2 for p in PROBLEMS]
    assert sampler.calls == 6
    assert propose(path, PROBLEMS, 2, sampler, MATERIAL, SHORT, policy) == groups
    assert sampler.calls == 6
    assert groups[0][0].attempt.text != groups[0][1].attempt.text  # each attempt is a draw of its own


def test_attempts_at_other_problems_are_refused(tmp_path: Path) -> None:
    policy, sampler = make()
    propose(tmp_path / "a.jsonl", PROBLEMS, 2, sampler, MATERIAL, SHORT, policy)
    for problems, count in ((PROBLEMS[:2], 3), (PROBLEMS[::-1], 2), (PROBLEMS[:2], 2)):
        with pytest.raises(UserError, match="has not the attempts at the .* problems of this run"):
            propose(tmp_path / "a.jsonl", problems, count, sampler, MATERIAL, SHORT, policy)


def test_many_problems_take_several_files_with_seeds_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposing, "SHARD", 2)
    policy, sampler = make()
    same = [PROBLEMS[0]] * 3
    files = list(propose_all(tmp_path, same, 2, sampler, MATERIAL, SHORT, policy))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["00000.jsonl", "00001.jsonl", "00002.jsonl"]
    texts = [one.attempt.text for groups in files for one in groups[0]]
    assert len(set(texts)) == 6
    (tmp_path / "00001.jsonl").unlink()
    again = list(propose_all(tmp_path, same, 2, sampler, MATERIAL, SHORT, policy))
    assert again == files and sampler.calls == 8


def test_what_a_server_said_before_it_failed_is_not_asked_again(tmp_path: Path) -> None:
    policy, _ = make()

    def propose_with(server: Shaky, folder: str) -> bytes:
        propose(tmp_path / folder / "a.jsonl", PROBLEMS, 2, server, MATERIAL, SHORT, policy)
        return (tmp_path / folder / "a.jsonl").read_bytes()

    def guess(prompt: str, chance: random.Random) -> str:
        return f"={chance.randrange(10)}."

    whole = propose_with(Shaky(guess), "whole")
    with pytest.raises(SamplingFailed, match=r"4 of 6 attempts are kept in .*\.a\.0\.part"):
        propose_with(Shaky(guess, left=4), "cut")
    server = Shaky(guess)
    assert propose_with(server, "cut") == whole and len(server.asked) == 2
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["a.jsonl"]


def test_sampling_disturbs_neither_random_numbers_nor_the_mode() -> None:
    model = make_policy().train()
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    expected = [torch.rand(1).item(), random.random(), np.random.rand()]
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    with undisturbed(model):
        model.eval()
        torch.manual_seed(9)
        random.random()
        np.random.rand()
    assert model.training
    assert [torch.rand(1).item(), random.random(), np.random.rand()] == expected


def test_a_solver_teaches_what_its_task_knows() -> None:
    solver = Solver(TASK, PROBLEMS, FORMAT)
    attempts = solver.sample([FORMAT.prompt(PROBLEMS[2].question)], SHORT)
    assert attempts == [Attempt("0+2\n", "2\n=2.", finish="end")]
    assert weigh(PROBLEMS[2:], attempts, TASK, FORMAT)[0].right
    with pytest.raises(UserError, match="the solver knows no problem with the prompt '9"):
        solver.sample(["9+9\n"], SHORT)


def test_measures_are_means_over_attempts_and_groups(tmp_path: Path) -> None:
    texts = [["1\n=1.", "=0."], ["=x", "=."], ["=2.", "=2."]]
    groups = []
    for problem, pair in zip(problems_of(TASK, 3), [texts[1], texts[0], texts[2]], strict=True):
        attempts = [
            Attempt("", text, tokens=len(text), finish="end" if text.endswith(".") else "length") for text in pair
        ]
        groups.append(weigh([problem] * 2, attempts, TASK, FORMAT))
    assert measure(groups) == {
        "problems": 3,
        "attempts": 6,
        "reward": 0.5,
        "accuracy": 0.5,
        "solved": pytest.approx(2 / 3),
        "parsed": pytest.approx(4 / 6),
        "well_formed": pytest.approx(4 / 6),
        "truncated": pytest.approx(1 / 6),
        "length": pytest.approx((2 + 2 + 5 + 3 + 3 + 3) / 6),
        "zero_variance": pytest.approx(2 / 3),
    }
    assert load_judged is not None and measure([])["accuracy"] == 0


def test_the_endless_row_visits_all_before_any_again() -> None:
    row = endless(5, 7, 0, 20)
    assert all(sorted(row[first : first + 5]) == list(range(5)) for first in range(0, 20, 5))
    assert len({tuple(row[first : first + 5]) for first in range(0, 20, 5)}) > 1
    assert endless(5, 7, 3, 9) == row[3:12]
    assert endless(5, 8, 0, 20) != row


@pytest.mark.parametrize(("rows", "accumulation", "world"), [(24, 3, 2), (7, 2, 3), (2, 3, 1)])
def test_parts_of_a_step_hold_rows_of_like_lengths_each_once(rows: int, accumulation: int, world: int) -> None:
    lengths = [(37 * n) % 101 for n in range(rows)]
    parts = [
        [share(range(rows), lengths.__getitem__, micro, accumulation, rank, world) for rank in range(world)]
        for micro in range(accumulation)
    ]
    read = [[n for own in part for n in own] for part in parts]
    assert sorted(n for part in read for n in part) == list(range(rows))
    assert [len(part) for part in read] == [
        rows * (n + 1) // accumulation - rows * n // accumulation for n in range(accumulation)
    ]
    assert all(max(map(len, part)) - min(map(len, part)) <= 1 for part in parts), "processes read equally many"
    edges = [edge(lengths[n] for n in part) for part in read if part for edge in (min, max)]
    assert edges == sorted(edges)


def test_seeds_of_neighbours_have_nothing_in_common() -> None:
    assert len({mix(seed, label) for seed in range(50) for label in range(50)}) == 2500
    assert mix(1, "a") == mix(1, "a") != mix(1, "b")
