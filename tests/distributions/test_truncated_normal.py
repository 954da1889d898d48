"""TruncatedNormal: against SciPy, by moments, by its own density, and at its edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from rlbook.distributions import TruncatedNormal
from rlbook.specs import Bounded

CASES = [  # loc, std, low, high
    (0.0, 1.0, -1.0, 1.0),
    (0.5, 0.2, -1.0, 1.0),
    (-1.0, 0.5, -1.0, 1.0),
    (1.9, 5.0, 0.0, 2.0),
    (3.0, 1.0, -1.0, 1.0),  # outside the bounds
    (9.0, 1.0, -1.0, 1.0),  # far outside, above and below
    (-9.0, 1.0, -1.0, 1.0),
]
cases = pytest.mark.parametrize(("loc", "std", "low", "high"), CASES)


def build(loc, std, low, high, rows=1, dtype=torch.float64):
    return TruncatedNormal(torch.full((rows, 1), loc, dtype=dtype), torch.full((1,), math.log(std), dtype=dtype), low, high)


@cases
def test_equals_scipy(loc, std, low, high):
    dist, other = build(loc, std, low, high), stats.truncnorm((low - loc) / std, (high - loc) / std, loc, std)
    x = np.linspace(low, high, 7)
    ours = dist.log_prob(torch.from_numpy(x)[:, None, None]).squeeze(-1)
    assert_close(ours, torch.from_numpy(other.logpdf(x)), rtol=1e-6, atol=1e-8)
    grid = np.linspace(low, high, 20_001)  # SciPy's entropy is wrong far below the mean
    entropy = float(np.trapezoid(-other.pdf(grid) * other.logpdf(grid), grid))
    assert_close(dist.entropy().item(), entropy, rtol=1e-5, atol=1e-5)
    assert_close(dist.mean.item(), float(other.mean()), rtol=1e-6, atol=1e-8)
    u = np.array([1e-6, 0.1, 0.5, 0.9, 1 - 1e-6])
    quantiles = dist.sample(torch.from_numpy(u)[:, None, None]).flatten()
    assert_close(quantiles, torch.from_numpy(other.ppf(u)), rtol=1e-6, atol=1e-8)


@cases
def test_float32_is_close_and_inside(loc, std, low, high):
    dist, exact = build(loc, std, low, high, dtype=torch.float32), build(loc, std, low, high)
    u = torch.tensor([0.0, 1e-7, 0.3, 0.7, 1 - 2**-24])[:, None, None]
    x = dist.sample(u)
    assert ((x >= low) & (x <= high)).all()
    assert_close(x.double()[2:4], exact.sample(u.double())[2:4], atol=2e-4, rtol=0)
    assert_close(dist.log_prob(x).double(), exact.log_prob(x.double()), atol=2e-3, rtol=1e-3)


@cases
def test_samples_have_the_mean_and_the_entropy(loc, std, low, high):
    dist = build(loc, std, low, high, rows=40_000)
    x = dist.sample()
    width = high - low
    assert_close(x.mean(), dist.mean[0, 0], atol=0.01 * width, rtol=0)
    assert_close(-dist.log_prob(x).mean(), dist.entropy()[0], atol=0.03, rtol=0)


def test_kl_is_the_expected_log_ratio_and_zero_of_itself():
    p, q = build(0.5, 0.4, -1.0, 1.0, rows=100_000), build(-0.2, 0.8, -1.0, 1.0, rows=100_000)
    x = p.sample()
    ratio = p.log_prob(x) - q.log_prob(x)
    assert_close(ratio.mean(), p.kl(q)[0], atol=5 * float(ratio.std()) / 100_000**0.5, rtol=0)
    assert_close(p.kl(p)[:3], torch.zeros(3, dtype=torch.float64))


def test_gradient_of_log_prob_by_differences():
    loc = torch.tensor([0.3, -0.4], dtype=torch.float64, requires_grad=True)
    log_std = torch.tensor([-0.5, 0.7], dtype=torch.float64, requires_grad=True)
    x = torch.tensor([0.1, 0.8], dtype=torch.float64)

    def log_prob(loc, log_std):
        return TruncatedNormal(loc, log_std).log_prob(x)

    assert torch.autograd.gradcheck(log_prob, (loc, log_std))


def test_gradient_of_a_sample_by_differences():
    u = torch.tensor([0.2, 0.9], dtype=torch.float64)
    loc = torch.tensor([0.3, 2.0], dtype=torch.float64, requires_grad=True)
    log_std = torch.tensor([-0.5, 0.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda loc, log_std: TruncatedNormal(loc, log_std).rsample(u), (loc, log_std))


def test_gradient_of_entropy_and_mean_by_differences():
    arguments = torch.randn(3, dtype=torch.float64, requires_grad=True), torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda loc, log_std: TruncatedNormal(loc, log_std).entropy(), arguments)
    assert torch.autograd.gradcheck(lambda loc, log_std: TruncatedNormal(loc, log_std).mean, arguments)


def test_outside_the_bounds_there_is_nothing():
    dist = build(0.0, 1.0, -1.0, 1.0)
    assert dist.log_prob(torch.tensor([[1.01]], dtype=torch.float64)) == -math.inf


def test_a_network_chooses_mode_and_spread_in_units_of_the_range():
    spec = Bounded(torch.tensor([0.0, -1.0]), torch.tensor([10.0, 1.0]))
    dist = TruncatedNormal.from_params(torch.tensor([0.0, 20.0, math.log(0.1), math.log(0.1)]), spec)
    assert_close(dist.mode, torch.tensor([5.0, 1.0]))
    assert_close(dist.std, torch.tensor([0.5, 0.1]))
    assert_close(
        TruncatedNormal.from_params(torch.tensor([0.0, 0.0, -100.0, 100.0]), spec).std,
        torch.tensor([5 * math.exp(-20), math.exp(2)]),
    )


def test_float64_parameters_keep_their_precision() -> None:
    spec = Bounded(-2.0, 2.0, shape=(1,))
    dist = TruncatedNormal.from_params(torch.zeros(3, 2, dtype=torch.float64), spec)
    assert dist.sample().dtype == dist.mean.dtype == torch.float64
