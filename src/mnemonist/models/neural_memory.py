"""A layer that reads: projections, a short convolution, gates, and one memory per head.

Titans section 4.4: queries, keys and values are projected, passed through a short causal depthwise convolution and
SiLU; queries and keys are L2-normalised (unless the rule takes them as they come); gates come from the token itself;
what the memory answers is normalised and gated before the output projection. The layer takes embeddings of any origin
and any rule.

Two choices of ours keep learning stable while it reads (`docs/log.md` has the measurements):

* The step size is ``theta = bound * sigmoid(.) * (1 - eta)``. Momentum repeats each step ``1 / (1 - eta)`` times, so
  without the factor a memory that overshoots on a key it meets again diverges. With it, ``bound * sigmoid(.)`` is the
  whole displacement a write will have caused.
* ``bound`` is 1 for a matrix and keys of norm 1: a write then replaces what its key held. A deep memory, or one whose
  feature map makes keys longer, moves further than that at step size 1, and what overshoots diverges: there the bound
  divides by the `curvature`, which says how far (but not for a matrix that only sums up, or that is at its optimum).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnemonist.errors import UserError
from mnemonist.memory.eager import eager
from mnemonist.memory.feature_maps import build_feature_map
from mnemonist.memory.kernels import native_streams, native_token_gates, triton_layers
from mnemonist.memory.network import curvature
from mnemonist.memory.reading import Surprise, memorize
from mnemonist.memory.rule import MemoryRule, find_rule
from mnemonist.memory.state import MemoryState, as_kept, initial_weights
from mnemonist.models.linear import Linear, is_bare
from mnemonist.models.normalisation import RMSNorm, gated_norms, wide
from mnemonist.models.state import StreamState
from mnemonist.tensors import load_tensors, save_tensors

FORMAT = "mnemonist-layer-state/1"
GATES = frozenset({"step_proj", "momentum_proj", "decay_proj"})
"""Names of the layers that say how fast a memory learns, carries on and forgets."""

INITIAL_STEP = 0.5  # of the bound
INITIAL_MOMENTUM = 0.5
INITIAL_DECAY = (0.03, 0.0005)  # alpha of the first and last head: half-lives from 23 to 1400 tokens
LOG_MOMENTUM_FLOOR = -20.0


@dataclass(frozen=True)
class NeuralMemoryState(StreamState):
    """What the layer remembers of a stream: a value of constant size."""

    memory: MemoryState
    tail: Tensor
    """Inputs of the convolution that later tokens still see: ``[B, conv_size - 1, (1 + 2 * writes) * H * D]``."""
    held: Tensor | None = None
    """Gates of the unfinished chunk, ``[B, G]``, if the rule holds them for a chunk; between two they say nothing."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, whole or not at all; `NeuralMemory.load_state` reads it.

        Raises:
            FileError: the file cannot be written.
        """
        save_tensors(path, self.to_tensors(), format=FORMAT, rule=self.memory.rule.to_json())


class NeuralMemory(nn.Module):
    """Embeddings ``[B, T, E]`` in, embeddings ``[B, T, E]`` out, and a memory per head that learns in between.

    Args:
        width: ``E``.
        heads: memories per layer, ``H``.
        head_dim: width of keys and values, ``D``.
        rule: the memory's choices, or the name of a row of `RULES`.
        conv_size: tokens the depthwise convolution sees; 1 leaves it out.
        step_bound: largest displacement of one write; None takes the bound for the rule (see above).

    Raises:
        ValueError: sizes that are not positive, or an unknown rule.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_dim: int,
        rule: MemoryRule | str = "titans",
        *,
        conv_size: int = 4,
        step_bound: float | None = None,
    ) -> None:
        super().__init__()
        if min(width, heads, head_dim, conv_size) < 1:
            raise ValueError(
                f"width {width}, heads {heads}, head_dim {head_dim} and conv_size {conv_size} must all be at least 1."
            )
        self.rule = find_rule(rule)
        self.heads, self.head_dim, self.conv_size = heads, head_dim, conv_size
        inner, writes = heads * head_dim, self.rule.writes
        self.in_proj = Linear(width, (1 + 2 * writes) * inner, bias=False)  # a query, keys, values
        sent = self.in_proj.out_features
        self.conv = nn.Parameter(torch.empty(conv_size, sent)) if conv_size > 1 else None  # last row: the present
        self.feature_map = (
            None
            if self.rule.feature_map is None
            else build_feature_map(self.rule.feature_map, heads, head_dim, **self.rule.feature_options)
        )
        key_dim = head_dim if self.feature_map is None else int(self.feature_map.feature_dim)
        if step_bound is None:
            straight = self.rule.linear and (self.rule.objective == "dot" or self.rule.step == "optimum")
            step_bound = 1.0 if straight else 1 / (self.rule.window * curvature(self.rule, head_dim, head_dim))
        elif not 0 < step_bound < math.inf:
            raise ValueError(f"step_bound is {step_bound}; it must be a positive number, or None.")
        self.step_bound = step_bound
        self.decay_channels = self.rule.decay_channels(key_dim, head_dim) if self.rule.retention == "channel" else 1
        by_token, forgets = self.rule.gates != "constant", self.rule.retention != "none"
        self.step_proj = Linear(width, writes * heads) if by_token else None
        self.momentum_proj = Linear(width, writes * heads) if self.rule.momentum else None
        self.decay_proj = Linear(width, heads * self.decay_channels) if by_token and forgets else None
        self.initial = nn.ParameterList(nn.Parameter(w) for w in initial_weights(self.rule, heads, key_dim, head_dim))
        for weight in self.initial:
            weight._no_weight_decay = True
        self.norm = RMSNorm(head_dim)
        self.out_gate = Linear(width, inner, bias=False)
        self.out_proj = Linear(inner, width, bias=False)
        self._initialise_gates()

    def _initialise_gates(self) -> None:
        """Start from gates that are the same for every token; heads differ in how long they remember."""
        decay = torch.logspace(math.log10(INITIAL_DECAY[0]), math.log10(INITIAL_DECAY[1]), self.heads)
        decay = decay.repeat_interleave(self.decay_channels)
        starts = ((self.step_proj, INITIAL_STEP), (self.momentum_proj, INITIAL_MOMENTUM), (self.decay_proj, decay))
        for proj, value in starts:
            if proj is not None:
                nn.init.zeros_(proj.weight)
                with torch.no_grad():
                    proj.bias.copy_(torch.as_tensor(value).logit())
        if self.conv is not None:  # begin as the identity on the present token, with a little of the past
            nn.init.uniform_(self.conv, -0.1, 0.1)
            with torch.no_grad():
                self.conv[-1] += 1

    def forward(
        self,
        x_BTE: Tensor,
        state: NeuralMemoryState | None = None,
        mask_BT: Tensor | None = None,
        *,
        learn: bool = True,
        surprise: bool = False,
    ) -> tuple[Tensor, NeuralMemoryState, Surprise | None]:
        """Read a piece of a stream.

        Args:
            x_BTE: embeddings.
            state: what an earlier call returned, or None at the beginning.
            mask_BT: False (or 0) on padding; padding changes nothing and yields zeros.
            learn: False reads with the memory as it is: no step, no forgetting.
            surprise: whether to also report the surprise of every token and head.

        Raises:
            ValueError: see `mnemonist.memory.memorize`; embeddings or mask have another shape; or the state belongs to
                another batch size or layer.
        """
        width = self.in_proj.in_features
        if x_BTE.dim() != 3 or x_BTE.shape[2] != width:
            raise ValueError(f"x is {list(x_BTE.shape)}; this layer reads embeddings [B, T, {width}].")
        if mask_BT is not None:
            if mask_BT.shape != x_BTE.shape[:2]:
                raise ValueError(f"mask_BT is {list(mask_BT.shape)}; it must be {list(x_BTE.shape[:2])}.")
            mask_BT = mask_BT.bool()  # tokenizers return whole numbers
            x_BTE = x_BTE.masked_fill(~mask_BT[..., None], 0)  # what stands at padding reaches nothing: 0 * NaN is NaN
        if torch.is_autocast_enabled(x_BTE.device.type):  # once, and not once for every projection
            x_BTE = x_BTE.to(torch.get_autocast_dtype(x_BTE.device.type))
        y, after, seen = self.read(x_BTE, state, mask_BT, learn=learn, surprise=surprise)
        return self.finish(x_BTE, y), after, seen

    def read(
        self,
        x_BTE: Tensor,
        state: NeuralMemoryState | None,
        mask_BT: Tensor | None,
        *,
        learn: bool = True,
        surprise: bool = False,
    ) -> tuple[Tensor, NeuralMemoryState, Surprise | None]:
        """What the memory itself answers, ``[B, T, H, D]``; zeros must stand at padding. The rest: see `forward`."""
        B = x_BTE.shape[0]
        if state is not None and state.tail.shape[0] != B:
            raise ValueError(
                f"The state has {state.tail.shape[0]} rows but the batch has {B}; use state.select(rows) to change it."
            )
        if state is not None and state.tail.shape[1:] != (self.conv_size - 1, self.in_proj.out_features):
            raise ValueError(
                f"The state belongs to another layer: its convolution keeps {list(state.tail.shape[1:])} numbers, "
                f"this one's {[self.conv_size - 1, self.in_proj.out_features]}."
            )
        q, k, v, tail = self._streams(self.in_proj(x_BTE), None if state is None else state.tail, mask_BT)
        gates, held = self._gates(x_BTE), None
        if self.rule.gates == "chunk":
            gates, held = self._hold(gates, state or self.initial_state(x_BTE), mask_BT)
        memory = None if state is None else state.memory
        if not learn:  # no step, nothing fades (log 1), and no momentum carries the memory on
            gates = {name: torch.zeros_like(gate) for name, gate in gates.items()}
            if memory is not None:
                still, unwritten = (tuple(map(torch.zeros_like, group)) for group in (memory.momentum, memory.recent))
                memory = replace(memory, momentum=still, recent=unwritten)
        read = memorize(
            self.rule,
            q,
            k,
            v,
            step_size=gates["step_size"],
            log_momentum=gates.get("log_momentum"),
            log_decay=gates.get("log_decay"),
            initial=list(self.initial),
            state=memory,
            mask=mask_BT,
            feature_map=self.feature_map,
            surprise=surprise,
        )
        after = read.state
        if not learn and state is not None:
            after = replace(after, momentum=state.memory.momentum, recent=state.memory.recent)
        return read.y, NeuralMemoryState(after, tail, held), read.surprise

    def extra_repr(self) -> str:
        """What `print` shows of the layer besides its modules."""
        width = self.in_proj.in_features
        return f"width={width}, heads={self.heads}, head_dim={self.head_dim}, rule={self.rule.name}"

    def finish(self, x_BTE: Tensor, y_BTHD: Tensor) -> Tensor:
        """What the layer makes of its input and of the memory's answers to it: ``[B, T, E]``."""
        gate = self.out_gate(x_BTE)
        if triton_layers.applies(self.head_dim, gate, y_BTHD, self.norm.weight):
            return self.out_proj(triton_layers.gated_norm(gate, y_BTHD, self.norm.weight, self.norm.eps))
        return self.out_proj(gated_norms(gate.unflatten(-1, (self.heads, -1)), y_BTHD, self.norm).flatten(2))

    def initial_state(self, x_BTE: Tensor) -> NeuralMemoryState:
        """The state before the first token, for the rows of ``x``."""
        weights = as_kept(self.rule, [wide(weight) for weight in self.initial])
        tail = x_BTE.new_zeros(x_BTE.shape[0], self.conv_size - 1, self.in_proj.out_features)
        memory = MemoryState.fresh(self.rule, weights, x_BTE.shape[0])
        if self.rule.gates != "chunk":
            return NeuralMemoryState(memory, tail)
        projections = (self.step_proj, self.momentum_proj, self.decay_proj)
        width = sum(proj.out_features for proj in projections if proj is not None)
        return NeuralMemoryState(memory, tail, weights[0].new_zeros(x_BTE.shape[0], width))

    def load_state(self, path: str | os.PathLike[str]) -> NeuralMemoryState:
        """What a state of this layer wrote with its `save`, on the CPU; nothing in the file is executed.

        Raises:
            UserError: there is no such file, or it holds no state of a layer like this one.
        """
        tensors, header = load_tensors(path, FORMAT)
        try:
            if header.get("rule") != self.rule.to_json():
                raise ValueError(f"its memories have another rule than {self.rule.name}")
            x = torch.zeros(1, 1, self.in_proj.in_features, dtype=tensors["tail"].dtype)
            return self.initial_state(x).to("cpu").rebuilt(tensors)
        except KeyError as error:
            raise UserError(f"{path} cannot be used: {error} is missing") from error
        except ValueError as error:
            raise UserError(f"{path} cannot be used: {error}") from error

    def _gates(self, x: Tensor) -> dict[str, Tensor]:
        """Gates as `memorize` takes them: step_size, log_momentum, log_decay; only those the rule uses."""
        if self.step_proj is None:
            return self._constant_gates(x)
        step, log_momentum, log_decay = self._token_gates(x)
        gates = {"step_size": self._of_writes(step)}
        if log_momentum is not None:
            gates["log_momentum"] = self._of_writes(log_momentum)
        if log_decay is not None:
            by_channel = self.rule.retention == "channel"
            gates["log_decay"] = log_decay.unflatten(-1, (self.heads, -1)) if by_channel else log_decay
        return gates

    @eager
    def _token_gates(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Step size, log momentum and log decay of each token, ``[B, T, N]``; None for those the rule does not use."""
        assert self.step_proj is not None
        layers = (self.step_proj, self.momentum_proj, self.decay_proj)
        if all(layer is None or is_bare(layer) for layer in layers):
            projections = [None if layer is None else (layer.weight, layer.bias) for layer in layers]
            if native_token_gates.applies(x, projections):
                return native_token_gates.token_gates(x, projections, self.step_bound, -LOG_MOMENTUM_FLOOR)
        step_size = self.step_bound * torch.sigmoid(wide(self.step_proj(x)))
        log_momentum = log_decay = None
        if self.momentum_proj is not None:
            logit = wide(self.momentum_proj(x))
            # The log of the sigmoid; torch's own calls all threads for however few numbers.
            log_momentum = -F.softplus(-logit, threshold=40).clamp_max(-LOG_MOMENTUM_FLOOR)
            step_size = step_size * torch.sigmoid(-logit)
        if self.decay_proj is not None:
            log_decay = -F.softplus(wide(self.decay_proj(x)), threshold=40)  # log(1 - sigmoid)
        return step_size, log_momentum, log_decay

    def _of_writes(self, x: Tensor) -> Tensor:
        """``[B, T, writes * H] -> [B, T * writes, H]``."""
        return x if self.rule.writes == 1 else x.unflatten(2, (self.rule.writes, -1)).flatten(1, 2)

    @eager
    def _hold(
        self, gates: dict[str, Tensor], state: NeuralMemoryState, mask: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Gates of each chunk's first token for all of its tokens, and those of the last chunk."""
        assert state.held is not None and state.memory.phase is not None
        flat = torch.cat([gate.flatten(2) for gate in gates.values()], dim=-1)
        B, T, _ = flat.shape
        real = torch.ones(B, T, dtype=torch.bool, device=flat.device) if mask is None else mask
        place = state.memory.phase.to(flat.device)[:, None] + real.cumsum(1) - 1
        begins = real & (place % self.rule.chunk_size == 0)
        # Column 0 holds what an earlier call left; token t stands in column t + 1.
        columns = torch.arange(1, T + 1, device=flat.device)
        source = torch.where(begins, columns, 0).cummax(1).values
        known = torch.cat([state.held[:, None].to(flat), flat], dim=1)
        held = known.gather(1, source[..., None].expand(-1, -1, flat.shape[2]))
        parts = held.split([gate.flatten(2).shape[2] for gate in gates.values()], dim=-1)
        by_chunk = {name: part.reshape(gate.shape) for (name, gate), part in zip(gates.items(), parts, strict=True)}
        return by_chunk, held[:, -1].clone()  # a view would keep the whole piece in memory

    def _constant_gates(self, x: Tensor) -> dict[str, Tensor]:
        """The same for every token: the largest step; decays of 1 - 2^-5, 1 - 2^-6 ... by head (RetNet eq. 8)."""
        B, T, _ = x.shape
        shape = (B, T, self.heads)
        gates = {"step_size": wide(x.new_full((B, self.rule.writes * T, self.heads), self.step_bound))}
        if self.rule.retention != "none":
            kept = torch.log1p(-torch.pow(2.0, -5.0 - torch.arange(self.heads, dtype=torch.float64)))
            log_decay = kept.to(gates["step_size"]).expand(shape)
            if self.rule.retention == "channel":
                log_decay = log_decay[..., None].expand(*shape, self.decay_channels)
            gates["log_decay"] = log_decay
        return gates

    @eager
    def _streams(self, x: Tensor, tail: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries ``[B, T, H, D]``, keys and values ``[B, T * writes, H, D]``, and the inputs the next call needs."""
        unit_keys, writes = self.rule.keys == "unit", self.rule.writes
        if self.conv is not None and (mask is None or not _has_padding(mask)):
            before = x.new_zeros(x.shape[0], self.conv_size - 1, x.shape[2]) if tail is None else tail
            if native_streams.applies((x, before, self.conv)):
                return native_streams.send(x, before, self.conv, self.heads, unit_keys, writes)
            if writes == 1 and triton_layers.applies(self.head_dim, x, before, self.conv):
                return triton_layers.send(x, before, self.conv, self.heads, unit_keys)
        y, after = self._convolve(x, tail, mask)
        y = F.silu(y).unflatten(-1, (-1, self.heads, self.head_dim))
        asked, values = y[:, :, : 1 + writes], y[:, :, 1 + writes :]
        if unit_keys:
            # Mixed precision would give them in float32, and the memory multiplies in the type of its tokens.
            asked = F.normalize(asked, dim=-1).to(y.dtype)
        return asked[:, :, 0], asked[:, :, 1:].flatten(1, 2), values.flatten(1, 2), after

    def _convolve(self, x: Tensor, tail: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The short causal convolution over real tokens, and the inputs its next call still needs."""
        B, T, channels = x.shape
        kept = self.conv_size - 1
        if tail is None:
            tail = x.new_zeros(B, kept, channels)
        if self.conv is None:
            return x, tail
        padded = mask is not None and _has_padding(mask)
        if padded:
            assert mask is not None
            order = torch.argsort(~mask, dim=1, stable=True)[..., None].expand(-1, -1, channels)
            x = x.gather(1, order)  # real tokens side by side: padding must not stand between a token and its past
        past = torch.cat([tail.to(x.dtype), x], dim=1)
        # A few shifted products: on CPUs twice as fast as a depthwise convolution, derivatives included.
        conv = self.conv.to(past.dtype)
        y = past[:, kept:] * conv[-1]
        for i in range(kept):
            y = y.addcmul_(past[:, i : i + T], conv[i])
        if not padded:
            return y, past[:, T:].clone()  # a view would keep the whole piece in memory
        assert mask is not None
        ends = mask.sum(1)[:, None] + torch.arange(kept, device=x.device)
        return torch.zeros_like(y).scatter(1, order, y), past.gather(1, ends[..., None].expand(-1, -1, channels))


@eager
def _has_padding(mask_BT: Tensor) -> bool:
    return not bool(mask_BT.all())
