"""PPO with a penalty instead of a clip: ``python -m rlbook train ppo_kl CartPole-v1``. PPO, and what is printed here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase

from rlbook.losses import PPOKLLoss
from rlbook.recipes.ppo import PPO, PPOConfig
from rlbook.replay import minibatches


@dataclass
class PPOKLConfig(PPOConfig):
    """Settings of :class:`PPOKL`: those of PPO, but for the clip."""

    anneal_clip: bool = False
    """There is none."""
    kl_coef: float = 1.0
    """Weight of the penalty at the start."""
    target_kl: float = 0.01
    """The KL wanted per round, in nats, which the weight follows."""


class PPOKL(PPO):
    """Proximal policy optimisation with an adaptive penalty on the KL (Schulman et al. 2017, section 4).

    Args:
        config: the settings.

    Example:
        >>> agent = PPOKL(PPOKLConfig(total_frames=2048))
        >>> for metrics in agent.train():
        ...     pass
        >>> metrics["frames"]
        2048
    """

    unused = ("clip_eps", "anneal_clip")
    loss_fn: Any

    def make_loss(self) -> Any:
        """Return the loss."""
        config = self.config
        weights = {"entropy_coef": config.entropy_coef, "value_coef": config.value_coef}
        return PPOKLLoss(self.actor, self.value, kl_coef=config.kl_coef, target_kl=config.target_kl, **weights)

    def batches(self, data: TensorDictBase) -> Iterator[TensorDictBase]:
        """Add the parameters of the policy that acted, yield the minibatches of a round, then adapt the penalty to its KL."""
        config = self.config
        with torch.no_grad():
            data["action_params"] = self.actor.read(data)
        yield from minibatches(data, config.minibatch_size, epochs=config.epochs, in_keys=list(self.loss_fn.entries(data)))
        self.loss_fn.adapt(self.loss_fn.divergence(data))
