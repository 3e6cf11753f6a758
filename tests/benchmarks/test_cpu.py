"""The measures run, at tiny sizes; and the command keeps what is done."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


def run(script, *arguments, warnings="error", **more):
    command = [sys.executable, "-W", warnings, str(script), *arguments]
    return subprocess.run(command, timeout=240, capture_output=True, text=True, **more)


@pytest.mark.parametrize("script", ["alone.py", "check.py", "cpu.py", "gpu.py", "page.py"])
def test_help(benchmarks, script):
    told = run(benchmarks / script, "--help", env={**os.environ, "PYTHONSAFEPATH": ""})
    assert told.returncode == 0 and "python benchmarks/" in told.stdout, told.stderr


def test_every_measure_of_ours_runs(benchmarks, tmp_path):
    out = tmp_path / "report.json"
    titles = ["Reference work", "Linear memories", "Training", "Streams", "Writing", "Roofline"]
    told = run(benchmarks / "cpu.py", "--rehearse", "--out", str(out), "--only", *titles)
    assert told.returncode == 0, told.stdout + told.stderr
    report = json.loads(out.read_text())
    assert list(report["groups"]) == titles and "mean nothing" in report["what"]
    for entry in report["results"]:
        assert entry["ratio"] is not None, entry
        assert 0 < entry["ratio"]["min"] <= entry["ratio"]["median"] <= entry["ratio"]["max"]
        assert entry["runs"] >= 1 and (entry["target"] is None) == ("met" not in entry)
    assert len({(entry["group"], entry["name"]) for entry in report["results"]}) == len(report["results"])


def test_without_the_peer_its_rows_say_so(benchmarks, tmp_path, monkeypatch, capsys):
    import cpu
    from cpu_measure import TINY

    monkeypatch.setitem(sys.modules, "titans_pytorch", None)
    out = tmp_path / "report.json"
    chosen = cpu.selected(cpu.groups(TINY), ["Layer: forward"])
    assert cpu.run(out, TINY, chosen, None, partial=True) == 0
    results = json.loads(out.read_text())["results"]
    assert len(results) == 5 and all(entry["ratio"] is None for entry in results)
    assert all(entry["note"].startswith("titans-pytorch cannot be imported") for entry in results)


def test_our_layer_is_read_as_theirs_is():
    """With a layer of ours in place of the peer's, both sides are measured."""
    import cpu_layer
    from cpu_measure import TINY, timed

    layers = [cpu_layer.our_layer(TINY.reference, to) for to in ("zero", "initial")]
    works = [cpu_layer.reading(layer, TINY.reference, TINY.tokens, back=True) for layer in layers]
    (pairs,) = timed(lambda: works, 2)()
    assert min(*pairs.ours, *pairs.theirs) > 0
    assert all(p.grad is not None for layer in layers for p in layer.parameters())


def test_peak_memory_is_that_of_the_reading(benchmarks, monkeypatch):
    if not sys.platform.startswith("linux"):
        pytest.skip("memory is read from /proc")
    import alone
    import cpu_layer
    import torch
    from cpu_measure import TINY

    def reading(layer, work, tokens, back):
        def touch():
            torch.ones(2**26)  # 256 MiB, given back at once

        return touch

    monkeypatch.setattr(cpu_layer, "reading", reading)
    assert 0.99 * 2**28 < alone.peak(TINY, "ours")["bytes"] < 1.1 * 2**28  # pages are counted in batches


def fake(names, take):
    from cpu_measure import Group, Measure, Row

    return Group("Some", "words", tuple(Measure((Row(name, "a peer", 1.0),), take[name]) for name in names))


def test_what_breaks_is_recorded_and_the_rest_goes_on(tmp_path, capsys):
    import cpu
    from cpu_measure import TINY, Pairs

    good = lambda: [Pairs([1.0, 2.0], [3.0, 4.0], {"fact": 7})]  # noqa: E731
    group = fake(("bad", "good"), {"bad": lambda: 1 / 0, "good": good})
    out = tmp_path / "report.json"
    assert cpu.run(out, TINY, [(group, measure) for measure in group.measures], None, partial=False) == 1
    bad, fine = json.loads(out.read_text())["results"]
    assert bad["ratio"] is None and "ZeroDivisionError" in bad["note"]
    assert fine["ratio"] == {"min": 2.0, "median": 2.5, "max": 3.0} and fine["fact"] == 7 and fine["met"] is True
    assert "1 of 1 targets met" in capsys.readouterr().out


