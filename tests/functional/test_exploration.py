"""Exploration: schedules worked by hand, probabilities that are probabilities, and the path of correlated noise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from rlbook.errors import ConfigError, SpecError
from rlbook.functional import (
    boltzmann_probs,
    cosine_schedule,
    epsilon_greedy_probs,
    exponential_schedule,
    linear_schedule,
    ornstein_uhlenbeck,
)

SCHEDULES = [linear_schedule, exponential_schedule, cosine_schedule]


@pytest.mark.parametrize(
    "schedule, values",
    [
        (linear_schedule, [1.0, 1.0, 0.7525, 0.505, 0.01, 0.01]),
        (exponential_schedule, [1.0, 1.0, 0.1**0.5, 0.1, 0.01, 0.01]),
        (cosine_schedule, [1.0, 1.0, 0.01 + 0.99 * (1 + 0.5**0.5) / 2, 0.505, 0.01, 0.01]),
    ],
)
def test_schedules(schedule, values):
    steps = [-5, 0, 25, 50, 100, 1000]  # a quarter, a half, all, and beyond
    numbers = [schedule(step, 1.0, 0.01, 100) for step in steps]
    assert numbers == pytest.approx(values)
    assert all(isinstance(x, float) for x in numbers)
    assert_close(schedule(torch.tensor(steps), 1.0, 0.01, 100), torch.tensor(values))


def test_epsilon_greedy():
    values = torch.tensor([[1.0, 3.0, 2.0, 0.0], [5.0, 5.0, -math.inf, 0.0]], requires_grad=True)
    probs = epsilon_greedy_probs(values, 0.2)
    # 1 - 0.2 + 0.2 / 4; in row 2 three actions are legal and the first of the equals is greedy
    assert_close(probs, torch.tensor([[0.05, 0.85, 0.05, 0.05], [0.8 + 0.2 / 3, 0.2 / 3, 0.0, 0.2 / 3]]))
    assert not probs.requires_grad
    each = epsilon_greedy_probs(values, torch.tensor([0.0, 1.0]))
    assert_close(each, torch.tensor([[0.0, 1.0, 0.0, 0.0], [1 / 3, 1 / 3, 0.0, 1 / 3]]))


def test_boltzmann():
    values = torch.tensor([[0.0, 2 * math.log(3.0), -math.inf]], requires_grad=True)
    probs = boltzmann_probs(values, 2.0)
    assert_close(probs, torch.tensor([[0.25, 0.75, 0.0]]))
    probs[0, 0].backward()
    assert_close(values.grad, torch.tensor([[0.25 * 0.75 / 2, -0.25 * 0.75 / 2, 0.0]]))
    assert_close(
        boltzmann_probs(values.expand(2, 3), torch.tensor([2.0, 1e-3])), torch.tensor([[0.25, 0.75, 0.0], [0.0, 1.0, 0.0]])
    )


def test_ornstein_uhlenbeck_golden():
    noise = torch.tensor([[1.0], [1.0], [0.0]], requires_grad=True)  # three steps, one action
    path = ornstein_uhlenbeck(noise, theta=0.5, sigma=2.0)
    assert_close(path, torch.tensor([[2.0], [3.0], [1.5]]))  # 2; 0.5 * 2 + 2; 0.5 * 3
    assert_close(ornstein_uhlenbeck(noise, theta=0.5, sigma=2.0, start=torch.tensor([4.0])), torch.tensor([[4.0], [4.0], [2.0]]))
    path[-1].sum().backward()
    assert_close(noise.grad, torch.tensor([[0.5], [1.0], [2.0]]))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.integers(1, 40), st.floats(0.0, 1.0))
def test_ornstein_uhlenbeck_is_its_recursion(seed, steps, theta):
    noise = torch.randn(steps, 3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    start = noise[0] + 1.0
    path, x = ornstein_uhlenbeck(noise, theta=theta, sigma=0.3, start=start), start
    for t in range(steps):
        x = (1.0 - theta) * x + 0.3 * noise[t]
        assert_close(path[t], x)
    half = steps // 2
    if half:  # a path may be drawn in two rollouts
        first = ornstein_uhlenbeck(noise[:half], theta=theta, sigma=0.3, start=start)
        second = ornstein_uhlenbeck(noise[half:], theta=theta, sigma=0.3, start=first[-1])
        assert_close(torch.cat([first, second]), path)


def test_ornstein_uhlenbeck_has_its_long_run_deviation():
    noise = torch.randn(2000, 500, generator=torch.Generator().manual_seed(0))
    path = ornstein_uhlenbeck(noise)[100:]
    assert_close(path.std(), torch.tensor(0.2 / math.sqrt(0.15 * 1.85)), rtol=0.01, atol=0.0)
    assert_close((path[1:] * path[:-1]).mean() / path.var(), torch.tensor(0.85), rtol=0.01, atol=0.0)
    assert torch.equal(ornstein_uhlenbeck(noise, theta=1.0, sigma=1.0), noise)


def test_compiles_fullgraph():
    def everything(step, values, noise, theta):
        schedules = [f(step, 1.0, 0.01, 100) for f in SCHEDULES]
        probs = epsilon_greedy_probs(values, theta) + boltzmann_probs(values, theta)
        return schedules, probs, ornstein_uhlenbeck(noise, theta=theta, start=noise[0])

    generator = torch.Generator().manual_seed(0)
    inputs = torch.arange(5), torch.randn(4, 3, generator=generator), torch.randn(6, 4, 2, generator=generator), torch.tensor(0.3)
    assert_close(torch.compile(everything, fullgraph=True, backend="aot_eager")(*inputs), everything(*inputs))


def test_wrong_arguments_are_explained():
    for schedule in SCHEDULES:
        with pytest.raises(ConfigError, match="steps must be positive; got 0"):
            schedule(1, 1.0, 0.1, 0)
    with pytest.raises(ConfigError, match="end must be positive; got 0"):
        exponential_schedule(1, 1.0, 0.0, 10)
    with pytest.raises(ConfigError, match=r"epsilon must be in \[0, 1\]; got 1.5"):
        epsilon_greedy_probs(torch.ones(3), 1.5)
    with pytest.raises(ConfigError, match="temperature must be positive; got 0"):
        boltzmann_probs(torch.ones(3), 0)
    with pytest.raises(ConfigError, match=r"theta must be in \[0, 1\]; got 2.0"):
        ornstein_uhlenbeck(torch.ones(3), theta=2.0)
    with pytest.raises(SpecError, match=r"noise must be \[T, \*\], with time first"):
        ornstein_uhlenbeck(torch.ones(()))
