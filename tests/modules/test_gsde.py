"""State-dependent exploration: its distribution, how long a matrix is kept, and its log-probabilities."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from compiling import quick_compile
from torch import nn
from torch.testing import assert_close

from rlbook import MLP, Actor, Collector, Pendulum
from rlbook.errors import ConfigError
from rlbook.modules import StateDependentExploration, StateDependentStd
from rlbook.specs import Unbounded

__all__ = ["quick_compile"]


def explorer(hold: int = 3, spec=None, inputs: int = 3, actions: int = 1) -> StateDependentExploration:
    torch.manual_seed(0)
    net = StateDependentStd(nn.Sequential(MLP(5, inputs), nn.Tanh()), 5, actions)
    with torch.no_grad():
        net.log_std.normal_(-0.5, 0.5)
    return StateDependentExploration(Actor(net, Pendulum().action_spec if spec is None else spec), hold)


def test_the_deviation_is_what_its_docstring_says():
    net = StateDependentStd(lambda x: x, 2, 1)
    with torch.no_grad():
        net.log_std.copy_(torch.tensor([[0.5], [2.0]]).log())
        net.mean.weight.copy_(torch.tensor([[1.0, -1.0]]))
        net.mean.bias.fill_(10.0)
    z = torch.tensor([[2.0, 3.0]], requires_grad=True)
    out = net(z)
    assert_close(out, torch.tensor([[9.0, 0.5 * math.log(1.0 + 36.0 + 1e-6)]]))
    out[0, 1].backward()
    assert z.grad is None or (z.grad == 0).all()
    assert_close(net.log_std.grad, torch.tensor([[1 / 37], [36 / 37]]))


def test_in_each_state_actions_have_the_distribution_that_the_actor_says():
    policy = explorer(spec=Unbounded(2), actions=2)
    leaves = {"observation": torch.tensor([0.3, -1.0, 2.0]).expand(50_000, 3)}
    out = policy.act(leaves, policy.draw_noise((1, 50_000))[0])
    dist = policy.actor.dist(leaves)
    assert_close(out["action"].mean(0), dist.loc[0], atol=0.02, rtol=0)
    assert_close(out["action"].std(0), dist.std[0], atol=0, rtol=0.02)
    assert_close(out["action_log_prob"], dist.log_prob(out["action"]))


def test_while_a_matrix_stays_the_action_is_a_function_of_the_state():
    policy = explorer(hold=4, spec=Unbounded(1))
    noise = policy.draw_noise((8, 2))
    leaves = {"observation": torch.randn(3).expand(2, 3)}
    actions = torch.stack([policy.act(leaves, noise[t])["action"] for t in range(8)])
    assert (actions[:4] == actions[0]).all()
    assert (actions[4:] == actions[4]).all()
    assert (actions[0] != actions[4]).all()
    assert (actions[0, 0] != actions[0, 1]).all()  # each environment has its own
    z, params = policy.net.both(leaves["observation"])
    matrix = noise[0].reshape(2, 5, 1) * policy.net.log_std.exp()
    assert_close(actions[0], params[..., :1] + (z.unsqueeze(-2) @ matrix).squeeze(-2), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pieces", [[10], [1] * 10, [2, 5, 3], [4, 6]])
@pytest.mark.parametrize("hold", [1, 3, 4, 100])
def test_matrices_are_kept_as_long_as_they_should_over_any_rollouts(pieces, hold):
    policy = explorer(hold)
    noise = torch.cat([policy.draw_noise((steps, 2)) for steps in pieces])
    for t in range(1, 10):
        same = bool((noise[t] == noise[t - 1]).all())
        assert same == (t % hold != 0)


def test_a_checkpoint_goes_on():
    policy = explorer(hold=4)
    policy.draw_noise((6, 2))
    saved = copy.deepcopy(policy.state_dict())
    again = explorer(hold=4)
    again.load_state_dict(saved)
    for other in (policy, again):
        torch.manual_seed(7)
        other.drawn = other.draw_noise((6, 2))
    assert torch.equal(policy.drawn, again.drawn)


def test_rolls_out_inside_the_bounds():
    env, policy = Pendulum(num_envs=4, seed=0), explorer()
    data = env.rollout(20, policy)
    env.action_spec.check(data["action"], batch=(4, 20))
    assert_close(policy.actor.dist(data).log_prob(data["action"]), data["action_log_prob"])
    assert env.rollout(3, policy.greedy)["action"].shape == (4, 3, 1)
    assert policy(data[:, 0].select("observation"))["action"].shape == (4, 1)


@pytest.mark.usefixtures("quick_compile")
def test_compiled_collection_is_that_of_the_eager_one():
    collected = []
    for compile in (False, True):
        policy = explorer()
        collector = Collector(Pendulum(num_envs=3, seed=0), policy, frames_per_batch=24, total_frames=72, compile=compile)
        collected.append([data["action"].clone() for data in collector])
    for eager, compiled in zip(*collected, strict=True):
        assert_close(compiled, eager, atol=1e-4, rtol=1e-4)


def test_errors():
    with pytest.raises(ConfigError, match=r"network of the actor must be a StateDependentStd; got MLP"):
        StateDependentExploration(Actor(MLP(2, 3), Pendulum().action_spec))
    with pytest.raises(ConfigError, match=r"hold must be a positive integer; got 0"):
        explorer(hold=0)
