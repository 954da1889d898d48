"""What a policy is worth, from episodes that another policy made: importance sampling, doubly robust, and intervals.

Episodes are rows ``[E, T]``, shorter ones padded; ``mask`` is true on the real steps, and nothing else is read. ``pi`` is the
target policy, the one to be judged, and ``b`` the behaviour policy, the one that acted. With the cumulative ratio

    rho_{0:t} = prod_{k <= t} pi(a_k|s_k) / b(a_k|s_k)

an average over the episodes of ``b``, weighted by ``rho``, is one over the episodes of ``pi``: this needs ``b(a|s) > 0`` wherever
``pi(a|s) > 0``. Every estimator here is a sum of ratios of means over episodes (:class:`Contributions`): one bootstrap and one
interval serve them all. Nothing is detached: call under ``torch.no_grad()``, best with float64.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from rlbook.errors import ConfigError, SpecError, explain
from rlbook.functional._checks import check_aligned, check_fraction, check_interval, describe

_BLOCK = 2**20  # how many draws a bootstrap holds at once


class Contributions(NamedTuple):
    """What each episode adds to an estimate ``V = sum_k mean_i(numerator_ik) / mean_i(denominator_ik)``.

    The denominator is 1 in the ordinary estimators, which are plain means, and the importance ratio in the weighted ones.
    """

    numerator: Tensor
    """``[E, K]``."""
    denominator: Tensor
    """``[E, K]``, not negative."""

    @property
    def per_episode(self) -> Tensor:
        """One number per episode, ``[E]``, whose mean is the estimate; independent of each other in ordinary estimators only."""
        return (self.numerator / self.denominator.mean(0)).sum(-1)

    @property
    def value(self) -> Tensor:
        """The estimate, a scalar; NaN where a weighted estimator finds no episode that the target policy could have made."""
        return self.per_episode.mean()


def episode_index(done: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the steps of each episode lie in a rollout, to gather them as padded rows.

    Args:
        done: the step ended its episode, bool ``[N, T]``. Each row starts with a new episode, and ends the one that is under way.

    Returns:
        ``(index, mask)``, int64 and bool ``[E, L]``, with ``L`` the longest episode: ``x.flatten(0, 1)[index]`` are the episodes
        of an entry ``x`` ``[N, T, ...]``, in order, and ``mask`` says which steps are real.

    Raises:
        SpecError: ``done`` is not bool ``[N, T]``, or holds no step.

    Example:
        >>> episode_index(torch.tensor([[False, True, False]]))[0]
        tensor([[0, 1],
                [2, 2]])
    """
    if done.ndim != 2 or done.dtype is not torch.bool or done.numel() == 0:
        fix = "Pass data['next', 'done']; a flat row of steps needs done.unsqueeze(0)"
        raise SpecError(explain("done", "bool [N, T], not empty", describe(done), fix))
    begins = done.roll(1, -1)
    begins[:, 0] = True
    start = begins.flatten().nonzero().squeeze(-1)
    end = torch.cat([start[1:], start.new_tensor([done.numel()])])
    step = torch.arange(int((end - start).max()), device=done.device)
    index = start.unsqueeze(-1) + step
    return index.minimum(end.unsqueeze(-1) - 1), index < end.unsqueeze(-1)


def cumulative_log_ratio(log_prob: Tensor, behavior_log_prob: Tensor, mask: Tensor) -> Tensor:
    """Return ``log rho_{0:t} = sum_{k <= t} log pi(a_k|s_k) - log b(a_k|s_k)``; constant after the end of an episode.

    A check of the data: the mean of ``rho_{0:t}`` over episodes is 1 at every step, up to noise. If it is not, the behaviour
    log-probabilities are not those of the policy that acted.

    Args:
        log_prob: log-probability of the stored action under the target policy, floating ``[E, T]``; ``-inf`` is allowed.
        behavior_log_prob: the same under the policy that acted, ``[E, T]``.
        mask: which steps are real, bool ``[E, T]``; in each row the true ones come first.

    Returns:
        ``[E, T]``.

    Raises:
        SpecError: shapes differ, or ``mask`` is not as above.

    Source: Sutton and Barto, Reinforcement Learning (2018), eq. 5.3.
    """
    check_aligned(log_prob=log_prob, behavior_log_prob=behavior_log_prob, mask=mask)
    _check_mask(mask)
    return torch.where(mask, log_prob - behavior_log_prob, 0.0).cumsum(-1)


