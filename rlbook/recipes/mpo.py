"""MPO: the loop of SAC, but the policy is fitted to drawn actions that are weighted by their value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from rlbook.losses import HardUpdate, MPOLoss
from rlbook.modules import make_actor, make_qvalue
from rlbook.recipes.sac import SAC


@dataclass
class MPOConfig:
    """Settings of :class:`MPO`. The defaults are ours, for short runs: the papers' bounds hold the policy back longer."""

    env: str = "Pendulum"
    """Environment: a Gymnasium id or the name of a native class; its actions are continuous."""
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
    """Frames of uniform actions before the first update."""
    buffer_size: int = 1_000_000
    """Rows of the replay buffer, the newest ones; never more than ``total_frames``."""
    batch_size: int = 256
    """Rows of a gradient step."""
    samples: int = 20
    """Actions drawn for each of them."""
    gamma: float = 0.99
    """Discount."""
    target_every: int = 100
    """Gradient steps between two copies to the target policy and the target critic."""
    lr: float = 3e-4
    """Learning rate of the policy."""
    lr_value: float = 3e-4
    """Learning rate of the critic."""
    lr_dual: float = 1e-2
    """Learning rate of the temperature and of the multipliers."""
    actor_every: int = 1
    """Gradient steps of the critic for each step of the policy and of the multipliers."""
    temperature: float = 10.0
    """Temperature of the weights at the start, in units of return; it adapts."""
    epsilon: float = 0.1
    """Bound on how far the weights of the drawn actions may be from uniform, in nats."""
    epsilon_mean: float = 0.01
    """Bound on what the mean adds to the policy's divergence from its target, for each action dimension, in nats."""
    epsilon_std: float = 1e-4
    """The same for the standard deviation."""
    num_cells: tuple[int, ...] = (256, 256)
    """Units of the hidden layers, of policy and critic alike."""
    log_every: int = 1000
    """Frames between two rounds of metrics, which are those of the last updates."""
    device: str = "cpu"
    """Where tensors, networks and the replay buffer live."""
    compile: bool = False
    """Compile the gradient step and the collecting: some 10 to 40 s at the start, faster from then on."""


class MPO(SAC):
    """Maximum a posteriori policy optimisation (Abdolmaleki et al. 2018).

    Args:
        config: the settings.

    Example:
        >>> agent = MPO(MPOConfig(total_frames=300, learning_starts=200, num_cells=(32,), log_every=100))
        >>> for metrics in agent.train():
        ...     pass
        >>> metrics["frames"]
        300
    """

    def make_loss(self) -> MPOLoss:
        """Return the loss, which holds policy, critic and multipliers."""
        config, cells = self.config, self.config.num_cells
        actor = make_actor(self.env, num_cells=cells, activation=nn.ReLU, std="state", orthogonal=False)
        settings = {name: getattr(config, name) for name in ("temperature", "epsilon", "epsilon_mean", "epsilon_std")}
        qvalue = make_qvalue(self.env, num_cells=cells)
        return MPOLoss(actor, qvalue, gamma=config.gamma, samples=config.samples, **settings)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer: policy, critic and multipliers have learning rates of their own."""
        loss_fn, config = self.loss_fn, self.config
        rates = [(loss_fn.actor.parameters(), config.lr), (loss_fn.qvalue.parameters(), config.lr_value)]
        rates += [([loss_fn.dual_mean, loss_fn.dual_std], config.lr_dual), ([loss_fn.dual_temperature], config.lr_dual)]
        return torch.optim.Adam([{"params": params, "lr": lr} for params, lr in rates])

    def make_target(self) -> HardUpdate:
        """Return the way in which the targets follow."""
        return HardUpdate(self.loss_fn, every=self.config.target_every)
