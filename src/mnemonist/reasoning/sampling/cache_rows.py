"""Caches whose rows come and go: the only file of the outer loop that touches what is inside transformers.

A batch is kept busy by giving the row of a finished attempt to the next prompt. What a model has read of a row must
then be put in its place without moving the other rows. There are two kinds of caches:

* keys and values of every token. Rows end at the same column, so a row that has read less begins later, and what
  stands before it is masked. A new row is written so that it ends where the others do:

      row 0   . . . a b c d e f        the buffers have spare columns on the right; when they are used up, what is
      row 1   x y z a b c d e f        still needed moves to the left, so columns that only finished rows needed are
      row 2   . . . . . . g h i        dropped (here the first three, when row 1 ends)

* a state whose rows know themselves what they have read (our own models): nothing is masked.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from mnemonist.errors import UserError

SPARE = 32
"""Columns that buffers have to grow into at least."""


class Rows(Protocol):
    """What a model has read, row by row."""

    def put(self, rows: Sequence[int], fresh: Any, picks: Sequence[int], lengths: Sequence[int]) -> None:
        """Fill rows, or add some at the end, with rows of the cache of prompts just read.

        Args:
            rows: where to; those after the last existing one come in order.
            fresh: a cache that has read prompts, padded on the left.
            picks: which of its rows.
            lengths: tokens that each of these has read.
        """
        ...

    def keep(self, sources: Sequence[int]) -> None:
        """Shrink to ``len(sources)`` rows; row ``i`` is what was row ``sources[i]``, which is itself or a later one
        that is gone."""
        ...

    def inputs(self) -> dict[str, Any]:
        """What the model is called with to read one token more of every row, but the tokens."""
        ...

    def advance(self) -> None:
        """Say that it has read them."""
        ...


def arguments(model: Any) -> frozenset[str]:
    """Names of what the model's forward pass takes."""
    model = getattr(model, "module", model)  # what processes share
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # what adapters are put around
    return frozenset(inspect.signature(base.forward).parameters)


def empty_cache(model: Any) -> Any:
    """A cache to read prompts with; None lets the model make its own."""
    # A model with windows would make a cache that forgets what left them. Keeping everything under the mask of the
    # window gives the same, and all layers then have the same columns.
    return None if getattr(model, "_is_stateful", False) else DynamicCache()


def rows_like(fresh: Any, most: int, positions: bool, device: torch.device) -> Rows:
    """Rows for caches of this kind.

    Args:
        fresh: a cache that a model has read prompts with.
        most: rows there will be at most.
        positions: whether the model takes the positions of its tokens.
        device: of the model.

    Raises:
        UserError: it is of a kind whose rows cannot be exchanged.
    """
    if hasattr(fresh, "overwrite"):
        return StateRows()
    layers = getattr(fresh, "layers", ())
    if not layers or any(type(layer) is not DynamicLayer for layer in layers):
        raise UserError(
            "this model remembers more than keys and values, so the rows of its cache cannot be exchanged; run it "
            "behind a server, and sample from that"
        )
    return KeyValueRows(most, positions, device)


class StateRows:
    """Rows of a cache that has `batch_select_indices`, `batch_extend`, `overwrite` and `shrink`."""

    def __init__(self) -> None:
        self._cache: Any = None

    def put(self, rows: Sequence[int], fresh: Any, picks: Sequence[int], lengths: Sequence[int]) -> None:
        """See `Rows`."""
        count = 0 if self._cache is None else self._cache.batch_size
        added = [pick for row, pick in zip(rows, picks, strict=True) if row >= count]
        if added:
            chosen = copy.copy(fresh)  # which may be needed again
            chosen.batch_select_indices(torch.tensor(added))
            if self._cache is None:
                self._cache = chosen
            else:
                self._cache.batch_extend(chosen)
        replaced = [(row, pick) for row, pick in zip(rows, picks, strict=True) if row < count]
        if replaced:
            at, which = zip(*replaced, strict=True)
            self._cache.overwrite(at, fresh, which)

    def keep(self, sources: Sequence[int]) -> None:
        """See `Rows`."""
        self._cache.shrink(sources)

    def inputs(self) -> dict[str, Any]:
        """See `Rows`."""
        return {"past_key_values": self._cache}

    def advance(self) -> None:
        """See `Rows`; the cache has counted itself."""


