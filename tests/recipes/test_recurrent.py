"""Agents with memory reach what no agent without can, in a maze whose sign is out of sight when it matters."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlbook.envs import TMaze
from rlbook.envs.make import make_env
from rlbook.recipes import PPO, R2D2, R2D2Config, RecurrentPPO, RecurrentPPOConfig
from rlbook.trainers import evaluate

MAZE = "TMaze(length=3, max_steps=30)"


def score(agent, env: str = MAZE) -> float:
    return evaluate(make_env(env, 64), agent.actor.greedy, 64, seed=1).mean().item()


def test_recurrent_ppo_remembers_what_ppo_cannot():
    config = RecurrentPPOConfig(env=MAZE, total_frames=32_768, stop_at=3.7, num_cells=(32,), anneal=False)
    agent = RecurrentPPO(config)
    *_, last = agent.train()
    assert last["episode_reward"] > 3.5
    assert score(agent) > 3.9
    without = PPO(replace(config, total_frames=16_384))
    *_, last = without.train()
    assert last["episode_reward"] < TMaze.memoryless_return + 0.7  # of 100 episodes, half of them lucky
    assert score(without) < TMaze.memoryless_return + 0.7


def test_r2d2_remembers_and_does_not_forget():
    """Not once in the last quarter, for what was learnt to be remembered has to stay so as less and less else is seen.

    Of the seeds 0 to 4 the lowest of these means is 3.71 to 3.87; without memory it would be 1.95 at most.
    """
    agent = R2D2(R2D2Config(env="TMaze(length=5)", total_frames=40_960))
    reward = [row["episode_reward"] for row in agent.train()]
    assert min(reward[-20:]) > 3.2
    assert score(agent, "TMaze(length=5)") > 3.9


SHORT = {
    "recurrent_ppo": (RecurrentPPO, RecurrentPPOConfig(env=MAZE, total_frames=2048, num_cells=(8,))),
    "r2d2": (R2D2, R2D2Config(env=MAZE, total_frames=2048, num_cells=(8,))),
}


@pytest.mark.parametrize("change", [{}, {"cell": "lstm"}, {"num_cells": (16, 8)}], ids=str)
@pytest.mark.parametrize("name", SHORT)
def test_settings_and_the_same_seed_twice(name, change):
    make, config = SHORT[name]
    first, second = ([repr(row) for row in make(replace(config, **change)).train()] for _ in range(2))
    assert first == second
    assert "'frames': 2048" in first[-1]


def test_r2d2_with_priorities():
    agent = R2D2(replace(SHORT["r2d2"][1], prioritized=True))
    *_, last = agent.train()
    assert last["loss"] > 0
    assert agent.buffer.sample()["weight"].unique().numel() > 1


@pytest.mark.parametrize("name", SHORT)
def test_a_run_goes_on_where_it_was_saved(name, tmp_path):
    make, config = SHORT[name]
    whole = list(make(config).train())
    agent = make(config)
    rounds = agent.train()
    half = [next(rounds) for _ in range(len(whole) // 2)]
    agent.save(tmp_path / "agent.pt")
    rest = list(make(config).load(tmp_path / "agent.pt").train())
    assert repr(half + rest) == repr(whole)
