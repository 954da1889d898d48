"""The distribution of a deterministic policy."""

from __future__ import annotations

import math
from typing import ClassVar, Self, final

import torch
from torch import Tensor
from typing_extensions import override

from rlbook import specs
from rlbook.distributions.base import Distribution, as_event, check_value
from rlbook.distributions.normal import as_bounds
from rlbook.typing import DeviceLike, Shape


@final
class Delta(Distribution):
    """All probability on one action, so that a deterministic policy (DDPG, TD3) has the interface of a stochastic one.

    Args:
        x: the action, float ``[*, *action]``.
        event_ndim: how many of the last dimensions are one action's.

    Example:
        >>> Delta(torch.tensor([0.5])).log_prob(torch.tensor([0.5]))
        tensor(0.)
    """

    has_rsample: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True

    def __init__(self, x: Tensor, event_ndim: int = 1):
        self.x = x
        self.event_ndim = event_ndim

    @property
    @override
    def batch_shape(self) -> torch.Size:
        return self.x.shape[: self.x.ndim - self.event_ndim]

    @classmethod
    @override
    def base_noise(cls, shape: Shape, generator: torch.Generator | None = None, device: DeviceLike = None) -> Tensor:
        """Return an empty tensor: a deterministic action needs no noise, and no random number is drawn."""
        return torch.empty(0, device=device)

    @classmethod
    @override
    def num_params(cls, spec: specs.Spec) -> int:
        """Return ``A``: one output per dimension."""
        finite = isinstance(spec, specs.Bounded) and spec.bounded
        if not (finite or isinstance(spec, specs.Unbounded)) or not spec.dtype.is_floating_point:
            raise cls._misfit(spec, "Unbounded, or Bounded with finite bounds, of a float dtype")
        return spec.event_shape.numel()

    @classmethod
    @override
    def from_params(cls, params: Tensor, spec: specs.Spec, mask: Tensor | None = None) -> Self:
        """Build it from a network output: squashed by tanh into finite bounds, as it is where there are none."""
        cls._no_mask(mask)
        cls._check_params(params, spec)
        x = as_event(params, spec.event_shape)
        if isinstance(spec, specs.Bounded):
            low, high = as_bounds(spec.low, spec.high, x)  # x is bfloat16 in reduced precision
            x = torch.lerp(low, high, torch.sigmoid(2 * x.to(low.dtype)))  # low + (tanh(x) + 1) / 2 * (high - low)
        return cls(x, len(spec.event_shape))

    @override
    def rsample(self, noise: Tensor | None = None) -> Tensor:
        return self.x

    @override
    def sample(self, noise: Tensor | None = None) -> Tensor:
        return self.x.detach()

    @override
    def log_prob(self, x: Tensor) -> Tensor:
        """Return 0 (probability 1) where ``x`` is the action, else ``-inf``; ``[*]``."""
        check_value(x, self.x.shape)
        same = (x == self.x).flatten(-self.event_ndim).all(-1) if self.event_ndim else x == self.x
        return torch.where(same, 0.0, -math.inf)

    @override
    def entropy(self) -> Tensor:
        """Return 0: nothing is left to chance."""
        return torch.zeros(self.batch_shape, dtype=self.x.dtype, device=self.x.device)

    @property
    @override
    def mode(self) -> Tensor:
        return self.x

    @property
    @override
    def mean(self) -> Tensor:
        return self.x
