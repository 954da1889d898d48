"""IMPALA's learner on one machine, in one file: ``python -m rlbook train impala CartPole-v1``. A2C, and what is printed here."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from rlbook.estimators import Estimator, VTrace
from rlbook.losses import VTraceLoss
from rlbook.recipes.a2c import A2C, A2CConfig


@dataclass
class ImpalaConfig(A2CConfig):
    """Settings of :class:`Impala`: those of A2C, whose CartPole settings these are but for what is listed here."""

    total_frames: int = 200_000
    """Environment steps in all."""
    frames_per_batch: int = 160
    """Environment steps between two updates, over all environments: 20 of each, as in the paper."""
    lr: float = 2e-3
    """Learning rate of RMSprop at the start."""
    entropy_coef: float = 0.01
    """Weight of the entropy bonus."""
    lag: int = 4
    """Updates between two copies of the learnt policy to the acting one: data are up to ``lag - 1`` updates old."""
    correct: bool = True
    """Correct for that with V-trace. Without it the data are taken for the learnt policy's own."""
    rho_clip: float = 1.0
    """Largest weight of a step; it decides which policy's value is learnt."""
    c_clip: float = 1.0
    """Largest weight by which later steps are passed on; it trades speed for variance."""


class Impala(A2C):
    """The importance weighted actor-learner (Espeholt et al. 2018), in one process: what lags is a copy of the policy.

    Args:
        config: the settings.

    Example:
        >>> agent = Impala(ImpalaConfig(total_frames=1600))
        >>> for metrics in agent.train():
        ...     pass
        >>> metrics["frames"]
        1600
    """

    def __init__(self, config: ImpalaConfig):
        super().__init__(config)
        self.rounds = 0

    def make_policy(self) -> Any:
        """Return the policy that collects: a copy of the learnt one, of some updates ago."""
        self.acting = deepcopy(self.actor)
        return self.acting

    def make_loss(self) -> Any:
        """Return the loss."""
        config = self.config
        weights = {"entropy_coef": config.entropy_coef, "value_coef": config.value_coef}
        return VTraceLoss(self.actor, self.value, **weights, normalize_advantage=config.normalize_advantage)

    def make_estimator(self) -> Estimator:
        """Return what finds advantages and value targets."""
        config = self.config
        if not config.correct:
            return super().make_estimator()
        clips = {"rho_clip": config.rho_clip, "c_clip": config.c_clip}
        return VTrace(self.actor, self.value, config.gamma, **clips, td_lambda=config.gae_lambda)

    def train(self) -> Iterator[dict[str, float]]:
        """Train like A2C, and renew the acting policy now and then; yield the metrics of each round."""
        for metrics in super().train():
            self.rounds += 1
            if self.rounds % self.config.lag == 0:
                self.acting.load_state_dict(self.actor.state_dict())
            yield metrics
