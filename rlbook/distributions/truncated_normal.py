"""A normal cut off at its bounds: continuous actions whose density is highest where the network says."""

from __future__ import annotations

import math
from typing import ClassVar, Self, final

import torch
from torch import Tensor
from typing_extensions import override

from rlbook import specs
from rlbook.distributions.base import Distribution, as_event, check_value, sum_event
from rlbook.distributions.normal import LOG_STD_RANGE, as_bounds, width_of
from rlbook.typing import DeviceLike, Shape

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


@final
class TruncatedNormal(Distribution):
    """A normal given that it falls between two bounds, with independent dimensions.

    With ``a = (low - loc) / std``, ``b = (high - loc) / std``, ``Z = Phi(b) - Phi(a)``, and ``z = (x - loc) / std``:

        p(x) = phi(z) / (std Z) for low <= x <= high
        x = loc + std Phi^-1(Phi(a) + u Z),  u uniform

    Unlike :class:`TanhNormal` its mode is ``loc`` itself, no density piles up near the bounds, and entropy, mean and divergence
    have closed forms. In float32 these hold for a ``std`` of up to some 30 times the distance of the bounds and a ``loc`` up to
    some 10 ``std`` outside: where :meth:`from_params` stays. In float64 they reach three times as far.

    Args:
        loc: where the density is highest, if inside the bounds, float ``[*, *action]``.
        log_std: logarithm of the standard deviation before the cut; broadcasts to ``loc``.
        low: lower bound, finite: a number, or a tensor that broadcasts to ``loc``.
        high: upper bound, likewise.
        event_ndim: how many of the last dimensions are one action's.

    Source: Johnson, Kotz and Balakrishnan 1994, "Continuous Univariate Distributions", volume 1, chapter 13, section 10.1.

    Example:
        >>> TruncatedNormal(torch.tensor([0.5]), torch.tensor([4.0]), 0.0, 2.0).log_prob(torch.tensor([1.0]))  # about uniform
        tensor(-0.6931)
    """

    has_rsample: ClassVar[bool] = True

    def __init__(self, loc: Tensor, log_std: Tensor, low: float | Tensor = -1.0, high: float | Tensor = 1.0, event_ndim: int = 1):
        low, high = as_bounds(low, high, loc if loc.dtype in (torch.float32, torch.float64) else loc.float())
        loc = loc.to(low.dtype)
        self.loc, self.event_ndim = loc, event_ndim
        self.log_std = log_std.to(loc.dtype).expand_as(loc)
        self.low, self.high = low.expand_as(loc), high.expand_as(loc)
        self.std = self.log_std.exp()
        self.a, self.b = (self.low - loc) / self.std, (self.high - loc) / self.std
        # Where the interval lies above loc, Phi is near 1 and loses digits: there all is computed for the mirror image.
        self._mirrored = self.a + self.b > 0
        a = torch.where(self._mirrored, -self.b, self.a)
        b = torch.where(self._mirrored, -self.a, self.b)
        self._lowest = _cdf(a)
        self.mass = (_cdf(b) - self._lowest).clamp(min=torch.finfo(loc.dtype).tiny)

    @property
    @override
    def batch_shape(self) -> torch.Size:
        return self.loc.shape[: self.loc.ndim - self.event_ndim]

    @classmethod
    @override
    def base_noise(cls, shape: Shape, generator: torch.Generator | None = None, device: DeviceLike = None) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

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
        """Build it from a network output: ``loc`` squashed by tanh into the bounds, ``std`` in units of half their distance."""
        cls._no_mask(mask)
        cls._check_params(params, spec)
        loc, log_std = (as_event(x, spec.event_shape) for x in params.chunk(2, -1))
        low, high = as_bounds(spec.low, spec.high, loc)  # type: ignore[attr-defined]
        loc = torch.lerp(low, high, torch.sigmoid(2 * loc.to(low.dtype)))
        return cls(loc, log_std.clamp(*LOG_STD_RANGE) + (width_of(low, high) / 2).log(), low, high, len(spec.event_shape))

    @override
    def rsample(self, noise: Tensor | None = None) -> Tensor:
        u = self.base_noise(self.loc.shape, None, self.loc.device).to(self.loc.dtype) if noise is None else noise
        u = torch.where(self._mirrored, 1 - u, u)
        tiny = torch.finfo(self.loc.dtype).tiny
        z = torch.special.ndtri(torch.addcmul(self._lowest, u, self.mass).clamp(tiny, 1 - torch.finfo(self.loc.dtype).eps / 2))
        z = torch.where(self._mirrored, -z, z)
        return torch.clamp(torch.addcmul(self.loc, self.std, z), self.low, self.high)

    @override
    def sample(self, noise: Tensor | None = None) -> Tensor:
        return self.rsample(noise).detach()

    @override
    def log_prob(self, x: Tensor) -> Tensor:
        """Return ``sum_i -z_i^2 / 2 - log(std_i Z_i) - log(2 pi) / 2``, ``[*]``; ``-inf`` outside the bounds."""
        check_value(x, self.loc.shape)
        z = (x - self.loc) / self.std
        inside = (x >= self.low) & (x <= self.high)
        terms = -0.5 * z * z - self.log_std - self.mass.log() - _LOG_SQRT_2PI
        return sum_event(torch.where(inside, terms, -math.inf), self.event_ndim)

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Return the mean of ``z`` and of ``z^2``: ``(phi(a) - phi(b)) / Z`` and ``1 + (a phi(a) - b phi(b)) / Z``."""
        at_a, at_b = (torch.exp(-0.5 * x * x - _LOG_SQRT_2PI) for x in (self.a, self.b))
        return (at_a - at_b) / self.mass, 1 + (self.a * at_a - self.b * at_b) / self.mass

    @override
    def entropy(self) -> Tensor:
        """Return ``sum_i log(std_i Z_i) + (log(2 pi) + E z_i^2) / 2``, ``[*]``."""
        return sum_event(self.log_std + self.mass.log() + _LOG_SQRT_2PI + 0.5 * self._moments()[1], self.event_ndim)

    @property
    @override
    def mode(self) -> Tensor:
        return torch.clamp(self.loc, self.low, self.high)

    @property
    @override
    def mean(self) -> Tensor:
        return torch.clamp(torch.addcmul(self.loc, self.std, self._moments()[0]), self.low, self.high)

    @override
    def kl(self, other: Self) -> Tensor:
        """Return the divergence from a normal cut off at the same bounds, ``[*]``, from the first two moments of ``z``."""
        first, second = self._moments()
        ratio = torch.exp(self.log_std - other.log_std)
        shift = (self.loc - other.loc) / other.std
        square = shift * shift + 2 * shift * ratio * first + ratio * ratio * second  # E of ((x - loc) / std)^2 of other
        log_ratio = self.log_std + self.mass.log() - other.log_std - other.mass.log()
        return sum_event(0.5 * (square - second) - log_ratio, self.event_ndim)


def _cdf(x: Tensor) -> Tensor:
    """Return ``Phi(x)``, with all digits also where it is tiny (``torch.special.ndtr`` loses them)."""
    return 0.5 * torch.special.erfc(x * -math.sqrt(0.5))
