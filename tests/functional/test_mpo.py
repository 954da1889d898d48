"""MPO's terms: hand-worked values and gradients, and that each dual finds the constraint it stands for."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from rlbook.errors import ConfigError, SpecError
from rlbook.functional import (
    decoupled_gaussian_kl,
    gaussian_kl,
    lagrangian_losses,
    mpo_temperature_loss,
    mpo_weights,
    weighted_likelihood_loss,
)


def leaf(x) -> torch.Tensor:
    return torch.as_tensor(x, dtype=torch.float64).clone().requires_grad_()


def tensor(x) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


def test_mpo_weights():
    values, temperature = leaf([[0.0, 5.0], [2 * math.log(3.0), 5.0]]), leaf(2.0)  # two actions for each of two states
    weights = mpo_weights(values, temperature)
    assert_close(weights, tensor([[0.25, 0.5], [0.75, 0.5]]))
    assert not weights.requires_grad


def test_mpo_temperature_loss():
    values, temperature = leaf([[0.0], [math.log(3.0)]]), leaf(1.0)
    loss = mpo_temperature_loss(values, temperature, 0.1)
    assert_close(loss, tensor([0.1 + math.log(2.0)]))  # log((1 + 3) / 2)
    gradients = torch.autograd.grad(loss.sum(), (temperature, values), allow_unused=True)
    assert_close(gradients[0], tensor(0.1 + math.log(2.0) - 0.75 * math.log(3.0)))  # epsilon + log mean exp - mean_q Q / eta
    assert gradients[1] is None


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.floats(0.02, 0.5))
def test_the_dual_is_least_where_the_weights_are_epsilon_from_uniform(seed, epsilon):
    values = torch.randn(20, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    low, high = 1e-2, 1e2
    for _ in range(60):  # the dual is convex: bisect its slope
        temperature = leaf(math.sqrt(low * high))
        slope = torch.autograd.grad(mpo_temperature_loss(values, temperature, epsilon).mean(), temperature)[0]
        low, high = (temperature.item(), high) if slope < 0 else (low, temperature.item())
    weights = mpo_weights(values, temperature)
    assert_close((weights * (weights * 20).log()).sum(0).mean(), tensor(epsilon), atol=1e-6, rtol=1e-6)


def test_weighted_likelihood_loss():
    log_prob, weight = leaf([[-1.0], [-2.0]]), leaf([[0.25], [0.75]])
    loss = weighted_likelihood_loss(log_prob, weight)
    assert_close(loss, tensor([1.75]))
    loss.sum().backward()
    assert_close(log_prob.grad, -weight.detach())
    assert weight.grad is None


def test_decoupled_gaussian_kl_golden():
    old_mean, old_std, mean, std = leaf([0.0]), leaf([2.0]), leaf([1.0]), leaf([1.0])
    mean_kl, std_kl = decoupled_gaussian_kl(old_mean, old_std, mean, std)
    assert_close(mean_kl, tensor([0.125]))  # 1 / (2 * 4)
    assert_close(std_kl, tensor([1.5 - math.log(2.0)]))  # (4 - 1) / 2 - log 2
    (mean_kl + std_kl).sum().backward()
    assert_close(mean.grad, tensor([0.25]))  # 1 / 4
    assert_close(std.grad, tensor([-3.0]))  # 1 / std - std_old^2 / std^3
    assert old_mean.grad is None
    assert old_std.grad is None


def test_gaussian_kl_golden():
    old_mean, old_std, mean, std = leaf([0.0, 3.0]), leaf([2.0, 1.0]), leaf([1.0, 3.0]), leaf([1.0, 1.0])
    kl = gaussian_kl(old_mean, old_std, mean, std)
    assert_close(kl, tensor(2.0 - math.log(2.0)))  # log(1/2) + (4 + 1) / 2 - 1/2; the second dimension is the same in both
    kl.backward()
    assert_close(mean.grad, tensor([1.0, 0.0]))  # (mean - mean_old) / std^2
    assert_close(std.grad, tensor([-4.0, 0.0]))  # 1 / std - (std_old^2 + d^2) / std^3
    assert old_mean.grad is None
    assert old_std.grad is None


def test_gaussian_kls_are_those_of_torch():
    generator = torch.Generator().manual_seed(0)
    old_mean, mean = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
    old_std, std = torch.rand(2, 6, 3, generator=generator, dtype=torch.float64) + 0.1
    old, new = Normal(old_mean, old_std), Normal(mean, std)
    assert_close(gaussian_kl(old_mean, old_std, mean, std), kl_divergence(old, new).sum(-1))
    mean_kl, std_kl = decoupled_gaussian_kl(old_mean, old_std, mean, std)
    assert_close(mean_kl, kl_divergence(old, Normal(mean, old_std)))
    assert_close(std_kl, kl_divergence(old, Normal(old_mean, std)))


def test_lagrangian_losses():
    kl, alpha = leaf([0.2, 0.05]), leaf([3.0, 3.0])
    policy, dual = lagrangian_losses(kl, alpha, 0.1)
    assert_close(policy, tensor([0.6, 0.15]))
    assert_close(dual, tensor([-0.3, 0.15]))
    (policy + dual).sum().backward()
    assert_close(kl.grad, tensor([3.0, 3.0]))
    assert_close(alpha.grad, tensor([-0.1, 0.05]))  # descent raises alpha where the KL is above the bound, and lowers it below


def test_compiles_fullgraph():
    def everything(values, temperature, log_prob, mean, std):
        weight = mpo_weights(values, temperature)
        kls = decoupled_gaussian_kl(mean, std, -mean, std + 0.1)
        pairs = [lagrangian_losses(kl.mean(0), temperature * torch.ones(3), 0.1) for kl in kls]
        terms = mpo_temperature_loss(values, temperature, 0.1) + weighted_likelihood_loss(log_prob, weight)
        return terms, pairs, gaussian_kl(mean, std, -mean, std + 0.1)

    generator = torch.Generator().manual_seed(0)
    values, log_prob = torch.randn(2, 5, 4, generator=generator)
    mean, std = torch.randn(4, 3, generator=generator), torch.rand(4, 3, generator=generator) + 0.1
    inputs = values, torch.tensor(0.7), log_prob, mean, std
    assert_close(torch.compile(everything, fullgraph=True, backend="aot_eager")(*inputs), everything(*inputs))


def test_wrong_arguments_are_explained():
    x = torch.ones(4, 3)
    with pytest.raises(SpecError, match=r"weight must be of the shape of log_prob, \[4, 3\]; got \[3\]"):
        weighted_likelihood_loss(x, x[0])
    with pytest.raises(SpecError, match=r"std must be of the shape of old_mean, \[4, 3\]; got \[3\]"):
        gaussian_kl(x, x, x, x[0])
    with pytest.raises(SpecError, match=r"multiplier must be of the shape of kl, \[3\]; got \[4, 3\]"):
        lagrangian_losses(x[0], x, 0.1)
    for call in (lambda: mpo_temperature_loss(x, x[0, 0], 0.0), lambda: lagrangian_losses(x, x, 0.0)):
        with pytest.raises(ConfigError, match="epsilon must be positive; got 0"):
            call()
