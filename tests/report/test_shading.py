"""The ramp: even steps, and text that can be read on each."""

import itertools

import pytest

from mnemonist.report.shading import DARK, LEVELS, LIGHT, contrast, ramp, style_rules


def rgb(colour):
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


def test_contrast_is_that_of_the_standard():
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    assert contrast((0.5, 0.2, 0.1), (0.5, 0.2, 0.1)) == 1
    # #767676 is the lightest grey that passes 4.5:1 on white.
    assert contrast(rgb("#767676"), (1, 1, 1)) == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_text_is_legible_on_every_step(theme):
    steps = ramp(theme)
    assert len(steps) == LEVELS
    assert min(contrast(rgb(text), rgb(back)) for back, text in steps) > 4


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_steps_move_away_from_the_paper(theme):
    paper = rgb(ramp(theme)[0][0])
    distances = [contrast(rgb(back), paper) for back, _ in ramp(theme)]
    assert distances[0] == 1
    assert all(a < b for a, b in itertools.pairwise(distances))


def test_every_step_has_a_class_and_both_themes():
    rules = style_rules()
    for level in range(LEVELS):
        assert rules.count(f"--s{level}:") == 2
        assert f".s{level}{{background:var(--s{level})" in rules
