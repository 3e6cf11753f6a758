"""Packed arrays say the same numbers, within the error of their codes."""

import base64

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mnemonist.report.pack import FLOOR, choose_detail, finite_mean, ladder, pack_quantity, pack_rows

NAMES = ("surprise", "loss")


def unpack(packed, length):
    """What the page's script does, written again."""
    codes = np.frombuffer(base64.b64decode(packed["data"]), dtype=f"<u{packed['width']}").reshape(-1, length)
    low, step, log = (np.array(packed[key], dtype=np.float64)[:, None] for key in ("low", "step", "log"))
    values = low + (codes.astype(np.float64) - 1) * step
    values = np.where(log == 1, np.exp(np.where(log == 1, values, 0.0)), values)
    return np.where(codes == 0, np.nan, values)


@pytest.mark.parametrize("width", [1, 2])
def test_spread_positive_rows_keep_their_relative_precision(width):
    rows = np.exp(np.random.default_rng(0).normal(0, 1.5, (3, 500))) * np.array([[1e-3], [1.0], [1e3]])
    packed = pack_rows(rows, width)
    assert packed["log"] == [1, 1, 1]
    span = np.log(rows.max(1) / rows.min(1)).max()
    error = np.abs(np.log(unpack(packed, 500) / rows)).max()
    assert error <= 0.51 * span / (256**width - 2)


@given(
    arrays(np.float32, (2, 7), elements=st.floats(-1e6, 1e6, width=32) | st.sampled_from([np.nan, np.inf, 0.0])),
    st.sampled_from([1, 2]),
)
@settings(max_examples=150, deadline=None)
def test_any_row_comes_back_within_half_a_step(rows, width):
    got = unpack(pack_rows(rows, width), 7)
    np.testing.assert_array_equal(np.isnan(got), ~np.isfinite(rows))
    for row, back, log in zip(rows.astype(float), got, pack_rows(rows, width)["log"], strict=True):
        known = np.isfinite(row)
        if not known.any():
            continue
        values, back = row[known], back[known]
        if log:
            raised = np.maximum(values, FLOOR * values.max())
            bound = 0.51 * np.log(1 / FLOOR) / (256**width - 2) + 1e-6
            assert np.abs(np.log(back / raised)).max() <= bound
        else:
            span = values.max() - values.min()
            assert np.abs(back - values).max() <= 0.51 * span / (256**width - 2) + 1e-7 * np.abs(values).max()


def test_constant_and_empty_rows():
    got = unpack(pack_rows(np.array([[0.25] * 3, [np.nan] * 3, [0.0] * 3]), 1), 3)
    np.testing.assert_array_equal(got, [[0.25] * 3, [np.nan] * 3, [0.0] * 3])


def test_numbers_beyond_float32_are_gaps():
    got = unpack(pack_rows(np.array([[1.0, 1e300, 2.0]]), 2), 3)
    np.testing.assert_allclose(got, [[1.0, np.nan, 2.0]], rtol=1e-7)


def test_mean_leaves_out_what_is_not_finite():
    values = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.inf]])
    np.testing.assert_array_equal(finite_mean(values, axis=0), [2.0, 5.0, np.nan])


def test_detail_gives_up_the_heads_of_the_lesser_quantities_first():
    shapes = [{name: (2, 4, 300) for name in NAMES}]
    finest = 2 * 2 * 4 * 300 * 2 * 4 / 3
    assert choose_detail(shapes, NAMES, finest) == ladder(NAMES)[0]
    assert choose_detail(shapes, NAMES, finest - 1) == ladder(NAMES)[1]
    chosen = [choose_detail(shapes, NAMES, budget) for budget in np.linspace(finest, 2 * 2 * 300 * 4 / 3, 60)]
    order = [ladder(NAMES).index(detail) for detail in chosen]
    assert order == sorted(order)
    assert set(order) == {0, 1, 2, 3, 4}
    assert ladder(NAMES)[2].by_head == ("surprise",)
    with pytest.raises(ValueError, match="too long for one page"):
        choose_detail(shapes, NAMES, 2 * 2 * 300 * 4 / 3 - 1)


def test_rows_are_layer_by_layer_with_heads_or_their_mean():
    values = np.random.default_rng(1).normal(size=(3, 2, 9))
    fine, _, one, *_ = ladder(NAMES)
    packed = pack_quantity(values, "loss", fine)
    assert packed["heads"] == 2
    np.testing.assert_allclose(unpack(packed, 9), values.reshape(6, 9), atol=1e-4)
    packed = pack_quantity(values, "loss", one)
    assert packed["heads"] == 1
    np.testing.assert_allclose(unpack(packed, 9), values.mean(1), atol=1e-4)
