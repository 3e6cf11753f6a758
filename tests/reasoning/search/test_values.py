"""What judges say of paths, what it costs, and how steps add up to paths."""

from __future__ import annotations

import pytest
from scripted import PLAIN, Climb, Judging, Oracle, Scripted, says

from mnemonist.errors import UserError
from mnemonist.reasoning.attempts import Decoding
from mnemonist.reasoning.formats import FORMATS
from mnemonist.reasoning.search.lockstep import Place, Search
from mnemonist.reasoning.search.values import (
    OPINIONS,
    VALUES,
    appraise,
    combine,
    find_judge,
    read_opinion,
    units,
)
from mnemonist.reasoning.tree import ROOT, Tree

TASK = Climb()
PROBLEM = TASK.problem("train", 1, 0)  # from 1 to 11: 1 2 4 8 11, for one
GOOD, LOST, WRONG = ["1 * 2 = 2"], ["1 * 2 = 2", "2 * 2 = 4", "4 + 3 = 7"], ["1 + 1 = 2"]


def search_with(*texts, format=PLAIN, scorer=None):
    return Search(TASK, format, Scripted(says(*texts)), Decoding(max_tokens=50), scorer)


def chain(*steps, **last):
    """A tree that is one path, and the place at its end."""
    tree = Tree(PROBLEM, "none")
    node = tree.nodes[ROOT]
    for number, step in enumerate(steps, 1):
        node = tree.add(node.number, step, **(last if number == len(steps) else {}))
    return Place(tree, node)


def finished(answer, *steps):
    right = answer is not None and TASK.judge(PROBLEM, answer).right
    return chain(*steps, f"answer: {answer}", finished=True, answer=answer, right=right)


def value(search, name, place, samples=3, aggregate="last"):
    appraise(search, find_judge(name, samples, search), [place], aggregate)
    return place.node.value


@pytest.mark.parametrize(("steps", "expected"), [(GOOD, 1.0), (LOST, 0.0), (WRONG, 0.0), ([""], 1.0)])
def test_gold_is_the_truth(steps, expected):
    place = chain(*steps)
    assert value(search_with(), "gold", place) == expected
    assert place.node.hopeful is (expected == 1.0)
    assert place.node.reason == {1.0: "", 0.0: "11 is out of reach" if steps is LOST else "not allowed"}[expected]


def test_gold_of_answers():
    right, wrong = finished("* 2,* 2,* 2,+ 3", *GOOD), finished("+ 3", *GOOD)
    assert value(search_with(), "gold", right) == 1 and right.node.hopeful
    assert value(search_with(), "gold", wrong) == 0 and wrong.node.hopeful is False and wrong.node.reason == "it is 4"


def test_outcome_knows_ends_only():
    assert value(search_with(), "outcome", chain(*LOST)) == 1
    assert value(search_with(), "outcome", finished("+ 3")) == 0
    assert value(search_with(), "outcome", finished("* 2,* 2,* 2,+ 3")) == 1


@pytest.mark.parametrize("name", VALUES)
def test_no_answer_is_worth_nothing_and_costs_nothing(name):
    search = search_with(scorer=Oracle())
    place = finished(None, *GOOD)
    assert value(search, name, place) == 0
    assert place.tree.ledger.tokens == 0


def test_rollouts_count_right_ends():
    ends = ["1 + 3 = 4\nanswer: + 3\n", "answer: * 2,* 2,* 2,+ 3\n", "nothing", "answer: + 3,* 2,+ 3"]
    search, place = search_with(*ends), chain(*GOOD)
    assert value(search, "rollouts", place, samples=4) == 0.5  # 1 + 3 and so on to 11 is right as well
    assert {prompt for prompts, _ in search.sampler.calls for prompt in prompts} == {"from 1 to 11\n1 * 2 = 2\n"}
    assert place.node.extra_tokens == sum(len(end) + 1 for end in ends) == place.tree.ledger.generated_tokens
    assert value(search_with(*ends), "any-rollout", chain(*GOOD), samples=4) == 1
    assert value(search_with(*ends[:3]), "any-rollout", chain(*GOOD), samples=3) == 1
    assert value(search_with(*ends[2:3] * 4), "any-rollout", chain(*GOOD), samples=4) == 0


def test_rollouts_of_what_is_at_its_end():
    search = search_with()
    assert value(search, "rollouts", finished("+ 3")) == 0
    assert value(search, "rollouts", finished("* 2,* 2,* 2,+ 3")) == 1
    assert search.sampler.calls == []


def test_a_rollout_goes_on_in_the_middle_of_a_text():
    """The answer's marks may have been opened before."""
    search = search_with("</think>\n<answer>* 2,* 2,* 2,+ 3</answer>", format=FORMATS["think"])
    assert value(search, "rollouts", chain(*GOOD), samples=1) == 1


def test_self_evaluation_asks_the_policy():
    search, place = search_with("Sure!\n", "it is impossible\nsure", "hm\n"), chain(*GOOD)
    assert value(search, "self", place) == pytest.approx((1 + 0) / 2)
    (prompts, decoding), *_ = search.sampler.calls
    assert len(prompts) == 3 and "from 1 to 11\n1 * 2 = 2\n" in prompts[0] and prompts[0].endswith("\n")
    assert decoding.stop == ("\n",)
    assert place.tree.ledger.generated_tokens == 0 and place.tree.ledger.reward_tokens > 3 * 4
    assert value(search_with("?", "!", ""), "self", chain(*GOOD)) == OPINIONS["likely"]


