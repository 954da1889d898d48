"""What an episode adds up to: its steps and its rewards."""

from __future__ import annotations

import torch
from torch import Tensor

from rlbook import keys
from rlbook.envs.base import Env
from rlbook.errors import check_count
from rlbook.specs import Bounded, Composite, Unbounded
from rlbook.transforms.base import Transform
from rlbook.typing import Leaves


class StepCounter(Transform):
    """Count the steps of each episode in ``step_count``: 0 at its first observation, t + 1 under ``next`` of step t.

    Args:
        max_steps: truncate an episode after this many steps; None leaves the environment's own limit.

    Raises:
        ConfigError: ``max_steps`` is not positive.
    """

    def __init__(self, max_steps: int | None = None):
        super().__init__()
        if max_steps is not None:
            check_count("max_steps", max_steps, example=200)
        self.max_steps = max_steps

    def bind(self, env: Env) -> None:
        """Allocate the counters."""
        super().bind(env)
        self._count = self.remember("count", dtype=torch.int64)

    def transform_observation_spec(self, spec: Composite) -> Composite:
        """Add ``step_count``."""
        most = torch.inf if self.max_steps is None else self.max_steps
        return spec.replace({keys.STEP_COUNT: Bounded(0, most, (), torch.int64, self.device)})

    def on_reset(self, leaves: Leaves, mask: Tensor) -> Leaves:
        """Start the masked counters at 0."""
        self._count.masked_fill_(mask, 0)
        return {**leaves, keys.STEP_COUNT: self._count.clone()}

    def on_step(self, leaves: Leaves) -> Leaves:
        """Count, and truncate what has reached the limit."""
        count = self._count + 1
        self._count.copy_(count)
        leaves = {**leaves, keys.STEP_COUNT: count}
        if self.max_steps is not None:
            leaves[keys.TRUNCATED] = leaves[keys.TRUNCATED] | (count >= self.max_steps)
        return leaves


class RewardSum(Transform):
    """Add up the rewards of each episode in ``episode_reward``: 0 at its first observation, the undiscounted return at its last.

    It sums the rewards as they are at its place: before a :class:`RewardScale` the environment's own, after it the scaled ones.
    """

    def bind(self, env: Env) -> None:
        """Allocate the sums."""
        super().bind(env)
        self._sum = self.remember("sum", env.reward_spec.shape, env.reward_spec.dtype)

    def transform_observation_spec(self, spec: Composite) -> Composite:
        """Add ``episode_reward``."""
        shape = self._sum.shape[len(self.batch_size) :]
        return spec.replace({keys.EPISODE_RETURN: Unbounded(shape, self._sum.dtype, self.device)})

    def on_reset(self, leaves: Leaves, mask: Tensor) -> Leaves:
        """Start the masked sums at 0."""
        self._sum.masked_fill_(mask, 0)
        return {**leaves, keys.EPISODE_RETURN: self._sum.clone()}

    def on_step(self, leaves: Leaves) -> Leaves:
        """Add the reward."""
        total = self._sum + leaves[keys.REWARD]
        self._sum.copy_(total)
        return {**leaves, keys.EPISODE_RETURN: total}
