"""Datasets of graded quality from any environment, reproducible from a seed."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch
from torch.testing import assert_close
from toys import Clock, Constant

from rlbook import MLP, Actor, CartPole, GymEnv
from rlbook.datasets import Dataset, record
from rlbook.errors import ConfigError
from rlbook.specs import Binary, Bounded, Categorical, MultiCategorical, Unbounded

module = import_module("rlbook.datasets.record")  # the name in the package is the function's


def balance(observation):
    """A policy for CartPole that keeps the pole up for long: push to where it falls."""
    return (observation[..., 2] + observation[..., 3] > 0).long()


def same(a, b):
    return all(torch.equal(a[:][key], b[:][key]) for key in a.storage.keys)


def test_each_environment_contributes_its_first_steps_one_after_the_other(tmp_path):
    """Row i of Clock observes [i, t, age], and its episodes last i + 2 steps."""
    data = record(Clock(3), None, tmp_path / "x", num_steps=11)
    rows = data[:]
    row, t, age = rows["observation"].unbind(-1)
    assert row.tolist() == [0] * 4 + [1] * 4 + [2] * 3  # 11 = 4 + 4 + 3
    assert t.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2]
    assert age.tolist() == [0, 1, 0, 1, 0, 1, 2, 0, 0, 1, 2]
    assert_close(rows["next", "observation"][:, 1], t + 1)
    assert rows["next", "terminated"].int().tolist() == [0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert rows["next", "truncated"].int().tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 1]  # row 1 by itself, and where data stop
    assert torch.equal(rows["next", "done"], rows["next", "terminated"] | rows["next", "truncated"])
    assert data.episode_lengths.tolist() == [2, 2, 3, 1, 3]


def test_chunks_make_no_difference(tmp_path, monkeypatch):
    whole = record(Clock(3), None, tmp_path / "whole", num_steps=100)
    monkeypatch.setattr(module, "CHUNK", 7)
    assert same(whole, record(Clock(3), None, tmp_path / "chunks", num_steps=100))


def test_each_environment_contributes_its_first_episodes(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 30)  # rollouts of 3 steps
    data = record(Clock(3), None, tmp_path / "x", num_episodes=7)
    # row 0 contributes 3 episodes of 2 steps, row 1 two of 3, row 2 two of 4
    assert data.episode_lengths.tolist() == [2, 2, 2, 3, 3, 4, 4]
    row, t, _ = data[:]["observation"].unbind(-1)
    assert row.tolist() == [0] * 6 + [1] * 6 + [2] * 8
    assert t.tolist() == [*range(6), *range(6), *range(8)]
    assert not data[:]["next", "truncated"][:6].any()


def test_a_single_environment_without_batch_dimension(tmp_path):
    assert record(CartPole(), None, tmp_path / "a", num_steps=50)[:]["observation"].shape == (50, 4)
    assert record(CartPole(), None, tmp_path / "b", num_episodes=3).info["episodes"] == 3


@pytest.mark.parametrize("length", [{"num_steps": 3000}, {"num_episodes": 30}])
def test_levels_lie_one_after_another_and_say_how_good_they_are(tmp_path, length):
    levels = {"random": None, "expert": balance}
    data = record(CartPole(num_envs=2), levels, tmp_path / "x", fractions={"random": 1, "expert": 2}, **length)
    random, expert = data.info["levels"].values()
    assert random["rows"][1] == expert["rows"][0]
    assert expert["rows"][1] == len(data)
    if "num_steps" in length:
        assert random["rows"] == [0, 1000]
    else:
        assert (random["episodes"], expert["episodes"]) == (10, 20)
    assert random["episodes"] + expert["episodes"] == data.info["episodes"]
    assert_close(random["returns"]["mean"], data.episode_returns[: random["episodes"]].mean().item())
    assert expert["returns"]["mean"] > 3 * random["returns"]["mean"]


def test_log_probabilities_are_kept_and_those_of_random_actions_are_known(tmp_path):
    env = CartPole(num_envs=2)
    actor = Actor(MLP(out_features=2), env.action_spec)
    data = record(env, {"random": None, "actor": actor}, tmp_path / "x", num_steps=200)
    rows = data[:]
    assert_close(rows["action_log_prob"][:100], torch.full((100,), -math.log(2)))
    assert_close(rows["action_log_prob"][100:], actor.dist(rows[100:]).log_prob(rows["action"][100:]).detach())


def test_entries_that_only_some_levels_have_are_left_out(tmp_path):
    env = CartPole(num_envs=2)
    actor = Actor(MLP(out_features=2), env.action_spec)
    data = record(env, {"actor": actor, "rule": balance}, tmp_path / "x", num_steps=100)
    assert "action_log_prob" not in data.storage.keys


@pytest.mark.parametrize(
    "spec, want",
    [
        (Categorical(3), -math.log(3)),
        (Binary(4), -math.log(16)),
        (MultiCategorical([2, 5]), -math.log(10)),
        (Bounded(-2, 2, 3), -3 * math.log(4)),
        (Bounded(0, torch.inf, 3), None),
        (Unbounded(3), None),
    ],
)
def test_the_log_probability_of_a_uniform_action(spec, want):
    got = module.uniform_log_prob(spec)
    assert got is None if want is None else got == pytest.approx(want)


def test_a_seed_gives_the_same_data_and_leaves_the_generator_alone(tmp_path):
    env = CartPole(num_envs=2)
    actor = Actor(MLP(out_features=2), env.action_spec)
    made = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(3)
        before = torch.random.get_rng_state()
        made.append(record(env, {"actor": actor, "random": None}, tmp_path / name, num_steps=60, seed=seed))
        assert torch.equal(torch.random.get_rng_state(), before)
    assert same(made[0], made[1])
    assert not same(made[0], made[2])
    assert not torch.equal(made[0][:30]["action"], made[0][30:]["action"])


def test_it_is_found_again_by_name_and_knows_its_specs(folders):
    env = GymEnv("Pendulum-v1", 2)
    data = record(env, None, "pendulum-random", num_steps=20, batch_size=5)
    assert data.path == folders.cache / "recorded" / "pendulum-random"
    again = Dataset("pendulum-random")
    assert same(data, again)
    assert again.observation_spec == env.observation_spec
    assert again.action_spec == env.action_spec
    assert again.info["env"] == "GymEnv"
    assert data.sample().batch_size == (5,)


def test_nothing_is_overwritten_by_accident(tmp_path):
    record(CartPole(), None, tmp_path / "x", num_steps=10)
    with pytest.raises(ConfigError, match="path must be new"):
        record(CartPole(), None, tmp_path / "x", num_steps=20)
    assert len(record(CartPole(), None, tmp_path / "x", num_steps=20, overwrite=True)) == 20
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="path must be new"):
        record(CartPole(), None, tmp_path / "mine", num_steps=20, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_policy_that_fails_leaves_nothing_but_what_was_there(tmp_path):
    record(CartPole(), None, tmp_path / "x", num_steps=10)

    def breaks(observation, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) > 5:
            raise RuntimeError("broke")
        return torch.tensor(0)

    with pytest.raises(RuntimeError, match="broke"):
        record(CartPole(), {"random": None, "bad": breaks}, tmp_path / "x", num_steps=40, overwrite=True)
    assert len(Dataset(tmp_path / "x")) == 10
    assert {path.name for path in tmp_path.iterdir()} <= {"x", ".x.lock"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "either num_steps or num_episodes"),
        ({"num_steps": 10, "num_episodes": 1}, "either num_steps or num_episodes"),
        ({"num_steps": 0}, "a positive integer"),
        ({"num_steps": 1.5}, "a positive integer"),
        ({"num_steps": 10, "seed": -1}, "seed must be"),
        ({"num_steps": 10, "fractions": {"policy": 0}}, "fractions must be a positive number"),
        ({"num_steps": 10, "fractions": {"other": 1}}, "fractions must be a positive number"),
        ({"num_steps": 10, "policy": {}}, "one policy"),
        ({"num_steps": 10, "policy": {"a": None, "b": None}, "fractions": {"a": 1, "b": 1000}}, "Every level must be at least 1"),
    ],
)
def test_arguments_out_of_range_are_explained(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        record(CartPole(), path=tmp_path / "x", **({"policy": None} | arguments))
    assert not (tmp_path / "x").exists()


def test_an_environment_without_end_is_refused_when_episodes_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ENDLESS", 500)
    with pytest.raises(ConfigError, match="an environment whose episodes end; got 500 steps of one"):
        record(Constant(2, limit=10**9), None, tmp_path / "x", num_episodes=2)
