"""The script for GPUs is rehearsed on the CPU, so that what fails there fails for a reason."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, timeout=240, capture_output=True, text=True, env=hidden)


def test_the_rehearsal_runs_every_section(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    told = run("--rehearse", "--out", str(out))
    assert told.returncode == 0, told.stdout + told.stderr
    report = json.loads(out.read_text(encoding="utf-8"))
    assert all(section["finished"] for section in report["sections"].values())
    assert len(report["sections"]) == 7
    assert report["versions"]["torch"] == torch.__version__
    assert len(report["checks"]) > 50 and all(check["passed"] for check in report["checks"])
    assert all(check["error"] <= check["tolerance"] for check in report["checks"])
    for result in report["results"]:
        seconds = result["ours_seconds"]
        assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"]
        assert result["theirs_seconds"] is None or set(result["ratio"]) == {"min", "median", "max"}


def test_without_a_gpu_it_says_so_in_one_sentence(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    told = run("--out", str(out))
    assert told.returncode == 2
    assert told.stderr == "There is no GPU here; --rehearse runs the same at tiny sizes on the CPU.\n"
    assert not out.exists()


def test_an_unknown_section_is_named(tmp_path: Path) -> None:
    told = run("--rehearse", "--only", "speed", "--out", str(tmp_path / "gpu.json"))
    assert told.returncode == 2
    assert told.stderr.startswith("There is no section speed; known: environment, kernels, checks")


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import gpu

    yield gpu, gpu.Bench(gpu.TINY, torch.device("cpu"), tmp_path / "gpu.json")
    for name in ("gpu", "gpu_checks", "gpu_timing"):
        sys.modules.pop(name, None)


def test_the_model_that_is_timed_exists(bench) -> None:
    from mnemonist.models import find_preset

    gpu, _ = bench
    assert find_preset(gpu.FULL.preset).width >= 512


def test_a_peer_that_runs_out_of_memory_is_compared_with_fewer_rows(bench) -> None:
    _, one = bench

    def hungry(least: int):
        def make(batch: int):
            if batch >= least:
                raise torch.cuda.OutOfMemoryError("out of memory")
            return lambda: None

        return make

    one.compare("some rows", lambda batch: lambda: None, hungry(2))
    one.compare("no rows", lambda batch: lambda: None, hungry(1))
    one.compare("ours too", hungry(1), hungry(1))
    some, none, ours = one.report["results"]
    assert some["batch"] == 1 and some["ratio"] and some["note"] == "theirs ran out of memory with 2 rows"
    assert none["batch"] == 2 and none["ratio"] is None and none["ours_seconds"]
    assert ours["ours_seconds"] is None and "ours ran out of memory" in ours["note"]


def test_what_breaks_is_recorded_and_the_rest_goes_on(bench) -> None:
    gpu, one = bench

    def broken(batch: int):
        raise RuntimeError("no such kernel")

    one.compare("theirs broken", lambda batch: lambda: None, broken, target=1.0)
    one.compare("ours broken", broken, None)
    first, second = one.report["results"]
    assert first["ours_seconds"] and first["note"] == "theirs broke with RuntimeError: no such kernel"
    assert second["ours_seconds"] is None and "no such kernel" in second["note"]
    assert gpu.run(one, "late", lambda _: gpu.time.sleep(20), 0.2) is False
    assert gpu.run(one, "wrong", lambda _: 1 / 0, 5) is False
    assert "time was up" in one.report["sections"]["late"]["error"]
    assert "ZeroDivisionError" in one.report["sections"]["wrong"]["error"]
    assert json.loads(one.out.read_text(encoding="utf-8"))["sections"]["wrong"]["finished"] is False


def test_several_processes_check_at_once(bench) -> None:
    _, one = bench
    checks = sys.modules["gpu_checks"]
    cases = [(case, "deep", "auto") for case in list(checks.deep_cases(tiny=True))[:3]]
    found = list(checks.run(cases, one.device, 2, workers=2))
    assert {check["name"] for check in found} == {f"deep: {case.name}" for case, _, _ in cases}
    assert all(check["passed"] for check in found)


def test_a_wrong_backend_fails_its_check(bench, monkeypatch) -> None:
    _, one = bench
    checks = sys.modules["gpu_checks"]
    right = checks.memorize

    def wrong(rule, q, k, v, backend, **given):
        read = right(rule, q, k, v if backend == "recurrent" else 1.1 * v, backend=backend, **given)
        return read

    monkeypatch.setattr(checks, "memorize", wrong)
    case = checks.Case("scaled values", checks.DEEP.replace(chunk_size=4), 11, 4)
    (check,) = checks.run([(case, "deep", "auto")], one.device, 2, workers=1)
    assert check["passed"] is False and check["error"] > check["tolerance"]
