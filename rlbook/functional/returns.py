"""Returns and advantages of rollouts: every estimator is a choice of ``a`` and ``b`` in ``x_t = a_t + b_t * x_{t+1}``.

All tensors are ``[*, T]``: one number per step, time last, no trailing 1. Nothing is detached: call under ``torch.no_grad()``.

* ``next_value`` is the value of the *true* next observation, also where the environment was reset after it.
* ``terminated`` cuts the bootstrap: nothing follows a terminal state, so its ``next_value`` is not read, whatever it holds.
* ``done = terminated | truncated`` cuts the recursion: the next step in memory belongs to another episode. The last step of a
  rollout bootstraps from its ``next_value`` like a truncated one.
* ``gamma`` and the lambdas may be tensors that broadcast to the reward: a scalar, which compiled code follows when it changes, or
  one per step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlbook.functional._checks import check_aligned, check_factor, check_positive, check_time
from rlbook.functional.scan import Backend, kernels, reverse_scan


def generalized_advantage(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    done: Tensor,
    gamma: float | Tensor,
    gae_lambda: float | Tensor,
    *,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Return the generalized advantage estimate (GAE) and the value target that goes with it.

    ::

        delta_t = r_t + gamma (1 - terminated_t) V(s'_t) - V(s_t)
        A_t     = delta_t + gamma gae_lambda (1 - done_t) A_{t+1}
        G_t     = A_t + V(s_t)

    Args:
        reward: reward of each step, floating ``[*, T]``.
        value: value of the observation each step starts from, ``[*, T]``.
        next_value: value of the true next observation, ``[*, T]``.
        terminated: the step ended in a terminal state, bool ``[*, T]``.
        done: the step ended its episode, terminated or truncated, bool ``[*, T]``.
        gamma: discount per step, in [0, 1].
        gae_lambda: 0 is the one-step TD error (biased, low variance), 1 the whole return minus the value, in [0, 1].
        backend: see :func:`~rlbook.functional.scan.reverse_scan`.

    Returns:
        ``(advantage, value_target)``, each ``[*, T]``.

    Raises:
        SpecError: a shape or dtype does not fit the reward.
        ConfigError: ``gamma`` or ``gae_lambda`` is not in [0, 1], or the backend cannot take these tensors.

    Source: Schulman et al., High-Dimensional Continuous Control Using Generalized Advantage Estimation (2016), eq. 16.
    """
    check_time(reward)
    check_aligned(reward=reward, value=value, next_value=next_value, terminated=terminated, done=done)
    check_factor(reward, gamma=gamma, gae_lambda=gae_lambda)
    module = kernels(backend, reward, value, next_value, terminated, done)
    if module is not None and not isinstance(gamma, Tensor) and not isinstance(gae_lambda, Tensor):
        return module.generalized_advantage(reward, value, next_value, terminated, done, gamma, gae_lambda)
    delta = td_error(reward, value, next_value, terminated, gamma)
    advantage = reverse_scan(delta, _until_done(delta, done, gamma * gae_lambda), backend=backend)
    return advantage, advantage + value


def td0_target(reward: Tensor, next_value: Tensor, terminated: Tensor, gamma: float | Tensor) -> Tensor:
    """Return the one-step target ``r_t + gamma (1 - terminated_t) V(s'_t)``, ``[*, T]`` or any other shape.

    Args: see :func:`generalized_advantage`.

    Raises:
        SpecError: a shape or dtype does not fit the reward.
        ConfigError: ``gamma`` is not in [0, 1].

    Source: Sutton and Barto, Reinforcement Learning (2018), eq. 6.2.
    """
    check_aligned(reward=reward, next_value=next_value, terminated=terminated)
    check_factor(reward, gamma=gamma)
    bootstrap = torch.where(terminated, 0.0, next_value)
    return reward + gamma * bootstrap if isinstance(gamma, Tensor) else torch.add(reward, bootstrap, alpha=gamma)


