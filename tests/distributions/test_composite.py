"""CompositeDistribution: the sum of its parts, with noise, masks, and whole rollouts of dictionary actions."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.testing import assert_close

from rlbook import MLP, Actor
from rlbook.distributions import Categorical, CompositeDistribution, OneHotCategorical, TanhNormal, for_spec
from rlbook.envs import Env
from rlbook.errors import ConfigError, MissingKeyError, SpecError
from rlbook.modules import RandomWarmup
from rlbook.specs import Binary, Bounded, Composite, OneHot, Unbounded
from rlbook.specs import Categorical as Choice

SPEC = Composite({"gear": Choice(3), "steer": Bounded(-2.0, 2.0, (2,)), ("arm", "hand"): OneHot(4), ("arm", "lamp"): Binary(2)})
SIZE = 3 + 4 + 4 + 2


def build(*batch: int, spec: Composite = SPEC, size: int = SIZE) -> CompositeDistribution:
    return CompositeDistribution.from_params(torch.randn(*batch, size), spec)


def test_it_is_what_a_composite_spec_gets():
    assert for_spec(SPEC) is CompositeDistribution
    assert CompositeDistribution.num_params(SPEC) == SIZE


@pytest.mark.parametrize("batch", [(), (5,), (2, 0, 3)])
def test_samples_are_in_the_spec(batch):
    dist = build(*batch)
    noise = CompositeDistribution.noise_for(SPEC, batch)
    assert noise.shape == (*batch, 1 + 2 + 1 + 2)
    for x in (dist.sample(), dist.sample(noise), dist.mode):
        SPEC.check(x, batch=batch)
    assert dist.batch_shape == dist.entropy().shape == dist.log_prob(dist.sample()).shape == batch


def test_it_is_the_sum_of_its_parts():
    params = torch.randn(5, SIZE)
    dist = CompositeDistribution.from_params(params, SPEC)
    parts = {
        "gear": Categorical(params[:, :3]),
        "steer": TanhNormal.from_params(params[:, 3:7], SPEC["steer"]),
        ("arm", "hand"): OneHotCategorical(params[:, 7:11]),
    }
    noise = CompositeDistribution.noise_for(SPEC, (5,))
    x, other = dist.sample(noise), build(5)
    assert_close(x["gear"], parts["gear"].sample(noise[:, 0]))
    assert_close(x["steer"], parts["steer"].sample(noise[:, 1:3]))
    assert_close(x["arm", "hand"].float(), parts["arm", "hand"].sample(noise[:, 3]))
    lamp = dist.parts["arm", "lamp"]
    for whole, part in (
        (dist.log_prob(x), lambda p, key: p.log_prob(x[key])),
        (dist.entropy(), lambda p, key: p.entropy()),
        (dist.kl(other), lambda p, key: p.kl(other.parts[key])),
    ):
        assert_close(whole, sum(part(p, key) for key, p in {**parts, ("arm", "lamp"): lamp}.items()))


def test_gradients_flow_where_every_part_lets_them():
    smooth = Composite(push=Unbounded(2), steer=Bounded(-1.0, 1.0, (1,)))
    params = torch.randn(4, 6, requires_grad=True)
    dist = CompositeDistribution.from_params(params, smooth)
    assert dist.has_rsample
    assert not build(4).has_rsample
    x, log_prob = dist.sample_with_log_prob()
    (x["push"].sum() + x["steer"].sum() + log_prob.sum()).backward()
    assert (params.grad != 0).all()
    assert_close(log_prob, dist.log_prob(x), atol=2e-3, rtol=1e-3)  # float32 tells tanh(z) less exactly than z


def test_masks_reach_the_entries_they_name():
    masks = {"gear": torch.tensor([True, False, True]).expand(500, 3)}
    dist = CompositeDistribution.from_params(torch.zeros(500, SIZE), SPEC, masks)
    x = dist.sample()
    assert set(x["gear"].tolist()) == {0, 2}
    assert len(x["arm", "hand"].int().argmax(-1).unique()) == 4


class Car(Env):
    """Actions are a dictionary; gear 1 is forbidden where the first observation is positive."""

    def __init__(self, masks: bool = True):
        observed = {"observation": Unbounded(2)} | ({("action_mask", "gear"): Binary(3)} if masks else {})
        super().__init__(Composite(observed), SPEC, num_envs=3, seed=0)
        self.masks = masks

    def _observe(self) -> dict:
        x = torch.randn(3, 2)
        mask = torch.ones(3, 3, dtype=torch.bool)
        mask[:, 1] = x[:, 0] <= 0
        return {"observation": x} | ({("action_mask", "gear"): mask} if self.masks else {})

    def _reset(self, mask: Tensor | None) -> dict:
        return self._observe()

    def _step(self, action) -> dict:
        return {**self._observe(), "reward": action["steer"].sum(-1), "terminated": torch.rand(3) < 0.1}


def test_an_actor_of_dictionary_actions_rolls_out():
    env = Car(masks=False)
    actor = Actor(MLP(SIZE, 2), env.action_spec)
    for policy in (actor, actor.greedy, RandomWarmup(actor, frames=9)):
        data = env.rollout(12, policy)
        env.action_spec.check(data["action"], batch=(3, 12))
    data = env.rollout(12, actor)
    assert_close(actor.dist(data).log_prob(data["action"]), data["action_log_prob"])


def test_masks_of_dictionary_actions_are_obeyed():
    env = Car()
    actor = Actor(MLP(SIZE, 2), env.action_spec, in_keys=["observation", ("action_mask", "gear")])
    data = env.rollout(200, actor)
    forbidden = data["observation"][..., 0] > 0
    assert (data["action", "gear"][forbidden] != 1).all()
    assert (data["action", "gear"][~forbidden] == 1).any()
    assert_close(actor.dist(data).log_prob(data["action"]), data["action_log_prob"])


@pytest.mark.parametrize(("spec", "as_index"), [(Choice(3), lambda x: x), (OneHot(3), lambda x: x.int().argmax(-1))])
def test_an_actor_obeys_the_mask_it_reads(spec, as_index):
    actor = Actor(nn.Identity(), spec, in_keys=["observation", "action_mask"])
    td = TensorDict({"observation": torch.tensor([0.0, 9.0, 0.0]), "action_mask": torch.tensor([True, False, True])}).expand(400)
    x = as_index(actor(td.clone())["action"])
    assert set(x.tolist()) == {0, 2}
    assert (as_index(actor.greedy(td.clone())["action"]) != 1).all()
    assert actor.in_keys == ("observation", "action_mask")
    with pytest.raises(MissingKeyError, match=r"What an Actor reads must be a batch with action_mask; got \['observation'\]"):
        actor(td.select("observation"))


def test_errors():
    with pytest.raises(SpecError, match=r"network output must be of shape \[\.\.\., 13\]"):
        build(2, size=12)
    with pytest.raises(ConfigError, match=r"base_noise of CompositeDistribution.*noise_for\(spec, batch\)"):
        CompositeDistribution.base_noise((3,))
    with pytest.raises(SpecError, match=r"spec of CompositeDistribution must be a Composite with entries"):
        CompositeDistribution.num_params(Choice(3))
