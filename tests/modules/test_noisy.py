"""Noisy layers and dropout: their formula, moments and gradients, and how noise is drawn, zeroed and compiled."""

from __future__ import annotations

import pytest
import torch
from compiling import quick_compile
from torch import nn
from torch.testing import assert_close

from rlbook import MLP, Actor, CartPole, Collector, EpsilonGreedy, Pendulum, QValueActor, ensemble
from rlbook.envs import TMaze
from rlbook.errors import ConfigError
from rlbook.modules import GRU, Dropout, NoisyExploration, NoisyLinear, make_actor, resample_noise
from rlbook.modules.compiled import Compiled

__all__ = ["quick_compile"]


# ---- the layer -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bias", [True, False])
def test_is_what_its_docstring_says(bias):
    layer, x = NoisyLinear(4, 3, bias=bias), torch.randn(2, 5, 4)
    e_in, e_out = layer.noise[:4], layer.noise[4:]
    expected = torch.zeros(2, 5, 3)
    for j in range(3):
        for i in range(4):
            expected[..., j] += (layer.weight[j, i] + layer.weight_sigma[j, i] * e_out[j] * e_in[i]) * x[..., i]
        if bias:
            expected[..., j] += layer.bias[j] + layer.bias_sigma[j] * e_out[j]
    assert_close(layer(x), expected)


def test_golden_value_and_gradient():
    layer = NoisyLinear(2, 1, sigma=1.0)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0]]))
        layer.weight_sigma.copy_(torch.tensor([[0.5, 0.25]]))
        layer.bias.fill_(3.0)
        layer.bias_sigma.fill_(0.5)
        layer.noise.copy_(torch.tensor([2.0, -1.0, 3.0]))
    x = torch.tensor([1.0, 10.0], requires_grad=True)
    y = layer(x)
    # (1 + .5 * 3 * 2) * 1 + (2 + .25 * 3 * -1) * 10 + 3 + .5 * 3
    assert_close(y, torch.tensor([4 + 12.5 + 4.5]))
    y.sum().backward()
    assert_close(layer.weight.grad, torch.tensor([[1.0, 10.0]]))
    assert_close(layer.weight_sigma.grad, torch.tensor([[6.0, -30.0]]))
    assert_close(layer.bias.grad, torch.tensor([1.0]))
    assert_close(layer.bias_sigma.grad, torch.tensor([3.0]))
    assert_close(x.grad, torch.tensor([4.0, 1.25]))


def test_initialisation():
    layer = NoisyLinear(400, 300, sigma=0.5)
    bound = 400**-0.5
    for mean in (layer.weight, layer.bias):
        assert mean.abs().max() <= bound
        assert mean.abs().max() > 0.98 * bound
    for spread in (layer.weight_sigma, layer.bias_sigma):
        assert_close(spread, torch.full_like(spread, 0.5 * bound))


def test_moments_of_the_noise():
    layer = NoisyLinear(50_000, 50_000, device="meta")
    layer.noise = torch.empty(100_000)
    layer.resample()
    # e = sgn(n) sqrt|n|: E e = 0, E e^2 = E|n| = sqrt(2/pi), E e^4 = E n^2 = 1
    assert_close(layer.noise.mean(), torch.tensor(0.0), atol=0.012, rtol=0)
    assert_close(layer.noise.pow(2).mean(), torch.tensor((2 / torch.pi) ** 0.5), atol=0.012, rtol=0)
    assert_close(layer.noise.pow(4).mean(), torch.tensor(1.0), atol=0.03, rtol=0)


def test_noise_is_drawn_in_place_and_saved():
    layer = NoisyLinear(3, 2)
    before, address = layer.noise.clone(), layer.noise.data_ptr()
    resample_noise(nn.Sequential(layer))
    assert layer.noise.data_ptr() == address
    assert (layer.noise != before).all()
    again = NoisyLinear(3, 2)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(torch.ones(3)), layer(torch.ones(3)))


def test_members_of_an_ensemble_have_their_own_weights_and_noise():
    first, second = ensemble(MLP(2, 4, [8], layer=NoisyLinear), 2)
    assert (first[0].weight != second[0].weight).any()
    assert (first[0].noise != second[0].noise).all()


def test_compiled_code_reads_new_noise():
    layer, x = NoisyLinear(4, 3), torch.randn(2, 4)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        assert_close(compiled(x), layer(x))
        layer.resample()


# ---- exploration -----------------------------------------------------------------------------------------------------------
def explorer(seed: int = 0):
    torch.manual_seed(seed)
    env = CartPole(num_envs=4, seed=0)
    return env, NoisyExploration(QValueActor(MLP(2, 4, [16], layer=NoisyLinear), env.action_spec))


def test_each_rollout_has_new_noise_and_the_greedy_one_none():
    env, policy = explorer()
    noise = []
    for acting in (policy, policy, policy.greedy, policy):
        env.rollout(3, acting)
        noise.append(policy.policy.net[0].noise.clone())
    assert (noise[0] != noise[1]).all()
    assert (noise[2] == 0).all()
    assert (noise[3] != 0).all()


