"""A walk visits exactly what its rules say, in the order they say."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnemonist.errors import UserError
from mnemonist.reasoning.journey import JOURNEYS, JourneyRules, find_journey, right_leaf, walk
from mnemonist.reasoning.tasks.task import Problem
from mnemonist.reasoning.tree import ROOT, Tree

PROBLEM = Problem("hand", "train", 1, 0, "Which way?", "this way")
SIGNS = {"step": "+", "dead end": "!", "back": "<"}
ALL = JourneyRules("all", trials=0, below=0)
"""Every dead end, all of it, straight back."""
O1 = replace(JOURNEYS["o1-journey"], chance=1.0)
DEPTH_FIRST = JOURNEYS["depth-first"]


def hand_built() -> Tree:
    """Numbers in the comments are those of the nodes; the right path is 6, 9."""
    tree = Tree(PROBLEM, "hand")
    wrong = {"hopeful": False, "finished": True, "right": False, "answer": "no"}
    tree.add(0, "a", hopeful=False)  # 1
    tree.add(1, "b", hopeful=False)  # 2
    tree.add(2, "c", **wrong)  # 3
    tree.add(2, "d", **wrong)  # 4
    tree.add(1, "e", **wrong)  # 5
    tree.add(0, "f", hopeful=True)  # 6
    tree.add(6, "g", hopeful=False)  # 7
    tree.add(7, "h", **wrong)  # 8
    tree.add(6, "i", hopeful=True, finished=True, right=True, answer="this way")  # 9
    tree.add(6, "j", **wrong)  # 10
    tree.add(0, "k", hopeful=False)  # 11: a leaf since nobody went on
    tree.add(0, "l", hopeful=True)  # 12: not taken, but no dead end
    return tree


def way(rules: JourneyRules, seed: int = 0, tree: Tree | None = None) -> str:
    return " ".join(f"{SIGNS[move.kind]}{move.node}" for move in walk(tree or hand_built(), rules, seed).moves)


def test_all_of_it_in_order():
    assert way(ALL) == "+1 +2 +3 !3 <2 +4 !4 <1 +5 !5 <0 +11 !11 <0 +6 +7 +8 !8 <6 +10 !10 <6 +9"


def test_depth_first_goes_back_level_by_level_and_stops_when_it_succeeds():
    assert way(DEPTH_FIRST) == (
        "+1 +2 +3 !3 <2 +4 !4 <2 !2 <1 +5 !5 <1 !1 <0 +6 +7 +8 !8 <7 !7 <6 +9"
    )  # neither 10 nor 11, which come behind the right step


def test_the_o1_journey_takes_one_child_of_a_node_off_the_path():
    below_1 = {"+1 +2 +3 !3 <0", "+1 +2 +4 !4 <0", "+1 +5 !5 <0"}
    expected = {f"{first} +11 !11 <0 +6 +7 +8 !8 <6 +10 !10 <6 +9" for first in below_1}
    assert {way(O1, seed) for seed in range(40)} == expected


def test_at_most_k_trials_at_a_node_of_the_path():
    assert way(replace(O1, trials=1)) == "+6 +9"
    found = {way(replace(ALL, trials=2), seed) for seed in range(40)}
    at_root = {"+1 +2 +3 !3 <2 +4 !4 <1 +5 !5 <0", "+11 !11 <0"}
    at_6 = {"+7 +8 !8 <6", "+10 !10 <6"}
    assert found == {f"{first} +6 {second} +9" for first in at_root for second in at_6}


def test_chance_thins_dead_ends_out():
    def excursions(chance: float, seed: int) -> int:
        # Steps behind which a journey is back on its path: one for each excursion.
        return way(replace(ALL, trials=3, patience=1, chance=chance), seed).count("!")

    assert [excursions(0.0, seed) for seed in range(5)] == [0] * 5
    assert [excursions(1.0, seed) for seed in range(5)] == [4] * 5
    counts = [excursions(0.5, seed) for seed in range(400)]
    assert abs(sum(counts) / 400 - 2 * (0.25 * 1 + 0.25 * 2)) < 0.15  # a second one only after a first


def test_patience_ends_excursions_early():
    assert way(replace(ALL, patience=1)) == "+1 !1 <0 +11 !11 <0 +6 +7 !7 <6 +10 !10 <6 +9"
    assert way(replace(ALL, patience=2)) == "+1 +2 !2 <1 +5 !5 <0 +11 !11 <0 +6 +7 +8 !8 <6 +10 !10 <6 +9"
    assert way(replace(DEPTH_FIRST, patience=1)) == "+1 !1 <0 +6 +7 !7 <6 +9"


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1, "+6 +9"),  # the right path is never cut
        (2, "+6 +9"),
        (3, "+1 !1 <0 +6 +9"),
        (5, "+1 +2 +3 !3 <0 +6 +9"),
        (6, "+1 +2 +3 !3 <2 +4 !4 <0 +6 +9"),
        (8, "+1 +2 +3 !3 <2 +4 !4 <1 +5 !5 <0 +11 !11 <0 +6 +9"),
    ],
)
def test_steps_are_never_more_than_allowed(most, expected):
    assert way(replace(ALL, most_steps=most)) == expected


def test_the_shortcut_is_the_right_path_alone():
    journey = walk(hand_built(), ALL)
    twin = journey.shortcut()
    assert journey.path == twin.path == (6, 9) and journey.answer == twin.answer == "this way"
    assert [move.node for move in twin.moves] == [6, 9] and twin.dead_ends == 0 and journey.dead_ends == 6


def test_the_chosen_answer_is_arrived_at_if_it_is_right():
    tree = hand_built()
    tree.add(12, "m", hopeful=True, finished=True, right=True, answer="that way")  # 13
    assert right_leaf(tree) == 9
    tree.chosen = 13
    assert right_leaf(tree) == 13
    assert way(O1.__class__("none", chance=0.0), tree=tree) == "+12 +13"
    tree.chosen = 5
    assert right_leaf(tree) == 9
    with pytest.raises(UserError, match="hand/train/1/0 has no right answer"):
        walk(Tree(PROBLEM, "hand"), ALL)


def test_where_nobody_knows_values_and_verifiers_decide():
    tree = Tree(PROBLEM, "search")
    tree.add(0, "low", value=0.2)  # 1
    tree.add(1, "high below low", value=0.9)  # 2: not entered, for it was not thought hopeless
    tree.add(0, "both ways wrong", value=0.9)  # 3
    tree.add(3, "wrong", finished=True, right=False, answer="x")  # 4
    tree.add(3, "low too", value=0.4)  # 5
    tree.add(0, "one way open", value=0.9)  # 6
    tree.add(6, "wrong", finished=True, right=False, answer="x")  # 7
    tree.add(6, "never judged")  # 8
    tree.add(0, "low, but a right answer below")  # 9
    tree.nodes[9].value = 0.1
    tree.add(9, "right", finished=True, right=True, answer="a")  # 10
    tree.add(0, "right", finished=True, right=True, answer="a")  # 11
    tree.chosen = 11
    assert way(ALL, tree=tree) == "+1 !1 <0 +3 +4 !4 <3 +5 !5 <0 +11"
    assert way(replace(ALL, doubt=0.0), tree=tree) == "+11"
    tree.nodes[6].hopeful = False  # and what comes behind it is hopeless too
    assert way(replace(ALL, doubt=0.0), tree=tree) == "+6 +7 !7 <6 +8 !8 <0 +11"


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Any shape; hopeful is what has a right leaf below it."""
    parents = draw(st.lists(st.integers(0, 100), min_size=1, max_size=25))
    tree = Tree(PROBLEM, "random")
    for number, parent in enumerate(parents, 1):
        tree.add(parent % number, f"step {number}", hopeful=False)
    leaves = [node for node in tree.leaves() if node.number != ROOT]
    right = draw(st.sets(st.sampled_from([leaf.number for leaf in leaves]), min_size=1))
    for leaf in leaves:
        leaf.finished, leaf.right, leaf.answer = True, leaf.number in right, str(leaf.number)
        for node in tree.path(leaf.number) if leaf.right else []:
            node.hopeful = True
    return tree


