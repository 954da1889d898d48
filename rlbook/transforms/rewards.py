"""Rewards of a size that a network can learn from."""

from __future__ import annotations

from rlbook import keys
from rlbook.errors import ConfigError, explain
from rlbook.specs import Bounded, Spec, Unbounded
from rlbook.transforms.base import Transform
from rlbook.typing import Leaves


class RewardScale(Transform):
    """Multiply every reward by a number. Returns scale with it, the best policy stays the same (for a positive number).

    Args:
        scale: for example 0.1.
    """

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale

    def transform_reward_spec(self, spec: Spec) -> Spec:
        """Any number."""
        return Unbounded(spec.shape, spec.dtype, spec.device)

    def on_step(self, leaves: Leaves) -> Leaves:
        """Scale."""
        return {**leaves, keys.REWARD: leaves[keys.REWARD] * self.scale}


class RewardClip(Transform):
    """Clip every reward to ``[low, high]``. Unlike scaling this changes which policy is best (Mnih et al. 2015 accept that).

    Args:
        low, high: the bounds.

    Raises:
        ConfigError: ``low`` is not below ``high``.
    """

    def __init__(self, low: float = -1.0, high: float = 1.0):
        super().__init__()
        if not low < high:
            raise ConfigError(explain("low", "below high", f"low={low}, high={high}", "Pass for example low=-1.0, high=1.0"))
        self.low, self.high = low, high

    def transform_reward_spec(self, spec: Spec) -> Spec:
        """The clipped range."""
        return Bounded(self.low, self.high, spec.shape, spec.dtype, spec.device)

    def on_step(self, leaves: Leaves) -> Leaves:
        """Clip."""
        return {**leaves, keys.REWARD: leaves[keys.REWARD].clamp(self.low, self.high)}
