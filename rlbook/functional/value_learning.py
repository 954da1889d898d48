"""Targets and losses for action values, one number per element.

``values`` are those of every discrete action, ``[*, A]``; ``action`` is the index of the one taken, int64 ``[*]``; what belongs
to a transition (reward, terminated) is ``[*]``. Members of an ensemble come first, ``[n, *]``. ``next_...`` belongs to the true
next observation and is not read where ``terminated``. Targets are not detached: call under ``torch.no_grad()``; losses detach.
``gamma`` may be a tensor that broadcasts to the reward: with n-step returns it is ``gamma^n`` of each row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from rlbook.errors import SpecError, explain
from rlbook.functional._checks import check_aligned, check_fraction, check_positive, describe
from rlbook.functional.returns import td0_target

LOG_ZERO = -1e4  # exp of it is 0 in every dtype, and 0 times a multiple of it is 0, where 0 times infinity is not


def chosen_value(values: Tensor, action: Tensor) -> Tensor:
    """Return the value of the action taken, ``Q(s, a)``.

    Args:
        values: ``Q(s, .)``, floating ``[*, A]``; with an ensemble ``[n, *, A]``.
        action: index of the action, int64 ``[*]``.

    Returns:
        ``[*]``, or ``[n, *]``.

    Raises:
        SpecError: ``action`` is not int64, or not of the shape of ``values`` without its last dimension (and without ``n``).
    """
    batch = values.shape[:-1]
    if action.dtype is not torch.int64 or action.shape not in (batch, batch[1:]):
        fix = "Pass the indices of the actions; one-hot actions give them by action.argmax(-1)"
        raise SpecError(explain("action", f"int64 {list(batch)}, the shape of values without A", describe(action), fix))
    return values.gather(-1, action.expand(batch).unsqueeze(-1)).squeeze(-1)


def expected_value(values: Tensor, probs: Tensor) -> Tensor:
    """Return the value of a policy, ``V(s) = sum_a pi(a|s) Q(s, a)``.

    Args:
        values: ``Q(s, .)``, floating ``[*, A]``.
        probs: ``pi(.|s)``, ``[*, A]``; where it is 0 the value may be ``-inf``, that of a masked action.

    Returns:
        ``[*]``.

    Raises:
        SpecError: the shapes differ.

    Source: Sutton and Barto, Reinforcement Learning (2018), eq. 3.14.
    """
    check_aligned(values=values, probs=probs)
    return (probs * values.where((probs > 0) | (values > -math.inf), 0.0)).sum(-1)


def soft_value(values: Tensor, alpha: float | Tensor) -> Tensor:
    """Return the value of the best policy when entropy is worth ``alpha``: ``V(s) = alpha log sum_a exp(Q(s, a) / alpha)``.

    It is :func:`soft_expected_value` of the policy ``softmax(Q / alpha)``, and above that of every other policy. It tends to the
    maximum as ``alpha`` tends to 0.

    Args:
        values: ``Q(s, .)``, floating ``[*, A]``.
        alpha: temperature, positive, in units of return per nat.

    Returns:
        ``[*]``.

    Raises:
        ConfigError: ``alpha`` is not positive.

    Source: Haarnoja et al., Reinforcement Learning with Deep Energy-Based Policies (2017), eq. 5 and theorem 1.
    """
    check_positive(alpha=alpha)
    return alpha * (values / _per_action(alpha)).logsumexp(-1)


def soft_expected_value(values: Tensor, log_probs: Tensor, alpha: float | Tensor) -> Tensor:
    """Return the value of a policy plus ``alpha`` times its entropy, ``V(s) = sum_a pi(a|s) (Q(s, a) - alpha log pi(a|s))``.

    Args:
        values: ``Q(s, .)``, floating ``[*, A]``.
        log_probs: ``log pi(.|s)``, ``[*, A]``; ``-inf`` where an action is masked, which then counts nothing.
        alpha: temperature, not negative, in units of return per nat.

    Returns:
        ``[*]``.

    Raises:
        SpecError: the shapes differ.

    Source: Christodoulou, Soft Actor-Critic for Discrete Action Settings (2019), eq. 10.
    """
    check_aligned(values=values, log_probs=log_probs)
    log_probs, values = log_probs.clamp(min=LOG_ZERO), values.where(log_probs > LOG_ZERO, 0.0)
    return (log_probs.exp() * (values - _per_action(alpha) * log_probs)).sum(-1)


def q_learning_target(reward: Tensor, next_values: Tensor, terminated: Tensor, gamma: float | Tensor) -> Tensor:
    """Return the target of Q-learning, ``r + gamma (1 - terminated) max_a Q(s', a)``.

    Args:
        reward: floating ``[*]``.
        next_values: ``Q(s', .)``, of the target network in DQN, ``[*, A]``.
        terminated: the step ended in a terminal state, bool ``[*]``.
        gamma: discount, in [0, 1].

    Returns:
        ``[*]``.

    Raises:
        SpecError: a shape or dtype does not fit the reward.
        ConfigError: ``gamma`` is not in [0, 1].

    Source: Watkins, Learning from Delayed Rewards (1989); Mnih et al., Human-Level Control through Deep RL (2015).
    """
    return td0_target(reward, next_values.amax(-1), terminated, gamma)


def q_learning_error(
    values: Tensor, action: Tensor, reward: Tensor, next_values: Tensor, terminated: Tensor, gamma: float | Tensor
) -> Tensor:
    """Return the TD error of Q-learning, ``r + gamma (1 - terminated) max_a Q(s', a) - Q(s, a)``, ``[*]``.

    Args: ``values`` are ``Q(s, .)``, ``[*, A]``; ``action`` is int64 ``[*]``; for the others see :func:`q_learning_target`.

    Raises:
        SpecError: a shape or dtype does not fit.
        ConfigError: ``gamma`` is not in [0, 1].

    Source: Sutton and Barto, Reinforcement Learning (2018), eq. 6.8.
    """
    value = chosen_value(values, action)
    check_aligned(reward=reward, value=value)
    return q_learning_target(reward, next_values, terminated, gamma) - value


def double_q_target(
    reward: Tensor, next_values: Tensor, selector_values: Tensor, terminated: Tensor, gamma: float | Tensor
) -> Tensor:
    """Return the target of double Q-learning: one network chooses the action, the other says what it is worth.

    ::

        r + gamma (1 - terminated) Q(s', argmax_a Q_selector(s', a))

    The maximum of noisy values is too high on average; a choice made by other noise is not.

    Args:
        reward, terminated, gamma: see :func:`q_learning_target`.
        next_values: ``Q(s', .)`` that judges, of the target network in double DQN, ``[*, A]``.
        selector_values: ``Q_selector(s', .)`` that chooses, of the learnt network in double DQN, ``[*, A]``; no gradient.

    Returns:
        ``[*]``.

    Raises:
        SpecError: a shape or dtype does not fit.
        ConfigError: ``gamma`` is not in [0, 1].

    Source: van Hasselt et al., Deep Reinforcement Learning with Double Q-Learning (2016), eq. 4.
    """
    check_aligned(next_values=next_values, selector_values=selector_values)
    return td0_target(reward, chosen_value(next_values, selector_values.argmax(-1)), terminated, gamma)


def sarsa_target(reward: Tensor, next_values: Tensor, next_action: Tensor, terminated: Tensor, gamma: float | Tensor) -> Tensor:
    """Return the target of Sarsa, ``r + gamma (1 - terminated) Q(s', a')``, with ``a'`` the action taken next, int64 ``[*]``.

    Args and errors: see :func:`q_learning_target`.

    Returns:
        ``[*]``.

    Source: Sutton and Barto, Reinforcement Learning (2018), eq. 6.7.
    """
    return td0_target(reward, chosen_value(next_values, next_action), terminated, gamma)


def expected_sarsa_target(
    reward: Tensor, next_values: Tensor, next_probs: Tensor, terminated: Tensor, gamma: float | Tensor
) -> Tensor:
    """Return the target of expected Sarsa, ``r + gamma (1 - terminated) sum_a pi(a|s') Q(s', a)``.

    Without the noise of a drawn action, and valid for data of any policy. ``next_probs`` are ``pi(.|s')``, ``[*, A]``.

    Args and errors: see :func:`q_learning_target`.

    Returns:
        ``[*]``.

    Source: Sutton and Barto, Reinforcement Learning (2018), eq. 6.9.
    """
    return td0_target(reward, expected_value(next_values, next_probs), terminated, gamma)


def soft_q_target(
    reward: Tensor, next_values: Tensor, terminated: Tensor, gamma: float | Tensor, alpha: float | Tensor
) -> Tensor:
    """Return the target of soft Q-learning, ``r + gamma (1 - terminated) alpha log sum_a exp(Q(s', a) / alpha)``.

    Args:
        reward, next_values, terminated, gamma: see :func:`q_learning_target`.
        alpha: temperature, positive; see :func:`soft_value`.

    Returns:
        ``[*]``.

    Raises:
        SpecError: a shape or dtype does not fit the reward.
        ConfigError: ``gamma`` is not in [0, 1], or ``alpha`` is not positive.

    Source: Haarnoja et al., Reinforcement Learning with Deep Energy-Based Policies (2017), theorem 3.
    """
    return td0_target(reward, soft_value(next_values, alpha), terminated, gamma)


def munchausen_target(
    reward: Tensor,
    values: Tensor,
    action: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    gamma: float | Tensor,
    *,
    alpha: float | Tensor = 0.9,
    tau: float | Tensor = 0.03,
    clip: float = -1.0,
) -> Tensor:
    """Return the target of Munchausen DQN: the reward is raised by the log-probability of the action under the current policy.

    ::

        pi = softmax(Q / tau)
        G  = r + alpha max(tau log pi(a|s), clip) + gamma (1 - terminated) sum_a' pi(a'|s') (Q(s', a') - tau log pi(a'|s'))

    The sum is computed as ``tau log sum_a' exp(Q(s', a') / tau)``, which is the same number.

    Args:
        reward, terminated, gamma: see :func:`q_learning_target`.
        values: ``Q(s, .)`` of the target network, ``[*, A]``.
        action: the action taken, int64 ``[*]``.
        next_values: ``Q(s', .)`` of the target network, ``[*, A]``.
        alpha: share of the log-probability that is added, in [0, 1]; 0 is soft DQN.
        tau: temperature of the policy, positive.
        clip: lower bound of ``tau log pi``, not positive: it would fall without bound as the policy becomes greedy.

    Returns:
        ``[*]``.

    Raises:
        SpecError: a shape or dtype does not fit the reward.
        ConfigError: ``gamma`` or ``alpha`` is not in [0, 1], or ``tau`` is not positive.

    Source: Vieillard et al., Munchausen Reinforcement Learning (2020), section 2 (M-DQN).
    """
    check_fraction(alpha=alpha)
    check_positive(tau=tau)
    chosen = chosen_value(values, action)
    check_aligned(reward=reward, chosen=chosen)
    bonus = (chosen - soft_value(values, tau)).clamp(clip, 0.0)
    return td0_target(reward + alpha * bonus, soft_value(next_values, tau), terminated, gamma)


def clipped_double_value(members: Tensor) -> Tensor:
    """Return the least value that any member of an ensemble gives, ``min_i Q_i(s, a)``, ``[*]`` from ``[n, *]``.

    Noise then makes values too low and not too high, and what is valued too low does not spread, as the policy avoids it.

    Source: Fujimoto et al., Addressing Function Approximation Error in Actor-Critic Methods (2018), eq. 10.
    """
    return members.amin(0)


def subset_value(members: Tensor, index: Tensor) -> Tensor:
    """Return the least value that a drawn subset of an ensemble gives, ``min_{i in M} Q_i(s, a)``.

    Args:
        members: floating ``[n, *]``.
        index: the members drawn, without replacement, for example ``torch.randperm(n)[:2]``; int64 ``[m]``.

    Returns:
        ``[*]``.

    Source: Chen et al., Randomized Ensembled Double Q-Learning (2021), algorithm 1.
    """
    return members.index_select(0, index).amin(0)


def soft_clipped_value(members: Tensor, log_prob: Tensor, alpha: float | Tensor) -> Tensor:
    """Return the soft value of an action drawn from the policy, ``min_i Q_i(s, a) - alpha log pi(a|s)``.

    :func:`~rlbook.functional.returns.td0_target` makes SAC's target of it.

    Args:
        members: action values of an ensemble, floating ``[n, *]``.
        log_prob: log-probability of the action, ``[*]``.
        alpha: temperature, not negative, in units of return per nat.

    Returns:
        ``[*]``.

    Raises:
        SpecError: the shapes differ.

    Source: Haarnoja et al., Soft Actor-Critic Algorithms and Applications (2018), eq. 3 and section 5.
    """
    value = members.amin(0)
    check_aligned(value=value, log_prob=log_prob)
    return value - alpha * log_prob


def smoothed_action(
    action: Tensor, noise: Tensor, low: float | Tensor, high: float | Tensor, *, scale: float | Tensor = 0.2, clip: float = 0.5
) -> Tensor:
    """Return the target action of TD3, ``clip(a + clip(scale noise, -clip, clip), low, high)``: near actions are worth the same.

    Args:
        action: action of the target policy, floating ``[*, A]``.
        noise: standard normal, ``[*, A]``.
        low, high: bounds of the actions, numbers or ``[A]``.
        scale: standard deviation, in units of the action; the paper's 0.2 is for actions in [-1, 1].
        clip: bound of the noise, in the same units, positive.

    Returns:
        ``[*, A]``.

    Raises:
        SpecError: ``noise`` has not the shape of ``action``.
        ConfigError: ``clip`` is not positive.

    Source: Fujimoto et al., Addressing Function Approximation Error in Actor-Critic Methods (2018), algorithm 1.
    """
    check_aligned(action=action, noise=noise)
    check_positive(clip=clip)
    moved = action + (scale * noise).clamp(-clip, clip)
    return torch.minimum(torch.maximum(moved, _as_tensor(low, action)), _as_tensor(high, action))


def squared_loss(pred: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the weighted squared error, ``weight (pred - target)^2``.

    Args:
        pred: prediction, floating ``[*]``; members of an ensemble ``[n, *]``.
        target: ``[*]``, the same for every member; receives no gradient.
        weight: for example importance weights of prioritized replay, ``[*]``; 1 if not given; receives no gradient.

    Returns:
        The shape of ``pred``, to minimise.

    Raises:
        SpecError: ``target`` or ``weight`` is not of the shape of ``pred`` with or without ``n``.

    Deviates: no factor 1/2, like :func:`~rlbook.functional.policy_gradient.clipped_value_loss`.
    """
    target = _like_members(pred, "target", target)
    return _weighted(F.mse_loss(pred, target, reduction="none"), weight)


def huber_loss(pred: Tensor, target: Tensor, delta: float | Tensor = 1.0, weight: Tensor | None = None) -> Tensor:
    """Return the weighted Huber loss: squared for small errors, linear for large ones.

    ::

        e = |pred - target|
        L = weight e^2 / 2                        where e <= delta
        L = weight delta (e - delta / 2)          beyond

    Args:
        pred, target, weight: see :func:`squared_loss`.
        delta: where it becomes linear, and the largest gradient, positive. 1 clips the TD error as DQN does.

    Returns:
        The shape of ``pred``, to minimise.

    Raises:
        SpecError: ``target`` or ``weight`` is not of the shape of ``pred`` with or without ``n``.
        ConfigError: ``delta`` is not positive.

    Source: Huber, Robust Estimation of a Location Parameter (1964), section 5.
    """
    check_positive(delta=delta)
    target = _like_members(pred, "target", target)
    if not isinstance(delta, Tensor):
        return _weighted(F.huber_loss(pred, target, delta=delta, reduction="none"), weight)
    error = (pred - target).abs()
    small = torch.minimum(error, delta)
    return _weighted(small * (error - 0.5 * small), weight)


def _weighted(loss: Tensor, weight: Tensor | None) -> Tensor:
    return loss if weight is None else loss * _like_members(loss, "weight", weight)


def _like_members(pred: Tensor, name: str, x: Tensor) -> Tensor:
    """Return ``x`` of the shape of ``pred`` or of one member of it, expanded to it and without gradient."""
    if x.shape != pred.shape and x.shape != pred.shape[1:]:
        check_aligned(pred=pred, **{name: x})
    return x.detach().to(pred.dtype).expand_as(pred)


def _per_action(x: float | Tensor) -> float | Tensor:
    """Return a number, or one for each row ``[*]``, so that it broadcasts to what has one for each action, ``[*, A]``."""
    return x.unsqueeze(-1) if isinstance(x, Tensor) and x.ndim else x


def _as_tensor(bound: float | Tensor, like: Tensor) -> Tensor:
    return bound if isinstance(bound, Tensor) else like.new_full((), bound)
