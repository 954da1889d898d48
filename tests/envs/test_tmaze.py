"""TMaze: every move against a table, and what policies with and without memory are paid."""

from __future__ import annotations

import pytest
import torch

from rlbook import keys
from rlbook.envs import TMaze, check_env
from rlbook.errors import ConfigError

torch.set_num_threads(1)

NORTH, EAST, SOUTH, WEST = range(4)
NORTH_SIGN, SOUTH_SIGN, CORRIDOR, JUNCTION = [0, 1, 1], [1, 1, 0], [1, 0, 1], [0, 1, 0]


def _step(env, south, position, action):
    state = env.state
    state["south"], state["position"] = torch.tensor(int(south)), torch.tensor(position)
    env.set_state(state)
    leaves = env._step(torch.tensor(action))
    return leaves[keys.OBSERVATION].tolist(), leaves[keys.REWARD].item(), leaves[keys.TERMINATED].item()


@pytest.mark.parametrize("south", [False, True])
@pytest.mark.parametrize(
    "position, action, seen, reward",
    [
        (0, EAST, CORRIDOR, 0),
        (0, WEST, None, -0.1),
        (0, NORTH, None, -0.1),
        (0, SOUTH, None, -0.1),
        (1, EAST, CORRIDOR, 0),
        (1, WEST, None, 0),
        (1, NORTH, CORRIDOR, -0.1),
        (2, SOUTH, CORRIDOR, -0.1),
        (2, EAST, JUNCTION, 0),
        (3, EAST, JUNCTION, -0.1),
        (3, WEST, CORRIDOR, 0),
    ],
)
def test_moves_in_the_corridor(south, position, action, seen, reward):
    env = TMaze(length=3)
    env.reset()
    sign = SOUTH_SIGN if south else NORTH_SIGN
    observation, got, terminated = _step(env, south, position, action)
    assert observation == (sign if seen is None else seen)
    assert got == pytest.approx(reward)
    assert not terminated


@pytest.mark.parametrize(
    "south, action, reward", [(False, NORTH, 4.0), (False, SOUTH, -0.1), (True, NORTH, -0.1), (True, SOUTH, 4.0)]
)
def test_turns_at_the_junction(south, action, reward):
    env = TMaze(length=3)
    env.reset()
    observation, got, terminated = _step(env, south, 3, action)
    assert observation == JUNCTION
    assert got == pytest.approx(reward)
    assert terminated


@pytest.mark.parametrize("length", [1, 5])
def test_what_memory_is_worth(length):
    env = TMaze(num_envs=2000, length=length, seed=0)
    signs = env.reset()[keys.OBSERVATION]
    south = signs[:, 0] == 1
    assert abs(south.float().mean().item() - 0.5) < 0.045  # four standard deviations of 0.0112
    walk = [torch.full((2000,), EAST)] * length

    def episode(turn):
        env.reset(seed=0)
        rewards = [env._step(action) for action in [*walk, turn]]
        assert rewards[-1][keys.TERMINATED].all()
        assert not rewards[-2][keys.TERMINATED].any()
        return torch.stack([step[keys.REWARD] for step in rewards])

    remembered = episode(torch.where(south, SOUTH, NORTH))
    torch.testing.assert_close(remembered.sum(0), torch.full((2000,), env.optimal_return))
    discounts = 0.9 ** torch.arange(length + 1.0)
    torch.testing.assert_close((discounts @ remembered).mean().item(), env.start_value(0.9))
    for turn in (torch.full((2000,), NORTH), torch.full((2000,), SOUTH), torch.arange(2000) % 2 * 2):
        assert abs(episode(turn).sum(0).mean().item() - env.memoryless_return) < 0.19  # four standard deviations of 0.046
    assert env.memoryless_return == pytest.approx(1.95)


def test_the_sign_is_seen_at_the_start_only():
    env = TMaze(num_envs=50, length=4, seed=0)
    first = env.reset()[keys.OBSERVATION]
    assert set(map(tuple, first.tolist())) == {tuple(NORTH_SIGN), tuple(SOUTH_SIGN)}
    for place in [CORRIDOR] * 3 + [JUNCTION]:
        assert env._step(torch.full((50,), EAST))[keys.OBSERVATION].tolist() == [place] * 50


def test_time_limit_and_errors():
    data = TMaze(length=2, max_steps=7, seed=0).rollout(20, lambda observation: torch.tensor(WEST))
    assert data[keys.NEXT, keys.TRUNCATED].tolist() == [False] * 6 + [True]
    with pytest.raises(ConfigError, match="length must be a positive integer; got 0"):
        TMaze(length=0)


@pytest.mark.parametrize("length", [1, 3, 60])
def test_it_keeps_the_contract_and_draws_itself(length):
    env = TMaze(num_envs=3, length=length)
    assert "keeps the contract" in check_env(env)
    assert env.render(2).shape == (200, 300, 3)
