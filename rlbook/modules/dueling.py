"""Dueling heads: action values as the value of the state plus the advantages of the actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from rlbook.errors import ConfigError, explain
from rlbook.modules.mlp import MLP


class DuelingHead(nn.Module):
    """Two networks of the same input, joined into action values: ``Q_a = V + A_a - mean_b A_b``.

    Subtracting the mean makes the split unique. With K numbers per action (the logits of C51, the quantiles of QR-DQN) the rule
    holds for each of them.

    Args:
        out_features: number of actions A.
        in_features: inputs; found at the first forward pass by default.
        num_cells: units of the hidden layers of each of the two streams; ``()`` for none.
        outputs_per_action: K. **kwargs: passed to both :class:`MLP`, for example ``activation``, ``layer=NoisyLinear``.

    Source: Wang et al. 2016, "Dueling Network Architectures for Deep Reinforcement Learning", eq. 9; for distributions Hessel et
    al. 2018, "Rainbow", section 3.

    Example:
        >>> import torch
        >>> DuelingHead(out_features=2, in_features=4, num_cells=[64])(torch.zeros(8, 4)).shape
        torch.Size([8, 2])
    """

    def __init__(
        self,
        out_features: int,
        in_features: int | None = None,
        num_cells: int | Sequence[int] = (64,),
        outputs_per_action: int = 1,
        **kwargs: Any,
    ):
        super().__init__()
        if outputs_per_action < 1:
            raise ConfigError(explain("outputs_per_action", "at least 1", str(outputs_per_action), "Leave it out for 1"))
        self.outputs_per_action = outputs_per_action
        self.value = MLP(outputs_per_action, in_features, num_cells, **kwargs)
        self.advantage = MLP(out_features * outputs_per_action, in_features, num_cells, **kwargs)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map ``[*, in_features]`` to ``[*, A]``, or to ``[*, A K]`` with the K numbers of an action side by side."""
        value, advantage = self.value(*inputs), self.advantage(*inputs)
        if self.outputs_per_action == 1:
            return dueling(value, advantage)
        advantage = advantage.unflatten(-1, (-1, self.outputs_per_action))
        return dueling(value.unsqueeze(-2), advantage, dim=-2).flatten(-2)


def dueling(value: Tensor, advantage: Tensor, dim: int = -1) -> Tensor:
    """Return ``V + A - mean(A)``, the mean over the actions in dimension ``dim``, where ``value`` has size 1."""
    return value + (advantage - advantage.mean(dim, keepdim=True))