def test_who_thinks_first_is_not_stopped_before():
    search = search_with("hm\nwell\nsure", format=FORMATS["think"])
    assert value(search, "self", chain(*GOOD), samples=1) == 1
    assert search.sampler.calls[0][1].stop == ()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        *[("sure", "sure"), ("SURE.", "sure"), ("I am sure", "sure"), ("**likely**", "likely")],
        *[("not sure", "likely"), ("not likely", "impossible"), ("not\nimpossible", "likely")],
        *[("impossible? no: sure", "sure"), ("sure, or rather impossible", "impossible")],
        *[("unsure", None), ("unlikely", None), ("surely", None), ("", None), ("5", None), ("nothing", None)],
    ],
)
def test_opinions_in_words(text, word):
    assert read_opinion(text) == (None if word is None else OPINIONS[word])


class Counting:
    """Scores a path by its length, whatever it says."""

    def __init__(self, *scores):
        self.scores = scores
        self.asked = []

    def score(self, problem, paths, ledger):
        self.asked += [list(path) for path in paths]
        ledger.charge(reward=len(paths))
        return [self.scores[len(path) - 1] for path in paths]


@pytest.mark.parametrize(("aggregate", "expected"), [("last", 0.5), ("min", 0.25), ("product", 0.5 * 0.25 * 0.5)])
def test_steps_add_up_to_paths_either_way(aggregate, expected):
    """Step by step, where parents have their values, or a whole attempt at once."""
    steps = ["a", "b", "answer: + 3"]
    ending = {"finished": True, "answer": "+ 3", "right": False}
    scorer = Counting(0.5, 0.25, 0.5)
    search = search_with(scorer=scorer)
    place = chain(*steps, **ending)
    for node in place.tree.nodes[1:]:
        value(search, "model", Place(place.tree, node), aggregate=aggregate)
    assert place.node.value == expected
    assert scorer.asked == [steps[:1], steps[:2], steps]

    scorer.asked.clear()
    whole = chain("a\n\n b\nanswer: + 3\n", **ending)
    assert value(search, "model", whole, aggregate=aggregate) == expected
    prefixes = [["a"], ["a", " b"], ["a", " b", "answer: + 3"]]
    assert scorer.asked == (prefixes[-1:] if aggregate == "last" else prefixes)
    assert whole.tree.ledger.reward_tokens == len(scorer.asked)


def test_a_scorer_is_not_asked_before_there_is_a_step():
    scorer = Counting(0.25)
    search = search_with(scorer=scorer)
    place = chain("\n", "a")
    for node in place.tree.nodes[1:]:
        value(search, "model", Place(place.tree, node))
    assert [node.value for node in place.tree.nodes[1:]] == [1.0, 0.25] and scorer.asked == [["a"]]


def test_gold_of_a_whole_attempt_step_by_step():
    text = "1 * 2 = 2\n2 * 2 = 4\n4 + 3 = 7\nanswer: * 2,* 2,* 2,+ 3\n"
    whole = chain(text, finished=True, answer="* 2,* 2,* 2,+ 3", right=True)
    assert value(search_with(), "gold", whole) == 1
    assert value(search_with(), "gold", whole, aggregate="min") == 0  # a step on the way led nowhere
    assert whole.node.hopeful is True  # but its end is right


@pytest.mark.parametrize("given", [[], [0.5, 0.5], [1.5], [-0.1], [float("nan")]])
def test_a_scorer_must_give_values(given):
    class Bad:
        def score(self, problem, paths, ledger):
            return given

    with pytest.raises(ValueError, match="must give each a number from 0 to 1"):
        value(search_with(scorer=Bad()), "model", chain(*GOOD))


def test_scores_come_back_to_their_paths():
    """Trees may take turns among the places."""
    one, other = chain("a", "b", "c"), chain("a")
    search = search_with(scorer=Counting(0.1, 0.2, 0.3))
    second = Place(one.tree, one.tree.nodes[2])
    appraise(search, find_judge("model", 1, search), [one, other, second])
    assert (one.node.value, other.node.value, second.node.value) == (0.3, 0.1, 0.2)


def test_pieces_of_text():
    think = FORMATS["think"]
    assert units(PLAIN, "a\n\n  \nb\nanswer: 5\nc\n") == ["a", "b", "answer: 5\nc"]
    assert units(think, "a\n</think>\n<answer>5</answer>") == ["a", "</think>\n<answer>5</answer>"]
    assert units(think, "answer: 5") == ["answer: 5"] and units(PLAIN, " \n") == []


def test_combining():
    assert (combine([0.5, 0.2, 0.4], "last"), combine([0.5, 0.2, 0.4], "min")) == (0.4, 0.2)
    assert combine([0.5, 0.2, 0.4], "product") == pytest.approx(0.04)
    with pytest.raises(UserError, match="did you mean 'min'"):
        combine([1.0], "minimum")


def test_judges_that_cannot_be():
    with pytest.raises(UserError, match="did you mean 'rollouts'"):
        find_judge("rollout", 1, search_with())
    search = search_with()
    search.task = Judging()
    with pytest.raises(UserError, match="value=gold needs a task whose steps"):
        value(search, "gold", chain(*GOOD))