def importance_sampling(
    reward: Tensor, log_prob: Tensor, behavior_log_prob: Tensor, mask: Tensor, gamma: float, *, weighted: bool = False
) -> Contributions:
    """Weigh each episode's return with the ratio of the whole episode.

    ::

        G_i = sum_t gamma^t r_t
        V   = mean_i(rho_{0:T-1} G_i)                           ordinary: unbiased, its variance grows exponentially with T
        V   = sum_i rho_{0:T-1} G_i / sum_i rho_{0:T-1}         weighted (self-normalised): biased, consistent, far less variance

    Args:
        reward: reward of each step, floating ``[E, T]``.
        log_prob, behavior_log_prob, mask: see :func:`cumulative_log_ratio`.
        gamma: discount per step, in [0, 1].
        weighted: divide by the sum of the ratios instead of their number.

    Returns:
        Contributions with ``K = 1``.

    Raises:
        SpecError: a shape or dtype does not fit the reward, or ``mask`` has gaps.
        ConfigError: ``gamma`` is not in [0, 1].

    Source: Sutton and Barto, Reinforcement Learning (2018), eq. 5.5 (ordinary) and 5.6 (weighted).
    """
    reward, log_ratio, discount = _prepare(reward, log_prob, behavior_log_prob, mask, gamma)
    return _weigh((discount * reward).sum(-1, keepdim=True), log_ratio[:, -1:], weighted)


def per_decision_importance_sampling(
    reward: Tensor, log_prob: Tensor, behavior_log_prob: Tensor, mask: Tensor, gamma: float, *, weighted: bool = False
) -> Contributions:
    """Weigh each reward with the ratio of the actions up to it: what comes later cannot have caused it.

    ::

        V = sum_t gamma^t mean_i(rho_{0:t} r_t)                             ordinary: unbiased
        V = sum_t gamma^t sum_i rho_{0:t} r_t / sum_i rho_{0:t}             weighted: biased, consistent

    Args: see :func:`importance_sampling`.

    Returns:
        Contributions with ``K = T``.

    Raises:
        SpecError: a shape or dtype does not fit the reward, or ``mask`` has gaps.
        ConfigError: ``gamma`` is not in [0, 1].

    Source: Precup, Sutton and Singh, Eligibility Traces for Off-Policy Policy Evaluation (2000); Sutton and Barto, eq. 5.15.
    The weighted form divides step by step, as in Thomas and Brunskill (2016); episodes that are over keep their last ratio.
    """
    reward, log_ratio, discount = _prepare(reward, log_prob, behavior_log_prob, mask, gamma)
    return _weigh(discount * reward, log_ratio, weighted)


