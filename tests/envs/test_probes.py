"""Probes: every reward, ending, value and return that they state is the one that a rollout shows."""

from __future__ import annotations

import pytest
import torch

from rlbook import keys
from rlbook.envs import ProbeAction, ProbeBoth, ProbeConstant, ProbeDelay, ProbeObservation, ProbeTimeout, check_env

torch.set_num_threads(1)

PROBES = (ProbeConstant, ProbeObservation, ProbeDelay, ProbeAction, ProbeBoth, ProbeTimeout)
every_probe = pytest.mark.parametrize("probe", PROBES)
both_actions = pytest.mark.parametrize("continuous", [False, True], ids=["discrete", "continuous"])


def _play(env, actions):
    """Take actions without resetting: observations ``[T + 1, N]``, rewards, terminated and truncated ``[T, N]``."""
    leaves = [env._reset(None)] + [env._step(action) for action in actions]
    observations = torch.stack([step[keys.OBSERVATION].squeeze(-1) for step in leaves])
    return [
        observations,
        *(torch.stack([step[key] for step in leaves[1:]]) for key in (keys.REWARD, keys.TERMINATED, keys.TRUNCATED)),
    ]


# ---- golden ------------------------------------------------------------------------------------------------------------------
@both_actions
@pytest.mark.parametrize(
    "probe, observations, rewards, terminated, truncated",
    [
        (ProbeConstant, [1, 1], [1], [True], [False]),
        (ProbeDelay, [0, 1, 1], [0, 1], [False, True], [False, False]),
        (ProbeTimeout, [1, 1, 1, 1], [1, 1, 1], [False, False, False], [False, False, True]),
    ],
)
def test_probes_that_ignore_actions(probe, observations, rewards, terminated, truncated, continuous):
    env = probe(num_envs=1, continuous=continuous, seed=0, **({"max_steps": 3} if probe is ProbeTimeout else {}))
    got = _play(env, env.random_actions(len(rewards)))
    want = (observations, rewards, terminated, truncated)
    assert [part[:, 0].tolist() for part in got] == list(want)


@pytest.mark.parametrize(
    "action, always, plus, minus",
    [
        (torch.tensor(0), -1.0, -1.0, 1.0),
        (torch.tensor(1), 1.0, 1.0, -1.0),
        (torch.tensor([0.5]), 1.0, 1.0, 0.0),
        (torch.tensor([0.0]), 0.75, 0.75, 0.75),
        (torch.tensor([-1.0]), -1.25, -1.25, 0.75),
        (torch.tensor([9.0]), 0.75, 0.75, -1.25),  # beyond the bound: taken as 1
    ],
)
def test_probes_that_reward_actions(action, always, plus, minus):
    continuous = action.is_floating_point()
    one = torch.ones(1)
    for probe, signals in ((ProbeAction, {1: always}), (ProbeBoth, {1: plus, -1: minus})):
        env = probe(continuous=continuous, seed=0)
        env.reset()
        for signal, reward in signals.items():
            state = env.state
            state["signal"] = torch.tensor(float(signal))
            env.set_state(state)
            got = env._step(action)
            assert got[keys.REWARD].item() == reward
            assert got[keys.TERMINATED]
            assert env.action_value(signal * one, action).item() == reward


def test_observation_probe_pays_what_it_shows():
    observations, rewards, terminated, _ = _play(ProbeObservation(num_envs=2000, seed=0), torch.zeros(1, 2000).long())
    assert torch.equal(rewards[0], observations[0])
    assert terminated.all()
    assert set(rewards[0].tolist()) == {-1.0, 1.0}
    assert rewards.mean().abs() < 0.09  # four standard deviations of 0.0224


# ---- what they state ---------------------------------------------------------------------------------------------------------
@every_probe
@both_actions
def test_the_best_policy_has_the_optimal_return(probe, continuous):
    env = probe(num_envs=4000, continuous=continuous, seed=0)
    data = env.rollout(10, env.optimal_action)  # a multiple of every episode's length
    episodes = data[keys.NEXT, keys.DONE].sum(-1)
    returns = data[keys.NEXT, keys.REWARD].sum(-1) / episodes
    torch.testing.assert_close(
        returns.mean().item(), env.optimal_return, rtol=0, atol=0.02 if probe is ProbeObservation else 1e-6
    )


@every_probe
@both_actions
@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.9])
def test_values_solve_the_bellman_optimality_equation(probe, continuous, gamma):
    env = probe(num_envs=64, continuous=continuous, seed=0)
    data = env.rollout(10)
    after = data[keys.NEXT]
    bootstrap = env.optimal_value(after[keys.OBSERVATION], gamma).where(~after[keys.TERMINATED], 0.0)
    want = after[keys.REWARD] + gamma * bootstrap
    torch.testing.assert_close(env.action_value(data[keys.OBSERVATION], data[keys.ACTION], gamma), want)
    value = env.optimal_value(data[keys.OBSERVATION], gamma)
    assert value.shape == data.batch_size
    assert (value >= want - 1e-6).all()
    actions = torch.linspace(-1, 1, 41).unsqueeze(-1) if continuous else torch.arange(2)
    for signal in data[keys.OBSERVATION].unique():
        observation = signal.reshape(1)
        best = env.action_value(observation.expand(len(actions), 1), actions, gamma).max()
        torch.testing.assert_close(env.optimal_value(observation, gamma), best)


def test_timeout_probe_is_worth_more_than_it_ever_pays():
    env = ProbeTimeout(max_steps=5)
    assert env.optimal_return == 5
    torch.testing.assert_close(env.optimal_value(torch.ones(3, 1), 0.9), torch.full((3,), 10.0))


# ---- contract ----------------------------------------------------------------------------------------------------------------
@every_probe
@pytest.mark.parametrize("num_envs", [None, 1, 5])
def test_continuous_probes_keep_the_contract(probe, num_envs):
    assert "keeps the contract" in check_env(probe(num_envs, continuous=True), 60)


@every_probe
@both_actions
def test_they_draw_themselves(probe, continuous):
    env = probe(num_envs=2, continuous=continuous, seed=0)
    env.reset()
    picture = env.render(1)
    assert picture.shape == (200, 300, 3)
    assert picture.std() > 10
