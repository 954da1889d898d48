"""Environments whose every number is known beforehand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlbook.envs import Env
from rlbook.specs import Bounded, Categorical, Composite, Unbounded
from rlbook.typing import Leaves


class Clock(Env):
    """Every entry names its own step.

    In step t (counted from the last reset of all) row i observes ``[i, t, age]`` and gets the reward ``100 t + i``. Its episodes
    last ``i + 2`` steps; those of even rows terminate, those of odd rows are truncated.
    """

    def __init__(self, num_envs: int | None = 4):
        super().__init__(Composite({"observation": Unbounded(3)}), Categorical(2), num_envs=num_envs, seed=0)
        self.row = torch.arange(self.num_envs).reshape(self.batch_size)
        self.t, self.age = 0, torch.zeros_like(self.row)

    def _reset(self, mask: Tensor | None) -> Leaves:
        if mask is None:
            self.t, mask = 0, torch.ones_like(self.row, dtype=torch.bool)
        self.age = self.age.masked_fill(mask, 0)
        return {"observation": self._observe()["observation"].where(mask.unsqueeze(-1), torch.nan)}  # other rows are not read

    def _observe(self) -> Leaves:
        return {"observation": torch.stack((self.row, torch.full_like(self.row, self.t), self.age), -1).float()}

    def _step(self, action: Any) -> Leaves:
        reward = (100 * self.t + self.row).float()
        self.t, self.age = self.t + 1, self.age + 1
        over, odd = self.age >= self.row + 2, self.row % 2 == 1
        return {**self._observe(), "reward": reward, "terminated": over & ~odd, "truncated": over & odd}


def clock_rollout(rows: int, start: int, stop: int) -> dict[Any, Tensor]:
    """Steps ``start`` to ``stop`` of a Clock, from its description: entries ``[rows, T, ...]``."""
    row = torch.arange(rows).unsqueeze(-1).expand(rows, stop - start)
    t = torch.arange(start, stop).expand_as(row)
    age, over = t % (row + 2), t % (row + 2) == row + 1
    return {
        "observation": torch.stack((row, t, age), -1).float(),
        ("next", "observation"): torch.stack((row, t + 1, age + 1), -1).float(),
        ("next", "reward"): (100 * t + row).float(),
        ("next", "terminated"): over & (row % 2 == 0),
        ("next", "truncated"): over & (row % 2 == 1),
        ("next", "done"): over,
        "done": torch.zeros_like(over),
    }


class Constant(Env):
    """Reward 1 in every step, and a time-out every ``limit`` steps: every state is worth ``1 / (1 - gamma)``.

    Args:
        num_envs: as for every environment.
        limit: steps of an episode.
        terminates: report the time-outs as terminations, which is the mistake to be caught.
    """

    def __init__(self, num_envs: int | None = 2, limit: int = 5, terminates: bool = False):
        super().__init__(Composite({"observation": Bounded(0.0, 1.0, (1,))}), Categorical(2), num_envs=num_envs, seed=0)
        self.limit, self.terminates, self.age = limit, terminates, torch.zeros(self.batch_size, dtype=torch.int64)

    def _reset(self, mask: Tensor | None) -> Leaves:
        self.age = self.age.masked_fill(torch.ones_like(self.age, dtype=torch.bool) if mask is None else mask, 0)
        return {"observation": torch.ones(*self.batch_size, 1)}

    def _step(self, action: Any) -> Leaves:
        self.age = self.age + 1
        over = self.age >= self.limit
        ending = {
            "terminated" if self.terminates else "truncated": over,
            "truncated" if self.terminates else "terminated": over & False,
        }
        return {"observation": torch.ones(*self.batch_size, 1), "reward": torch.ones(self.batch_size), **ending}