def doubly_robust(
    reward: Tensor,
    log_prob: Tensor,
    behavior_log_prob: Tensor,
    mask: Tensor,
    gamma: float,
    action_value: Tensor,
    state_value: Tensor,
    *,
    weighted: bool = False,
) -> Contributions:
    """Correct a value function with importance sampling: the better the values, the less is left to weigh.

    ::

        V_t = V(s_t) + rho_t (r_t + gamma V_{t+1} - Q(s_t, a_t)),   estimate: mean_i(V_0)
            = sum_t gamma^t (rho_{0:t} (r_t - Q(s_t, a_t)) + rho_{0:t-1} V(s_t))

    Unbiased with any ``Q``, if ``V(s) = sum_a pi(a|s) Q(s, a)`` and neither was fitted to these episodes; without variance where
    ``Q`` is exact and the environment deterministic. The weighted form divides each ``rho_{0:t}`` by its mean over episodes.

    Args:
        reward, log_prob, behavior_log_prob, mask, gamma, weighted: see :func:`importance_sampling`.
        action_value: ``Q(s_t, a_t)`` of the target policy, ``[E, T]``.
        state_value: ``V(s_t) = E_pi Q(s_t, a)``, ``[E, T]``.

    Returns:
        Contributions with ``K = 2 T``.

    Raises:
        SpecError: a shape or dtype does not fit the reward, or ``mask`` has gaps.
        ConfigError: ``gamma`` is not in [0, 1].

    Source: Jiang and Li, Doubly Robust Off-policy Value Evaluation for Reinforcement Learning (2016), eq. 10. Weighted: Thomas
    and Brunskill, Data-Efficient Off-Policy Policy Evaluation for Reinforcement Learning (2016), the WDR estimator.
    """
    check_aligned(reward=reward, action_value=action_value, state_value=state_value)
    reward, log_ratio, discount = _prepare(reward, log_prob, behavior_log_prob, mask, gamma)
    error = torch.where(mask, reward - action_value, 0.0)
    before = torch.cat([torch.zeros_like(log_ratio[:, :1]), log_ratio[:, :-1]], -1)
    value = torch.where(mask, state_value, 0.0)
    return _weigh(torch.cat([discount * error, discount * value], -1), torch.cat([log_ratio, before], -1), weighted)


def effective_sample_size(log_ratio: Tensor) -> Tensor:
    """Return how many episodes of the target policy the weighted ones are worth, ``(sum_i w_i)^2 / sum_i w_i^2``.

    Args:
        log_ratio: ``log w`` of each episode, ``[E, *]``, for example from :func:`cumulative_log_ratio`.

    Returns:
        ``[*]``, from 1 (one episode has all the weight) to E (all weigh the same); NaN where all weights are 0.

    Source: Kish, Survey Sampling (1965); Owen, Monte Carlo Theory, Methods and Examples (2013), chapter 9.
    """
    return 1.0 / log_ratio.softmax(0).square().sum(0)


