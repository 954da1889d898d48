"""Dueling heads."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from rlbook import MLP, CartPole, QValueActor
from rlbook.errors import ConfigError
from rlbook.modules import DuelingHead, NoisyLinear
from rlbook.modules.dueling import dueling


def test_golden_value_and_gradient():
    value, advantage = torch.tensor([10.0], requires_grad=True), torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    q = dueling(value, advantage)
    assert_close(q, torch.tensor([8.0, 9.0, 13.0]))
    q[2].backward()
    assert_close(value.grad, torch.tensor([1.0]))
    assert_close(advantage.grad, torch.tensor([-1 / 3, -1 / 3, 2 / 3]))


@pytest.mark.parametrize("batch", [(), (5,), (2, 0, 3)])
@pytest.mark.parametrize("in_features", [4, None])
@pytest.mark.parametrize("k", [1, 7])
def test_shapes(batch, in_features, k):
    head = DuelingHead(3, in_features, [8], outputs_per_action=k)
    assert head(torch.zeros(*batch, 4)).shape == (*batch, 3 * k)


@pytest.mark.parametrize("k", [1, 5])
def test_the_mean_over_actions_is_the_value(k):
    head, x = DuelingHead(3, 4, outputs_per_action=k), torch.randn(6, 4)
    q = head(x).unflatten(-1, (3, k))
    assert_close(q.mean(1), head.value(x))
    advantage = head.advantage(x).unflatten(-1, (3, k))
    assert_close(q[:, 2] - q[:, 0], advantage[:, 2] - advantage[:, 0])


def test_is_a_network_of_action_values():
    env = CartPole(num_envs=3, seed=0)
    data = env.rollout(5, QValueActor(DuelingHead(2), env.action_spec))
    assert data["action"].shape == (3, 5)


def test_arguments_reach_both_streams():
    head = DuelingHead(3, 4, [], layer=NoisyLinear)
    assert all(isinstance(stream, MLP) and isinstance(stream[0], NoisyLinear) for stream in (head.value, head.advantage))


def test_errors():
    with pytest.raises(ConfigError, match=r"outputs_per_action must be at least 1; got 0"):
        DuelingHead(2, outputs_per_action=0)
