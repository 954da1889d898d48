"""n-step rewards at sampling time: exact at ends, at breaks and at the newest row, in any sample."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference.replay import Diary, n_step
from tensordict import TensorDict
from torch.testing import assert_close

from rlbook.errors import ConfigError, MissingKeyError, SpecError
from rlbook.replay import ReplayBuffer
from rlbook.replay.nstep import NStep
from rlbook.replay.slices import SliceSampler


def test_golden():
    """Rewards 1, 2, 4, 8, the second step terminates: with gamma 1/2 and n = 2."""
    done = torch.tensor([False, True, False, False])
    after = {"observation": torch.arange(1.0, 5), "reward": torch.tensor([1.0, 2, 4, 8]), "terminated": done, "done": done}
    buffer = ReplayBuffer(8)
    buffer.extend(TensorDict({"observation": torch.arange(4.0), "next": after}, [4]))
    rows = torch.arange(4)
    batch = NStep(2, 0.5)(buffer[rows], rows, buffer)
    # 1 + 2/2 | 2, the end | 4 + 8/2 | 8, nothing follows yet
    assert_close(batch["next", "reward"], torch.tensor([2.0, 2, 8, 8]))
    assert_close(batch["discount"], torch.tensor([0.25, 0.5, 0.25, 0.5]))
    assert_close(batch["next", "observation"], torch.tensor([2.0, 2, 4, 4]))
    assert batch["next", "terminated"].tolist() == [True, True, False, False]
    assert_close(batch["observation"], torch.arange(4.0))


@given(
    st.integers(1, 3),
    st.integers(3, 40),
    st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=6),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    st.booleans(),
)
def test_every_row_is_as_the_definition_says(num_envs, capacity, chunks, n, gamma, sequences):
    sampler = SliceSampler(3, pad=True) if sequences else None
    buffer = ReplayBuffer(capacity, sampler=sampler, transforms=NStep(n, gamma), seed=0)
    diary = Diary(num_envs, capacity, 0.2)
    for count, reset in chunks:
        buffer.extend(diary.play(count, reset))
        batch, at = buffer.sample(20).flatten(), {diary.row(step): step for step in diary.stored}
        expected = [n_step(diary, at[row], n, gamma) for row in batch["index"].tolist()]
        assert_close(batch["next", "reward"], torch.tensor([reward for reward, _, _ in expected]))
        assert_close(batch["discount"], torch.tensor([discount for _, discount, _ in expected]))
        ends = buffer[torch.tensor([diary.row(last) for _, _, last in expected])]["next"]
        assert (batch["next"].exclude("reward") == ends.exclude("reward")).all()
        assert (batch.exclude("next", "discount", "index", "mask") == buffer[batch["index"]].exclude("next")).all()


def test_one_step_changes_nothing():
    buffer, diary = ReplayBuffer(30), Diary(2, 30)
    buffer.extend(diary.play(20))
    rows = torch.arange(30)
    batch = NStep(1, 0.9)(buffer[rows], rows, buffer)
    assert (batch.exclude("discount") == buffer[rows]).all()
    assert_close(batch["discount"], torch.full((30,), 0.9))


def test_the_reward_keeps_its_precision():
    buffer = ReplayBuffer(4)
    reward = torch.tensor([1.0, 1e-9, 0.0], dtype=torch.float64)
    buffer.extend(TensorDict({"next": {"reward": reward}}, [3]))
    rows = torch.tensor([0])
    batch = NStep(3, 0.99)(buffer[rows], rows, buffer)
    assert_close(batch["next", "reward"], torch.tensor([1 + 0.99e-9], dtype=torch.float64), rtol=1e-15, atol=0)
    assert_close(batch["discount"], torch.tensor([0.99**3], dtype=torch.float64), rtol=1e-15, atol=0)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((0, 0.9), "n must be a positive integer; got 0"),
        ((1.5, 0.9), "n must be a positive integer; got 1.5"),
        ((3, 1.1), r"gamma must be in \[0, 1\]; got 1.1"),
        ((3, float("nan")), r"gamma must be in \[0, 1\]; got nan"),
    ],
)
def test_bad_arguments_are_explained(arguments, match):
    with pytest.raises(ConfigError, match=match):
        NStep(*arguments)


def test_it_comes_first():
    buffer = ReplayBuffer(8, transforms=[lambda batch, rows, buffer: batch, NStep(3, 0.9)])
    buffer.extend(Diary(1, 8).play(4))
    with pytest.raises(ConfigError, match="NStep must be the first transform, for it reads rows anew; got after"):
        buffer.sample(2)


def test_rows_without_reward_are_explained():
    buffer = ReplayBuffer(8, transforms=NStep(3, 0.9))
    buffer.extend(TensorDict({"observation": torch.rand(4)}, [4]))
    with pytest.raises(MissingKeyError, match=r"Rows must be with next.reward; got \['observation'\]"):
        buffer.sample(2)


def test_integer_rewards_are_summed_as_numbers():
    """Rewards 3, 3: with gamma 1/2 and n = 2 that is 3 + 3/2, then 3; the discounts are 1/4 and 1/2."""
    buffer = ReplayBuffer(8)
    after = {"observation": torch.arange(1.0, 3), "reward": torch.tensor([3, 3]), "done": torch.zeros(2, dtype=torch.bool)}
    buffer.extend(TensorDict({"observation": torch.arange(2.0), "next": after}, [2]))
    batch = NStep(2, 0.5)(buffer[:], torch.arange(2), buffer)
    assert_close(batch["next", "reward"], torch.tensor([4.5, 3.0]))
    assert_close(batch["discount"], torch.tensor([0.25, 0.5]))


@pytest.mark.parametrize("n", [1, 2])
def test_rewards_of_another_layout_are_refused(n):
    buffer = ReplayBuffer(10, transforms=NStep(n, 0.9), batch_size=4)
    nxt = {"reward": torch.randn(6, 1), "done": torch.zeros(6, 1, dtype=torch.bool)}
    buffer.extend(TensorDict({"observation": torch.randn(6, 3), "next": nxt}, [6]))
    with pytest.raises(SpecError, match=r"The reward of a step must be one number; got of shape \[1\]. Drop a trailing 1"):
        buffer.sample()