def bootstrap_interval(
    contributions: Contributions,
    level: float = 0.95,
    *,
    resamples: int = 1000,
    bca: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Return an interval for the value from episodes drawn again with replacement.

    The percentile interval cuts the tails of the estimates from resampled episodes. BCa moves its cuts for the bias ``z0`` and
    the skewness ``a`` of the estimate:

    ::

        z0 = Phi^-1(share of resamples below the estimate),  a = sum d_i^3 / (6 (sum d_i^2)^1.5)
        cut(z) = Phi(z0 + (z0 + z) / (1 - a (z0 + z)))

    with ``d_i`` the mean of the leave-one-out estimates minus the i-th. A resample can only hold weights that were seen: with a
    small :func:`effective_sample_size` both intervals are far too narrow.

    Args:
        contributions: of at least 2 episodes.
        level: nominal probability that the interval covers the value, in (0, 1).
        resamples: how often the episodes are drawn again.
        bca: correct bias and skewness.
        generator: of the draws, on the device of the contributions; None is torch's own.

    Returns:
        ``(low, high)``, scalars.

    Raises:
        ConfigError: fewer than 2 episodes, ``level`` not in (0, 1), or ``resamples`` not positive.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), eq. 14.10, 14.14 and 14.15.
    """
    count = check_interval(contributions.numerator, level)
    if resamples < 1:
        raise ConfigError(explain("resamples", "positive", repr(resamples), "Pass for example resamples=1000"))
    both = torch.cat(contributions, -1)
    samples, block = [], max(1, _BLOCK // count)
    for start in range(0, resamples, block):
        rows = torch.arange(min(block, resamples - start), device=both.device)
        drawn = torch.randint(count, (len(rows), count), generator=generator, device=both.device) + count * rows.unsqueeze(-1)
        times = torch.bincount(drawn.flatten(), minlength=len(rows) * count).reshape(-1, count)  # how often each was drawn
        samples.append(_ratios(times.to(both.dtype) @ both))
    estimates = torch.cat(samples)
    tails = both.new_tensor([(1 - level) / 2, (1 + level) / 2])
    if bca:
        tails = _bca_cuts(both, estimates, torch.special.ndtri(tails))
    low, high = estimates.nanquantile(tails).unbind()
    return low, high


def student_t_interval(contributions: Contributions, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """Return ``V -+ t s / sqrt(E)``, with ``s`` the standard deviation over episodes and ``t`` the quantile of Student's t.

    For the weighted estimators ``s`` is that of their linearisation (delta method). Too narrow where the ratios have heavy tails.

    Args:
        contributions: of at least 2 episodes.
        level: nominal probability that the interval covers the value, in (0, 1).

    Returns:
        ``(low, high)``, scalars.

    Raises:
        ConfigError: fewer than 2 episodes, or ``level`` not in (0, 1).

    Source: Thomas, Theocharous and Ghavamzadeh, High Confidence Policy Improvement (2015); Owen, Monte Carlo Theory, Methods
    and Examples (2013), chapter 9, for ratios.
    """
    count = check_interval(contributions.numerator, level)
    numerator, denominator = contributions
    ratio = numerator.mean(0) / denominator.mean(0)
    influence = ((numerator - ratio * denominator) / denominator.mean(0)).sum(-1)  # what an episode moves the estimate, times E
    radius = student_t_quantile((1 + level) / 2, count - 1) * influence.square().sum().div(count * (count - 1)).sqrt()
    return contributions.value - radius, contributions.value + radius


def empirical_bernstein_interval(x: Tensor, low: float, high: float, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """Return an interval for the mean of bounded, independent numbers that holds with any number of them.

    ::

        mean -+ (sqrt(2 s^2 ln(2 / delta) / n) + 7 (high - low) ln(2 / delta) / (3 (n - 1))),   delta = (1 - level) / 2

    Args:
        x: ``Contributions.per_episode`` of an ordinary estimator, ``[E]``.
        low, high: bounds known beforehand: of a return in ``[0, G]`` under ratios up to ``rho``, they are 0 and ``rho G``.
        level: probability that the interval covers the mean, in (0, 1); each side may fail half the rest.

    Returns:
        ``(low, high)``, scalars.

    Raises:
        ConfigError: a number outside the bounds, fewer than 2, or ``level`` not in (0, 1).

    Source: Maurer and Pontil, Empirical Bernstein Bounds and Sample Variance Penalization (2009), theorem 4.
    """
    check_interval(x, level)
    if not bool(((x >= low) & (x <= high)).all()):
        fix = "Give bounds of a return times a ratio, or take high_confidence_lower_bound, which clips"
        got = f"from {float(x.min()):.4g} to {float(x.max()):.4g}"
        raise ConfigError(explain("x", f"in [low, high] = [{low}, {high}]", got, fix))
    radius = _bernstein_radius(x, high - low, (1 - level) / 2)
    return x.mean() - radius, x.mean() + radius


def high_confidence_lower_bound(x: Tensor, clip: float, level: float = 0.95) -> Tensor:
    """Return what the value exceeds with probability ``level`` at least, however heavy the tail of the ratios.

    Numbers above ``clip`` are lowered to it, which can only lower the mean, and an empirical Bernstein bound holds for the rest.

    Args:
        x: ``Contributions.per_episode`` of ordinary importance sampling with returns that are not negative, ``[E]``.
        clip: where to cut, positive. A good one weighs what is cut against the bound's width; choose it on other episodes.
        level: probability that the bound holds, in (0, 1).

    Returns:
        A scalar.

    Raises:
        ConfigError: a negative number, ``clip`` not positive, fewer than 2 episodes, or ``level`` not in (0, 1).

    Source: Thomas, Theocharous and Ghavamzadeh, High-Confidence Off-Policy Evaluation (2015), theorem 1 with equal thresholds.
    """
    check_interval(x, level)
    if not clip > 0 or not bool((x >= 0).all()):
        fix = "Shift the rewards so that no return is negative, and give a positive clip"
        raise ConfigError(explain("x and clip", "not negative and positive", f"{float(x.min()):.4g} and {clip}", fix))
    x = x.clamp(max=clip)
    return x.mean() - _bernstein_radius(x, clip, 1 - level)


@cache
def student_t_quantile(probability: float, df: int) -> float:
    """Return the quantile of Student's t distribution with ``df`` degrees of freedom, for a probability of 0.5 or more.

    With ``t = sqrt(df) tan(u)`` the density is proportional to ``cos(u)^(df - 1)``, which is summed up.

    Example:
        >>> round(student_t_quantile(0.975, 10), 4)
        2.2281
    """
    reach = min(math.pi / 2, 12.0 / math.sqrt(df))  # beyond 12 standard deviations there is nothing
    u = torch.linspace(0.0, reach, 10_001, dtype=torch.float64)
    mass = torch.cumulative_trapezoid(u.cos().clamp(min=0.0) ** (df - 1), u)
    wanted = (2 * probability - 1) * mass[-1]
    i = int(torch.searchsorted(mass, wanted).clamp(1, len(mass) - 1))
    share = float((wanted - mass[i - 1]) / (mass[i] - mass[i - 1]))
    return math.sqrt(df) * math.tan(float(torch.lerp(u[i], u[i + 1], share)))


def _prepare(
    reward: Tensor, log_prob: Tensor, behavior_log_prob: Tensor, mask: Tensor, gamma: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rewards with zeros for padding, the cumulative log ratio and ``gamma^t``."""
    check_aligned(reward=reward, log_prob=log_prob, behavior_log_prob=behavior_log_prob, mask=mask)
    check_fraction(gamma=gamma)
    log_ratio = cumulative_log_ratio(log_prob, behavior_log_prob, mask)
    discount = gamma ** torch.arange(reward.shape[-1], device=reward.device, dtype=reward.dtype)
    return torch.where(mask, reward, 0.0), log_ratio, discount


