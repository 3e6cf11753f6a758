"""The feature maps there are, as plain facts: what each costs, where it comes from and when it fails.

The maps themselves are in `feature_maps.py`; this half needs no torch, so a rule can be checked and a table
printed without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mnemonist.errors import nearest

FeatureMapKind = Literal["deterministic", "learned", "random"]


@dataclass(frozen=True)
class FeatureMapInfo:
    """One row of `FEATURE_MAPS`."""

    name: str
    """What rules, tables and `build_feature_map` call it."""
    class_name: str
    """Class in `mnemonist.memory.feature_maps`."""
    kind: FeatureMapKind
    """Whether it is fixed, has parameters to learn, or depends on a random draw."""
    formula: str
    """phi(x) for one vector ``x`` of width ``d``."""
    dim: str
    """Features for inputs of width ``d``; `feature_dim` computes it."""
    options: Mapping[str, Any]
    """What `build_feature_map` accepts besides heads and dim, with the defaults."""
    source: str
    """Paper and where in it."""
    fails_when: str
    """One sentence."""


_ROWS = (
    FeatureMapInfo(
        name="elu",
        class_name="EluFeatures",
        kind="deterministic",
        formula="elu(x) + 1",
        dim="d",
        source="Katharopoulos et al. 2020 (arXiv 2006.16236), eq. 7",
        fails_when="Attention must be sharp: its rows stay nearly uniform, so recall is weak.",
        options={},
    ),
    FeatureMapInfo(
        name="relu",
        class_name="ReluFeatures",
        kind="learned",
        formula="relu(W x + b), W and b per head",
        dim="m, default d",
        source="Kasai et al. 2021 (arXiv 2103.13076), the learned map of T2R",
        fails_when="It is used untrained, or all units of a token are off, which leaves it no features.",
        options={"features": None},
    ),
    FeatureMapInfo(
        name="favor",
        class_name="FavorFeatures",
        kind="random",
        formula="exp(w_i . x' - |x'|^2 / 2) / sqrt(m), x' = sqrt(scale) x, w_i orthogonal Gaussian",
        dim="m, default 256",
        source="Choromanski et al. 2021 (arXiv 2009.14794), Lemma 1 and orthogonal random features",
        fails_when="Logits have a standard deviation near 1 or more: the variance grows as exp(|q' + k'|^2), "
        "and with a few hundred features uniform attention is as close.",
        options={"features": 256, "scale": None, "seed": 0},
    ),
    FeatureMapInfo(
        name="dpfp",
        class_name="DpfpFeatures",
        kind="deterministic",
        formula="r * roll(r, j) for j = 1..nu, r = [relu(x), relu(-x)]",
        dim="2 d nu",
        source="Schlag et al. 2021 (arXiv 2102.11174), deterministic parameter-free projection",
        fails_when="Few channels are active: an input whose active places in r lie more than nu apart, "
        "such as a one-hot key, has no features at all.",
        options={"nu": 3},
    ),
    FeatureMapInfo(
        name="hedgehog",
        class_name="HedgehogFeatures",
        kind="learned",
        formula="softmax([W x, -W x]), W per head, gain times the identity at first",
        dim="2 d",
        source="Zhang et al. 2024 (arXiv 2402.04347), section 4",
        fails_when="It is used untrained: at the identity it is far flatter than softmax; distil it first.",
        options={"gain": 1.0},
    ),
    FeatureMapInfo(
        name="taylor",
        class_name="TaylorFeatures",
        kind="deterministic",
        formula="[1, x', x'_i^2 / sqrt(2), x'_i x'_j for i < j], x' = sqrt(scale) x",
        dim="1 + d + d (d + 1) / 2",
        source="Arora et al. 2024 (arXiv 2402.18668), Taylor linear attention",
        fails_when="Logits leave about [-2, 2]: the parabola 1 + s + s^2/2 grows again for negative s, "
        "and the state grows as d^2, so project to d = 16 or so first.",
        options={"scale": None},
    ),
    FeatureMapInfo(
        name="maclaurin",
        class_name="MaclaurinFeatures",
        kind="random",
        formula="sqrt(2^(N_i + 1) / (N_i! m)) prod_{j <= N_i} w_ij . x', x' = sqrt(scale) x, "
        "w_ij random signs, P[N_i = n] = 2^-(n + 1)",
        dim="m, default 256",
        source="Kar & Karnick 2012 (arXiv 1201.6530), Algorithm 1 with p = 2",
        fails_when="Keys are not of norm 1, or logits have a standard deviation near 1: features are signed "
        "and heavy-tailed, and then almost half of the sums over keys, such as a denominator, are negative.",
        options={"features": 256, "scale": None, "seed": 0, "max_degree": 8},
    ),
)

FEATURE_MAPS: dict[str, FeatureMapInfo] = {row.name: row for row in _ROWS}
"""Every feature map by name."""


def find_feature_map(name: str, options: Iterable[str] = ()) -> FeatureMapInfo:
    """The row of this name, once the names of the options given for it are known to be right.

    Raises:
        ValueError: no map has this name, or it lacks one of these options; the message suggests the nearest.
    """
    if name not in FEATURE_MAPS:
        raise ValueError(
            f"There is no feature map named {name!r}{nearest(name, FEATURE_MAPS)}; "
            f"known maps: {', '.join(FEATURE_MAPS)}."
        )
    info = FEATURE_MAPS[name]
    for option in options:
        if option not in info.options:
            allowed = ", ".join(info.options) or "none"
            raise ValueError(
                f"Feature map {name!r} has no option {option!r}{nearest(option, info.options)}; its options: {allowed}."
            )
    return info


def feature_dim(name: str, dim: int, **options: Any) -> int:
    """Features of the map ``name`` for inputs of width ``dim``, without building it.

    Args:
        name: a row of `FEATURE_MAPS`.
        dim: width ``D`` of keys and queries.
        options: what would be given to `build_feature_map`; those that do not change the width are ignored.

    Raises:
        ValueError: unknown name or option, or a number that is out of range.
    """
    given = {**find_feature_map(name, options).options, **options}
    dim = _count("dim", dim)
    if name in ("elu", "hedgehog"):
        return dim if name == "elu" else 2 * dim
    if name == "taylor":
        return 1 + dim + dim * (dim + 1) // 2
    if name == "dpfp":
        nu = _count("nu", given["nu"])
        # A roll by 2 d is r itself; and with d = 1 the two places of r are never both active.
        if dim < 2 or nu > 2 * dim - 1:
            raise ValueError(f"dpfp needs dim >= 2 and nu from 1 to 2 dim - 1, but dim is {dim} and nu is {nu}.")
        return 2 * dim * nu
    features = given["features"]
    return dim if features is None and name == "relu" else _count("features", features)


def squared_norm(name: str, dim: int, scale: float | None = None) -> float:
    """About how large ``|phi(k)|^2`` gets for keys of norm 1 and width ``dim``; 1 for maps that make them shorter."""
    if name == "elu":
        return dim + 1.0
    if "scale" in find_feature_map(name, {}).options:
        return math.exp(dim**-0.5 if scale is None else scale)
    return 1.0


def _count(what: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{what} is {value!r}; it must be a whole number of at least 1.")
    return value
