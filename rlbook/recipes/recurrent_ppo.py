"""Recurrent PPO as a difference to PPO: ``python -m rlbook train recurrent_ppo TMaze``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from tensordict import TensorDictBase

from rlbook.errors import ConfigError, explain
from rlbook.modules import GRU, LSTM, Actor, Carry, ValueHead, make_actor, make_value
from rlbook.recipes.ppo import PPO, PPOConfig
from rlbook.replay import minibatches

CELLS = {"gru": GRU, "lstm": LSTM}


@dataclass
class RecurrentPPOConfig(PPOConfig):
    """Settings of :class:`RecurrentPPO`, those of :class:`~rlbook.recipes.PPO` but for what memory needs."""

    env: str = "TMaze"
    """Environment: a Gymnasium id or the name of a native class."""
    total_frames: int = 200_000
    """Environment steps in all; the schedules of learning rate and clipping end here."""
    num_envs: int = 32
    """Environments that step together."""
    frames_per_batch: int = 1024
    """Environment steps between two rounds of updates, over all environments."""
    epochs: int = 4
    """Passes over each batch."""
    sequence_len: int = 32
    """Steps of a sequence: how far back a gradient looks. It divides the steps of each environment in a batch."""
    minibatch_size: int = 256
    """Steps of a gradient step, in whole sequences."""
    gae_lambda: float = 0.95
    """Trade-off of GAE: 0 trusts the values, 1 the rewards."""
    lr: float = 3e-3
    """Learning rate of Adam at the start."""
    entropy_coef: float = 0.01
    """Weight of the entropy bonus."""
    num_cells: tuple[int, ...] = (64,)
    """Units of the hidden layers, of actor and critic alike; the last one is recurrent."""
    cell: Literal["gru", "lstm"] = "gru"
    """The recurrent layer."""


class RecurrentPPO(PPO):
    """PPO with actor and critic that remember; what changes is what they are, what is kept, and how a batch is cut.

    Args:
        config: the settings.

    Example:
        >>> agent = RecurrentPPO(RecurrentPPOConfig(total_frames=1024))
        >>> for metrics in agent.train():
        ...     pass
        >>> metrics["frames"]
        1024
    """

    def make_modules(self) -> tuple[Actor, ValueHead]:
        """Return actor and critic, each with a memory of its own."""
        options: Any = {"num_cells": self.config.num_cells, "recurrent": CELLS[self.config.cell]}
        return make_actor(self.env, **options), make_value(self.env, **options)

    @property
    def policy(self) -> Carry:
        """The actor, which carries the critic's state along."""
        return Carry(self.actor, self.value)

    def batches(self, data: TensorDictBase) -> Iterator[TensorDictBase]:
        """Yield minibatches of whole sequences."""
        config = self.config
        rows, options = config.minibatch_size // config.sequence_len, {"in_keys": self.loss_fn.in_keys}
        if not rows:
            fix = "A minibatch is made of whole sequences: raise it"
            raise ConfigError(explain("minibatch_size", "at least sequence_len", repr(config.minibatch_size), fix))
        return minibatches(data, rows, epochs=config.epochs, sequence_len=config.sequence_len, **options)
