"""Uniform, without replacement, consuming and staleness-aware sampling: frequencies, passes, errors, seeds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch.testing import assert_close

from rlbook.errors import ConfigError, MissingKeyError, SpecError
from rlbook.replay import ReplayBuffer, StalenessSampler, UniformSampler, WithoutReplacementSampler


def numbered(first: int, rows: int, **more: torch.Tensor) -> TensorDict:
    return TensorDict({"observation": torch.arange(first, first + rows).float(), **more}, (rows,))


def chi_squared(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """The statistic, in standard deviations from its mean: its distribution is about normal for many cells."""
    cells = len(counts) - 1
    statistic = ((counts - expected).square() / expected).sum().item()
    return (statistic - cells) / (2 * cells) ** 0.5


def test_uniform_draws_every_row_alike():
    buffer = ReplayBuffer(100, sampler=UniformSampler(), seed=0)
    buffer.extend(numbered(0, 130))
    counts = torch.bincount(torch.cat([buffer.sample(500)["index"] for _ in range(100)]), minlength=100)
    assert abs(chi_squared(counts, torch.full((100,), 500.0))) < 4


def test_a_seed_reproduces_every_sample():
    for sampler in (UniformSampler, WithoutReplacementSampler):
        buffers = [ReplayBuffer(50, sampler=sampler(), seed=3) for _ in range(2)]
        for buffer in buffers:
            buffer.extend(numbered(0, 40))
        for _ in range(5):
            assert_close(buffers[0].sample(16)["index"], buffers[1].sample(16)["index"])


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 40), size=st.integers(1, 60))
def test_every_row_comes_once_per_pass(rows, size):
    buffer = ReplayBuffer(64, sampler=WithoutReplacementSampler(), seed=0)
    buffer.extend(numbered(0, rows))
    drawn = torch.cat([buffer.sample(size)["index"] for _ in range(-(-2 * rows // size))])
    for one_pass in drawn[: len(drawn) // rows * rows].split(rows):
        assert sorted(one_pass.tolist()) == list(range(rows))


def test_rows_written_during_a_pass_wait_for_the_next():
    buffer = ReplayBuffer(64, sampler=WithoutReplacementSampler(), seed=0)
    buffer.extend(numbered(0, 10))
    first = buffer.sample(4)["index"]
    buffer.extend(numbered(10, 5))
    assert sorted([*first.tolist(), *buffer.sample(6)["index"].tolist()]) == list(range(10))
    assert sorted(buffer.sample(15)["index"].tolist()) == list(range(15))


def test_a_consuming_sampler_gives_each_row_out_once():
    buffer = ReplayBuffer(64, sampler=WithoutReplacementSampler(consume=True), seed=0)
    buffer.extend(numbered(0, 10))
    first = buffer.sample(6)["index"]
    buffer.extend(numbered(10, 3))
    assert sorted([*first.tolist(), *buffer.sample(7)["index"].tolist()]) == list(range(13))
    with pytest.raises(ConfigError, match="at most the 0 rows"):
        buffer.sample(1)
    buffer.extend(numbered(13, 2))
    assert sorted(buffer.sample(2)["index"].tolist()) == [13, 14]


def test_a_consuming_sampler_gives_an_overwritten_row_out_as_it_is_now():
    buffer = ReplayBuffer(4, sampler=WithoutReplacementSampler(consume=True), seed=0)
    buffer.extend(numbered(0, 4))
    buffer.sample(1)
    buffer.extend(numbered(4, 4))
    assert sorted(buffer.sample(4)["observation"].tolist()) == [4, 5, 6, 7]


def test_a_pass_goes_on_after_a_reload():
    buffer, other = (ReplayBuffer(64, sampler=WithoutReplacementSampler(), seed=seed) for seed in (0, 1))
    buffer.extend(numbered(0, 10))
    first = buffer.sample(4)["index"]
    other.load_state_dict(buffer.state_dict())
    assert sorted([*first.tolist(), *other.sample(6)["index"].tolist()]) == list(range(10))


def test_only_fresh_rows_are_drawn():
    sampler = StalenessSampler(max_staleness=1)
    buffer = ReplayBuffer(30, sampler=sampler, seed=0)
    for version in range(5):
        buffer.extend(numbered(4 * version, 4, policy_version=torch.full((4,), version)))
    sampler.version = 4
    batch = buffer.sample(400)
    assert set(batch["index"].tolist()) == set(range(12, 20))
    assert_close(batch["staleness"], 4 - batch["policy_version"])
    sampler.version = 5
    assert set(buffer.sample(200)["index"].tolist()) == {16, 17, 18, 19}
    sampler.version = 7
    with pytest.raises(ConfigError, match="versions behind"):
        buffer.sample(1)


def test_staleness_needs_versions():
    buffer = ReplayBuffer(30, sampler=StalenessSampler(1))
    buffer.extend(numbered(0, 3))
    with pytest.raises(MissingKeyError, match="policy_version"):
        buffer.sample(1)
    buffer = ReplayBuffer(30, sampler=StalenessSampler(1))
    buffer.extend(numbered(0, 3, policy_version=torch.zeros(3, 1)))
    with pytest.raises(SpecError, match=r"policy_version must be one number per row; got \[1\] per row"):
        buffer.sample(1)
    with pytest.raises(ConfigError, match="max_staleness"):
        StalenessSampler(-1)


def test_priorities_need_a_sampler_that_has_them():
    buffer = ReplayBuffer(30)
    buffer.extend(numbered(0, 3))
    with pytest.raises(ConfigError, match="PrioritizedSampler"):
        buffer.update_priority(torch.tensor([0]), torch.tensor([1.0]))
