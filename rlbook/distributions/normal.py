"""Distributions over continuous actions: ``DiagNormal`` and ``TanhNormal``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Self, final

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from rlbook import specs
from rlbook.distributions.base import Distribution, as_event, check_value, sum_event
from rlbook.typing import DeviceLike, Shape

LOG_STD_RANGE = (-20.0, 2.0)
"""``from_params`` clamps the network's ``log_std`` to this range: standard deviations from 2e-9 to 7.4.

Outside it the gradient is zero. Source: Haarnoja et al. 2018, the authors' SAC code.
"""
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


@final
class DiagNormal(Distribution):
    """Normal with independent dimensions: ``x = loc + exp(log_std) * noise``.

    Args:
        loc: mean, float ``[*, *action]``.
        log_std: logarithm of the standard deviation; broadcasts to ``loc``, so ``[*action]`` is one for all states.
        event_ndim: how many of the last dimensions are one action's.

    Example:
        >>> DiagNormal(torch.zeros(2), torch.zeros(2)).entropy()  # log(2 pi e)
        tensor(2.8379)
    """

    has_rsample: ClassVar[bool] = True

    def __init__(self, loc: Tensor, log_std: Tensor, event_ndim: int = 1):
        self.loc = loc
        self.log_std = log_std
        self.event_ndim = event_ndim

    @property
    @override
    def batch_shape(self) -> torch.Size:
        return self.loc.shape[: self.loc.ndim - self.event_ndim]

    @property
    def std(self) -> Tensor:
        """Standard deviation, broadcastable to ``[*, *action]``."""
        return self.log_std.exp()

    @classmethod
    @override
    def base_noise(cls, shape: Shape, generator: torch.Generator | None = None, device: DeviceLike = None) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    @classmethod
    @override
    def num_params(cls, spec: specs.Spec) -> int:
        """Return ``2 A``: the means, then the ``log_std``."""
        if not isinstance(spec, specs.Bounded | specs.Unbounded) or not spec.dtype.is_floating_point:
            raise cls._misfit(spec, "Unbounded or Bounded, of a float dtype")
        return 2 * spec.event_shape.numel()

    @classmethod
    @override
    def from_params(cls, params: Tensor, spec: specs.Spec, mask: Tensor | None = None) -> Self:
        cls._no_mask(mask)
        cls._check_params(params, spec)
        return cls(*_loc_and_log_std(params, spec.event_shape), len(spec.event_shape))

    @override
    def rsample(self, noise: Tensor | None = None) -> Tensor:
        noise = self.base_noise(self.loc.shape, None, self.loc.device) if noise is None else noise
        return torch.addcmul(self.loc, self.std, noise)

    @override
    def sample(self, noise: Tensor | None = None) -> Tensor:
        return self.rsample(noise).detach()

    @override
    def log_prob(self, x: Tensor) -> Tensor:
        """Return ``sum_i -((x_i - loc_i) / std_i)^2 / 2 - log std_i - log(2 pi) / 2``, ``[*]``."""
        check_value(x, self.loc.shape)
        return self.log_prob_of_noise((x - self.loc) * torch.exp(-self.log_std))

    @override
    def sample_with_log_prob(self, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return samples and their log-probabilities, exact however small the deviation. Both carry gradients."""
        noise = self.base_noise(self.loc.shape, None, self.loc.device) if noise is None else noise
        return self.rsample(noise), self.log_prob_of_noise(noise)

    def log_prob_of_noise(self, noise: Tensor, log_slope: Tensor | None = None) -> Tensor:
        """Return the log-density of ``loc + std * noise``, or of a function of it with that ``log |slope|``, ``[*]``."""
        terms = torch.addcmul(-self.log_std, noise, noise, value=-0.5)
        terms = terms if log_slope is None else terms - log_slope
        return sum_event(terms, self.event_ndim) - _LOG_SQRT_2PI * self.loc.shape[self.loc.ndim - self.event_ndim :].numel()

    @override
    def entropy(self) -> Tensor:
        """Return ``sum_i log std_i + log(2 pi e) / 2``, ``[*]``."""
        return sum_event((self.log_std + (0.5 + _LOG_SQRT_2PI)).expand_as(self.loc), self.event_ndim)

    @property
    @override
    def mode(self) -> Tensor:
        return self.loc

    @property
    @override
    def mean(self) -> Tensor:
        return self.loc

    @override
    def kl(self, other: Self) -> Tensor:
        """Return ``sum_i log(s2_i / s1_i) + (s1_i^2 + (m1_i - m2_i)^2) / (2 s2_i^2) - 1/2``, ``[*]``."""
        log_ratio = self.log_std - other.log_std
        distance = (self.loc - other.loc) * torch.exp(-other.log_std)
        return sum_event(0.5 * (torch.exp(2 * log_ratio) + distance * distance - 1) - log_ratio, self.event_ndim)


