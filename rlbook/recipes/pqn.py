"""PQN in one file: Q-learning without replay or target network. ``python -m rlbook train pqn CartPole-v1``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from rlbook.collectors import Collector
from rlbook.estimators import QLambda
from rlbook.losses import PQNLoss, compile_update
from rlbook.modules import EpsilonGreedy, make_qvalue
from rlbook.recipes.base import Recipe, numbers
from rlbook.replay import minibatches


@dataclass
class PQNConfig:
    """Settings of :class:`PQN`: CleanRL's for CartPole (Huang et al. 2022), but for those that say otherwise, and RAdam there."""

    env: str = "CartPole-v1"
    """Environment: a Gymnasium id or the name of a native class."""
    seed: int = 0
    """The one seed behind weights, actions, resets and minibatches."""
    total_frames: int = 200_000
    """Environment steps in all; the learning rate falls to zero there (CleanRL: 500,000)."""
    stop_at: float | None = None
    """Stop when the mean return of the last 100 episodes reaches this."""
    num_envs: int = 8
    """Environments that step together (CleanRL: 4)."""
    frames_per_batch: int = 512
    """Environment steps between two rounds of updates, over all environments."""
    epochs: int = 4
    """Passes over each batch."""
    minibatch_size: int = 128
    """Rows of a gradient step."""
    gamma: float = 0.99
    """Discount."""
    td_lambda: float = 0.65
    """Trade-off of the targets: 0 trusts the values, 1 the rewards."""
    lr: float = 1e-3
    """Learning rate of Adam at the start (CleanRL: 2.5e-4)."""
    anneal: bool = True
    """Let the learning rate fall to zero, linearly."""
    eps_end: float = 0.05
    """Probability of a random action in the end; it begins at 1."""
    eps_frames: int = 50_000
    """Environment steps until it is there (CleanRL: 250,000)."""
    max_grad_norm: float = 10.0
    """Largest norm of a gradient."""
    num_cells: tuple[int, ...] = (120, 84)
    """Units of the hidden layers, each of which is normalised."""
    device: str = "cpu"
    """Where tensors and networks live."""
    compile: bool = False
    """Compile the gradient step and the collecting: some 10 to 40 s at the start, faster from then on."""


class PQN(Recipe):
    """Parallelised Q-network (Gallici et al. 2025): the loop of PPO, with action values.

    Args:
        config: the settings.

    Example:
        >>> agent = PQN(PQNConfig(total_frames=1024))
        >>> for metrics in agent.train():
        ...     pass
        >>> metrics["frames"]
        1024
    """

    actions = "discrete"

    def __init__(self, config: PQNConfig):
        super().__init__(config)
        self.env = self.make_env()
        self.qvalue = make_qvalue(self.env, num_cells=config.num_cells, norm=nn.LayerNorm)
        self.loss_fn = PQNLoss(self.qvalue)
        self.optimizer = torch.optim.Adam(self.loss_fn.parameters(), lr=config.lr)
        self.update = compile_update(self.loss_fn, self.optimizer, max_grad_norm=config.max_grad_norm, compile=config.compile)
        self.estimator = QLambda(self.qvalue, config.gamma, config.td_lambda)
        self.actor = EpsilonGreedy(self.qvalue, 1.0, config.eps_end, config.eps_frames)
        size, total = config.frames_per_batch, config.total_frames
        self.collector = Collector(self.env, self.actor, frames_per_batch=size, total_frames=total, compile=config.compile)

    def train(self) -> Iterator[dict[str, float]]:
        """Collect, estimate, update; yield the metrics of each round."""
        config = self.config
        for data in self.collector:
            if config.anneal:
                left = 1 - (self.frames - config.frames_per_batch) / config.total_frames
                self.optimizer.param_groups[0]["lr"] = config.lr * left
            data = self.estimator(data)
            for batch in minibatches(data, config.minibatch_size, epochs=config.epochs, in_keys=self.loss_fn.in_keys):
                metrics = self.update(batch)
            yield {"frames": self.frames, "episode_reward": self.episodes(data), **numbers(metrics)}
            if self.solved:
                return
