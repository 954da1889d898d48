"""SAC for discrete actions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from rlbook.losses import DiscreteSACLoss
from rlbook.modules import make_actor, make_qvalue
from rlbook.recipes.sac import SAC, SACConfig


@dataclass
class SACDiscreteConfig(SACConfig):
    """Settings of :class:`SACDiscrete`, for CartPole; otherwise those of SAC."""

    env: str = "CartPole-v1"
    """Environment: a Gymnasium id or the name of a native class; its actions are one choice of several."""
    lr: float = 1e-3
    """Learning rate of the actor."""
    target_entropy: float | None = None
    """Entropy of the policy, in nats, that the temperature aims at; None is a share of that of uniform actions."""
    entropy_share: float = 0.3
    """That share (0.98 in the paper: hardly better than chance on two actions)."""


class SACDiscrete(SAC):
    """Soft actor-critic with exact expectations over discrete actions (Christodoulou 2019).

    Args:
        config: the settings.

    Example:
        >>> agent = SACDiscrete(SACDiscreteConfig(total_frames=300, learning_starts=200, num_cells=(32,), log_every=100))
        >>> for metrics in agent.train():
        ...     pass
        >>> metrics["frames"]
        300
    """

    actions = "discrete"

    def make_loss(self) -> DiscreteSACLoss:
        """Return the loss, which holds actor and critics."""
        config, cells = self.config, self.config.num_cells
        actor = make_actor(self.env, num_cells=cells, activation=nn.ReLU, orthogonal=False)
        qvalue = make_qvalue(self.env, num_cells=cells, members=2)
        settings = self.loss_settings()
        if config.target_entropy is None:
            settings["target_entropy"] = config.entropy_share * math.log(qvalue.spec.n)
        return DiscreteSACLoss(actor, qvalue, **settings)
