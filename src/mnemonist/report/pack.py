"""Arrays small enough to travel inside a page.

A memory of 8 layers and 8 heads that reads 32 KB leaves millions of numbers behind. A reader sees a shade
and, under the pointer, two or three digits of them, so they are stored as codes of one or two bytes, each
row (one layer and head) on its own scale: logarithmic where the values are positive and spread, linear
otherwise. A text too long for every head at full precision loses the least looked-at detail first
(`LADDER`), and the page says so.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BUDGET = 5_800_000
"""Characters the packed arrays of one page may take together."""

SPREAD = 10.0
"""A positive row whose largest value is more than this many times its smallest is coded by its logarithm."""

FLOOR = 1e-6
"""On a logarithmic scale, values below this part of the row's largest are raised to it."""


@dataclass(frozen=True)
class Detail:
    """How much of the arrays is kept.

    Attributes:
        by_head: quantities kept head by head; of the others the mean over the heads of a layer is kept.
        head_bytes: bytes of a value of one head.
        mean_bytes: bytes of a mean over heads.
    """

    by_head: tuple[str, ...]
    head_bytes: int
    mean_bytes: int


def ladder(quantities: tuple[str, ...]) -> tuple[Detail, ...]:
    """The levels of detail of a page, finest first; the first of `quantities` keeps its heads longest."""
    return (
        Detail(quantities, 2, 2),
        Detail(quantities, 1, 2),
        Detail(quantities[:1], 1, 2),
        Detail((), 1, 2),
        Detail((), 1, 1),
    )


def choose_detail(
    shapes: Sequence[Mapping[str, tuple[int, int, int]]], quantities: tuple[str, ...], budget: int = BUDGET
) -> Detail:
    """The finest detail at which all arrays fit in `budget` characters of base64.

    Args:
        shapes: for each text, the shape [L, H, T] of each quantity it has.
        quantities: all names, the most important one first.

    Raises:
        ValueError: when not even the coarsest fits.
    """
    for detail in ladder(quantities):
        total = 0
        for text in shapes:
            for name, (layers, heads, length) in text.items():
                values = heads * detail.head_bytes if name in detail.by_head else detail.mean_bytes
                total += layers * length * values
        if total * 4 / 3 <= budget:
            return detail
    raise ValueError("the texts are too long for one page: show fewer or shorter texts, or fewer layers")


def pack_quantity(values_LHT: np.ndarray, name: str, detail: Detail) -> dict[str, Any]:
    """Pack [L, H, T] as `detail` says: rows layer by layer, each with its heads or with their mean."""
    layers, heads, length = values_LHT.shape
    if name in detail.by_head:
        return {"heads": heads, **pack_rows(values_LHT.reshape(layers * heads, length), detail.head_bytes)}
    return {"heads": 1, **pack_rows(finite_mean(values_LHT, axis=1), detail.mean_bytes)}


def pack_rows(rows_RT: np.ndarray, width: int) -> dict[str, Any]:
    """Code each row of [R, T] on its own scale in `width` bytes (1 or 2, little-endian).

    Code 0 means no value (not finite as float32). A code c >= 1 means `low + (c - 1) * step`, or the
    exponential of that where the row's `log` is 1.

    Returns:
        `width`, `low`, `step` and `log` (a list of R each), and `data`, the codes in base64.
    """
    with np.errstate(over="ignore"):
        rows = np.asarray(rows_RT, dtype=np.float32).astype(np.float64)
    largest_code = 256**width - 1
    codes = np.zeros(rows.shape, dtype=f"<u{width}")
    lows, steps, logs = [], [], []
    for row, code in zip(rows, codes, strict=True):
        known = np.isfinite(row)
        values = row[known]
        log = _is_spread(values)
        if log:
            values = np.log(np.maximum(values, FLOOR * values.max()))
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
        step = (high - low) / (largest_code - 1)
        if step > 0:
            code[known] = 1 + np.rint((values - low) / step)
        else:
            code[known] = 1
        lows.append(_short(low))
        steps.append(_short(step))
        logs.append(int(log))
    return {"width": width, "low": lows, "step": steps, "log": logs, "data": encode(codes.tobytes())}


def finite_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean over `axis` of what is finite; NaN where nothing is."""
    known = np.isfinite(values)
    count = known.sum(axis)
    total = np.where(known, values, 0.0).sum(axis, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def encode(data: bytes) -> str:
    """Base64, which holds no character that HTML could misread."""
    return base64.b64encode(data).decode("ascii")


def _is_spread(values: np.ndarray) -> bool:
    return bool(values.size) and values.min() >= 0 and values.max() > SPREAD * values.min()


def _short(number: float) -> float:
    """`number` with nine digits: far below the error of the codes, and half as long in the page."""
    return float(f"{number:.9g}")
