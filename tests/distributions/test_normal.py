"""Continuous distributions against torch.distributions, integrals, golden values and extremes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributions as D
from torch.testing import assert_close

from rlbook import specs
from rlbook.distributions import Delta, DiagNormal, TanhNormal, TruncatedNormal
from rlbook.errors import ConfigError, SpecError


def torch_tanh_normal(loc: torch.Tensor, std: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> D.Distribution:
    """Build the same distribution from torch's pieces."""
    squash = [D.TanhTransform(cache_size=1), D.AffineTransform((high + low) / 2, (high - low) / 2)]
    return D.Independent(D.TransformedDistribution(D.Normal(loc, std), squash), 1)


def assert_same_with_gradients(mine: torch.Tensor, reference: torch.Tensor, *parameters: torch.Tensor) -> None:
    assert_close(mine, reference)
    for parameter in parameters:
        gradients = [torch.autograd.grad(value.sum(), parameter, retain_graph=True)[0] for value in (mine, reference)]
        assert_close(*gradients, rtol=1e-4, atol=1e-4)


# DiagNormal ----------------------------------------------------------------------------------------------------------------


def test_normal_by_hand() -> None:
    dist = DiagNormal(torch.tensor([1.0, 0.0]), torch.tensor([0.0, math.log(2)]))
    assert_close(dist.sample(torch.tensor([2.0, -1.0])), torch.tensor([3.0, -2.0]))
    # -1/2 (2^2 + (-1)^2) - log 2 - log(2 pi)
    assert_close(dist.log_prob(torch.tensor([3.0, -2.0])), torch.tensor(-2.5 - math.log(2) - math.log(2 * math.pi)))
    assert_close(dist.entropy(), torch.tensor(math.log(2) + math.log(2 * math.pi * math.e)))
    # log(1/2) + (4 + 1) / 2 - 1/2 in the second dimension against a standard normal moved by 1, none in the first
    assert_close(dist.kl(DiagNormal(torch.tensor([1.0, 1.0]), torch.zeros(2))), torch.tensor(2.0 - math.log(2)))


def test_normal_equals_torch_in_values_and_gradients() -> None:
    loc, log_std = torch.randn(6, 3, requires_grad=True), torch.randn(6, 3, requires_grad=True)
    ours, theirs = DiagNormal(loc, log_std), D.Independent(D.Normal(loc, log_std.exp()), 1)
    x = torch.randn(6, 3)
    other = torch.randn(2, 6, 3)
    reference = D.Independent(D.Normal(other[0], other[1].exp()), 1)
    assert_same_with_gradients(ours.log_prob(x), theirs.log_prob(x), loc, log_std)
    assert_same_with_gradients(ours.entropy(), theirs.entropy(), log_std)
    assert_same_with_gradients(ours.kl(DiagNormal(*other)), D.kl_divergence(theirs, reference), loc, log_std)
    assert ours.batch_shape == ours.entropy().shape == (6,)
    assert torch.equal(ours.mode, loc)
    assert torch.equal(ours.mean, loc)


def test_one_log_std_for_all_states() -> None:
    loc, log_std = torch.randn(6, 3), torch.randn(3)
    shared, spread = DiagNormal(loc, log_std), DiagNormal(loc, log_std.expand(6, 3))
    x = torch.randn(6, 3)
    assert_close(shared.log_prob(x), spread.log_prob(x))
    assert_close(shared.entropy(), spread.entropy())
    assert shared.entropy().shape == (6,)


def test_reparameterised_samples_carry_the_gradient() -> None:
    loc, log_std = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    noise = torch.tensor([0.5, -2.0])
    DiagNormal(loc, log_std).rsample(noise).sum().backward()
    assert_close(loc.grad, torch.ones(2))
    assert_close(log_std.grad, noise)  # dx / dlog_std = std * noise
    assert not DiagNormal(loc, log_std).sample(noise).requires_grad
    x, log_prob = DiagNormal(loc, log_std).sample_with_log_prob(noise)
    assert_close(log_prob, DiagNormal(loc, log_std).log_prob(x))
    assert x.requires_grad


