"""Maximum a posteriori policy optimisation: reweigh drawn actions by their value, then fit the policy to them within bounds.

Actions drawn for the same state come first, ``[S, *]``, where ``*`` are the states. Multipliers (the temperature, the alphas) are
positive, and each has a loss whose gradient reaches nothing else.
"""

from __future__ import annotations

import math

from torch import Tensor

from rlbook.functional._checks import check_aligned, check_positive


def mpo_weights(values: Tensor, temperature: Tensor) -> Tensor:
    """Return the weight of each drawn action (the E-step), ``q_i = exp(Q_i / eta) / sum_k exp(Q_k / eta)``.

    Args:
        values: ``Q(s, a_i)`` of actions drawn from the target policy, floating ``[S, *]``.
        temperature: ``eta``, positive, in units of return: high weighs all alike, low only the best.

    Returns:
        ``[S, *]``, summing to 1 over the actions, without gradient.

    Source: Abdolmaleki et al., Maximum a Posteriori Policy Optimisation (2018), section 4 (E-step).
    """
    return (values.detach() / temperature.detach()).softmax(0)


def mpo_temperature_loss(values: Tensor, temperature: Tensor, epsilon: float | Tensor) -> Tensor:
    """Return the dual of the E-step, least where the weights are ``epsilon`` away from uniform: ``KL(q || uniform) = epsilon``.

    ::

        L = eta epsilon + eta log (1/S sum_i exp(Q_i / eta))

    Args:
        values: see :func:`mpo_weights`; receives no gradient.
        temperature: ``eta``, positive; a scalar.
        epsilon: how far the weights may be from uniform on average over states, in nats, positive; 0.1 in the paper.

    Returns:
        ``[*]``, to minimise in ``eta``.

    Raises:
        ConfigError: ``epsilon`` is not positive.

    Source: Abdolmaleki et al., Maximum a Posteriori Policy Optimisation (2018), section 4 (E-step, the dual).
    """
    check_positive(epsilon=epsilon)
    mean_exp = (values.detach() / temperature).logsumexp(0) - math.log(len(values))
    return temperature * (epsilon + mean_exp)


def weighted_likelihood_loss(log_prob: Tensor, weight: Tensor) -> Tensor:
    """Return the loss of the M-step, ``L = -sum_i q_i log pi(a_i|s)``.

    Args:
        log_prob: log-probability of the drawn actions under the learnt policy, floating ``[S, *]``.
        weight: ``q_i``, ``[S, *]``; receives no gradient.

    Returns:
        ``[*]``, to minimise.

    Raises:
        SpecError: the shapes differ.

    Source: Abdolmaleki et al., Maximum a Posteriori Policy Optimisation (2018), section 4 (M-step).
    """
    check_aligned(log_prob=log_prob, weight=weight)
    return -(weight.detach() * log_prob).sum(0)


def decoupled_gaussian_kl(old_mean: Tensor, old_std: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the mean and what the standard deviation add to ``KL(pi_old || pi)`` of Gaussians, per action dimension.

    ::

        C_mean = (mean_old - mean)^2 / (2 std_old^2)
        C_std  = ((std_old / std)^2 - 1) / 2 - log(std_old / std)

    Each is the KL of a policy that keeps the other from ``pi_old``. Bounds of their own let the mean move fast and the standard
    deviation shrink slowly, which keeps exploration alive.

    Args:
        old_mean, old_std: of the policy the actions were drawn from, ``[*, A]``; receive no gradient.
        mean, std: of the learnt policy, ``[*, A]``.

    Returns:
        ``(mean_kl, std_kl)``, each ``[*, A]`` in nats; sum over the action, or bound every dimension by itself.

    Raises:
        SpecError: the shapes differ.

    Source: Abdolmaleki et al., Relative Entropy Regularized Policy Iteration (2018), the decoupled objective.
    """
    check_aligned(old_mean=old_mean, old_std=old_std, mean=mean, std=std)
    old_mean, old_std = old_mean.detach(), old_std.detach()
    ratio = old_std / std
    return 0.5 * ((old_mean - mean) / old_std).square(), 0.5 * (ratio.square() - 1.0) - ratio.log()


def gaussian_kl(old_mean: Tensor, old_std: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return ``KL(pi_old || pi)`` of Gaussians with independent dimensions, ``[*]`` in nats, of parameters ``[*, A]``.

    ::

        sum_d log(std / std_old) + (std_old^2 + (mean_old - mean)^2) / (2 std^2) - 1/2

    The old parameters receive no gradient. With a squashed action (tanh) it is the same number.

    Raises:
        SpecError: the shapes differ.

    Source: Kingma and Welling, Auto-Encoding Variational Bayes (2014), appendix B, for two Gaussians.
    """
    check_aligned(old_mean=old_mean, old_std=old_std, mean=mean, std=std)
    old_mean, old_std = old_mean.detach(), old_std.detach()
    moments = (old_std.square() + (old_mean - mean).square()) / std.square()
    return (0.5 * (moments - 1.0) + (std / old_std).log()).sum(-1)


def lagrangian_losses(kl: Tensor, multiplier: Tensor, epsilon: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return the losses that keep a KL below a bound: a penalty for the policy, and the multiplier's own.

    ::

        L_policy     = sg(alpha) KL
        L_multiplier = alpha (epsilon - sg(KL))          alpha rises while KL > epsilon

    with ``sg`` without gradient.

    Args:
        kl: mean over states, a scalar, or one per action dimension ``[A]``.
        multiplier: ``alpha``, positive, of the shape of ``kl``.
        epsilon: the bound, in nats, positive.

    Returns:
        ``(policy, multiplier)``, each of the shape of ``kl``, to minimise.

    Raises:
        SpecError: the shapes differ.
        ConfigError: ``epsilon`` is not positive.

    Source: Abdolmaleki et al., Maximum a Posteriori Policy Optimisation (2018), section 4 (M-step with a hard constraint).
    """
    check_aligned(kl=kl, multiplier=multiplier)
    check_positive(epsilon=epsilon)
    return multiplier.detach() * kl, multiplier * (epsilon - kl.detach())
