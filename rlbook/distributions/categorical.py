"""Distributions over discrete actions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self, final

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from rlbook import specs
from rlbook.distributions.base import Distribution, as_event, check_value, sum_event
from rlbook.errors import SpecError, explain
from rlbook.typing import DeviceLike, Shape

_BELOW_ONE = 1 - 2.0**-24
"""The largest float32 below 1."""


def mask_out(x: Tensor, mask: Tensor, otherwise: float) -> Tensor:
    """Return ``x`` ``[*, n]`` with ``otherwise`` in the place of the choices that the mask forbids.

    Args:
        x: a number for each choice.
        mask: which choices are allowed, bool ``[*, n]``, or numbers that are 0 where they are not, as Gymnasium's are.

    Raises:
        SpecError: the mask has another number of choices.
    """
    if mask.ndim == 0 or mask.shape[-1] != x.shape[-1]:
        fix = "Let the observation's mask have one entry for each choice"
        raise SpecError(explain("An action mask", f"of shape [*, {x.shape[-1]}]", f"{list(mask.shape)}", fix))
    return torch.where(mask.bool(), x, otherwise)


@final
class Categorical(Distribution):
    """One of ``n`` choices: ``p_i = exp(l_i) / sum_j exp(l_j)``.

    A choice that the mask forbids has probability exactly 0 and is never drawn; its log-probability is the lowest finite
    number, and no entropy or gradient becomes NaN. Where all are forbidden the choice is uniform.

    Args:
        logits: unnormalised log-probabilities, float ``[*, n]``; ``-inf`` is allowed.
        mask: which choices are allowed, bool ``[*, n]``, or numbers that are 0 where they are not.
        dtype: integer dtype of the samples.

    Example:
        >>> Categorical(torch.tensor([[0.0, 5.0, 1.0]]), mask=torch.tensor([[True, False, True]])).mode
        tensor([2])
    """

    def __init__(self, logits: Tensor, mask: Tensor | None = None, dtype: torch.dtype = torch.int64):
        if mask is not None:
            logits = mask_out(logits, mask, torch.finfo(logits.dtype).min)
        self.logits = logits.log_softmax(-1)
        self.dtype = dtype

    @property
    @override
    def batch_shape(self) -> torch.Size:
        return self.logits.shape[:-1]

    @property
    def probs(self) -> Tensor:
        """Probabilities, ``[*, n]``."""
        return self.logits.exp()

    @classmethod
    @override
    def base_noise(cls, shape: Shape, generator: torch.Generator | None = None, device: DeviceLike = None) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    @classmethod
    @override
    def num_params(cls, spec: specs.Spec) -> int:
        if not isinstance(spec, specs.Categorical) or spec.event_shape:
            raise cls._misfit(spec, "Categorical with shape ()")
        return spec.n

    @classmethod
    @override
    def from_params(cls, params: Tensor, spec: specs.Spec, mask: Tensor | None = None) -> Self:
        cls._check_params(params, spec)
        return cls(params, mask, spec.dtype)

    @override
    def sample(self, noise: Tensor | None = None) -> Tensor:
        """Return the first choice whose cumulative probability exceeds the noise, uniform ``[*]``; integers ``[*]``."""
        logits = self.logits.detach()
        # A parallel scan on a GPU may round equal sums differently: there, let it do so far below the rounding of u.
        cdf = logits.exp().cumsum(-1, dtype=torch.float64 if logits.is_cuda else torch.float32)
        total = cdf[..., -1:]
        u = torch.rand_like(total, dtype=torch.float32) if noise is None else noise.float().unsqueeze(-1).clamp(max=_BELOW_ONE)
        # Scaled by the total, any u below 1 lands on a choice of positive probability; where all are NaN, on the last one.
        index = torch.searchsorted(cdf, (u * total).type_as(cdf), right=True).squeeze(-1).clamp(max=cdf.shape[-1] - 1)
        return index if self.dtype is torch.int64 else index.to(self.dtype)

    @override
    def log_prob(self, x: Tensor) -> Tensor:
        logits = self.logits
        check_value(x, logits.shape[:-1])
        if x.ndim >= logits.ndim:
            logits = logits.expand(*x.shape, -1)
        return logits.gather(-1, x.long().unsqueeze(-1)).squeeze(-1)

    @override
    def entropy(self) -> Tensor:
        logits = self._finite_logits()
        return -(logits.exp() * logits).sum(-1)

    def _finite_logits(self) -> Tensor:
        """Log-probabilities with ``-inf`` made finite, so that ``0 * log 0`` is 0."""
        return self.logits.clamp(min=torch.finfo(self.logits.dtype).min)

    @property
    @override
    def mode(self) -> Tensor:
        return self.logits.argmax(-1).to(self.dtype)

    @override
    def kl(self, other: Self) -> Tensor:
        """Return ``sum_i p_i (log p_i - log q_i)``, ``[*]``; around 1e38 where ``other`` forbids what ``self`` does."""
        logits = self._finite_logits()
        return (logits.exp() * (logits - other._finite_logits())).sum(-1)


@final
class OneHotCategorical(Distribution):
    """:class:`Categorical` whose samples are one-hot vectors, ``[*, n]``.

    Args:
        logits: unnormalised log-probabilities, float ``[*, n]``.
        mask: which choices are allowed, bool ``[*, n]``.
        dtype: dtype of the samples.

    Example:
        >>> OneHotCategorical(torch.tensor([0.0, 2.0])).mode
        tensor([0., 1.])
    """

    def __init__(self, logits: Tensor, mask: Tensor | None = None, dtype: torch.dtype = torch.float32):
        self.index = Categorical(logits, mask)
        self.logits = self.index.logits
        self.dtype = dtype

    @property
    @override
    def batch_shape(self) -> torch.Size:
        return self.index.batch_shape

    @property
    def probs(self) -> Tensor:
        """Probabilities, ``[*, n]``."""
        return self.index.probs

    @classmethod
    @override
    def base_noise(cls, shape: Shape, generator: torch.Generator | None = None, device: DeviceLike = None) -> Tensor:
        return torch.rand(shape[:-1], generator=generator, device=device)

    @classmethod
    @override
    def num_params(cls, spec: specs.Spec) -> int:
        if not isinstance(spec, specs.OneHot):
            raise cls._misfit(spec, "OneHot")
        return spec.n

    @classmethod
    @override
    def from_params(cls, params: Tensor, spec: specs.Spec, mask: Tensor | None = None) -> Self:
        cls._check_params(params, spec)
        return cls(params, mask, spec.dtype)

    @override
    def sample(self, noise: Tensor | None = None) -> Tensor:
        return self._one_hot(self.index.sample(noise))

    @override
    def rsample(self, noise: Tensor | None = None) -> Tensor:
        """Return a one-hot sample whose gradient is that of the probabilities: useful, but biased.

        ``x + p - stop_gradient(p)``. Source: Bengio, Leonard and Courville 2013, the straight-through estimator.
        """
        probs = self.index.probs
        return self.sample(noise).to(probs.dtype) + (probs - probs.detach())

    @override
    def log_prob(self, x: Tensor) -> Tensor:
        check_value(x, self.logits.shape)
        return torch.where(x > 0.5, self.logits, 0).sum(-1)

    @override
    def entropy(self) -> Tensor:
        return self.index.entropy()

    @property
    @override
    def mode(self) -> Tensor:
        return self._one_hot(self.index.mode)

    @property
    @override
    def mean(self) -> Tensor:
        return self.index.probs

    @override
    def kl(self, other: Self) -> Tensor:
        return self.index.kl(other.index)

    def _one_hot(self, index: Tensor) -> Tensor:
        zeros = torch.zeros(self.logits.shape, dtype=self.dtype, device=self.logits.device)
        return zeros.scatter(-1, index.unsqueeze(-1), 1)


@final
class MultiCategorical(Distribution):
    """Independent choices: ``log p(x) = sum_k log p_k(x_k)``.

    Args:
        logits: the factors' logits one after another, float ``[*, sum(nvec)]``.
        nvec: number of options of each factor.
        mask: which options are allowed, bool ``[*, sum(nvec)]``.
        event_shape: shape of one action, with as many elements as ``nvec``; by default a vector.
        dtype: integer dtype of the samples.

    Example:
        >>> MultiCategorical(torch.tensor([0.0, 1.0, 5.0, 0.0, 0.0]), nvec=[2, 3]).mode
        tensor([1, 0])
    """

    def __init__(
        self,
        logits: Tensor,
        nvec: Sequence[int],
        mask: Tensor | None = None,
        event_shape: Shape | None = None,
        dtype: torch.dtype = torch.int64,
    ):
        logits = logits if mask is None else mask_out(logits, mask, torch.finfo(logits.dtype).min)
        self.factors = Categorical(_rows(logits, nvec), dtype=dtype)
        self.event_shape = torch.Size((len(nvec),) if event_shape is None else event_shape)

    @property
    @override
    def batch_shape(self) -> torch.Size:
        return self.factors.batch_shape[:-1]

    @classmethod
    @override
    def base_noise(cls, shape: Shape, generator: torch.Generator | None = None, device: DeviceLike = None) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    @classmethod
    @override
    def num_params(cls, spec: specs.Spec) -> int:
        return sum(cls._nvec(spec))

    @classmethod
    def _nvec(cls, spec: specs.Spec) -> list[int]:
        if not isinstance(spec, specs.MultiCategorical | specs.Categorical):
            raise cls._misfit(spec, "MultiCategorical, or Categorical of any shape")
        return spec.factors()

    @classmethod
    @override
    def from_params(cls, params: Tensor, spec: specs.Spec, mask: Tensor | None = None) -> Self:
        cls._check_params(params, spec)
        return cls(params, cls._nvec(spec), mask, spec.event_shape, spec.dtype)

    @override
    def sample(self, noise: Tensor | None = None) -> Tensor:
        noise = None if noise is None else self._flat(noise)
        return as_event(self.factors.sample(noise), self.event_shape)

    @override
    def log_prob(self, x: Tensor) -> Tensor:
        check_value(x, self.batch_shape + self.event_shape)
        return self.factors.log_prob(self._flat(x)).sum(-1)

    def _flat(self, x: Tensor) -> Tensor:
        """Make the factors of an action one dimension."""
        ndim = len(self.event_shape)
        return x if ndim == 1 else x.flatten(-ndim) if ndim else x.unsqueeze(-1)

    @override
    def entropy(self) -> Tensor:
        return self.factors.entropy().sum(-1)

    @property
    @override
    def mode(self) -> Tensor:
        return as_event(self.factors.mode, self.event_shape)

    @override
    def kl(self, other: Self) -> Tensor:
        return self.factors.kl(other.factors).sum(-1)


@final
class Bernoulli(Distribution):
    """Independent flags: ``p(x_i = 1) = sigmoid(l_i)``.

    Args:
        logits: log-odds of each flag, finite float ``[*, *action]``.
        event_ndim: how many of the last dimensions are one action's.
        dtype: dtype of the samples.

    Example:
        >>> Bernoulli(torch.tensor([-1.0, 3.0])).mode
        tensor([False,  True])
    """

    def __init__(self, logits: Tensor, event_ndim: int = 1, dtype: torch.dtype = torch.bool):
        self.logits = logits
        self.event_ndim = event_ndim
        self.dtype = dtype

    @property
    @override
    def batch_shape(self) -> torch.Size:
        return self.logits.shape[: self.logits.ndim - self.event_ndim]

    @classmethod
    @override
    def base_noise(cls, shape: Shape, generator: torch.Generator | None = None, device: DeviceLike = None) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    @classmethod
    @override
    def num_params(cls, spec: specs.Spec) -> int:
        if not isinstance(spec, specs.Binary):
            raise cls._misfit(spec, "Binary")
        return spec.event_shape.numel()

    @classmethod
    @override
    def from_params(cls, params: Tensor, spec: specs.Spec, mask: Tensor | None = None) -> Self:
        cls._no_mask(mask)
        cls._check_params(params, spec)
        return cls(as_event(params, spec.event_shape), len(spec.event_shape), spec.dtype)

    @override
    def sample(self, noise: Tensor | None = None) -> Tensor:
        u = self.base_noise(self.logits.shape, None, self.logits.device) if noise is None else noise
        return (u < self.mean).to(self.dtype)

    @override
    def log_prob(self, x: Tensor) -> Tensor:
        """Return ``sum_i x_i l_i - softplus(l_i)``, ``[*]``."""
        check_value(x, self.logits.shape)
        return sum_event(x * self.logits - F.softplus(self.logits), self.event_ndim)

    @override
    def entropy(self) -> Tensor:
        return sum_event(F.softplus(self.logits) - self.mean * self.logits, self.event_ndim)

    @property
    @override
    def mode(self) -> Tensor:
        return (self.logits > 0).to(self.dtype)

    @property
    @override
    def mean(self) -> Tensor:
        return self.logits.sigmoid()

    @override
    def kl(self, other: Self) -> Tensor:
        terms = self.mean * (self.logits - other.logits) - F.softplus(self.logits) + F.softplus(other.logits)
        return sum_event(terms, self.event_ndim)


def _rows(logits: Tensor, nvec: Sequence[int]) -> Tensor:
    """Turn ``[*, sum(nvec)]`` into one row per factor, ``[*, K, max(nvec)]``; options that there are not are impossible."""
    if len(set(nvec)) == 1:
        return logits.unflatten(-1, (len(nvec), nvec[0]))
    width = max(nvec)
    return torch.stack([F.pad(row, (0, width - row.shape[-1]), value=-math.inf) for row in logits.split(list(nvec), -1)], -2)
