"""Evaluation: whole episodes, as many from each environment, and their exact returns."""

from __future__ import annotations

import pytest
import torch
from toys import Clock, Constant

from rlbook import CartPole, Collector, RewardSum, TransformedEnv
from rlbook.errors import ConfigError, EnvError
from rlbook.modules import make_actor
from rlbook.trainers import EpisodeReturns, evaluate


def clock_return(row: int, episode: int) -> float:
    """Return of a Clock's episode: the rewards ``100 t + row`` of its ``row + 2`` steps."""
    length = row + 2
    return float(sum(100 * t + row for t in range(episode * length, (episode + 1) * length)))


@pytest.mark.parametrize(("num_envs", "episodes", "each"), [(None, 3, 3), (1, 1, 1), (3, 6, 2), (3, 4, 2), (3, 90, 30)])
def test_the_first_episodes_of_every_environment(num_envs, episodes, each):
    returns = evaluate(Clock(num_envs), None, episodes)
    assert returns.dtype == torch.float32
    assert returns.tolist() == [clock_return(row, k) for row in range(num_envs or 1) for k in range(each)]


def test_short_episodes_count_no_more_than_long_ones():
    # Row 0 ends after 2 steps, row 7 after 9: whatever ends first would be short.
    lengths = evaluate(TransformedEnv(_Steps(8), RewardSum()), None, 8)
    assert sorted(lengths.tolist()) == [float(row + 2) for row in range(8)]


class _Steps(Clock):
    """A Clock whose reward is 1."""

    def _step(self, action):
        return {**super()._step(action), "reward": torch.ones(self.batch_size)}


def test_episodes_longer_than_a_block():
    assert evaluate(Constant(2, limit=100), None, 4).tolist() == [100.0] * 4


@pytest.mark.parametrize("seed", [0, 1])
def test_a_seed_repeats_the_score(seed):
    env = CartPole(4)
    actor = make_actor(env)
    first, second = (evaluate(env, actor.greedy, 8, seed=seed) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, evaluate(env, actor.greedy, 8, seed=seed + 10))


def test_equals_the_sums_along_the_way():
    torch.manual_seed(0)
    data = CartPole(1, seed=3).rollout(200)
    assert evaluate(CartPole(1, seed=3), None, 4).tolist() == EpisodeReturns()(data)[:4]


def test_returns_in_the_order_of_their_ends():
    returns = EpisodeReturns()(Clock(3).rollout(6))
    # ends: row 0 in steps 1, 3, 5; row 1 in steps 2, 5; row 2 in step 3
    ends = [(0, 0), (1, 0), (0, 1), (2, 0), (0, 2), (1, 1)]
    assert returns == [clock_return(row, k) for row, k in ends]


def test_no_episode_ended():
    assert EpisodeReturns()(Constant(2, limit=100).rollout(5)) == []


def test_an_endless_episode_is_explained():
    with pytest.raises(EnvError, match=r"over within max_steps=64; got 2 environments .*StepCounter\(max_steps=...\)"):
        evaluate(Constant(2, limit=10_000), None, 2, max_steps=64)


@pytest.mark.parametrize("episodes", [0, -1])
def test_no_episodes_make_no_score(episodes):
    with pytest.raises(ConfigError, match=f"episodes must be positive; got {episodes}"):
        evaluate(Clock(2), None, episodes)


@pytest.mark.parametrize("num_envs", [None, 3])
def test_returns_added_up_across_rollouts_equal_those_of_reward_sum(num_envs):
    env, finished = TransformedEnv(Clock(num_envs), RewardSum()), EpisodeReturns()
    count = 0
    for data in Collector(env, frames_per_batch=5 * (num_envs or 1), total_frames=40 * (num_envs or 1)):  # cuts episodes in two
        returns = finished(data)
        done, total = data["next", "done"].movedim(-1, 0), data["next", "episode_reward"].movedim(-1, 0)
        assert returns == total[done].tolist()
        count += len(returns)
    assert count > 8
