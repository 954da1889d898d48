"""The interface of a distribution over actions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from rlbook.errors import ConfigError, SpecError, explain
from rlbook.specs import Spec
from rlbook.specs.base import show
from rlbook.typing import DeviceLike, Shape


class Distribution(ABC):
    """A batch of distributions over actions. Small and fast: nothing but shapes is validated, so everything compiles.

    Randomness comes from outside: ``sample(noise)`` is a fixed function of base noise that ``base_noise`` draws, because
    random numbers inside compiled code are slow on a CPU and not those of eager code. ``sample()`` draws its own.
    Log-probabilities, entropies and divergences sum over the dimensions of the action: they have exactly the batch shape.
    """

    has_rsample: ClassVar[bool] = False
    """Whether ``rsample`` gives an unbiased gradient with respect to the parameters."""
    deterministic: ClassVar[bool] = False
    """Whether there is nothing to draw, so that a log-probability says nothing."""

    @property
    @abstractmethod
    def batch_shape(self) -> torch.Size:
        """Shape of the batch, ``[*]``."""

    @classmethod
    @abstractmethod
    def base_noise(cls, shape: Shape, generator: torch.Generator | None = None, device: DeviceLike = None) -> Tensor:
        """Draw the random numbers that ``sample(noise)`` turns into one action per row.

        Args:
            shape: the shape of the actions, ``[*batch, *action]``.
            generator: a source of random numbers on ``device``; None is torch's own.
            device: where the numbers live.
        """

    @classmethod
    def noise_for(cls, spec: Spec, batch: Shape, generator: torch.Generator | None = None, device: DeviceLike = None) -> Tensor:
        """Draw the random numbers of one action of ``spec`` for each row of ``batch``; see :meth:`base_noise`."""
        return cls.base_noise((*batch, *spec.shape), generator, device)

    @classmethod
    @abstractmethod
    def num_params(cls, spec: Spec) -> int:
        """Return how many network outputs an action of ``spec`` needs.

        Raises:
            SpecError: this distribution does not fit the spec.
        """

    @classmethod
    @abstractmethod
    def from_params(cls, params: Tensor, spec: Spec, mask: Tensor | None = None) -> Self:
        """Build the distribution of an action of ``spec`` from a network's output.

        Args:
            params: network output, float ``[*, num_params(spec)]``.
            spec: the spec of one action, without batch dimensions.
            mask: which choices are allowed, bool, shaped like ``params``; discrete actions only.

        Raises:
            SpecError: this distribution does not fit the spec, or ``params`` has another size.
        """

    @abstractmethod
    def sample(self, noise: Tensor | None = None) -> Tensor:
        """Return one action per row, without gradient, ``[*, *action]``; ``noise`` as from :meth:`base_noise`."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-probability (or log-density) of actions ``[*, *action]``, shape ``[*]``.

        Raises:
            SpecError: ``x`` does not end in the shape of the distribution's own samples.
        """

    @abstractmethod
    def entropy(self) -> Tensor:
        """Return the entropy in nats, shape ``[*]``."""

    @property
    @abstractmethod
    def mode(self) -> Tensor:
        """The action to take without exploration, ``[*, *action]``."""

    @property
    def mean(self) -> Tensor:
        """The expected action, where it is a number, ``[*, *action]``."""
        raise self._lacks("mean", "Use mode")

    def rsample(self, noise: Tensor | None = None) -> Tensor:
        """Return one action per row that carries a gradient to the parameters, ``[*, *action]``."""
        raise self._lacks("rsample", "Use sample() and the score-function gradient, log_prob(x) * advantage")

    def kl(self, other: Any) -> Tensor:
        """Return ``KL(self || other) = E_self[log self(x) - log other(x)]`` in nats, shape ``[*]``."""
        raise self._lacks("kl", "Estimate it from samples: (log_p - log_q).mean()")

    def sample_with_log_prob(self, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return one action per row and its log-probability; both carry gradients where ``has_rsample``."""
        x = self.rsample(noise) if self.has_rsample else self.sample(noise)
        return x, self.log_prob(x)

    @classmethod
    def _lacks(cls, what: str, fix: str) -> ConfigError:
        return ConfigError(explain(f"{what} of {cls.__name__}", "defined", "a distribution without one", fix))

    @classmethod
    def _misfit(cls, spec: Spec, expected: str) -> SpecError:
        fix = "rlbook.distributions.for_spec(spec) names the distribution that fits"
        return SpecError(explain(f"The action spec of {cls.__name__}", expected, repr(spec), fix))

    @classmethod
    def _check_params(cls, params: Tensor, spec: Spec) -> None:
        size = cls.num_params(spec)
        if params.shape[-1:] != (size,):
            fix = f"Give the network out_features={size}"
            raise SpecError(explain("The network output", f"of shape [..., {size}] for {spec!r}", show(params.shape), fix))

    @classmethod
    def _no_mask(cls, mask: Tensor | None) -> None:
        if mask is not None:
            fix = "Masks choose among discrete actions only; leave it out"
            raise ConfigError(explain(f"mask of {cls.__name__}", "None", "a tensor", fix))


def check_value(x: Tensor, shape: torch.Size) -> None:
    """Raise unless ``x`` ends in ``shape``: broadcasting ``[64]`` against ``[64, 1]`` would silently give ``[64, 64]``."""
    if x.shape != shape and x.shape[x.ndim - len(shape) :] != shape:
        fix = "Pass actions shaped like the distribution's own samples (squeeze(-1) removes a trailing 1)"
        raise SpecError(explain("x", f"of shape {show(('...', *shape))}", show(x.shape), fix))


def sum_event(x: Tensor, ndim: int) -> Tensor:
    """Sum over the last ``ndim`` dimensions."""
    return x if ndim == 0 else x.sum(-1) if ndim == 1 else x.flatten(-ndim).sum(-1)


def as_event(x: Tensor, event_shape: torch.Size) -> Tensor:
    """Reshape the last dimension to the shape of an action."""
    return x if len(event_shape) == 1 else x.reshape(x.shape[:-1] + event_shape)
