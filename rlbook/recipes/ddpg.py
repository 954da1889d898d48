"""DDPG in one file: read it from top to bottom, or run it with ``python -m rlbook train ddpg Pendulum``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rlbook.collectors import Collector
from rlbook.losses import DDPGLoss, SoftUpdate, compile_update
from rlbook.modules import AdditiveGaussian, RandomWarmup, make_actor, make_qvalue
from rlbook.recipes.base import Recipe, numbers
from rlbook.replay import ReplayBuffer, TensorStorage


@dataclass
class DDPGConfig:
    """Settings of :class:`DDPG`. The defaults are CleanRL's for MuJoCo (Huang et al. 2022), but for ``learning_starts``."""

    env: str = "Pendulum"
    """Environment: a Gymnasium id or the name of a native class; its actions are continuous, with bounds."""
    seed: int = 0
    """The one seed behind weights, actions, resets and samples."""
    total_frames: int = 20_000
    """Environment steps in all."""
    stop_at: float | None = None
    """Stop when the mean return of the last 100 episodes reaches this."""
    num_envs: int = 1
    """Environments that step together."""
    frames_per_batch: int = 1
    """Environment steps between two rounds of updates, over all environments; a multiple of ``num_envs``."""
    updates: int = 1
    """Gradient steps of a round."""
    learning_starts: int = 1000
    """Frames of uniform actions before the first update (25,000 for MuJoCo)."""
    buffer_size: int = 1_000_000
    """Rows of the replay buffer, the newest ones; never more than ``total_frames``."""
    batch_size: int = 256
    """Rows of a gradient step."""
    gamma: float = 0.99
    """Discount."""
    tau: float = 0.005
    """How far the targets move towards the networks at each of their steps."""
    lr: float = 3e-4
    """Learning rate of the actor."""
    lr_value: float = 3e-4
    """Learning rate of the critic."""
    actor_every: int = 2
    """Gradient steps of the critic for each step of the actor and of the targets."""
    sigma: float = 0.1
    """Standard deviation of the noise on the actions, as a share of half their range."""
    num_cells: tuple[int, ...] = (256, 256)
    """Units of the hidden layers, of actor and critic alike."""
    log_every: int = 1000
    """Frames between two rounds of metrics, which are those of the last updates."""
    device: str = "cpu"
    """Where tensors, networks and the replay buffer live."""
    compile: bool = False
    """Compile the gradient step and the collecting: some 10 to 40 s at the start, faster from then on."""


class DDPG(Recipe):
    """Deep deterministic policy gradients (Lillicrap et al. 2016).

    The buffer holds actions in the environment's units; the critic sees them scaled to [-1, 1]. Variants replace
    :meth:`make_loss`.

    Args:
        config: the settings.

    Example:
        >>> agent = DDPG(DDPGConfig(total_frames=300, learning_starts=200, num_cells=(32,), log_every=100))
        >>> for metrics in agent.train():
        ...     pass
        >>> metrics["frames"]
        300
    """

    actions = "continuous"
    config: Any

    def __init__(self, config: DDPGConfig):
        super().__init__(config)
        self.env = self.make_env()
        self.loss_fn = self.make_loss()
        self.actor = self.loss_fn.actor
        rates = {self.actor: config.lr, self.loss_fn.qvalue: config.lr_value}
        self.optimizer = torch.optim.Adam([{"params": part.parameters(), "lr": lr} for part, lr in rates.items()])
        self.target = SoftUpdate(self.loss_fn, config.tau, every=config.actor_every)
        every = {"loss_actor": config.actor_every}
        self.update = compile_update(self.loss_fn, self.optimizer, target=self.target, every=every, compile=config.compile)
        rows = min(config.buffer_size, config.total_frames + config.frames_per_batch)
        storage = TensorStorage(rows, config.device, in_keys=self.loss_fn.in_keys)
        self.buffer = ReplayBuffer(storage, batch_size=config.batch_size)
        self.explorer = RandomWarmup(AdditiveGaussian(self.actor, config.sigma), config.learning_starts)
        size, total = config.frames_per_batch, config.total_frames
        self.collector = Collector(self.env, self.explorer, frames_per_batch=size, total_frames=total, compile=config.compile)

    def make_loss(self) -> DDPGLoss:
        """Return the loss, which holds actor and critic."""
        cells = self.config.num_cells
        actor = make_actor(self.env, num_cells=cells, activation=nn.ReLU, std="none", orthogonal=False)
        return DDPGLoss(actor, make_qvalue(self.env, num_cells=cells), gamma=self.config.gamma)

    def train(self) -> Iterator[dict[str, float]]:
        """Collect a little, store it, update from the buffer; yield the metrics of every ``log_every`` frames."""
        config, losses = self.config, {}
        for data in self.collector:
            self.buffer.extend(data)
            score = self.episodes(data)
            if self.frames > config.learning_starts:
                for _ in range(config.updates):
                    losses |= self.update(self.buffer.sample()).items()
            if self.due:
                yield {"frames": self.frames, "episode_reward": score, **numbers(losses)}
                losses = {}
                if self.solved:
                    return
