"""Trees as they grow, and files of them: whole, damaged, and of others."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import PLAIN, Climb, Scripted, wanderer

from mnemonist.errors import UserError
from mnemonist.reasoning.ledger import Ledger
from mnemonist.reasoning.search.methods import METHODS, find_method
from mnemonist.reasoning.tasks.task import Problem
from mnemonist.reasoning.tree import FORMAT, ROOT, Tree, load_trees, save_trees

PROBLEM = Problem("climb", "test", 1, 0, "from 1 to 11", "", {"start": 1, "target": 11})


def small_tree():
    tree = Tree(PROBLEM, "by hand", {"width": 2})
    left, right = tree.add(ROOT, "a", tokens=2), tree.add(ROOT, "b", tokens=3, value=0.5)
    tree.add(left.number, "c")
    end = tree.add(right.number, "d", finished=True, answer="7", right=True)
    tree.add(left.number, "e")
    tree.answer, tree.chosen = "7", end.number
    return tree


def test_who_is_where():
    tree = small_tree()
    assert [node.text for node in tree.nodes] == ["", "a", "b", "c", "d", "e"]
    assert tree.steps(4) == ["b", "d"] and tree.steps(ROOT) == [] and [node.number for node in tree.path(5)] == [1, 5]
    assert [node.text for node in tree.children(ROOT)] == ["a", "b"]
    assert [node.text for node in tree.children(1)] == ["c", "e"]
    assert [node.text for node in tree.leaves()] == ["c", "d", "e"]
    assert [node.number for node in Tree(PROBLEM, "none").leaves()] == [ROOT]


def test_where_nothing_can_grow():
    tree = small_tree()
    for parent in (-1, 6):
        with pytest.raises(ValueError, match=f"There is no node {parent}; this tree has 6"):
            tree.add(parent, "x")
    with pytest.raises(ValueError, match="Node 4 is finished"):
        tree.add(4, "x")
    assert len(tree.nodes) == 6


def test_trees_of_every_method_come_back(tmp_path):
    task = Climb()
    problems = [task.problem("train", 1, index) for index in range(2)]
    trees = []
    for name, info in METHODS.items():
        value = "self" if getattr(info.method, "value", "") == "model" else None
        method = find_method(f"{name}:value={value}" if value else name)
        trees += method.solve(problems, task, PLAIN, Scripted(wanderer(problems), log_prob=lambda text: -0.25))
    save_trees(tmp_path / "trees.jsonl", trees)
    assert list(load_trees(tmp_path / "trees.jsonl")) == trees
    lines = (tmp_path / "trees.jsonl").read_text().splitlines()
    assert len(lines) == len(trees) == 2 * len(METHODS)
    assert json.loads(lines[0])["format"] == FORMAT == "mnemonist-tree/1"


@given(text=st.text(st.characters(), max_size=20), reason=st.text(max_size=9))  # lone surrogates included
def test_any_text_comes_back(tmp_path_factory, text, reason):
    path = tmp_path_factory.mktemp("texts") / "trees.jsonl"
    tree = Tree(PROBLEM, "none")
    tree.add(ROOT, text, reason=reason, answer=text, finished=True)
    save_trees(path, [tree, tree])
    assert list(load_trees(path)) == [tree, tree]


def test_empty_lines_are_nothing(tmp_path):
    path = tmp_path / "trees.jsonl"
    save_trees(path, [])
    assert list(load_trees(path)) == []
    path.write_text("\n" + json.dumps(small_tree().to_json()) + "\n\n")
    assert list(load_trees(path)) == [small_tree()]


def without(key):
    values = small_tree().to_json()
    del values[key]
    return values


def with_node(place, **changes):
    values = small_tree().to_json()
    values["nodes"][place].update(changes)
    return values


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "Expecting property name"),
        ("tree", "Expecting value"),
        ("[" * 100_000, "recursion"),
        ("[]", "no tree of this version .'list'"),
        ('"tree"', "no tree of this version .'str'"),
        ("{}", "no tree of this version .None"),
        ({**small_tree().to_json(), "format": "mnemonist-tree/0"}, "'mnemonist-tree/0', not 'mnemonist-tree/1'"),
        *[(without(key), f"damaged .'{key}'.") for key in ("nodes", "problem", "ledger", "answer", "chosen")],
        ({**small_tree().to_json(), "nodes": []}, "its nodes do not follow one another"),
        ({**small_tree().to_json(), "nodes": None}, "damaged"),
        ({**small_tree().to_json(), "nodes": [1]}, "damaged"),
        ({**small_tree().to_json(), "problem": {"task": "x"}}, "no problem of this version"),
        ({**small_tree().to_json(), "ledger": {"tokens": 1}}, "no ledger of this version"),
        ({**small_tree().to_json(), "chosen": 6}, "its nodes do not follow one another"),
        ({**small_tree().to_json(), "chosen": "4"}, "its nodes do not follow one another"),
        (with_node(1, parent=1), "its nodes do not follow one another"),
        (with_node(1, parent=5), "its nodes do not follow one another"),
        (with_node(1, parent=None), "its nodes do not follow one another"),
        (with_node(0, parent=0), "its nodes do not follow one another"),
        (with_node(2, number=7), "its nodes do not follow one another"),
        (with_node(2, colour="red"), "damaged .*colour"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, message):
    path = tmp_path / "trees.jsonl"
    bad = line if isinstance(line, str) else json.dumps(line)
    path.write_text(json.dumps(small_tree().to_json()) + "\n\n" + bad + "\n")
    trees = load_trees(path)
    assert next(trees) == small_tree()  # what stands before it can be read
    with pytest.raises(UserError, match=message) as told:
        next(trees)
    assert f"{path}, line 3: " in str(told.value) and "\n" not in str(told.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match="there is no file of trees"):
        list(load_trees(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match="cannot be read"):
        list(load_trees(tmp_path))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        list(load_trees(tmp_path / "binary"))


def test_an_older_node_has_no_copies():
    values = small_tree().to_json()
    for node in values["nodes"]:
        del node["copies"], node["extra_tokens"]
    assert Tree.from_json(values) == small_tree()


def test_a_tree_owns_its_ledger():
    one, other = Tree(PROBLEM, "none"), Tree(PROBLEM, "none")
    one.ledger.charge(generated=5)
    assert other.ledger == Ledger() and one.nodes is not other.nodes
