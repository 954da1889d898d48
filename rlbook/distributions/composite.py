"""Several actions at once, each with a distribution of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, final

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from typing_extensions import override

from rlbook import keys, specs
from rlbook.distributions.base import Distribution
from rlbook.errors import SpecError, explain
from rlbook.typing import DeviceLike, Key, Shape


@final
class CompositeDistribution(Distribution):
    """Independent distributions of the entries of an action: ``log p(x) = sum_k log p_k(x_k)``.

    Samples are TensorDicts. The entries' parameters lie one after another in a network's output, their random numbers in the
    noise, both in the order of ``spec.leaves()``.

    Args:
        parts: the distribution of each entry, by key; all of one batch shape.
        widths: how many random numbers an action takes of each, and their shape, by key.

    Example:
        >>> from rlbook.specs import Bounded, Categorical, Composite
        >>> spec = Composite(gear=Categorical(5), steer=Bounded(-1.0, 1.0, (2,)))
        >>> dist = CompositeDistribution.from_params(torch.zeros(8, 9), spec)
        >>> dist.sample()["steer"].shape, dist.entropy().shape
        (torch.Size([8, 2]), torch.Size([8]))
    """

    def __init__(self, parts: Mapping[Key, Distribution], widths: Mapping[Key, torch.Size]):
        self.parts, self.widths = dict(parts), dict(widths)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether every entry carries a gradient."""
        return all(part.has_rsample for part in self.parts.values())

    @property
    @override
    def batch_shape(self) -> torch.Size:
        return next(iter(self.parts.values())).batch_shape

    @classmethod
    def kinds(cls, spec: specs.Spec) -> dict[Key, tuple[type[Distribution], specs.Spec]]:
        """Return the distribution class and the spec of every entry.

        Raises:
            SpecError: ``spec`` is not a Composite with entries, or no distribution fits an entry.
        """
        from rlbook.distributions import for_spec

        leaves = spec.leaves() if isinstance(spec, specs.Composite) else {}
        if not leaves:
            raise cls._misfit(spec, "a Composite with entries")
        return {key: (for_spec(leaf), leaf) for key, leaf in leaves.items()}

    @classmethod
    @override
    def base_noise(cls, shape: Shape, generator: torch.Generator | None = None, device: DeviceLike = None) -> Tensor:
        raise cls._lacks("base_noise", "Use noise_for(spec, batch), which knows the entries")

    @classmethod
    @override
    def noise_for(
        cls, spec: specs.Spec, batch: Shape, generator: torch.Generator | None = None, device: DeviceLike = None
    ) -> Tensor:
        drawn = [kind.noise_for(leaf, batch, generator, device) for kind, leaf in cls.kinds(spec).values()]
        return torch.cat([noise.reshape(*batch, noise.shape[len(batch) :].numel()) for noise in drawn], -1)

    @classmethod
    @override
    def num_params(cls, spec: specs.Spec) -> int:
        return sum(kind.num_params(leaf) for kind, leaf in cls.kinds(spec).values())

    @classmethod
    @override
    def from_params(cls, params: Tensor, spec: specs.Spec, mask: Any = None) -> Self:
        """Build it from a network's output ``[*, num_params]``.

        Args:
            params, spec: as for every distribution.
            mask: a TensorDict or mapping, by the same keys, of the masks of discrete entries; not all need one.
        """
        kinds = cls.kinds(spec)
        cls._check_params(params, spec)
        masked = [] if mask is None else list(mask.keys(True, True) if isinstance(mask, TensorDictBase) else mask.keys())
        if unknown := [key for key in masked if key not in kinds]:
            got, fix = f"{unknown}", "Name each mask as its action"
            raise SpecError(explain("The masks of a dictionary of actions", f"among {list(kinds)}", got, fix))
        sizes = [kind.num_params(leaf) for kind, leaf in kinds.values()]
        parts: dict[Key, Distribution] = {}
        for (key, (kind, leaf)), own in zip(kinds.items(), params.split(sizes, -1), strict=True):
            parts[key] = kind.from_params(own, leaf, None if mask is None else mask.get(key, None))
        return cls(parts, {key: kind.noise_for(leaf, (0,)).shape[1:] for key, (kind, leaf) in kinds.items()})

    def _join(self, values: Mapping[Key, Tensor]) -> TensorDict:
        return TensorDict(keys.nest(values), self.batch_shape)

    def _noises(self, noise: Tensor | None) -> dict[Key, Tensor | None]:
        if noise is None:
            return dict.fromkeys(self.parts)
        pieces = noise.split([width.numel() for width in self.widths.values()], -1)
        shaped = zip(self.widths.items(), pieces, strict=True)
        return {key: piece.reshape(piece.shape[:-1] + width) for (key, width), piece in shaped}

    @override
    def sample(self, noise: Tensor | None = None) -> Any:
        given = self._noises(noise)
        return self._join({key: part.sample(given[key]) for key, part in self.parts.items()})

    @override
    def rsample(self, noise: Tensor | None = None) -> Any:
        given = self._noises(noise)
        return self._join({key: part.rsample(given[key]) for key, part in self.parts.items()})

    @override
    def sample_with_log_prob(self, noise: Tensor | None = None) -> Any:
        given = self._noises(noise)
        pairs = {key: part.sample_with_log_prob(given[key]) for key, part in self.parts.items()}
        return self._join({key: x for key, (x, _) in pairs.items()}), _sum([log_prob for _, log_prob in pairs.values()])

    @override
    def log_prob(self, x: TensorDictBase | Mapping[Key, Tensor]) -> Tensor:  # type: ignore[override]
        return _sum([part.log_prob(x[key]) for key, part in self.parts.items()])  # type: ignore[index]

    @override
    def entropy(self) -> Tensor:
        return _sum([part.entropy() for part in self.parts.values()])

    @property
    @override
    def mode(self) -> Any:
        return self._join({key: part.mode for key, part in self.parts.items()})

    @override
    def kl(self, other: Self) -> Tensor:
        return _sum([part.kl(other.parts[key]) for key, part in self.parts.items()])


def _sum(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).sum(0)
