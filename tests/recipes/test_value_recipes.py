"""The recipes that learn the values of discrete actions: probes whose values are known, and a game."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from rlbook.envs.make import make_env
from rlbook.modules import EpsilonGreedy, NoisyExploration, NoisyLinear
from rlbook.modules.noisy import zero_noise
from rlbook.recipes import RECIPES

NAMES = ("dqn", "c51", "qrdqn", "iqn", "rainbow", "munchausen", "pqn")
PROBES = ("ProbeConstant", "ProbeObservation", "ProbeDelay", "ProbeAction", "ProbeBoth", "ProbeTimeout(max_steps=5)")
GAMMA = 0.8
REPLAY = {"updates": 16, "learning_starts": 64, "target_every": 16, "batch_size": 32}
GRID = {"v_min": -2.0, "v_max": 6.0, "atoms": 33}
OWN: dict[str, dict[str, Any]] = {
    "rainbow": {"beta_frames": 1000, "n": 1},
    "pqn": {"minibatch_size": 32, "anneal": False, "total_frames": 3072},
}
each = pytest.mark.parametrize("name", NAMES)


def agent_of(name: str, env: str, **changes: Any) -> Any:
    recipe, config = RECIPES[name]
    common = {
        "env": env,
        "num_envs": 8,
        "frames_per_batch": 64,
        "num_cells": (32,),
        "gamma": GAMMA,
        "lr": 5e-3,
        "total_frames": 1536,
    }
    replay = {} if name == "pqn" else REPLAY
    grid = GRID if name in ("c51", "rainbow") else {}
    settings = {**common, **replay, **grid, **OWN.get(name, {}), **changes}
    return recipe(config(**{key: value for key, value in settings.items() if key not in recipe.unused}))


@pytest.mark.parametrize("probe", PROBES)
@each
def test_probes(name, probe):
    agent = agent_of(name, probe, eps_frames=10**6)  # both actions, all the time
    for _ in agent.train():
        pass
    env: Any = make_env(probe, 16, seed=1)
    data = env.rollout(8)
    zero_noise(agent.loss_fn)
    with torch.no_grad():
        value = agent.loss_fn.qvalue.value(data)
    wanted = env.optimal_value(data["observation"], GAMMA)
    assert (value - wanted).abs().max() < 0.15, (value.unique(), wanted.unique())
    if probe in ("ProbeAction", "ProbeBoth"):
        action = agent.greedy.act(dict(data.items()), agent.greedy.draw_noise((8, 16)))["action"]
        assert torch.equal(action, env.optimal_action(data["observation"]))


def test_taking_time_outs_for_the_end_fails_the_probe():
    agent = agent_of("dqn", "ProbeTimeout(max_steps=5)", total_frames=3072, n=1)
    for data in agent.collector:
        data["next", "terminated"] = data["next", "done"]
        agent.buffer.extend(data)
        agent.learn()
    value = agent.loss_fn.qvalue.value({"observation": torch.ones(1, 1)}).item()
    # A fifth of the targets is 1. The Huber loss weighs that less than the mean would: 0.2 = 0.8 (1 + 0.8 V - V).
    assert value == pytest.approx(3.75, abs=0.3)
    assert value < 1 / (1 - GAMMA) - 0.9


CATCH = {"num_cells": (64,), "gamma": 0.95, "lr": 1e-3, "v_min": -1.0, "v_max": 1.0, "atoms": 21, "n": 3}


@pytest.mark.slow
@each
def test_learns_catch(name):
    frames = 16_384 if name == "pqn" else 8192
    _, config = RECIPES[name]
    changes = {key: value for key, value in CATCH.items() if key in config.__dataclass_fields__}
    agent = agent_of(name, "Catch", total_frames=frames, eps_frames=frames // 2, **changes)
    *_, last = agent.train()
    assert agent.evaluate(100).mean() > 0.8  # at random -0.6
    assert last["frames"] == frames


def test_rainbow_is_what_it_is_made_of():
    agent = agent_of("rainbow", "CartPole", n=3, total_frames=512, alpha=0.5, beta=0.4, beta_frames=512)
    assert isinstance(agent.actor, NoisyExploration)
    layers = [module for module in agent.loss_fn.qvalue.modules() if hasattr(module, "in_features")]
    assert layers
    assert all(isinstance(layer, NoisyLinear) for layer in layers)
    assert agent.loss_fn.is_double
    for metrics in agent.train():
        assert agent.buffer.sampler.beta == pytest.approx(0.4 + 0.6 * metrics["frames"] / 512)
    batch = agent.buffer.sample()
    powers = torch.tensor([GAMMA**k for k in (1, 2, 3)])
    assert (batch["discount"].unsqueeze(-1) - powers).abs().amin(-1).max() < 1e-6
    assert batch["weight"].max() <= 1
    assert batch["weight"].unique().numel() > 8
    assert (agent.buffer.sampler.priority(batch["index"]) != 1).any()


def test_epsilon_falls():
    agent = agent_of("dqn", "CartPole", total_frames=640, eps_frames=320, eps_end=0.1)
    assert isinstance(agent.actor, EpsilonGreedy)
    seen = [agent.actor.amount for _ in agent.train()]
    assert seen[:5] == pytest.approx([1 - 0.9 * k / 5 for k in range(1, 6)])
    assert seen[5:] == pytest.approx([0.1] * 5)


def test_nothing_is_learnt_before_learning_starts():
    agent = agent_of("dqn", "CartPole", total_frames=256, learning_starts=192)
    assert ["loss" in metrics for metrics in agent.train()] == [False, False, True, True]


@pytest.mark.parametrize("anneal, want", [(0.5, [1, 1, 0.5, 0]), (1.0, [0.75, 0.5, 0.25, 0]), (0.0, [1, 1, 1, 1])])
def test_the_learning_rate_falls_at_the_end(anneal, want):
    agent = agent_of("dqn", "CartPole", total_frames=256, anneal=anneal, lr=1.0, learning_starts=1000)
    assert [agent.optimizer.param_groups[0]["lr"] for _ in agent.train()] == pytest.approx(want)


def test_targets_are_copied_on_time():
    agent = agent_of("dqn", "CartPole", total_frames=128, target_every=32)  # 16 updates in each of two rounds
    start = agent.loss_fn.target_qvalue.state_dict()
    start = {key: value.clone() for key, value in start.items()}
    rounds = agent.train()
    next(rounds)
    assert all(torch.equal(start[key], value) for key, value in agent.loss_fn.target_qvalue.state_dict().items())
    next(rounds)
    learnt = agent.loss_fn.qvalue.state_dict()
    assert all(torch.equal(learnt[key], value) for key, value in agent.loss_fn.target_qvalue.state_dict().items())


def test_settings_reach_the_loss():
    losses = {name: agent_of(name, "CartPole", gamma=0.5).loss_fn for name in NAMES if name != "pqn"}
    assert {loss.gamma.item() for loss in losses.values()} == {0.5}
    assert losses["c51"].qvalue.support.tolist() == pytest.approx([-2 + k / 4 for k in range(33)])
    recipe, config = RECIPES["iqn"]
    iqn = recipe(replace(config(), quantiles=4, learnt_quantiles=5, target_quantiles=6)).loss_fn
    assert len(iqn.qvalue.tau) == 4
    assert iqn.counts == (5, 6)
