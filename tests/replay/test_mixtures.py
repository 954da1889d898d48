"""MixedBuffer: shares, routing of priorities, common entries."""

from __future__ import annotations

import pytest
import torch
from replay.test_samplers import numbered
from torch.testing import assert_close

from rlbook.errors import ConfigError
from rlbook.replay import MixedBuffer, PrioritizedSampler, ReplayBuffer, SliceSampler


def buffers(**second):
    offline, online = ReplayBuffer(20, seed=0), ReplayBuffer(30, seed=1, **second)
    offline.extend(numbered(0, 20, log_prob=torch.zeros(20)))
    online.extend(numbered(100, 10))
    return offline, online


def test_a_batch_has_fixed_shares_and_common_entries():
    mixed = MixedBuffer(buffers(), weights=[1, 3], batch_size=8)
    batch = mixed.sample()
    assert batch["source"].tolist() == [0] * 2 + [1] * 6
    assert ((batch["observation"] >= 100) == (batch["source"] == 1)).all()
    assert "log_prob" not in batch.keys()
    assert len(mixed) == 30


@pytest.mark.parametrize(
    ("weights", "size", "shares"), [([1, 1], 7, [4, 3]), ([1, 2], 10, [3, 7]), ([0, 5], 4, [0, 4]), ([0.1, 0.9], 1, [0, 1])]
)
def test_shares_are_rounded_and_add_up(weights, size, shares):
    assert MixedBuffer(buffers(), weights).shares(size) == shares


def test_priorities_find_their_buffer():
    offline, online = buffers(sampler=PrioritizedSampler(alpha=1.0, eps=1e-12))
    mixed = MixedBuffer([offline, online], batch_size=8)
    batch = mixed.sample()
    assert_close(batch["weight"][:4], torch.ones(4))
    mixed.update_priority(torch.tensor([3, 20 + 5, 20 + 6]), torch.tensor([9.0, 0.25, 0.5]))
    assert_close(online.sampler.priority(torch.tensor([5, 6, 7])), torch.tensor([0.25, 0.5, 1.0]).double())


def test_weights_may_change_at_any_time():
    mixed = MixedBuffer(buffers(), batch_size=4)
    mixed.weights = [1, 0]
    assert mixed.sample()["source"].tolist() == [0] * 4


def test_what_does_not_fit_is_explained():
    with pytest.raises(ConfigError, match="weights"):
        MixedBuffer(buffers(), weights=[1, 1, 1])
    with pytest.raises(ConfigError, match="weights"):
        MixedBuffer(buffers(), weights=[0, 0])
    with pytest.raises(ConfigError, match="list of ReplayBuffers"):
        MixedBuffer([])
    with pytest.raises(ConfigError, match="batch_size"):
        MixedBuffer(buffers()).sample()
    with pytest.raises(ConfigError, match="filled"):
        MixedBuffer([*buffers(), ReplayBuffer(10)], batch_size=3).sample()


def test_priorities_of_slices_find_their_buffer():
    both = [ReplayBuffer(20, sampler=SliceSampler(3, sampler=PrioritizedSampler(alpha=1.0)), seed=seed) for seed in (0, 1)]
    for buffer in both:
        buffer.extend(numbered(0, 10))
    mixed = MixedBuffer(both, batch_size=4)
    rows = mixed.sample()["index"]
    for priority in (torch.tensor([2.0, 2, 5, 5]), torch.tensor([3.0, 3, 6, 6]).unsqueeze(-1).expand(4, 3)):
        mixed.update_priority(rows, priority)
        for buffer, first, value in ((both[0], rows[:2, 0], priority[0]), (both[1], rows[2:, 0] - 20, priority[2])):
            assert_close(buffer.sampler.priority(first), value.max().double().expand(2), atol=1e-5, rtol=0)


def test_a_bad_batch_size_is_explained():
    with pytest.raises(ConfigError, match=r"batch_size must be a positive integer; got 2\.5"):
        MixedBuffer(buffers()).sample(2.5)