def test_an_interruption_keeps_what_is_done(tmp_path, capsys):
    import cpu
    from cpu_measure import TINY, Pairs

    def interrupted():
        raise KeyboardInterrupt

    takes = {"first": lambda: [Pairs([1.0], [3.0])], "second": interrupted, "third": interrupted}
    group = fake(takes, takes)
    out = tmp_path / "report.json"
    old = {"date": "before", "results": [{"group": "Some", "name": n, "ratio": {"median": 1.0}} for n in takes]}
    chosen = [(group, measure) for measure in group.measures]
    assert cpu.run(out, TINY, chosen, old, partial=False) == 130
    assert [entry["name"] for entry in json.loads(out.read_text())["results"]] == ["first"]
    told = capsys.readouterr().out
    assert "Stopped" in told and "1 ratios compared with those of before: none lost" in told


def test_a_lost_ratio_fails_the_run(tmp_path, capsys):
    import cpu
    from cpu_measure import TINY, Pairs

    group = fake(("one",), {"one": lambda: [Pairs([1.0], [1.0])]})
    old = {"results": [{"group": "Some", "name": "one", "ratio": {"median": 2.0}}]}
    assert cpu.run(tmp_path / "report.json", TINY, [(group, group.measures[0])], old, partial=False) == 1
    assert "Some: one: 1, 50% less than 2." in capsys.readouterr().out


def test_a_part_is_named_by_what_its_names_have_in_them():
    import cpu
    from cpu_measure import FULL

    every = cpu.groups(FULL)
    names = [[row.name for row in measure.rows] for _, measure in cpu.selected(every, ["peak MEMORY", "Roofline"])]
    assert names[0] == ["peak memory, forward and backward"] and len(names) == 1 + len(FULL.chunks)
    assert len(cpu.selected(every, None)) == sum(len(group.measures) for group in every)


@pytest.mark.parametrize(
    "arguments,sentence",
    [
        (["--only", "no such thing"], "Nothing has no such thing in its name; --list prints the names.\n"),
        (["--out", "."], "cannot write .: it is a folder; give the name of a file\n"),
        (["--out", "new.json", "--against", "old.json"], "old.json cannot be read as a report of measurements: "),
        (
            ["--only", "Layer", "--out", "old.json"],
            "old.json is a whole report; give --out another file for a part of one.\n",
        ),
        (["--runs", "0"], "--runs is 0; it must be at least 1.\n"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(tmp_path, monkeypatch, capsys, arguments, sentence):
    import cpu

    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.json").write_text("[]")
    monkeypatch.setattr(sys, "argv", ["cpu.py", *arguments])
    monkeypatch.setattr(cpu, "run", lambda *_, **__: pytest.fail("it began to measure"))
    try:
        code = cpu.main()
    except SystemExit as left:
        code = left.code
    assert code == 2
    assert sentence in capsys.readouterr().err


def test_models_have_equally_many_parameters():
    from cpu_measure import FULL
    from cpu_models import configurations

    from mnemonist.models.cost import model_cost

    counts = [model_cost(config).parameters for config in configurations(FULL, 2).values()]
    assert max(counts) / min(counts) < 1.005


def test_dearest_and_cheapest_lengths_are_compared(monkeypatch):
    import cpu_streams
    from cpu_measure import TINY

    # Seconds a run: 16 tokens are read twice, 32 once.
    monkeypatch.setattr(cpu_streams, "alternate", lambda sides, runs: [[3.2, 6.4, 3.2], [1.6, 1.6, 3.2]])
    found = cpu_streams.costs(TINY)
    assert found.ours == pytest.approx([0.1, 0.2, 0.1]) and found.theirs == pytest.approx([0.05, 0.05, 0.1])
    assert found.facts["seconds_per_token"] == pytest.approx({"16": 0.1, "32": 0.05})
