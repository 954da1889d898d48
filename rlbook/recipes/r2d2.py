"""Recurrent replay (R2D2) as a difference to DQN: ``python -m rlbook train r2d2 TMaze``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from rlbook.losses import R2D2Loss
from rlbook.modules import make_qvalue
from rlbook.recipes.dqn import DQN, DQNConfig
from rlbook.recipes.recurrent_ppo import CELLS
from rlbook.replay import PrioritizedSampler, ReplayBuffer, SliceSampler


@dataclass
class R2D2Config(DQNConfig):
    """Settings of :class:`R2D2`, those of :class:`~rlbook.recipes.DQN` but for what memory needs."""

    env: str = "TMaze"
    """Environment: a Gymnasium id or the name of a native class."""
    total_frames: int = 100_000
    """Environment steps in all."""
    num_envs: int = 16
    """Environments that step together."""
    frames_per_batch: int = 512
    """Environment steps between two rounds of updates, over all environments."""
    updates: int = 8
    """Gradient steps of a round."""
    batch_size: int = 32
    """Sequences of a gradient step."""
    sequence_len: int = 16
    """Steps of a sequence, burn-in included."""
    burn_in: int = 2
    """First steps of a sequence that only find the state."""
    double: bool = True
    """Let the learnt network choose the action that the target network values."""
    n: int = 5
    """Steps of the return."""
    gamma: float = 0.98
    """Discount."""
    lr: float = 2e-3
    """Learning rate of Adam."""
    squash: bool = True
    """Learn values on a scale that shrinks large returns."""
    prioritized: bool = False
    """Draw sequences in proportion to their errors."""
    target_every: int = 50
    """Gradient steps between two copies to the target network."""
    eps_frames: int = 30_000
    """Environment steps until the probability of a random action is at its end."""
    num_cells: tuple[int, ...] = (64,)
    """Units of the hidden layers; the last one is recurrent."""
    cell: Literal["gru", "lstm"] = "gru"
    """The recurrent layer."""


class R2D2(DQN):
    """Q-learning with memory on replayed sequences (Kapturowski et al. 2019): one learner, one batch of environments.

    What differs from :class:`~rlbook.recipes.DQN` is the loss and what a sample is; acting, storing and the loop are the same.

    Args:
        config: the settings.

    Example:
        >>> agent = R2D2(R2D2Config(total_frames=1536))
        >>> for metrics in agent.train():
        ...     pass
        >>> metrics["frames"]
        1536
    """

    def make_loss(self) -> R2D2Loss:
        """Return the loss, which holds the network."""
        config = self.config
        qvalue = make_qvalue(self.env, num_cells=config.num_cells, recurrent=CELLS[config.cell])
        options = {"n": config.n, "burn_in": config.burn_in, "squash": config.squash, "double": config.double}
        return R2D2Loss(qvalue, gamma=config.gamma, **options)

    def make_buffer(self) -> ReplayBuffer:
        """Return a buffer whose samples are sequences."""
        config = self.config
        starts = PrioritizedSampler() if config.prioritized else None
        sampler = SliceSampler(config.sequence_len, burn_in=config.burn_in, pad=True, sampler=starts)
        return ReplayBuffer(config.buffer_size, sampler=sampler, batch_size=config.batch_size, device=config.device)

    def batches(self) -> Iterator[Any]:
        """Yield the samples of a round, each by the priorities that the last one has set."""
        return (self.buffer.sample() for _ in range(self.config.updates))

    def step(self, batch: Any) -> Any:
        """Take a gradient step; return its metrics."""
        metrics = self.update(batch)
        if self.config.prioritized:
            self.buffer.update_priority(batch["index"], metrics["td_error"])
        return metrics
