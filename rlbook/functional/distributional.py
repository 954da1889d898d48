"""Values as distributions: probabilities of fixed atoms (C51) or equally probable atoms that move (quantiles).

Atoms are the last dimension. Targets are not detached: call under ``torch.no_grad()``; the losses detach them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlbook.errors import ConfigError, SpecError, explain
from rlbook.functional._checks import check_aligned, check_factor, describe


def bellman_atoms(reward: Tensor, next_atoms: Tensor, terminated: Tensor, gamma: float | Tensor) -> Tensor:
    """Return the atoms of the target distribution, ``r + gamma (1 - terminated) z'``: each atom is moved, its probability kept.

    Args:
        reward: floating ``[*]``.
        next_atoms: atoms ``z'`` of the next state, ``[*, N]``, or ``[N]`` where all states share them.
        terminated: the step ended in a terminal state, bool ``[*]``.
        gamma: discount, in [0, 1]; a tensor broadcasts to the reward.

    Returns:
        ``[*, N]``.

    Raises:
        SpecError: a shape or dtype does not fit the reward.
        ConfigError: ``gamma`` is not in [0, 1].

    Source: Bellemare et al., A Distributional Perspective on Reinforcement Learning (2017), eq. 7.
    """
    check_aligned(reward=reward, terminated=terminated)
    check_factor(reward, gamma=gamma)
    if next_atoms.ndim != 1:
        check_aligned(reward=reward, next_atoms=next_atoms[..., 0])
    gamma = gamma.unsqueeze(-1) if isinstance(gamma, Tensor) and gamma.ndim else gamma
    return reward.unsqueeze(-1) + gamma * torch.where(terminated.unsqueeze(-1), 0.0, next_atoms)


def categorical_projection(atoms: Tensor, probs: Tensor, support: Tensor) -> Tensor:
    """Project a distribution onto fixed atoms: each probability goes to the two neighbours on the support, more to the nearer.

    ::

        b_j = (clip(z_j, v_min, v_max) - v_min) / dz
        m_i = sum_j max(0, 1 - |b_j - i|) p_j

    It keeps the total, and the mean as well where no atom lies outside ``[v_min, v_max]``.

    Args:
        atoms: where the distribution has its atoms ``z_j``, floating ``[*, N]``.
        probs: their probabilities, ``[*, N]``.
        support: equally spaced, increasing, ``[M]`` with ``M`` at least 2.

    Returns:
        Probabilities on the support, ``[*, M]``.

    Raises:
        SpecError: the shapes differ, or ``support`` is not one dimension of at least 2 atoms.

    Source: Bellemare et al., A Distributional Perspective on Reinforcement Learning (2017), eq. 7 and algorithm 1.
    """
    check_aligned(atoms=atoms, probs=probs)
    if support.ndim != 1 or len(support) < 2:
        raise SpecError(explain("support", "[M] with M at least 2", describe(support), "Pass torch.linspace(-10, 10, 51)"))
    last = len(support) - 1
    low = support[0]
    b = ((atoms - low) * (last / (support[-1] - low))).clamp(0.0, last).to(probs.dtype)
    below = b.floor().clamp(max=last - 1.0).nan_to_num(0.0)  # what is no number stays in the masses
    above_share = (b - below) * probs
    index = below.long()
    mass = probs.new_zeros(*probs.shape[:-1], last + 1)
    return mass.scatter_add(-1, index, probs - above_share).scatter_add(-1, index + 1, above_share)


def categorical_cross_entropy(logits: Tensor, target_probs: Tensor) -> Tensor:
    """Return the cross entropy ``L = -sum_i m_i log p_i`` of predicted logits; it is ``KL(m || p)`` up to a constant.

    Args:
        logits: prediction, floating ``[*, M]``.
        target_probs: target ``m``, ``[*, M]``; receives no gradient.

    Returns:
        ``[*]``, to minimise.

    Raises:
        SpecError: the shapes differ.

    Source: Bellemare et al., A Distributional Perspective on Reinforcement Learning (2017), algorithm 1.
    """
    check_aligned(logits=logits, target_probs=target_probs)
    return -(target_probs.detach() * logits.log_softmax(-1)).sum(-1)


def categorical_mean(probs: Tensor, support: Tensor) -> Tensor:
    """Return the expectation ``sum_i p_i z_i``, ``[*]``, of probabilities ``[*, M]`` on atoms ``[M]``."""
    return (probs * support).sum(-1)  # not a matrix product: those lose digits in reduced precision


def quantile_midpoints(count: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
    """Return the middles of equally probable parts, ``tau_i = (2 i + 1) / (2 N)`` for i in 0 .. N-1, ``[N]``.

    Of all N atoms of equal probability, those at these quantiles are nearest to a distribution (in 1-Wasserstein distance).

    Source: Dabney et al., Distributional Reinforcement Learning with Quantile Regression (2018), lemma 2.
    """
    return (torch.arange(count, dtype=dtype or torch.get_default_dtype(), device=device) + 0.5) / count


def quantile_huber_loss(quantiles: Tensor, target: Tensor, tau: Tensor, kappa: float = 1.0) -> Tensor:
    """Return the quantile regression loss, of QR-DQN, IQN and TQC alike.

    ::

        u_ij = y_j - theta_i
        L_k  = u^2 / 2 where |u| <= kappa,  kappa (|u| - kappa / 2) beyond
        L    = sum_i mean_j |tau_i - 1{u_ij < 0}| L_k(u_ij) / kappa
        L    = sum_i mean_j (tau_i - 1{u_ij < 0}) u_ij               for kappa = 0, the limit

    Its minimum over ``theta_i`` is the ``tau_i`` quantile of the target for kappa 0, and near it for a small one.

    Args:
        quantiles: predicted ``theta``, floating ``[*, N]``; members of an ensemble ``[n, *, N]``.
        target: equally probable atoms ``y``, ``[*, M]``, the same for every member; receives no gradient.
        tau: the quantile that each prediction is to be, in (0, 1): ``[N]``, fixed as in QR-DQN and TQC
            (:func:`quantile_midpoints`), or ``[*, N]``, drawn as in IQN.
        kappa: where the loss becomes linear, in units of return, not negative.

    Returns:
        ``[*]`` or ``[n, *]``, to minimise.

    Raises:
        SpecError: the batch shapes differ, or ``tau`` does not fit ``quantiles``.
        ConfigError: ``kappa`` is negative.

    Source: Dabney et al., Distributional Reinforcement Learning with Quantile Regression (2018), eq. 9 and 10; Implicit Quantile
    Networks (2018), eq. 3.
    Deviates: the first paper does not divide by kappa (the same for 1); TQC's has the mean over ``i``, which is ``L / N``.
    """
    if kappa < 0:
        raise ConfigError(explain("kappa", "0 or more", repr(kappa), "Pass kappa=1.0"))
    batch = quantiles.shape[:-1]
    if target.shape[:-1] not in (batch, batch[1:]):
        raise SpecError(explain("target", f"[*, M] with * = {list(batch)}", describe(target), "Give one row of atoms per row"))
    if tau.shape not in (quantiles.shape, quantiles.shape[1:], quantiles.shape[-1:]):
        raise SpecError(explain("tau", f"[N] or {list(quantiles.shape)}", describe(tau), "Give each prediction its quantile"))
    u = target.detach().unsqueeze(-2) - quantiles.unsqueeze(-1)
    weight = (tau.unsqueeze(-1) - (u < 0).to(u.dtype)).abs()
    size = u.abs()
    if kappa > 0:
        small = size.clamp(max=kappa)
        size = small * (size - 0.5 * small) / kappa
    return (weight * size).mean(-1).sum(-1)


def truncated_atoms(members: Tensor, drop: int) -> Tensor:
    """Pool the atoms of an ensemble and leave out the largest: TQC's remedy for values that are too high.

    Args:
        members: atoms of each member, floating ``[n, *, M]``.
        drop: how many atoms to leave out for each member, in 0 .. M-1: ``n drop`` of the pool.

    Returns:
        ``[*, n (M - drop)]``, increasing.

    Raises:
        ConfigError: ``drop`` is out of range.

    Source: Kuznetsov et al., Controlling Overestimation Bias with Truncated Mixture of Continuous Distributional Quantile Critics
    (2020), section 3.
    """
    count, atoms = members.shape[0], members.shape[-1]
    if not 0 <= drop < atoms:
        raise ConfigError(explain("drop", f"in 0 .. {atoms - 1}", repr(drop), "Pass for example drop=2"))
    pool = members.movedim(0, -2).flatten(-2)
    return pool.sort(-1).values[..., : count * (atoms - drop)]
