"""IQN as a difference to QR-DQN: it learns any quantile. ``python -m rlbook train iqn CartPole-v1``."""

from __future__ import annotations

from dataclasses import dataclass

from rlbook.losses import IQNLoss
from rlbook.modules import make_qvalue
from rlbook.recipes.qrdqn import QRDQN, QRDQNConfig


@dataclass
class IQNConfig(QRDQNConfig):
    """Settings of :class:`IQN`: those of :class:`~rlbook.recipes.QRDQN`, where ``quantiles`` are those that make a value."""

    quantiles: int = 16
    """Quantiles whose mean is the value of an action."""
    learnt_quantiles: int = 8
    """Quantiles drawn for each row of a gradient step."""
    target_quantiles: int = 8
    """Quantiles drawn for its target."""


class IQN(QRDQN):
    """Implicit quantile networks (Dabney et al. 2018).

    Args:
        config: the settings.

    Example:
        >>> agent = IQN(IQNConfig(total_frames=1280, updates=16))
        >>> for metrics in agent.train():
        ...     pass
        >>> metrics["frames"]
        1280
    """

    def make_loss(self) -> IQNLoss:
        """Return the loss, which holds the network."""
        config = self.config
        qvalue = make_qvalue(self.env, num_cells=config.num_cells, quantiles=config.quantiles, implicit=True)
        counts = {"quantiles": config.learnt_quantiles, "target_quantiles": config.target_quantiles}
        return IQNLoss(qvalue, gamma=config.gamma, double=config.double, kappa=config.kappa, **counts)