def td_error(reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, gamma: float | Tensor) -> Tensor:
    """Return the TD error ``delta_t = r_t + gamma (1 - terminated_t) V(s'_t) - V(s_t)``, ``[*, T]`` or any other shape.

    Args: see :func:`generalized_advantage`.

    Raises:
        SpecError: a shape or dtype does not fit the reward.
        ConfigError: ``gamma`` is not in [0, 1].

    Source: Sutton and Barto, Reinforcement Learning (2018), eq. 6.5.
    """
    check_aligned(reward=reward, value=value)
    return td0_target(reward, next_value, terminated, gamma) - value


def reward_to_go(reward: Tensor, done: Tensor, gamma: float | Tensor, last: Tensor | None = None) -> Tensor:
    """Return the discounted sum of the rewards to the end of each episode, ``G_t = r_t + gamma (1 - done_t) G_{t+1}``.

    Args:
        reward: reward of each step, floating ``[*, T]``.
        done: the step ended its episode, bool ``[*, T]``.
        gamma: discount per step, in [0, 1].
        last: ``G_T``, what follows the last step of a row that is not done there, ``[*]``; 0 if not given.

    Returns:
        ``[*, T]``.

    Raises:
        SpecError: a shape or dtype does not fit the reward.
        ConfigError: ``gamma`` is not in [0, 1].

    Source: Sutton and Barto, Reinforcement Learning (2018), eq. 3.9.
    """
    check_time(reward)
    check_aligned(reward=reward, done=done)
    check_factor(reward, gamma=gamma)
    return _scan(reward, _until_done(reward, done, gamma), last)


def td_lambda_return(
    reward: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor, gamma: float | Tensor, td_lambda: float | Tensor
) -> Tensor:
    """Return the lambda-return: each step mixes its bootstrap with the return that follows it.

    ::

        G_t = r_t + gamma ((1 - td_lambda) V'_t + td_lambda G_{t+1})   inside an episode
        G_t = r_t + gamma V'_t                                         where done, and at the last step

    with ``V'_t = (1 - terminated_t) V(s'_t)``.

    Args: see :func:`generalized_advantage`; ``td_lambda`` in [0, 1]: 0 is the one-step target, 1 the whole return.

    Returns:
        ``[*, T]``.

    Raises:
        SpecError: a shape or dtype does not fit the reward.
        ConfigError: ``gamma`` or ``td_lambda`` is not in [0, 1].

    Source: Sutton and Barto, Reinforcement Learning (2018), eq. 12.2, and eq. 12.18 for the recursion.
    """
    check_time(reward)
    check_aligned(reward=reward, next_value=next_value, terminated=terminated, done=done)
    check_factor(reward, gamma=gamma, td_lambda=td_lambda)
    if reward.shape[-1] == 0:
        return torch.zeros_like(reward)
    bootstrap = torch.where(terminated, 0.0, next_value)
    carried = _until_done(reward, done, td_lambda)
    return _scan(reward + gamma * (1.0 - carried) * bootstrap, gamma * carried, bootstrap[..., -1])


def n_step_return(reward: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor, gamma: float | Tensor, n: int) -> Tensor:
    """Return the n-step return: up to ``n`` rewards, then a bootstrap; fewer where the episode or the rollout ends first.

    ::

        G^1_t = r_t + gamma (1 - terminated_t) V(s'_t)
        G^n_t = r_t + gamma G^{n-1}_{t+1}               inside an episode
        G^n_t = G^1_t                                   where done, and at the last step

    Args: see :func:`generalized_advantage`; ``n`` is at least 1. The cost is O(n T) up to ``n = T``, from where it is one scan.

    Returns:
        ``[*, T]``.

    Raises:
        SpecError: a shape or dtype does not fit the reward.
        ConfigError: ``gamma`` is not in [0, 1] or ``n`` is smaller than 1.

    Source: Sutton and Barto, Reinforcement Learning (2018), eq. 7.1.
    """
    check_time(reward)
    check_aligned(reward=reward, done=done)
    check_positive(n=n)
    steps = reward.shape[-1]
    if n >= steps:
        return td_lambda_return(reward, next_value, terminated, done, gamma, 1.0)
    one_step = td0_target(reward, next_value, terminated, gamma)
    ends = done | (torch.arange(steps, device=done.device) == steps - 1)
    result = one_step
    for _ in range(n - 1):
        result = torch.where(ends, one_step, reward + gamma * result.roll(-1, -1))
    return result


