"""Statistics of a batch: how good the value is, and advantages on one scale."""

from __future__ import annotations

from torch import Tensor

from rlbook.functional._checks import check_aligned


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
    variance = target.var(correction=0)
    return (1.0 - (target - pred).var(correction=0) / variance).where(variance > 0, float("nan"))


def normalize(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Return ``(x - mean) / (std + eps)`` over all elements: mean 0, standard deviation 1.

    Args:
        x: for example the advantages of a minibatch, floating ``[*]``.
        eps: keeps equal numbers from dividing by 0, positive.

    Returns:
        ``[*]``; zeros for one element.

    Source: Dhariwal et al., OpenAI Baselines (2017), ``ppo2``: the population's standard deviation (divide by n).
    Deviates: Stable-Baselines3 and CleanRL divide by n - 1, which is 0.8% more for 64 elements and NaN for one.
    """
    return (x - x.mean()) / (x.std(correction=0) + eps)
