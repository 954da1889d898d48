"""Slow PPO for discrete actions in float64 NumPy: one row at a time, gradients from the calculus and not from autograd."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def ppo(
    logits: ArrayLike,
    value: ArrayLike,
    action: ArrayLike,
    old_log_prob: ArrayLike,
    advantage: ArrayLike,
    target: ArrayLike,
    *,
    clip_eps: float,
    entropy_coef: float,
    value_coef: float,
    normalize: bool,
) -> tuple[dict[str, float], Array, Array]:
    """Return the terms and diagnostics, and the gradients of their sum to ``logits`` ``[B, A]`` and ``value`` ``[B]``."""
    logits, value, old, advantage, target = (np.asarray(x, np.float64) for x in (logits, value, old_log_prob, advantage, target))
    if normalize:
        advantage = (advantage - advantage.mean()) / (math.sqrt(np.mean((advantage - advantage.mean()) ** 2)) + 1e-8)
    count = len(value)
    names = ("loss_actor", "loss_entropy", "loss_value", "entropy", "approx_kl", "clip_fraction")
    out, grad_logits, grad_value = dict.fromkeys(names, 0.0), np.zeros_like(logits), np.zeros_like(value)
    for i, a in enumerate(np.asarray(action)):
        p = np.exp(logits[i] - logits[i].max())
        p /= p.sum()
        chosen = np.zeros_like(p)
        chosen[a] = 1.0
        log_ratio = math.log(p[a]) - old[i]
        ratio = math.exp(log_ratio)
        free, held = ratio * advantage[i], min(max(ratio, 1 - clip_eps), 1 + clip_eps) * advantage[i]
        entropy = -sum(q * math.log(q) for q in p)
        out["loss_actor"] -= min(free, held) / count
        out["entropy"] += entropy / count
        out["approx_kl"] += (ratio - 1 - log_ratio) / count
        out["clip_fraction"] += (abs(ratio - 1) > clip_eps) / count
        out["loss_value"] += value_coef * (value[i] - target[i]) ** 2 / count
        if free <= held:  # not clipped: d ratio / d logits = ratio (chosen - p)
            grad_logits[i] -= ratio * advantage[i] * (chosen - p) / count
        grad_logits[i] += entropy_coef * p * (np.log(p) + entropy) / count  # dH / d logits = -p (log p + H)
        grad_value[i] = 2 * value_coef * (value[i] - target[i]) / count
    out["loss_entropy"] = -entropy_coef * out["entropy"]
    out["loss"] = out["loss_actor"] + out["loss_entropy"] + out["loss_value"]
    return out, grad_logits, grad_value
