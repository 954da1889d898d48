"""CrossQ: SAC with batch normalisation in the place of target networks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from rlbook.losses import CrossQLoss
from rlbook.modules import BatchRenorm, make_actor, make_qvalue
from rlbook.recipes.sac import SAC, SACConfig


@dataclass
class CrossQConfig(SACConfig):
    """Settings of :class:`CrossQ`. The defaults are those of Bhatt et al. 2024, but for the width of the critics (2048 there)."""

    lr: float = 1e-3
    """Learning rate of the actor."""
    actor_every: int = 3
    """Gradient steps of the critics for each step of the actor and of the temperature."""
    beta1: float = 0.5
    """Decay of Adam's mean of gradients; low, for critics without targets learn towards what moves fast."""
    critic_cells: tuple[int, ...] = (512, 512)
    """Units of the critics' hidden layers."""


class CrossQ(SAC):
    """Batch normalisation across states and next states (Bhatt et al. 2024).

    Args:
        config: the settings.

    Example:
        >>> small = {"num_cells": (32,), "critic_cells": (32,)}
        >>> agent = CrossQ(CrossQConfig(total_frames=300, learning_starts=200, log_every=100, **small))
        >>> for metrics in agent.train():
        ...     pass
        >>> metrics["frames"]
        300
    """

    unused = ("tau",)

    def make_loss(self) -> CrossQLoss:
        """Return the loss, which holds actor and critics."""
        config = self.config
        layers = {"activation": nn.ReLU, "norm": BatchRenorm, "norm_after": True, "norm_input": True}
        actor = make_actor(self.env, num_cells=config.num_cells, std="state", orthogonal=False, **layers)
        qvalue = make_qvalue(self.env, num_cells=config.critic_cells, members=2, **layers)
        return CrossQLoss(actor, qvalue, **self.loss_settings())

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer; actor and critics have less momentum, the temperature has Adam's own."""
        optimizer = super().make_optimizer()
        for group in optimizer.param_groups[:2]:
            group["betas"] = (self.config.beta1, 0.999)
        return optimizer

    def make_target(self) -> None:
        """There are no targets."""
