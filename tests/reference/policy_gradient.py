"""Slow on-policy losses for discrete actions in float64 NumPy: one row at a time, gradients from the calculus.

Each ``*_row`` returns a row's actor loss and its gradient to the logits, with ``d log p_a / d logits = chosen - p``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Row = Callable[[Array, int, float, int], tuple[float, Array]]


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return e / e.sum()


def score(p: Array, a: int) -> Array:
    chosen = np.zeros_like(p)
    chosen[a] = 1.0
    return chosen - p


def plain_row(p: Array, a: int, advantage: float, i: int) -> tuple[float, Array]:
    """-A log p_a."""
    return -advantage * math.log(p[a]), -advantage * score(p, a)


def ratio_row(old: Array) -> Row:
    """-r A."""

    def row(p: Array, a: int, advantage: float, i: int) -> tuple[float, Array]:
        ratio = p[a] / math.exp(old[i])
        return -ratio * advantage, -ratio * advantage * score(p, a)

    return row


def kl_row(old: Array, old_logits: Array, kl_coef: float) -> Row:
    """-r A + kl_coef KL(old || p), whose gradient is p - old."""
    first = ratio_row(old)

    def row(p: Array, a: int, advantage: float, i: int) -> tuple[float, Array]:
        loss, grad = first(p, a, advantage, i)
        q = softmax(old_logits[i])
        kl = sum(x * (math.log(x) - math.log(y)) for x, y in zip(q, p, strict=True))
        return loss + kl_coef * kl, grad + kl_coef * (p - q)

    return row


def dual_row(old: Array, clip_eps: float, dual_clip: float) -> Row:
    """The clipped surrogate; for a bad action the ratio counts for no more than dual_clip."""

    def row(p: Array, a: int, advantage: float, i: int) -> tuple[float, Array]:
        ratio = p[a] / math.exp(old[i])
        free, held = ratio * advantage, min(max(ratio, 1 - clip_eps), 1 + clip_eps) * advantage
        kept, slope = (free, ratio * advantage) if free <= held else (held, 0.0)
        if advantage < 0 and dual_clip * advantage > kept:
            kept, slope = dual_clip * advantage, 0.0
        return -kept, -slope * score(p, a)

    return row


def on_policy(
    logits: ArrayLike,
    value: ArrayLike,
    action: ArrayLike,
    advantage: ArrayLike,
    target: ArrayLike,
    row: Row,
    *,
    entropy_coef: float,
    value_coef: float,
    normalize: bool,
    old_value: ArrayLike | None = None,
    value_clip: float = math.inf,
) -> tuple[dict[str, float], Array, Array]:
    """Return the terms, and the gradients of their sum to ``logits`` ``[B, A]`` and ``value`` ``[B]``."""
    logits, value, advantage, target = (np.asarray(x, np.float64) for x in (logits, value, advantage, target))
    if normalize:
        advantage = (advantage - advantage.mean()) / (math.sqrt(np.mean((advantage - advantage.mean()) ** 2)) + 1e-8)
    count, old_value = len(value), value if old_value is None else np.asarray(old_value, np.float64)
    out = dict.fromkeys(("loss_actor", "loss_entropy", "loss_value"), 0.0)
    grad_logits, grad_value = np.zeros_like(logits), np.zeros_like(value)
    for i, a in enumerate(np.asarray(action)):
        p = softmax(logits[i])
        loss, grad = row(p, int(a), advantage[i], i)
        entropy = -sum(q * math.log(q) for q in p)
        out["loss_actor"] += loss / count
        out["loss_entropy"] -= entropy_coef * entropy / count
        grad_logits[i] = (grad + entropy_coef * p * (np.log(p) + entropy)) / count
        moved = min(max(value[i] - old_value[i], -value_clip), value_clip)
        free, held = value[i] - target[i], old_value[i] + moved - target[i]
        out["loss_value"] += value_coef * max(free**2, held**2) / count
        inside = abs(value[i] - old_value[i]) <= value_clip
        grad_value[i] = 2 * value_coef * (free if free**2 >= held**2 else held * inside) / count
    out["loss"] = sum(out.values())
    return out, grad_logits, grad_value