@pytest.mark.parametrize("event_shape", [(), (2, 3)])
def test_actions_that_are_not_vectors(event_shape: tuple[int, ...]) -> None:
    unbounded, bounded = specs.Unbounded(event_shape), specs.Bounded(-2.0, 2.0, event_shape)
    size = bounded.shape.numel()
    for dist in (
        DiagNormal.from_params(torch.randn(5, 2 * size), unbounded),
        TanhNormal.from_params(torch.randn(5, 2 * size), bounded),
        Delta.from_params(torch.randn(5, size), bounded),
    ):
        x, log_prob = dist.sample_with_log_prob()
        assert x.shape == dist.mode.shape == dist.mean.shape == (5, *event_shape)
        assert log_prob.shape == dist.log_prob(x).shape == dist.entropy().shape == dist.batch_shape == (5,)


def test_a_trailing_one_is_refused_not_broadcast() -> None:
    for dist in (DiagNormal(torch.zeros(64, 1), torch.zeros(64, 1)), TanhNormal(torch.zeros(64, 1), torch.zeros(64, 1))):
        with pytest.raises(SpecError, match=r"x must be of shape \[\.\.\., 64, 1\]; got \[64\]"):
            dist.log_prob(torch.zeros(64))


# TanhNormal ----------------------------------------------------------------------------------------------------------------


def test_tanh_normal_by_hand() -> None:
    dist = TanhNormal(torch.zeros(1), torch.zeros(1))
    # At z = 0 the slope of tanh is 1: the density is that of the normal, 1 / sqrt(2 pi).
    assert_close(dist.log_prob(torch.zeros(1)), torch.tensor(-0.5 * math.log(2 * math.pi)))
    # At z = 1: log normal = -1/2 - 0.918939, log slope = log(1 - tanh(1)^2) = -0.867562.
    x, log_prob = dist.sample_with_log_prob(torch.ones(1))
    assert_close(x, torch.tensor([0.761594]))
    assert_close(log_prob, torch.tensor(-1.418939 + 0.867562))
    # Stretched from a width of 2 to one of 10, the density is a fifth.
    wide = TanhNormal(torch.zeros(1), torch.zeros(1), low=0.0, high=10.0)
    x, log_prob = wide.sample_with_log_prob(torch.ones(1))
    assert_close(x, torch.tensor([8.807971]))  # 5 + 5 tanh(1)
    assert_close(log_prob, torch.tensor(-1.418939 + 0.867562 - math.log(5)))


@pytest.mark.parametrize("bounds", [None, (-2.0, 2.0), "tensors"])
def test_tanh_normal_equals_torch_in_values_and_gradients(bounds) -> None:
    loc, log_std = torch.randn(6, 3, requires_grad=True), (0.3 * torch.randn(6, 3)).requires_grad_()
    low, high = torch.tensor([-1.0, -2.0, 0.5]), torch.tensor([1.0, 3.0, 0.75])
    if bounds != "tensors":
        low, high = torch.full((3,), (bounds or (-1.0, 1.0))[0]), torch.full((3,), (bounds or (-1.0, 1.0))[1])
    ours = TanhNormal(loc, log_std, *((low, high) if bounds == "tensors" else bounds or ()))
    theirs = torch_tanh_normal(loc, log_std.exp(), low, high)
    noise = torch.randn(6, 3)
    x, log_prob = ours.sample_with_log_prob(noise)
    reference = low + (torch.tanh(loc + log_std.exp() * noise) + 1) / 2 * (high - low)
    assert_same_with_gradients(x, reference, loc, log_std)
    given = x.detach()
    assert_same_with_gradients(ours.log_prob(given), theirs.log_prob(given), loc, log_std)
    assert_close(ours.log_prob(given), log_prob, rtol=1e-4, atol=1e-4)
    assert_close(ours.rsample(noise), x)
    assert not ours.sample(noise).requires_grad


