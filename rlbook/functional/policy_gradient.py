"""The terms of policy-gradient losses, one number per element: reduce them with ``.mean()``.

What is data rather than a prediction (the advantage, the old log-probability, the old value, the target) receives no gradient.
All tensors of a call have one shape, ``[*]``; what has one number for every discrete action is ``[*, A]``. Coefficients such as
``clip_eps`` may be scalar tensors: compiled code then follows when they change.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rlbook.errors import ConfigError, explain
from rlbook.functional._checks import check_aligned, check_positive
from rlbook.functional.value_learning import LOG_ZERO, soft_expected_value


def importance_ratio(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """Return the importance ratio ``r = pi(a|s) / pi_old(a|s) = exp(log_prob - old_log_prob)``.

    Args:
        log_prob: log-probability of the action under the learnt policy, ``[*]``.
        old_log_prob: the same under the policy that acted, ``[*]``; receives no gradient.

    Returns:
        ``[*]``, positive; at most the root of the largest number, from where on there is no gradient: an infinite ratio would
        turn the gradient of a clipped term, which is 0, into NaN.

    Raises:
        SpecError: the shapes differ.

    Source: Schulman et al., Proximal Policy Optimization Algorithms (2017), section 3.
    """
    check_aligned(log_prob=log_prob, old_log_prob=old_log_prob)
    log_ratio = log_prob - old_log_prob.detach()
    return log_ratio.clamp(max=0.5 * math.log(torch.finfo(log_ratio.dtype).max)).exp()


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


def ppo_dual_clip_loss(ratio: Tensor, advantage: Tensor, clip_eps: float | Tensor, dual_clip: float = 3.0) -> Tensor:
    """Return PPO's clipped surrogate with a bound for bad actions as well, with the sign of a loss.

    ::

        S = min(r A, clip(r, 1 - clip_eps, 1 + clip_eps) A)
        L = -S                          where A >= 0
        L = -max(S, dual_clip A)        where A < 0

    PPO alone has no bound where ``A < 0`` and ``r`` is large, as for data from a much older policy.

    Args:
        ratio, advantage, clip_eps: see :func:`ppo_clip_loss`.
        dual_clip: largest ratio that a bad action is pushed away with, more than 1.

    Returns:
        ``[*]``, to minimise.

    Raises:
        SpecError: the shapes differ.
        ConfigError: ``clip_eps`` is not positive or ``dual_clip`` not above 1.

    Source: Ye et al., Mastering Complex Control in MOBA Games with Deep Reinforcement Learning (2020), eq. 5.
    """
    if not dual_clip > 1.0:
        raise ConfigError(explain("dual_clip", "more than 1", repr(dual_clip), "Pass dual_clip=3.0"))
    loss = ppo_clip_loss(ratio, advantage, clip_eps)
    advantage = advantage.detach()
    return torch.where(advantage < 0, torch.minimum(loss, -dual_clip * advantage), loss)


def ppo_kl_loss(ratio: Tensor, advantage: Tensor, kl: Tensor, kl_coef: float | Tensor) -> Tensor:
    """Return the surrogate of PPO with a penalty instead of a clip, with the sign of a loss: ``L = -r A + kl_coef KL``.

    Args:
        ratio, advantage: see :func:`ppo_clip_loss`.
        kl: ``KL(pi_old || pi)``, exact (:func:`categorical_kl`) or sampled (:func:`approx_kl`), ``[*]``.
        kl_coef: weight of the penalty, not negative; :func:`adapted_kl_coef` follows it.

    Returns:
        ``[*]``, to minimise.

    Raises:
        SpecError: the shapes differ.

    Source: Schulman et al., Proximal Policy Optimization Algorithms (2017), eq. 8.
    """
    check_aligned(ratio=ratio, advantage=advantage, kl=kl)
    return kl_coef * kl - ratio * advantage.detach()


def adapted_kl_coef(kl_coef: Tensor, kl: Tensor, target: float, *, tolerance: float = 1.5, factor: float = 2.0) -> Tensor:
    """Return the weight of the KL penalty for the next update: larger where the policy moved too far, smaller where not enough.

    ::

        kl_coef / factor    where KL < target / tolerance
        kl_coef * factor    where KL > target * tolerance

    Args:
        kl_coef: weight used in this update, positive, a scalar.
        kl: mean of ``KL(pi_old || pi)`` after it, in nats, a scalar.
        target: the KL wanted per update, in nats, positive.
        tolerance, factor: more than 1.

    Returns:
        A scalar, without gradient.

    Raises:
        ConfigError: ``target`` is not positive.

    Source: Schulman et al., Proximal Policy Optimization Algorithms (2017), section 4.
    """
    check_positive(target=target)
    kl_coef, kl = kl_coef.detach(), kl.detach()
    lowered = torch.where(kl < target / tolerance, kl_coef / factor, kl_coef)
    return torch.where(kl > target * tolerance, kl_coef * factor, lowered)


def categorical_kl(old_log_probs: Tensor, log_probs: Tensor) -> Tensor:
    """Return ``KL(pi_old || pi) = sum_a pi_old(a|s) (log pi_old(a|s) - log pi(a|s))``: the KL of PPO, TRPO and PPG's cloning.

    Args:
        old_log_probs: ``log pi_old(.|s)``, floating ``[*, A]``; receives no gradient. ``-inf`` where an action is masked.
        log_probs: ``log pi(.|s)``, ``[*, A]``, with the same mask.

    Returns:
        ``[*]``, in nats.

    Raises:
        SpecError: the shapes differ.

    Source: Cobbe et al., Phasic Policy Gradient (2021), section 2 (the joint objective).
    """
    check_aligned(old_log_probs=old_log_probs, log_probs=log_probs)
    old_log_probs, log_probs = old_log_probs.detach().clamp(min=LOG_ZERO), log_probs.clamp(min=LOG_ZERO)
    return (old_log_probs.exp() * (old_log_probs - log_probs)).sum(-1)


def categorical_entropy(log_probs: Tensor) -> Tensor:
    """Return the entropy ``H = -sum_a pi(a|s) log pi(a|s)``, in nats, ``[*]``, of ``log pi(.|s)`` ``[*, A]``; ``-inf`` adds 0."""
    log_probs = log_probs.clamp(min=LOG_ZERO)
    return -(log_probs.exp() * log_probs).sum(-1)


def sampled_entropy(log_prob: Tensor) -> Tensor:
    """Return ``-log pi(a|s)``, whose mean over actions of the policy is its entropy, with a gradient that is the entropy's.

    ::

        H = -E[log pi(a|s)],   dH = -E[log pi(a|s) d log pi(a|s)]

    The mean of ``-d log pi`` would be 0: the actions depend on the policy too. For distributions without a closed form. Where the
    action itself carries a gradient (reparametrised, as in SAC), take ``-log_prob`` instead.

    Args:
        log_prob: of actions drawn from the learnt policy, without gradient through the action, ``[*]``.

    Returns:
        ``[*]``, in nats.

    Source: Sutton and Barto, Reinforcement Learning (2018), eq. 13.5, with ``-log pi`` for the reward.
    """
    weight = log_prob.detach()
    return -weight * (1.0 + log_prob - weight)


def dpg_loss(action: Tensor, action_gradient: Tensor, clip: float | None = None) -> Tensor:
    """Return a loss whose gradient is the deterministic policy gradient, ``L = -a . dQ/da`` with ``dQ/da`` held fixed.

    Without ``clip`` it has the gradient of ``-Q(s, pi(s))``, which is shorter to write; here ``dQ/da`` can be bounded.

    Args:
        action: ``pi(s)``, floating ``[*, A]``.
        action_gradient: ``dQ/da`` at that action, ``[*, A]``; receives no gradient.
        clip: bound of its norm, positive; none if not given.

    Returns:
        ``[*]``, to minimise. Its value means nothing; its gradient does.

    Raises:
        SpecError: the shapes differ.
        ConfigError: ``clip`` is not positive.

    Source: Silver et al., Deterministic Policy Gradient Algorithms (2014), eq. 9.
    """
    check_aligned(action=action, action_gradient=action_gradient)
    gradient = action_gradient.detach()
    if clip is not None:
        check_positive(clip=clip)
        norm = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
        gradient = gradient * (clip / norm.clamp(min=clip))
    return -(action * gradient).sum(-1)


def sac_actor_loss(log_prob: Tensor, action_value: Tensor, alpha: float | Tensor) -> Tensor:
    """Return the actor's loss of SAC, ``L = alpha log pi(a|s) - Q(s, a)``, for an action that carries the policy's gradient.

    Args:
        log_prob: log-probability of the reparametrised action, ``[*]``.
        action_value: its value, the least of the critics', ``[*]``; its gradient goes through the action. Freeze the critic.
        alpha: temperature, not negative, in units of return per nat; receives no gradient.

    Returns:
        ``[*]``, to minimise.

    Raises:
        SpecError: the shapes differ.

    Source: Haarnoja et al., Soft Actor-Critic Algorithms and Applications (2018), eq. 9.
    """
    check_aligned(log_prob=log_prob, action_value=action_value)
    return _detached(alpha) * log_prob - action_value


def discrete_sac_actor_loss(log_probs: Tensor, values: Tensor, alpha: float | Tensor) -> Tensor:
    """Return the actor's loss of SAC for discrete actions, exact: ``L = sum_a pi(a|s) (alpha log pi(a|s) - Q(s, a))``.

    It is least for ``pi = softmax(Q / alpha)``, where it is minus :func:`~rlbook.functional.value_learning.soft_value`.

    Args:
        log_probs: ``log pi(.|s)``, floating ``[*, A]``; ``-inf`` where an action is masked.
        values: ``Q(s, .)``, the least of the critics', ``[*, A]``; receives no gradient.
        alpha: temperature, not negative, in units of return per nat; receives no gradient.

    Returns:
        ``[*]``, to minimise.

    Raises:
        SpecError: the shapes differ.

    Source: Christodoulou, Soft Actor-Critic for Discrete Action Settings (2019), eq. 12.
    """
    return -soft_expected_value(values.detach(), log_probs, _detached(alpha))


def temperature_loss(alpha: Tensor, log_prob: Tensor, target_entropy: float | Tensor) -> Tensor:
    """Return the loss of SAC's temperature, ``L = -alpha (log pi(a|s) + target_entropy)``: it rises while entropy is too low.

    Args:
        alpha: ``log_alpha.exp()`` as in the paper, or ``log_alpha`` itself, whose steps do not depend on its size; a scalar.
        log_prob: log-probability of drawn actions, or minus the exact entropy, ``[*]``; receives no gradient.
        target_entropy: entropy wanted, in nats; minus the number of action dimensions in the paper.

    Returns:
        ``[*]``, to minimise.

    Source: Haarnoja et al., Soft Actor-Critic Algorithms and Applications (2018), eq. 18.
    """
    return -alpha * (log_prob.detach() + target_entropy)


def reinforce_loss(log_prob: Tensor, weight: Tensor) -> Tensor:
    """Return the score-function loss ``L = -weight log pi(a|s)``, whose gradient is the policy gradient.

    It is the actor's loss of REINFORCE (``weight`` a return), A2C (an advantage) and IMPALA (V-trace's advantage).

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


def _detached(x: float | Tensor) -> float | Tensor:
    return x.detach() if isinstance(x, Tensor) else x


def _clamp(x: Tensor, low: Any, high: Any) -> Tensor:
    """Clamp between two numbers or two tensors; the stubs of torch know only one kind at a time."""
    return x.clamp(low, high)
