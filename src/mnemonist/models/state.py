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
        state = state[int(step)] if isinstance(state, tuple) else getattr(state, step)
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


def _changed(value: S, change: Callable[[Tensor], Tensor]) -> S:
    return _changed_by_name(value, lambda _, tensor: change(tensor))


def _changed_by_name(value: S, change: Callable[[str, Tensor], Tensor]) -> S:
    """The tree with every tensor replaced by what ``change`` makes of its name and itself."""

    def walk(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            return change(name, value)
        parts = {step: walk(part, f"{name}.{step}" if name else step) for step, part in _parts(value)}
        if isinstance(value, tuple):
            return tuple(parts.values())
        return dataclasses.replace(value, **parts) if parts else value

    return cast(S, walk(value, ""))


def _check(value: Any) -> None:
    """Ask every state of a tree whether its tensors fit each other."""
    if isinstance(value, (StreamState, MemoryState)):
        value.check()
    for _, part in _parts(value):
        _check(part)
