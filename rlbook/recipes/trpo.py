"""TRPO in one file: read it from top to bottom, or run it with ``python -m rlbook train trpo CartPole-v1``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from rlbook.collectors import Collector
from rlbook.estimators import GAE
from rlbook.functional import explained_variance
from rlbook.losses import TRPOLoss, TRPOUpdate
from rlbook.modules import make_actor, make_value
from rlbook.recipes.base import Recipe, normalized, numbers
from rlbook.replay import minibatches


@dataclass
class TRPOConfig:
    """Settings of :class:`TRPO`. The defaults are the tuned CartPole settings of RL Baselines3 Zoo (Raffin 2020)."""

    env: str = "CartPole-v1"
    """Environment: a Gymnasium id or the name of a native class."""
    seed: int = 0
    """The one seed behind weights, actions, resets and minibatches."""
    total_frames: int = 100_000
    """Environment steps in all."""
    stop_at: float | None = None
    """Stop when the mean return of the last 100 episodes reaches this."""
    num_envs: int = 2
    """Environments that step together."""
    frames_per_batch: int = 1024
    """Environment steps between two steps of the policy, over all environments."""
    gamma: float = 0.99
    """Discount."""
    gae_lambda: float = 0.98
    """Trade-off of GAE: 0 trusts the values, 1 the rewards."""
    max_kl: float = 0.01
    """How far a step may move the policy, in nats."""
    damping: float = 1e-3
    """Added to the Fisher matrix."""
    cg_iterations: int = 15
    """Products with the Fisher matrix for a step."""
    lr: float = 1e-3
    """Learning rate of the value's Adam."""
    value_epochs: int = 20
    """Passes over each batch to train the value."""
    minibatch_size: int = 512
    """Rows of a gradient step of the value."""
    normalize: bool = False
    """Give observations and rewards unit variance, by running statistics: for physics, whose units are arbitrary."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    num_cells: tuple[int, ...] = (64, 64)
    """Units of the hidden layers, of actor and critic alike."""
    device: str = "cpu"
    """Where tensors and networks live."""
    compile: bool = False
    """Compile the value's gradient step and the collecting: some 10 to 40 s at the start, faster from then on."""


class TRPO(Recipe):
    """Trust region policy optimisation (Schulman et al. 2015).

    Args:
        config: the settings.

    Example:
        >>> agent = TRPO(TRPOConfig(total_frames=2048))
        >>> for metrics in agent.train():
        ...     pass
        >>> 0 < metrics["kl"] <= 0.01
        True
    """

    def __init__(self, config: TRPOConfig):
        super().__init__(config)
        self.env = self.make_env()
        if config.normalize:
            self.env = normalized(self.env, config.gamma)
        self.actor = make_actor(self.env, num_cells=config.num_cells)
        self.value = make_value(self.env, num_cells=config.num_cells)
        self.loss_fn = TRPOLoss(self.actor, self.value, entropy_coef=config.entropy_coef, value_coef=1.0)
        self.optimizer = torch.optim.Adam(self.value.parameters(), lr=config.lr)
        self.update = TRPOUpdate(
            self.loss_fn,
            self.optimizer,
            max_kl=config.max_kl,
            damping=config.damping,
            iterations=config.cg_iterations,
            value_epochs=config.value_epochs,
            value_size=config.minibatch_size,
            compile=config.compile,
        )
        self.estimator = GAE(self.value, config.gamma, config.gae_lambda)
        size, total = config.frames_per_batch, config.total_frames
        self.collector = Collector(self.env, self.actor, frames_per_batch=size, total_frames=total, compile=config.compile)

    def train(self) -> Iterator[dict[str, float]]:
        """Collect, estimate, take one step of the policy and many of the value; yield the metrics of each round."""
        for data in self.collector:
            data = self.estimator(data)
            for batch in minibatches(data, self.config.frames_per_batch, in_keys=self.loss_fn.in_keys):
                metrics = self.update(batch)
            score = self.episodes(data)
            explained = explained_variance(data["state_value"], data["value_target"]).item()
            yield {"frames": self.frames, "episode_reward": score, "explained_variance": explained, **numbers(metrics)}
            if self.solved:
                return
