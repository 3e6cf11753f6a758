"""Who proposes: lines of a policy in every format, moves of a task, twins merged."""

from __future__ import annotations

import pytest
from scripted import PLAIN, Climb, Judging, Scripted, says

from mnemonist.errors import UserError
from mnemonist.reasoning.attempts import Decoding
from mnemonist.reasoning.formats import FORMATS, Format
from mnemonist.reasoning.search.lockstep import Place, Search
from mnemonist.reasoning.search.methods import find_method
from mnemonist.reasoning.search.proposers import FromMoves, FromPolicy, find_proposer
from mnemonist.reasoning.tree import ROOT, Tree

TASK = Climb()
PROBLEM = TASK.problem("train", 1, 0)  # from 1 to 11


def propose(*texts, width, format=PLAIN, steps=(), line_tokens=64, log_prob=None, max_tokens=256):
    sampler = Scripted(says(*texts), log_prob)
    search = Search(TASK, format, sampler, Decoding(max_tokens=max_tokens))
    tree = Tree(PROBLEM, "none")
    node = tree.nodes[ROOT]
    for step in steps:
        node = tree.add(node.number, step)
    (children,) = FromPolicy(line_tokens).propose(search, [Place(tree, node)], width)
    return [child.node for child in children], sampler


def test_a_line_is_a_step():
    (node,), sampler = propose("4 + 3 = 7\nand so on", width=1, steps=["1 + 3 = 4"], log_prob=lambda text: -2.5)
    assert (node.text, node.tokens, node.finished, node.answer, node.right) == ("4 + 3 = 7", 10, False, None, None)
    assert node.log_prob == -2.5
    (prompts, decoding), (nothing, _) = sampler.calls[0], ([], None)
    assert prompts == ["from 1 to 11\n1 + 3 = 4\n"] and decoding.stop == ("\n",) and nothing == []
    assert len(sampler.calls) == 1  # no end was opened


def test_twins_are_one_node():
    nodes, _ = propose("a\n", "b\n", "a\n", "a", "a\n", width=5)
    assert [(node.text, node.finished, node.copies, node.tokens, node.extra_tokens) for node in nodes] == [
        ("a", False, 3, 2, 4),
        ("b", False, 1, 2, 0),
        ("a", True, 1, 2, 0),  # where it stopped behind its step, it did something else
    ]


@pytest.mark.parametrize(
    ("format", "lines", "text"),
    [
        (FORMATS["plain"], ["answer: + 3,* 2\n"], "answer: + 3,* 2"),
        (FORMATS["plain"], ["answer: + 3,* 2"], "answer: + 3,* 2"),
        (FORMATS["plain"], ["so my answer: + 3,* 2\n"], "so my answer: + 3,* 2"),  # wherever a format would find it
        (
            FORMATS["think"],
            ["</think>\n?", "<answer>+ 3,* 2</answer> and more"],
            "</think>\n<answer>+ 3,* 2</answer>",
        ),
        (FORMATS["s1"], ["<|im_start|>answer\n?", "Answer: + 3,* 2\nmore"], "<|im_start|>answer\nAnswer: + 3,* 2"),
        (Format("two", open_answer="[", close_answer="]"), ["[+ 3,\n", "* 2]\n"], "[+ 3,\n* 2]"),
    ],
)
def test_the_end_of_a_text_is_one_node(format, lines, text):
    (node,), sampler = propose(*lines, width=1, format=format, steps=["1 + 3 = 4"], log_prob=lambda text: -1.0)
    assert (node.text, node.finished, "".join(node.answer.split())) == (text, True, "+3,*2")
    assert node.right is False  # 1 + 3 and times 2 is 8
    assert node.log_prob == -len(lines)
    if len(lines) > 1:
        assert sampler.calls[1][0] == [sampler.calls[0][0][0] + lines[0].removesuffix("?")]
        assert sampler.calls[1][1].stop == (format.close_answer,)


def test_a_right_answer_is_known_as_such():
    (node,), _ = propose("answer: * 2,* 2,* 2,+ 3\n", width=1)
    assert node.right is True


@pytest.mark.parametrize("text", ["", "I give up", "</think>"])
def test_a_policy_may_stop_without_an_answer(text):
    (node,), _ = propose(text, width=1)
    assert (node.text, node.finished, node.answer, node.right, node.tokens) == (text, True, None, False, len(text) + 1)


def test_a_line_without_end_ends_its_path():
    (node,), sampler = propose("x" * 99, width=1, line_tokens=10)
    assert (node.text, node.finished, node.answer, node.tokens) == ("x" * 10, True, None, 10)
    (node,), sampler = propose("x" * 99, width=1, line_tokens=10, max_tokens=4)
    assert node.tokens == 4 and sampler.calls[0][1].max_tokens == 4


def test_an_end_without_end():
    (node,), _ = propose("</think>\n", "<answer>" + "9" * 99, width=1, format=FORMATS["think"], line_tokens=20)
    assert node.finished and node.answer is None and node.tokens == 9 + 20


def test_moves_are_the_tasks():
    search = Search(TASK, PLAIN, Scripted(says()), Decoding())
    tree = Tree(PROBLEM, "none")
    places = [Place(tree, tree.nodes[ROOT])]
    for _ in range(4):
        (places,) = FromMoves().propose(search, places[:1], 0)
    assert [node.text for node in tree.nodes[1:]] == [
        *["1 + 3 = 4", "1 * 2 = 2", "4 + 3 = 7", "4 * 2 = 8"],
        *["7 + 3 = 10", "7 * 2 = 14", "10 + 3 = 13", "10 * 2 = 20"],
    ]
    assert [node.number for node in tree.nodes if node.finished] == [6, 7, 8]
    assert (tree.nodes[6].answer, tree.nodes[6].right, tree.nodes[6].tokens) == ("+ 3,+ 3,* 2", False, 0)


def test_some_of_many_moves_are_drawn():
    def drawn(seed, index):
        tree = Tree(TASK.problem("train", 1, index), "none")
        search = Search(TASK, PLAIN, Scripted(says()), Decoding(seed=seed))
        (children,) = FromMoves().propose(search, [Place(tree, tree.nodes[ROOT])], 1)
        return [child.node.text.split()[1] for child in children]

    assert drawn(3, 3) == drawn(3, 3)
    assert {drawn(seed, 0)[0] for seed in range(20)} == {"+", "*"}
    assert {drawn(0, 3 * index)[0] for index in range(20)} == {"+", "*"}  # all begin at 1


def test_moves_need_a_task_that_has_them():
    with pytest.raises(UserError, match="proposer=moves needs a task whose steps can be checked, and judging only"):
        find_proposer("moves", 64, Judging())
    with pytest.raises(UserError, match="did you mean 'moves'"):
        find_proposer("move", 64, TASK)
    sampler = Scripted(says())
    with pytest.raises(UserError, match="value=gold needs a task whose steps"):
        find_method("beam:value=gold").solve([PROBLEM], Judging(), PLAIN, sampler)
    assert sampler.calls == []
