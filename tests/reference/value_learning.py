"""Slow targets for action values in float64 NumPy, one row at a time, each as its paper writes it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def munchausen_target(
    reward, values, action, next_values, terminated, *, gamma: float, alpha: float, tau: float, clip: float
) -> Array:
    """``r + alpha [tau log pi(a|s)]_clip^0 + gamma E_{a' ~ pi}[Q(s', a') - tau log pi(a'|s')]``, ``pi = softmax(Q / tau)``."""
    result = []
    for r, q, a, nq, end in zip(*(np.asarray(x) for x in (reward, values, action, next_values, terminated)), strict=True):
        bonus = min(max(tau * math.log(softmax(q / tau)[a]), clip), 0.0) if softmax(q / tau)[a] > 0 else clip
        following = sum(p * (v - tau * math.log(p)) for p, v in zip(softmax(nq / tau), nq, strict=True) if p > 0)
        result.append(r + alpha * bonus + (0.0 if end else gamma * following))
    return np.array(result, np.float64)


def softmax(x: Array) -> Array:
    p = np.exp(x - x.max())
    return p / p.sum()
