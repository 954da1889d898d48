"""Phasic policy gradient in one file: ``python -m rlbook train ppg CartPole-v1``. PPO, and what is printed here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from rlbook.errors import ConfigError, NonFiniteError, explain
from rlbook.losses import PPGAuxiliaryLoss
from rlbook.modules import MLP, ValueHead
from rlbook.recipes.ppo import PPO, PPOConfig
from rlbook.replay import minibatches


@dataclass
class PPGConfig(PPOConfig):
    """Settings of :class:`PPG`: those of PPO, and of the phases between."""

    aux_every: int = 8
    """Rounds of PPO between two auxiliary phases."""
    aux_epochs: int = 6
    """Passes over the data of those rounds."""
    aux_minibatch_size: int = 512
    """Rows of a gradient step of the auxiliary phase."""
    aux_lr: float = 5e-4
    """Learning rate of Adam there."""
    clone_coef: float = 1.0
    """How hard the policy is held to what it was."""


class PPG(PPO):
    """Phasic policy gradient (Cobbe et al. 2021): between phases of PPO the policy's features learn to predict values.

    Args:
        config: the settings.

    Example:
        >>> agent = PPG(PPGConfig(total_frames=2048))
        >>> for metrics in agent.train():
        ...     pass
        >>> metrics["loss_clone"] < metrics["loss_auxiliary"]
        True
    """

    def __init__(self, config: PPGConfig):
        super().__init__(config)
        rows = config.aux_every * config.frames_per_batch
        if config.aux_minibatch_size > rows:
            what, expected = "aux_minibatch_size", f"at most aux_every * frames_per_batch, {rows}"
            raise ConfigError(explain(what, expected, repr(config.aux_minibatch_size), "Lower it, or raise one of these"))
        self.auxiliary = ValueHead(AuxiliaryHead(self.actor.net).to(config.device), self.actor.in_keys)
        self.aux_loss = PPGAuxiliaryLoss(self.actor, self.auxiliary, self.value, clone_coef=config.clone_coef)
        # PPO's update has made its parameters one vector: a second loss over them steps tensor by tensor, by hand.
        self.aux_optimizer = torch.optim.Adam(self.aux_loss.parameters(), lr=config.aux_lr)
        self.phase = Phase()

    def train(self) -> Iterator[dict[str, float]]:
        """Train like PPO, with an auxiliary phase now and then; yield the metrics of each round."""
        for metrics in super().train():
            if len(self.phase.rollouts) == self.config.aux_every:
                metrics |= self.auxiliary_phase(self.phase.take(self.config.device))
            yield metrics

    def batches(self, data: TensorDictBase) -> Iterator[TensorDictBase]:
        """Keep what the auxiliary phase reads; yield the minibatches of a round."""
        self.phase.rollouts.append(data.select(*self.aux_loss.in_keys, strict=False).clone())
        return super().batches(data)

    def auxiliary_phase(self, data: TensorDictBase) -> dict[str, float]:
        """Distil the values into the policy's features; return the terms of the last step."""
        config = self.config
        with torch.no_grad():
            data["action_params"] = self.actor.read(data)
        for batch in minibatches(data, config.aux_minibatch_size, epochs=config.aux_epochs, in_keys=self.aux_loss.in_keys):
            self.aux_optimizer.zero_grad()
            out = self.aux_loss(batch)
            out["loss"].backward()
            norm = nn.utils.clip_grad_norm_(self.aux_loss.parameters(), config.max_grad_norm)
            if not norm.isfinite():
                fix = "Lower aux_lr, or look for huge or missing numbers in the observations"
                raise NonFiniteError(explain("The gradient of the auxiliary phase", "finite", str(norm.item()), fix))
            self.aux_optimizer.step()
        return {name: out[name].item() for name in ("loss_auxiliary", "loss_clone", "kl")}


class Phase:
    """The rollouts of a policy phase, for the auxiliary phase after it."""

    def __init__(self) -> None:
        self.rollouts: list[TensorDictBase] = []

    def take(self, device: str) -> TensorDictBase:
        """Return all of them as one, and begin anew; those of a checkpoint were read to the CPU."""
        rollouts, self.rollouts = [x.to(device) for x in self.rollouts], []
        return torch.cat(rollouts, dim=-1)  # type: ignore[arg-type,call-overload,return-value]

    def state_dict(self) -> dict[str, Any]:
        """Return the rollouts."""
        return {"rollouts": [(list(x.batch_size), dict(x.items(True, True))) for x in self.rollouts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.rollouts = [TensorDict(x, shape).clone() for shape, x in state["rollouts"]]


class AuxiliaryHead(nn.Module):
    """A value head on all but the last layer of an actor's MLP, whose layers it shares."""

    def __init__(self, net: Any):
        super().__init__()
        parts = [net] if isinstance(net, MLP) else list(net)
        place = next(i for i, part in enumerate(parts) if isinstance(part, MLP))
        *hidden, last = cast(MLP, parts[place])
        self.before, self.trunk = nn.ModuleList(parts[:place]), nn.Sequential(*hidden)
        self.head = nn.Linear(cast(nn.Linear, last).in_features, 1)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map the actor's inputs to ``[*, 1]``."""
        for part in self.before:
            inputs = (part(*inputs),)
        return self.head(self.trunk(torch.cat(inputs, dim=-1)))