def test_sample_with_log_prob_has_the_exact_gradient() -> None:
    """The pathwise gradient of SAC's actor loss, against float64 autograd through the textbook formula."""
    loc, log_std = torch.randn(4, 2, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    noise = torch.randn(4, 2)
    _, log_prob = TanhNormal(loc, log_std, -3.0, 1.0).sample_with_log_prob(noise)
    std = log_std.double().exp()
    z = loc.double() + std * noise.double()
    textbook = (
        -0.5 * noise.double() ** 2 - std.log() - 0.5 * math.log(2 * math.pi) - torch.log(2 * (1 - torch.tanh(z) ** 2))
    ).sum(-1)
    assert_same_with_gradients(log_prob, textbook.float(), loc, log_std)


@pytest.mark.parametrize("loc, std", [(0.0, 1.0), (1.5, 0.3), (-0.5, 2.0)])
def test_the_densities_integrate_to_one(loc: float, std: float) -> None:
    parameters = torch.tensor([loc], dtype=torch.float64), torch.tensor([math.log(std)], dtype=torch.float64)
    grid = torch.linspace(-20, 20, 200_001, dtype=torch.float64)
    normal = DiagNormal(*(p.expand(len(grid), 1) for p in parameters)).log_prob(grid.unsqueeze(-1)).exp()
    assert_close(torch.trapezoid(normal, grid).item(), 1.0, atol=1e-6, rtol=0)
    grid = torch.linspace(-2 + 1e-9, 3 - 1e-9, 2_000_001, dtype=torch.float64)
    squashed = TanhNormal(*(p.expand(len(grid), 1) for p in parameters), low=-2.0, high=3.0)
    density = squashed.log_prob(grid.unsqueeze(-1)).exp()
    assert_close(torch.trapezoid(density, grid).item(), 1.0, atol=1e-3, rtol=0)


def test_two_dimensions_multiply() -> None:
    grid = torch.linspace(-0.9999, 0.9999, 801, dtype=torch.float64)
    x = torch.cartesian_prod(grid, grid)
    dist = TanhNormal(
        torch.tensor([0.3, -0.5], dtype=torch.float64).expand_as(x), torch.tensor([-0.5, -1.0]).double().expand_as(x)
    )
    density = dist.log_prob(x).exp().reshape(801, 801)
    assert_close(torch.trapezoid(torch.trapezoid(density, grid), grid).item(), 1.0, atol=1e-3, rtol=0)


def test_sampling_follows_the_density() -> None:
    """Quantiles of the samples are the images of the normal's: half below the mode, 84 % below one standard deviation."""
    loc, std, n = 0.4, 0.7, 40_000
    dist = TanhNormal(torch.full((n, 1), loc), torch.full((n, 1), math.log(std)), -2.0, 2.0)
    x = dist.sample()
    for z, share in ((0.0, 0.5), (1.0, 0.841345), (-1.0, 0.158655)):
        below = (x < 2 * math.tanh(loc + std * z)).float().mean()
        assert_close(below.item(), share, atol=0.0125, rtol=0)  # five standard deviations: 5 * sqrt(0.25 / 40000)


@pytest.mark.parametrize("z", [-10.0, 10.0, -40.0, 40.0])
def test_ten_standard_deviations_out_everything_is_finite_and_exact(z: float) -> None:
    loc, log_std = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    dist = TanhNormal(loc, log_std, -2.0, 2.0)
    x, log_prob = dist.sample_with_log_prob(torch.tensor([z]))
    assert specs.Bounded(-2.0, 2.0, (1,)).contains(x)
    # log(1 - tanh(z)^2) = log 4 - 2 |z| for large |z|, and log 2 for the scale
    assert_close(log_prob.item(), -z * z / 2 - 0.5 * math.log(2 * math.pi) - math.log(8) + 2 * abs(z), rtol=1e-5, atol=0)
    gradients = torch.autograd.grad(log_prob + x.sum(), [loc, log_std])
    assert all(g.isfinite().all() for g in gradients)
    again = dist.log_prob(x.detach())
    assert again.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(again, [loc, log_std]))


def test_log_prob_of_actions_near_and_on_the_bounds() -> None:
    dist = TanhNormal(torch.zeros(5, 1), torch.zeros(5, 1), -2.0, 2.0)
    actions = torch.tensor([[-2.0], [2.0], [1.999999], [-1.9], [2.5]])  # the last one was never possible
    assert dist.log_prob(actions).isfinite().all()
    exact = TanhNormal(torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64), -2.0, 2.0)
    assert_close(
        dist.log_prob(actions)[3:4].double(), exact.log_prob(torch.tensor([[-1.9]], dtype=torch.float64)), rtol=1e-5, atol=1e-5
    )


