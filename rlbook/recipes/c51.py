"""C51 as a difference to DQN: it learns the distribution of returns. ``python -m rlbook train c51 CartPole-v1``."""

from __future__ import annotations

from dataclasses import dataclass

from rlbook.losses import C51Loss
from rlbook.modules import make_qvalue
from rlbook.recipes.dqn import DQN, DQNConfig


@dataclass
class C51Config(DQNConfig):
    """Settings of :class:`C51`: those of :class:`~rlbook.recipes.DQN`, and the grid of returns."""

    v_min: float = 0.0
    """Lowest discounted return on the grid."""
    v_max: float = 100.0
    """Highest one; with a reward of 1 per step it is 1 / (1 - gamma)."""
    atoms: int = 51
    """Points of the grid."""


class C51(DQN):
    """Categorical DQN (Bellemare et al. 2017).

    Args:
        config: the settings.

    Example:
        >>> agent = C51(C51Config(total_frames=1280))
        >>> for metrics in agent.train():
        ...     pass
        >>> metrics["frames"]
        1280
    """

    def make_loss(self) -> C51Loss:
        """Return the loss, which holds the network."""
        config = self.config
        support = config.v_min, config.v_max, config.atoms
        qvalue = make_qvalue(self.env, num_cells=config.num_cells, support=support)
        return C51Loss(qvalue, gamma=config.gamma, double=config.double)
