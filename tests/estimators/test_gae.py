"""GAE on rollouts: the saved forward passes change nothing, time-outs bootstrap, and errors say what is missing."""

from __future__ import annotations

import pytest
import torch
from reference import returns as reference
from tensordict import TensorDict
from torch.testing import assert_close
from toys import Clock, Constant

from rlbook import GAE, MLP, CartPole, GymEnv, ValueHead
from rlbook.errors import ConfigError, MissingKeyError, SpecError
from rlbook.functional import generalized_advantage
from rlbook.modules import PopArt, RunningValueNorm, ensemble

GAMMA, LAMBDA = 0.9, 0.8
ENVS = {
    "[N, T]": lambda: Clock(4),
    "[T]": lambda: Clock(None),
    "[1, T]": lambda: Clock(1),
    "CartPole": lambda: CartPole(3, max_steps=15, seed=0),
    "GymEnv": lambda: GymEnv("CartPole-v1", num_envs=3, max_episode_steps=15, seed=0),
}


def value_of(env) -> ValueHead:
    return ValueHead(MLP(1, env.observation_spec["observation"].shape[-1], activation=torch.nn.Tanh))


def in_full(data: TensorDict, value: ValueHead) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition: two whole forward passes, then the recursion."""
    nxt = data["next"]
    with torch.no_grad():
        return generalized_advantage(
            nxt["reward"], value.value(data), value.value(nxt), nxt["terminated"], nxt["done"], GAMMA, LAMBDA
        )


@pytest.mark.parametrize("make", ENVS.values(), ids=ENVS)
def test_equals_two_forward_passes_and_the_recursion(make):
    env = make()
    data, value = env.rollout(40, break_when_any_done=False), value_of(env)
    for part in (data, data[..., :7], data[..., 3:20], data[..., :1]):
        assert part["next", "done"].any() or part.shape[-1] < 10
        out, (advantage, target) = GAE(value, GAMMA, LAMBDA)(part), in_full(part, value)
        assert_close(out["advantage"], advantage, rtol=1e-4, atol=1e-4)
        assert_close(out["value_target"], target, rtol=1e-4, atol=1e-4)
        assert_close(out["state_value"], value.value(part).detach(), rtol=1e-5, atol=1e-5)
        assert out["advantage"].shape == part.batch_size


def test_equals_the_slow_reference():
    env = Clock(4)
    data, value = env.rollout(30), value_of(env)
    out, nxt = GAE(value, GAMMA, LAMBDA)(data), data["next"]
    arrays = [nxt["reward"], out["state_value"], value.value(nxt).detach(), nxt["terminated"], nxt["done"]]
    advantage = torch.from_numpy(reference.generalized_advantage(*(x.numpy() for x in arrays), GAMMA, LAMBDA)).float()
    assert_close(out["advantage"], advantage, rtol=1e-4, atol=1e-3)
    assert_close(out["value_target"], advantage + out["state_value"], rtol=1e-4, atol=1e-3)


def test_golden_value():
    # V = 10 everywhere, gamma = lambda = 1/2, rewards 1. Step 1 is truncated (delta = 1 + 5 - 10 = -4, and none flows back over
    # it), step 2 terminates (delta = 1 - 10 = -9), step 3 is the last of the rollout (delta = -4).
    data = Constant(None, limit=10).rollout(4, break_when_any_done=False)
    data["next", "truncated"][1] = data["next", "terminated"][2] = True
    data["next", "done"][1:3] = True
    out = GAE(ValueHead(lambda x: 10 * torch.ones_like(x)), 0.5, 0.5)(data)
    assert out["advantage"].tolist() == [-4 + 0.25 * -4, -4, -9, -4]
    assert out["value_target"].tolist() == [5, 6, 1, 6]


@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 1.0])
def test_a_constant_reward_is_worth_one_over_one_minus_gamma(gamma, gae_lambda):
    right = ValueHead(lambda x: torch.full_like(x, 1 / (1 - gamma)))
    target = GAE(right, gamma, gae_lambda)(Constant(2).rollout(23))["value_target"]
    assert_close(target, torch.full((2, 23), 1 / (1 - gamma)))
    mistaken = GAE(right, gamma, gae_lambda)(Constant(2, terminates=True).rollout(23))["value_target"]
    assert mistaken[:, 4].eq(1.0).all()  # the last step of an episode is believed to be worth its reward alone


def test_iterating_on_the_targets_finds_the_value():
    def fit(terminates: bool) -> float:
        estimate, data = torch.zeros(()), Constant(2, terminates=terminates).rollout(20)
        for _ in range(200):
            current = estimate
            estimate = GAE(ValueHead(lambda x, v=current: torch.full_like(x, v)), GAMMA, LAMBDA)(data)["value_target"].mean()
        return estimate.item()

    assert abs(fit(terminates=False) - 10) < 1e-3
    assert fit(terminates=True) < 4


def test_the_rollout_is_left_as_it_is():
    data, value = Clock(4).rollout(10), ValueHead(MLP(1, 3))
    before = data.clone()
    out = GAE(value)(data)
    assert (data == before).all()
    assert set(data.keys()) == set(before.keys())
    assert out["next", "reward"].data_ptr() == data["next", "reward"].data_ptr()
    assert not out["advantage"].requires_grad


def test_values_of_the_rollout_itself():
    data, value = Clock(4).rollout(20), ValueHead(MLP(1, 3))
    expected = GAE(value, GAMMA, LAMBDA)(data)
    value(data), value(data["next"])
    out = GAE(None, GAMMA, LAMBDA)(data.detach())
    assert_close(out["advantage"], expected["advantage"], rtol=1e-4, atol=1e-4)


def test_the_next_observation_is_not_read_where_the_episode_went_on():
    data, value = Clock(4).rollout(20), ValueHead(MLP(1, 3))
    expected = GAE(value)(data)["advantage"]
    last = data["next", "done"].clone()
    last[:, -1] = True
    data["next", "observation"][~last] = torch.nan
    data["next", "observation"][data["next", "terminated"]] = torch.nan
    assert_close(GAE(value)(data)["advantage"], expected)


def test_several_entries_and_any_value_that_reads_them():
    data = Clock(4).rollout(10)
    data["goal"] = data["next", "goal"] = torch.ones(4, 10)
    value = ValueHead(lambda observation, goal: observation[..., :1] + goal.unsqueeze(-1), ["observation", "goal"])
    assert_close(GAE(value)(data)["state_value"], data["observation"][..., 0] + 1)


@pytest.mark.parametrize(
    "key", ["observation", ("next", "observation"), ("next", "reward"), ("next", "terminated"), ("next", "done")]
)
def test_a_missing_entry_is_explained(key):
    name = key if isinstance(key, str) else ".".join(key)
    with pytest.raises(MissingKeyError, match=rf"A rollout for GAE must be one with \['{name}'\]; got the keys .*Collector"):
        GAE(ValueHead(MLP(1, 3)))(Clock(4).rollout(5).exclude(key))


def test_missing_values_are_explained():
    with pytest.raises(MissingKeyError, match=r"one with \['state_value', 'next.state_value'\].*Pass a ValueHead"):
        GAE(None)(Clock(4).rollout(5))


def test_a_key_error_of_the_network_itself_is_not_hidden():
    with pytest.raises(KeyError, match="mine"):
        GAE(ValueHead(lambda x: {}["mine"]))(Clock(4).rollout(5))


def test_one_step_is_no_rollout():
    with pytest.raises(SpecError, match=r"A rollout for GAE must be \[\*, T\]"):
        GAE(ValueHead(MLP(1, 3)))(Clock(None).rollout(1)[0])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"gamma": 1.1}, r"gamma must be in \[0, 1\]; got 1.1"),
        ({"gae_lambda": -0.1}, r"gae_lambda must be in \[0, 1\]; got -0.1"),
        ({"gamma": float("nan")}, r"gamma must be in \[0, 1\]; got nan"),
        ({"value": MLP(1, 3)}, r"value must be a ValueHead or None; got MLP"),
    ],
)
def test_errors(arguments, match):
    with pytest.raises(ConfigError, match=match):
        GAE(**{"value": None, **arguments})


def test_statistics_of_the_values_are_saved():
    value = ValueHead(MLP(1, 4))
    data = CartPole(num_envs=4, seed=0).rollout(32, break_when_any_done=False)
    estimator = GAE(value, value_norm=PopArt(value))
    estimator(data)
    other = GAE(value, value_norm=RunningValueNorm())
    other.load_state_dict(estimator.state_dict())
    assert other.value_norm.std == estimator.value_norm.std != 1
    assert GAE(value).state_dict() == {}


def test_several_critics_are_no_value_head():
    with pytest.raises(SpecError, match="The network of a ValueHead must be a single one; got an ensemble of 2"):
        ValueHead(ensemble(MLP(1, 4), 2))
