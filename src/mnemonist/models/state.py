"""What every state of a stream can do: a state is a tree of tensors whose rows are the streams of a batch.

Layers, blocks and models keep different things, but all of them are frozen dataclasses of tensors, of other states,
of tuples of these, or of None where there is nothing. What can be done with a state follows from that alone.
Floating-point tensors live where the model does; counters (int64) live on the CPU, since they steer the control flow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor

from mnemonist.memory.rule import MemoryRule
from mnemonist.memory.state import MemoryState

S = TypeVar("S", bound="StreamState")


@dataclass(frozen=True)
class StreamState:
    """A value: reading returns a new one and leaves this one as it was."""

    GROWING: ClassVar[frozenset[str]] = frozenset()
    """Names of tensors whose second dimension may grow while reading."""

    def check(self) -> None:
        """Raise ValueError unless the tensors of this state fit each other."""

    @property
    def batch(self) -> int:
        """Rows ``B``."""
        return next(_tensors(self))[1].shape[0]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(tensor.numel() * tensor.element_size() for _, tensor in _tensors(self))

    def detach(self: S) -> S:
        """The same state, cut from the graph that computed it."""
        return _changed(self, Tensor.detach)

    def fork(self: S) -> S:
        """An independent copy: two readings may go on from here."""
        return _changed(self, Tensor.clone)

    def select(self: S, rows: Tensor) -> S:
        """Rows ``rows`` (int64 ``[B']``, repeats allowed) as a new batch, e.g. the survivors of a beam."""
        return _changed(self, lambda tensor: tensor.index_select(0, rows.to(tensor.device)))

    def overwrite(self: S, rows: Sequence[int], other: S, picks: Sequence[int]) -> S:
        """Rows ``rows`` replaced by rows ``picks`` of another state, which stays as it is.

        Uses this state up, for where it can it writes into its tensors: go on with what is returned. It is for a
        caller that alone has this state, as when a row of a batch has come to its end and another stream takes over.

        Raises:
            ValueError: the states are of different models.
        """
        self.require_like(other)
        return self._overwrite(rows, other, picks, Ownership())

    def shrink(self: S, sources: Sequence[int]) -> S:
        """The first ``len(sources)`` rows; row ``i`` is what was row ``sources[i]``, itself or one behind the rest.

        Uses this state up, as `overwrite` does.
        """
        return self._shrink(sources, Ownership())

    def _overwrite(self: S, rows: Sequence[int], other: S, picks: Sequence[int], owned: Ownership) -> S:
        """`overwrite`, within a tree whose other tensors are known to ``owned``."""
        return _with_parts(self, lambda step, part: _overwritten(part, _part(other, step), rows, picks, owned))

    def _shrink(self: S, sources: Sequence[int], owned: Ownership) -> S:
        """`shrink`, likewise."""
        return _with_parts(self, lambda _, part: _shrunk(part, sources, owned))

    def to(self: S, device: torch.device | str) -> S:
        """The same state on another device; counters stay on the CPU."""
        return _changed(self, lambda tensor: tensor.to(device) if tensor.is_floating_point() else tensor)

    def to_tensors(self) -> dict[str, Tensor]:
        """Named tensors that share memory with nothing, ready for safetensors; `rebuilt` reads them back."""
        return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in _tensors(self)}

    def rebuilt(self: S, tensors: Mapping[str, Tensor]) -> S:
        """A state like this one (any state of the same model) with the tensors that `to_tensors` of another gave.

        Raises:
            ValueError: tensors are missing, left over, or of shapes and types that do not fit this model.
        """
        for name, like in self._tensors_like(tensors).items():
            if tensors[name].dtype != like.dtype:
                raise _odd(name, tensors[name], like)
        state = _changed_by_name(self, lambda name, _: tensors[name])
        _check(state)
        return state

    def require_like(self, other: StreamState) -> None:
        """Make sure that ``other`` may be a state of the same model, of any rows and precision.

        Raises:
            ValueError: its tensors have other names or shapes.
        """
        self._tensors_like(dict(_tensors(other)))

    def _tensors_like(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of this state by name, if ``tensors`` are of the same names and shapes."""
        own = dict(_tensors(self))
        if odd := sorted(set(own) ^ set(tensors)):
            raise ValueError(f"These tensors are not a state of this model: {', '.join(odd[:4])} missing or left over.")
        batches = {tensor.shape[:1] for tensor in tensors.values()}
        for name, tensor in tensors.items():
            like = own[name]
            fixed = 2 if name.rpartition(".")[2] in _growing(self, name) else 1
            if tensor.dim() != like.dim() or tensor.shape[fixed:] != like.shape[fixed:] or len(batches) != 1:
                raise _odd(name, tensor, like)
        return own


class Ownership:
    """Which tensors of a tree can be written into: those that overlap neither another one nor themselves.

    Some are one tensor in two places (keys and values before the first token), or one row that is seen as many.
    """

    def __init__(self) -> None:
        self._storages: set[int] = set()

    def __call__(self, tensor: Tensor) -> Tensor:
        """The tensor, or a copy of it."""
        repeated = any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
        if repeated or tensor.untyped_storage().data_ptr() in self._storages:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        self._storages.add(tensor.untyped_storage().data_ptr())
        return tensor


def _overwritten(mine: Any, theirs: Any, rows: Sequence[int], picks: Sequence[int], owned: Ownership) -> Any:
    if isinstance(mine, StreamState):
        return mine._overwrite(rows, theirs, picks, owned)
    if isinstance(mine, Tensor):
        mine = owned(mine)
        for row, pick in zip(rows, picks, strict=True):
            mine[row] = theirs[pick]
        return mine
    return _with_parts(mine, lambda step, part: _overwritten(part, _part(theirs, step), rows, picks, owned))


def _shrunk(mine: Any, sources: Sequence[int], owned: Ownership) -> Any:
    if isinstance(mine, StreamState):
        return mine._shrink(sources, owned)
    if isinstance(mine, Tensor):
        mine = owned(mine)
        for row, source in enumerate(sources):
            if row != source:
                mine[row] = mine[source]
        return mine[: len(sources)]
    return _with_parts(mine, lambda _, part: _shrunk(part, sources, owned))


def join_states(states: Sequence[S]) -> S:
    """One state with the rows of all of them, in their order; they must be of one model.

    Raises:
        ValueError: there is none.
    """
    if not states:
        raise ValueError("There is no state to join; give at least one.")
    named = [dict(_tensors(state)) for state in states]

    def joined(name: str, first: Tensor) -> Tensor:
        parts = [part[name] for part in named]
        if first.dim() > 1 and len({part.shape[1] for part in parts}) > 1:  # the newest entries stand last
            most = max(part.shape[1] for part in parts)
            parts = [
                torch.cat([part.new_zeros(part.shape[0], most - part.shape[1], *part.shape[2:]), part], dim=1)
                for part in parts
            ]
        return torch.cat(parts)

    return _changed_by_name(states[0], joined)


def _odd(name: str, tensor: Tensor, like: Tensor) -> ValueError:
    return ValueError(
        f"These tensors are not a state of this model: {name} is {tensor.dtype} {list(tensor.shape)}, "
        f"where one stream of this model has {like.dtype} {list(like.shape)}."
    )


def _growing(state: Any, name: str) -> frozenset[str]:
    """The `GROWING` of the state that holds the tensor ``name``."""
    for step in name.split(".")[:-1]:
        state = _part(state, step)
    return getattr(state, "GROWING", frozenset())


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a tree by name, such as ``blocks.0.memory.tail``."""
    if isinstance(value, Tensor):
        yield name, value
    else:
        for step, part in _parts(value):
            yield from _tensors(part, f"{name}.{step}" if name else step)


def _parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, tuple):
        return [(str(i), part) for i, part in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, MemoryRule):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return []


def _part(value: Any, step: str) -> Any:
    """One of its `_parts`."""
    return value[int(step)] if isinstance(value, tuple) else getattr(value, step)


def _with_parts(value: Any, change: Callable[[str, Any], Any]) -> Any:
    """The value with each of its `_parts` replaced by what ``change`` makes of its name and itself."""
    parts = {step: change(step, part) for step, part in _parts(value)}
    if isinstance(value, tuple):
        return tuple(parts.values())
    return dataclasses.replace(value, **parts) if parts else value


def _changed(value: S, change: Callable[[Tensor], Tensor]) -> S:
    return _changed_by_name(value, lambda _, tensor: change(tensor))


def _changed_by_name(value: S, change: Callable[[str, Tensor], Tensor]) -> S:
    """The tree with every tensor replaced by what ``change`` makes of its name and itself."""

    def walk(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            return change(name, value)
        return _with_parts(value, lambda step, part: walk(part, f"{name}.{step}" if name else step))

    return cast(S, walk(value, ""))


def _check(value: Any) -> None:
    """Ask every state of a tree whether its tensors fit each other."""
    if isinstance(value, (StreamState, MemoryState)):
        value.check()
    for _, part in _parts(value):
        _check(part)
