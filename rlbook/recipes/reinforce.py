"""REINFORCE in one file: read it from top to bottom, or run it with ``python -m rlbook train reinforce CartPole-v1``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase

from rlbook.collectors import Collector
from rlbook.losses import ReinforceLoss, compile_update
from rlbook.modules import make_actor, make_value
from rlbook.recipes.base import Recipe, normalized, numbers
from rlbook.trainers import WholeEpisodes


@dataclass
class ReinforceConfig:
    """Settings of :class:`Reinforce`, chosen on CartPole."""

    env: str = "CartPole-v1"
    """Environment: a Gymnasium id or the name of a native class."""
    seed: int = 0
    """The one seed behind weights, actions and resets."""
    total_frames: int = 200_000
    """Environment steps in all."""
    stop_at: float | None = None
    """Stop when the mean return of the last 100 episodes reaches this."""
    num_envs: int = 8
    """Environments that step together."""
    frames_per_batch: int = 1024
    """Environment steps between two updates, over all environments. A step counts in the update after its episode's end."""
    baseline: bool = True
    """Learn the value of each state, and weigh an action by how much better than that the return was."""
    gamma: float = 0.99
    """Discount."""
    lr: float = 3e-3
    """Learning rate of the policy's Adam."""
    lr_value: float = 1e-2
    """Learning rate of the baseline's: there are few steps, and returns may be large."""
    normalize: bool = False
    """Give observations and rewards unit variance, by running statistics: for physics, whose units are arbitrary."""
    normalize_advantage: bool = True
    """Give the weights of each batch mean 0 and standard deviation 1."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    value_coef: float = 0.5
    """Weight of the value loss."""
    max_grad_norm: float = 0.5
    """Largest norm of a gradient, of policy and baseline each."""
    num_cells: tuple[int, ...] = (64, 64)
    """Units of the hidden layers, of actor and baseline alike."""
    device: str = "cpu"
    """Where tensors and networks live."""


class Reinforce(Recipe):
    """The policy gradient of whole episodes (Williams 1992), with or without a baseline.

    Args:
        config: the settings.

    Example:
        >>> agent = Reinforce(ReinforceConfig(total_frames=2048, baseline=False))
        >>> for metrics in agent.train():
        ...     pass
        >>> metrics["frames"]
        2048
    """

    def __init__(self, config: ReinforceConfig):
        super().__init__(config)
        self.env = self.make_env()
        if config.normalize:
            self.env = normalized(self.env, config.gamma)
        self.actor = make_actor(self.env, num_cells=config.num_cells)
        self.value = make_value(self.env, num_cells=config.num_cells) if config.baseline else None
        weights = {"entropy_coef": config.entropy_coef, "value_coef": config.value_coef}
        self.loss_fn = ReinforceLoss(self.actor, self.value, **weights, normalize_advantage=config.normalize_advantage)
        self.optimizers = [torch.optim.Adam(self.actor.parameters(), lr=config.lr)]
        if self.value is not None:  # an optimizer of its own, for gradients are clipped by optimizer: the baseline's are huge
            self.optimizers.append(torch.optim.Adam(self.value.parameters(), lr=config.lr_value))
        # Batches have as many rows as their episodes have steps: compiled code would compile again for each of them.
        self.update = compile_update(self.loss_fn, self.optimizers, max_grad_norm=config.max_grad_norm, compile=False)
        self.whole = WholeEpisodes(config.gamma)
        size, total = config.frames_per_batch, config.total_frames
        self.collector = Collector(self.env, self.actor, frames_per_batch=size, total_frames=total)

    def train(self) -> Iterator[dict[str, float]]:
        """Collect, take one step on the episodes that have ended; yield the metrics of each round."""
        for data in self.collector:
            score = self.episodes(data)
            batch = self.whole(self.with_bootstrap(data))
            losses = {}
            if len(batch):
                batch["advantage"] = batch["value_target"] - self.predicted(batch)
                losses = numbers(self.update(batch))
            yield {"frames": self.frames, "episode_reward": score, **losses}
            if self.solved:
                return

    @torch.no_grad()
    def predicted(self, batch: TensorDictBase) -> Any:
        """Return the baseline, ``[B]`` or 0."""
        return 0.0 if self.value is None else self.value.value(batch)

    @torch.no_grad()
    def with_bootstrap(self, data: TensorDictBase) -> TensorDictBase:
        """Add to the last reward of an episode that was cut off what the baseline expects to follow."""
        nxt: Any = data["next"]
        cut = nxt["truncated"] & ~nxt["terminated"]
        if self.value is None or not bool(cut.any()):
            return data
        data = data.clone(recurse=False)
        data["next", "reward"] = nxt["reward"] + self.config.gamma * cut * self.value.value(nxt)
        return data

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; see :class:`Recipe`."""
        super().load_state_dict(state)
        if "env" not in state["parts"]["collector"]:
            self.whole.drop()
