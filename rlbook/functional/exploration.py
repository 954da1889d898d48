"""Exploration as pure functions: schedules of a step, probabilities of actions, and correlated noise from independent noise.

A schedule takes a number and returns a number, or a tensor of steps and returns a tensor: one call gives a whole rollout's.
"""

from __future__ import annotations

import math
from typing import TypeVar, cast

import torch
from torch import Tensor

from rlbook.errors import SpecError, explain
from rlbook.functional._checks import check_fraction, check_positive, describe
from rlbook.functional.scan import reverse_scan

Step = TypeVar("Step", float, Tensor)


def linear_schedule(step: Step, start: float, end: float, steps: float) -> Step:
    """Return ``start + (end - start) f`` with ``f = clip(step / steps, 0, 1)``.

    Args:
        step: steps so far, a number or ``[*]``.
        start, end: at step 0, and from ``steps`` on.
        steps: how long it takes, positive.

    Returns:
        A number, or ``[*]``.

    Raises:
        ConfigError: ``steps`` is not positive.

    Source: Mnih et al., Human-Level Control through Deep Reinforcement Learning (2015), methods.
    """
    return start + (end - start) * _progress(step, steps)


def exponential_schedule(step: Step, start: float, end: float, steps: float) -> Step:
    """Return ``start (end / start)^f`` with ``f = clip(step / steps, 0, 1)``: the same ratio from each step to the next.

    Args and returns: see :func:`linear_schedule`; ``start`` and ``end`` are positive.

    Raises:
        ConfigError: ``start``, ``end`` or ``steps`` is not positive.
    """
    check_positive(start=start, end=end)
    return cast(Step, start * (end / start) ** _progress(step, steps))


def cosine_schedule(step: Step, start: float, end: float, steps: float) -> Step:
    """Return ``end + (start - end) (1 + cos(pi f)) / 2`` with ``f = clip(step / steps, 0, 1)``: slow, fast, slow.

    Args and returns: see :func:`linear_schedule`.

    Raises:
        ConfigError: ``steps`` is not positive.

    Source: Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts (2017), eq. 5.
    """
    angle = math.pi * _progress(step, steps)
    cosine = angle.cos() if isinstance(angle, Tensor) else math.cos(angle)
    return cast(Step, end + (start - end) * 0.5 * (1.0 + cosine))


def epsilon_greedy_probs(values: Tensor, epsilon: float | Tensor) -> Tensor:
    """Return the probabilities of the epsilon-greedy policy, ``(1 - epsilon) 1{a = argmax Q(s, .)} + epsilon / A``.

    Args:
        values: ``Q(s, .)``, floating ``[*, A]``; ``-inf`` where an action is masked: it gets 0. Of equals the first is greedy.
        epsilon: probability of a uniform draw, in [0, 1]; a number, a scalar or ``[*]``.

    Returns:
        ``[*, A]``, without gradient.

    Raises:
        ConfigError: ``epsilon`` is not in [0, 1].

    Source: Sutton and Barto, Reinforcement Learning (2018), section 5.4.
    """
    check_fraction(epsilon=epsilon)
    values = values.detach()
    epsilon = epsilon.unsqueeze(-1) if isinstance(epsilon, Tensor) else epsilon
    legal = values > -math.inf
    legal = (legal | ~legal.any(-1, keepdim=True)).to(values.dtype)
    uniform = legal / legal.sum(-1, keepdim=True)
    greedy = torch.zeros_like(values).scatter(-1, values.argmax(-1, keepdim=True), 1.0)
    return greedy + epsilon * (uniform - greedy)


def boltzmann_probs(values: Tensor, temperature: float | Tensor) -> Tensor:
    """Return ``softmax(Q / temperature)``: better actions more often, and the policy of soft Q-learning.

    Args:
        values: ``Q(s, .)``, floating ``[*, A]``; ``-inf`` where an action is masked: it gets 0.
        temperature: positive, in units of return; a number, a scalar or ``[*]``.

    Returns:
        ``[*, A]``.

    Raises:
        ConfigError: ``temperature`` is not positive.

    Source: Sutton and Barto, Reinforcement Learning (2018), exercise 2.9 and eq. 13.2.
    """
    check_positive(temperature=temperature)
    temperature = temperature.unsqueeze(-1) if isinstance(temperature, Tensor) else temperature
    return (values / temperature).softmax(-1)


def ornstein_uhlenbeck(
    noise: Tensor, *, theta: float | Tensor = 0.15, sigma: float | Tensor = 0.2, start: Tensor | None = None
) -> Tensor:
    """Return noise that wanders and comes back to 0, from independent noise: ``x_t = (1 - theta) x_{t-1} + sigma n_t``.

    Successive actions then push the same way: over many steps the sum goes ``1 / theta`` times as far. In the long run ``x``
    has the standard deviation ``sigma / sqrt(theta (2 - theta))``, 0.38 with the defaults.

    Args:
        noise: standard normal ``n``, floating ``[T, *]``. Time is *first* here, as in the noise a policy draws for a rollout.
        theta: share that is lost in a step, in [0, 1]; 1 is independent noise. A number or a scalar.
        sigma: standard deviation of what is added in a step, in units of the action.
        start: ``x_{-1}``, the last of the rollout before, ``[*]``; 0 if not given.

    Returns:
        ``x``, ``[T, *]``.

    Raises:
        SpecError: ``noise`` has no time dimension, or ``start`` does not fit.
        ConfigError: ``theta`` is not in [0, 1].

    Source: Uhlenbeck and Ornstein, On the Theory of the Brownian Motion (1930); Lillicrap et al., Continuous Control with Deep
    Reinforcement Learning (2016), section 7, for the numbers.
    Deviates: the path goes on where an episode ends, as the ends are not known when the noise is drawn.
    """
    if noise.ndim == 0:
        raise SpecError(explain("noise", "[T, *], with time first", describe(noise), "Draw torch.randn(steps, *batch, actions)"))
    check_fraction(theta=theta)
    backwards = (sigma * noise).flip(0).movedim(0, -1)
    keep = 1.0 - (theta.to(noise.dtype) if isinstance(theta, Tensor) else theta)
    return reverse_scan(backwards, keep, start).movedim(-1, 0).flip(0)


def _progress(step: Step, steps: float) -> Step:
    check_positive(steps=steps)
    return (step / steps).clamp(0.0, 1.0) if isinstance(step, Tensor) else min(max(step / steps, 0.0), 1.0)
