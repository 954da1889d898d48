"""QR-DQN as a difference to DQN: it learns quantiles of returns. ``python -m rlbook train qrdqn CartPole-v1``."""

from __future__ import annotations

from dataclasses import dataclass

from rlbook.losses import QRDQNLoss
from rlbook.modules import make_qvalue
from rlbook.recipes.dqn import DQN, DQNConfig


@dataclass
class QRDQNConfig(DQNConfig):
    """Settings of :class:`QRDQN`: those of :class:`~rlbook.recipes.DQN`, and the quantiles."""

    updates: int = 16
    """Gradient steps of a round: twice those of DQN, as in SB3 Zoo. With 8 CartPole is not solved within 50,000 frames."""
    quantiles: int = 10
    """Quantiles of each action's return."""
    kappa: float = 1.0
    """Where the Huber loss becomes linear."""


class QRDQN(DQN):
    """DQN by quantile regression (Dabney et al. 2018).

    Args:
        config: the settings.

    Example:
        >>> agent = QRDQN(QRDQNConfig(total_frames=1280))
        >>> for metrics in agent.train():
        ...     pass
        >>> metrics["frames"]
        1280
    """

    def make_loss(self) -> QRDQNLoss:
        """Return the loss, which holds the network."""
        config = self.config
        qvalue = make_qvalue(self.env, num_cells=config.num_cells, quantiles=config.quantiles)
        return QRDQNLoss(qvalue, gamma=config.gamma, double=config.double, kappa=config.kappa)
