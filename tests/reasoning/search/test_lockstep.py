"""The books of every method balance, and no problem notices the others."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import INDEPENDENT, PLAIN, Climb, Oracle, Scripted, check_books, says, wanderer

from mnemonist.errors import UserError
from mnemonist.reasoning.attempts import Decoding
from mnemonist.reasoning.formats import FORMATS
from mnemonist.reasoning.ledger import Ledger
from mnemonist.reasoning.search.lockstep import Search, _apportion
from mnemonist.reasoning.search.methods import METHODS, find_method
from mnemonist.reasoning.tree import Tree

TASK = Climb()
PROBLEMS = [TASK.problem("train", 1, index) for index in range(4)]
SPECS = [
    *METHODS,
    "best-of-n:attempts=5,value=gold,aggregate=min",
    "weighted-best-of-n:attempts=5,value=rollouts,aggregate=product",
    "tree-of-thought:value=gold,breadth=2,prune=0.5",
    "depth-first:proposer=moves,value=outcome,width=0",
    "depth-first:value=gold,expansions=3",
    "beam:beams=4,width=2,value=any-rollout,samples=2",
    "beam:beams=4,width=2,value=self,aggregate=min,choice=weighted",
    "dvts:beams=4,width=2,value=gold,choice=majority",
    "dvts:beams=6,width=3,proposer=moves,value=model,depth=3",
    "mcts:simulations=12,value=self,bonus=uct",
    "mcts:simulations=12,value=gold,prior=copies,choice=value,depth=3",
]


def solve(spec, problems=PROBLEMS, format=PLAIN, seed=0, wise=0.3):
    sampler = Scripted(wanderer(problems, format, wise), log_prob=lambda text: -float(len(text) % 3))
    trees = find_method(spec).solve(problems, TASK, format, sampler, Decoding(seed=seed), Oracle())
    return trees, sampler


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("spec", SPECS)
def test_books_balance(spec, format):
    trees, sampler = solve(spec, format=format)
    assert [tree.problem for tree in trees] == PROBLEMS
    whole = Ledger()
    for tree in trees:
        check_books(tree, TASK)
        whole = whole + tree.ledger
    total = sampler.total
    assert whole.flops == pytest.approx(total.flops) and whole.seconds == pytest.approx(total.seconds)
    judged_elsewhere = "value" in trees[0].settings and trees[0].settings["value"] == "model"
    if not judged_elsewhere:  # the oracle is no sampler
        assert whole.tokens == total.tokens and whole.calls == total.calls
    else:
        assert whole.prompt_tokens == total.prompt_tokens and whole.generated_tokens == total.generated_tokens


@pytest.mark.parametrize("spec", SPECS)
def test_many_problems_are_solved_as_one_at_a_time(spec):
    together, _ = solve(spec)
    for problem, tree in zip(PROBLEMS, together, strict=True):
        alone = solve(spec, [problem])[0][0]
        tree.ledger.seconds = alone.ledger.seconds  # a call takes half a second, whoever shares it
        assert alone.ledger.flops == pytest.approx(tree.ledger.flops)
        tree.ledger.flops = alone.ledger.flops
        assert alone == tree


@pytest.mark.parametrize("spec", SPECS)
def test_no_two_calls_draw_alike_and_the_same_seed_draws_the_same(spec):
    trees, sampler = solve(spec)
    seeds = [decoding.seed for _, decoding in sampler.calls]
    assert len(set(seeds)) == len(seeds) and max(seeds, default=0) < 2**31  # what every generator takes
    assert solve(spec)[0] == trees
    if "proposer=moves" not in spec:
        assert solve(spec, seed=1)[0] != trees


def test_what_a_tree_says_of_its_making():
    decoding = Decoding(max_tokens=99, temperature=0.7, stop=("#",), seed=5)
    sampler = Scripted(wanderer(PROBLEMS))
    tree = find_method("beam:beams=2,width=2,value=gold").solve(PROBLEMS[:1], TASK, PLAIN, sampler, decoding)[0]
    assert tree.method == "beam"
    assert tree.settings == {
        **{"width": 2, "depth": 20, "proposer": "policy", "line_tokens": 64, "value": "gold", "samples": 4},
        **{"aggregate": "last", "prune": 0.0, "beams": 2, "diverse": False, "choice": "best"},
        **{"format": "plain", "sampler": "scripted"},
        "decoding": {"max_tokens": 99, "temperature": 0.7, "top_p": 1.0, "top_k": 0, "stop": ["#"], "seed": 5},
    }
    assert json.loads(json.dumps(tree.settings)) == tree.settings
    lines = [decoding for _, decoding in sampler.calls]
    assert {each.stop for each in lines} == {("\n",)} and {each.max_tokens for each in lines} == {64}
    assert {each.temperature for each in lines} == {0.7}


def test_nothing_asked_nothing_spent():
    for spec in SPECS:
        trees, sampler = solve(spec, [])
        assert trees == [] and sampler.calls == []


def test_a_call_is_shared_by_who_wanted_what():
    short, long = (Tree(problem, "none") for problem in PROBLEMS[:2])
    sampler = Scripted(says("abc", "d", "efghi"))
    search = Search(TASK, PLAIN, sampler, Decoding())
    search.write([(short, "1"), (long, "22222"), (short, "1")])
    # Read: 1 and 5 characters; written: 4 + 6 and 2 with their end marks.
    assert short.ledger == Ledger(prompt_tokens=1, generated_tokens=10, calls=2, flops=22.0, seconds=0.5 * 11 / 18)
    assert long.ledger == Ledger(prompt_tokens=5, generated_tokens=2, calls=1, flops=14.0, seconds=0.5 * 7 / 18)


def test_judging_is_charged_as_such():
    tree = Tree(PROBLEMS[0], "none")
    search = Search(TASK, PLAIN, Scripted(says("sure")), Decoding())
    search.write([(tree, "well?")], reward=True)
    assert (tree.ledger.reward_tokens, tree.ledger.generated_tokens, tree.ledger.prompt_tokens) == (10, 0, 0)


@given(st.integers(0, 10**6), st.lists(st.integers(0, 10**4), min_size=1, max_size=9))
def test_parts_add_up_and_are_fair(total, weights):
    parts = _apportion(total, weights)
    assert sum(parts) == total
    whole = sum(weights)
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - (total * weight / whole if whole else total / len(weights))) < 1


def test_a_sampler_must_answer_everyone():
    class Mute(Scripted):
        def sample(self, prompts, decoding, ledger=None):
            return []

    with pytest.raises(ValueError, match="scripted gave 0 attempts for 4 prompts"):
        find_method("chain-of-thought").solve(PROBLEMS, TASK, PLAIN, Mute(says()))


def test_a_model_that_is_not_there():
    for spec in ("best-of-n", "beam", "mcts", "depth-first:value=model"):
        sampler = Scripted(says())
        with pytest.raises(UserError, match="value=model needs a trained scorer"):
            find_method(spec).solve(PROBLEMS, TASK, PLAIN, sampler)
        assert sampler.calls == []


def test_only_independent_attempts_have_twins():
    assert set(INDEPENDENT) < set(METHODS)
