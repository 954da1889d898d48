"""Actors and value heads: which distribution, which keys, and one answer on every path."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torch.testing import assert_close

from rlbook import MLP, Actor, CartPole, Pendulum, ValueHead
from rlbook.distributions import Bernoulli, Categorical, Delta, DiagNormal, MultiCategorical, OneHotCategorical, TanhNormal
from rlbook.errors import MissingKeyError, SpecError
from rlbook.modules import LogStd
from rlbook.specs import Binary, Bounded, OneHot, Unbounded
from rlbook.specs import Categorical as Choice
from rlbook.specs import MultiCategorical as Multi

KINDS = {
    "choice": (Choice(3), 3, Categorical),
    "choices": (Choice(3, shape=(2,)), 6, MultiCategorical),
    "multi": (Multi([2, 3]), 5, MultiCategorical),
    "one_hot": (OneHot(3), 3, OneHotCategorical),
    "binary": (Binary(2), 2, Bernoulli),
    "bounded": (Bounded(-2.0, 3.0, (2,)), 4, TanhNormal),
    "unbounded": (Unbounded(2), 4, DiagNormal),
    "matrix": (Bounded(-1.0, 1.0, (2, 3)), 12, TanhNormal),
    "delta": (Bounded(-2.0, 3.0, (2,)), 2, Delta),
    "delta_unbounded": (Unbounded(2), 2, Delta),
}
kinds = pytest.mark.parametrize(("spec", "outputs", "dist"), KINDS.values(), ids=KINDS)
batches = pytest.mark.parametrize("batch", [(), (5,), (5, 2)])


def observations(batch: tuple[int, ...] = (5,)) -> TensorDict:
    return TensorDict({"observation": torch.randn(*batch, 4)}, batch)


@kinds
def test_the_distribution_follows_from_the_spec(spec, outputs, dist):
    assert type(Actor(MLP(outputs, 4), spec).dist(observations())) is dist


@kinds
@batches
def test_actions_are_in_the_spec_on_every_path(spec, outputs, dist, batch):
    actor, td = Actor(MLP(outputs, 4), spec), observations(batch)
    leaves, noise = dict(td.items()), Actor(MLP(outputs, 4), spec).draw_noise(batch)
    for out in (actor(td.copy()), actor.act(leaves, noise), actor.greedy(td.copy()), actor.greedy.act(leaves)):
        spec.check(out["action"], batch=batch)


@kinds
@batches
def test_same_noise_same_action_and_log_prob(spec, outputs, dist, batch):
    actor, td = Actor(MLP(outputs, 4), spec), observations(batch)
    actor.dist(td)
    noise = actor.draw_noise(batch)
    out, distribution = actor.act(dict(td.items()), noise), actor.dist(td)
    assert torch.equal(out["action"], distribution.sample(noise))
    assert torch.equal(out["action_log_prob"], distribution.log_prob(out["action"]))  # what a loss will compute: the ratio is 1
    assert out["action_log_prob"].shape == batch


@kinds
def test_forward_draws_what_act_draws(spec, outputs, dist):
    actor, td = Actor(MLP(outputs, 4), spec), observations()
    actor.dist(td)
    torch.manual_seed(1)
    written = actor(td.copy())
    torch.manual_seed(1)
    expected = actor.act(dict(td.items()), actor.draw_noise((5,)))
    assert set(written.keys()) == {"observation", *actor.out_keys}
    assert all(torch.equal(written[key], expected[key]) for key in actor.out_keys)


def test_saturated_actions_keep_a_ratio_of_one():
    actor = Actor(lambda x: torch.tensor([9.0, 0.0]).expand(*x.shape[:-1], 2), Bounded(-2.0, 2.0, (1,)))
    td = actor(observations((1000,)))
    assert torch.equal(actor.dist(td).log_prob(td["action"]), td["action_log_prob"])


def test_a_deterministic_actor_rolls_out_again_and_again():
    env = Pendulum(num_envs=2, seed=0)
    actor = Actor(MLP(1, 3), env.action_spec)
    first, second = (env.rollout(4, actor, seed=0) for _ in range(2))
    assert actor.draw_noise((4, 2)) is None
    assert_close(first["action"], second["action"], rtol=0, atol=0)


def test_the_gradient_of_forward_is_that_of_the_log_probability_alone():
    actor = Actor(MLP(2, 4), Bounded(-1.0, 1.0, (1,)))
    td = actor(observations())
    assert not td["action"].requires_grad
    assert td["action_log_prob"].requires_grad


def test_greedy_takes_the_mode():
    actor = Actor(nn.Identity(), Choice(3))
    td = TensorDict({"observation": torch.tensor([[0.0, 2.0, 1.0], [5.0, 0.0, 1.0]])}, [2])
    assert actor.greedy(td)["action"].tolist() == [1, 0]
    assert "action_log_prob" not in td.keys()


def test_log_std_is_one_for_all_states():
    actor = Actor(nn.Sequential(MLP(2, 4), LogStd(2, initial=-0.5)), Unbounded(2))
    assert_close(actor.dist(observations()).std, torch.full((5, 2), -0.5).exp())


@pytest.mark.parametrize("outputs", [1, 3, 5])
def test_a_wrong_number_of_outputs_is_explained(outputs):
    with pytest.raises(SpecError, match=rf"with 4 outputs, the parameters of a TanhNormal; got {outputs}.*out_features=4"):
        Actor(MLP(outputs, 4), Bounded(-1.0, 1.0, (2,))).dist(observations())


def test_a_chosen_distribution_stays():
    spec = Bounded(-1.0, 1.0, (2,))
    assert type(Actor(MLP(4, 4), spec, dist=DiagNormal).dist(observations())) is DiagNormal
    assert type(Actor(MLP(2, 4), spec, dist=Delta).dist(observations())) is Delta
    with pytest.raises(SpecError, match="4 outputs, the parameters of a DiagNormal; got 2"):
        Actor(MLP(2, 4), spec, dist=DiagNormal).dist(observations())


def test_plain_functions_are_networks():
    actor = Actor(
        lambda position, velocity: torch.cat((position, velocity), -1), Choice(4), in_keys=["position", ("motion", "velocity")]
    )
    value = ValueHead(lambda position: position.sum(-1, keepdim=True), in_keys=["position"])
    td = TensorDict({"position": torch.ones(5, 2), "motion": {"velocity": torch.zeros(5, 2)}}, [5])
    assert_close(actor.dist(td).probs[0], torch.tensor([1.0, 1.0, 0.0, 0.0]).softmax(-1))
    assert value(td)["state_value"].tolist() == [2.0] * 5
    assert not list(actor.parameters())


@pytest.mark.parametrize("kind", [dict, lambda leaves: TensorDict(leaves, [5])])
@pytest.mark.parametrize("missing", ["obs", ("agent", "obs")])
@pytest.mark.parametrize("make", [lambda key: Actor(MLP(2), Choice(2), [key]).dist, lambda key: ValueHead(MLP(1), [key]).value])
def test_a_missing_entry_is_explained(kind, missing, make):
    name = missing if isinstance(missing, str) else ".".join(missing)
    with pytest.raises(MissingKeyError, match=rf"among \['observation'\]; got \['{name}'\]. Pass in_keys"):
        make(missing)(kind({"observation": torch.zeros(5, 4)}))


def test_a_key_error_of_the_network_itself_is_not_hidden():
    with pytest.raises(KeyError, match="mine"):
        ValueHead(lambda x: {}["mine"]).value(observations())


@pytest.mark.parametrize("out", [torch.zeros(5), torch.zeros(5, 2), torch.tensor(0.0)])
def test_a_value_network_has_one_output(out):
    with pytest.raises(SpecError, match=r"shape \[\*, 1\]; got .*out_features=1"):
        ValueHead(lambda x: out).value(observations())


def test_value_head():
    value, td = ValueHead(MLP(1, 4)), observations((5, 2))
    assert_close(value(td)["state_value"], value.net(td["observation"]).squeeze(-1))
    assert value.out_keys == ("state_value",)


@pytest.mark.parametrize("num_envs", [None, 3])
def test_rollout(num_envs):
    env = CartPole(num_envs=num_envs, seed=0)
    actor = Actor(MLP(2), env.action_spec)
    data = env.rollout(10, actor, break_when_any_done=False)
    assert_close(data["action_log_prob"], actor.dist(data).log_prob(data["action"]))
    assert data.shape == (*env.batch_size, 10)
    assert not data["action_log_prob"].requires_grad


def test_a_tensordict_module_of_it_collects_like_it():
    env = CartPole(num_envs=3, seed=0)
    features = TensorDictModule(MLP(8, 4), ["observation"], ["hidden"])
    actor = Actor(MLP(2, 8), env.action_spec, in_keys=["hidden"])
    policy = TensorDictSequential(features, TensorDictModule(actor.net, ["hidden"], ["logits"]))

    def act(td):
        return actor(policy(td))

    data = env.rollout(6, act)
    assert_close(data["action_log_prob"], actor.dist(data).log_prob(data["action"]))
    assert data["hidden"].shape == (3, 6, 8)


def test_on_the_device_and_in_the_state_dict_of_its_network():
    actor = Actor(MLP(2, 4), Choice(2))
    assert set(actor.state_dict()) == {f"net.{name}" for name in actor.net.state_dict()}


def test_the_spec_follows_the_weights_to_a_device_but_not_to_a_dtype():
    actor = Actor(MLP(4, 3), Bounded(-2.0, 3.0, (2,)))
    assert actor.double().spec == Bounded(-2.0, 3.0, (2,))
    assert actor.to("meta").spec.device.type == "meta"
    assert nn.Sequential(Actor(MLP(2, 3), Choice(2))).to("meta")[0].spec.device.type == "meta"
