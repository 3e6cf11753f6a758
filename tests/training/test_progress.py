"""Progress goes to stderr: few lines in a file, a bar on a terminal, nothing when not wanted."""

import pytest

from mnemonist.training import progress
from mnemonist.training.metrics import StepMetrics


def report_all(shown: bool, steps: int = 50) -> None:
    with progress.training_progress(shown, 0, steps) as report:
        for step in range(1, steps + 1):
            report(StepMetrics(step, 2.5, 1e-3, 1.0, step, 1234.0, 1.0))


def test_a_file_gets_the_first_and_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    report_all(True)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["step 1/50  loss 2.5000  1,234 tok/s", "step 50/50  loss 2.5000  1,234 tok/s"]


def test_a_slow_run_is_reported_in_between(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(0, 1000, 4))  # a step takes four seconds
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(ticks)))
    report_all(True, steps=8)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("/")[0] for line in lines] == ["step 1", "step 4", "step 7", "step 8"]


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    report_all(True)
    out, err = capsys.readouterr()
    assert out == ""
    for part in ("step 50/50", "loss 2.5000", "1,234 tok/s", "0:00:00"):
        assert part in err


@pytest.mark.parametrize("terminal", [False, True])
def test_what_held_out_text_cost_stands_until_it_is_read_again(terminal, capsys, monkeypatch) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "120")
    with progress.training_progress(True, 0, 3) as report:
        for step, bits in ((1, None), (2, 1.25), (3, None)):
            report(StepMetrics(step, 2.5, 1e-3, 1.0, step, 1234.0, 1.0, bits))
    err = capsys.readouterr().err
    assert "2.5000  held out 1.250 bits/byte" in err
    if not terminal:
        first, last = err.splitlines()
        assert first == "step 1/3  loss 2.5000  1,234 tok/s"
        assert last == "step 3/3  loss 2.5000  held out 1.250 bits/byte  1,234 tok/s"


def test_of_held_out_problems_the_share_that_is_right_is_told(capsys) -> None:
    problems = {"mqar": {"loss": 1.0, "accuracy": 0.5}, "regression": {"loss": 0.25}}
    with progress.training_progress(True, 0, 2) as report:
        report(StepMetrics(1, 2.5, 1e-3, 1.0, 1, 1234.0, 1.0, 1.25, problems))
        report(StepMetrics(2, 2.5, 1e-3, 1.0, 1, 1234.0, 1.0))
    told = "loss 2.5000  held out 1.250 bits/byte, mqar 0.500 right, regression 0.2500  1,234 tok/s"
    assert [line.partition("  ")[2] for line in capsys.readouterr().err.splitlines()] == [told, told]


def test_nothing_when_not_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    report_all(False)
    assert capsys.readouterr() == ("", "")
