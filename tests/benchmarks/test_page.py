"""The page says what the reports say."""

from __future__ import annotations

import json

import pytest

LIMITS = "# Limits\n<!-- figures: written by page.py -->\nold\n<!-- end of figures -->\nthe end\n"


def entry(group, name, ours, theirs, target=None, unit="seconds", **facts):
    found = {f"{side}_{unit}": {"min": m, "median": m, "max": m} for side, m in (("ours", ours), ("theirs", theirs))}
    median = theirs / ours
    ratio = {"min": 0.9 * median, "median": median, "max": 1.2 * median}
    return {
        "group": group,
        "name": name,
        "peer": "a peer",
        "ratio": ratio,
        "runs": 5,
        "target": target,
        **found,
        **facts,
    }


@pytest.fixture
def cpu():
    rate = {"min": 9e10, "median": 1e11, "max": 1.1e11}
    parts = {"reads": 3e5, "writes": 1e5}
    return {
        "command": "python benchmarks/cpu.py",
        "date": "2026-01-02",
        "seconds": 120.0,
        "machine": {
            "processor": "Some Processor",
            "cores": 2,
            "threads": 2,
            "matmul_flops_per_second": {"1 thread": rate, "all threads": rate},
            "copy_bytes_per_second": {"min": 9e9, "median": 1e10, "max": 1.1e10},
        },
        "versions": {"python": "3.11", "titans-pytorch": None},
        "groups": {"Layer": "How layers fare.", "Roofline": "At other chunks."},
        "results": [
            entry("Layer", "forward", 0.002, 0.005, target=2.5, note="a note"),
            entry("Layer", "backward", 0.4, 0.2, target=1.0, flops=1e10),
            entry("Layer", "memory", 2**20, 3 * 2**20, target=1.0, unit="bytes"),
            {"group": "Layer", "name": "broken", "peer": "p", "ratio": None, "target": 3.0, "note": "broke: why"},
            entry("Roofline", "chunks of 16", 0.01, 0.005, chunk=16, flops=1e9, bytes=2e8, parts=parts),
            entry("Roofline", "chunks of 64", 0.01, 0.008, chunk=64, flops=1e9, bytes=2e7, parts=parts),
        ],
    }


@pytest.fixture
def folder(tmp_path, cpu):
    folder = tmp_path / "benchmarks"
    (folder / "results").mkdir(parents=True)
    (folder / "results" / "cpu.json").write_text(json.dumps(cpu))
    (folder / "limits.md").write_text(LIMITS)
    return folder


def measure_elsewhere(folder, cpu, results, processor="Other Processor", **parts):
    """A report of another processor, beside the first."""
    report = {**cpu, "machine": {**cpu["machine"], "processor": processor}, "results": results, **parts}
    (folder / "results" / "cpu-other.json").write_text(json.dumps(report))


def test_every_result_is_a_row(folder):
    from page import write

    written = write(folder)
    text = (folder / "README.md").read_text()
    assert "| forward; a note | 2.00 ms | a peer | 5.00 ms | 2.50 (2.25 to 3.00) | 5 | 2.5 | yes |" in text
    assert "| backward | 400 ms | a peer | 200 ms | 0.50 (0.45 to 0.60) | 5 | 1 | no |" in text
    assert "| memory | 1 MiB | a peer | 3 MiB | 3.00 (2.70 to 3.60) | 5 | 1 | yes |" in text
    assert "| broken; broke: why | - | p | - | - | - | 3 | not measured |" in text
    assert "2 of 4 targets are met" in text
    assert "How layers fare." in text and "Some Processor, 2 threads" in text
    assert "titans-pytorch" not in text.partition("### Layer")[0]
    assert {path.name for path in written} == {"README.md", "ratios.svg", "limits.md", "roofline.svg"}
    for path in written:
        assert path.exists()


