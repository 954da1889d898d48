"""Munchausen DQN as a difference to DQN: another target. ``python -m rlbook train munchausen CartPole-v1``."""

from __future__ import annotations

from dataclasses import dataclass

from rlbook.losses import MunchausenLoss
from rlbook.modules import make_qvalue
from rlbook.recipes.dqn import DQN, DQNConfig


@dataclass
class MunchausenConfig(DQNConfig):
    """Settings of :class:`Munchausen`: those of :class:`~rlbook.recipes.DQN` (but for ``double``), and the policy's."""

    alpha: float = 0.9
    """Share of the action's log-probability that is added to the reward."""
    tau: float = 0.03
    """Temperature of the policy, in units of return."""
    clip: float = -1.0
    """Lower bound of temperature times log-probability."""


class Munchausen(DQN):
    """Munchausen DQN (Vieillard et al. 2020).

    Args:
        config: the settings.

    Example:
        >>> agent = Munchausen(MunchausenConfig(total_frames=1280))
        >>> for metrics in agent.train():
        ...     pass
        >>> metrics["frames"]
        1280
    """

    unused = ("double",)

    def make_loss(self) -> MunchausenLoss:
        """Return the loss, which holds the network."""
        config = self.config
        qvalue = make_qvalue(self.env, num_cells=config.num_cells)
        return MunchausenLoss(qvalue, gamma=config.gamma, alpha=config.alpha, tau=config.tau, clip=config.clip)
