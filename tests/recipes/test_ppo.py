"""The PPO recipe: it learns, it repeats itself, and its settings do what they say."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from rlbook import CartPole
from rlbook.errors import ConfigError, UnknownEnvError
from rlbook.recipes import PPO, PPOConfig
from rlbook.trainers import evaluate

SHORT = PPOConfig(total_frames=1024, epochs=2)


def metrics(config: PPOConfig) -> list[dict[str, float]]:
    return list(PPO(config).train())


def test_learns_cartpole():
    agent = PPO(PPOConfig(total_frames=12_288))
    *_, last = agent.train()
    assert last["frames"] == 12_288
    assert last["episode_reward"] > 60
    untrained = PPO(PPOConfig(seed=1)).actor
    assert evaluate(CartPole(32), untrained.greedy, 32, seed=0).mean() < 60
    assert evaluate(CartPole(32), agent.actor.greedy, 32, seed=0).mean() > 150


@pytest.mark.parametrize("env", ["CartPole-v1", "CartPole", "Pendulum-v1"])
def test_the_same_seed_gives_the_same_run_bit_for_bit(env):
    config = replace(SHORT, env=env, seed=3)
    first, second, other = metrics(config), metrics(config), metrics(replace(config, seed=4))
    assert repr(first) == repr(second)  # NaN, before the first episode has ended, equals itself
    assert first[-1]["loss"] != other[-1]["loss"]


@pytest.mark.parametrize("env", ["Pendulum", "Pendulum-v1", "GridWorld", "FrozenLake-v1", "MountainCarContinuous-v0"])
def test_every_kind_of_space(env):
    last = metrics(replace(SHORT, env=env))[-1]
    assert last["frames"] == 1024
    assert all(math.isfinite(number) for name, number in last.items() if name.startswith(("loss", "grad_norm", "entropy")))


def test_metrics():
    rounds = metrics(SHORT)
    assert [row["frames"] for row in rounds] == [256, 512, 768, 1024]
    wanted = {"frames", "episode_reward", "explained_variance", "loss", "loss_actor", "loss_value", "loss_entropy", "grad_norm"}
    assert wanted <= set(rounds[-1])
    assert 9 <= rounds[-1]["episode_reward"] <= 60


def test_annealing_ends_at_zero():
    agent = PPO(replace(SHORT, lr=0.1, clip_eps=0.4))
    seen = [(agent.optimizer.param_groups[0]["lr"], agent.loss_fn.clip_eps.item()) for _ in agent.train()]
    assert [lr for lr, _ in seen] == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert [eps for _, eps in seen] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    agent = PPO(replace(SHORT, lr=0.1, anneal=False))
    assert {agent.optimizer.param_groups[0]["lr"] for _ in agent.train()} == {0.1}


def test_stops_when_the_score_is_reached():
    # 100 episodes of an untrained CartPole last some 2200 steps, and score about 22
    rounds = metrics(PPOConfig(total_frames=20_000, stop_at=15.0, epochs=1))
    assert rounds[-1]["episode_reward"] >= 15
    assert 1000 <= rounds[-1]["frames"] <= 10_000


def test_settings_reach_the_parts():
    config = replace(SHORT, num_cells=(8,), clip_eps=0.3, entropy_coef=0.02, value_coef=0.7, num_envs=4, max_grad_norm=0.1)
    agent = PPO(config)
    assert agent.env.num_envs == 4
    assert agent.actor.net[0].out_features == 8
    assert [round(x.item(), 6) for x in (agent.loss_fn.clip_eps, agent.loss_fn.entropy_coef, agent.loss_fn.value_coef)] == [
        0.3,
        0.02,
        0.7,
    ]
    assert agent.update.max_grad_norm == 0.1


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"env": "CartPole-v9"}, UnknownEnvError, "registered Gymnasium id; got 'CartPole-v9'.*CartPole-v1"),
        ({"frames_per_batch": 100}, ConfigError, "positive multiple of num_envs=8; got 100. Pass for example 96"),
        ({"minibatch_size": 512}, ConfigError, r"size must be in \[1, 256\], the rows of the data; got 512"),
        ({"gamma": 1.5}, ConfigError, r"gamma must be in \[0, 1\]; got 1.5"),
        ({"seed": -1}, ConfigError, "seed must be an integer in"),
        ({"total_frames": 0}, ConfigError, "total_frames must be a positive integer"),
    ],
)
def test_bad_settings_are_explained(changes, error, match):
    with pytest.raises(error, match=match):
        metrics(replace(SHORT, **changes))


@pytest.mark.cuda
def test_cuda():
    rounds = metrics(replace(SHORT, env="CartPole", device="cuda"))
    assert all(math.isfinite(row["loss"]) for row in rounds)
    assert torch.cuda.is_available()


def test_normalize_trains_on_one_scale_and_scores_in_the_environments():
    config = replace(SHORT, env="Pendulum", normalize=True, total_frames=2048)
    agent = PPO(config)
    data = agent.collector.collect()
    assert data["next", "reward"].abs().max() <= 10
    agent = PPO(config)
    *_, last = agent.train()
    assert -1800 < last["episode_reward"] < -600  # an episode of Pendulum costs 900 to 1500 untrained
    assert last["loss_value"] < 5  # and its values would be in the hundreds
    returns = agent.evaluate(8, seed=3)
    assert torch.equal(returns, agent.evaluate(8, seed=3))
    assert agent.evaluate(13).shape == (13,)  # of 10 environments, which play two each
    assert -2000 < returns.mean() < -600


def test_anneal_clip_can_stay():
    agent = PPO(replace(SHORT, lr=0.1, anneal_clip=False))
    seen = [(agent.optimizer.param_groups[0]["lr"], agent.loss_fn.clip_eps.item()) for _ in agent.train()]
    assert [lr for lr, _ in seen] == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert {round(eps, 6) for _, eps in seen} == {0.2}
