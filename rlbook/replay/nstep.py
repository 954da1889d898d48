"""Rewards of several steps, summed when a batch is sampled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tensordict import TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.errors import ConfigError, MissingKeyError, SpecError, check_count, explain
from rlbook.replay.storages import wrap
from rlbook.replay.trajectories import Trajectories
from rlbook.typing import Key, Leaves

if TYPE_CHECKING:
    from rlbook.replay.buffer import ReplayBuffer


_REWARD = (keys.NEXT, keys.REWARD)


class NStep:
    r"""Turn the steps of a sample, ``[B]`` or ``[B, T]``, into ``n`` steps each; they need not be in the sample.

    .. math::
        R_t = \sum_{k=0}^{m-1} \gamma^k r_{t+k}, \qquad m = \min(n, \text{steps from t to the last of the trajectory})

    ``next.reward`` becomes :math:`R_t`, everything else under ``next`` is that of step ``t + m - 1``, and the new entry
    ``discount`` is :math:`\gamma^m`, the factor of the value there. So the target is ``reward + discount * (1 - terminated) *
    value(next)``, whether the trajectory goes on, terminates, is truncated, or is not stored any further.

    Args:
        n: steps, at least 1.
        gamma: discount per step, in [0, 1].

    Raises:
        ConfigError: ``n`` or ``gamma`` is out of range, or another transform comes before this one.
        MissingKeyError: rows have no ``next.reward``.

    Source: Sutton and Barto, Reinforcement Learning (2018), eq. 7.1; Hessel et al. 2018, "Rainbow", "Multi-step learning".

    Example:
        >>> from rlbook import CartPole, ReplayBuffer
        >>> buffer = ReplayBuffer(1000, transforms=NStep(3, gamma=0.5), batch_size=32)
        >>> _ = buffer.extend(CartPole(num_envs=2, seed=0).rollout(100))
        >>> sorted(set(buffer.sample()["discount"].tolist()))  # 1, 2 and 3 steps
        [0.125, 0.25, 0.5]
    """

    def __init__(self, n: int, gamma: float):
        check_count("n", n, example=3)
        if not 0 <= gamma <= 1:
            raise ConfigError(explain("gamma", "in [0, 1]", repr(gamma), "Pass for example gamma=0.99"))
        self.n, self.gamma = n, gamma
        self._steps = torch.arange(n)
        self._powers = torch.tensor([gamma**k for k in range(n + 1)], dtype=torch.float64)

    def __call__(self, batch: TensorDictBase, rows: Tensor, buffer: ReplayBuffer) -> TensorDictBase:
        """Return the batch with the entries above replaced."""
        if self in buffer.transforms[1:]:
            got, fix = f"after {buffer.transforms[0]}", "Put it first: transforms=[NStep(...), ...]"
            raise ConfigError(explain("NStep", "the first transform, for it reads rows anew", got, fix))
        trajectories = Trajectories.of(buffer)
        more = trajectories.span(rows)[1].clamp_(max=self.n - 1)  # m - 1
        ahead = torch.minimum(self._steps, more.unsqueeze(-1))
        path = trajectories.shift(rows.unsqueeze(-1), ahead)  # [*, n], the last row repeated
        reward = entry(buffer, _REWARD, path)
        if reward.shape != path.shape:
            got, fix = f"of shape {list(reward.shape[path.ndim :])}", "Drop a trailing 1: reward.squeeze(-1)"
            raise SpecError(explain("The reward of a step", "one number", got, fix))
        kept = [key for key in buffer.storage.keys if key[0] == keys.NEXT and key != _REWARD]
        outcome: Leaves = {key[1:]: entry(buffer, key, path[..., -1]) for key in kept}
        reward = reward if reward.is_floating_point() else reward.float()
        powers = self._powers.to(reward)
        summed = (self._steps <= more.unsqueeze(-1)).to(reward.device)
        outcome[(keys.REWARD,)] = (reward * summed) @ powers[:-1]
        batch[keys.NEXT] = wrap(outcome, rows.shape)
        batch[keys.DISCOUNT] = powers[(more + 1).to(reward.device)]
        return batch

    def __repr__(self) -> str:
        return f"NStep({self.n}, gamma={self.gamma})"


def entry(buffer: ReplayBuffer, key: Key, rows: Tensor) -> Tensor:
    """Copy one entry of rows ``[*]``, ``[*, ...]``."""
    value = buffer.storage.entry(key, rows)
    if value is None:
        got, fix = f"{sorted(map(keys.pretty, buffer.storage.keys))}", "Store whole steps, such as a collector yields"
        raise MissingKeyError(explain("Rows", f"with {keys.pretty(key)}", got, fix))
    return value
