"""The page about reasoning holds what it was given, loads nothing, and lets nothing out of its place."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from mnemonist.reasoning.formats import FORMATS
from mnemonist.reasoning.journey import JourneyRules, walk
from mnemonist.reasoning.journey_text import Line, tell
from mnemonist.reasoning.ledger import Ledger
from mnemonist.reasoning.tasks.task import Problem
from mnemonist.reasoning.tree import Tree
from mnemonist.report.line_plot import Plot, Series
from mnemonist.report.reasoning import JourneyView, ReasoningPage, Rollout, render_reasoning, write_reasoning
from mnemonist.report.reasoning_data import (
    LONGEST_TEXT,
    MOST_NODES,
    MOST_POINTS,
    ROOM,
    pack_journey,
    pack_tree,
    shares_of_words,
    within,
)

HOSTILE = "</script><img src=x onerror=alert(1)><!-- <style> {{data}} ' \" & \u2028 \ud800 \x00"


def tree(text="8 * 7 = 56", **of_problem):
    made = Tree(Problem(**{**dict.fromkeys(("task", "split", "question", "answer"), "q"), "difficulty": 3, "index": 0,
                           **of_problem}), "beam")  # fmt: skip
    made.add(0, text, tokens=7, log_prob=-1.25, value=0.3, visits=4, hopeful=False, reason="56 is too much")
    made.add(1, "wrong", finished=True, right=False, answer="8*7", hopeful=False, discarded=True)
    made.add(0, "right", finished=True, right=True, answer="8+7", hopeful=True, value=1.0)
    made.answer, made.right, made.chosen = "8+7", True, 3
    return made


def journey():
    rules = JourneyRules("all", trials=0, below=0)
    walked = walk(tree(), rules)
    return JourneyView.of(tell(walked, FORMATS["plain"]), tell(walked.shortcut(), FORMATS["plain"]))


def plot(label="journey", **keys):
    series = Series(label, [1, 10, 100], [0.1, 0.2, 0.4], [0.0, 0.1, 0.3], [0.2, 0.3, 0.5])
    return Plot(**{"title": "Accuracy", "x": "tokens", "y": "accuracy", "series": (series,), **keys})


def page(**keys):
    values = {
        "title": "Countdown",
        "figures": (("accuracy", "61 %"),),
        "scaling": (plot(log_x=True),),
        "ledgers": {"beam": Ledger(1000, 4000, 1000, 50, 12, 1.234e12, 3.21)},
        "curves": (plot(), plot()),
        "trees": (tree(),),
        "journeys": (journey(),),
        "rollouts": (Rollout("Wait, no.", True, "p", "q?", "8+7", "8+7", 9, 1.0, "round 0"),),
        "facts": (("model", "tiny"),),
        "command": "mnemonist reason",
    }
    return ReasoningPage(**{**values, **keys})


def test_the_page_shows_what_it_was_given(Page):
    found = Page(render_reasoning(page()))
    assert "".join(found.texts["h1"]) == "".join(found.texts["title"]) == "Countdown"
    assert found.texts["h2"] == [
        "What compute buys", "Learning", "Trees", "Journeys and shortcuts", "What the policy wrote",
    ]  # fmt: skip
    assert found.texts["h3"] == ["Accuracy"] * 3
    spent = ["1,000", "4,000", "25 %", "50", "5,050", "12", "1.23·10¹²", "3.2"]
    groups = ["1", "100.0 %", "9", "100 %", "0 %", "0 %", "100 %", "0 %"]
    assert found.texts["td"] == [*spent, *groups, "tiny"]
    assert found.texts["code"] == ["mnemonist reason"]
    assert not any("hidden" in attributes for tag, attributes in found.tags if tag in ("figure", "section", "table"))
    assert [len(plot["curves"]) for plot in found.data["plots"]] == [1, 1, 1]


def test_trees_come_as_columns(Page):
    (packed,) = Page(render_reasoning(page())).data["trees"]
    assert packed == {
        "title": "q/q/3/0 · beam",
        "question": "q",
        "right": True,
        "answer": "8+7",
        "chosen": 3,
        "parent": [None, 0, 1, 0],
        "text": ["", "8 * 7 = 56", "wrong", "right"],
        "tokens": [0, 7, 0, 0],
        "log_prob": [None, -1.25, None, None],
        "value": [None, 0.3, None, 1.0],
        "visits": [0, 4, 0, 0],
        "hopeful": [None, False, False, True],
        "reason": ["", "56 is too much", "", ""],
        "finished": [False, False, True, True],
        "node_answer": [None, None, "8*7", "8+7"],
        "node_right": [None, None, False, True],
        "discarded": [False, False, True, False],
        "cut": 0,
    }


def test_journeys_say_how_deep_they_are_astray(Page):
    (packed,) = Page(render_reasoning(page())).data["journeys"]
    assert packed["lines"] == [
        ["8 * 7 = 56", "step", 1, False],
        ["wrong", "step", 2, False],
        ["no: this leads nowhere", "dead end", 2, False],
        ["back to: start", "back", 2, False],
        ["right", "step", 0, False],
    ]
    assert packed["shortcut"] == ["right"] and packed["answer"] == "8+7"
    told = (
        Line("a", "step", 1, True), Line("no", "dead end", 1, True), Line("up", "back", 0, True),
        Line("b", "step", 2, True), Line("hm", "said", 2, True), Line("no", "dead end", 2, True),
        Line("up", "back", 0, True), Line("c", "step", 3, False), Line("d", "step", 4, True),
        Line("no", "dead end", 4, True), Line("up", "back", 3, True), Line("e", "step", 5, False),
    )  # fmt: skip
    lines = pack_journey(JourneyView("t", "q", told, ("c", "e"), "a"))["lines"]
    assert [depth for _, _, depth, _ in lines] == [1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 0]
    assert [text for text, _, _, again in lines if again] == ["b"]  # one excursion right after another


def test_rollouts_and_words(Page):
    texts = ["Wait, no.", "WAIT", "await", "waiting but not", "(but)"]
    assert shares_of_words(texts, ["wait", "but", "a(b"]) == [0.4, 0.4, 0.0]
    assert shares_of_words([], ["wait"]) == [0.0]
    rollouts = [Rollout(text, right, group=f"round {n % 2}") for n, (text, right) in
                enumerate(zip(texts, [True, False, None, True, None], strict=True))]  # fmt: skip
    found = Page(render_reasoning(page(rollouts=tuple(rollouts), words=("wait",), ledgers={}, facts=())))
    assert found.texts["td"] == ["3", "100.0 %", "0", "33 %", "2", "50.0 %", "0", "50 %"]
    assert [each["right"] for each in found.data["rollouts"]] == [True, False, None, True, None]
    assert found.data["words"] == ["wait"]


def page_of(text):
    """With the same text in every field."""
    told = tuple(Line(text, kind, 0, True) for kind in ("step", "dead end", "back", "said"))
    searched = tree(text, task=text, question=text, answer=text)
    searched.method = searched.answer = searched.nodes[1].reason = searched.nodes[3].answer = text
    return ReasoningPage(
        title=text,
        figures=((text, text),),
        scaling=(plot(text, title=text, x=text, y=text, caption=text),),
        ledgers={text: Ledger(1)},
        curves=(plot(text, title=text, unit=text), plot(text)),
        trees=(searched,),
        journeys=(JourneyView(text, text, told, (text,), text),),
        rollouts=(Rollout(text, True, text, text, text, text, 1, 1.0, text),),
        words=(text,) * 5,
        facts=((text, text),),
        command=text,
    )


def test_hostile_text_stays_text_everywhere(Page, check_closed, tmp_path):
    harmless, found = Page(render_reasoning(page_of("harmless"))), Page(render_reasoning(page_of(HOSTILE)))
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in harmless.tags]  # nothing was read as markup
    for tag in ("title", "h1", "code"):
        assert "".join(found.texts[tag]) == HOSTILE, tag
    assert found.data["rollouts"][0]["text"] == found.data["trees"][0]["text"][1] == HOSTILE
    assert found.data["journeys"][0]["lines"][1][0] == found.data["plots"][0]["curves"][0]["label"] == HOSTILE
    check_closed(render_reasoning(page_of(HOSTILE)))
    write_reasoning(tmp_path / "page.html", page_of(HOSTILE))  # half a character does not keep it from disk
    assert "onerror" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_page_is_closed_and_whole(check_closed, check_elements):
    check_closed(render_reasoning(page()))
    check_elements(render_reasoning(page()))


def test_every_part_may_be_missing(Page, check_elements):
    html = render_reasoning(ReasoningPage("nothing"))
    check_elements(html)
    found = Page(html)
    hidden = {attributes.get("id", tag) for tag, attributes in found.tags if "hidden" in attributes}
    assert {"cost", "learning", "trees", "journeys", "rollouts", "table"} <= hidden
    assert found.data["plots"] == found.data["trees"] == found.data["journeys"] == found.data["rollouts"] == []
    parts = {"scaling": "cost", "curves": "learning", "trees": "trees", "journeys": "journeys", "rollouts": "rollouts"}
    for part, place in parts.items():
        found = Page(render_reasoning(ReasoningPage("one", **{part: getattr(page(), part)})))
        hidden = {attributes.get("id") for tag, attributes in found.tags if tag == "section" and "hidden" in attributes}
        assert hidden == set(parts.values()) - {place}, part


def big_tree(count, chosen):
    made = Tree(tree().problem, "mcts")
    for number in range(1, count):
        made.add((number - 1) // 2, f"step {number}", visits=number)
    made.chosen = chosen
    return made


def test_a_large_tree_keeps_its_first_nodes_and_its_path():
    made = big_tree(5 * MOST_NODES, 5 * MOST_NODES - 1)
    packed = pack_tree(made)
    texts = packed["text"]
    assert texts[:MOST_NODES] == ["", *(f"step {n}" for n in range(1, MOST_NODES))]
    assert texts[packed["chosen"]] == f"step {5 * MOST_NODES - 1}"
    assert len(texts) < MOST_NODES + 20 and packed["cut"] == 5 * MOST_NODES - len(texts)
    at, climbed = packed["chosen"], []
    while at is not None:
        climbed.append(texts[at])
        at = packed["parent"][at]
    assert climbed == [*made.steps(made.chosen)[::-1], ""]


def test_the_page_stays_small_and_says_what_is_cut(Page):
    long = "x" * (LONGEST_TEXT + 1000)
    rollouts = (Rollout(f"begin{long}end"),) * 400
    html = render_reasoning(page(trees=(big_tree(3000, None),) * 30, rollouts=rollouts))
    assert len(html) < sum(ROOM.values()) + 200_000
    found = Page(html)
    trees, kept = len(found.data["trees"]), len(found.data["rollouts"])
    assert 3 < trees < 30 and 50 < kept < 400
    said = "".join(found.texts["p"])
    assert f"Shown are {trees} of 30 trees" in said and f"Shown are {kept} of 400 rollouts" in said
    assert f"{trees * 1000:,} nodes or parts of texts were cut" in said and f"{kept} texts were cut" in said
    text = found.data["rollouts"][0]["text"]
    assert text.startswith("begin") and text.endswith("end") and "1,008 characters are left out here" in text
    assert "journeys:" not in said and "lines or parts" not in said


def test_what_is_too_large_by_itself_is_passed_over():
    items = [{"text": "x" * size} for size in (10, 10_000, 20, 950, 30)]
    assert [len(each["text"]) for each in within(1000, iter(items))] == [10, 20, 30]
    endless = ({"text": "x" * 100} for _ in iter(int, 1))  # it stops when the part is full
    assert len(within(1000, endless)) == 8


def test_numbers_that_are_none_are_gaps(Page):
    made = tree()
    made.nodes[1].value, made.nodes[1].log_prob = float("nan"), float("-inf")
    (packed,) = Page(render_reasoning(page(trees=(made,)))).data["trees"]
    assert packed["value"][1] is None and packed["log_prob"][1] is None


def test_long_curves_are_thinned_to_what_can_be_seen(Page):
    x = np.arange(10_001.0)
    found = Page(render_reasoning(page(curves=(Plot("loss", "step", "loss", (Series("", x, x / 2),)),), scaling=())))
    points = found.data["plots"][0]["curves"][0]["points"]
    assert MOST_POINTS / 2 < len(points) <= MOST_POINTS
    assert (points[0][2], points[-1][2], points[-1][3]) == (0.0, 10_000.0, 5000.0)


def test_a_single_plot_is_wide_and_several_stand_beside_each_other(Page):
    for count, widths in ((1, {"1040"}), (3, {"530"})):
        html = render_reasoning(page(curves=(plot(),) * count, scaling=()))
        assert set(re.findall(r'viewBox="0 0 (\d+) ', html)) == widths
    assert "Bands are 95 % intervals." in html
    bare = replace(plot(), series=(Series("", [1, 2], [1, 2]),))
    assert "Bands are" not in render_reasoning(page(curves=(bare,), scaling=()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Plot("Loss", "step", "loss"), "plot 'Loss' has no lines"),
        (lambda: plot(log_x=True, series=(Series("a", [0, 1], [1, 2]),)), "starts above zero, not at 0"),
        (lambda: Series("a", [1, 1], [1, 2]), "line 'a': its x must be finite and rise"),
        (lambda: Series("a", [1, 2], [1, 2, 3]), r"line 'a': y has shape \[3\], but its x has \[2\]"),
        (lambda: Series("a", [1, 2], [1, 2], low=[0, 1]), "one end of an interval"),
        (lambda: Series("a", [1, 2], [np.nan, np.nan]), "no finite value"),
        (lambda: Series("a", [], []), "N >= 1"),
    ],
)
def test_plots_that_cannot_be_drawn_say_so(make, message):
    with pytest.raises(ValueError, match=message):
        make()
