"""SAC in one file: read it from top to bottom, or run it with ``python -m rlbook train sac Pendulum``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rlbook.collectors import Collector
from rlbook.losses import SACLoss, SoftUpdate, compile_update
from rlbook.modules import RandomWarmup, make_actor, make_qvalue
from rlbook.recipes.base import Recipe, numbers
from rlbook.replay import ReplayBuffer, TensorStorage


@dataclass
class SACConfig:
    """Settings of :class:`SAC`. The defaults are CleanRL's for MuJoCo (Huang et al. 2022), but for ``learning_starts``."""

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
    """Gradient steps of a round; the update-to-data ratio is ``updates / frames_per_batch``."""
    learning_starts: int = 1000
    """Frames of uniform actions before the first update (5000 for MuJoCo)."""
    buffer_size: int = 1_000_000
    """Rows of the replay buffer, the newest ones; never more than ``total_frames``."""
    batch_size: int = 256
    """Rows of a gradient step."""
    gamma: float = 0.99
    """Discount."""
    tau: float = 0.005
    """How far the target critics move towards the critics at each step."""
    lr: float = 3e-4
    """Learning rate of the actor."""
    lr_value: float = 1e-3
    """Learning rate of the critics and of the temperature."""
    actor_every: int = 1
    """Gradient steps of the critics for each step of the actor and of the temperature."""
    alpha: float = 1.0
    """Temperature at the start."""
    learn_alpha: bool = True
    """Adapt the temperature until the entropy is ``target_entropy``."""
    target_entropy: float | None = None
    """Entropy of the policy, in nats, that the temperature aims at; None is minus the number of action dimensions."""
    num_cells: tuple[int, ...] = (256, 256)
    """Units of the hidden layers, of actor and critics alike."""
    log_every: int = 1000
    """Frames between two rounds of metrics, which are those of the last updates."""
    device: str = "cpu"
    """Where tensors, networks and the replay buffer live."""
    compile: bool = False
    """Compile the gradient step and the collecting: some 10 to 40 s at the start, faster from then on."""


class SAC(Recipe):
    """Soft actor-critic (Haarnoja et al. 2018).

    The buffer holds actions in the environment's units; the critics see them scaled to [-1, 1]. Variants replace
    :meth:`make_loss`, :meth:`make_optimizer` or :meth:`make_target`.

    Args:
        config: the settings.

    Example:
        >>> agent = SAC(SACConfig(total_frames=300, learning_starts=200, num_cells=(32,), log_every=100))
        >>> for metrics in agent.train():
        ...     pass
        >>> metrics["frames"]
        300
    """

    actions = "continuous"
    config: Any
    loss_fn: Any

    def __init__(self, config: Any):
        super().__init__(config)
        self.env = self.make_env()
        self.loss_fn = self.make_loss()
        self.actor = self.loss_fn.actor
        self.optimizer = self.make_optimizer()
        self.target = self.make_target()
        every = {term: config.actor_every for term in self.loss_fn.trains if term != "loss_value"}
        self.update = compile_update(self.loss_fn, self.optimizer, target=self.target, every=every, compile=config.compile)
        rows = min(config.buffer_size, config.total_frames + config.frames_per_batch)
        storage = TensorStorage(rows, config.device, in_keys=self.loss_fn.in_keys)
        self.buffer = ReplayBuffer(storage, batch_size=config.batch_size)
        self.explorer = RandomWarmup(self.actor, config.learning_starts)
        size, total = config.frames_per_batch, config.total_frames
        self.collector = Collector(self.env, self.explorer, frames_per_batch=size, total_frames=total, compile=config.compile)

    def make_loss(self) -> Any:
        """Return the loss, which holds actor and critics."""
        cells = self.config.num_cells
        actor = make_actor(self.env, num_cells=cells, activation=nn.ReLU, std="state", orthogonal=False)
        qvalue = make_qvalue(self.env, num_cells=cells, members=2)
        return SACLoss(actor, qvalue, **self.loss_settings())

    def loss_settings(self) -> dict[str, Any]:
        """Return what every soft actor-critic's loss is told."""
        config = self.config
        target = "auto" if config.target_entropy is None else config.target_entropy
        return {"gamma": config.gamma, "alpha": config.alpha, "learn_alpha": config.learn_alpha, "target_entropy": target}

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer: actor, critics and temperature have learning rates of their own."""
        loss_fn, config = self.loss_fn, self.config
        rates = [(loss_fn.actor.parameters(), config.lr), (loss_fn.qvalue.parameters(), config.lr_value)]
        if config.learn_alpha:
            rates.append(([loss_fn.log_alpha], config.lr_value))
        return torch.optim.Adam([{"params": params, "lr": lr} for params, lr in rates])

    def make_target(self) -> SoftUpdate | None:
        """Return the way in which the targets follow."""
        return SoftUpdate(self.loss_fn, self.config.tau)

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
