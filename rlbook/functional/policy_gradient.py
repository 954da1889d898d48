"""The terms of policy-gradient losses, one number per element: reduce them with ``.mean()``.

What is data rather than a prediction (the advantage, the old log-probability, the old value, the target) receives no gradient.
All tensors of a call have one shape, ``[*]``. ``clip_eps`` may be a scalar tensor: compiled code then follows when it changes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlbook.functional._checks import check_aligned, check_positive


def importance_ratio(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """Return the importance ratio ``r = pi(a|s) / pi_old(a|s) = exp(log_prob - old_log_prob)``.

    Args:
        log_prob: log-probability of the action under the learnt policy, ``[*]``.
        old_log_prob: the same under the policy that acted, ``[*]``; receives no gradient.

    Returns:
        ``[*]``, positive.

    Raises:
        SpecError: the shapes differ.

    Source: Schulman et al., Proximal Policy Optimization Algorithms (2017), section 3.
    """
    check_aligned(log_prob=log_prob, old_log_prob=old_log_prob)
    return (log_prob - old_log_prob.detach()).exp()


def ppo_clip_loss(ratio: Tensor, advantage: Tensor, clip_eps: float | Tensor) -> Tensor:
    """Return the clipped surrogate of PPO, with the sign of a loss.

    ::

        L = -min(r A, clip(r, 1 - clip_eps, 1 + clip_eps) A)

    The gradient is zero where a step further in the direction of ``A`` would leave the clip range.

    Args:
        ratio: importance ratio ``r``, ``[*]``.
        advantage: advantage ``A``, ``[*]``; receives no gradient.
        clip_eps: half-width of the range, positive; 0.2 in the paper.

    Returns:
        ``[*]``, to minimise.

    Raises:
        SpecError: the shapes differ.
        ConfigError: ``clip_eps`` is not positive.

    Source: Schulman et al., Proximal Policy Optimization Algorithms (2017), eq. 7.
    """
    check_aligned(ratio=ratio, advantage=advantage)
    check_positive(clip_eps=clip_eps)
    advantage = advantage.detach()
    return -torch.minimum(ratio * advantage, _clamp(ratio, 1.0 - clip_eps, 1.0 + clip_eps) * advantage)


def reinforce_loss(log_prob: Tensor, weight: Tensor) -> Tensor:
    """Return the score-function loss ``L = -weight log pi(a|s)``, whose gradient is the policy gradient.

    Args:
        log_prob: log-probability of the action under the learnt policy, ``[*]``.
        weight: return or advantage of the action, ``[*]``; receives no gradient.

    Returns:
        ``[*]``, to minimise. Its value means nothing; its gradient does.

    Raises:
        SpecError: the shapes differ.

    Source: Williams, Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning (1992).
    """
    check_aligned(log_prob=log_prob, weight=weight)
    return -log_prob * weight.detach()


def clipped_value_loss(value: Tensor, old_value: Tensor, target: Tensor, clip_eps: float | Tensor) -> Tensor:
    """Return the squared error of the value, kept pessimistic where the value moved far in this update.

    ::

        V_clip = V_old + clip(V - V_old, -clip_eps, clip_eps)
        L      = max((V - G)^2, (V_clip - G)^2)

    Args:
        value: predicted value ``V``, ``[*]``.
        old_value: prediction ``V_old`` before the update, ``[*]``; receives no gradient.
        target: value target ``G``, ``[*]``; receives no gradient.
        clip_eps: how far the value may move, in units of return, positive.

    Returns:
        ``[*]``, to minimise.

    Raises:
        SpecError: the shapes differ.
        ConfigError: ``clip_eps`` is not positive.

    Source: Dhariwal et al., OpenAI Baselines (2017), ``ppo2``.
    Deviates: no factor 1/2, so that without clipping it is the plain squared error.
    """
    check_aligned(value=value, old_value=old_value, target=target)
    check_positive(clip_eps=clip_eps)
    old_value, target = old_value.detach(), target.detach()
    clipped = old_value + _clamp(value - old_value, -clip_eps, clip_eps)
    return torch.maximum((value - target).square(), (clipped - target).square())


def approx_kl(log_ratio: Tensor) -> Tensor:
    """Return samples of ``KL(pi_old || pi)`` for actions of the old policy: ``k3 = (r - 1) - log r`` with ``r = exp(log_ratio)``.

    Unbiased like ``-log r``, never negative, and of lower variance.

    Args:
        log_ratio: ``log_prob - old_log_prob``, ``[*]``.

    Returns:
        ``[*]``, in nats; the mean is the estimate.

    Source: J. Schulman, Approximating KL Divergence (2020), estimator k3.
    """
    return log_ratio.expm1() - log_ratio


def clip_fraction(ratio: Tensor, clip_eps: float | Tensor) -> Tensor:
    """Return 1 where the ratio lies outside ``[1 - clip_eps, 1 + clip_eps]``, else 0; the mean is the fraction that PPO clips.

    Args:
        ratio: importance ratio, ``[*]``.
        clip_eps: half-width of the range, positive.

    Returns:
        ``[*]``, in the dtype of ``ratio``, without gradient.

    Raises:
        ConfigError: ``clip_eps`` is not positive.

    Source: Dhariwal et al., OpenAI Baselines (2017), ``ppo2``.
    """
    check_positive(clip_eps=clip_eps)
    return ((ratio - 1.0).abs() > clip_eps).to(ratio.dtype)


def _clamp(x: Tensor, low: Any, high: Any) -> Tensor:
    """Clamp between two numbers or two tensors; the stubs of torch know only one kind at a time."""
    return x.clamp(low, high)
