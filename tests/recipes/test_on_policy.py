"""The on-policy recipes: probes whose values are known, CartPole, and what each setting of theirs does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from toys import Constant

from rlbook import CartPole
from rlbook.envs.make import make_env
from rlbook.errors import ConfigError, NonFiniteError
from rlbook.estimators import GAE, VTrace
from rlbook.losses import PPOKLLoss
from rlbook.recipes import PPG, RECIPES, PPGConfig, Reinforce, ReinforceConfig
from rlbook.recipes.impala import Impala, ImpalaConfig
from rlbook.recipes.ppo_kl import PPOKL, PPOKLConfig
from rlbook.trainers import evaluate

GAMMA = 0.9
PPO_LIKE = {"total_frames": 3200, "frames_per_batch": 128, "minibatch_size": 128, "epochs": 8, "lr": 1e-2}
OWN: dict[str, dict[str, Any]] = {
    "reinforce": {"total_frames": 8320, "frames_per_batch": 64, "lr": 1e-2, "max_grad_norm": 10.0, "normalize_advantage": False},
    "a2c": {"total_frames": 6400, "lr": 1e-2, "max_grad_norm": 10.0, "anneal": True},
    "impala": {
        "total_frames": 9600,
        "frames_per_batch": 80,
        "lr": 1e-2,
        "max_grad_norm": 10.0,
        "anneal": True,
        "entropy_coef": 0.0,
    },
    "ppo": PPO_LIKE,
    "ppo_kl": PPO_LIKE,
    "ppg": {**PPO_LIKE, "aux_every": 4, "aux_minibatch_size": 256},
    "trpo": {"total_frames": 2560, "frames_per_batch": 128, "minibatch_size": 128, "lr": 1e-2, "max_kl": 0.05},
}
NAMES = tuple(OWN)
PROBES = ("ProbeConstant", "ProbeObservation", "ProbeDelay", "ProbeAction", "ProbeBoth", "ProbeTimeout")
CARTPOLE = {"reinforce": 40_960, "a2c": 24_000, "impala": 24_000, "ppo_kl": 12_288, "ppg": 12_288, "trpo": 16_384}


def agent_of(name: str, env: str, **changes: Any) -> Any:
    recipe, config = RECIPES[name]
    return recipe(config(**{"env": env, "num_envs": 8, "num_cells": (16,), "gamma": GAMMA, **OWN[name], **changes}))


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("name", NAMES)
def test_probes(name, probe):
    agent = agent_of(name, probe)
    for _ in agent.train():
        pass
    env = make_env(probe, 16, seed=1)
    data = env.rollout(8)
    with torch.no_grad():
        value, dist = agent.value.value(data), agent.actor.dist(data)
    wanted = env.optimal_value(data["observation"], GAMMA)
    scale = 10.0 if probe == "ProbeTimeout" else 1.0
    assert (value - wanted).abs().max() < 0.1 * scale, (value.unique(), wanted.unique())
    if probe in ("ProbeAction", "ProbeBoth"):
        best = env.optimal_action(data["observation"])
        assert torch.equal(agent.greedy.act(data)["action"], best)
        assert dist.log_prob(best).exp().min() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", CARTPOLE)
def test_learns_cartpole(name):
    recipe, config = RECIPES[name]
    agent = recipe(config(env="CartPole", total_frames=CARTPOLE[name]))
    *_, last = agent.train()
    assert last["episode_reward"] > 60  # 22 untrained
    assert evaluate(CartPole(32), agent.greedy, 32, seed=0).mean() > 120


# ---- time-outs ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["reinforce", "a2c", "impala", "ppo", "trpo"])
def test_time_outs_that_are_taken_for_endings_are_found_out(name, monkeypatch):
    """A reward of 1 for ever is worth 10; told that it ends after 5 steps, a value learns what is left of them: 1 to 4.1."""
    monkeypatch.setattr("rlbook.recipes.base.make_env", lambda *args, **kwargs: Constant(8, limit=5, terminates=True))
    agent = agent_of(name, "Constant")
    for _ in agent.train():
        pass
    assert 1 < agent.value.value({"observation": torch.ones(1, 1)}).item() < 5


# ---- REINFORCE ---------------------------------------------------------------------------------------------------------------
def test_reinforce_without_a_baseline_learns_too():
    agent = agent_of("reinforce", "ProbeBoth", baseline=False, normalize_advantage=True)
    for _ in agent.train():
        pass
    data = make_env("ProbeBoth", 16, seed=1).rollout(8)
    assert agent.value is None
    assert agent.actor.dist(data).log_prob((data["observation"][..., 0] > 0).long()).exp().min() > 0.9


def test_reinforce_waits_for_an_episode_to_end():
    agent = Reinforce(ReinforceConfig(env="CartPole", frames_per_batch=32, total_frames=32 * 12))
    rounds = list(agent.train())
    assert len(rounds) == 12
    assert set(rounds[0]) == {"frames", "episode_reward"}  # 4 steps of each: nothing has ended, nothing is learnt
    assert any("loss_actor" in metrics for metrics in rounds)


# ---- IMPALA ------------------------------------------------------------------------------------------------------------------
def test_the_acting_policy_is_renewed_now_and_then():
    agent = Impala(ImpalaConfig(env="CartPole", total_frames=160 * 9, lag=3))
    assert isinstance(agent.estimator, VTrace)
    stale = []
    for metrics in agent.train():
        same = torch.equal(agent.acting.net[0].weight, agent.actor.net[0].weight)
        stale.append(metrics["approx_kl"] > 1e-7)
        assert same == (agent.rounds % 3 == 0)
    assert stale == [False, True, True] * 3  # data of this very policy have ratio 1


def test_without_correction_it_is_a2c_on_stale_data():
    assert isinstance(Impala(ImpalaConfig(env="CartPole", correct=False)).estimator, GAE)


# ---- PPO with a penalty, PPG -------------------------------------------------------------------------------------------------
def test_the_penalty_holds_the_kl_near_its_target():
    agent = PPOKL(PPOKLConfig(env="CartPole", total_frames=256 * 40, target_kl=0.02, anneal=False))
    kls = [metrics["kl"] for metrics in agent.train()]
    assert isinstance(agent.loss_fn, PPOKLLoss)
    assert 0.005 < sum(kls[10:]) / len(kls[10:]) < 0.06
    loose = PPOKL(replace(agent.config, target_kl=0.5))
    assert sum(metrics["kl"] for metrics in loose.train()) > 2 * sum(kls)


def test_the_auxiliary_phase_teaches_the_features_and_keeps_the_policy():
    agent = PPG(PPGConfig(env="CartPole", total_frames=256 * 16, aux_every=8, aux_lr=1e-3))
    rounds = list(agent.train())
    assert [i for i, metrics in enumerate(rounds) if "loss_clone" in metrics] == [7, 15]

    agent.aux_loss.clone_coef, agent.aux_optimizer.param_groups[0]["lr"] = 10.0, 3e-4
    data = agent.collector.collect()
    for _ in range(8):
        list(agent.batches(agent.estimator(data)))
    shared, before = agent.actor.net[0].weight.detach().clone(), agent.actor.dist(data)
    values = agent.auxiliary.value(data).detach()
    agent.auxiliary_phase(agent.phase.take("cpu"))
    assert not torch.equal(agent.actor.net[0].weight, shared)  # the features have learnt
    assert (agent.auxiliary.value(data) - values).abs().mean() > 0.01
    assert before.kl(agent.actor.dist(data)).mean() < 0.005  # and the policy is what it was


def test_a_gradient_of_the_auxiliary_phase_that_is_not_finite_is_not_taken():
    agent = PPG(PPGConfig(env="CartPole", total_frames=256 * 16, aux_minibatch_size=256))
    list(agent.batches(agent.estimator(agent.collector.collect()).clone()))
    data = agent.phase.take("cpu")
    data["value_target"][0, 0] = float("nan")
    before = [parameter.clone() for parameter in agent.aux_loss.parameters()]
    with pytest.raises(NonFiniteError, match=r"The gradient of the auxiliary phase must be finite; got nan\. Lower"):
        agent.auxiliary_phase(data)
    assert all(torch.equal(a, b) for a, b in zip(before, agent.aux_loss.parameters(), strict=True))


def test_an_auxiliary_minibatch_larger_than_its_phase_is_explained():
    with pytest.raises(ConfigError, match=r"aux_minibatch_size must be at most aux_every \* frames_per_batch, 256; got 512"):
        PPG(PPGConfig(env="CartPole", aux_every=1))
