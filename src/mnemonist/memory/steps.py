"""Steps that are more than the gradient times numbers: each a function from a `Write` to what it leaves."""

from __future__ import annotations

import torch
from torch import Tensor

from mnemonist.memory.open_choices import STEPS, Step, Write

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that pulls singular values towards 1 (Jordan et al. 2024, Muon)."""
ITERATIONS = 5
SMALLEST = 1e-4
"""Norms are taken to be no less: what is shorter makes a shorter step, and none where there is nothing."""


def newton_schulz(gradient: Tensor) -> Tensor:
    """The nearest (semi-)orthogonal matrix, roughly: singular values go to between 0.7 and 1.2, vectors stay.

    Five steps of the quintic ``a X + (b X X^T + c (X X^T)^2) X`` from ``X = G / |G|`` (Frobenius). What is all zero
    stays zero, and has finite derivatives.

    Args:
        gradient: ``[..., D_in, D_out]``.

    Returns:
        The same shape.
    """
    a, b, c = COEFFICIENTS
    norm = torch.linalg.vector_norm(gradient, dim=(-2, -1), keepdim=True)
    X = gradient / norm.clamp_min(SMALLEST)
    tall = X.shape[-2] > X.shape[-1]
    if tall:
        X = X.mT
    for _ in range(ITERATIONS):
        A = X @ X.mT
        X = a * X + (b * A + c * (A @ A)) @ X
    return X.mT if tall else X


def orthogonal(write: Write) -> tuple[Tensor, Tensor | None]:
    """``M = kept - theta NS(S)``, with ``S = eta S + gradient`` (Atlas, arXiv 2505.23735, eq. 32)."""
    momentum = write.gradient
    if write.momentum is not None and write.persistence is not None:
        momentum = write.persistence * write.momentum + momentum
    after = write.kept - write.step_size * newton_schulz(momentum)
    return after, None if write.momentum is None else momentum


def find_step(name: str) -> Step:
    """The function of this name, one that comes along or one's own."""
    return orthogonal if name == "orthogonal" else STEPS[name]
