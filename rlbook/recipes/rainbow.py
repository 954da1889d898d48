"""Rainbow as a difference to C51: what had been found out about DQN, put together. ``python -m rlbook train rainbow``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rlbook.losses import C51Loss
from rlbook.modules import NoisyExploration, Schedule, make_qvalue
from rlbook.recipes.c51 import C51, C51Config
from rlbook.replay import PrioritizedSampler


@dataclass
class RainbowConfig(C51Config):
    """Settings of :class:`Rainbow`: those of :class:`~rlbook.recipes.C51` but for epsilon, and of what is added."""

    double: bool = True
    """Let the learnt network choose the action that the target network values."""
    alpha: float = 0.5
    """How much the errors decide what is drawn: 0 not at all."""
    beta: float = 0.4
    """How much weights correct for that in the beginning; 1 in the end."""
    beta_frames: int = 50_000
    """Environment steps until it is there."""
    sigma: float = 0.5
    """Spread of the weights' noise in the beginning."""


class Rainbow(C51):
    """Double, dueling, distributional and noisy Q-learning of n-step returns from prioritized replay (Hessel et al. 2018).

    Args:
        config: the settings.

    Example:
        >>> agent = Rainbow(RainbowConfig(total_frames=1280, updates=16))
        >>> for metrics in agent.train():
        ...     pass
        >>> metrics["frames"]
        1280
    """

    unused = ("eps_end", "eps_frames")

    def make_loss(self) -> C51Loss:
        """Return the loss of a network with a dueling head and noisy layers."""
        config = self.config
        support = config.v_min, config.v_max, config.atoms
        qvalue = make_qvalue(self.env, num_cells=config.num_cells, support=support, dueling=True, noisy=config.sigma)
        return C51Loss(qvalue, gamma=config.gamma, double=config.double)

    def make_sampler(self) -> PrioritizedSampler:
        """Return a sampler that draws what surprises."""
        return PrioritizedSampler(self.config.alpha, self.config.beta)

    def make_actor(self) -> Any:
        """Return the policy that collects: it explores by its own noise."""
        return NoisyExploration(self.loss_fn.qvalue)

    def learn(self) -> dict[str, float]:
        """Take the gradient steps of a round, each of which sets the priorities of its rows."""
        sampler: Any = self.buffer.sampler
        sampler.beta = Schedule(self.config.beta, 1.0, self.config.beta_frames)(float(self.frames))
        return super().learn()

    def batches(self) -> Iterator[Any]:
        """Yield the samples of a round, each by the priorities that the last one has set."""
        return (self.buffer.sample() for _ in range(self.config.updates))

    def step(self, batch: Any) -> Any:
        """Take a gradient step; return its metrics."""
        metrics = self.update(batch)
        self.buffer.update_priority(batch["index"], metrics["td_error"])
        return metrics
