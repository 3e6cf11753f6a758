"""Reading a text never seen before: what each byte cost, and how much it surprised the memory.

A byte costs ``-log2 p(byte | all before it)`` bits. If a memory learns while it reads, bytes get cheaper with their
position in the text; the same model with its memory held still, or one without a memory, is what to compare with.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mnemonist.data import ByteTokenizer
from mnemonist.memory.reading import Surprise
from mnemonist.models.modeling import LanguageModel, ModelState

Progress = Callable[[int, int], None]
"""Called with bytes read so far and bytes in all."""

# Two-sided 95% quantiles of Student's t for 1 to 30 degrees of freedom; beyond, see `interval`.
STUDENT_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class MemoryTrace:
    """What the memories of one block went through: each ``[N, H, T]`` for N texts, H heads, T bytes."""

    loss: np.ndarray
    gradient_norm: np.ndarray
    step_size: np.ndarray
    momentum: np.ndarray | None
    decay: np.ndarray | None


@dataclass(frozen=True)
class TextReading:
    """What reading N texts of T bytes side by side gave."""

    bits: np.ndarray
    """``[N, T]``: bits paid for each byte, given all before it."""
    memories: dict[int, MemoryTrace]
    """Per block with a memory, if asked for."""
    state: ModelState
    """What the model has become."""
    seconds: float


def read_texts(
    model: LanguageModel,
    texts: Sequence[bytes],
    *,
    learn: bool = True,
    surprise: bool = False,
    piece: int = 1024,
    state: ModelState | None = None,
    progress: Progress | None = None,
) -> TextReading:
    """Read texts of equal length side by side, each with memories of its own.

    Args:
        model: a model of bytes.
        texts: N texts of T bytes each.
        learn: False holds every memory still.
        surprise: whether to keep what the memories went through.
        piece: bytes read at a time; it bounds the working memory and changes nothing else.
        state: what earlier texts have left, of which these are then read as the next documents, each behind its own
            start mark; None begins a stream.
        progress: called after each piece.

    Raises:
        ValueError: no text, an empty one, or texts of different lengths; or ``piece`` is not positive.
    """
    if piece < 1:
        raise ValueError(f"piece is {piece}; read at least 1 byte at a time.")
    lengths = {len(text) for text in texts}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"texts have lengths {sorted(lengths)}; give at least one text, none empty, all equally long.")
    T, N = lengths.pop(), len(texts)
    device = next(model.parameters()).device
    tokens = torch.from_numpy(np.stack([ByteTokenizer().encode(text, bos=True) for text in texts]))
    bits = torch.empty(N, T)
    seen: dict[int, list[Surprise]] = {}
    began = time.perf_counter()
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for at in range(0, T + 1, piece):
            part = tokens[:, at : at + piece].to(device)
            output = model(part, state=state, learn=learn, surprise=surprise)
            state = output.state
            target = tokens[:, at + 1 : at + 1 + piece].to(device)
            width = target.shape[1]
            if width:
                logits = output.logits[:, :width].float()
                nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
                bits[:, at : at + width] = nats.view(N, width).cpu() / math.log(2)
            for block, report in output.surprise.items():
                seen.setdefault(block, []).append(report)
            if progress is not None:
                progress(min(at + piece, T), T)
    model.train(was_training)
    assert state is not None
    memories = {block: _joined(reports) for block, reports in seen.items()}
    return TextReading(bits.numpy(), memories, state, time.perf_counter() - began)


def _joined(reports: list[Surprise]) -> MemoryTrace:
    def join(field: str) -> np.ndarray | None:
        parts = [getattr(report, field) for report in reports]
        if parts[0] is None:
            return None
        return torch.cat(parts, dim=1)[:, 1:].mT.cpu().numpy()  # the first token marks the document's beginning

    loss, norm, step = join("loss"), join("gradient_norm"), join("step_size")
    assert loss is not None and norm is not None and step is not None
    return MemoryTrace(loss, norm, step, join("momentum"), join("decay"))


@dataclass(frozen=True)
class Interval:
    """A mean over texts with its 95% interval (Student's t); the interval is None for a single text."""

    mean: float
    half_width: float | None

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.half_width is None else f"{self.mean:.3f} ± {self.half_width:.3f}"


def interval(values: np.ndarray) -> Interval:
    """Mean and 95% interval of one number per text ``[N]``."""
    n = len(values)
    if n < 2:
        return Interval(float(values.mean()), None)
    freedom = n - 1
    if freedom <= len(STUDENT_975):
        quantile = STUDENT_975[freedom - 1]
    else:  # the normal quantile z with two terms in 1 / freedom (Abramowitz & Stegun 26.7.5)
        quantile = 1.960 + 2.372 / freedom + 2.823 / freedom**2
    return Interval(float(values.mean()), quantile * float(values.std(ddof=1)) / math.sqrt(n))


def paired_difference(a: np.ndarray, b: np.ndarray, start: int = 0) -> Interval:
    """How many bits per byte ``a`` pays less than ``b`` from byte ``start`` on, paired by text; both ``[N, T]``.

    Raises:
        ValueError: the shapes differ, or no byte is left.
    """
    if a.shape != b.shape or not 0 <= start < a.shape[1]:
        raise ValueError(
            f"bits are {list(a.shape)} and {list(b.shape)}, compared from byte {start}; the shapes must be the same "
            "[N, T], and start one of the T bytes."
        )
    return interval(b[:, start:].mean(1) - a[:, start:].mean(1))


@dataclass(frozen=True)
class BitsByPosition:
    """Bits per byte against position: one entry per bin."""

    positions: np.ndarray
    """Geometric centre of each bin, in bytes from 1."""
    mean: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None


def bits_by_position(bits: np.ndarray, bins: int = 16, first: int = 64) -> BitsByPosition:
    """Average ``bits [N, T]`` in bins that grow geometrically from ``first`` bytes, with 95% intervals over texts."""
    T = bits.shape[1]
    edges = np.unique(np.geomspace(min(first, T), T, bins).round().astype(int))
    edges = np.concatenate([[0], edges])
    cells = [interval(bits[:, a:b].mean(1)) for a, b in itertools.pairwise(edges)]
    mean = np.array([cell.mean for cell in cells])
    centre = np.sqrt((edges[:-1] + 1) * edges[1:].astype(float))
    if bits.shape[0] < 2:
        return BitsByPosition(centre, mean, None, None)
    half = np.array([cell.half_width for cell in cells])
    return BitsByPosition(centre, mean, mean - half, mean + half)
