"""To TorchRL's layout and back: lossless, without copies, and with what TorchRL itself makes."""

from __future__ import annotations

import warnings

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close
from toys import Clock

from rlbook import GAE, MLP, CartPole, Compose, RewardSum, StepCounter, TransformedEnv, ValueHead
from rlbook.errors import SpecError
from rlbook.interop import PER_STEP, from_torchrl, to_torchrl
from rlbook.modules import make_actor


def rollout() -> TensorDict:
    env = TransformedEnv(CartPole(3, max_steps=8, seed=0), Compose(StepCounter(), RewardSum()))
    data = env.rollout(10, make_actor(env))
    return GAE(ValueHead(MLP(1, 4)))(data)


def assert_equal(one: TensorDict, other: TensorDict) -> None:
    assert one.batch_size == other.batch_size
    assert set(one.keys(True, True)) == set(other.keys(True, True))
    for key, value in one.items(True, True):
        assert value.dtype == other[key].dtype
        assert torch.equal(value, other[key]), key


@pytest.mark.parametrize("part", [lambda td: td, lambda td: td[0], lambda td: td.reshape(-1)[:5], lambda td: td[0, 0]])
@pytest.mark.parametrize("one_hot", [None, 2])
def test_there_and_back(part, one_hot):
    data = part(rollout())
    assert_equal(from_torchrl(to_torchrl(data, one_hot=one_hot)), data)


def test_numbers_per_step_get_a_trailing_one_and_nothing_else_does():
    data = rollout()
    out = to_torchrl(data, one_hot=2)
    for key, value in out.items(True, True):
        name = key if isinstance(key, str) else key[-1]
        expected = (3, 10, 2) if name == "action" else (3, 10, 1) if name in PER_STEP else data[key].shape
        assert value.shape == expected, key
    assert out["action_log_prob"].shape == (3, 10)
    assert torch.equal(out["action"].argmax(-1), data["action"])


def test_memory_is_shared():
    data = rollout()
    out = to_torchrl(data)
    assert out["next", "reward"].data_ptr() == data["next", "reward"].data_ptr()
    assert out["observation"].data_ptr() == data["observation"].data_ptr()
    assert "trailing" not in data.keys()
    assert data["next", "reward"].shape == (3, 10)


def test_deeper_entries_stay():
    data = Clock(2).rollout(3)
    data["collector", "traj_ids"] = data["agents", "done"] = torch.zeros(2, 3)
    assert to_torchrl(data)["agents", "done"].shape == (2, 3)
    assert_equal(from_torchrl(to_torchrl(data)), data)


@pytest.mark.parametrize(
    "action",
    [
        torch.tensor([[2, -1], [0, 1]]),  # sums to 1, but is not one-hot
        torch.tensor([[1, 0], [1, 1]]),  # several bits
        torch.tensor([[0, 0], [0, 1]]),
        torch.tensor([[1.0, 0.0], [0.0, 1.0]]),  # continuous
        torch.tensor([1, 0]),  # already integers
    ],
)
def test_only_one_hot_actions_become_integers(action):
    assert torch.equal(from_torchrl(TensorDict({"action": action}, [2]))["action"], action)


def test_one_hot_actions_may_stay():
    action = torch.tensor([[True, False], [False, True]])
    assert from_torchrl(TensorDict({"action": action}, [2]))["action"].tolist() == [0, 1]
    assert torch.equal(from_torchrl(TensorDict({"action": action}, [2]), categorical=False)["action"], action)


def test_converting_twice_is_noticed():
    data = rollout()
    with pytest.raises(SpecError, match=r"of shape \[3, 10, 1\]; got \[3, 10\]. Is this already rlbook's layout"):
        from_torchrl(data)
    with pytest.raises(SpecError, match=r"of shape \[3, 10\]; got \[3, 10, 1\]. Is this already TorchRL's layout"):
        to_torchrl(to_torchrl(data))
    with pytest.raises(SpecError, match=r"action must be integer \[3, 10\]; got .*Leave one_hot out"):
        to_torchrl(data.copy().set("action", torch.zeros(3, 10, 2)), one_hot=2)


@pytest.mark.parametrize("categorical", [True, False])
def test_a_rollout_of_torchrl(categorical):
    pytest.importorskip("torchrl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchrl.envs import GymEnv

        theirs = GymEnv("CartPole-v1", categorical_action_encoding=categorical).rollout(12)
        data = from_torchrl(theirs)
        ours = CartPole(seed=0).rollout(12)
    assert set(ours.keys(True, True)) <= set(data.keys(True, True))
    for key, value in ours.items(True, True):
        assert data[key].dtype == value.dtype, key
        assert data[key].shape[1:] == value.shape[1:], key
    assert GAE(ValueHead(MLP(1, 4)))(data)["advantage"].shape == data.batch_size
    back = to_torchrl(data, one_hot=None if categorical else 2)
    for key, value in theirs.items(True, True):
        assert_close(back[key], value)


def test_actions_that_are_no_one_hot():
    single = TensorDict({"action": torch.ones(4, 1, dtype=torch.long)}, [4])
    assert from_torchrl(single)["action"].tolist() == [[1]] * 4
    with pytest.raises(SpecError, match=r"action must be in \[0, 1\); got 0 to 1. Pass one_hot=2 or more"):
        to_torchrl(TensorDict({"action": torch.tensor([0, 1])}, [2]), one_hot=1)
    with pytest.raises(SpecError, match="td must be one with an action"):
        to_torchrl(TensorDict({"observation": torch.zeros(2)}, [2]), one_hot=2)
