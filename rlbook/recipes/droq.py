"""DroQ: REDQ with two critics that drop units, in the place of many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from rlbook.modules import make_qvalue
from rlbook.recipes.redq import REDQ, REDQConfig


@dataclass
class DroQConfig(REDQConfig):
    """Settings of :class:`DroQ`. The defaults are those of Hiraoka et al. 2022 for Hopper, but for ``learning_starts``."""

    members: int = 2
    """Critics."""
    subset: int | None = None
    """How many of them, drawn for each batch, a target takes the least of; all when None."""
    dropout: float = 0.01
    """Probability of dropping a unit of a critic's hidden layers."""


class DroQ(REDQ):
    """Dropout Q-functions (Hiraoka et al. 2022).

    Args:
        config: the settings.

    Example:
        >>> agent = DroQ(DroQConfig(total_frames=210, learning_starts=200, num_cells=(32,), log_every=70))
        >>> for metrics in agent.train():
        ...     pass
        >>> metrics["frames"]
        210
    """

    def make_critics(self) -> Any:
        """Return critics with dropout and layer normalisation."""
        config = self.config
        layers = {"norm": nn.LayerNorm, "dropout": config.dropout}
        return make_qvalue(self.env, num_cells=config.num_cells, members=config.members, **layers)
