"""An evaluation goes on where it was stopped, and refuses to mix what does not belong together."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from mnemonist.errors import UserError
from mnemonist.evals.candidates import CANDIDATES, configure
from mnemonist.evals.evaluation import evaluate
from mnemonist.evals.results import Result, Row, table
from mnemonist.evals.scoring import Scores
from mnemonist.evals.suites import SUITES, build_suite, build_task, reads_text
from mnemonist.intervals import proportion
from mnemonist.models import LanguageModel, ModelConfig
from mnemonist.models.cost import model_cost

SPEC = "mqar:vocabulary=32,longest=64"
CONFIG = ModelConfig(
    blocks=("lmm",), rule="deltanet", vocab_size=32, width=16, memory_heads=2, memory_head_dim=8, mlp_width=16
)


def suite(count=4, **changes):
    return build_suite(SPEC, None, count, **changes)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LanguageModel(CONFIG)


def test_it_can_be_stopped_after_every_step_and_ends_the_same(model, tmp_path):
    whole = evaluate(model, suite(), tmp_path / "whole.json")
    assert whole.complete and [row.setting["pairs"] for row in whole.rows] == [4, 8]
    assert model.training  # its mode is its own
    path = tmp_path / "parts.json"
    steps = []
    first = evaluate(model, suite(), path, stop=lambda: True, on_step=lambda done, of: steps.append((done, of)))
    assert not first.complete and len(first.rows) == 1 and steps == [(0, 2)]
    read = []
    second = evaluate(model, suite(), path, progress=read.append)
    assert second.complete and second.rows == whole.rows
    assert sum(read) <= 4 * 64  # the first setting was not asked again
    assert Result.load(path).rows == whole.rows
    assert second.facts["seconds"] >= first.facts["seconds"]


@pytest.mark.parametrize("change", ["count", "seed", "model"])
def test_another_evaluation_is_not_mixed_in(model, tmp_path, change):
    path = tmp_path / "r.json"
    evaluate(model, suite(), path, stop=lambda: True)
    before = path.read_bytes()
    other = {"count": suite(count=5), "seed": suite(seed=1), "model": suite()}[change]
    if change == "model":
        model = LanguageModel(CONFIG)
    whose = "model" if change == "model" else rf"evaluation \({change} differ\)"
    with pytest.raises(UserError, match=f"r.json is of another {whose}; move it away"):
        evaluate(model, other, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "other"}', '{"format": "mnemonist-evaluation/1"}'])
def test_a_damaged_file_is_left_alone(model, tmp_path, content):
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"is damaged|no evaluation of this version"):
        evaluate(model, suite(), path)
    assert path.read_text() == content


def test_a_model_of_other_tokens(model):
    with pytest.raises(UserError, match="the model has 32 tokens but mqar is made of 8,192"):
        evaluate(model, build_suite("mqar"))


def test_rows_know_their_intervals():
    counted = Row.of({"n": 1}, np.array([True, True, False]), bits=2.0)
    assert (counted.mean, counted.count, counted.more) == (2 / 3, 3, {"bits": 2.0})
    assert 0 < counted.low < 2 / 3 < counted.high < 1
    measured = Row.of({"n": 1}, [1.0, 2.0, 3.0])
    assert measured.high - measured.mean == pytest.approx(4.303 / np.sqrt(3))
    assert Row.of({"n": 1}, [5.0]).low == 5.0
    shared = Row.of_shares({"n": 1}, [1.0, 1.0, 0.75])
    assert shared.count == 3 and 0 < shared.low < shared.mean < shared.high <= 1 < 11 / 12 + 4.303 / np.sqrt(3) / 12
    assert shared.mean - shared.low > shared.high - shared.mean
    assert Row.of_shares({"n": 1}, [True, False]) == Row.of({"n": 1}, np.array([True, False]))


def test_a_model_that_is_always_right_is_not_said_to_be_sure_of_it(model, monkeypatch):
    monkeypatch.setattr(
        "mnemonist.evals.suites.score",
        lambda model, problems, progress: Scores(np.full(4, 4), np.full(4, 4), np.zeros(4)),
    )
    assert suite().task.metric == "token"
    result = evaluate(model, suite())
    for row in result.rows:  # four problems of four tokens: four problems, not sixteen
        assert (row.mean, row.low, row.high) == (1.0, *proportion(4, 4))
    assert "1.000 (0.510 to 1.000)" in table([result])
    assert "1.000 (0.207 to 1.000)" in table([dataclasses.replace(result, rows=(Row.of({"pairs": 4}, [True]),))])


def test_a_table_has_a_column_for_each_model():
    rows = (Row({"n": 1}, 0.5, 0.4, 0.6, 10), Row({"n": 2}, 0.25, 0.2, 0.3, 10))
    one = Result({"suite": "s"}, "accuracy", "n", rows, {"name": "one", "parameters": 1000, "state_bytes": 64})
    two = dataclasses.replace(one, rows=rows[:1], model={"name": "two", "state_bytes": 8, "state_bytes_per_token": 8})
    lines = table([one, two]).splitlines()
    assert lines[0] == "accuracy (95% interval)"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert cells[0] == ["n", "one", "two"]
    assert cells[2] == ["1", "0.500 (0.400 to 0.600)", "0.500 (0.400 to 0.600)"]
    assert cells[3] == ["2", "0.250 (0.200 to 0.300)", ""]
    assert cells[4:] == [["parameters", "1,000", ""], ["state, bytes", "64", "8 + 8 a token"]]
    with pytest.raises(ValueError, match="all of them of one suite"):
        table([one, dataclasses.replace(one, identity={"suite": "t"})])


def test_lines_of_a_plot():
    def result(*settings):
        return Result({}, "accuracy", "n", tuple(Row(s, 0.0, 0.0, 0.0, 1) for s in settings))

    single = result({"n": 1, "length": 8}, {"n": 2, "length": 9}).lines()
    assert list(single) == [""] and len(single[""]) == 2
    several = result({"n": 1, "length": 8}, {"n": 2, "length": 8}, {"n": 1, "length": 9}).lines()
    assert {title: len(rows) for title, rows in several.items()} == {"length 8": 2, "length 9": 1}


@pytest.mark.parametrize("name", list(SUITES))
def test_every_suite_can_be_built_and_says_what_it_is(name):
    made = build_suite(name, count=2, seed=1)
    assert made.name == name and made.vocab_size > 1
    assert Result({}, made.measure, made.x).bounds in ((0, 1), (0, math.inf))
    settings = [setting for step in made.steps for setting in step]
    assert settings and all(made.x in setting for setting in settings)
    assert len({json.dumps(setting) for setting in settings}) == len(settings)
    assert json.loads(json.dumps(made.identity())) == made.identity()
    for rows in made.references().values():
        assert [row.setting for row in rows] == settings
    texts = {"positions", "niah", "phonebook", "planted", "babilong-like", "streaming"}
    assert reads_text(name) == (name in texts)
    assert not SUITES[name].trains or build_task(name).vocab_size == made.vocab_size


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mqra", r"no suite 'mqra' \(did you mean 'mqar'\?\)"),
        ("mqar:vocab=3", "did you mean 'vocabulary'"),
        ("mqar:seed=3", "not a change to the suite mqar"),
        ("mqar:vocabulary=x", "must be of type int"),
    ],
)
def test_wrong_names(spec, message):
    with pytest.raises(ValueError, match=message):
        build_suite(spec)


def test_only_tasks_have_lessons():
    with pytest.raises(UserError, match="positions has no problems to learn from; tasks: mqar, niah"):
        build_task("positions")
    with pytest.raises(UserError, match="ask for at least 1 problem"):
        suite(count=0)


def test_candidates_have_equally_many_parameters():
    size = ModelConfig(blocks=("attention",) * 2, vocab_size=64, width=64, heads=2, head_dim=16, memory_heads=2,
                       memory_head_dim=16, window=16, mlp_width=200)  # fmt: skip
    costs = {name: model_cost(configure(name, size)) for name in CANDIDATES}
    wanted = costs["attention"].parameters
    assert all(abs(cost.parameters / wanted - 1) < 0.01 for cost in costs.values())
    assert [name for name, cost in costs.items() if cost.state_bytes_per_token] == ["attention"]
    with pytest.raises(UserError, match="did you mean 'deltanet'"):
        configure("detanet", size)