def v_trace(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    done: Tensor,
    ratio: Tensor,
    gamma: float | Tensor,
    *,
    rho_clip: float = 1.0,
    c_clip: float = 1.0,
    td_lambda: float | Tensor = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return the policy-gradient advantage and the value target of V-trace, for data from another policy.

    ::

        rho_t   = min(rho_clip, ratio_t),   c_t = td_lambda min(c_clip, ratio_t)
        delta_t = r_t + gamma (1 - terminated_t) V(s'_t) - V(s_t)
        x_t     = rho_t delta_t + gamma c_t (1 - done_t) x_{t+1}
        v_t     = V(s_t) + x_t
        A_t     = rho_t (r_t + gamma v_{t+1} - V(s_t)) = rho_t (delta_t + gamma (1 - done_t) x_{t+1})

    Args:
        reward: reward of each step, floating ``[*, T]``.
        value: value of the observation each step starts from, ``[*, T]``.
        next_value: value of the true next observation, ``[*, T]``.
        terminated: the step ended in a terminal state, bool ``[*, T]``.
        done: the step ended its episode, terminated or truncated, bool ``[*, T]``.
        ratio: probability of the action under the learnt policy over that under the acting one, ``[*, T]``.
        gamma: discount per step, in [0, 1].
        rho_clip: bound of the weight of a step's own error, positive. It decides whose value is learnt: that of the learnt
            policy if infinite, that of a policy between the two if finite.
        c_clip: bound of the weight of later errors, positive; lower is slower and has less variance.
        td_lambda: further decay of later errors, in [0, 1].

    Returns:
        ``(advantage, value_target)``, each ``[*, T]``.

    Raises:
        SpecError: a shape or dtype does not fit the reward.
        ConfigError: ``gamma`` or ``td_lambda`` is not in [0, 1], or a bound is not positive.

    Source: Espeholt et al., IMPALA (2018), eq. 1, remark 1 for the recursion and remark 2 for td_lambda; section 4.2 for ``A_t``.
    """
    check_time(reward)
    check_aligned(reward=reward, done=done, ratio=ratio)
    check_factor(reward, td_lambda=td_lambda)
    check_positive(rho_clip=rho_clip, c_clip=c_clip)
    delta = td_error(reward, value, next_value, terminated, gamma)
    rho, kept = ratio.clamp(max=rho_clip), _until_done(delta, done, gamma)
    correction = _scan(rho * delta, kept * td_lambda * ratio.clamp(max=c_clip))
    later = torch.cat([correction[..., 1:], torch.zeros_like(correction[..., :1])], -1)
    return rho * (delta + kept * later), value + correction


def q_lambda_return(
    reward: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    done: Tensor,
    gamma: float | Tensor,
    td_lambda: float | Tensor,
    *,
    greedy: Tensor | None = None,
) -> Tensor:
    """Return the target of Q(lambda): a lambda-return whose bootstrap is the greedy value ``V'_t = max_a Q(s'_t, a)``.

    ::

        l_t = td_lambda                          Peng's: exploring actions are followed as well
        l_t = td_lambda greedy_{t+1}             Watkins's: the return is cut before the first action that is not greedy
        G_t = r_t + gamma ((1 - l_t) V'_t + l_t G_{t+1})   inside an episode
        G_t = r_t + gamma V'_t                             where done, and at the last step

    Watkins's learns the value of the greedy policy; Peng's, faster, one between that and the value of the policy that acted.

    Args:
        reward, terminated, done: see :func:`generalized_advantage`.
        next_value: the largest action value of the true next observation, ``[*, T]``.
        gamma: discount per step, in [0, 1].
        td_lambda: 0 is the one-step target of Q-learning, in [0, 1].
        greedy: whether the action *of* step t is one that maximises ``Q(s_t, .)``, bool ``[*, T]``; None gives Peng's.

    Returns:
        ``[*, T]``.

    Raises:
        SpecError: a shape or dtype does not fit the reward.
        ConfigError: ``gamma`` or ``td_lambda`` is not in [0, 1].

    Source: Peng and Williams, Incremental Multi-Step Q-Learning (1996), section 3; Watkins, Learning from Delayed Rewards (1989),
    section 7; Sutton and Barto, Reinforcement Learning (2018), section 12.10.
    """
    if greedy is not None:
        check_aligned(reward=reward, greedy=greedy)
        check_factor(reward, td_lambda=td_lambda)
        td_lambda = _until_done(reward, ~greedy.roll(-1, -1), td_lambda)
    return td_lambda_return(reward, next_value, terminated, done, gamma, td_lambda)


def retrace(
    reward: Tensor,
    action_value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    done: Tensor,
    ratio: Tensor,
    gamma: float | Tensor,
    *,
    td_lambda: float | Tensor = 1.0,
    c_clip: float = 1.0,
) -> Tensor:
    """Return the target of the action value in Retrace(lambda): safe for data from any policy, fast for nearly one's own.

    ::

        c_t     = td_lambda min(c_clip, ratio_t)
        delta_t = r_t + gamma (1 - terminated_t) V'_t - Q(s_t, a_t)
        x_t     = delta_t + gamma c_{t+1} (1 - done_t) x_{t+1}
        G_t     = Q(s_t, a_t) + x_t

    The first action needs no weight, since ``Q`` is given it: hence ``c_{t+1}`` where V-trace has ``c_t``. With other weights in
    the place of ``ratio`` it is another algorithm: ones give Q(lambda) with off-policy corrections, ``pi(a_t|s_t)`` tree backup.

    Args:
        reward, terminated, done: see :func:`generalized_advantage`.
        action_value: ``Q(s_t, a_t)`` of the action taken, ``[*, T]``.
        next_value: value of the true next observation under the learnt policy, ``E_pi Q(s'_t, .)``, ``[*, T]``: with discrete
            actions :func:`~rlbook.functional.value_learning.expected_value`, else the mean of ``Q`` over actions drawn from it.
        ratio: probability of the action under the learnt policy over that under the acting one, ``[*, T]``.
        gamma: discount per step, in [0, 1].
        td_lambda: further decay of later errors, in [0, 1].
        c_clip: bound of the weight of later errors, positive; 1 in the paper, whose proof needs it.

    Returns:
        ``[*, T]``.

    Raises:
        SpecError: a shape or dtype does not fit the reward.
        ConfigError: ``gamma`` or ``td_lambda`` is not in [0, 1], or ``c_clip`` is not positive.

    Source: Munos et al., Safe and Efficient Off-Policy Reinforcement Learning (2016), eq. 3 and table 1.
    """
    check_time(reward)
    check_aligned(reward=reward, done=done, ratio=ratio)
    check_factor(reward, td_lambda=td_lambda)
    check_positive(c_clip=c_clip)
    delta = td_error(reward, action_value, next_value, terminated, gamma)
    c = td_lambda * ratio.clamp(max=c_clip)
    return action_value + _scan(delta, _until_done(delta, done, gamma) * c.roll(-1, -1))


def _scan(a: Tensor, b: Tensor, last: Tensor | None = None) -> Tensor:
    """Scan in the dtype of ``a``, which holds the reward and the values: under autocast these differ."""
    return reverse_scan(a, b.to(a.dtype), None if last is None else last.to(a.dtype))


def _until_done(like: Tensor, done: Tensor, factor: float | Tensor) -> Tensor:
    """Return ``factor (1 - done_t)`` in the dtype of ``like``."""
    return torch.where(done, 0.0, factor.to(like.dtype) if isinstance(factor, Tensor) else like.new_full((), factor))
