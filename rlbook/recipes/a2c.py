"""A2C in one file: read it from top to bottom, or run it with ``python -m rlbook train a2c CartPole-v1``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from rlbook.collectors import Collector
from rlbook.estimators import GAE, Estimator
from rlbook.functional import explained_variance
from rlbook.losses import A2CLoss, compile_update
from rlbook.modules import make_actor, make_value
from rlbook.recipes.base import Recipe, normalized, numbers
from rlbook.replay import minibatches


@dataclass
class A2CConfig:
    """Settings of :class:`A2C`. The defaults are the tuned CartPole settings of RL Baselines3 Zoo (Raffin 2020)."""

    env: str = "CartPole-v1"
    """Environment: a Gymnasium id or the name of a native class."""
    seed: int = 0
    """The one seed behind weights, actions and resets."""
    total_frames: int = 500_000
    """Environment steps in all."""
    stop_at: float | None = None
    """Stop when the mean return of the last 100 episodes reaches this."""
    num_envs: int = 8
    """Environments that step together."""
    frames_per_batch: int = 40
    """Environment steps between two updates, over all environments: 5 of each."""
    gamma: float = 0.99
    """Discount."""
    gae_lambda: float = 1.0
    """Trade-off of GAE: 0 trusts the values, 1 the rewards."""
    lr: float = 7e-4
    """Learning rate of RMSprop at the start."""
    anneal: bool = False
    """Let the learning rate fall to zero, linearly."""
    normalize: bool = False
    """Give observations and rewards unit variance, by running statistics: for physics, whose units are arbitrary."""
    normalize_advantage: bool = False
    """Give the advantages of each batch mean 0 and standard deviation 1."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    value_coef: float = 0.5
    """Weight of the value loss."""
    max_grad_norm: float = 0.5
    """Largest norm of a gradient."""
    num_cells: tuple[int, ...] = (64, 64)
    """Units of the hidden layers, of actor and critic alike."""
    device: str = "cpu"
    """Where tensors and networks live."""
    compile: bool = False
    """Compile the gradient step and the collecting: some 10 to 40 s at the start, faster from then on."""


class A2C(Recipe):
    """Advantage actor-critic (Mnih et al. 2016), synchronous. Variants replace one of the methods that make its parts.

    Args:
        config: the settings.

    Example:
        >>> agent = A2C(A2CConfig(total_frames=400))
        >>> for metrics in agent.train():
        ...     pass
        >>> metrics["frames"]
        400
    """

    config: Any

    def __init__(self, config: A2CConfig):
        super().__init__(config)
        self.env = self.make_env()
        if config.normalize:
            self.env = normalized(self.env, config.gamma)
        self.actor = make_actor(self.env, num_cells=config.num_cells)
        self.value = make_value(self.env, num_cells=config.num_cells)
        self.loss_fn = self.make_loss()
        self.optimizer = torch.optim.RMSprop(self.loss_fn.parameters(), lr=config.lr, alpha=0.99, eps=1e-5)
        self.update = compile_update(self.loss_fn, self.optimizer, max_grad_norm=config.max_grad_norm, compile=config.compile)
        self.estimator = self.make_estimator()
        size, total = config.frames_per_batch, config.total_frames
        self.collector = Collector(
            self.env, self.make_policy(), frames_per_batch=size, total_frames=total, compile=config.compile
        )

    def make_loss(self) -> Any:
        """Return the loss."""
        config = self.config
        weights = {"entropy_coef": config.entropy_coef, "value_coef": config.value_coef}
        return A2CLoss(self.actor, self.value, **weights, normalize_advantage=config.normalize_advantage)

    def make_estimator(self) -> Estimator:
        """Return what finds advantages and value targets."""
        return GAE(self.value, self.config.gamma, self.config.gae_lambda)

    def make_policy(self) -> Any:
        """Return the policy that collects."""
        return self.actor

    def train(self) -> Iterator[dict[str, float]]:
        """Collect, estimate, take one step on all of it; yield the metrics of each round."""
        config = self.config
        for data in self.collector:
            if config.anneal:
                left = 1 - (self.frames - config.frames_per_batch) / config.total_frames
                self.optimizer.param_groups[0]["lr"] = config.lr * left
            data = self.estimator(data)
            for batch in minibatches(data, config.frames_per_batch, in_keys=self.loss_fn.in_keys):
                metrics = self.update(batch)
            score = self.episodes(data)
            explained = explained_variance(data["state_value"], data["value_target"]).item()
            yield {"frames": self.frames, "episode_reward": score, "explained_variance": explained, **numbers(metrics)}
            if self.solved:
                return