RULES = st.builds(
    JourneyRules,
    st.just("any"),
    trials=st.integers(0, 4),
    chance=st.sampled_from([0.0, 0.5, 1.0]),
    below=st.integers(0, 3),
    entering=st.sampled_from(["dead ends first", "as grown"]),
    returning=st.sampled_from(["straight", "level by level"]),
    patience=st.integers(0, 3),
    most_steps=st.integers(1, 40),
)


@settings(max_examples=300, deadline=None)
@given(trees(), RULES, st.integers(0, 3))
def test_any_walk_through_any_tree(tree, rules, seed):
    journey = walk(tree, rules, seed)
    assert walk(tree, rules, seed) == journey
    shortcut = [node.number for node in tree.path(right_leaf(tree))]
    entered = [move.node for move in journey.moves if move.kind == "step"]
    assert [number for number in entered if number in shortcut] == shortcut == list(journey.path)
    assert len(set(entered)) == len(entered) <= max(rules.most_steps, len(shortcut))

    here, given_up, children_entered = ROOT, set(), dict.fromkeys(range(len(tree.nodes)), 0)
    for move in journey.moves:
        node = tree.nodes[move.node]
        assert move.astray == (move.kind != "step" or move.node not in shortcut)
        if move.kind == "step":
            assert node.parent == here  # one never jumps down
            children_entered[here] += 1
            assert node.hopeful is (not move.astray)
        elif move.kind == "dead end":
            assert move.node == here and node.hopeful is False
            given_up.add(here)
        else:
            assert move.node in {ROOT, *(n.number for n in tree.path(here))} - {here}  # an ancestor
            assert rules.returning == "straight" or tree.nodes[here].parent == move.node
        here = move.node
    astray = {number for number in entered if number not in shortcut}
    assert given_up <= astray
    assert rules.returning == "straight" or given_up == astray
    for number, count in children_entered.items():
        if number in astray and rules.below:
            assert count <= rules.below
        if number in {ROOT, *shortcut} and rules.trials:
            assert count <= rules.trials


def test_names_and_changes():
    assert find_journey("o1-journey") is JOURNEYS["o1-journey"]
    rules = find_journey("depth-first:patience=2,returning=straight,chance=0.25")
    assert rules == replace(DEPTH_FIRST, patience=2, returning="straight", chance=0.25)
    assert rules.spec == "depth-first:chance=0.25,returning=straight,patience=2"
    for each in (*JOURNEYS.values(), rules):
        assert each.source and find_journey(each.spec) == each
    for text, message in (
        ("o1-jorney", "there is no journey 'o1-jorney'.*did you mean 'o1-journey'"),
        ("o1-journey:trails=2", "did you mean 'trials'"),
        ("o1-journey:trials=two", "must be of type int"),
        ("o1-journey:trials=-1", "trials is -1"),
        ("o1-journey:chance=2", "chance is 2.0"),
        ("depth-first:doubt=-1", "doubt -1.0"),
        ("o1-journey:most_steps=0", "most_steps is 0"),
        ("o1-journey:entering=as growing", "did you mean 'as grown'"),
    ):
        with pytest.raises(UserError, match=message):
            find_journey(text)
