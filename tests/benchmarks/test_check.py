"""What counts as speed that was lost."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


def report(**medians):
    results = [
        {"group": "Layer", "name": name, "ratio": None if m is None else {"min": 0.5 * m, "median": m, "max": 2 * m}}
        for name, m in medians.items()
    ]
    return {"date": "2026-01-01", "results": results}


def test_a_ratio_may_fall_by_the_tolerance_and_no_more():
    from check import losses

    old = report(forward=2.0)
    assert losses(report(forward=1.71), old) == []
    assert losses(report(forward=5.0), old) == []
    assert losses(report(forward=1.69), old) == ["Layer: forward: 1.69, 16% less than 2."]
    assert losses(report(forward=1.71), old, tolerance=0.1)


def test_a_ratio_that_is_gone_is_lost_unless_only_a_part_was_measured():
    from check import losses

    old = report(forward=2.0, backward=3.0)
    assert losses(report(forward=2.0), old) == ["Layer: backward: was 3, and is not measured now."]
    assert losses(report(forward=2.0), old, partial=True) == []
    assert losses(report(forward=2.0, backward=None), old, partial=True)  # it was tried, and broke
    assert losses(report(forward=2.0, new=0.1), report(forward=2.0, new=None)) == []


def test_the_verdict_says_what_was_compared():
    from check import verdict

    old = report(forward=2.0, backward=3.0)
    good = "1 ratios compared with those of 2026-01-01: none lost more than 15%"
    assert verdict(report(forward=2.0), old, partial=True) == good
    assert verdict(report(forward=1.0, backward=3.0), old).splitlines() == [
        "2 ratios compared with those of 2026-01-01: 1 lost more than 15% or are gone",
        "  Layer: forward: 1, 50% less than 2.",
    ]


@pytest.mark.parametrize("median,code", [(2.0, 0), (1.0, 1)])
def test_as_a_command(benchmarks, tmp_path, median, code):
    paths = tmp_path / "new.json", tmp_path / "old.json"
    for path, one in zip(paths, (report(forward=median), report(forward=2.0)), strict=True):
        path.write_text(json.dumps(one))
    told = subprocess.run([sys.executable, str(benchmarks / "check.py"), *map(str, paths)], capture_output=True)
    assert told.returncode == code


def test_a_report_that_is_not_there_is_named(benchmarks, tmp_path):
    missing = str(tmp_path / "none.json")
    command = [sys.executable, str(benchmarks / "check.py"), missing, missing]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 2 and told.stderr.count("\n") == 1 and "none.json" in told.stderr
