"""One seed for everything; numbers that depend on (key, counter, salt) and nothing else."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlbook.errors import ConfigError
from rlbook.seeding import check_seed, counter_uniform, env_keys, seed_everything

torch.set_num_threads(1)


# ---- one seed --------------------------------------------------------------------------------------------------------------
def draw(generator):
    return random.random(), np.random.rand(), torch.rand(()).item(), torch.rand((), generator=generator).item()


def test_seed_everything():
    first = draw(seed_everything(3))
    assert draw(seed_everything(3)) == first
    other = draw(seed_everything(4))
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_the_generator_is_its_own():
    generator = seed_everything(3)
    torch.rand(10)
    assert torch.rand((), generator=generator) == torch.rand((), generator=seed_everything(3))


@pytest.mark.parametrize("seed", [0, 2**32 - 1, np.int64(7)])
def test_good_seeds(seed):
    assert check_seed(seed) == seed
    assert type(check_seed(seed)) is int
    seed_everything(seed)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.0, "1", None, True])
@pytest.mark.parametrize("use", [check_seed, seed_everything, lambda seed: env_keys(seed, 2)])
def test_bad_seeds(use, seed):
    with pytest.raises(ConfigError, match=r"seed must be an integer in \[0, 2\*\*32\); got .*Pass for example seed=0"):
        use(seed)


def test_env_keys():
    assert env_keys(5, 3).tolist() == [5, 6, 7]
    assert env_keys(2**32 - 2, 4).tolist() == [2**32 - 2, 2**32 - 1, 0, 1]
    assert env_keys(0, 2).dtype == torch.int64


# ---- streams ---------------------------------------------------------------------------------------------------------------
keys32 = st.integers(0, 2**32 - 1)


@given(key=keys32, counter=st.integers(0, 2**40), salt=st.integers(0, 5), size=st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_range_and_independence_of_the_batch(key, counter, salt, size):
    alone = counter_uniform(torch.tensor(key), counter, size, salt)
    assert alone.shape == (size,)
    assert alone.dtype == torch.float32
    assert ((alone >= 0) & (alone < 1)).all()
    assert torch.equal(alone * 2**24, (alone * 2**24).round())
    batch = counter_uniform(torch.tensor([[1, key], [key, 9]]), torch.tensor([[counter, 4], [counter, counter]]), size + 2, salt)
    assert torch.equal(batch[1, 0, :size], alone)  # nor does it depend on how many numbers are drawn


def test_counters_broadcast():
    keys, counters = torch.arange(3), torch.arange(4)
    both = counter_uniform(keys, counters.unsqueeze(-1), 2)
    assert both.shape == (4, 3, 2)
    assert torch.equal(both[2, 1], counter_uniform(torch.tensor(1), 2, 2))


def test_key_counter_salt_and_lane_all_matter():
    u = counter_uniform(torch.arange(50).reshape(50, 1), torch.arange(20), 4)
    v = counter_uniform(torch.arange(50).reshape(50, 1), torch.arange(20), 4, salt=1)
    both = torch.cat((u, v)).flatten()
    assert both.unique().numel() > 0.999 * both.numel()  # 8000 of 2**24 values: about two pairs meet by chance


def test_moments():
    u = counter_uniform(torch.arange(2000).unsqueeze(-1), torch.arange(50), 2).double()
    torch.testing.assert_close(u.mean().item(), 0.5, rtol=0, atol=0.003)  # five standard deviations of 0.29 / sqrt(200000)
    torch.testing.assert_close(u.var().item(), 1 / 12, rtol=0.01, atol=0)
    histogram = torch.histc(u.float(), bins=20, min=0, max=1)
    assert ((histogram - 10_000).abs() < 500).all()  # five standard deviations of 97


@pytest.mark.parametrize("axis", ["key", "counter", "lane", "salt"])
def test_neighbours_are_not_correlated(axis):
    index = torch.arange(20_000)
    if axis == "key":
        u = counter_uniform(index, 3, 1)[:, 0]
    elif axis == "counter":
        u = counter_uniform(torch.tensor(3), index, 1)[:, 0]
    elif axis == "lane":
        u = counter_uniform(torch.tensor(3), 3, 20_000)
    else:
        u = torch.stack([counter_uniform(index[:10_000], 3, 1, salt)[:, 0] for salt in (0, 1)], -1).flatten()
    both = torch.corrcoef(torch.stack((u[:-1], u[1:])))
    assert both[0, 1].abs() < 0.035  # five standard deviations of 1 / sqrt(20000)


def test_streams_do_not_overlap():
    # No stretch of one stream comes again, shifted, in another: that would make environments repeat each other
    u = counter_uniform(torch.arange(100).unsqueeze(-1), torch.arange(2000), 1)[..., 0]
    pairs = (u[:, :-1].double() * 2**24).long() * 2**24 + (u[:, 1:].double() * 2**24).long()
    assert pairs.unique().numel() == pairs.numel()


def reference(key, counter, lane, salt):
    """Compute the hash in Python's integers."""

    def mix(x):
        x = ((x ^ (x >> 16)) * 0x7FEB352D) % 2**32
        x = ((x ^ (x >> 15)) * 0x846CA68B) % 2**32
        return x ^ (x >> 16)

    stream = mix((mix((key + 0x9E3779B9 * (salt + 1)) % 2**32) + counter) % 2**32)
    return (mix((stream + 0x85EBCA6B * (lane + 1)) % 2**32) >> 8) / 2**24


@given(key=keys32, counter=keys32, salt=st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_equals_the_hash_in_python_integers(key, counter, salt):
    u = counter_uniform(torch.tensor(key), counter, 2, salt)
    assert u.tolist() == [reference(key, counter, lane, salt) for lane in range(2)]


def test_the_same_numbers_inside_a_graph():
    compiled = torch.compile(counter_uniform, fullgraph=True, backend="aot_eager")
    keys, counters = env_keys(9, 6), torch.arange(6)
    assert torch.equal(compiled(keys, counters, 3, 2), counter_uniform(keys, counters, 3, 2))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_numbers_on_a_gpu():
    keys, counters = env_keys(9, 1000), torch.arange(1000)
    assert torch.equal(counter_uniform(keys.cuda(), counters.cuda(), 3).cpu(), counter_uniform(keys, counters, 3))