def test_greedy_takes_the_best_action_of_the_means():
    env, policy = explorer()
    with torch.no_grad():
        for layer in (policy.policy.net[0], policy.policy.net[2]):
            layer.weight_sigma.fill_(50.0)
    data = env.rollout(20, policy.greedy)
    net = policy.policy.net
    x = data["observation"]
    values = (x @ net[0].weight.T + net[0].bias).relu() @ net[2].weight.T + net[2].bias
    assert torch.equal(data["action"], values.argmax(-1))
    td = policy.greedy(data[:, 0].select("observation"))
    assert torch.equal(td["action"], data["action"][:, 0])


def test_it_reads_what_its_policy_reads_and_can_be_wrapped():
    env, policy = explorer()
    assert (policy.in_keys, policy.out_keys, policy.spec) == (("observation",), ("action",), env.action_spec)
    outer = EpsilonGreedy(policy, 0.1, 0.1)
    before = policy.policy.net[0].noise.clone()
    env.rollout(2, outer)
    assert (policy.policy.net[0].noise != before).all()


def test_an_actor_that_samples_gets_its_own_noise():
    env = CartPole(num_envs=4, seed=0)
    policy = NoisyExploration(Actor(MLP(2, 4, layer=NoisyLinear), env.action_spec))
    assert policy.draw_noise((3, 4)).shape == (3, 4)
    assert env.rollout(3, policy)["action_log_prob"].shape == (4, 3)


@pytest.mark.usefixtures("quick_compile")
def test_compiled_collection_is_that_of_the_eager_one():
    collected = []
    for compile in (False, True):
        env, policy = explorer()
        collector = Collector(env, policy, frames_per_batch=16, total_frames=64, compile=compile)
        collected.append([data["action"].clone() for data in collector])
    for eager, compiled in zip(*collected, strict=True):
        assert torch.equal(compiled, eager)


# ---- dropout ---------------------------------------------------------------------------------------------------------------
def test_dropout_drops_its_share_and_keeps_the_mean():
    y = Dropout(0.3)(torch.full((500, 400), 2.0))
    kept = y != 0
    assert_close(kept.float().mean(), torch.tensor(0.7), atol=0.005, rtol=0)
    assert_close(y[kept], torch.full_like(y[kept], 2 / 0.7))
    for dim in (0, 1):  # no row and no column is favoured: five standard errors
        assert_close(kept.float().mean(dim), torch.full((y.shape[1 - dim],), 0.7), atol=0.13, rtol=0)


def test_dropout_changes_with_the_key_alone():
    layer, x = Dropout(0.5), torch.ones(20, 30)
    first = layer(x)
    assert torch.equal(layer(x), first)
    layer.resample()
    agree = ((layer(x) == 0) == (first == 0)).float().mean()
    assert_close(agree, torch.tensor(0.5), atol=0.1, rtol=0)
    other = Dropout(0.5)
    assert_close(((other(x) == 0) == (layer(x) == 0)).float().mean(), torch.tensor(0.5), atol=0.1, rtol=0)


def test_dropout_does_nothing_in_evaluation_or_at_zero():
    x = torch.randn(4, 3)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


def test_dropout_passes_the_gradient_of_what_it_keeps():
    layer, x = Dropout(0.5), torch.ones(50, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert_close(x.grad, y.detach())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor imports torch.jit
def test_compiled_dropout_is_the_eager_one():
    layer, x = Dropout(0.4), torch.randn(16, 8)
    compiled = Compiled(lambda tensors: (torch.func.functional_call(layer, {"key": tensors[1]}, (tensors[0],)),))
    for _ in range(2):
        layer.resample()
        assert_close(compiled([x, layer.key])[0], layer(x))


def test_errors():
    with pytest.raises(ConfigError, match=r"sigma must be at least 0; got -1"):
        NoisyLinear(2, 2, sigma=-1.0)
    with pytest.raises(ConfigError, match=r"p must be in \[0, 1\); got 1.0"):
        Dropout(1.0)
    with pytest.raises(ConfigError, match=r"one with noisy layers; got QValueActor.*layer=NoisyLinear"):
        NoisyExploration(QValueActor(MLP(2, 4), CartPole().action_spec))


def test_a_policy_that_acts_drops_nothing():
    env = Pendulum(num_envs=4, seed=0)
    actor = make_actor(env, dropout=0.5, std="none")
    taken = []
    for _ in range(2):
        resample_noise(actor)
        assert not torch.equal(actor.dist(env.reset(seed=0)).mode, actor.eval().dist(env.reset(seed=0)).mode)
        taken.append(env.rollout(1, actor.train().greedy, seed=0)["action"])
    assert torch.equal(*taken)
    assert torch.equal(taken[0][:, 0], actor.eval().dist(env.reset(seed=0)).mode)


def test_noise_and_memory():
    env = TMaze(num_envs=3, seed=0)
    policy = NoisyExploration(QValueActor(GRU(4, 3, 8, head=NoisyLinear(8, 4)), env.action_spec))
    for acting in (policy, policy.greedy, EpsilonGreedy(policy, 0.5, 0.5)):
        assert env.rollout(5, acting)["recurrent", "qvalue"][:, -1].any()
