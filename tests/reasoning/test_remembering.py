"""What a server has said once is not asked again, and whoever was stopped comes to the same end."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from scripted import PLAIN, Climb, Policy, wanderer
from shaky_server import Shaky

from mnemonist.errors import UserError
from mnemonist.reasoning.attempts import Attempt, Decoding
from mnemonist.reasoning.budget import Budget, BudgetForcing
from mnemonist.reasoning.ledger import Ledger
from mnemonist.reasoning.remembering import Remembering, remembering
from mnemonist.reasoning.sampling import SamplingFailed
from mnemonist.reasoning.search import find_method
from mnemonist.reasoning.tree import Tree

HOW = Decoding(max_tokens=30, seed=3)


def echo(prompt: str, chance: Random) -> str:
    return f"{prompt}{chance.randrange(10**6)}"


def test_what_was_said_once_is_not_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "made" / "said.jsonl"
    told: list[tuple[int, int]] = []
    first = Remembering(Shaky(echo), path, lambda *counts: told.append(counts))
    ledger = Ledger()
    made = first.sample(["a", "b", "a"], HOW, ledger)
    assert len({one.text for one in made}) == 3  # a prompt that is named twice has two attempts
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    with path.open("ab") as file:  # killed while it wrote
        file.write(b'{"asked": "half')
    server, again = Shaky(echo), Ledger()
    assert Remembering(server, path).sample(["a", "b", "a"], HOW, again) == made
    assert server.asked == [] and again == ledger
    assert Remembering(server, path).sample(["b", "c"], HOW)[0] == made[1]
    assert server.asked == ["c"]
    Remembering(server, path).sample(["a"], Decoding(max_tokens=31, seed=3))
    assert server.asked == ["c", "a"]  # asked otherwise


def test_what_was_said_before_a_failure_is_kept(tmp_path: Path) -> None:
    prompts = ["a", "b", "a", "d", "a"]
    whole, ledger = Shaky(echo).sample(prompts, HOW), Ledger()
    path = tmp_path / "said.jsonl"
    for done in (2, 3):
        with pytest.raises(
            SamplingFailed, match=rf"it is down \({done} of 5 attempts are kept in .*said.jsonl\)"
        ) as up:
            Remembering(Shaky(echo, left=2 if done == 2 else 1), path).sample(prompts, HOW)
        assert up.value.attempts == dict(enumerate(whole[:done]))
    with pytest.raises(SamplingFailed, match=r"it is down \(0 of 5 attempts are done\)"):  # there is no file to name
        Remembering(Shaky(echo, left=0), tmp_path / "none.jsonl").sample(prompts, HOW)
    assert not (tmp_path / "none.jsonl").exists()
    server = Shaky(echo)
    assert Remembering(server, path).sample(prompts, HOW, ledger) == whole
    assert server.asked == ["d", "a"] and ledger.calls == 5 and ledger.flops == 2.5


def test_an_interruption_keeps_what_was_said(tmp_path: Path) -> None:
    def interrupted(prompt: str, chance: Random) -> str:
        if prompt == "c":
            raise KeyboardInterrupt
        return echo(prompt, chance)

    with pytest.raises(KeyboardInterrupt):
        Remembering(Shaky(interrupted), tmp_path / "said").sample(["a", "b", "c"], HOW)
    server = Shaky(echo)
    Remembering(server, tmp_path / "said").sample(["a", "b", "c"], HOW)
    assert server.asked == ["c"]


def test_another_kind_of_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "1"}\n')
    with pytest.raises(UserError, match=r"rows.jsonl is no file of what a server said .*move it away"):
        Remembering(Shaky(echo), path).sample(["a"], HOW)
    assert path.read_text() == '{"prompt": "1"}\n'


class Local:
    name = "local"

    def sample(self, prompts: list[str], decoding: Decoding, ledger: Ledger | None = None) -> list[Attempt]:
        return [Attempt(prompt, "") for prompt in prompts]


def test_only_servers_are_remembered(tmp_path: Path) -> None:
    local = Local()
    assert remembering(local, tmp_path / "said") is local
    forced = BudgetForcing(local, PLAIN, Budget())
    assert remembering(forced, tmp_path / "said") is forced
    kept = Remembering(Shaky(echo), tmp_path / "said")
    assert remembering(kept, tmp_path / "other") is kept


PROBLEMS = [Climb().problem("test", 1, n) for n in range(2)]


def guess(prompt: str, chance: Random) -> str:
    return f"it is {chance.randrange(100)}\nanswer: * 2\n"


@pytest.mark.parametrize(
    ("method", "policy", "budget"),
    [
        ("self-consistency:attempts=4", guess, None),
        ("self-consistency:attempts=4", guess, Budget(most=6, answer=8)),
        ("beam:beams=4,width=2,value=self", wanderer(PROBLEMS, wise=0.5), None),
        ("mcts:value=self", wanderer(PROBLEMS, wise=0.5), None),
    ],
)
def test_a_search_that_a_server_fails_in_goes_on_to_the_same_trees(
    method: str, policy: Policy, budget: Budget | None, tmp_path: Path
) -> None:
    """However many times it fails, and whether or not thoughts are forced into a budget."""

    def solve(left: int, path: Path) -> tuple[list[Tree], Shaky]:
        server = Shaky(policy, left)
        sampler = remembering(server if budget is None else BudgetForcing(server, PLAIN, budget), path)
        return find_method(method).solve(PROBLEMS, Climb(), PLAIN, sampler, Decoding(seed=5)), server

    whole, server = solve(10**9, tmp_path / "whole")
    asked = len(server.asked)
    assert asked >= 8
    for _ in range(3):
        with pytest.raises(SamplingFailed):
            solve(asked // 4, tmp_path / "cut")
    again, server = solve(10**9, tmp_path / "cut")
    assert len(server.asked) == asked - 3 * (asked // 4)
    for tree in (*whole, *again):
        tree.ledger.seconds = 0.0
    assert again == whole
