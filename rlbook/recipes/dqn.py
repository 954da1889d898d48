"""DQN in one file: read it from top to bottom, or run it with ``python -m rlbook train dqn CartPole-v1``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from rlbook import keys
from rlbook.collectors import Collector
from rlbook.losses import DQNLoss, HardUpdate, compile_update
from rlbook.losses.base import next_of, unique
from rlbook.modules import EpsilonGreedy, Schedule, make_qvalue
from rlbook.recipes.base import Recipe, numbers
from rlbook.replay import NStep, ReplayBuffer, Sampler, TensorStorage


@dataclass
class DQNConfig:
    """Settings of :class:`DQN`. The defaults are ours, for CartPole, where returns of three steps make learning steady."""

    env: str = "CartPole-v1"
    """Environment: a Gymnasium id or the name of a native class."""
    seed: int = 0
    """The one seed behind weights, actions, resets and samples."""
    total_frames: int = 50_000
    """Environment steps in all."""
    stop_at: float | None = None
    """Stop when the mean return of the last 100 episodes reaches this."""
    num_envs: int = 4
    """Environments that step together."""
    frames_per_batch: int = 32
    """Environment steps between two rounds of updates, over all environments."""
    updates: int = 8
    """Gradient steps of a round."""
    batch_size: int = 128
    """Rows of a gradient step."""
    buffer_size: int = 100_000
    """Steps that the buffer keeps."""
    learning_starts: int = 1000
    """Environment steps before the first update."""
    gamma: float = 0.99
    """Discount."""
    n: int = 3
    """Steps of the return; 1 for the published algorithm."""
    lr: float = 2e-3
    """Learning rate of Adam."""
    anneal: float = 0.5
    """Share of the run, its end, in which the learning rate falls to 0: less of what was learnt is lost again."""
    double: bool = True
    """Let the learnt network choose the action that the target network values: less overestimation."""
    target_every: int = 100
    """Gradient steps between two copies to the target network."""
    eps_end: float = 0.04
    """Probability of a random action in the end; it begins at 1."""
    eps_frames: int = 8000
    """Environment steps until it is there."""
    max_grad_norm: float = 10.0
    """Largest norm of a gradient."""
    num_cells: tuple[int, ...] = (64, 64)
    """Units of the hidden layers."""
    device: str = "cpu"
    """Where tensors and networks live."""
    compile: bool = False
    """Compile the gradient step and the collecting: some 10 to 40 s at the start, faster from then on."""


class DQN(Recipe):
    """Deep Q-learning with replay and a target network (Mnih et al. 2015), and double (van Hasselt et al. 2016).

    Variants replace :meth:`make_loss`, :meth:`make_sampler` or :meth:`make_actor`.

    Args:
        config: the settings.

    Example:
        >>> agent = DQN(DQNConfig(total_frames=1280))
        >>> for metrics in agent.train():
        ...     pass
        >>> metrics["frames"]
        1280
    """

    actions = "discrete"
    config: Any

    def __init__(self, config: DQNConfig):
        super().__init__(config)
        self.env = self.make_env()
        self.loss_fn = self.make_loss()
        self.optimizer = torch.optim.Adam(self.loss_fn.qvalue.parameters(), lr=config.lr)
        self.target = HardUpdate(self.loss_fn, every=config.target_every)
        self.update = compile_update(
            self.loss_fn, self.optimizer, max_grad_norm=config.max_grad_norm, target=self.target, compile=config.compile
        )
        self.buffer = self.make_buffer()
        self.actor = self.make_actor()
        size, total = config.frames_per_batch, config.total_frames
        self.collector = Collector(self.env, self.actor, frames_per_batch=size, total_frames=total, compile=config.compile)

    def make_loss(self) -> Any:
        """Return the loss, which holds the network."""
        qvalue = make_qvalue(self.env, num_cells=self.config.num_cells)
        return DQNLoss(qvalue, gamma=self.config.gamma, double=self.config.double)

    def make_buffer(self) -> ReplayBuffer:
        """Return the replay buffer, which sums the rewards of several steps when it is sampled."""
        config, loss_fn = self.config, self.loss_fn
        masks = [key for key in self.env.observation_spec.leaves() if key == keys.ACTION_MASK]  # read where there are any
        in_keys = unique(*loss_fn.in_keys, *masks, *next_of(masks), (keys.NEXT, keys.DONE))
        storage = TensorStorage(config.buffer_size, config.device, in_keys=in_keys)
        returns = [NStep(config.n, config.gamma)] if config.n > 1 else []
        return ReplayBuffer(storage, sampler=self.make_sampler(), transforms=returns, batch_size=config.batch_size)

    def make_sampler(self) -> Sampler | None:
        """Return what chooses the rows of a sample; None for chance."""
        return None

    def make_actor(self) -> Any:
        """Return the policy that collects."""
        return EpsilonGreedy(self.loss_fn.qvalue, 1.0, self.config.eps_end, self.config.eps_frames)

    def train(self) -> Iterator[dict[str, float]]:
        """Collect, store, update on samples; yield the metrics of each round."""
        config = self.config
        falls = int(config.anneal * config.total_frames)
        lr = Schedule(config.lr, 0.0 if falls else config.lr, falls, hold=config.total_frames - falls)
        for data in self.collector:
            self.buffer.extend(data)
            self.optimizer.param_groups[0]["lr"] = lr(self.frames)
            metrics = self.learn() if self.frames >= config.learning_starts else {}
            yield {"frames": self.frames, "episode_reward": self.episodes(data), **metrics}
            if self.solved:
                return

    def learn(self) -> dict[str, float]:
        """Take the gradient steps of a round; return the metrics of the last one."""
        for batch in self.batches():
            metrics = self.step(batch)
        return numbers(metrics)

    def batches(self) -> Iterable[Any]:
        """Return the samples of a round, drawn at once, which is faster than one by one, and the same: a round changes no row."""
        return self.buffer.sample(self.config.updates * self.config.batch_size).split(self.config.batch_size)

    def step(self, batch: Any) -> Any:
        """Take a gradient step; return its metrics."""
        return self.update(batch)
