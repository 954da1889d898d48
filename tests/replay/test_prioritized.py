"""Prioritized sampling: frequencies match priorities, weights match the paper, and nothing breaks the tree."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from replay.test_samplers import chi_squared, numbered
from torch.testing import assert_close

from rlbook.errors import ConfigError, SpecError
from rlbook.replay import PrioritizedSampler, RankSampler, ReplayBuffer


def filled(sampler, rows: int = 40, capacity: int = 50) -> ReplayBuffer:
    buffer = ReplayBuffer(capacity, sampler=sampler, seed=0)
    buffer.extend(numbered(0, rows))
    return buffer


def frequencies(buffer: ReplayBuffer, rows: int, batches: int = 200, size: int = 256) -> torch.Tensor:
    drawn = torch.cat([buffer.sample(size)["index"] for _ in range(batches)])
    return torch.bincount(drawn, minlength=rows)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_rows_come_in_proportion_to_their_priority(alpha):
    buffer = filled(PrioritizedSampler(alpha, eps=1e-9))
    error = torch.rand(40) * 5
    buffer.update_priority(torch.arange(40), error)
    share = error.double() ** alpha / (error.double() ** alpha).sum()
    # strata make the counts closer to their means than independent draws would be
    assert chi_squared(frequencies(buffer, 40), 200 * 256 * share) < 4
    assert_close(frequencies(buffer, 40) / (200 * 256), share.float(), atol=0.004, rtol=0.05)


@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_rows_come_by_their_rank(alpha):
    buffer = filled(RankSampler(alpha, stale=0.0))
    error = torch.rand(40)
    buffer.update_priority(torch.arange(40), error)
    rank = torch.empty(40).double()
    rank[error.argsort(descending=True)] = torch.arange(1, 41).double()
    share = rank**-alpha / (rank**-alpha).sum()
    assert_close(frequencies(buffer, 40) / (200 * 256), share.float(), atol=0.004, rtol=0.05)


@pytest.mark.parametrize("sampler", [PrioritizedSampler, RankSampler])
def test_alpha_0_is_uniform_and_weights_are_1(sampler):
    buffer = filled(sampler(alpha=0.0, beta=0.7))
    buffer.update_priority(torch.arange(20), torch.rand(20) * 100)
    assert_close(buffer.sample(64)["weight"], torch.ones(64))
    assert chi_squared(frequencies(buffer, 40), torch.full((40,), 200 * 256 / 40)) < 4


def test_weights_are_those_of_the_paper():
    # priorities 1, 2, 4 with alpha = 1: P = 1/7, 2/7, 4/7; n P = 3/7, 6/7, 12/7; w = (nP)^-1 / max = 1, 1/2, 1/4
    buffer = filled(PrioritizedSampler(alpha=1.0, beta=1.0, eps=1e-12), rows=3)
    buffer.update_priority(torch.arange(3), torch.tensor([1.0, -2.0, 4.0]))
    batch = buffer.sample(256)
    assert_close(batch["weight"], torch.tensor([1.0, 0.5, 0.25])[batch["index"]])
    buffer.sampler.beta = 0.5
    batch = buffer.sample(256)
    assert_close(batch["weight"], torch.tensor([1.0, 0.5**0.5, 0.5])[batch["index"]])


def test_new_rows_have_the_highest_priority_so_far():
    buffer = filled(PrioritizedSampler(alpha=1.0, eps=1e-12), rows=3, capacity=4)
    buffer.update_priority(torch.tensor([0, 1]), torch.tensor([0.5, 8.0]))
    buffer.extend(numbered(3, 2))  # rows 3 and 0
    assert_close(buffer.sampler.priority(torch.arange(4)), torch.tensor([8.0, 8.0, 1.0, 8.0]).double())


def test_rank_draws_new_rows_once_it_sorts_again():
    buffer = filled(RankSampler(stale=0.5), rows=10)
    assert set(buffer.sample(500)["index"].tolist()) == set(range(10))
    buffer.extend(numbered(10, 3))  # 3 changes of 10: not stale yet
    assert set(buffer.sample(500)["index"].tolist()) == set(range(10))
    buffer.extend(numbered(13, 3))
    assert set(buffer.sample(2000)["index"].tolist()) == set(range(16))


@pytest.mark.parametrize("sampler", [PrioritizedSampler(), RankSampler(stale=0.0)])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_sequence_of_calls_keeps_the_books_valid(sampler, data):
    buffer = ReplayBuffer(17, sampler=sampler, seed=0)
    buffer.clear()
    for _ in range(data.draw(st.integers(1, 25))):
        match data.draw(st.sampled_from(["extend", "sample", "update", "clear", "reload"])):
            case "extend":
                buffer.extend(numbered(0, data.draw(st.integers(1, 30))))
            case "sample" if len(buffer):
                batch = buffer.sample(data.draw(st.integers(1, 40)))
                assert batch["index"].max() < len(buffer)
                assert ((batch["weight"] > 0) & (batch["weight"] <= 1 + 1e-6)).all()
            case "update" if len(buffer):
                rows = buffer.sample(8)["index"]
                buffer.update_priority(rows, torch.tensor(data.draw(st.lists(st.floats(0, 1e6), min_size=8, max_size=8))))
            case "clear":
                buffer.clear()
            case "reload":
                buffer.load_state_dict(buffer.state_dict())
        buffer.check_valid()


def test_a_reloaded_sampler_goes_on_bit_for_bit():
    for make in (PrioritizedSampler, RankSampler):
        buffer, other = filled(make()), ReplayBuffer(50, sampler=make(), seed=9)
        buffer.update_priority(torch.arange(10), torch.rand(10))
        buffer.sample(32)
        other.load_state_dict(buffer.state_dict())
        for _ in range(3):
            one, two = buffer.sample(32), other.sample(32)
            assert_close(one["index"], two["index"], rtol=0, atol=0)
            assert_close(one["weight"], two["weight"], rtol=0, atol=0)


@pytest.mark.parametrize("make", [PrioritizedSampler, RankSampler])
def test_bad_priorities_are_explained_and_change_nothing(make):
    buffer = filled(make())
    before = buffer.sampler.priority(torch.arange(40)).clone()
    with pytest.raises(SpecError, match="loss that diverged"):
        buffer.update_priority(torch.arange(2), torch.tensor([1.0, float("nan")]))
    with pytest.raises(SpecError, match="one number per row"):
        buffer.update_priority(torch.arange(2), torch.ones(2, 1))
    assert_close(buffer.sampler.priority(torch.arange(40)), before)
    for bad in ({"alpha": -1.0}, {"beta": -0.1}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            make(**bad)
    with pytest.raises(ConfigError, match="eps"):
        PrioritizedSampler(eps=0.0)
    with pytest.raises(ConfigError, match="stale"):
        RankSampler(stale=1.0)
