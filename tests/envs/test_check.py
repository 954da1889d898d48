"""check_env catches a reset that spills over to other rows, whatever the seed and the number of rows."""

from __future__ import annotations

import pytest
import torch

from rlbook.envs import Env, check_env
from rlbook.errors import EnvError
from rlbook.specs import Bounded, Categorical, Composite

torch.set_num_threads(1)


class Corridor(Env):
    """Walk from cell 0 to cell 5. Rows are often where a reset puts them, so one that resets all of them is easily missed."""

    def __init__(self, num_envs, spills=False):
        super().__init__(Composite({"observation": Bounded(0.0, 5.0, (1,))}), Categorical(2), num_envs=num_envs)
        self.spills = spills
        self.cell = torch.zeros(self.batch_size)

    def _reset(self, mask):
        everything = mask is None or self.spills
        self.cell = torch.zeros(self.batch_size) if everything else self.cell.masked_fill(mask, 0.0)
        return {"observation": self.cell.unsqueeze(-1)}

    def _step(self, action):
        self.cell = (self.cell + 2.0 * action - 1.0).clamp(0.0, 5.0)
        reward = -torch.ones(self.batch_size)
        return {"observation": self.cell.unsqueeze(-1), "reward": reward, "terminated": self.cell == 5.0}


@pytest.mark.parametrize("num_envs", [2, 3, 5])
def test_a_reset_that_ignores_its_mask_is_caught_with_every_seed(num_envs):
    for seed in range(6):
        with pytest.raises(EnvError, match=r"A partial reset must be without effect on the other environments"):
            check_env(Corridor(num_envs, spills=True), 60, seed=seed)


@pytest.mark.parametrize("num_envs", [None, 1, 2, 5])
def test_one_that_keeps_to_its_mask_passes(num_envs):
    for seed in range(3):
        assert "keeps the contract" in check_env(Corridor(num_envs), 60, seed=seed)
