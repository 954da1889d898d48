"""Names of environments, with and without arguments."""

from __future__ import annotations

import pytest

from rlbook.envs import GymEnv, TMaze
from rlbook.envs.make import make_env
from rlbook.errors import ConfigError, UnknownEnvError


def test_a_name_may_carry_arguments():
    env = make_env("TMaze(length=5, max_steps=None)", 3, seed=1)
    assert isinstance(env, TMaze)
    assert (env.length, env.num_envs) == (5, 3)
    assert make_env("TMaze()").length == make_env("TMaze").length == 10
    assert make_env("TMaze(length=5)", length=6).length == 6  # an argument of the call wins
    assert isinstance(make_env("Pendulum-v1(max_episode_steps=7)"), GymEnv)


@pytest.mark.parametrize("name", ["TMaze(5)", "TMaze(length=open('x'))", "TMaze(length=5", "TMaze(length=5) + 1", "TMaze(**{})"])
def test_other_arguments_are_explained(name):
    with pytest.raises(ConfigError, match="The arguments in an environment's name must be keywords with literals"):
        make_env(name)


def test_an_unknown_name_is_explained():
    with pytest.raises(UnknownEnvError, match="Tmase"):
        make_env("Tmase(length=5)")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("TMaze(size=5)", "An argument of TMaze must be one of: .*length.*; got 'size'"),
        ("CartPole(num_envs=3)", "Set it outside"),
        ("CartPole-v1(seed=3)", "Set it outside"),
        ("CartPole-v1(speed=3)", "The arguments of 'CartPole-v1' must be some that it takes"),
        (None, "The name of an environment must be a text; got None"),
    ],
)
def test_arguments_that_an_environment_does_not_take_are_explained(name, match):
    with pytest.raises(ConfigError, match=match):
        make_env(name, 2)


@pytest.mark.parametrize(
    ("name", "match"), [("catch", "did you mean the native Catch"), ("Chess", "Native ones are Acrobot, Breakout")]
)
def test_native_names_are_hinted_at(name, match):
    with pytest.raises(UnknownEnvError, match=match):
        make_env(name)
