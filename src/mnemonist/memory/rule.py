"""A memory rule: the choices that make a memory what it is.

Every model of this family reads a stream of keys and values with the same loop

    S_t = eta_t S_{t-1} - theta_t grad l(M; k_t, v_t)          momentum (surprise carried over)
    M_t = (1 - alpha_t) M_{t-1} + S_t                          retention, then the write
    y_t = M_t(q_t)                                             the read, after the write

and differs only in the *shape* of ``M``, in what it is asked to get right (the *objective* ``l``), in how it
*steps* (momentum; at which ``M`` the gradient is taken), in what it *forgets*, and in the *feature map* through
which it sees keys and queries. A token that writes several times steps once for each of its keys, forgets before the
first of these steps and is answered after the last. A memory that steps to the *optimum* takes no gradient: it is at
every token the minimum of all that it has read (`least_squares`). A `MemoryRule` names these choices; a paper is a row
of `RULES`.

This module needs no torch, so the command line can list the rules at once.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mnemonist.choices import parse_choices
from mnemonist.errors import nearest
from mnemonist.memory.feature_map_table import FEATURE_MAPS, feature_dim
from mnemonist.memory.open_choices import ACTIVATIONS, OBJECTIVES, STEPS

Activation = Literal["silu", "gelu", "relu", "tanh"]
Objective = Literal["dot", "l2", "huber"]
Step = Literal["gradient", "optimum", "orthogonal"]
Retention = Literal["none", "head", "channel"]
DecayTarget = Literal["zero", "initial"]
GradientPoint = Literal["previous", "decayed", "chunk"]
ReadPoint = Literal["after", "before"]
Gates = Literal["token", "chunk", "constant"]
Keys = Literal["unit", "free"]


@dataclass(frozen=True)
class MemoryRule:
    """One point in the space of memories that learn while they read.

    Raises:
        ValueError: a choice is unknown, out of range, or contradicts another one.
    """

    name: str = "custom"
    """What tables and files call it."""
    source: str = ""
    """Paper and equation."""
    depth: int = 1
    """Weight matrices of the memory: 1 is a linear memory, 2 to 4 an MLP without biases."""
    expansion: float = 4.0
    """Hidden width over key width (depth 2 and more)."""
    activation: str = "silu"
    """Non-linearity between the layers of a deep memory: silu, gelu, relu, tanh, or one's own (`open_choices`)."""
    residual: bool = False
    """M(x) = x + mlp(x); needs keys and values of one width."""
    norm: bool = False
    """Layer normalisation (without learned scale) of the MLP's output, before the residual."""
    objective: str = "l2"
    """Inner loss summed over value channels: dot -<M(k), v>; l2 1/2 |M(k) - v|^2; huber, per channel; or one's own."""
    huber_delta: float = 1.0
    """Where the Huber loss turns from quadratic to linear."""
    step: str = "gradient"
    """Where a write takes the memory: down the gradient of its loss; to the optimum, the minimum of the losses of all
    that was read, each times its step size and what is left of it, plus ``ridge / 2 |M - M_0|^2``; orthogonal, as far
    in every direction in which the gradient (or the momentum) goes at all (arXiv 2505.23735, eq. 32); or one's own."""
    ridge: float = 0.25
    """How strongly an optimum is held to the initial weights."""
    momentum: bool = False
    """Carry past surprise on: S_t = eta_t S_{t-1} - theta_t grad."""
    retention: Retention = "none"
    """What can be forgotten: nothing, everything at one rate per head, or each input channel at its own rate."""
    decay_to: DecayTarget = "zero"
    """What a forgetting memory returns to: zero (the papers), or its learned initial weights."""
    gradient_at: GradientPoint = "previous"
    """Weights at which the gradient is taken: M_{t-1}; (1 - alpha_t) M_{t-1}; or M at the start of the chunk."""
    read_at: ReadPoint = "after"
    """Whether a token's query is answered after its own write, by M_t, or before it, by M_{t-1}."""
    window: int = 1
    """Tokens whose losses a step goes down together: its own and those before it, each with the step size that it came
    with, all at the same weights (the Omega rule: arXiv 2505.23735, eq. 9); 1 is the token alone."""
    writes: int = 1
    """Keys and values of a token, written one after the other: it forgets before the first, and is answered after the
    last (or all before the first, if ``read_at`` is before). Each steps, and carries momentum on, by itself."""
    chunk_size: int = 64
    """Writes that share one gradient point if ``gradient_at`` is chunk; else only the block length of the algebra."""
    feature_map: str | None = None
    """Name of the map phi seen by the memory in place of keys and queries (see `feature_maps`)."""
    features: int | None = None
    """How many features the map has, if it lets one choose; None takes its own default."""
    scale: float | None = None
    """Of the logits, for maps that stand for exp(scale q . k); None is 1/sqrt(D). Unit keys need more of it to be
    told apart: their logits are never larger than this."""
    denominator: bool = False
    """Divide the read by phi(q)^T sum phi(k), as in normalised linear attention."""
    gates: Gates = "token"
    """Where a layer takes its gates from: each token; the first token of a chunk, for all of the chunk; or constant,
    step 1 and the decays of RetNet."""
    keys: Keys = "unit"
    """What a layer gives the memory as queries and keys: unit, brought to norm 1; or free, as they come."""

    def __post_init__(self) -> None:
        for field, kind in _CHOICES.items():
            added = _ADDED.get(field, ())
            value, allowed = getattr(self, field), (*get_args(kind), *added)
            if value not in allowed:
                own = (
                    "" if field not in _ADDED else f"; add one of your own first, with add_{field} of mnemonist.memory"
                )
                raise ValueError(
                    f"{field} is {value!r}; it must be one of {', '.join(allowed)}{nearest(value, allowed)}{own}."
                )
        for field in ("residual", "norm", "momentum", "denominator"):
            if not isinstance(getattr(self, field), bool):
                raise ValueError(f"{field} is {getattr(self, field)!r}; it must be True or False.")
        if not isinstance(self.depth, int) or not 1 <= self.depth <= 4:
            raise ValueError(f"depth is {self.depth}; a memory has 1 to 4 layers.")
        if not (0 < self.expansion < math.inf and 0 < self.huber_delta < math.inf):
            raise ValueError(
                f"expansion ({self.expansion}) and huber_delta ({self.huber_delta}) must be positive numbers."
            )
        for field in ("chunk_size", "writes", "window"):
            if not isinstance(getattr(self, field), int) or getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be a whole number of at least 1.")
        if self.feature_map is not None and self.feature_map not in FEATURE_MAPS:
            raise ValueError(
                f"feature_map is {self.feature_map!r}; it must be None or one of {', '.join(FEATURE_MAPS)}"
                f"{nearest(self.feature_map, FEATURE_MAPS)}."
            )
        for option, value in self.feature_options.items():
            if self.feature_map is None:
                raise ValueError(f"{option} is {value} but there is no feature_map; name one, or leave it out.")
            if option not in FEATURE_MAPS[self.feature_map].options:
                raise ValueError(
                    f"{option} is {value}, but the feature map {self.feature_map} lets nobody choose its {option}; "
                    "leave it out."
                )
        if self.feature_map is not None and self.features is not None:
            feature_dim(self.feature_map, 1, features=self.features)  # complains of the number
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise ValueError(f"scale is {self.scale}; it must be a positive number, or left out for 1/sqrt(D).")
        if not 0 < self.ridge < math.inf:
            raise ValueError(f"ridge is {self.ridge}; it must be a positive number.")
        if self.step == "optimum":
            self._check_optimum()
        if self.denominator and not self.step_is_gradient:
            raise ValueError(
                f"step {self.step} and a denominator exclude each other: it counts keys, and would be bent."
            )
        if self.residual and self.feature_map is not None:
            raise ValueError(
                "residual and feature_map exclude each other: mapped keys no longer have the width of values."
            )
        if self.denominator and (not self.linear or self.objective != "dot"):
            raise ValueError(
                "denominator needs a linear memory with the dot objective: it counts the keys that were summed up."
            )
        if self.denominator and self.read_at == "before":
            raise ValueError("denominator needs read_at after: before the first write there are no keys to divide by.")
        if self.gates == "constant" and self.momentum:
            raise ValueError(
                "gates is constant but momentum is on: how much of it is kept is a gate; take gates token."
            )
        if self.gates == "chunk" and self.gradient_at != "chunk":
            raise ValueError(
                f"gates is chunk but gradient_at is {self.gradient_at}: only rules that take their gradients at the "
                "start of a chunk know where one begins; take gradient_at chunk."
            )
        if self.gates == "chunk" and self.writes > 1:
            raise ValueError(
                f"gates is chunk but writes is {self.writes}: a chunk may end within a token; take gates token."
            )
        if self.window > 1 and (self.writes > 1 or self.denominator):
            raise ValueError(
                f"window is {self.window}, which needs one write a token and no denominator: tokens of a window are "
                "written again and again, and would be counted as often; leave window out."
            )
        if self.decay_to == "initial" and self.retention == "none":
            raise ValueError("decay_to is 'initial' but retention is 'none': nothing decays; choose head or channel.")

    def _check_optimum(self) -> None:
        needs = "step is optimum, which needs"
        if not self.linear or self.objective != "l2":
            raise ValueError(f"{needs} a linear memory with the l2 objective: of others nobody knows the minimum.")
        if self.momentum:
            raise ValueError(f"{needs} momentum off: there is no gradient to carry on.")
        if self.window > 1:
            raise ValueError(f"{needs} window 1: what it steps to is the optimum of all that was read.")
        if self.gradient_at != "previous":
            raise ValueError(f"{needs} gradient_at previous, not {self.gradient_at}: no gradient is taken.")
        if self.retention == "channel":
            raise ValueError(f"{needs} retention none or head: what forgets by channel has no such minimum.")
        if self.retention == "head" and self.decay_to == "zero":
            raise ValueError(f"{needs} decay_to initial: the pull to the initial weights is never forgotten.")

    @property
    def linear(self) -> bool:
        """Whether the memory is one bare matrix."""
        return self.depth == 1 and not self.residual and not self.norm

    @property
    def per_token(self) -> bool:
        """Whether every token's gradient is taken at the memory the token before it left."""
        return self.gradient_at != "chunk"

    @property
    def step_is_gradient(self) -> bool:
        """Whether a write is the gradient times a number, so that those of a chunk add up."""
        return self.step == "gradient"

    @property
    def solvable(self) -> bool:
        """Whether the errors of a chunk solve a triangular system, or need none: the exact path applies."""
        straight = self.linear and self.per_token and self.window == 1 and self.objective in ("l2", "dot")
        return straight and self.step in ("gradient", "optimum")

    @property
    def built_in(self) -> bool:
        """Whether no choice is one's own: kernels know no others."""
        return all(getattr(self, field) in allowed for field, allowed in BUILT_IN.items())

    @property
    def feature_options(self) -> dict[str, float]:
        """What `build_feature_map` is given besides the map's name."""
        return {
            name: value for name, value in (("features", self.features), ("scale", self.scale)) if value is not None
        }

    def layer_sizes(self, key_dim: int, value_dim: int) -> tuple[tuple[int, int], ...]:
        """``(D_in, D_out)`` of each weight matrix for keys of width ``key_dim`` and values of ``value_dim``."""
        if self.residual and key_dim != value_dim:
            raise ValueError(
                f"rule {self.name!r} has a residual memory, so keys ({key_dim}) and values ({value_dim}) "
                "must have one width."
            )
        hidden = max(1, round(self.expansion * key_dim))
        widths = [key_dim, *[hidden] * (self.depth - 1), value_dim]
        return tuple(itertools.pairwise(widths))

    def decay_channels(self, key_dim: int, value_dim: int) -> int:
        """Width of ``log_decay`` under channel retention: the input channels of every layer, in layer order."""
        return sum(d_in for d_in, _ in self.layer_sizes(key_dim, value_dim))

    def replace(self, **changes: Any) -> MemoryRule:
        """A copy with some choices changed; validated like any other."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """The choices as JSON text; `from_json` reads it back."""
        choices = dataclasses.asdict(self)
        if self.window == 1:  # so that files from before there were windows are those of the same rule
            del choices["window"]
        return json.dumps(choices, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> MemoryRule:
        """Read what `to_json` wrote.

        Raises:
            ValueError: not a rule, or a rule of a version with other choices.
        """
        try:
            return cls(**json.loads(text))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"This is not a memory rule of this version: {error}.") from error


_ADDED: dict[str, Any] = {"activation": ACTIVATIONS, "objective": OBJECTIVES, "step": STEPS}
_CHOICES: dict[str, Any] = {
    "activation": Activation,
    "objective": Objective,
    "step": Step,
    "retention": Retention,
    "decay_to": DecayTarget,
    "gradient_at": GradientPoint,
    "read_at": ReadPoint,
    "gates": Gates,
    "keys": Keys,
}
BUILT_IN: dict[str, tuple[str, ...]] = {field: get_args(_CHOICES[field]) for field in _ADDED}
"""What comes with the package of the choices that anybody may add to."""


_ROWS = (
    MemoryRule(
        name="linear-attention",
        source="Katharopoulos et al. 2020 (arXiv 2006.16236), eq. 18-20",
        objective="dot",
        feature_map="elu",
        denominator=True,
        gates="constant",
        keys="free",
    ),
    MemoryRule(
        name="retnet",
        source="Sun et al. 2023 (arXiv 2307.08621), eq. 6 and 8: one fixed decay per head",
        objective="dot",
        retention="head",
        gates="constant",
        keys="free",
    ),
    MemoryRule(
        name="mamba2",
        source="Dao & Gu 2024 (arXiv 2405.21060), the scalar-decay SSD core; the step size is Delta_t",
        objective="dot",
        retention="head",
        keys="free",
    ),
    MemoryRule(
        name="gla",
        source="Yang et al. 2023 (arXiv 2312.06635), eq. 3: diagonal data-dependent decay",
        objective="dot",
        retention="channel",
        keys="free",
    ),
    MemoryRule(
        name="deltanet",
        source="Schlag et al. 2021 (arXiv 2102.11174), eq. 23-24; Yang et al. 2024 (arXiv 2406.06484)",
    ),
    MemoryRule(
        name="gated-deltanet",
        source="Yang et al. 2024 (arXiv 2412.06464), eq. 10: the delta is taken on the decayed memory",
        retention="head",
        gradient_at="decayed",
    ),
    MemoryRule(
        name="kda",
        source="Kimi Team 2025 (arXiv 2510.26692), section 3: Gated DeltaNet with a decay for every channel",
        retention="channel",
        gradient_at="decayed",
    ),
    MemoryRule(
        name="deltaproduct",
        source="Siems et al. 2025 (arXiv 2502.10297), section 3: several steps of DeltaNet for every token",
        writes=2,
    ),
    MemoryRule(
        name="gated-deltaproduct",
        source="Siems et al. 2025 (arXiv 2502.10297), section 3, gated: the token forgets before it writes",
        retention="head",
        gradient_at="decayed",
        writes=2,
    ),
    MemoryRule(
        name="mesa",
        source="von Oswald et al. 2025 (arXiv 2506.05233), the least squares of all that was read; one ridge for all "
        "channels is ours",
        step="optimum",
        retention="head",
        decay_to="initial",
    ),
    MemoryRule(
        name="ttt-linear",
        source="Sun et al. 2024 (arXiv 2407.04620), section 2.3-2.7: mini-batch 16, residual and norm",
        residual=True,
        norm=True,
        gradient_at="chunk",
        chunk_size=16,
    ),
    MemoryRule(
        name="ttt-mlp",
        source="Sun et al. 2024 (arXiv 2407.04620), section 2.7: two layers, expansion 4, GELU",
        depth=2,
        activation="gelu",
        residual=True,
        norm=True,
        gradient_at="chunk",
        chunk_size=16,
    ),
    MemoryRule(
        name="titans-linear",
        source="Behrouz et al. 2024 (arXiv 2501.00663), eq. 13-14 with a matrix for a memory",
        momentum=True,
        retention="head",
    ),
    MemoryRule(
        name="titans",
        source="Behrouz et al. 2024 (arXiv 2501.00663), eq. 13-16, 18: an MLP, gradients at the chunk's start; "
        "residual, norm and decay target are ours (the paper is silent; without the norm it diverges on text)",
        depth=2,
        residual=True,
        norm=True,
        momentum=True,
        retention="head",
        decay_to="initial",
        gradient_at="chunk",
    ),
    MemoryRule(
        name="omeganet",
        source="Behrouz et al. 2025 (arXiv 2505.23735), eq. 9-10: a step goes down the losses of a window; 16 tokens, "
        "their own step sizes as weights there, residual, norm and decay target are ours",
        depth=2,
        residual=True,
        norm=True,
        retention="head",
        decay_to="initial",
        gradient_at="chunk",
        window=16,
    ),
    MemoryRule(
        name="atlas",
        source="Behrouz et al. 2025 (arXiv 2505.23735), eq. 32: orthogonal steps along the momentum of a window's "
        "losses; without polynomial features; residual, norm and decay target are ours",
        depth=2,
        residual=True,
        norm=True,
        step="orthogonal",
        momentum=True,
        retention="head",
        decay_to="initial",
        gradient_at="chunk",
        window=16,
    ),
    MemoryRule(
        name="yaad",
        source="Behrouz et al. 2025 (arXiv 2504.13173), Yaad: the Huber loss, and no momentum; one delta for all "
        "tokens, one rate per head and the decay target are ours",
        depth=2,
        activation="gelu",
        residual=True,
        norm=True,
        objective="huber",
        retention="head",
        decay_to="initial",
        gradient_at="chunk",
    ),
)

RULES: dict[str, MemoryRule] = {rule.name: rule for rule in _ROWS}
"""Named points among the choices, each with its source."""


def find_rule(rule: str | MemoryRule) -> MemoryRule:
    """The rule itself; or a row of `RULES` by name, with changes if wanted: ``"titans:depth=3,momentum=false"``.

    Raises:
        ValueError: no rule or choice has this name (the message suggests the nearest one), or a value does not fit.
    """
    if isinstance(rule, MemoryRule):
        return rule
    name, _, changes = rule.partition(":")
    if name not in RULES:
        raise ValueError(f"There is no rule named {name!r}{nearest(name, RULES)}; known rules: {', '.join(RULES)}.")
    if not changes:
        return RULES[name]
    return RULES[name].replace(name=rule, **parse_choices(MemoryRule, changes, "a rule"))
