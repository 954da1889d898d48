"""Statistics: how good the value is, numbers on one scale, moments of a stream, and what a few runs say about an algorithm."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rlbook.errors import SpecError, explain
from rlbook.functional._checks import check_aligned, check_interval, check_positive, describe


def explained_variance(pred: Tensor, target: Tensor) -> Tensor:
    """Return the share of the target's variance that the prediction explains, ``1 - Var(target - pred) / Var(target)``.

    1 is a perfect prediction, 0 is no better than a constant, below 0 is worse than a constant. A constant offset goes unseen.

    Args:
        pred: prediction, usually the value, ``[*]``.
        target: what came, usually the value target, ``[*]``.

    Returns:
        A scalar, at most 1; NaN where the target does not vary.

    Raises:
        SpecError: the shapes differ.

    Source: Dhariwal et al., OpenAI Baselines (2017), ``explained_variance``.
    """
    check_aligned(pred=pred, target=target)
    variance = (target - target.flatten()[:1]).var(correction=0)  # exactly 0 for a constant
    return (1.0 - (target - pred).var(correction=0) / variance).where(variance > 0, float("nan"))


def normalize(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Return ``(x - mean) / (std + eps)`` over all elements: mean 0, standard deviation 1.

    Args:
        x: for example the advantages of a minibatch, floating ``[*]``.
        eps: keeps equal numbers from dividing by 0, positive.

    Returns:
        ``[*]``; zeros for equal numbers.

    Source: Dhariwal et al., OpenAI Baselines (2017), ``ppo2``: the population's standard deviation (divide by n).
    Deviates: Stable-Baselines3 and CleanRL divide by n - 1, which is 0.8% more for 64 elements and NaN for one.
    """
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    unit = (wide - wide.mean()) / (wide.std(correction=0) + eps)
    varies = (x != x.flatten()[:1]).any()  # of equal numbers rounding leaves something that eps does not hide
    return unit.where(varies, 0.0).to(x.dtype)


def merge_moments(
    mean: Tensor, var: Tensor, count: float | Tensor, other_mean: Tensor, other_var: Tensor, other_count: float | Tensor
) -> tuple[Tensor, Tensor, float | Tensor]:
    """Return mean, variance and count of two sets of numbers from those of each, without cancellation.

    ::

        d    = mean_B - mean_A,   n = n_A + n_B
        mean = mean_A + d n_B / n
        var  = (n_A var_A + n_B var_B + d^2 n_A n_B / n) / n

    Args:
        mean, var, count: of the first set: mean and population variance, floating ``[*]``, and how many, a number or a
            scalar, 0 or more.
        other_mean, other_var, other_count: of the second, which is not empty.

    Returns:
        ``(mean, var, count)`` of both together.

    Raises:
        SpecError: the shapes differ.

    Source: Chan, Golub and LeVeque, Algorithms for Computing the Sample Variance (1983), eq. 2.1.
    """
    check_aligned(mean=mean, var=var, other_mean=other_mean, other_var=other_var)
    total = count + other_count
    share = other_count / total
    delta = other_mean - mean
    return mean + delta * share, torch.lerp(var, other_var, share) + delta.square() * (share * (1.0 - share)), total


def interquartile_mean(x: Tensor) -> Tensor:
    """Return the mean of the middle half along the last dimension: ``floor(N / 4)`` numbers are left out at either end.

    It varies less from run to run than the median, and is less easily moved by outliers than the mean.

    Args:
        x: floating ``[*, N]``, not empty.

    Returns:
        ``[*]``; NaN where a number is NaN.

    Source: Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice (2021), section 4.3.
    """
    cut = x.shape[-1] // 4
    return x.sort(-1).values[..., cut : x.shape[-1] - cut].mean(-1).where(~x.isnan().any(-1), math.nan)


def stratified_bootstrap_interval(
    scores: Tensor,
    statistic: Callable[[Tensor], Tensor] = interquartile_mean,
    level: float = 0.95,
    *,
    resamples: int = 2000,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Return an interval for a statistic of scores of several runs on several tasks, from runs drawn again within each task.

    The percentile interval. With fewer than about 10 runs in all it is too narrow, like every bootstrap.

    Args:
        scores: one per run and task, floating ``[R, K]``, or ``[R]`` for one task; normalise tasks of different scales before.
        statistic: from ``[*, R K]`` to ``[*]``; ``lambda x: x.mean(-1)`` gives the mean.
        level: nominal probability that the interval covers the statistic, in (0, 1).
        resamples: how often the runs are drawn again.
        generator: of the draws, on the device of the scores; None is torch's own.

    Returns:
        ``(low, high)``, scalars.

    Raises:
        SpecError: ``scores`` is not ``[R]`` or ``[R, K]``.
        ConfigError: fewer than 2 runs, ``level`` not in (0, 1), or ``resamples`` not positive.

    Source: Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice (2021), section 4.1.
    """
    if scores.ndim not in (1, 2):
        raise SpecError(explain("scores", "[R] or [R, K]", describe(scores), "Put runs first: scores.T"))
    scores = scores.reshape(len(scores), -1)
    runs = check_interval(scores, level, "Runs")
    check_positive(resamples=resamples)
    drawn = torch.randint(runs, (resamples, *scores.shape), generator=generator, device=scores.device)
    samples = scores.expand(resamples, -1, -1).gather(1, drawn)
    low, high = statistic(samples.flatten(1)).quantile(scores.new_tensor([(1 - level) / 2, (1 + level) / 2])).unbind()
    return low, high


def probability_of_improvement(x: Tensor, y: Tensor) -> Tensor:
    """Return how likely a run of ``x`` beats one of ``y`` on a task drawn at random; equals count half.

    ::

        mean_k mean_ij (1{x_ik > y_jk} + 1{x_ik = y_jk} / 2)

    Args:
        x: scores of one algorithm, ``[R, K]``, or ``[R]`` for one task.
        y: scores of the other, ``[S, K]`` or ``[S]``.

    Returns:
        A scalar in [0, 1]; 0.5 for equal algorithms, NaN where a score is NaN.

    Raises:
        SpecError: the tasks differ in number.

    Source: Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice (2021), section 4.3.
    """
    if x.shape[1:] != y.shape[1:]:
        raise SpecError(explain("y", f"[S, *{list(x.shape[1:])}]", describe(y), "Give both the same tasks, in one order"))
    difference = x.unsqueeze(1) - y.unsqueeze(0)
    return (0.5 * (1.0 + difference.sign())).mean().where(~(x.isnan().any() | y.isnan().any()), math.nan)
