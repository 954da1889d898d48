"""Invertible maps that bring returns of any size to a range a network can learn, and numbers as probabilities of fixed bins."""

from __future__ import annotations

import torch
from torch import Tensor

from rlbook.errors import SpecError, explain
from rlbook.functional._checks import describe


def symlog(x: Tensor) -> Tensor:
    """Return ``sign(x) log(1 + |x|)``, ``[*]``: near 0 the identity (slope 1), far from it a logarithm.

    Source: Hafner et al., Mastering Diverse Domains through World Models (2023), eq. 9.
    """
    return x.clamp(min=0).log1p() - (-x).relu().log1p()  # at 0, clamp has slope 1 and relu slope 0: together 1


def symexp(x: Tensor) -> Tensor:
    """Return ``sign(x) (exp(|x|) - 1)``, ``[*]``: the inverse of :func:`symlog`.

    Source: Hafner et al., Mastering Diverse Domains through World Models (2023), eq. 9.
    """
    return x.clamp(min=0).expm1() - (-x).relu().expm1()


def squash_value(x: Tensor, eps: float = 1e-3) -> Tensor:
    """Return ``h(x) = sign(x) (sqrt(|x| + 1) - 1) + eps x``, ``[*]``: R2D2's scale of values.

    Args:
        x: value or return, floating ``[*]``.
        eps: least slope, not negative; it keeps the inverse from magnifying errors without bound.

    Source: Pohlen et al., Observe and Look Further: Achieving Consistent Performance on Atari (2018), proposition A.2.
    """
    return x / ((x.abs() + 1.0).sqrt() + 1.0) + eps * x  # |x| / (sqrt(|x| + 1) + 1) is sqrt(|x| + 1) - 1, without cancellation


def unsquash_value(y: Tensor, eps: float = 1e-3) -> Tensor:
    """Return the inverse of :func:`squash_value`, ``[*]``. R2D2's target is ``h(r + gamma^n h^-1(Q'))``.

    ::

        h^-1(y) = sign(y) (((sqrt(1 + 4 eps (|y| + 1 + eps)) - 1) / (2 eps))^2 - 1)

    computed as ``u (|u| + 2)`` with ``u`` the root of ``eps u |u| + (1 + 2 eps) u = y``: as precise near 0 as far from it, and
    valid for ``eps = 0``.

    Source: Pohlen et al., Observe and Look Further: Achieving Consistent Performance on Atari (2018), proposition A.2.
    """
    b = 1.0 + 2.0 * eps
    u = 2.0 * y / (b + (b * b + 4.0 * eps * y.abs()).sqrt())
    return u * (u.abs() + 2.0)


def two_hot(x: Tensor, bins: Tensor) -> Tensor:
    """Return the probabilities of the two bins around ``x`` whose mean is ``x``.

    ::

        p_i = (b_{i+1} - x) / (b_{i+1} - b_i),  p_{i+1} = 1 - p_i        where b_i <= x <= b_{i+1}

    :func:`~rlbook.functional.distributional.categorical_mean` is the inverse, inside the range of the bins; ``x`` is clipped to
    it. Trained by :func:`~rlbook.functional.distributional.categorical_cross_entropy`, no error has a large gradient.

    Args:
        x: floating ``[*]``; receives no gradient.
        bins: increasing, ``[M]`` with ``M`` at least 2; not necessarily equally spaced.

    Returns:
        ``[*, M]``.

    Raises:
        SpecError: ``bins`` is not one dimension of at least 2, or ``x`` is not floating.

    Source: Schrittwieser et al., MuZero (2020), appendix F; Hafner et al., Mastering Diverse Domains through World Models (2023).
    """
    if bins.ndim != 1 or len(bins) < 2:
        raise SpecError(explain("bins", "[M] with M at least 2", describe(bins), "Pass torch.linspace(-20, 20, 41)"))
    if not x.is_floating_point():
        raise SpecError(explain("x", "floating", describe(x), "Convert it: x.float()"))
    x = x.detach().to(torch.promote_types(x.dtype, bins.dtype))
    below = (torch.searchsorted(bins, x.contiguous(), right=True) - 1).clamp(0, len(bins) - 2).unsqueeze(-1)
    low, high = bins[below], bins[below + 1]
    share = ((x.unsqueeze(-1) - low) / (high - low)).clamp(0.0, 1.0)
    encoded = x.new_zeros(*x.shape, len(bins))
    return encoded.scatter(-1, below, 1.0 - share).scatter(-1, below + 1, share)
