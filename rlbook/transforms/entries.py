"""Which entries an observation has and what they are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rlbook import keys as names
from rlbook.errors import ConfigError, SpecError, explain
from rlbook.specs import Composite, Unbounded
from rlbook.transforms.base import Transform, as_keys, find
from rlbook.typing import Key, Leaves


class RenameKeys(Transform):
    """Give observation entries other names: components read canonical ones, an environment may have its own.

    Args:
        mapping: old name -> new name; tuples are nested keys.

    Raises:
        MissingKeyError: the environment has no entry with the old name.
        ConfigError: two entries would have the same name.

    Example:
        >>> from rlbook import CartPole, RenameKeys, TransformedEnv
        >>> env = TransformedEnv(CartPole(), RenameKeys({"observation": ("cart", "state")}))
        >>> env.reset()["cart", "state"].shape
        torch.Size([4])
    """

    def __init__(self, mapping: Mapping[Key, Key]):
        super().__init__()
        self.mapping = dict(mapping)

    def transform_observation_spec(self, spec: Composite) -> Composite:
        """Rename the entries."""
        for old in self.mapping:
            find(spec, old, self)
        renamed = {names.as_tuple(self.mapping.get(key, key)): entry for key, entry in spec.leaves().items()}
        if len(renamed) < len(spec.leaves()):
            fix = "Rename the other entry too"
            raise ConfigError(explain("The new names", "different from all others", f"{self.mapping}", fix))
        return Composite(renamed, device=self.device)

    def on_reset(self, leaves: Leaves, mask: Tensor) -> Leaves:
        """Rename the entries."""
        return self.on_step(leaves)

    def on_step(self, leaves: Leaves) -> Leaves:
        """Rename the entries."""
        return {self.mapping.get(key, key): value for key, value in leaves.items()}


class CatTensors(Transform):
    """Flatten several numeric entries and join them into one float32 vector: ``[D]`` with D the sum of their sizes.

    Args:
        keys: which entries, in this order; all by default. They are taken out of the observation.
        out_key: the name of the vector.

    Raises:
        MissingKeyError: the environment has no such entry.
        ConfigError: another entry has the name ``out_key``.
        SpecError: an entry counts or chooses (an integer or a flag), which would not make sense as a number beside others.

    Example:
        >>> from rlbook import CartPole, Compose, RewardSum, TransformedEnv
        >>> env = TransformedEnv(CartPole(), Compose(RewardSum(), CatTensors(["observation", "episode_reward"])))
        >>> env.reset()["observation"].shape
        torch.Size([5])
    """

    def __init__(self, keys: str | Sequence[Key] | None = None, out_key: Key = names.OBSERVATION):
        super().__init__()
        self.keys = () if keys is None else as_keys(keys)
        self.out_key = out_key

    def transform_observation_spec(self, spec: Composite) -> Composite:
        """Put the vector in the place of the entries."""
        self.keys = self.keys or tuple(spec.leaves())
        found = {key: find(spec, key, self) for key in self.keys}
        for key, entry in found.items():
            if not entry.dtype.is_floating_point:
                fix = "Leave it out of keys; the network can embed it"
                raise SpecError(explain(f"Entry {names.pretty(key)!r}", "of a floating-point dtype", str(entry.dtype), fix))
        rest = spec.exclude(*self.keys)
        if self.out_key in rest:
            fix = "Choose another out_key, or add it to keys"
            raise ConfigError(explain("out_key", "a name that is free", repr(self.out_key), fix))
        size = sum(entry.shape.numel() for entry in found.values())
        return rest.replace({self.out_key: Unbounded(size, device=self.device)})

    def on_reset(self, leaves: Leaves, mask: Tensor) -> Leaves:
        """Join the entries."""
        return self.on_step(leaves)

    def on_step(self, leaves: Leaves) -> Leaves:
        """Join the entries."""
        flat = [leaves[key].float().reshape(*self.batch_size, -1) for key in self.keys]
        rest = {key: value for key, value in leaves.items() if key not in self.keys}
        return {**rest, self.out_key: torch.cat(flat, dim=-1)}