def test_no_action_leaves_its_bounds_by_rounding() -> None:
    low, high = torch.tensor([-0.1, 0.3, -1e4]), torch.tensor([0.3, 0.7, 1e-3])
    spec = specs.Bounded(low, high)
    params = torch.cat([100 * torch.randn(1000, 3), torch.zeros(1000, 3)], -1)
    dist = TanhNormal.from_params(params, spec)
    assert spec.contains(dist.sample(), batch=(1000,))
    assert spec.contains(dist.mode, batch=(1000,))


@pytest.mark.parametrize("std, tolerance", [(0.05, 1e-5), (1.0, 1e-5), (2.7, 1e-5), (math.exp(2), 2e-3)])
def test_entropy_and_mean_equal_fine_integrals(std: float, tolerance: float) -> None:
    loc = torch.linspace(-4, 4, 9, dtype=torch.float64).unsqueeze(-1)
    dist = TanhNormal(loc, torch.full_like(loc, math.log(std)), -1.0, 3.0)
    x = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    weight = torch.exp(-0.5 * x**2) / math.sqrt(2 * math.pi) * (x[1] - x[0])
    z = loc + std * x
    log_slope = 2 * (math.log(2) - z - torch.nn.functional.softplus(-2 * z)) + math.log(2)
    entropy = 0.5 * math.log(2 * math.pi * math.e) + math.log(std) + (weight * log_slope).sum(-1)
    mean = 1 + 2 * (weight * z.tanh()).sum(-1)
    assert_close(dist.entropy(), entropy, atol=tolerance, rtol=0)
    assert_close(dist.mean.squeeze(-1), mean, atol=2 * tolerance, rtol=0)  # an action range of 4, where tanh has 2


def test_entropy_is_the_expected_log_prob_and_has_a_gradient() -> None:
    loc, log_std = torch.tensor([[0.3, -1.0]], requires_grad=True), torch.tensor([[-0.5, 0.2]], requires_grad=True)
    entropy = TanhNormal(loc, log_std).entropy()
    many = TanhNormal(loc.expand(200_000, 2), log_std.expand(200_000, 2))
    _, log_prob = many.sample_with_log_prob()
    assert_close(entropy, -log_prob.mean(0, keepdim=True), atol=0.015, rtol=0)
    exact = torch.autograd.grad(entropy.sum(), [loc, log_std])
    sampled = torch.autograd.grad(-log_prob.mean(), [loc, log_std])
    assert_close(exact, sampled, atol=0.02, rtol=0)


def test_kl_does_not_see_the_squashing() -> None:
    a, b = torch.randn(2, 6, 3), torch.randn(2, 6, 3)
    expected = DiagNormal(*a).kl(DiagNormal(*b))
    assert_close(TanhNormal(*a, -2.0, 2.0).kl(TanhNormal(*b, -2.0, 2.0)), expected)


def test_from_params_splits_clamps_and_scales() -> None:
    spec = specs.Bounded(torch.tensor([0.0, -4.0]), torch.tensor([10.0, 4.0]))
    dist = TanhNormal.from_params(torch.tensor([0.0, 1.0, 50.0, -50.0]), spec)
    assert_close(dist.normal.loc, torch.tensor([0.0, 1.0]))
    assert_close(dist.normal.log_std, torch.tensor([2.0, -20.0]))
    assert_close(dist.mode, torch.tensor([5.0, 4 * math.tanh(1)]))
    normal = DiagNormal.from_params(torch.tensor([0.0, 1.0, 50.0, -50.0]), specs.Unbounded(2))
    assert_close(normal.log_std, torch.tensor([2.0, -20.0]))
    assert_close(normal.loc, torch.tensor([0.0, 1.0]))


# Delta ---------------------------------------------------------------------------------------------------------------------


def test_delta_is_its_action() -> None:
    action = torch.tensor([[0.5, 1.0], [0.0, 2.0]], requires_grad=True)
    dist = Delta(action)
    assert torch.equal(dist.sample(), action)
    assert not dist.sample().requires_grad
    assert dist.rsample() is dist.mode is dist.mean is action
    assert dist.log_prob(torch.tensor([[0.5, 1.0], [0.0, 3.0]])).tolist() == [0.0, -math.inf]
    assert dist.entropy().tolist() == [0.0, 0.0]
    assert dist.batch_shape == (2,)
    before = torch.get_rng_state()
    dist.sample(Delta.base_noise((2, 2)))
    assert torch.equal(before, torch.get_rng_state())


