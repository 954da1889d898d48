"""TD3: DDPG with two critics, smoothed targets and a delayed actor."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from rlbook.losses import TD3Loss
from rlbook.modules import make_actor, make_qvalue
from rlbook.recipes.ddpg import DDPG, DDPGConfig


@dataclass
class TD3Config(DDPGConfig):
    """Settings of :class:`TD3`. The defaults are CleanRL's for MuJoCo (Huang et al. 2022), but for ``learning_starts``."""

    noise_scale: float = 0.2
    """Standard deviation of the noise on the targets' actions, as a share of half their range."""
    noise_clip: float = 0.5
    """Bound of that noise, in the same unit."""


class TD3(DDPG):
    """Twin delayed DDPG (Fujimoto et al. 2018).

    Args:
        config: the settings.

    Example:
        >>> agent = TD3(TD3Config(total_frames=300, learning_starts=200, num_cells=(32,), log_every=100))
        >>> for metrics in agent.train():
        ...     pass
        >>> metrics["frames"]
        300
    """

    def make_loss(self) -> TD3Loss:
        """Return the loss, which holds actor and critics."""
        config, cells = self.config, self.config.num_cells
        actor = make_actor(self.env, num_cells=cells, activation=nn.ReLU, std="none", orthogonal=False)
        qvalue = make_qvalue(self.env, num_cells=cells, members=2)
        return TD3Loss(actor, qvalue, gamma=config.gamma, noise_scale=config.noise_scale, noise_clip=config.noise_clip)
