"""Memory as context (Titans section 4.1): the memory is asked first, and attention reads its answers beside the text.

The text is read in segments of ``C`` tokens. With ``M`` the memory as the segment before left it,

    h_i = M(q(x_i))                                 recalled for every token of the segment          (eq. 21)
    y_i = Attn(x_i; persistent, h_1..h_i, x_1..x_i)                                                  (eq. 22-23)
    z_i = norm(x_i + y_i);   M_i = M_{i-1} learns z_i;   far_i = M_i(z_i);   o_i = y_i + gate(y_i, far_i)   (24-25)

As printed the paper lets the future in twice. ``h`` stands *before* the segment there, in sight of all its tokens,
though ``h_i`` is asked for by token ``i``: here token ``i`` sees ``h_j`` for ``j <= i`` only, and ``h_j`` has the
position of the token that asked. And the last line reads ``M`` as the whole segment left it: here each token reads it
as its own write left it. `docs/titans-choices.md` lists these choices beside the others.

The first summands of ``z`` and ``o`` are not printed there; section 4.4 has residual connections in all blocks. Without
them (``skip=false``) such a model learned next to no recall (`docs/log.md`).

Segments are counted in real tokens from the beginning of a stream, so the cuts of a stream and its padding move no
border. A segment needs the memory that the one before it left: time is a loop over segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnemonist.memory.eager import eager
from mnemonist.memory.kernels import native_bands
from mnemonist.memory.kernels.native_bands import Band
from mnemonist.memory.reading import Surprise, recall
from mnemonist.memory.stream import align
from mnemonist.models.attention import CausalAttention, rotate, weigh
from mnemonist.models.linear import Linear
from mnemonist.models.neural_memory import NeuralMemory, NeuralMemoryState
from mnemonist.models.normalisation import RMSNorm
from mnemonist.models.state import StreamState


@dataclass(frozen=True)
class ContextState(StreamState):
    """What the layer remembers of a stream: a value of constant size."""

    memory: NeuralMemoryState
    recalled: tuple[Tensor, ...]
    """Weights of the memory at the start of the unfinished segment: what this segment recalls from."""
    keys: Tensor
    """``[B, 2, C, H, D]``: of the answers recalled and of the tokens read in the unfinished segment."""
    values: Tensor
    """``[B, 2, C, H, D]``."""
    phase: Tensor
    """``[B]`` int64 on the CPU (it steers the control flow): tokens read of the unfinished segment."""

    def check(self) -> None:
        """Raise ValueError unless the counter is one that reading could have left."""
        if bool(((self.phase < 0) | (self.phase >= self.keys.shape[2])).any()):
            raise ValueError("These tensors are not a state of memory as context: its counter is out of range.")


@dataclass(frozen=True)
class _Shared:
    """What is the same for all segments of a piece."""

    persistent: tuple[Tensor, Tensor]
    """Keys and values of the persistent tokens ``[B, P, H, D]``."""
    to_seen: tuple[Tensor, Tensor | None] | None
    """``[2 G D, inner]`` and, if attention has one, a bias ``[2 G D]``: bring recalled answers to keys and values at
    once; None goes through both projections."""
    masks: dict[tuple[int, int], Tensor]
    """By the first slot of a piece of a segment and the slot after its last: 0 where a key is seen, or else -inf."""

    def mask(self, slot: int, end: int, like: Tensor) -> Tensor:
        """``[L, P + 2 end]``: persistent tokens, then what was recalled for each token, then each token itself."""
        if (slot, end) not in self.masks:
            column, row = torch.arange(end, device=like.device), torch.arange(slot, end, device=like.device)[:, None]
            seen = (column <= row).repeat(1, 2)  # what was recalled for a token is seen by it and those after it
            unseen = ~F.pad(seen, (self.persistent[0].shape[1], 0), value=True)
            self.masks[slot, end] = like.new_zeros(unseen.shape).masked_fill_(unseen, -torch.inf)
        return self.masks[slot, end]


class MemoryContext(nn.Module):
    """Embeddings ``[B, T, E]`` in; what attention made of text and memory, and what the memory makes of that, out.

    Args:
        attention: full causal attention, used within a segment; brings the persistent tokens.
        memory: learns what attention makes of the text.
        segment: tokens of a segment, ``C``.
        skip: whether the memory is given the text beside what attention says.

    Raises:
        ValueError: ``segment`` is not positive, or ``attention`` has a window.
    """

    def __init__(self, attention: CausalAttention, memory: NeuralMemory, segment: int, *, skip: bool = True) -> None:
        super().__init__()
        if segment < 1 or attention.window is not None:
            raise ValueError(f"segment is {segment} and window {attention.window}; give at least 1, and no window.")
        width, inner = memory.in_proj.in_features, memory.heads * memory.head_dim
        self.segment, self.skip = segment, skip
        self.attention, self.memory = attention, memory
        self.question_proj = Linear(width, inner, bias=False)
        self.recalled_norm = RMSNorm(memory.head_dim)
        self.recalled_proj = Linear(inner, width, bias=False)
        self.norm = RMSNorm(width)

    @eager
    def forward(
        self,
        x_BTE: Tensor,
        state: ContextState | None = None,
        mask_BT: Tensor | None = None,
        *,
        learn: bool = True,
        surprise: bool = False,
    ) -> tuple[Tensor, Tensor, ContextState, Surprise | None]:
        """Read a piece of a stream; see `NeuralMemory.forward` for the arguments.

        Returns:
            ``y`` and ``far`` (``[B, T, E]`` each, zero at padding), the state, and the surprise if asked for.

        Raises:
            ValueError: the state belongs to another batch size or layer.
        """
        B, T, _ = x_BTE.shape
        if state is None:
            state = self.initial_state(x_BTE)
        elif state.keys.shape[:3] != (B, 2, self.segment):
            kept = state.keys.shape
            raise ValueError(
                f"The state has {kept[0]} rows and segments of {kept[2]} tokens, but {B} rows are given to segments "
                f"of {self.segment}; use state.select(rows), or the model that made the state."
            )
        if mask_BT is not None and bool(mask_BT.all()):
            mask_BT = None
        if T == 1:
            return self._read_one(x_BTE, state, mask_BT, learn, surprise)
        phases = state.phase.tolist()
        if len(set(phases)) == 1 and mask_BT is None:
            return self._read(x_BTE, state, None, phases[0], state.phase + T, learn, surprise)

        # Rows are shifted against each other until their segments begin at the same columns, and back afterwards.
        source, valid, ends = align(mask_BT, state.phase, x_BTE.shape[:2], x_BTE.device)
        x = x_BTE.gather(1, source[..., None].expand(-1, -1, x_BTE.shape[2])).masked_fill(~valid[..., None], 0)
        y, far, after, seen = self._read(x, state, valid, 0, ends, learn, surprise)
        here = valid.nonzero(as_tuple=True)
        there = (here[0], source[here])

        def back(moved: Tensor) -> Tensor:
            return moved.new_zeros(B, T, *moved.shape[2:]).index_put(there, moved[here])

        return back(y), back(far), after, None if seen is None else seen.each(back)

    def initial_state(self, x_BTE: Tensor) -> ContextState:
        """The state before the first token, for the rows of ``x``."""
        B = x_BTE.shape[0]
        memory = self.memory.initial_state(x_BTE)
        empty = x_BTE.new_zeros(B, 2, self.segment, self.attention.kv_heads, self.attention.head_dim)
        return ContextState(memory, memory.memory.weights, empty, empty, torch.zeros(B, dtype=torch.int64))

    def _read(
        self,
        x_BTE: Tensor,
        state: ContextState,
        valid_BT: Tensor | None,
        phase: int,
        ends: Tensor,
        learn: bool,
        surprise: bool,
    ) -> tuple[Tensor, Tensor, ContextState, Surprise | None]:
        """Read columns from ``phase`` on; segments begin at multiples of ``C``, and rows end at ``ends [B]``.

        What depends on the text alone is done for all segments at once, before the loop, and what nothing in the loop
        waits for behind it.
        """
        C, T = self.segment, x_BTE.shape[1]
        begins = range(phase - phase % C, phase + T, C)
        lengths = [min(begin + C, phase + T) - max(begin, phase) for begin in begins]
        rotations = self.attention.rotations((torch.arange(phase, phase + T, device="cpu") % C)[None], x_BTE)
        shared = self._shared(x_BTE)
        # `split`, not slices: the derivative of a slice is as large as the whole, and there is one a segment.
        tokens = (self._questions(x_BTE), *self.attention.project(x_BTE, rotations), *rotations)
        texts, *pieces = [tensor.split(lengths, 1) for tensor in (x_BTE, *tokens)]
        valids = [None] * len(lengths) if valid_BT is None else valid_BT.split(lengths, 1)
        near, learnt, answers, reports = [], [], [], []
        for begin, text, valid, piece in zip(begins, texts, valids, zip(*pieces, strict=True), strict=True):
            if begin > phase:  # a segment begins in the rows that still have tokens
                state = self._begin_segment(state, ends > begin)
            y, state = self._attend(piece, state, valid, max(phase - begin, 0), shared, keep=begin in begins[-2:])
            x = self.norm(text + y if self.skip else y)
            if valid is not None:
                x = x.masked_fill(~valid[..., None], 0)
            z, memory, seen = self.memory.read(x, state.memory, valid, learn=learn, surprise=surprise)
            state = replace(state, memory=memory)
            near.append(y)
            learnt.append(x)
            answers.append(z)
            if seen is not None:
                reports.append(seen)
        state = self._begin_segment(state, ends % C == 0)
        state = replace(state, phase=ends % C)
        far = self.memory.finish(torch.cat(learnt, 1), torch.cat(answers, 1))
        return torch.cat(near, 1), far, state, Surprise.join(reports) if reports else None

    def _read_one(
        self, x_BTE: Tensor, state: ContextState, real_B1: Tensor | None, learn: bool, surprise: bool
    ) -> tuple[Tensor, Tensor, ContextState, Surprise | None]:
        """Read one token of each row, wherever in their segments the rows are."""
        C, attention, phase = self.segment, self.attention, state.phase[:, None]
        rotations = attention.rotations(phase, x_BTE)
        q, k, v = attention.project(x_BTE, rotations)
        h_k, h_v = self._recall(self._questions(x_BTE), state, rotations, None)
        phase = phase.to(x_BTE.device)
        slots = torch.arange(C, device=x_BTE.device)
        seen, own = slots <= phase, slots == phase
        own = (own if real_B1 is None else own & real_B1)[:, None, :, None, None]
        keys, values = (
            torch.where(own, torch.stack(new, 1).to(kept.dtype), kept)
            for new, kept in (((h_k, k), state.keys), ((h_v, v), state.values))
        )
        own_keys, own_values = attention.persistent_pair(x_BTE)
        all_keys, all_values = torch.cat([own_keys, *keys.unbind(1)], 1), torch.cat([own_values, *values.unbind(1)], 1)
        seen = F.pad(seen.repeat(1, 2), (own_keys.shape[1], 0), value=True)
        y = attention.out_proj(weigh(q, all_keys, all_values, seen[:, None, None]).flatten(2))
        x = self.norm(x_BTE + y if self.skip else y)
        if real_B1 is not None:
            x = x.masked_fill(~real_B1[..., None], 0)
        z, memory, report = self.memory.read(x, state.memory, real_B1, learn=learn, surprise=surprise)
        far = self.memory.finish(x, z)
        if real_B1 is not None:
            y, far = (answer.masked_fill(~real_B1[..., None], 0) for answer in (y, far))
        ends = (state.phase + (1 if real_B1 is None else real_B1[:, 0].cpu())) % C
        after = replace(state, memory=memory, keys=keys, values=values, phase=ends)
        return y, far, self._begin_segment(after, ends == 0), report

    def _questions(self, x_BTE: Tensor) -> Tensor:
        """What the memory is asked before attention reads: ``[B, T, H, D]``."""
        question = F.silu(self.question_proj(x_BTE)).unflatten(-1, (self.memory.heads, self.memory.head_dim))
        return F.normalize(question, dim=-1)

    def _recall(
        self,
        question: Tensor,
        state: ContextState,
        rotations: tuple[Tensor, Tensor],
        to_seen: tuple[Tensor, Tensor | None] | None,
    ) -> tuple[Tensor, Tensor]:
        """Keys and values ``[B, L, G, D]`` of the answers; ``to_seen`` as `_Shared` has it."""
        answers = recall(self.memory.rule, question, state.recalled, self.memory.feature_map)
        recalled = self.recalled_norm(answers).flatten(2)
        seen = 2 * self.attention.kv_heads * self.attention.head_dim
        if to_seen is None:
            both = self.attention.in_proj(self.recalled_proj(recalled))[..., -seen:]
        else:
            both = F.linear(recalled, *to_seen)
        keys, values = both.unflatten(-1, (2, self.attention.kv_heads, self.attention.head_dim)).unbind(2)
        return rotate(self.attention.normed_keys(keys), *rotations), values

    def _begin_segment(self, state: ContextState, rows_B: Tensor) -> ContextState:
        """From here on some rows recall from the memory as it is now."""
        return replace(state, recalled=_where(rows_B, state.memory.memory.weights, state.recalled))

    def _shared(self, x_BTE: Tensor) -> _Shared:
        persistent = self.attention.persistent_pair(x_BTE)
        inner, seen = self.question_proj.out_features, self.attention.heads * self.attention.head_dim
        to_seen = None
        if x_BTE.shape[:2].numel() >= 2 * inner:
            # Two projections in a row are one, whose rows are what they make of the unit vectors: for a long piece
            # that is a third of the work. The queries that the second would also make are for nobody.
            biased = self.attention.in_proj.bias is not None
            units = torch.eye(inner + biased, inner, dtype=x_BTE.dtype, device=x_BTE.device)  # of zeros comes the bias
            rows = self.attention.in_proj(self.recalled_proj(units))[:, seen:]
            to_seen = ((rows[:-1] - rows[-1]).mT, rows[-1]) if biased else (rows.mT, None)
        return _Shared(persistent, to_seen, {})

    def _attend(
        self,
        tokens: tuple[Tensor, ...],
        state: ContextState,
        valid_BL: Tensor | None,
        slot: int,
        shared: _Shared,
        keep: bool,
    ) -> tuple[Tensor, ContextState]:
        """Attention for tokens in slots ``slot``, ``slot + 1``, ... of their segment; recalls, and keeps their keys.

        Without ``keep`` it does so only for a segment that goes on: the next whole one would overwrite them unseen.
        """
        question, q, k, v, cos, sin = tokens
        h_k, h_v = self._recall(question, state, (cos, sin), shared.to_seen)
        keys, kept_keys = _seen((h_k, k), state.keys, valid_BL, slot, keep)
        values, kept_values = _seen((h_v, v), state.values, valid_BL, slot, keep)
        y = self.attention.out_proj(self._weigh(q, keys, values, slot, shared).flatten(2))
        return y, replace(state, keys=kept_keys, values=kept_values)

    def _weigh(
        self, q: Tensor, keys: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor], slot: int, shared: _Shared
    ) -> Tensor:
        """Attention ``[B, L, H, D]`` to what was recalled, to the tokens themselves and to persistent tokens."""
        end, (own_keys, own_values) = slot + q.shape[1], shared.persistent
        if native_bands.applies(q, *keys, *values, *shared.persistent, keys=2 * end):
            bands = [Band(*pair, end) for pair in zip(keys, values, strict=True)]
            if own_keys.shape[1]:
                bands.append(Band(own_keys, own_values, None))
            return native_bands.attend_bands(q, bands)
        all_keys, all_values = torch.cat([own_keys, *keys], dim=1), torch.cat([own_values, *values], dim=1)
        return weigh(q, all_keys, all_values, shared.mask(slot, end, q))


def _where(rows_B: Tensor, new: Sequence[Tensor], old: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """``new`` in some rows of the batch, ``old`` in the others."""
    if bool(rows_B.all()):
        return tuple(new)
    if not bool(rows_B.any()):
        return tuple(old)
    chosen = rows_B.to(new[0].device)[:, None, None, None]
    return tuple(torch.where(chosen, n, o) for n, o in zip(new, old, strict=True))


def _seen(
    new: tuple[Tensor, Tensor], kept: Tensor, valid_BL: Tensor | None, slot: int, keep: bool
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Keys (or values) that a piece of a segment meets, and those kept, ``[B, 2, C, H, D]``.

    ``new`` are those recalled and those of the tokens themselves, ``[B, L, H, D]`` each, from ``slot`` on; those met
    ``[B, end, H, D]`` each.
    """
    C, end = kept.shape[2], slot + new[0].shape[1]
    recalled, own = (x.to(kept.dtype) for x in new)  # autocast must not change the size of a state
    whole = valid_BL is None and end - slot == C
    if whole and not keep:
        return (recalled, own), kept
    both = torch.stack([recalled, own], 1)
    if whole:
        return (recalled, own), both
    if valid_BL is not None:
        both = torch.where(valid_BL[:, None, :, None, None], both, kept[:, :, slot:end])
    after = torch.cat([kept[:, :, :slot], both, kept[:, :, end:]], dim=2)
    return (after[:, 0, :end], after[:, 1, :end]), after
