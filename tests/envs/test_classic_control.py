"""Acrobot and both mountain cars: Gymnasium's dynamics, step for step, and what they allow."""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import pytest
import torch

from rlbook import keys
from rlbook.envs import Acrobot, MountainCar, MountainCarContinuous

torch.set_num_threads(1)

NAMES = {MountainCar: "MountainCar-v0", MountainCarContinuous: "MountainCarContinuous-v0", Acrobot: "Acrobot-v1"}
every_env = pytest.mark.parametrize("cls", NAMES, ids=lambda cls: cls.__name__)


def _states(cls, count, rng):
    """Draw states from everywhere, corners, walls and goals included; float32, so that both start from the same numbers."""
    if cls is Acrobot:
        low, high = [-math.pi, -math.pi, -4 * math.pi, -9 * math.pi], [math.pi, math.pi, 4 * math.pi, 9 * math.pi]
    else:
        low, high = [-1.2, -0.07], [0.6, 0.07]
    low, high = np.array(low), np.array(high)
    states = rng.uniform(low, high, (count, len(low)))
    slow = rng.random(count) < 0.5
    if cls is Acrobot:
        states[slow, 2:] *= 0.1  # most of what happens
    else:
        states[slow, 0] = rng.choice([-1.2, -1.19, 0.44, 0.46, 0.49, 0.55], slow.sum())
    return states.astype(np.float32)


@every_env
def test_a_step_from_anywhere_equals_gymnasiums(cls):
    count, rng = 2000, np.random.default_rng(0)
    theirs = gymnasium.make(NAMES[cls]).unwrapped
    theirs.reset(seed=0)
    theirs.action_space.seed(0)
    physics = _states(cls, count, rng)
    actions = [theirs.action_space.sample() for _ in range(count)]
    outcomes = []
    for row, action in zip(physics, actions, strict=True):
        theirs.state = row.astype(np.float64)
        outcomes.append(theirs.step(action)[:3])
    observation, reward, terminated = (np.array(part) for part in zip(*outcomes, strict=True))

    ours = cls(num_envs=count)
    state = ours.state
    state["physics"] = torch.from_numpy(physics)
    ours.set_state(state)
    got = ours._step(torch.from_numpy(np.array(actions)))
    # float32 keeps 7 digits. The car adds small numbers. An Acrobot that spins at 9 pi rad/s is accelerated by some 1000 rad/s^2
    # in each of four stages: its speeds move by 1e-3, its angles by 1e-5.
    error = (got[keys.OBSERVATION] - torch.from_numpy(observation)).abs().amax(0)
    assert (error <= torch.tensor([2e-5] * 4 + [3e-3] * 2 if cls is Acrobot else [3e-7, 3e-8])).all()
    torch.testing.assert_close(got[keys.REWARD], torch.from_numpy(reward).float(), rtol=1e-6, atol=1e-6)
    assert torch.equal(got[keys.TERMINATED], torch.from_numpy(terminated))
    assert 20 < terminated.sum() < count - 20


@every_env
@pytest.mark.parametrize("seed", [0, 1])
def test_an_episode_stays_with_gymnasiums(cls, seed):
    theirs = gymnasium.make(NAMES[cls]).unwrapped
    theirs.reset(seed=seed)
    ours = cls(seed=0)
    state, _ = ours.functional_reset(ours.state)
    state["physics"] = torch.from_numpy(np.array(theirs.state)).float()
    theirs.state = state["physics"].numpy().astype(np.float64)
    for step in range(500):
        speed = theirs.state[1] if cls is not Acrobot else theirs.state[3] - theirs.state[2]
        push = 1 if speed >= 0 else -1  # with the motion: swings up
        action = np.array([push], np.float32) if cls is MountainCarContinuous else push + 1
        observation, reward, terminated, _, _ = theirs.step(action)
        state, got = ours.functional_step(state, torch.as_tensor(action))
        torch.testing.assert_close(got[keys.OBSERVATION], torch.from_numpy(observation), rtol=0, atol=1e-2)
        assert got[keys.TERMINATED].item() == terminated
        torch.testing.assert_close(got[keys.REWARD].item(), float(reward), rtol=1e-6, atol=1e-6)
        if terminated:
            assert step > 20
            return
    raise AssertionError("did not arrive")


@every_env
def test_time_limit_is_gymnasiums(cls):
    limit = gymnasium.spec(NAMES[cls]).max_episode_steps
    assert cls().max_steps == limit
    env = cls(num_envs=2, seed=0)
    root = env.reset()
    state = env.state
    state[keys.STEP_COUNT] = torch.tensor([limit - 1, limit - 2])
    env.set_state(state)
    root[keys.ACTION] = env.random_actions()
    step, _ = env.step_and_reset(root)
    assert step[keys.NEXT, keys.TRUNCATED].tolist() == [True, False]
    assert not step[keys.NEXT, keys.TERMINATED].any()


@every_env
def test_spaces_and_starts_are_gymnasiums(cls):
    theirs, env = gymnasium.make(NAMES[cls]), cls(num_envs=4000, seed=0)
    spec = env.observation_spec[keys.OBSERVATION]
    torch.testing.assert_close(spec.low, torch.from_numpy(theirs.observation_space.low))
    torch.testing.assert_close(spec.high, torch.from_numpy(theirs.observation_space.high))
    env.reset()
    start = env.state["physics"]
    low, high = ([-0.1] * 4, [0.1] * 4) if cls is Acrobot else ([-0.6, 0.0], [-0.4, 0.0])
    low, high = torch.tensor(low), torch.tensor(high)
    assert ((start >= low) & (start <= high)).all()
    torch.testing.assert_close(start.mean(0), (low + high) / 2, rtol=0, atol=0.004)  # four standard deviations of 0.0009
    torch.testing.assert_close(start.std(0), (high - low) / 12**0.5, rtol=0.03, atol=1e-6)


def test_the_left_wall_stops_the_car():
    env = MountainCar()
    state = env.state
    state["physics"] = torch.tensor([-1.19, -0.05])
    env.set_state(state)
    assert env._step(torch.tensor(0))[keys.OBSERVATION].tolist() == pytest.approx([-1.2, 0.0])


def test_acrobot_conserves_energy_without_torque():
    g = 9.8

    def energy(state):
        a, b, v, w = state["physics"].double().unbind(-1)
        potential = -1.5 * g * a.cos() - 0.5 * g * (a + b).cos()
        upper = 0.5 * (0.25 + 1 + 1) * v**2
        lower = 0.5 * (0.25 * (v + w) ** 2 + v * (v + w) * b.cos()) + 0.5 * (v + w) ** 2
        return potential + upper + lower

    env = Acrobot(num_envs=64, seed=0)
    env.reset()
    state = env.state
    state["physics"] = 5 * state["physics"]
    before = energy(state)
    for _ in range(50):
        state, _ = env.functional_step(state, torch.ones(64).long())
    torch.testing.assert_close(energy(state), before, rtol=0, atol=0.05)  # of the 29.4 J from hanging to standing


@every_env
def test_they_draw_themselves(cls):
    env = cls(num_envs=2, seed=0)
    env.reset()
    picture = env.render(1)
    assert picture.shape == (200, 300, 3)
    assert picture.std() > 10
