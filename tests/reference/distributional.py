"""Slow distributional learning in float64 NumPy: one atom at a time, as the papers' algorithms are written."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def categorical_projection(atoms: ArrayLike, probs: ArrayLike, support: ArrayLike) -> Array:
    """Algorithm 1 of C51, for atoms ``[B, N]``: the mass between two atoms of the support is split by distance."""
    atoms, probs, support = (np.asarray(x, np.float64) for x in (atoms, probs, support))
    low, high, spacing = support[0], support[-1], support[1] - support[0]
    result = np.zeros((len(atoms), len(support)))
    for m, row, p in zip(result, atoms, probs, strict=True):
        for z, mass in zip(row, p, strict=True):
            b = min((min(max(z, low), high) - low) / spacing, len(support) - 1)
            below, above = math.floor(b), math.ceil(b)
            if below == above:
                m[below] += mass
            else:
                m[below] += mass * (above - b)
                m[above] += mass * (b - below)
    return result


def quantile_huber_loss(quantiles: ArrayLike, target: ArrayLike, tau: ArrayLike, kappa: float) -> tuple[Array, Array]:
    """Eq. 9 and 10 of QR-DQN, divided by kappa as in IQN, for rows ``[B, N]`` and ``[B, M]``: the loss, and its gradient."""
    quantiles, target, tau = (np.asarray(x, np.float64) for x in (quantiles, target, np.broadcast_to(tau, np.shape(quantiles))))
    loss, gradient = np.zeros(len(quantiles)), np.zeros_like(quantiles)
    for b in range(len(quantiles)):
        for i, theta in enumerate(quantiles[b]):
            for y in target[b]:
                u = y - theta
                weight = abs(tau[b, i] - (u < 0)) / len(target[b])
                if kappa == 0:
                    value, slope = abs(u), np.sign(u)
                elif abs(u) <= kappa:
                    value, slope = 0.5 * u**2 / kappa, u / kappa
                else:
                    value, slope = abs(u) - 0.5 * kappa, np.sign(u)
                loss[b] += weight * value
                gradient[b, i] -= weight * slope
    return loss, gradient