def _weigh(x: Tensor, log_ratio: Tensor, weighted: bool) -> Contributions:
    """Multiply ``x`` with the ratios; a common factor in numerator and denominator keeps large ratios finite."""
    if not weighted:
        return Contributions(log_ratio.exp() * x, torch.ones_like(x))
    ratio = (log_ratio - log_ratio.amax(0).clamp(min=torch.finfo(x.dtype).min)).exp()
    return Contributions(ratio * x, ratio)


def _ratios(both: Tensor) -> Tensor:
    """Return the estimates from sums (or means) over episodes of numerators and denominators side by side, ``[*, 2 K]``."""
    numerator, denominator = both.chunk(2, -1)
    return (numerator / denominator).sum(-1)


def _bca_cuts(both: Tensor, estimates: Tensor, z: Tensor) -> Tensor:
    """Return the probabilities at which BCa cuts, for normal quantiles ``z``."""
    value, total = _ratios(both.sum(0)), len(estimates)
    below = ((estimates < value).sum() + 0.5 * (estimates == value).sum()) / total
    z0 = torch.special.ndtri(below.to(both.dtype).clamp(0.5 / total, 1 - 0.5 / total))
    left_out = _ratios(both.sum(0) - both)
    d = left_out.nanmean() - left_out.nan_to_num(left_out.nanmean().item())
    a = (d.pow(3).sum() / (6 * d.square().sum().pow(1.5))).nan_to_num(0.0)
    return torch.special.ndtr(z0 + (z0 + z) / (1 - a * (z0 + z)))


def _bernstein_radius(x: Tensor, width: float, delta: float) -> Tensor:
    """Return how far the mean of numbers in an interval of ``width`` may lie below that of ``x``, but for a chance ``delta``."""
    log = math.log(2 / delta)
    return (2 * x.var() * log / len(x)).sqrt() + 7 * width * log / (3 * (len(x) - 1))


def _check_mask(mask: Tensor) -> None:
    """Raise SpecError unless every row is an episode from its first step on."""
    if mask.ndim != 2 or mask.dtype is not torch.bool or mask.numel() == 0:
        fix = "Give episodes as padded rows, as episode_index(done) makes them"
        raise SpecError(explain("mask", "bool [E, T], not empty", describe(mask), fix))
    if not bool(mask[:, 0].all()) or bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        fix = "Pad at the end, as episode_index(done) does"
        raise SpecError(explain("Each row of mask", "true up to the end of the episode, false after it", "another pattern", fix))
