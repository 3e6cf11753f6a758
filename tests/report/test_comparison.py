"""A plot of models side by side says who is who, and is drawn the same each time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mnemonist.report.comparison import Line, draw_lines


def lines(*labels):
    return [Line(label, [4, 8, 16], [0.9, 0.5, 0.2], [0.8, 0.4, 0.1], [1.0, 0.6, 0.3]) for label in labels]


def test_every_label_axis_and_tick_is_there(tmp_path):
    path = tmp_path / "plot.svg"
    reference = Line("chance", [4, 16], [0.1, 0.1], [0.1, 0.1], [0.1, 0.1], reference=True)
    draw_lines(
        path, {"length 64": [*lines("one", "two"), reference], "length 128": lines("two")}, x="pairs", y="accuracy"
    )
    text = path.read_text()
    found = re.findall(r">([^<>\n]+)</text>", text)
    for wanted in ("one", "two", "chance", "pairs", "accuracy", "length 64", "length 128", "4", "8", "16"):
        assert wanted in found, wanted
    assert found.count("two") == 1  # one legend for both panels
    again = tmp_path / "again.svg"
    draw_lines(
        again, {"length 64": [*lines("one", "two"), reference], "length 128": lines("two")}, x="pairs", y="accuracy"
    )
    assert again.read_bytes() == path.read_bytes()


def test_lengths_are_told_in_thousands(tmp_path):
    path = tmp_path / "plot.svg"
    line = Line("one", [512, 1024, 1536, 65536, 2**20], [0.0] * 5, [0.0] * 5, [0.0] * 5)
    draw_lines(path, {"": [line]}, x="length", y="solved")
    found = re.findall(r">([^<>\n]+)</text>", path.read_text())
    assert {"512", "1k", "1,536", "64k", "1M"} <= set(found)


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="no lines to draw"):
        draw_lines(tmp_path / "plot.svg", {"": []}, x="a", y="b")
    assert not list(tmp_path.iterdir())


def drawn(path: Path) -> list[list[float]]:
    """Heights of the corners of each band and line, in the order of the file; the smaller, the higher."""
    shapes = re.findall(r'<(?:path|use) [^>]*?d="(M[^"]+)"', path.read_text())
    return [[float(y) for y in re.findall(r"[ML] [\d.-]+ ([\d.-]+)", shape)] for shape in shapes]


def test_no_band_is_drawn_beyond_the_range_of_what_it_is_of(tmp_path):
    """The ends of an interval over seeds may lie there; its band ends where the lines at 0 and 1 do."""
    ends = Line("ends", [4, 8], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0])
    wide = Line("wide", [4, 8], [0.1, 0.9], [-0.4, 0.5], [0.5, 1.7])
    inside = Line("inside", [4, 8], [0.1, 0.9], [0.0, 0.5], [0.5, 1.0])
    for name, line in (("wide", wide), ("inside", inside)):
        draw_lines(tmp_path / f"{name}.svg", {"": [ends, line]}, x="pairs", y="accuracy", bounds=(0, 1))
    assert drawn(tmp_path / "wide.svg") == drawn(tmp_path / "inside.svg")
    assert wide.low[0] == -0.4  # the numbers are as they were
    draw_lines(tmp_path / "free.svg", {"": [ends, wide]}, x="pairs", y="accuracy")
    assert drawn(tmp_path / "free.svg") != drawn(tmp_path / "inside.svg")
