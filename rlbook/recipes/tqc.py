"""TQC: SAC whose critics return distributions, of which the targets leave out the best part."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from rlbook.losses import TQCLoss
from rlbook.modules import make_actor, make_qvalue
from rlbook.recipes.sac import SAC, SACConfig


@dataclass
class TQCConfig(SACConfig):
    """Settings of :class:`TQC`. The defaults are those of SB3 contrib, which has two critics for the paper's five."""

    lr_value: float = 3e-4
    """Learning rate of the critics and of the temperature."""
    members: int = 2
    """Critics."""
    quantiles: int = 25
    """Quantiles of each critic."""
    drop: int = 2
    """How many atoms the targets lose for each critic, the largest: more against overestimation."""


class TQC(SAC):
    """Truncated quantile critics (Kuznetsov et al. 2020).

    Args:
        config: the settings.

    Example:
        >>> agent = TQC(TQCConfig(total_frames=300, learning_starts=200, num_cells=(32,), log_every=100))
        >>> for metrics in agent.train():
        ...     pass
        >>> metrics["frames"]
        300
    """

    def make_loss(self) -> TQCLoss:
        """Return the loss, which holds actor and critics."""
        config, cells = self.config, self.config.num_cells
        actor = make_actor(self.env, num_cells=cells, activation=nn.ReLU, std="state", orthogonal=False)
        qvalue = make_qvalue(self.env, num_cells=cells, members=config.members, quantiles=config.quantiles)
        return TQCLoss(actor, qvalue, drop=config.drop, **self.loss_settings())