def test_delta_squashes_into_finite_bounds_only() -> None:
    spec = specs.Bounded(0.0, 10.0, (2,))
    assert_close(Delta.from_params(torch.tensor([0.0, 1.0]), spec).mode, torch.tensor([5.0, 5 + 5 * math.tanh(1)]))
    assert_close(Delta.from_params(torch.tensor([0.0, 99.0]), specs.Unbounded(2)).mode, torch.tensor([0.0, 99.0]))
    with pytest.raises(ConfigError, match="kl of Delta must be defined"):
        Delta(torch.zeros(2)).kl(Delta(torch.zeros(2)))


# Compilation ---------------------------------------------------------------------------------------------------------------


def by_normal(params: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, ...]:
    dist = DiagNormal.from_params(params, specs.Unbounded(3))
    return *dist.sample_with_log_prob(noise), dist.log_prob(noise), dist.entropy(), dist.mode


def by_tanh(params: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, ...]:
    loc, log_std = params.chunk(2, -1)
    dist = TanhNormal(loc, log_std, -2.0, 3.0)
    return *dist.sample_with_log_prob(noise), dist.log_prob(noise), dist.entropy(), dist.mode, dist.mean


def by_delta(params: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, ...]:
    dist = Delta(params)
    return dist.rsample(), dist.log_prob(params), dist.entropy()


@pytest.mark.parametrize("function", [by_normal, by_tanh, by_delta])
def test_compiles_into_one_graph_and_agrees(function) -> None:
    params, noise = torch.randn(8, 6, requires_grad=True), torch.randn(8, 3)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    results, references = compiled(params, noise), function(params, noise)
    assert_close(results, references)
    gradients = [torch.autograd.grad(values[1].sum() + values[0].sum(), params)[0] for values in (results, references)]
    assert_close(*gradients)


def test_a_spec_from_outside_the_graph_compiles() -> None:
    spec = specs.Bounded(-2.0, 3.0, (3,))
    params, noise = torch.randn(8, 6), torch.randn(8, 3)

    def act(params: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return TanhNormal.from_params(params, spec).sample_with_log_prob(noise)

    assert_close(torch.compile(act, fullgraph=True, backend="aot_eager")(params, noise), act(params, noise))


@pytest.mark.parametrize("kind", [TanhNormal, TruncatedNormal])
@pytest.mark.parametrize(("params", "bounds"), [(torch.float32, torch.float64), (torch.bfloat16, torch.float32)])
def test_bounds_of_another_precision(kind, params, bounds) -> None:
    spec = specs.Bounded(-2.0, 2.0, (2,), dtype=bounds)
    dist = kind.from_params(torch.zeros(3, 4, dtype=params), spec)
    action, log_prob = dist.sample_with_log_prob()
    assert action.dtype == dist.mode.dtype == bounds
    assert_close(dist.log_prob(action.detach()).float(), log_prob.float(), atol=0.2, rtol=0.1)
    zeros = torch.zeros(2, dtype=params)
    assert kind(zeros, zeros, torch.tensor(-2.0, dtype=bounds), 2.0).sample().isfinite().all()


def test_a_truncated_normal_without_width() -> None:
    spec = specs.Bounded(torch.tensor([0.0, -1.0]), torch.tensor([0.0, 1.0]), (2,))
    dist = TruncatedNormal.from_params(torch.randn(4), spec)
    assert dist.sample()[0] == dist.mean[0] == 0
    assert dist.sample().isfinite().all()


def test_small_deviations_are_exact() -> None:
    noise = torch.randn(1000, 1)
    _, log_prob = DiagNormal(torch.full((1000, 1), 100.0), torch.full((1000, 1), -15.0)).sample_with_log_prob(noise)
    expected = DiagNormal(torch.zeros(1000, 1).double(), torch.full((1000, 1), -15.0).double()).log_prob_of_noise(noise.double())
    assert_close(log_prob.double(), expected)
