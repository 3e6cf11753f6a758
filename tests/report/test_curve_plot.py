"""The drawing of the curve: what lies where."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from mnemonist.report import Curve
from mnemonist.report.curve_plot import HEIGHT, LABEL_GAP, LEFT, draw_curves

POSITIONS = np.array([16.0, 64.0, 256.0, 1024.0])


def curve(label="memory learning", bits=(4.0, 3.0, 2.5, 2.0), **keys):
    return Curve(label, POSITIONS, np.array(bits), **keys)


def elements(svg, style):
    return [e for e in ET.fromstring(svg).iter() if style in (e.get("class") or "").split()]


def test_points_are_on_a_logarithmic_axis_and_rise_with_the_bits():
    _, geometry = draw_curves([curve()])
    xs, ys = (np.array([point[i] for point in geometry["curves"][0]["points"]]) for i in (0, 1))
    assert xs[0] == LEFT
    assert xs[-1] == geometry["right"]
    np.testing.assert_allclose(np.diff(xs), np.diff(xs)[0], atol=0.2)
    # Bits fall by 1, then twice by a half; the drawing's y grows downwards.
    np.testing.assert_allclose(np.diff(ys) / np.diff(ys)[1], [2, 1, 1], atol=0.01)
    assert np.all(np.diff(ys) > 0)
    assert ys.max() < geometry["bottom"] < HEIGHT


def test_ticks_stand_where_their_numbers_say():
    svg, geometry = draw_curves([curve()])
    ticks = [
        (float(e.get("x")), float(e.text.replace(",", "")))
        for e in elements(svg, "tick")
        if e.get("text-anchor") == "middle"
    ]
    assert {value for _, value in ticks} >= {100.0, 1000.0}
    for x, value in ticks:
        part = np.log(value / 16) / np.log(1024 / 16)
        assert x == pytest.approx(LEFT + part * (geometry["right"] - LEFT), abs=0.2)
    y_of = {p[3]: p[1] for p in geometry["curves"][0]["points"]}
    marks = {float(e.text): float(e.get("y")) - 4 for e in elements(svg, "tick") if e.get("text-anchor") == "end"}
    assert marks[3.0] == pytest.approx(y_of[3.0], abs=0.2)


def test_a_gap_breaks_the_line_and_the_band():
    low, high = np.array([3.5, np.nan, 2.0, 1.5]), np.array([4.5, np.inf, 3.0, 2.5])
    svg, geometry = draw_curves([curve(bits=(4.0, np.nan, 2.5, 2.0), low=low, high=high)])
    assert [e.get("d").count("M") for e in elements(svg, "line") + elements(svg, "band")] == [2, 2]
    assert [point[2] for point in geometry["curves"][0]["points"]] == [16.0, 256.0, 1024.0]
    assert geometry["curves"][0]["points"][0][4:] == [3.5, 4.5]
    assert "nan" not in svg and "inf" not in svg


def test_labels_of_curves_that_end_together_do_not_touch():
    svg, _ = draw_curves([curve(f"curve {n}", bits=(4, 3, 2.5, 2 + n / 1000)) for n in range(5)])
    heights = sorted(float(e.get("y")) for e in elements(svg, "label"))
    assert np.diff(heights).min() >= LABEL_GAP - 0.2
    assert heights[-1] <= HEIGHT


@pytest.mark.parametrize(
    ("positions", "bits"),
    [
        ([5.0], [2.0]),
        ([5.0, 6.0], [2.0, 2.0]),
        ([1.0, 1e7], [0.0, 0.0]),
        ([0.5, 0.6, 0.7], [1e-3, 2e-3, 3e-3]),
    ],
)
def test_odd_ranges_still_have_ticks_and_stay_inside(positions, bits):
    svg, geometry = draw_curves([Curve("c", np.array(positions), np.array(bits))])
    assert len([e for e in elements(svg, "tick") if e.get("text-anchor") == "middle"]) >= 2
    assert len([e for e in elements(svg, "tick") if e.get("text-anchor") == "end"]) >= 2
    for x, y, *_ in geometry["curves"][0]["points"]:
        assert LEFT <= x <= geometry["right"] + 0.1
        assert 0 <= y <= geometry["bottom"]


def test_hostile_and_long_labels():
    svg, _ = draw_curves([curve('<script>"x"</script>' + "y" * 60)])
    assert "<script" not in svg
    assert len(elements(svg, "label")[0].text) <= 30
    assert re.search(r'aria-label="[^"]*&lt;script&gt;', svg)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"bits": np.ones(3)}, r"bits has shape \[3\]"),
        ({"low": np.ones(4)}, "both low and high"),
        ({"low": np.ones(5), "high": np.ones(5)}, r"low has shape \[5\]"),
        ({"positions": np.array([0.0, 1, 2, 3])}, "start above zero"),
        ({"positions": np.array([1.0, 3, 2, 4])}, "must rise"),
        ({"positions": np.array([1.0, 2, 3, np.nan])}, "must rise"),
        ({"positions": np.ones((2, 2))}, r"shape \[N\]"),
        ({"positions": np.array([])}, r"shape \[N\]"),
        ({"bits": np.full(4, np.nan)}, "no finite value"),
    ],
)
def test_bad_curves_say_what_is_wrong(keys, message):
    with pytest.raises(ValueError, match=message):
        Curve(**{"label": "c", "positions": POSITIONS, "bits": np.ones(4), **keys})


def test_a_band_ends_where_bits_do_and_the_pointer_tells_the_whole_interval():
    ends = {"low": np.array([3.5, 2.5, 1.0, -0.9]), "high": np.array([4.5, 3.5, 4.0, 2.0])}
    svg, geometry = draw_curves([curve(bits=(4.0, 3.0, 2.5, 0.1), **ends)])
    (band,) = elements(svg, "band")
    heights = [float(y) for y in re.findall(r"[ML][\d.-]+ ([\d.-]+)", band.get("d"))]
    assert max(heights) == geometry["bottom"]
    ticks = [e.text for e in elements(svg, "tick") if e.get("text-anchor") == "end"]
    assert min(float(text) for text in ticks) == 0
    assert geometry["curves"][0]["points"][-1][4:] == [-0.9, 2.0]
