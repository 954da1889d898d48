"""PPO in one file: read it from top to bottom, or run it with ``python -m rlbook train ppo CartPole-v1``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase

from rlbook.collectors import Collector
from rlbook.estimators import GAE
from rlbook.functional import explained_variance
from rlbook.losses import PPOLoss, compile_update
from rlbook.modules import Actor, ValueHead, make_actor, make_value
from rlbook.recipes.base import Recipe, normalized, numbers
from rlbook.replay import minibatches


@dataclass
class PPOConfig:
    """Settings of :class:`PPO`. The defaults are the tuned CartPole settings of RL Baselines3 Zoo (Raffin 2020)."""

    env: str = "CartPole-v1"
    """Environment: a Gymnasium id or the name of a native class."""
    seed: int = 0
    """The one seed behind weights, actions, resets and minibatches."""
    total_frames: int = 100_000
    """Environment steps in all; the schedules of learning rate and clipping end here."""
    stop_at: float | None = None
    """Stop when the mean return of the last 100 episodes reaches this."""
    num_envs: int = 8
    """Environments that step together."""
    frames_per_batch: int = 256
    """Environment steps between two rounds of updates, over all environments."""
    epochs: int = 20
    """Passes over each batch."""
    minibatch_size: int = 256
    """Rows of a gradient step."""
    gamma: float = 0.98
    """Discount."""
    gae_lambda: float = 0.8
    """Trade-off of GAE: 0 trusts the values, 1 the rewards."""
    lr: float = 1e-3
    """Learning rate of Adam at the start."""
    clip_eps: float = 0.2
    """Clipping of the ratio at the start."""
    anneal: bool = True
    """Let the learning rate and the clipping fall to zero, linearly."""
    anneal_clip: bool = True
    """With ``anneal``: the clipping too, not the learning rate alone."""
    normalize: bool = False
    """Give observations and rewards unit variance, by running statistics: for physics, whose units are arbitrary."""
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


class PPO(Recipe):
    """Proximal policy optimisation (Schulman et al. 2017).

    Variants replace :meth:`make_modules`, :meth:`make_loss`, :attr:`policy` or :meth:`batches`.

    Args:
        config: the settings.

    Example:
        >>> agent = PPO(PPOConfig(total_frames=2048))
        >>> for metrics in agent.train():
        ...     pass
        >>> metrics["frames"]
        2048
    """

    config: Any

    def __init__(self, config: PPOConfig):
        super().__init__(config)
        self.env = self.make_env()
        if config.normalize:
            self.env = normalized(self.env, config.gamma)
        self.actor, self.value = self.make_modules()
        self.loss_fn = self.make_loss()
        self.optimizer = torch.optim.Adam(self.loss_fn.parameters(), lr=config.lr, eps=1e-5)
        self.update = compile_update(self.loss_fn, self.optimizer, max_grad_norm=config.max_grad_norm, compile=config.compile)
        self.estimator = GAE(self.value, config.gamma, config.gae_lambda)
        size, total = config.frames_per_batch, config.total_frames
        self.collector = Collector(self.env, self.policy, frames_per_batch=size, total_frames=total, compile=config.compile)

    def make_modules(self) -> tuple[Actor, ValueHead]:
        """Return actor and critic."""
        cells = self.config.num_cells
        return make_actor(self.env, num_cells=cells), make_value(self.env, num_cells=cells)

    def make_loss(self) -> Any:
        """Return the loss."""
        config = self.config
        weights = {"entropy_coef": config.entropy_coef, "value_coef": config.value_coef}
        return PPOLoss(self.actor, self.value, clip_eps=config.clip_eps, **weights)

    @property
    def policy(self) -> Any:
        """The policy that collects."""
        return self.actor

    def batches(self, data: TensorDictBase) -> Iterator[TensorDictBase]:
        """Yield the minibatches of a round."""
        config = self.config
        return minibatches(data, config.minibatch_size, epochs=config.epochs, in_keys=self.loss_fn.in_keys)

    def train(self) -> Iterator[dict[str, float]]:
        """Collect, estimate, update; yield the metrics of each round."""
        config = self.config
        for data in self.collector:
            if config.anneal:
                left = 1 - (self.frames - config.frames_per_batch) / config.total_frames
                self.optimizer.param_groups[0]["lr"] = config.lr * left
                if config.anneal_clip:
                    self.loss_fn.clip_eps = config.clip_eps * left
            data = self.estimator(data)
            for batch in self.batches(data):
                metrics = self.update(batch)
            score = self.episodes(data)
            explained = explained_variance(data["state_value"], data["value_target"]).item()
            yield {"frames": self.frames, "episode_reward": score, "explained_variance": explained, **numbers(metrics)}
            if self.solved:
                return