def test_another_processor_stands_beside_the_first(folder, cpu):
    from page import write

    results = [entry("Layer", "forward", 0.002, 0.003, target=2.5), *cpu["results"][1:2], *cpu["results"][3:4]]
    measure_elsewhere(folder, cpu, results)
    write(folder)
    text = (folder / "README.md").read_text()
    assert "2 of 4 targets are met, on Other Processor 0 of 3." in text
    assert "| what | target | Some Processor, 2026-01-02 | Other Processor, 2026-01-02 |" in text
    assert "| Layer: forward | 2.5 | 2.50 (2.25 to 3.00) | 1.50 (1.35 to 1.80), missed |" in text
    assert "| Layer: memory | 1 | 3.00 (2.70 to 3.60) | not measured |" in text
    assert "| Layer: broken | 3 | not measured | not measured |" in text


def test_what_the_first_processor_has_not_got_is_shown_of_another(folder, cpu):
    from page import write

    measure_elsewhere(
        folder, cpu, [entry("Writing", "one row", 0.002, 0.003, target=1.0)], groups={"Writing": "Few rows."}
    )
    write(folder)
    text = (folder / "README.md").read_text()
    assert "### Writing\n\nFew rows. 2026-01-02, `python benchmarks/cpu.py`; Other Processor, 2 threads." in text
    assert "| one row | 2.00 ms | a peer | 3.00 ms | 1.50 (1.35 to 1.80) | 5 | 1 | yes |" in text
    assert "| Writing: one row | 1 | not measured | 1.50 (1.35 to 1.80) |" in text


def test_the_projects_page_tells_the_main_figures(folder, cpu):
    from page import write

    front = folder.parent / "README.md"
    front.write_text(LIMITS)
    cpu["results"].append(entry("Training", "mac, 4,096 tokens", 0.4, 0.2, target=1.0))
    (folder / "results" / "cpu.json").write_text(json.dumps(cpu))
    measure_elsewhere(folder, cpu, cpu["results"][-1:], processor="Other")
    assert front in write(folder)
    text = front.read_text()
    assert text.startswith("# Limits\n") and text.endswith("the end\n")
    assert "| Some Processor | Other |" in text
    assert "| its layer reads | a peer | 2.50 |  |" in text
    assert "| MAC | a peer | 0.50, missed | 0.50, missed |" in text


def test_the_committed_project_page_is_that_of_the_committed_reports(benchmarks):
    from page import front_figures, other_reports, reports_elsewhere

    results = benchmarks / "results"
    cpu = json.loads((results / "cpu.json").read_text())
    assert (
        front_figures(cpu, other_reports(results), reports_elsewhere(results))
        in (benchmarks.parent / "README.md").read_text()
    )


def test_the_figures_of_the_limits_are_put_between_their_marks(folder):
    from page import put_figures, write

    write(folder)
    text = (folder / "limits.md").read_text()
    assert text.startswith("# Limits\n") and text.endswith("the end\n") and "old" not in text
    assert "| reads | 300 | 75% |" in text
    # Copying 10 GB/s allows 5 operations a byte times that: 50 GFLOP/s; products of the shape reach 200.
    assert "| 16 | 100 | 0.50 | 50 | copying |" in text
    assert "| 64 | 100 | 0.80 | 500 | multiplying |" in text
    # 10 GFLOP at 100 GFLOP/s are 100 ms of the 400 that were taken; the peer takes 200.
    assert "| layer: backward | 10.0 | 100 ms | 400 ms | 0.25 | 0.50 | 2.00 | 1 |" in text
    (folder / "limits.md").write_text("no marks")
    with pytest.raises(ValueError, match=r"limits.md has lost the marks"):
        put_figures(folder / "limits.md", "figures")


def test_the_same_report_writes_the_same_bytes(folder):
    from page import write

    first = {path: path.read_bytes() for path in write(folder)}
    assert {path: path.read_bytes() for path in write(folder)} == first


