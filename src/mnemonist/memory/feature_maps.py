"""The kernel trick backwards: feature maps phi whose dot product phi(q) . phi(k) stands for a kernel k(q, k).

Attention weighs each value by the kernel exp(scale q . k), so it must keep every key. If the kernel were a
dot
product of features, the sum over keys could be done once, before any query is known:

    sum_s k(q_t, k_s) v_s = phi(q_t) . sum_s phi(k_s) v_s^T

and a matrix of constant size, ``[F, V]``, remembers the whole past. The usual trick replaces features by a
kernel; here a kernel is replaced by features, and since exp has infinitely many, every map below gives
something up. `FEATURE_MAPS` says what, and when it fails.

`FavorFeatures`, `TaylorFeatures` and `MaclaurinFeatures` approximate exp(scale q . k) and take ``scale``
(default 1/sqrt(D), as attention does); the others put another kernel in its place and have no scale.

phi of a token depends on that token alone. So no map subtracts a maximum over time, as implementations of
random features often do for stability: a stream cut elsewhere would then give other features.

Maps take ``x [..., H, D]`` and return ``[..., H, F]`` in the dtype of ``x``. Learned maps have parameters
for each head; the others treat all heads alike.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from mnemonist.memory.feature_map_table import (
    FEATURE_MAPS,
    FeatureMapInfo,
    FeatureMapKind,
    feature_dim,
    find_feature_map,
)

__all__ = [
    "FEATURE_MAPS",
    "DpfpFeatures",
    "EluFeatures",
    "FavorFeatures",
    "FeatureMap",
    "FeatureMapInfo",
    "FeatureMapKind",
    "HedgehogFeatures",
    "MaclaurinFeatures",
    "ReluFeatures",
    "TaylorFeatures",
    "build_feature_map",
    "feature_dim",
]


class FeatureMap(nn.Module):
    """What all maps share: their sizes, and a check of what they are given.

    Args:
        heads: H. Only learned maps, whose heads differ, insist on it.
        dim: D, width of keys and queries.
        feature_dim: F, width of the features.

    Raises:
        ValueError: a size is out of range; on call, ``x`` does not have them.
    """

    per_head = False

    def __init__(self, heads: int, dim: int, feature_dim: int) -> None:
        super().__init__()
        if heads < 1:
            raise ValueError(f"heads is {heads}; it must be at least 1.")
        self.heads = heads
        self.dim = dim
        self.feature_dim = feature_dim

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., H, D] -> phi(x) [..., H, F]``."""
        heads = self.heads if self.per_head else "any"
        if x.dim() < 2 or x.shape[-1] != self.dim or (self.per_head and x.shape[-2] != self.heads):
            raise ValueError(
                f"x is {list(x.shape)}; {type(self).__name__} was built for [..., H, D] with H = {heads} "
                f"and D = {self.dim}."
            )
        if not x.is_floating_point():
            raise ValueError(f"x is {x.dtype}; a feature map needs floating point numbers.")
        return self.features(x)

    def features(self, x: Tensor) -> Tensor:
        """phi(x), once the shape of ``x`` is known to be right."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"heads={self.heads}, dim={self.dim}, feature_dim={self.feature_dim}"


class EluFeatures(FeatureMap):
    """phi(x) = elu(x) + 1, that is ``x + 1`` above 0 and ``exp(x)`` below; F = D.

    Positive, cheap, without parameters: the first linear attention (Katharopoulos et al. 2020, eq. 7).
    Fails when attention must be sharp. Its kernel grows as a polynomial, so rows stay nearly uniform.
    """

    def __init__(self, heads: int, dim: int) -> None:
        super().__init__(heads, dim, feature_dim("elu", dim))

    def features(self, x: Tensor) -> Tensor:
        # Not elu(x) + 1: adding 1 rounds what is left of exp(x) to 0 below x = -17 in float32.
        return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


class ReluFeatures(FeatureMap):
    """phi(x) = relu(W x + b) with W, b learned per head; F = ``features``, by default D.

    The map with which T2R (Kasai et al. 2021) turns a pretrained transformer into a recurrent network.
    Non-negative. Fails untrained, and when every unit of a token is off: it then has no features and a
    denominator of 0.

    Args:
        heads: H.
        dim: D.
        features: F, or None for D.

    ``weight [H, D, F]`` starts uniform in +-1/sqrt(D), like `torch.nn.Linear`, from torch's global generator;
    ``bias [H, F]`` starts at 0.
    """

    per_head = True

    def __init__(self, heads: int, dim: int, *, features: int | None = None) -> None:
        super().__init__(heads, dim, feature_dim("relu", dim, features=features))
        self.weight = nn.Parameter(torch.empty(heads, dim, self.feature_dim))
        self.bias = nn.Parameter(torch.zeros(heads, self.feature_dim))
        nn.init.uniform_(self.weight, -(dim**-0.5), dim**-0.5)

    def features(self, x: Tensor) -> Tensor:
        return (_per_head(x, self.weight) + self.bias.to(x.dtype)).relu()


class FavorFeatures(FeatureMap):
    """phi_i(x) = exp(w_i . x' - |x'|^2/2) / sqrt(m), x' = sqrt(scale) x, w_i Gaussian; F = m.

    FAVOR+ (Choromanski et al. 2021, Lemma 1). Positive, and unbiased for exp(scale q . k) over draws of
    ``w``. The w_i are orthogonal within blocks of D, each with the norm of an independent Gaussian vector,
    which lowers the variance.

    Fails when |q' + k'| is large: the relative variance is about exp(|q' + k'|^2)/m, so where logits have a
    standard deviation near 1, a few hundred features do no better than uniform attention. A feature never
    exceeds exp(|w_i|^2/2)/sqrt(m), so float32 does not overflow for D up to 100; float16 does. Far from every
    w_i all features underflow to 0.

    Args:
        heads: H; all heads see the same ``w``.
        dim: D.
        features: m, how many to draw.
        scale: of the logits; None for 1/sqrt(D).
        seed: of the draw, or a generator to draw from. Layers with the same seed share their features.

    The buffer ``weight [m, D]`` is saved with the module; ``scale`` is not.
    """

    weight: Tensor

    def __init__(
        self,
        heads: int,
        dim: int,
        *,
        features: int = 256,
        scale: float | None = None,
        seed: int | torch.Generator = 0,
    ) -> None:
        super().__init__(heads, dim, feature_dim("favor", dim, features=features))
        self.scale = _scale(scale, dim)
        self.register_buffer("weight", _orthogonal_gaussian(features, dim, _generator(seed)))

    def features(self, x: Tensor) -> Tensor:
        x = x * math.sqrt(self.scale)
        exponent = x @ self.weight.to(x.dtype).mT - x.square().sum(-1, keepdim=True) / 2
        return (exponent - math.log(self.feature_dim) / 2).exp()


class DpfpFeatures(FeatureMap):
    """phi(x) = [r * roll(r, 1), ..., r * roll(r, nu)] with r = [relu(x), relu(-x)]; F = 2 D nu.

    Deterministic parameter-free projection (Schlag et al. 2021). Non-negative and sparse; unlike inputs are
    sent to nearly orthogonal features, which is what a memory that overwrites by key wants.
    For a > 0, phi(a x) = a^2 phi(x).

    Fails on inputs with few active channels: if no two active places of r lie within nu of each other, as
    for a one-hot key, phi(x) is 0.

    Args:
        heads: H.
        dim: D, at least 2.
        nu: how many rolls, 1 to 2 D - 1; beyond D they repeat products already there.
    """

    def __init__(self, heads: int, dim: int, *, nu: int = 3) -> None:
        super().__init__(heads, dim, feature_dim("dpfp", dim, nu=nu))
        self.nu = nu

    def features(self, x: Tensor) -> Tensor:
        r = torch.cat([x.relu(), (-x).relu()], dim=-1)
        return torch.cat([r * r.roll(j, dims=-1) for j in range(1, self.nu + 1)], dim=-1)


class HedgehogFeatures(FeatureMap):
    """phi(x) = softmax([W x, -W x]) with W learned per head; F = 2 D.

    Hedgehog (Zhang et al. 2024, section 4): trained to mimic the attention it replaces, it keeps rows sharp
    and monotone in q . k. Positive; every phi(x) sums to 1.

    Fails untrained: at the identity, rows are much flatter than those of softmax. As inputs go to 0 its
    kernel goes as exp(gain^2 q . k / D) in each row, so ``gain = D^(1/4)`` has the slope of softmax. Larger
    inputs add other terms; for D = 64 and Gaussian inputs of unit variance a gain near 1.5 starts closest.

    Args:
        heads: H.
        dim: D.
        gain: ``weight [H, D, D]`` starts as gain times the identity.
    """

    per_head = True

    def __init__(self, heads: int, dim: int, *, gain: float = 1.0) -> None:
        super().__init__(heads, dim, feature_dim("hedgehog", dim))
        if not (math.isfinite(gain) and gain > 0):
            raise ValueError(f"gain is {gain}; it must be a positive number.")
        self.weight = nn.Parameter(gain * torch.eye(dim).repeat(heads, 1, 1))

    def features(self, x: Tensor) -> Tensor:
        y = _per_head(x, self.weight)
        return torch.cat([y, -y], dim=-1).softmax(-1)


class TaylorFeatures(FeatureMap):
    """phi(x) = [1, x', x'_i^2/sqrt(2), x'_i x'_j (i < j)] with x' = sqrt(scale) x; F = 1 + D + D (D + 1)/2.

    The second-order Taylor series of exp, of Based (Arora et al. 2024): phi(q) . phi(k) is exactly
    1 + s + s^2/2 with s = scale q . k. Each product is kept once (the packed triangle). Features are signed,
    but the kernel is at least 1/2, so denominators are safe. Of the maps here it is by far the closest to
    softmax where logits are moderate.

    Fails when |s| exceeds about 2: the parabola grows again towards negative s. And F grows as D^2: project
    keys and queries to D = 16 (153 features) or so first.

    Args:
        heads: H.
        dim: D.
        scale: of the logits; None for 1/sqrt(D).
    """

    def __init__(self, heads: int, dim: int, *, scale: float | None = None) -> None:
        super().__init__(heads, dim, feature_dim("taylor", dim))
        self.scale = _scale(scale, dim)

    def features(self, x: Tensor) -> Tensor:
        x = x * math.sqrt(self.scale)
        i, j = torch.triu_indices(self.dim, self.dim, offset=1, device=x.device)
        squares = x.square() * math.sqrt(0.5)
        return torch.cat([torch.ones_like(x[..., :1]), x, squares, x[..., i] * x[..., j]], dim=-1)


class MaclaurinFeatures(FeatureMap):
    """phi_i(x) = sqrt(2^(N_i+1) / (N_i! m)) prod_{j<=N_i} w_ij . x', x' = sqrt(scale) x; F = m.

    Random Maclaurin features (Kar & Karnick 2012, Algorithm 1, with their p = 2): each feature draws a
    degree N, with probability 2^-(N+1), and N vectors of random signs. Their product is in expectation one
    term of the series of exp(scale q . k), so phi(q) . phi(k) is unbiased for the whole of it.

    Fails on keys as they come, most of all with a denominator: features are signed and heavy-tailed, and once
    logits have a standard deviation near 1, almost half of the sums over keys are negative. Use it on
    L2-normalised keys and queries with ``scale`` 2, where it recalls (`experiments/feature_maps`);
    `TaylorFeatures` sums degrees 0 to 2 exactly.

    Args:
        heads: H; all heads see the same draw.
        dim: D.
        features: m, how many to draw.
        scale: of the logits; None for 1/sqrt(D).
        seed: of the draw, or a generator to draw from. Layers with the same seed share their features.
        max_degree: degrees are drawn given N <= max_degree, which keeps the shape of the buffers the same
            for every draw. The kernel approximated is the series up to this degree: with 8, exp to within
            1% for |s| <= 2.

    The buffers ``degree [m]``, from the highest to the lowest, and ``signs [max_degree, m, D]`` are saved with the
    module; ``scale`` is not.
    """

    degree: Tensor
    signs: Tensor

    def __init__(
        self,
        heads: int,
        dim: int,
        *,
        features: int = 256,
        scale: float | None = None,
        seed: int | torch.Generator = 0,
        max_degree: int = 8,
    ) -> None:
        super().__init__(heads, dim, feature_dim("maclaurin", dim, features=features))
        if not 1 <= max_degree <= 20:
            raise ValueError(f"max_degree is {max_degree}; it must be from 1 to 20.")
        self.scale = _scale(scale, dim)
        self.max_degree = max_degree
        generator = _generator(seed)
        device = generator.device
        weights = [2.0 ** -(n + 1) for n in range(max_degree + 1)]
        odds = [w / sum(weights) for w in weights]
        # With these the expectation of phi_i(q) phi_i(k) is sum_n s^n / n!, over m.
        self._coefficients = [(odds[n] * math.factorial(n) * features) ** -0.5 for n in range(max_degree + 1)]
        odds_N = torch.tensor(odds, dtype=torch.float64, device=device)
        degree = torch.multinomial(odds_N, features, replacement=True, generator=generator)
        signs = torch.randint(0, 2, (max_degree, features, dim), generator=generator, device=device) * 2 - 1
        self.register_buffer("degree", degree.cpu())
        self.register_buffer("signs", signs.to("cpu", torch.get_default_dtype()))
        self._counted: tuple[Tensor | None, int, list[int]] = (None, 0, [])
        self._counts()

    def _counts(self) -> list[int]:
        """How many features have each degree, from the highest to 0; counted anew when others have been loaded."""
        counted, version, counts = self._counted
        if counted is not self.degree or version != self.degree._version:
            with torch.no_grad():
                order = self.degree.argsort(descending=True, stable=True)
                self.degree.copy_(self.degree[order])
                self.signs.copy_(self.signs[:, order])
                counts = torch.bincount(self.degree, minlength=self.max_degree + 1).flip(0).tolist()
            self._counted = (self.degree, self.degree._version, counts)
        return counts

    def features(self, x: Tensor) -> Tensor:
        # Of signs, only the rows that a feature has; of products, only those of as many factors.
        x = x * math.sqrt(self.scale)
        found, first = [], 0
        for count, degree in zip(self._counts(), range(self.max_degree, -1, -1), strict=True):
            phi = x.new_full((*x.shape[:-1], count), self._coefficients[degree])
            for signs in self.signs[:degree, first : first + count].to(x.dtype):
                phi = phi * (x @ signs.mT)
            found.append(phi)
            first += count
        return torch.cat(found, -1)


_CLASSES: dict[str, type[FeatureMap]] = {
    cls.__name__: cls
    for cls in (
        EluFeatures,
        ReluFeatures,
        FavorFeatures,
        DpfpFeatures,
        HedgehogFeatures,
        TaylorFeatures,
        MaclaurinFeatures,
    )
}


def build_feature_map(name: str, heads: int, dim: int, **options: Any) -> FeatureMap:
    """Make the feature map ``name`` for keys and queries ``[..., heads, dim]``.

    Args:
        name: a row of `FEATURE_MAPS`.
        heads: H.
        dim: D.
        options: what the map's class accepts besides; `FEATURE_MAPS` lists them with their defaults.

    Raises:
        ValueError: unknown name or option (the message suggests the nearest), or a value out of range.
    """
    info = find_feature_map(name, options)
    return _CLASSES[info.class_name](heads, dim, **options)


def _per_head(x: Tensor, weight: Tensor) -> Tensor:
    """``x [..., H, D]`` through a matrix of its own for each head, ``weight [H, D, F]``."""
    return torch.einsum("...hd,hdf->...hf", x, weight.to(x.dtype))


def _scale(scale: float | None, dim: int) -> float:
    if scale is None:
        return dim**-0.5
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale is {scale}; it must be a positive number, or None for 1/sqrt(dim).")
    return float(scale)


def _generator(seed: int | torch.Generator) -> torch.Generator:
    if isinstance(seed, torch.Generator):
        return seed
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ValueError(f"seed is {seed!r}; it must be a whole number or a torch.Generator.")
    return torch.Generator().manual_seed(seed)


def _orthogonal_gaussian(rows: int, dim: int, generator: torch.Generator) -> Tensor:
    """``[rows, dim]``: each row Gaussian by itself, orthogonal to the others of its block of ``dim``."""

    def normal() -> Tensor:
        return torch.randn(dim, dim, generator=generator, dtype=torch.float64, device=generator.device).cpu()

    blocks = []
    for _ in range(-(-rows // dim)):
        q, r = torch.linalg.qr(normal())
        # Only with the signs of r is q uniform over rotations, and a row of it uniform over directions.
        rotation = (q * r.diagonal().sign()).mT
        blocks.append(rotation * normal().norm(dim=-1, keepdim=True))
    return torch.cat(blocks)[:rows].to(torch.get_default_dtype())
