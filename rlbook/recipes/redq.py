"""REDQ: SAC with many critics and many updates per step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from rlbook.losses import REDQLoss
from rlbook.modules import make_actor, make_qvalue
from rlbook.recipes.sac import SAC, SACConfig


@dataclass
class REDQConfig(SACConfig):
    """Settings of :class:`REDQ`. The defaults are those of Chen et al. 2021, appendix B, but for ``learning_starts``.

    Their ``target_entropy`` is set for each body (-1 for Hopper, -3 for HalfCheetah and Walker2d), as in MBPO.
    """

    total_frames: int = 5000
    """Environment steps in all."""
    updates: int = 20
    """Gradient steps of a round; the update-to-data ratio is ``updates / frames_per_batch``."""
    lr_value: float = 3e-4
    """Learning rate of the critics and of the temperature."""
    actor_every: int = 20
    """Gradient steps of the critics for each step of the actor and of the temperature."""
    members: int = 10
    """Critics."""
    subset: int | None = 2
    """How many of them, drawn for each batch, a target takes the least of; all when None."""


class REDQ(SAC):
    """Randomised ensembled double Q-learning (Chen et al. 2021).

    Args:
        config: the settings.

    Example:
        >>> agent = REDQ(REDQConfig(total_frames=210, learning_starts=200, num_cells=(32,), log_every=70))
        >>> for metrics in agent.train():
        ...     pass
        >>> metrics["frames"]
        210
    """

    def make_loss(self) -> REDQLoss:
        """Return the loss, which holds actor and critics."""
        config, cells = self.config, self.config.num_cells
        actor = make_actor(self.env, num_cells=cells, activation=nn.ReLU, std="state", orthogonal=False)
        return REDQLoss(actor, self.make_critics(), subset=config.subset, **self.loss_settings())

    def make_critics(self) -> Any:
        """Return the ensemble."""
        return make_qvalue(self.env, num_cells=self.config.num_cells, members=self.config.members)