def test_targets_on_a_gpu_wait_for_its_report(folder):
    from gpu_targets import GPU_TARGETS
    from page import write

    write(folder)
    text = (folder / "README.md").read_text()
    for name, least in GPU_TARGETS.items():
        assert f"| {name} | not yet measured | {least:.3g} |" in text
    gpu = {
        "command": "python benchmarks/gpu.py",
        "machine": {"gpu": "Some GPU"},
        "versions": {"torch": "2"},
        "sections": {"checks": {"finished": False}, "deep-speed": {"finished": True}},
        "kernels": {"deep memory": {"states_kernel": 0.0047, "reads_kernel": 0.001}},
        "checks": [{"passed": True}, {"passed": False}],
        "results": [
            {
                "name": "deep memory, forward",
                "ours_seconds": {"min": 1.0, "median": 1.0, "max": 1.0},
                "theirs_seconds": None,
                "ratio": {"min": 0.3, "median": 0.4, "max": 0.5},
                "ratio_of": "bfloat16 matmul rate",
                "target": 0.35,
            },
            {"name": "scan: dim 32", "ours_seconds": None, "theirs_seconds": None, "ratio": None, "target": None},
        ],
    }
    (folder / "results" / "gpu.json").write_text(json.dumps(gpu))
    write(folder)
    text = (folder / "README.md").read_text()
    assert "## GPU: Some GPU" in text and "1 of 2 checks" in text and "scan" not in text
    assert "some of it is missing: checks." in text
    assert "Where the time goes, deep memory: `states_kernel` 4.70 ms, `reads_kernel` 1.00 ms." in text
    assert all(name in text.split("Not yet measured: ")[1] for name in GPU_TARGETS if name != "deep memory, forward")
    row = "| deep memory, forward | 1.00 s | bfloat16 matmul rate | - | 0.40 (0.30 to 0.50) | - | 0.35 | yes |"
    assert row in text


def test_the_targets_are_those_of_timings_that_gpu_py_makes():
    """By name, at its full sizes."""
    from pathlib import Path

    from cpu_reference import WAYS
    from gpu_targets import GPU_TARGETS
    from gpu_timing import FULL

    source = (Path(__file__).parent.parent.parent / "benchmarks" / "gpu.py").read_text()
    for name in GPU_TARGETS:
        way = next(way for way, _ in reversed(WAYS) if f", {way}" in name)
        template = name.replace(f", {way}", ", {way}").replace(f"chunks of {FULL.chunk}", "chunks of {sizes.chunk}")
        assert f'f"{template}"' in source


def test_durations_have_three_digits():
    from table import in_seconds

    assert [in_seconds(s) for s in (123.4, 1.234, 0.05, 0.000123)] == ["123 s", "1.23 s", "50.0 ms", "123 µs"]


def test_the_committed_page_is_that_of_the_committed_report(benchmarks):
    from page import other_reports, page, reports_elsewhere

    results = benchmarks / "results"
    cpu, gpu = ((results / f"{name}.json") for name in ("cpu", "gpu"))
    read = [json.loads(path.read_text()) if path.exists() else None for path in (cpu, gpu)]
    assert (benchmarks / "README.md").read_text() == page(*read, other_reports(results), reports_elsewhere(results))


def test_candidates_have_a_line_each(folder):
    from page import write

    measured = [
        entry("Candidates", f"{name}, {what}", 0.002, 0.005, candidate=name, what=what, length=1024, state_bytes=8)
        for name in ("mag", "mac")
        for what in ("training", "decoding")
    ]
    report = {
        "command": "python benchmarks/candidates.py",
        "date": "2026-01-03",
        "machine": {"processor": "Some Processor", "threads": 2},
        "groups": {"Candidates": "Of one size."},
        "results": measured,
    }
    (folder / "results" / "candidates.json").write_text(json.dumps(report))
    write(folder)
    text = (folder / "README.md").read_text()
    assert "| candidate | training, 1,024 bytes | decoding, 1,024 bytes |" in text
    assert "| mac | 2.50 (2.25 to 3.00) | 2.50 (2.25 to 3.00) |" in text
    assert "Of one size. 2026-01-03" in text