@final
class TanhNormal(Distribution):
    """A normal squashed into bounds: ``z = loc + exp(log_std) * noise``, ``a = low + (tanh(z) + 1) / 2 * (high - low)``.

    Args:
        loc: mean of ``z``, float ``[*, *action]``.
        log_std: logarithm of the standard deviation of ``z``; broadcasts to ``loc``.
        low: lower bound of the actions: a number, or a tensor that broadcasts to ``loc``.
        high: upper bound, likewise.
        event_ndim: how many of the last dimensions are one action's.

    Source: Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications", appendix C.

    Example:
        >>> TanhNormal(torch.zeros(1), torch.zeros(1), low=0.0, high=10.0).mode
        tensor([5.])
    """

    has_rsample: ClassVar[bool] = True

    def __init__(self, loc: Tensor, log_std: Tensor, low: float | Tensor = -1.0, high: float | Tensor = 1.0, event_ndim: int = 1):
        self.normal = DiagNormal(loc, log_std, event_ndim)
        self.bounds: tuple[Tensor, Tensor] | None = None  # (-1, 1), where tanh alone will do
        if isinstance(low, Tensor) or isinstance(high, Tensor) or (low, high) != (-1.0, 1.0):
            self.bounds = as_bounds(low, high, loc)

    @property
    @override
    def batch_shape(self) -> torch.Size:
        return self.normal.batch_shape

    @classmethod
    @override
    def base_noise(cls, shape: Shape, generator: torch.Generator | None = None, device: DeviceLike = None) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    @classmethod
    @override
    def num_params(cls, spec: specs.Spec) -> int:
        """Return ``2 A``: the means, then the ``log_std``."""
        if not isinstance(spec, specs.Bounded) or not spec.dtype.is_floating_point or not spec.bounded:
            raise cls._misfit(spec, "Bounded, with finite bounds and a float dtype")
        return 2 * spec.event_shape.numel()

    @classmethod
    @override
    def from_params(cls, params: Tensor, spec: specs.Spec, mask: Tensor | None = None) -> Self:
        cls._no_mask(mask)
        cls._check_params(params, spec)
        loc, log_std = _loc_and_log_std(params, spec.event_shape)
        return cls(loc, log_std, spec.low, spec.high, len(spec.event_shape))  # type: ignore[attr-defined]

    def _squash(self, z: Tensor) -> Tensor:
        # (tanh(z) + 1) / 2 = sigmoid(2 z), and lerp meets both bounds exactly: no action is outside by a rounding error.
        if self.bounds is None:
            return z.tanh()
        low, high = self.bounds
        return torch.lerp(low, high, torch.sigmoid((z + z).to(low.dtype)))

    def _unsquash(self, x: Tensor) -> Tensor:
        """Return ``z`` of an action; on a bound, where it is infinite, that of the nearest number inside (|z| about 8)."""
        low, width = (-1.0, 2.0) if self.bounds is None else (self.bounds[0], width_of(*self.bounds))
        return (0.5 * torch.logit((x - low) / width, eps=torch.finfo(x.dtype).eps / 2)).to(self.normal.loc.dtype)

    def _log_slope(self, z: Tensor) -> Tensor:
        """Return ``log |da/dz|`` per dimension, exact also where ``1 - tanh(z)^2`` rounds to zero (appendix C, eq. 21).

        ``log(1 - tanh(z)^2) = 2 (log 2 - z - softplus(-2 z)) = log 4 + logsigmoid(2 z) + logsigmoid(-2 z)``
        """
        twice = z + z
        positive = F.logsigmoid(twice)
        gain = math.log(4) if self.bounds is None else torch.log(2 * width_of(*self.bounds)).to(z.dtype)
        return positive + (positive - twice) + gain

    @override
    def rsample(self, noise: Tensor | None = None) -> Tensor:
        return self._squash(self.normal.rsample(noise))

    @override
    def sample(self, noise: Tensor | None = None) -> Tensor:
        return self.rsample(noise).detach()

    @override
    def log_prob(self, x: Tensor) -> Tensor:
        """Return ``log normal(z) - sum_i log |da_i/dz_i|`` with ``z`` the inverse of ``x``, ``[*]``.

        Near a bound a float32 action no longer tells ``z`` exactly: prefer :meth:`sample_with_log_prob` for own samples.
        """
        check_value(x, self.normal.loc.shape)
        z = self._unsquash(x)
        return self.normal.log_prob_of_noise((z - self.normal.loc) * torch.exp(-self.normal.log_std), self._log_slope(z))

    @override
    def sample_with_log_prob(self, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return actions and their log-probabilities, exact, without inverting tanh. Both carry gradients."""
        loc = self.normal.loc
        noise = self.base_noise(loc.shape, None, loc.device) if noise is None else noise
        z = self.normal.rsample(noise)
        return self._squash(z), self.normal.log_prob_of_noise(noise, self._log_slope(z))

    @override
    def entropy(self) -> Tensor:
        """Return ``H(normal) + E[sum_i log |da_i/dz_i|]``, ``[*]``; the expectation is an integral on a grid.

        It is deterministic and differentiable; its error per dimension is below 1e-5 for std up to 2.7, 2e-3 for std up to 7.4.
        """
        return self.normal.entropy() + sum_event(self._expect(self._log_slope), self.normal.event_ndim)

    def _expect(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        """Integrate ``f(z)`` under the normal: trapezoidal rule, 49 points over 5 standard deviations to each side."""
        loc = self.normal.loc
        x = torch.linspace(-5, 5, 49, dtype=loc.dtype, device=loc.device).reshape(-1, *(1 for _ in loc.shape))
        weight = torch.exp(-0.5 * x * x)
        return (weight / weight.sum() * f(loc + self.normal.std * x)).sum(0)

    @property
    @override
    def mode(self) -> Tensor:
        """The image of ``loc``: the median, what a squashed Gaussian policy does without exploration."""
        return self._squash(self.normal.loc)

    @property
    @override
    def mean(self) -> Tensor:
        return self._expect(self._squash)

    @override
    def kl(self, other: Self) -> Tensor:
        """Return the divergence of the normals, ``[*]``: squashing both into the same bounds does not change it."""
        return self.normal.kl(other.normal)


def _loc_and_log_std(params: Tensor, event_shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Split ``[*, 2 A]`` into means and clamped log standard deviations, ``[*, *event_shape]`` each."""
    loc, log_std = params.chunk(2, -1)
    return as_event(loc, event_shape), as_event(log_std, event_shape).clamp(*LOG_STD_RANGE)


def as_bounds(low: float | Tensor, high: float | Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return bounds as tensors of one dtype, at least as precise as ``like``."""
    tensors = [x if isinstance(x, Tensor) else torch.as_tensor(x, dtype=like.dtype, device=like.device) for x in (low, high)]
    wide = torch.promote_types(like.dtype, torch.promote_types(tensors[0].dtype, tensors[1].dtype))
    return tensors[0].to(wide), tensors[1].to(wide)


def width_of(low: Tensor, high: Tensor) -> Tensor:
    """Return the distance of bounds; 1 where they are one, as of an action that cannot change."""
    return (high - low).where(high > low, 1.0)
