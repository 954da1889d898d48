"""Networks that size themselves from specs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rlbook import CartPole, GridWorld, RewardSum, StepCounter, TransformedEnv
from rlbook.distributions import Categorical, DiagNormal, MultiCategorical, TanhNormal
from rlbook.errors import SpecError
from rlbook.modules import Features, LogStd, make_actor, make_qvalue, make_value
from rlbook.modules.make import UnitAction
from rlbook.specs import Binary, Bounded, Composite, OneHot, Unbounded
from rlbook.specs import Categorical as Choice
from rlbook.specs import MultiCategorical as Multi
from rlbook.transforms import Compose

VECTOR = Unbounded(3)
IMAGE = Bounded(0, 255, (2, 2, 3), torch.uint8)
OBSERVATIONS = {
    "vector": ({"observation": VECTOR}, 3),
    "number": ({"observation": Unbounded()}, 1),
    "float64": ({"observation": Unbounded(3, torch.float64)}, 3),
    "discrete": ({"observation": Choice(5)}, 5),
    "small_discrete": ({"observation": Choice(5, dtype=torch.uint8)}, 5),
    "grid_of_choices": ({"observation": Choice(4, shape=(2, 3))}, 24),
    "image": ({"observation": IMAGE}, 12),
    "dictionary": ({"image": IMAGE, "robot": {"joints": VECTOR, "gripper": Choice(2)}}, 17),
}
ACTIONS = {
    "discrete": (Choice(3), Categorical),
    "multi_discrete": (Multi([2, 3]), MultiCategorical),
    "continuous": (Bounded(-2.0, 2.0, (2,)), TanhNormal),
    "unbounded": (Unbounded(2), DiagNormal),
}


def env_of(observation: dict, action=None) -> SimpleNamespace:
    return SimpleNamespace(observation_spec=Composite(observation), action_spec=action or Choice(2), device=torch.device("cpu"))


@pytest.mark.parametrize("batch", [(), (4,), (4, 2)])
@pytest.mark.parametrize(("observation", "size"), OBSERVATIONS.values(), ids=OBSERVATIONS)
def test_every_observation_space(observation, size, batch):
    env = env_of(observation)
    data = env.observation_spec.rand(batch)
    actor, value = make_actor(env), make_value(env)
    linear = next(layer for layer in actor.modules() if isinstance(layer, nn.Linear))
    assert linear.in_features == size
    assert actor.dist(data).batch_shape == batch
    assert value.value(data).shape == batch


@pytest.mark.parametrize(("spec", "dist"), ACTIONS.values(), ids=ACTIONS)
def test_every_action_space(spec, dist):
    env = env_of({"observation": VECTOR}, spec)
    actor, data = make_actor(env), env.observation_spec.rand((4,))
    assert type(actor.dist(data)) is dist
    spec.check(actor(data)["action"], batch=(4,))
    assert any(isinstance(layer, LogStd) for layer in actor.modules()) == (dist in (TanhNormal, DiagNormal))


def test_features_by_hand():
    features = Features([Choice(3), IMAGE, Unbounded((1, 2)), Choice(2, shape=(2,)), Binary(2), OneHot(2)])
    image = torch.full((2, 2, 3), 255, dtype=torch.uint8)
    image[0, 0, 0] = 51
    inputs = (
        torch.tensor(1),
        image,
        torch.tensor([[7.0, -8.0]]),
        torch.tensor([0, 1]),
        torch.tensor([True, False]),
        torch.tensor([False, True]),
    )
    expected = [0, 1, 0, 0.2, *[1] * 11, 7, -8, 1, 0, 0, 1, 1, 0, 0, 1]
    assert_close(features(*inputs), torch.tensor(expected, dtype=torch.float32))
    assert features.size == len(expected)


def test_initialisation_of_ppo():
    env = env_of({"observation": VECTOR}, Bounded(-1.0, 1.0, (2,)))
    actor, value = make_actor(env), make_value(env)
    for head, gain in ((actor, 0.01), (value, 1.0)):
        *hidden, last = (layer.weight for layer in head.modules() if isinstance(layer, nn.Linear))
        assert_close(last @ last.T, gain**2 * torch.eye(len(last)), atol=1e-5, rtol=0)
        assert all(torch.allclose(weight.norm(dim=0), torch.tensor(2**0.5), atol=1e-4) for weight in hidden)
    assert_close(actor.dist(env.observation_spec.rand((3,))).normal.log_std, torch.zeros(3, 2))


def test_a_vector_needs_no_features_layer():
    assert not any(isinstance(layer, Features) for layer in make_actor(CartPole()).modules())
    assert any(isinstance(layer, Features) for layer in make_actor(GridWorld()).modules())


def test_counters_and_sums_are_not_observations():
    env = TransformedEnv(CartPole(num_envs=2), Compose(StepCounter(), RewardSum()))
    assert make_actor(env).in_keys == make_value(env).in_keys == ("observation",)
    assert set(make_value(env, in_keys=["step_count", "observation"]).in_keys) == {"step_count", "observation"}
    assert make_value(env, in_keys=["step_count", "observation"])(env.rollout(3))["state_value"].shape == (2, 3)


def test_settings_reach_the_network():
    layers = list(make_actor(CartPole(), num_cells=[8], activation=nn.ReLU).net)
    assert [type(layer) for layer in layers] == [nn.Linear, nn.ReLU, nn.Linear]
    assert layers[0].out_features == 8


def test_an_unknown_entry_is_explained():
    with pytest.raises(SpecError, match=r"in_keys must be among \['observation'\]; got \['pixels'\]"):
        make_actor(CartPole(), in_keys=["pixels"])


def test_critics_see_actions_in_units_of_their_range():
    wide = env_of({"observation": VECTOR}, Bounded(torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 10.0])))
    unit = env_of({"observation": VECTOR}, Bounded(-1.0, 1.0, (2,)))
    torch.manual_seed(0)
    scaled = make_qvalue(wide, num_cells=(8,), members=2)
    torch.manual_seed(0)
    plain = make_qvalue(unit, num_cells=(8,), members=2)
    data = {"observation": torch.randn(5, 3)}
    action = torch.tensor([[-2.0, 0.0], [2.0, 10.0], [0.0, 5.0], [1.0, 7.5], [-1.0, 10.0]])
    same = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0], [0.5, 0.5], [-0.5, 1.0]])
    assert_close(scaled.members(data, action), plain.members(data, same))
    assert not any(isinstance(layer, UnitAction) for layer in plain.modules())
    unbounded = make_qvalue(env_of({"observation": VECTOR}, Unbounded(2)))
    assert not any(isinstance(layer, UnitAction) for layer in unbounded.modules())
