"""Networks that size themselves from specs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torch.testing import assert_close

from rlbook import MLP, Actor, CartPole, GridWorld, RewardSum, StepCounter, TransformedEnv
from rlbook.distributions import Categorical, DiagNormal, MultiCategorical, TanhNormal
from rlbook.errors import ConfigError, SpecError
from rlbook.modules import GRU, Features, LogStd, QuantileQValueHead, make_actor, make_actor_value, make_qvalue, make_value
from rlbook.modules.make import UnitAction
from rlbook.modules.noisy import Dropout
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


# ---- images, masks, shared trunks ------------------------------------------------------------------------------------------
class Seen:
    """What the makers read of an environment."""

    def __init__(self, action, **entries):
        self.observation_spec, self.action_spec, self.device = Composite(entries), action, torch.device("cpu")


IMAGES = {
    "pixels": (Bounded(0, 255, (4, 84, 84), torch.uint8), (32, 4, 8, 8), 512),
    "pixels_last": (Bounded(0, 255, (84, 84, 3), torch.uint8), (32, 3, 8, 8), 512),
    "board": (Binary((10, 10, 6)), (16, 6, 3, 3), 128),
    "board_first": (Bounded(0.0, 1.0, (2, 10, 8)), (16, 2, 3, 3), 128),
}


@pytest.mark.parametrize(("spec", "kernels", "size"), IMAGES.values(), ids=IMAGES)
def test_images_go_through_convolutions(spec, kernels, size):
    env = Seen(Choice(3), image=spec, speed=Unbounded(2))
    td = TensorDict({"image": spec.rand((5,)), "speed": torch.randn(5, 2)}, (5,))
    actor, value, qvalue = make_actor(env), make_value(env), make_qvalue(env, members=2)
    for features in (actor.net[0], value.net[0], *(net[0] for net in qvalue.net)):
        assert features.images["0"].body[0].weight.shape == kernels
        assert features.size == size + 2
    assert actor(td.clone())["action"].shape == value.value(td).shape == (5,)
    assert qvalue.members(td).shape == (2, 5, 3)
    first, second = (net[0].images["0"].body[0].weight for net in qvalue.net)
    assert (first != second).any()  # no member shares another's


def test_what_is_no_image_is_flattened():
    for spec in (Unbounded((1, 10, 5)), Unbounded((5, 5)), Choice(3, (9, 9, 9))):
        assert not Features([spec]).images


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8])  # Gymnasium's masks are int8
@pytest.mark.parametrize("name", ["action_mask", ("action_mask", "gear")])
def test_masks_reach_the_actor_and_not_its_network(name, dtype):
    action = Choice(3) if name == "action_mask" else Composite(gear=Choice(3))
    env = Seen(action, observation=Unbounded(2))
    env.observation_spec = env.observation_spec.replace({name: Binary(3)})
    actor, value = make_actor(env), make_value(env)
    assert actor.in_keys == ("observation", name)
    assert value.in_keys == ("observation",)
    td = TensorDict({"observation": torch.randn(200, 2)}, (200,))
    td[name] = torch.tensor([True, False, True]).to(dtype).expand(200, 3)
    taken = actor(td)["action"]
    assert set((taken if name == "action_mask" else taken["gear"]).tolist()) == {0, 2}
    if name == "action_mask":
        assert set(make_qvalue(env)(td)["action"].tolist()) <= {0, 2}
    td[name] = torch.ones(200, 1, dtype=dtype)  # it would be stretched over all choices
    with pytest.raises(SpecError, match=r"An action mask must be of shape \[\*, 3\]; got \[200, 1\]"):
        actor(td)


@pytest.mark.parametrize("action", [Choice(3), Bounded(-1.0, 1.0, (2,))], ids=["discrete", "continuous"])
def test_a_shared_trunk_learns_from_both(action):
    env = Seen(action, observation=Unbounded(4))
    actor, value = make_actor_value(env, num_cells=(16, 8))
    td = TensorDict({"observation": torch.randn(5, 4)}, (5,))
    trunk = actor.net[0]
    assert value.net[0] is trunk
    taken = actor(td.clone())["action"]
    for term in (actor.dist(td).log_prob(taken).sum(), value.value(td).sum()):
        gradients = torch.autograd.grad(term, list(trunk.parameters()))
        assert all((gradient != 0).any() for gradient in gradients)
    own = set(actor.parameters()) ^ set(value.parameters())
    assert len(own) == (4 if isinstance(action, Choice) else 5)  # two last layers, and a deviation


def test_a_single_quantile_is_a_distribution_too():
    env = env_of({"observation": VECTOR}, Choice(3))
    qvalue = make_qvalue(env, num_cells=(8,), quantiles=1)
    data = {"observation": torch.randn(4, 3)}
    assert qvalue.outputs(data).shape == (4, 3, 1)
    assert_close(qvalue.values(data), qvalue.net(data["observation"]))


@pytest.mark.parametrize("kind", [{"dueling": True}, {"implicit": True}], ids=["dueling", "implicit"])
def test_every_hidden_layer_has_its_norm(kind):
    env = env_of({"observation": VECTOR}, Choice(3))
    qvalue = make_qvalue(env, num_cells=(8, 6), norm=nn.LayerNorm, **kind)
    sizes = [layer.normalized_shape[0] for layer in qvalue.modules() if isinstance(layer, nn.LayerNorm)]
    assert sizes == ([8, 6, 6] if "dueling" in kind else [8, 6])  # the two streams have one each


@pytest.mark.parametrize("make", [make_actor, make_value, make_qvalue])
def test_a_memory_is_a_layer(make):
    env = env_of({"observation": VECTOR}, Choice(3))
    with pytest.raises(ConfigError, match=r"num_cells of a network with a memory must be at least one layer; got \(\)"):
        make(env, num_cells=(), recurrent=GRU)


def test_critics_with_quantiles_and_other_layers():
    env = env_of({"observation": VECTOR}, Bounded(-1.0, 1.0, (2,)))
    head = make_qvalue(env, num_cells=(8,), members=3, quantiles=5, norm=nn.LayerNorm, dropout=0.5)
    data, action = {"observation": torch.randn(4, 3)}, torch.randn(4, 2)
    assert isinstance(head, QuantileQValueHead)
    atoms = head.atoms(data, action)
    assert atoms.shape == (3, 4, 5)
    assert_close(head.members(data, action), atoms.mean(-1))
    assert_close(head.value(data, action), atoms.mean((0, -1)))
    assert head.member(1).atoms(data, action).shape == (1, 4, 5)
    assert head.member(1).net is head.net[1]
    assert {type(layer) for layer in head.net[0]} == {nn.Linear, Dropout, nn.LayerNorm, nn.ReLU}
    with pytest.raises(SpecError, match=r"A quantile network's output must be of shape \[\*, 5\]; got \[3, 4, 7\]"):
        QuantileQValueHead(make_qvalue(env, members=3, quantiles=7).net, 5).atoms(data, action)
    with pytest.raises(ConfigError, match="quantiles must be a positive integer; got 0"):
        QuantileQValueHead(head.net, 0)


def test_choices_and_boards_among_the_features():
    features = Features([Multi([5, 3]), Unbounded(2)])
    assert features.size == 10
    out = features(torch.tensor([[4, 1]]), torch.ones(1, 2))
    assert out.tolist() == [[0, 0, 0, 0, 1, 0, 1, 0, 1, 1]]
    for shape, channels in (((12, 10, 10), 12), ((10, 10, 12), 12), ((4, 10, 10), 4), ((10, 10, 4), 4), ((10, 12, 3), 3)):
        features = Features([Bounded(0.0, 1.0, shape)])
        assert next(p for p in features.parameters() if p.ndim == 4).shape[1] == channels
        assert features(torch.zeros(2, *shape)).shape == (2, features.size)


def test_senseless_options_are_explained():
    env = env_of({"observation": VECTOR}, Choice(3))
    with pytest.raises(ConfigError, match=r"support must be \(lowest, highest, count\); got \(0.0, 10.0\)"):
        make_qvalue(env, support=(0.0, 10.0))
    with pytest.raises(ConfigError, match="num_cells of an implicit quantile network must be at least one layer; got none"):
        make_qvalue(env, num_cells=(), implicit=True)
    qvalue = make_qvalue(env, implicit=True)
    with pytest.raises(SpecError, match=r"tau must be of shape \[4, 'K'\]; got \[8, 5\]"):
        qvalue.quantiles({"observation": torch.randn(4, 8, 3)}, torch.rand(8, 5))


@pytest.mark.parametrize("net", [MLP(3, 5), MLP(3, 3, dtype=torch.float64)], ids=["size", "dtype"])
def test_what_a_network_cannot_read_is_named(net):
    actor = Actor(net, Choice(3))
    with pytest.raises(SpecError, match=r"network of Actor reads .*got observation \[4, 3\] float32 \(.*\)\. Check in_f"):
        actor.dist({"observation": torch.zeros(4, 3)})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"recurrent": "gru"}, "recurrent must be GRU or LSTM, the class itself; got 'gru'"),
        ({"std": "learned"}, "std must be one of .*; got 'learned'"),
    ],
)
def test_a_wrong_option_is_explained(options, match):
    with pytest.raises(ConfigError, match=match):
        make_actor(CartPole(), **options)