class KeyValueRows:
    """Rows of keys and values in buffers that are written in place."""

    def __init__(self, most: int, positions: bool, device: torch.device) -> None:
        self._most, self._positions, self._device = most, positions, device
        self.lengths: list[int] = []
        """Tokens that each row has read."""
        self.end = 0
        """The column behind the last one of every row."""
        self.capacity = 0
        """Columns of the buffers."""
        self.layers: list[_BufferLayer] = []
        self._cache: Cache | None = None

    @property
    def width(self) -> int:
        """Columns that some row needs."""
        return max(self.lengths, default=0)

    def put(self, rows: Sequence[int], fresh: Any, picks: Sequence[int], lengths: Sequence[int]) -> None:
        """See `Rows`."""
        if self._cache is None:
            self.layers = [_BufferLayer(self, layer, self._most) for layer in fresh.layers]
            self._cache = Cache(layers=list(self.layers))
        before = self.width
        for row, length in zip(rows, lengths, strict=True):
            if row == len(self.lengths):
                self.lengths.append(length)
            else:
                self.lengths[row] = length
        if self.width > self.end or self.capacity == 0:
            self._make_room(before)
        for layer, source in zip(self.layers, fresh.layers, strict=True):
            layer.blank(self.end - self.width, self.end - before)
            for row, pick, length in zip(rows, picks, lengths, strict=True):
                layer.write(row, source, pick, length)

    def keep(self, sources: Sequence[int]) -> None:
        """See `Rows`."""
        for row, source in enumerate(sources):
            if source != row:
                for layer in self.layers:
                    layer.move(source, row)
                self.lengths[row] = self.lengths[source]
        del self.lengths[len(sources) :]

    def inputs(self) -> dict[str, Any]:
        """See `Rows`."""
        if self.end == self.capacity:
            self._make_room(self.width)
        inputs: dict[str, Any] = {"past_key_values": self._cache}
        lengths = torch.tensor(self.lengths, device=self._device)
        if self._positions:
            inputs["position_ids"] = lengths[:, None]
        if min(self.lengths) < self.width:
            column = torch.arange(self.width + 1, device=self._device)
            inputs["attention_mask"] = (column >= self.width - lengths[:, None]).long()
        return inputs

    def advance(self) -> None:
        """See `Rows`."""
        self.end += 1
        self.lengths = [length + 1 for length in self.lengths]

    def _make_room(self, occupied: int) -> None:
        """Move the last ``occupied`` columns so that the widest row fits before the end, and there are spare ones.

        The buffers are used again if what moves does not overlap itself: as they are twice as wide as what was
        needed, they mostly are, and a column is copied once in as many steps as there are columns.
        """
        end = self.width
        begin = self.end - occupied
        again = end < self.capacity and begin >= end
        capacity = self.capacity if again else 2 * end + SPARE
        for layer in self.layers:
            layer.shift(slice(begin, self.end), slice(end - occupied, end), None if again else capacity)
        self.end, self.capacity = end, capacity


class _BufferLayer(DynamicLayer):
    """Keys and values of one layer; where they are is its rows' business."""

    def __init__(self, rows: KeyValueRows, like: Any, most: int) -> None:
        super().__init__()
        self._rows = rows
        self._buffers: list[Tensor] = [
            tensor.new_zeros(most, tensor.shape[1], 0, tensor.shape[3]) for tensor in (like.keys, like.values)
        ]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one column behind the last one, and show all that are needed."""
        rows = self._rows
        seen = []
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[: len(states), :, rows.end : rows.end + 1] = states
            seen.append(buffer[: len(states), :, rows.end - rows.width : rows.end + 1])
        return seen[0], seen[1]

    def get_seq_length(self) -> int:
        """Columns before the one that is being read."""
        return self._rows.width

    def blank(self, begin: int, end: int) -> None:
        """Zeros in columns of all rows: what is masked must be numbers all the same."""
        for buffer in self._buffers:
            buffer[:, :, begin:end] = 0

    def write(self, row: int, source: Any, pick: int, length: int) -> None:
        """Take the last ``length`` columns of row ``pick`` of another layer, and blank what is before them."""
        end = self._rows.end
        for buffer, states in zip(self._buffers, (source.keys, source.values), strict=True):
            buffer[row, :, end - self._rows.width : end - length] = 0
            buffer[row, :, end - length : end] = states[pick, :, states.shape[2] - length :]

    def move(self, source: int, row: int) -> None:
        """Put a row in another's place."""
        for buffer in self._buffers:
            columns = slice(self._rows.end - self._rows.width, self._rows.end)
            buffer[row, :, columns] = buffer[source, :, columns]

    def shift(self, source: slice, target: slice, capacity: int | None) -> None:
        """Move columns, into buffers of another capacity if one is given."""
        for n, old in enumerate(self._buffers):
            new = old if capacity is None else old.new_zeros(*old.shape[:2], capacity, old.shape[3])
            new[:, :, target] = old[:, :, source]
            self._buffers[n] = new
