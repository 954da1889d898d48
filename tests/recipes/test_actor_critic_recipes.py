"""The off-policy actor-critic recipes: probes, a problem with a known optimum, a pendulum, and where settings go."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
import torch

from rlbook import LQR
from rlbook.envs.make import make_env
from rlbook.modules import BatchRenorm, resample_noise
from rlbook.modules.noisy import Dropout
from rlbook.recipes import RECIPES
from rlbook.trainers import evaluate

CONTINUOUS = ("ddpg", "td3", "sac", "tqc", "redq", "droq", "crossq", "mpo")
OWN: dict[str, dict[str, Any]] = {
    "redq": {"updates": 1, "actor_every": 1, "members": 4},
    "droq": {"updates": 1, "actor_every": 1},
    "crossq": {"critic_cells": (32,), "actor_every": 1, "lr": 1e-3, "lr_value": 3e-3},
    "mpo": {"target_every": 10, "temperature": 0.5, "epsilon": 1.0, "epsilon_mean": 0.1, "epsilon_std": 0.01},
}
"""What makes the settings of a recipe small."""
FAST = {"num_envs": 8, "frames_per_batch": 8, "learning_starts": 400, "num_cells": (32,), "batch_size": 64, "log_every": 400}


def agent_of(name: str, env: str, **changes: Any) -> Any:
    recipe, config = RECIPES[name]
    settings = {**FAST, "lr": 3e-3, "lr_value": 1e-2, "tau": 0.05, **OWN.get(name, {}), **changes}
    able = {field.name for field in fields(config)} - set(recipe.unused)
    return recipe(config(env=env, **{key: value for key, value in settings.items() if key in able}))


def last_of(agent: Any) -> dict[str, float]:
    *_, last = agent.train()
    return last


@torch.no_grad()
def assert_solves(agent: Any, probe: str) -> None:
    """Compare the greedy action and its value with those that the probe states."""
    env = make_env(probe, 16, seed=1)
    data = env.rollout(8)
    action, q = agent.greedy.act(dict(data.items()))["action"], agent.loss_fn.qvalue
    draws = []
    for _ in range(16):  # what drops units is right on average
        resample_noise(q)
        draws.append(q.values(data).amax(-1) if hasattr(q, "values") else q.value(data, action))
    value = torch.stack(draws).mean(0)
    wanted = env.optimal_value(data["observation"])
    assert (value - wanted).abs().max() < 0.2, (value.unique(), wanted.unique())
    if "Both" in probe or "Action" in probe:
        assert (action - env.optimal_action(data["observation"])).abs().max() < 0.2


@pytest.mark.parametrize("probe", ["ProbeDelay", "ProbeBoth"])
@pytest.mark.parametrize("name", [*CONTINUOUS, "sac_discrete"])
def test_probes(name, probe):
    probe = probe if name == "sac_discrete" else f"{probe}(continuous=True)"
    agent = agent_of(name, probe, total_frames=6000 if name == "mpo" else 3600)  # its steps are bounded twice
    last_of(agent)
    assert_solves(agent, probe)


@pytest.mark.parametrize("probe", ["ProbeConstant", "ProbeObservation", "ProbeAction"])
@pytest.mark.parametrize("name", ["ddpg", "sac"])
def test_the_other_probes(name, probe):
    agent = agent_of(name, f"{probe}(continuous=True)", total_frames=2400)
    last_of(agent)
    assert_solves(agent, f"{probe}(continuous=True)")


def share_of_the_optimum(agent: Any, gamma: float) -> float:
    """How far the greedy policy is on the way from doing nothing (0) to the best action in every state (1), by its return."""
    env = LQR(256)
    K, _ = env.solve(gamma=gamma)
    policies = (agent.greedy, lambda observation: -observation @ K.T, lambda observation: torch.zeros(len(observation), 1))
    mine, best, idle = (evaluate(env, policy, 256, seed=1).mean().item() for policy in policies)
    return (mine - idle) / (best - idle)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ddpg", {"lr": 1e-3, "lr_value": 1e-3, "sigma": 0.3, "gamma": 0.99}),
        ("sac", {"lr": 1e-3, "lr_value": 3e-3, "alpha": 0.05, "gamma": 0.95}),
    ],
)
def test_approaches_the_optimum_of_lqr(name, changes):
    agent = agent_of(name, "LQR", total_frames=12_000, tau=0.02, num_cells=(64, 64), **changes)
    assert share_of_the_optimum(agent, changes["gamma"]) < 0.5  # before
    last_of(agent)
    assert 0.8 < share_of_the_optimum(agent, changes["gamma"]) < 1.01


@pytest.mark.slow
def test_sac_swings_a_pendulum_up():
    quick = {"num_envs": 4, "frames_per_batch": 4, "updates": 4, "learning_starts": 800, "num_cells": (64, 64)}
    agent = agent_of("sac", "Pendulum", total_frames=4800, lr=2e-3, lr_value=3e-3, tau=0.01, gamma=0.97, **quick)
    last_of(agent)
    assert agent.evaluate(20).mean() > -300  # about -1200 at random, -150 at best


def test_settings_reach_the_parts():
    agent = agent_of("td3", "Pendulum", noise_scale=0.3, noise_clip=0.4, actor_every=3, gamma=0.9, tau=0.125, sigma=0.25)
    hyper = (agent.loss_fn.noise_scale, agent.loss_fn.noise_clip, agent.loss_fn.gamma)
    assert [round(x.item(), 6) for x in hyper] == [0.3, 0.4, 0.9]
    assert (agent.target.every, agent.target.tau, agent.update.every) == (3, 0.125, {"loss_actor": 3})
    assert [group["lr"] for group in agent.optimizer.param_groups] == [3e-3, 1e-2]
    agent = agent_of("redq", "Pendulum", members=5, subset=3, alpha=0.25)
    assert (agent.loss_fn.qvalue.num_members, agent.loss_fn.subset, agent.loss_fn.log_alpha.exp().item()) == (5, 3, 0.25)
    agent = agent_of("droq", "Pendulum", dropout=0.25)
    assert {layer.p for layer in agent.loss_fn.qvalue.modules() if isinstance(layer, Dropout)} == {0.25}
    agent = agent_of("crossq", "Pendulum", critic_cells=(16,))
    assert agent.target is None
    assert [group["betas"] for group in agent.optimizer.param_groups] == [(0.5, 0.999), (0.5, 0.999), (0.9, 0.999)]
    assert any(isinstance(layer, BatchRenorm) for layer in agent.actor.modules())
    agent = agent_of("tqc", "Pendulum", members=3, quantiles=7, drop=1)
    assert (agent.loss_fn.qvalue.num_members, agent.loss_fn.qvalue.quantiles, agent.loss_fn.drop) == (3, 7, 1)
    agent = agent_of("sac", "Pendulum", learn_alpha=False, alpha=0.5)
    assert len(agent.optimizer.param_groups) == 2
    for name in ("sac", "redq", "droq", "crossq", "tqc"):
        assert [agent_of(name, "Pendulum", **at).loss_fn.target_entropy for at in ({}, {"target_entropy": -3.0})] == [-1, -3]
    assert agent_of("sac_discrete", "CartPole", target_entropy=0.25).loss_fn.target_entropy == 0.25
    assert agent_of("sac_discrete", "CartPole").loss_fn.target_entropy == pytest.approx(0.3 * math.log(2))
    agent = agent_of("mpo", "Pendulum", samples=7, epsilon=0.25, epsilon_mean=0.125, epsilon_std=0.0625, target_every=9)
    loss_fn = agent.loss_fn
    assert (loss_fn.samples, loss_fn.epsilon, loss_fn.epsilon_mean, loss_fn.epsilon_std) == (7, 0.25, 0.125, 0.0625)
    assert (agent.target.every, agent.target.tau) == (9, 1.0)


@pytest.mark.parametrize("name", ["sac", "ddpg"])
def test_the_first_frames_are_uniform_and_the_buffer_holds_the_environments_actions(name):
    agent = agent_of(name, "Pendulum", total_frames=800)
    start = {key: value.clone() for key, value in agent.loss_fn.state_dict().items()}
    rounds = []
    for metrics in agent.train():
        rounds.append(metrics)
        if len(rounds) == 1:
            assert all(torch.equal(value, start[key]) for key, value in agent.loss_fn.state_dict().items())
            action = agent.buffer[:]["action"]
            assert len(action) == 400
            assert action.abs().max() <= 2
            assert (action.abs() > 1).float().mean() == pytest.approx(0.5, abs=0.1)  # uniform in [-2, 2]
    assert [row["frames"] for row in rounds] == [400, 800]
    assert "loss_value" in rounds[1]
    assert "loss_value" not in rounds[0]
    assert set(agent.buffer.storage.keys) == set(agent.loss_fn.in_keys)


def test_the_ratio_of_updates_to_frames(monkeypatch):
    agent = agent_of("redq", "Pendulum", total_frames=480, updates=3, actor_every=3)
    terms = []
    update = agent.update
    monkeypatch.setattr(agent, "update", lambda batch: terms.append(set(out := dict(update(batch).items()))) or _Metrics(out))
    last_of(agent)
    assert len(terms) == 3 * (480 - 400) // 8
    assert sum("loss_actor" in each for each in terms) == len(terms) // 3


@pytest.mark.parametrize(("name", "late"), [("sac", {"actor", "alpha"}), ("mpo", {"actor", "alpha", "temperature"})])
def test_what_is_late_with_the_actor(name, late):
    agent = agent_of(name, "Pendulum", total_frames=480, actor_every=3)
    agent.buffer.extend(agent.collector.collect())
    calls = [agent.update(agent.buffer.sample()).keys() for _ in range(3)]
    terms = [{name.removeprefix("loss_") for name in names if name.startswith("loss_")} for names in calls]
    assert terms == [{"value"}, {"value"}, {"value"} | late]


class _Metrics(dict):
    """A dictionary in the place of the TensorDict that an update returns."""
